"""Shrinking by what a recipe says: criteria, shares, thresholds, cycles; and dead units, which cost nothing."""

from typing import Any

import models
import models_core
import models_flow
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import KEPT, Streamer
from edgepress.compressor.passes import Shrink, ThresholdReLU
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.saliency import group_curve
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.recipe import from_json, to_json
from edgepress.compressor.recurrent import recurrence_of
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, replace_constant
from edgepress.runtime.engines.ort import OrtEngine


def deep(seed: int = 50, hidden: int = 20) -> tuple[ir.Model, Feeds]:
    """Two hidden layers whose units fire more or less often; and samples."""
    weights = constants(
        seed, w1=(hidden, 6), b1=(hidden,), w2=(hidden, hidden), b2=(hidden,), w3=(3, hidden), b3=(3,)
    )
    weights["b1"] = np.linspace(-3, 2, hidden, dtype=np.float32)
    body = """
        h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) g = Gemm <transB = 1> (a, w2, b2) r = Relu(g)
        y = Gemm <transB = 1> (r, w3, b3)
    """
    model = text("(float[N, 6] x) => (float[N, 3] y)", body, weights)
    infer_shapes(model)
    return model, {"x": np.random.default_rng(seed).normal(size=(300, 6)).astype(np.float32)}


def widths(model: ir.Model) -> dict[str, int]:
    return {g.name: len(g.units) for g in groups_of(model, analyse(model))[0]}


def kept(model: ir.Model, value: str) -> list[int]:
    """Which of the original's channels a value still has."""
    found = next(v for node in model.graph for v in node.outputs if v.name == value)
    return [int(i) for i in found.meta.get(KEPT, range(found.shape[-1] if found.shape else 0))]


def shrunk_by(step: Shrink, model: ir.Model, feeds: Feeds | None = None, **more: Any) -> ir.Model:
    changed = model.clone()
    rows = 64 if feeds is None else len(next(iter(feeds.values())))
    step.apply(changed, oracles.context(model, rows, feeds=feeds, **more))
    return changed


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_zero_rate_is_that_of_all_activations(rate: float) -> None:
    model, feeds = deep()
    found = oracles.values(model, feeds, ["a", "r"])
    changed = shrunk_by(Shrink(criterion="zeros", zero_rate=rate), model, feeds)
    for value, before in (("a", "h"), ("r", "g")):
        zero = (found[value] == 0).mean(0)
        assert kept(changed, before) == np.flatnonzero(zero < rate).tolist()


@pytest.mark.parametrize("sigmas", [0.5, 1.5])
def test_outliers_are_those_of_all_activations(sigmas: float) -> None:
    model, feeds = deep()
    found = oracles.values(model, feeds, ["a", "r"])
    changed = shrunk_by(Shrink(criterion="outliers", sigmas=sigmas), model, feeds)
    for value, before in (("a", "h"), ("r", "g")):
        mean = found[value].mean(0, dtype=np.float64)
        assert kept(changed, before) == np.flatnonzero(mean >= mean.mean() - sigmas * mean.std()).tolist()
    assert (widths(changed) == widths(model)) == (sigmas > 1)


def test_activations_are_looked_at_in_front_of_pools() -> None:
    """APoZ counts all positions of a feature map; a maximum of four is zero less often."""
    model = models.cnn()
    infer_shapes(model)
    feeds = models.feeds(model, 40)
    zero = (oracles.values(model, feeds, ["r1"])["r1"] == 0).mean((0, 2, 3))
    rate = float(np.sort(zero)[-1])
    changed = shrunk_by(Shrink(criterion="zeros", zero_rate=rate, sites=("^c1$",)), model, feeds)
    assert kept(changed, "c1") == np.flatnonzero(zero < rate).tolist()


def test_a_residual_stream_is_as_zero_as_after_all_its_adds() -> None:
    model = models.residual()
    infer_shapes(model)
    feeds = models.feeds(model, 40)
    found = oracles.values(model, feeds, ["r0", "r2"])
    zero = np.mean([(found[v] == 0).mean((0, 2, 3)) for v in ("r0", "r2")], axis=0)
    changed = shrunk_by(Shrink((("c0", 5),), criterion="zeros"), model, feeds)
    assert kept(changed, "c0") == sorted(np.argsort(zero)[:5].tolist())


def test_pivoted_qr_keeps_what_scipy_would() -> None:
    import scipy.linalg

    model, feeds = deep()
    a = oracles.values(model, feeds, ["a"])["a"].astype(np.float64)
    w = next(s for s in find_sites(model) if s.name == "g").matrix().astype(np.float64)
    _, _, order = scipy.linalg.qr((a - a.mean(0)) * np.linalg.norm(w, axis=0), pivoting=True, mode="economic")
    changed = shrunk_by(Shrink((("h", 8),), criterion="qr"), model, feeds)
    assert kept(changed, "h") == sorted(order[:8].tolist())


def test_fisher_removes_what_changes_the_readers_least_without_refit() -> None:
    model, feeds = deep()
    context = oracles.context(model, 300, feeds=feeds)
    channels = analyse(model)
    group = groups_of(model, channels)[0][0]
    curve = group_curve(model, channels, group, context, "fisher")
    a = oracles.values(model, feeds, ["a"])["a"].astype(np.float64)
    w = next(s for s in find_sites(model) if s.name == "g").matrix().astype(np.float64)
    moved = [float(np.sum(np.outer(c - c.mean(), row) ** 2)) for c, row in zip(a.T, w.T, strict=True)]
    assert curve.order.tolist() == group.units[np.argsort(moved)].tolist()
    total = float(np.sum(((a - a.mean(0)) @ w.T) ** 2))
    np.testing.assert_allclose(np.diff(curve.damage), np.sort(moved) / total, rtol=1e-4, atol=1e-9)


@given(
    st.lists(st.sampled_from(models_core.BLOCKS), min_size=1, max_size=4),
    st.sampled_from(models_core.HEADS),
    st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_dead_units_go_without_a_trace(blocks: list[str], head: str, seed: int) -> None:
    """Whatever stands behind them: what is not zero where it is read is not dead."""
    model = models_core.random_net(["relu", *blocks, "conv", "relu"], head, seed)
    rng = np.random.default_rng(seed)
    for site in find_sites(model)[:-1]:
        bias = site.bias()
        if bias is not None and len(site.node.inputs) > 2:
            replace_constant(
                site.node, 2, np.where(rng.random(len(bias)) < 0.4, -50, bias).astype(np.float32)
            )
    feeds = models.feeds(model, 16, seed)
    changed = shrunk_by(Shrink(criterion="zeros"), model, feeds)
    assert oracles.close(models.run(model, feeds), models.run(changed, feeds), 1e-5)
    assert to_bytes(shrunk_by(Shrink(criterion="zeros", compensate=False), model, feeds)) == to_bytes(changed)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("attributes", ["", "linear_before_reset = 1"])
def test_hidden_units_that_stay_at_zero_go_without_a_trace(op: str, both: bool, attributes: str) -> None:
    """tanh(0) is their candidate at all times, in both directions."""
    if attributes and op != "GRU":
        return
    model = models_flow.recurrent(op, both=both, attributes=attributes)
    layer = recurrence_of(next(node for node in model.graph if node.op_type == op))
    assert layer is not None
    gate = {"RNN": 0, "GRU": 2, "LSTM": 3}[op]
    dead = np.array([1, 4])
    rows = gate * layer.hidden + dead
    for place in (1, 2, 3):
        value = layer.input(place)
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[:, rows] = 0
        if place == 3:
            array[:, layer.gates * layer.hidden + rows] = 0
        replace_constant(layer.node, place, array)
    feeds = models.feeds(model, 8)
    changed = shrunk_by(Shrink(criterion="zeros"), model, feeds)
    assert widths(changed) == {layer.name: layer.hidden - 2}
    assert kept(changed, "s") == [0, 2, 3, 5]
    fresh = models.feeds(model, 5, 9)
    assert oracles.close(models.run(model, fresh), models.run(changed, fresh), 1e-6)


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize("criterion", ["obs", "qr", "fisher", "zeros", "outliers"])
def test_hidden_units_that_nobody_reads_go_without_a_trace(op: str, criterion: Any) -> None:
    model = models_flow.recurrent(op, last=True)
    layer = recurrence_of(model.graph[0])
    reader = find_sites(model)[-1]
    assert layer is not None
    recurrent, unread = layer.recurrent.copy(), [0, 3]
    recurrent[:, :, unread] = 0
    replace_constant(layer.node, 2, recurrent)
    weight = reader.weight.copy()
    weight[:, unread] = 0
    replace_constant(reader.node, 1, weight)
    feeds = models.feeds(model, 64)
    changed = shrunk_by(Shrink((("s", 4),), criterion=criterion, compensate=False), model, feeds)
    if criterion in ("obs", "fisher", "qr"):
        assert kept(changed, "h") == [1, 2, 4, 5]
        assert oracles.close(models.run(model, feeds), models.run(changed, feeds), 1e-6)
    assert widths(changed) == {"s": 4}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("build", [models.mlp, models.cnn, models.residual, models.depthwise, models.concat])
def test_what_a_threshold_makes_dead_is_shrunk_away(build: Any, per_channel: bool) -> None:
    model = build()
    infer_shapes(model)
    if build is models.depthwise:
        per_channel = False
    feeds = models.feeds(model, 64)
    cut = model.clone()
    names = [n.outputs[0].name or "" for n in model.graph if n.op_type in ("Relu", "Clip")]
    if per_channel:
        ThresholdReLU(quantile=0.6, per_channel=True).apply(cut, oracles.context(model, feeds=feeds))
    else:
        ThresholdReLU(tuple((name, 1.0) for name in names)).apply(cut, oracles.context(model, feeds=feeds))
    for node in cut.graph:  # all small values of the first half of all channels are gone
        if node.op_type == "Where":
            threshold = node.inputs[0].producer().inputs[1]  # type: ignore[union-attr]
            array = threshold.const_value.numpy().copy()  # type: ignore[union-attr]
            array[: len(array) // 2] = 1e3
            threshold.const_value = ir.tensor(array, name=threshold.name)  # type: ignore[union-attr]
    changed = cut.clone()
    Shrink(criterion="zeros", zero_rate=1.0, cycles=3).apply(changed, oracles.context(model, feeds=feeds))
    assert oracles.close(models.run(cut, feeds), models.run(changed, feeds), 1e-6)
    if per_channel:
        assert sum(widths(changed).values()) < sum(widths(cut).values())


def test_nothing_less_than_dead_goes_by_default() -> None:
    model, feeds = deep()
    zero = (oracles.values(model, feeds, ["a"])["a"] == 0).mean(0)
    assert 0 < (zero == 1).sum() < (zero > 0.98).sum()
    assert kept(shrunk_by(Shrink(criterion="zeros"), model, feeds), "h") == np.flatnonzero(zero < 1).tolist()


def falling() -> tuple[ir.Model, Feeds]:
    """Units 0 and 1 fire for one sample each, and unit 0 of the next two layers for both."""
    eye = np.eye(4, dtype=np.float32)
    join = eye.copy()
    join[0, 1], join[1] = 1, eye[2]
    weights = {"w0": eye, "w1": join, "w2": eye, "w3": np.ones((2, 4), np.float32)}
    weights |= {"b0": np.array([-2, -2, 0, 0], np.float32)}
    weights |= {name: np.array([-0.01, 0, 0, 0], np.float32) for name in ("b1", "b2")}
    layers = [
        f"h{i} = Gemm <transB = 1> ({x}, w{i}, b{i}) a{i} = Relu(h{i})"
        for i, x in enumerate(("x", "a0", "a1"))
    ]
    model = text(
        "(float[N, 4] x) => (float[N, 2] y)", f"{' '.join(layers)} y = Gemm <transB = 1> (a2, w3)", weights
    )
    x = np.random.default_rng(0).uniform(0.5, 1.5, size=(200, 4)).astype(np.float32)
    x[0, 0] = x[1, 1] = 2.3
    return model, {"x": x}


@pytest.mark.parametrize(("cycles", "expected"), [(1, [2, 4, 4]), (2, [2, 3, 3]), (9, [2, 3, 3])])
def test_cycles_go_on_until_nothing_more_is_dead(cycles: int, expected: list[int]) -> None:
    """What fires for two samples is dead once both that it listened to are gone."""
    model, feeds = falling()
    step = Shrink(criterion="zeros", zero_rate=0.992, cycles=cycles, compensate=False)
    assert list(widths(shrunk_by(step, model, feeds)).values()) == expected


def test_outliers_are_measured_again_in_each_cycle() -> None:
    model, feeds = deep(hidden=40)
    steps = [Shrink(criterion="outliers", sigmas=0.7, cycles=cycles) for cycles in (1, 2)]
    one, two = (sum(widths(shrunk_by(step, model, feeds)).values()) for step in steps)
    assert 80 > one > two
    once = shrunk_by(steps[0], model, feeds)
    context = Context(Streamer(OrtEngine(), model, lambda: oracles.batches(feeds)), rows=300)
    steps[0].apply(once, context)  # a cycle is one pass more on what the pass before left
    assert sum(widths(once).values()) == two


def test_where_no_unit_falls_below_the_threshold_that_is_said() -> None:
    model, feeds = deep()
    outcome = Shrink(criterion="outliers", cycles=5).apply(model, oracles.context(model, 300, feeds=feeds))
    assert not outcome.modified
    assert [s.site for s in outcome.skipped] == ["h", "g"]
    assert all("threshold" in s.reason for s in outcome.skipped)


@pytest.mark.parametrize("criterion", ["obs", "zeros", "outliers", "qr", "fisher"])
@pytest.mark.parametrize("cycles", [1, 3])
def test_a_share_of_every_group_goes(criterion: Any, cycles: int) -> None:
    model, feeds = deep()
    step = Shrink((("g", 7),), criterion=criterion, share=0.4, cycles=cycles)
    changed = shrunk_by(step, model, feeds)
    assert widths(changed) == {"h": 12, "g": 7}


def test_refitting_makes_up_for_every_criterion() -> None:
    model, feeds = deep(hidden=30)
    y = models.run(model, feeds)["y"]
    for criterion in ("obs", "zeros", "outliers", "qr", "fisher"):
        errors = [
            float(np.sum((models.run(shrunk_by(Shrink(compensate=put_back, criterion=criterion, share=0.5),  # type: ignore[arg-type]
                                               model, feeds), feeds)["y"] - y) ** 2))
            for put_back in (True, False)
        ]  # fmt: skip
        assert errors[0] < 0.7 * errors[1], criterion


def test_folding_makes_up_for_what_a_recurrent_layer_loses() -> None:
    """Hidden units that are copies of others: what stays tells what went."""
    model = models_flow.recurrent("GRU", hidden=6)
    layer = recurrence_of(model.graph[0])
    assert layer is not None
    first = np.concatenate([np.arange(3) + gate * 6 for gate in range(3)])
    for place in (1, 2, 3):
        value = layer.input(place)
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        blocks = [first] if place < 3 else [first, first + 18]
        for rows in blocks:
            array[:, rows + 3] = array[:, rows]
        replace_constant(layer.node, place, array)
    feeds = models.feeds(model, 64)
    rolled = {"x": feeds["x"]}
    before = models.run(model, rolled)["y"]
    for criterion in ("obs", "qr"):
        changed = shrunk_by(Shrink((("s", 3),), criterion=criterion), model, rolled)  # type: ignore[arg-type]
        assert {i % 3 for i in kept(changed, "s")} == {0, 1, 2}
        np.testing.assert_allclose(models.run(changed, rolled)["y"], before, atol=0.02 * np.abs(before).max())


def test_widths_that_the_pass_chooses_suit_the_target() -> None:
    model, feeds = deep()
    board = oracles.Board(channel_multiple=8)
    for step in (Shrink(share=0.5), Shrink(criterion="zeros", zero_rate=0.6)):
        changed = shrunk_by(step, model, feeds, target=board)
        assert all(width % 8 == 0 or width == 20 for width in widths(changed).values())
    assert widths(shrunk_by(Shrink((("h", 7),)), model, feeds, target=board))["h"] == 7
    outcome = Shrink(share=0.01).apply(model.clone(), oracles.context(model, target=board, feeds=feeds))
    assert not outcome.modified
    outcome = Shrink(share=0.06).apply(
        model.clone(), oracles.context(model, target=oracles.Board(channel_multiple=80))
    )
    assert {s.site for s in outcome.skipped} == {"h", "g"}
    assert all("rounded up" in s.reason for s in outcome.skipped)


def test_sites_and_leave_say_which_groups() -> None:
    model, feeds = deep()
    assert widths(shrunk_by(Shrink(share=0.5, sites=("^g$",)), model, feeds)) == {"h": 20, "g": 10}
    changed = model.clone()
    outcome = Shrink(share=0.5, leave=("g",)).apply(changed, oracles.context(model, 300, feeds=feeds))
    assert widths(changed) == {"h": 10, "g": 20}
    assert [(s.site, s.reason) for s in outcome.skipped] == [("g", "the recipe leaves it as it is")]


def test_a_share_without_samples_is_skipped_with_a_reason() -> None:
    outcome = Shrink(share=0.5).apply(deep()[0], Context())
    assert [(s.site, s.reason) for s in outcome.skipped] == [("h", "needs samples"), ("g", "needs samples")]


@pytest.mark.parametrize(
    "fields", [{"share": 1.0}, {"share": -0.1}, {"zero_rate": 0.0}, {"zero_rate": 1.1}, {"sigmas": -1.0},
               {"sigmas": float("nan")}, {"cycles": 0}, {"sites": ("(",)}],
)  # fmt: skip
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="shrink"):
        Shrink(**fields)


def test_a_recipe_comes_back_as_it_was() -> None:
    step = Shrink((("h", 3),), False, "zeros", 0.5, 0.9, 3.0, 2, ("a",), ("b",))
    assert from_json(to_json((step,))) == (step,)


@pytest.mark.parametrize("criterion", ["zeros", "qr"])
def test_memory_does_not_grow_with_the_samples(criterion: Any) -> None:
    """What is kept between batches is as large for one batch as for many."""
    import tracemalloc

    model, feeds = deep()
    peaks = []
    for times in (1, 12):
        many = {"x": np.tile(feeds["x"], (times, 1))}
        context = oracles.context(model, len(many["x"]), feeds=many)
        Shrink(share=0.5, criterion=criterion).apply(model.clone(), context)
        tracemalloc.start()
        Shrink(share=0.5, criterion=criterion, compensate=False).apply(model.clone(), context)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000
