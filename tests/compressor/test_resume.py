"""Copies of a model run from where they differ: the same values, and what comes before is run once."""

from concurrent.futures import ThreadPoolExecutor

import models
import models_core
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_walk import ready

from edgepress.compressor import resume
from edgepress.compressor.observe import Streamer, output_names
from edgepress.compressor.passes.base import Context
from edgepress.compressor.resume import alike_at_the_end, resuming, unchanged
from edgepress.compressor.sites import find_sites, replace_constant


def altered(model: ir.Model, place: int) -> ir.Model:
    """A copy with other weights at one site."""
    copy = model.clone()
    sites = find_sites(copy)
    site = sites[place % len(sites)]
    replace_constant(site.node, 1, site.weight * np.float32(1.5))
    return copy


def assert_same(model: ir.Model, context: Context, resumed: Context, names: list[str]) -> None:
    assert context.stream is not None
    assert resumed.stream is not None
    expected, found = (list(stream(model, names)) for stream in (context.stream, resumed.stream))
    assert len(found) == len(expected) > 1
    for (ours, none), (theirs, _) in zip(found, expected, strict=True):
        assert not none
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)


@given(
    st.integers(0, 500),
    st.sampled_from(["relu", "leaky", "batchnorm", "residual", "concat"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
@settings(max_examples=12, deadline=None)
def test_values_are_those_of_a_run_from_the_inputs(seed: int, kind: str, places: list[int]) -> None:
    model, context, _ = ready(models_core.random_net(["relu", kind, "conv", "relu"], "gap", seed))
    resumed = resuming(context)
    inner = [node.outputs[0].name or "" for node in model.graph][::2]
    for place in places:  # forwards and back
        assert_same(altered(model, place), context, resumed, output_names(model))
        assert_same(altered(model, place), context, resumed, inner)
    assert_same(model, context, resumed, output_names(model))


def test_what_comes_before_is_loaded_once() -> None:
    model, context, engine = ready(models_core.random_net(["relu", "conv", "relu", "conv", "relu"], "gap", 0))
    resumed, last = resuming(context), len(find_sites(model)) - 1
    names = output_names(model)

    def loaded(copy: ir.Model) -> list[int]:
        before = len(engine.nodes)
        assert resumed.stream is not None
        assert list(resumed.stream(copy, names))
        return engine.nodes[before:]

    whole, place = len(model.graph), unchanged(model, altered(model, last))
    assert 0 < place < whole
    assert sum(loaded(altered(model, last))) == whole
    assert loaded(altered(model, last)) == [1]
    assert loaded(altered(model, 0)) == [whole]
    behind = whole - place - 1
    assert alike_at_the_end(model, altered(model, last)) == behind


def test_what_comes_behind_is_loaded_once() -> None:
    model, context, engine = ready(
        models_core.random_net(["relu", "conv", "residual", "conv", "relu"], "gap", 4)
    )
    resumed, names = resuming(context), output_names(model)
    for times in range(3):
        before, copy = len(engine.nodes), altered(model, 1)
        assert_same(copy, context, resumed, names)
        loaded = engine.nodes[before + 1 :]  # the first is the plain run that it is held against
        assert loaded[-1] == 1
        assert len(loaded) == (1 if times else 3)


def test_nodes_that_read_fewer_channels_than_the_original_s_run_with_what_is_in_front() -> None:
    weights = models.constants(5, k1=(3, 2, 3, 3), k2=(6, 3, 3, 3))
    body = "a = Conv (x, k1) b = Conv (a, k2) r = Relu(b) y = ReduceMean <keepdims = 0> (r, axes)"
    model, context, _ = ready(
        models.text("(float[N, 2, 8, 8] x) => (float[N, 4, 4] y)", body, {**weights, "axes": np.array([1])})
    )
    copy = model.clone()
    site = find_sites(copy)[1]
    replace_constant(site.node, 1, site.weight[:4])
    assert alike_at_the_end(model, copy) == 2
    assert_same(copy, context, resuming(context), ["y"])


def test_threads_that_are_at_different_sites_do_not_disturb_each_other() -> None:
    model, context, _ = ready(
        models_core.random_net(["relu", "conv", "relu", "conv", "relu", "conv"], "gap", 6)
    )
    resumed, names = resuming(context), output_names(model)
    copies = [altered(model, place % 3) for place in range(60)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda copy: assert_same(copy, context, resumed, names), copies))


def test_what_is_made_does_not_hang_on_what_was_asked_before() -> None:
    model, context, _ = ready(models_core.random_net(["relu", "conv", "relu", "conv"], "gap", 1))
    names, last = output_names(model), altered(model, len(find_sites(model)) - 1)
    fresh, used = resuming(context), resuming(context)
    assert fresh.stream is not None
    assert used.stream is not None
    for place in range(3):
        assert list(used.stream(altered(model, place), names))
    for one, other in zip(fresh.stream(last, names), used.stream(last, names), strict=True):
        for name in names:
            np.testing.assert_array_equal(one[0][name], other[0][name])


def test_large_cuts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "CHECKPOINT_BYTES", 10)
    model, context, engine = ready(models_core.random_net(["relu", "conv", "relu"], "gap", 2))
    resumed, copy = resuming(context), altered(model, 1)
    assert_same(copy, context, resumed, output_names(model))
    assert engine.nodes[-1] == len(model.graph)


def test_the_original_beside_it_and_plain_contexts_run_as_ever() -> None:
    model, context, _ = ready(models.mlp(8, 3))
    resumed = resuming(context)
    assert isinstance(context.stream, Streamer)
    assert resumed.stream is not None
    copy = altered(model, 1)
    for one, other in zip(
        resumed.stream(copy, ["y"], ["y"]), context.stream(copy, ["y"], ["y"]), strict=True
    ):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours["y"], theirs["y"])
    assert resuming(Context()) == Context()


@pytest.mark.parametrize("what", ["weights", "attribute", "input", "name", "nothing"])
def test_the_first_change_is_found(what: str) -> None:
    model, _, _ = ready(models_core.random_net(["relu", "conv", "relu"], "gap", 3))
    copy, place = model.clone(), 2
    node = list(copy.graph)[place]
    conv = find_sites(copy)[1]
    if what == "weights":
        replace_constant(conv.node, 1, conv.weight.copy())
        place = list(copy.graph).index(conv.node)
    elif what == "attribute":
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    elif what == "input":
        node.replace_input_with(0, copy.graph.inputs[0])
    elif what == "name":
        node.outputs[0].name = "another"
    else:
        place = len(copy.graph)
    assert unchanged(model, copy) == place
