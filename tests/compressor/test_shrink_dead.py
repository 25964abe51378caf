"""Dead units cost nothing; and hidden units of recurrent layers."""

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
from shrinking import deep, kept, shrunk_by, widths

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import distance
from edgepress.compressor.passes import Shrink, ThresholdReLU
from edgepress.compressor.passes.saliency import group_curve
from edgepress.compressor.passes.shrink import leaving, removed_and_made_good
from edgepress.compressor.recurrent import recurrence_of
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, replace_constant


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


@pytest.mark.parametrize("width", [5, 3, 1])
@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_a_recurrent_layer_is_folded_into_itself_where_that_helps(op: str, width: int) -> None:
    model = models_flow.recurrent(op, last=True)
    feeds = models.feeds(model, 64)
    changed = shrunk_by(Shrink((("s", width),)), model, feeds)
    context = oracles.context(model, feeds=feeds)
    channels = analyse(model)
    group = groups_of(model, channels)[0][0]
    gone = leaving(channels, group_curve(model, channels, group, context), width)
    found = []
    for own in (True, False):
        candidate = model.clone()
        removed_and_made_good(candidate, analyse(candidate), gone, context, own=own)
        found.append(distance(candidate, context))
    assert found[0] != found[1]
    assert distance(changed, context) == pytest.approx(min(found), rel=1e-6)
