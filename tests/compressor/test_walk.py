"""Going on from a cut gives what a run from the inputs gives, and runs each node once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import models
import models_core
import numpy as np
import onnx
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor import walk
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Runner
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, replace_constant
from edgepress.compressor.walk import walking
from edgepress.runtime.engines.ort import OrtEngine


@dataclass
class Counting(OrtEngine):
    """Counts the nodes of all models that it loads."""

    nodes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        OrtEngine.__init__(self)

    def load(self, model: bytes | Path, threads: int = 1) -> Runner:  # type: ignore[override]
        """Count, then load."""
        assert isinstance(model, bytes)
        self.nodes.append(len(onnx.load_from_string(model).graph.node))
        return super().load(model, threads)


def ready(model: ir.Model) -> tuple[ir.Model, Context, Counting]:
    infer_shapes(model)
    context, engine = oracles.context(model), Counting()
    assert isinstance(context.stream, Streamer)
    return model, replace(context, stream=replace(context.stream, engine=engine)), engine


def assert_same(context: Context, walked: Context, model: ir.Model, x: str, y: str) -> None:
    assert context.stream is not None
    assert walked.stream is not None
    expected = list(context.stream(model, [x], [y]))
    found = list(walked.stream(model, [x], [y]))
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert ours.keys() == theirs.keys()
            for name, array in theirs.items():
                np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)


def visit(original: ir.Model, context: Context) -> None:
    """Ask for each site's input from front to back, and change the site's weights after that."""
    model, walked = original.clone(), walking(context)
    for site in find_sites(model):
        assert_same(context, walked, model, site.x.name or "", site.y.name or "")
        replace_constant(site.node, 1, site.weight * np.float32(1.25))


@pytest.mark.parametrize(
    "make",
    [models.cnn, models.residual, models.concat, models.depthwise, models.two_inputs, models_core.tokens],
)
def test_a_net_that_changes_behind_the_cut_gives_what_a_whole_run_gives(
    make: Callable[[], ir.Model],
) -> None:
    model, context, _ = ready(make())
    visit(model, context)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(models_core.BLOCKS)), min_size=1, max_size=4),
    st.sampled_from(sorted(models_core.HEADS)),
    st.integers(0, 99),
)
def test_any_net(blocks: list[str], head: str, seed: int) -> None:
    model, context, _ = ready(models_core.random_net(blocks, head, seed))
    visit(model, context)


def test_each_node_runs_once() -> None:
    model, context, engine = ready(models.residual())
    stream = walking(context).stream
    assert stream is not None
    for site in find_sites(model):
        list(stream(model, [site.x.name or ""]))
    assert sum(engine.nodes) <= len(model.graph)


def test_a_cut_too_wide_to_keep_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "CHECKPOINT_BYTES", 0)
    model, context, _ = ready(models.residual())
    walked = walking(context)
    assert isinstance(walked.stream, walk.Walk)
    for site in find_sites(model):
        assert_same(context, walked, model, site.x.name or "", site.y.name or "")
        if site is not find_sites(model)[0]:
            assert walked.stream.now.kept is None


def test_a_value_before_the_cut_is_found_all_the_same() -> None:
    model, context, _ = ready(models.cnn())
    walked, sites = walking(context), find_sites(model)
    for site in (*sites, *reversed(sites)):
        assert_same(context, walked, model, site.x.name or "", site.y.name or "")


def test_a_run_that_is_broken_off_moves_no_cut() -> None:
    model, context, _ = ready(models.cnn())
    walked, last = walking(context), find_sites(model)[-1].x.name or ""
    assert isinstance(walked.stream, walk.Walk)
    for _ in walked.stream(model, [last]):
        break
    assert walked.stream.now.kept is None
