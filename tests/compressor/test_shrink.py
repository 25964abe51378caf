"""Shrinking whole channels: which go, what is put back, and what is left alone."""

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import KEPT
from edgepress.compressor.passes.shrink import Shrink, group_curve, shrinkable, shrunk_alone
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites


def wide(hidden: int = 24) -> tuple[ir.Model, Feeds]:
    """A net whose hidden units are, but for noise, mixtures of a few; and samples."""
    weights = constants(31, w1=(hidden, 6), b1=(hidden,), w2=(5, hidden), b2=(5,))
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 6))
    weights["w1"] = (rng.choice([-1.0, 1.0, 2.0], size=(hidden, 3)) @ basis / 2).astype(np.float32)
    body = "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2, b2)"
    model = text("(float[N, 6] x) => (float[N, 5] y)", body, weights)
    return model, {"x": rng.normal(size=(400, 6)).astype(np.float32)}


def distance(model: ir.Model, other: ir.Model, feeds: Feeds) -> float:
    """Relative squared distance of the outputs, about their means."""
    a, b = (models.run(m, feeds)["y"].astype(np.float64) for m in (model, other))
    return float(np.sum((a - b) ** 2) / np.sum((a - a.mean(0)) ** 2))


def test_what_is_removed_is_put_back() -> None:
    model, feeds = wide()
    fresh = {"x": np.random.default_rng(9).normal(size=(300, 6)).astype(np.float32)}
    found = {}
    for compensate in (True, False):
        shrunk = model.clone()
        outcome = Shrink((("h", 10),), compensate).apply(shrunk, oracles.context(model, feeds=feeds))
        assert outcome.changed == ("h", "y")
        assert [s.weight.shape for s in find_sites(shrunk)] == [(10, 6), (5, 10)]
        found[compensate] = distance(model, shrunk, fresh)
    assert found[True] < 0.1 * found[False]
    assert found[True] < 0.05


@given(st.integers(0, 500), st.sampled_from(["relu", "leaky", "sigmoid", "batchnorm", "residual", "concat"]))
@settings(max_examples=8, deadline=None)
def test_compensation_does_not_hurt_on_the_samples(seed: int, kind: str) -> None:
    model = models_core.random_net(["relu", kind, "conv", "relu"], "gap", seed)
    infer_shapes(model)
    feeds = models.feeds(model, 64, seed)
    widths = tuple((g.name, max(1, len(g.units) // 2)) for g in groups_of(model, analyse(model))[0])
    found = {}
    for compensate in (True, False):
        shrunk = model.clone()
        Shrink(widths, compensate).apply(shrunk, oracles.context(model, feeds=feeds))
        found[compensate] = distance(model, shrunk, feeds)
    assert found[True] <= 1.05 * found[False] + 1e-6


def test_duplicates_and_dead_units_go_first_without_loss() -> None:
    model = models.mlp(12, 4)
    first, second = find_sites(model)
    matrix, bias = first.matrix().copy(), first.bias()
    matrix[3], bias[3] = 2 * matrix[7], 2 * bias[7]  # unit 3 is twice unit 7, behind a Relu as well
    matrix[5], bias[5] = 0, -1  # unit 5 is silent
    for name, array in (("w1", matrix), ("b1", bias)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    shrunk = model.clone()
    feeds = models.feeds(model, 400)
    Shrink((("h", 10),)).apply(shrunk, oracles.context(model, feeds=feeds))
    kept = shrunk.graph[0].outputs[0].meta[KEPT].tolist()
    assert 5 not in kept
    assert len({3, 7} & set(kept)) == 1
    assert distance(model, shrunk, feeds) < 1e-4
    assert second.weight.shape == (4, 12)


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("rows", [3, 64])
def test_samples_that_are_all_the_same_can_be_shrunk_on(level: float, rows: int) -> None:
    """No input varies: variances are rounding, of either sign."""
    model, _ = wide()
    feeds = {"x": np.full((rows, 6), level, np.float32) * np.linspace(0.5, 1.7, 6, dtype=np.float32)}
    changed = model.clone()
    assert Shrink((("h", 4),)).apply(changed, oracles.context(model, rows, feeds=feeds)).modified
    before, after = (models.run(m, feeds)["y"] for m in (model, changed))
    assert np.isfinite(after).all()
    if rows > 8:  # fewer are too few to refit on
        np.testing.assert_allclose(after, before, rtol=0.05, atol=0.05 * np.abs(before).max())


def test_a_curve_tells_what_is_lost_by_removal_and_refit() -> None:
    """The damage of a curve is the error that least squares leaves on the same rows."""
    model, feeds = wide(12)
    context = oracles.context(model, feeds=feeds)
    channels, groups, _ = shrinkable(model)
    curve = group_curve(model, channels, groups[0], context)
    assert curve.damage[0] == 0
    assert (np.diff(curve.damage) >= 0).all()
    a = oracles.values(model, feeds, ["a"])["a"].astype(np.float64)
    y = models.run(model, feeds)["y"].astype(np.float64)
    y = y - y.mean(0)
    position = {int(u): i for i, u in enumerate(groups[0].units)}
    for gone in (2, 5, 8, 11):
        kept = [position[int(u)] for u in curve.order[gone:]]
        columns = a[:, kept] - a[:, kept].mean(0)
        left = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
        assert curve.damage[gone] == pytest.approx(np.sum(left**2) / np.sum(y**2), rel=0.15, abs=3e-3)


def test_every_branch_of_a_concat_keeps_a_channel() -> None:
    model = models.concat()
    infer_shapes(model)
    first = find_sites(model)[0]
    first.node.inputs[1].const_value = ir.tensor(first.weight * 1e-4, name="k1")  # worthless
    for width in (3, 1):
        shrunk = model.clone()
        outcome = Shrink((("c1", width),)).apply(shrunk, oracles.context(model))
        assert outcome.modified
        widths = [s.weight.shape[0] for s in find_sites(shrunk)[:2]]
        assert min(widths) == 1
        assert sum(widths) == max(width, 2)
        assert models.run(shrunk, models.feeds(model))["y"].shape == (4, 3, 6, 6)


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat"])
def test_shrunk_alone_is_the_pass_without_what_follows_further(name: str) -> None:
    model = models.ALL[name]()
    infer_shapes(model)
    context = oracles.context(model)
    group = groups_of(model, analyse(model))[0][-1]
    quick = shrunk_alone(model, group.name, len(group.units) // 2, context)
    full = model.clone()
    Shrink(((group.name, len(group.units) // 2),)).apply(full, oracles.context(model))
    assert [s.weight.shape for s in find_sites(quick)] == [s.weight.shape for s in find_sites(full)]
    bare = model.clone()
    Shrink(((group.name, len(group.units) // 2),), compensate=False).apply(bare, oracles.context(model))
    feeds = models.feeds(model, 64, 100)
    assert distance(model, quick, feeds) <= distance(model, bare, feeds) + 1e-6


def test_a_group_is_named_by_its_first_site_and_shrinks_together() -> None:
    model = models.residual()
    infer_shapes(model)
    groups = {g.name: g for g in groups_of(model, analyse(model))[0]}
    assert groups["c0"].producers == ("c0", "c2")
    assert [s.name for s in groups["c0"].consumers] == ["c1", "y"]
    shrunk = model.clone()
    Shrink((("c0", 3),)).apply(shrunk, oracles.context(model))
    assert [s.weight.shape[:2] for s in find_sites(shrunk)] == [(3, 4), (8, 3), (3, 8), (3, 3)]


@pytest.mark.parametrize(
    ("name", "group", "leave", "word"),
    [
        ("residual", "y", (), "no dense site reads|output"),
        ("residual", "nobody", (), "no channels"),
        ("residual", "c0", ("^c2$",), "--leave"),
        ("residual", "c0", ("^y$",), "--leave"),
        ("shared_weight", "h", (), "shared"),
        ("two_inputs", "middle", (), "output"),
        ("net_grouped", "v3", (), "groups"),
        ("attention", "q", (), "needs all"),
    ],
)
def test_what_cannot_shrink_is_left_alone_with_a_reason(
    name: str, group: str, leave: tuple[str, ...], word: str
) -> None:
    model = models_core.ALL[name]()
    infer_shapes(model)
    changed = model.clone()
    outcome = Shrink(((group, 2),)).apply(changed, oracles.context(model, leave=leave))
    assert not outcome.modified
    assert to_bytes(changed) == to_bytes(model)
    assert [s.site for s in outcome.skipped] == [group]
    assert any(part in outcome.skipped[0].reason for part in word.split("|")), outcome.skipped[0].reason


def test_sites_that_the_user_leaves_keep_their_weights() -> None:
    model = models.residual()
    infer_shapes(model)
    shrunk = model.clone()
    Shrink((("c1", 4),)).apply(shrunk, oracles.context(model, leave=("^y$",)))
    before, after = ({s.name: s.weight for s in find_sites(m)} for m in (model, shrunk))
    np.testing.assert_array_equal(before["y"], after["y"])
    assert after["c2"].shape != before["c2"].shape


def test_without_samples_nothing_shrinks() -> None:
    from edgepress.compressor.passes.base import Context

    outcome = Shrink((("h", 2),)).apply(models.mlp(), Context())
    assert not outcome.modified
    assert [(s.site, s.reason) for s in outcome.skipped] == [("h", "needs samples")]


def test_activations_that_are_no_numbers_do_not_stop_it() -> None:
    model = text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "l = Log(x) h = Gemm <transB = 1> (l, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2, b2)",
        constants(1, w1=(8, 6), b1=(8,), w2=(4, 8), b2=(4,)),
    )
    shrunk = model.clone()
    assert Shrink((("h", 4),)).apply(shrunk, oracles.context(model)).modified
    assert all(np.isfinite(s.weight).all() for s in find_sites(shrunk))
