"""Thresholds that a quantizer's step implies: gone from the graph, and not one integer differs."""

from collections import Counter

import models
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import oracles
import pytest
from models import constants, text

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import to_bytes
from edgepress.compressor.passes import Quantize, Shrink, ThresholdReLU
from edgepress.compressor.passes.activations import activations
from edgepress.compressor.passes.swallow import threshold_of
from edgepress.compressor.passes.threshold_relu import cut as cut_off
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes

BODIES = {
    "relu": "a = Relu (h)",
    "clip": "a = Clip (h, zero, six)",
    "sigmoid": "a = Sigmoid (h)",
    "hard_swish": "a = HardSwish (h)",
}


def net(body: str) -> ir.Model:
    model = text(
        "(float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)",
        f"h = Conv <pads = [1, 1, 1, 1]> (x, w, b) {body} y = Conv <pads = [1, 1, 1, 1]> (a, v, c)",
        constants(1, w=(8, 3, 3, 3), b=(8,), v=(8, 8, 3, 3), c=(8,))
        | ({"zero": np.array(0, np.float32), "six": np.array(6, np.float32)} if "Clip" in body else {}),
    )
    infer_shapes(model)
    return model


def peak(model: ir.Model) -> float:
    return float(oracles.values(model, models.feeds(model, 64, 100), ["a"])["a"].max())


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def unfused(model: ir.Model, feeds: dict[str, Array]) -> Array:
    """Each node by its own kernel, as the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_threshold_within_half_a_step_is_gone(name: str, per_channel: bool) -> None:
    model = net(BODIES[name])
    cut, context = model.clone(), oracles.context(model)
    epsilon = 0.49 * peak(model) / 255
    if per_channel:
        each = np.linspace(0.1, 1, 8, dtype=np.float32).reshape(8, 1, 1) * np.float32(epsilon)
        (activation,) = activations(cut)
        cut_off(cut, {activation.name: each})
    else:
        assert ThresholdReLU((("a", epsilon),), compensate=False).apply(cut, context).modified
    thresholded = cut.clone()
    assert Quantize(bias_correction=False).apply(cut, context).modified
    assert kinds(cut) & Counter({"ThresholdedRelu": 1, "Where": 1, "Greater": 1}) == Counter()
    used = {value for node in cut.graph for value in node.inputs}
    assert set(cut.graph.initializers.values()) <= used
    plain = model.clone()
    Quantize(bias_correction=False).apply(plain, context)
    if name != "hard_swish":  # which has negative values to cut off
        assert kinds(cut) == kinds(plain)
    # Each kernel by itself, with the threshold and without: the same integers, so the same outputs to the bit.
    back = cut.clone()
    (activation,) = activations(thresholded)
    assert threshold_of(activation) is not None
    quantizer = next(
        n for n in back.graph if n.op_type == "QuantizeLinear" and "a" in (n.inputs[0].name or "")
    )
    x = quantizer.inputs[0]
    node = ir.Node(
        "", "ThresholdedRelu", [x], [ir.AttrFloat32("alpha", epsilon)], outputs=[ir.Value(name="cut_again")]
    )
    back.graph.insert_before(quantizer, node)
    quantizer.replace_input_with(0, node.outputs[0])
    feeds = models.feeds(model, 32, 3)
    np.testing.assert_array_equal(unfused(back, feeds), unfused(cut, feeds))


@pytest.mark.parametrize(("share", "stays"), [(0.499, 0), (0.51, 1)])
def test_half_a_step_is_the_bound(share: float, stays: int) -> None:
    model = net(BODIES["relu"])
    cut, context = model.clone(), oracles.context(model)
    ThresholdReLU((("a", share * peak(model) / 255),), compensate=False).apply(cut, context)
    Quantize().apply(cut, context)
    assert kinds(cut)["ThresholdedRelu"] == stays


def test_a_larger_threshold_stays_and_its_neighbours_go() -> None:
    body = "a = Relu (h) i = Conv (a, u) d = Relu (i)"
    model = text(
        "(float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)",
        f"h = Conv <pads = [1, 1, 1, 1]> (x, w, b) {body} y = Conv <pads = [1, 1, 1, 1]> (d, v, c)",
        constants(1, w=(8, 3, 3, 3), b=(8,), v=(8, 8, 3, 3), c=(8,), u=(8, 8, 1, 1)),
    )
    infer_shapes(model)
    context = oracles.context(model)
    cut = model.clone()
    ThresholdReLU((("a", 1e-3), ("d", 0.5)), compensate=False).apply(cut, context)
    before = models.run(cut, models.feeds(model, 32, 3))["y"]
    Quantize().apply(cut, context)
    assert kinds(cut)["ThresholdedRelu"] == 1
    assert kinds(cut)["Relu"] == 1
    after = models.run(cut, models.feeds(model, 32, 3))["y"]
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    everything = model.clone()
    ThresholdReLU((("a", 1e-3), ("d", 0.5)), compensate=False).apply(everything, context)
    Quantize(leave=("h", "i", "y")).apply(everything, context)
    assert kinds(everything)["ThresholdedRelu"] == 2, "what stays float keeps its threshold"


def test_thresholds_of_the_users_own_are_read_as_they_are() -> None:
    for attributes, expected in (("<alpha = 0.25>", 0.25), ("", 1.0), ("<alpha = -1.0>", None)):
        model = net(f"a = ThresholdedRelu {attributes} (h)")
        (activation,) = activations(model)
        assert threshold_of(activation) == expected
        before = kinds(model)["ThresholdedRelu"]
        Quantize().apply(model, oracles.context(model))
        assert kinds(model)["ThresholdedRelu"] == before


def test_channels_that_a_threshold_made_dead_are_the_first_to_be_shrunk() -> None:
    model = net(BODIES["relu"])
    weight = model.graph.initializers["w"].const_value.numpy().copy()
    weight[[2, 5]] *= 1e-3
    bias = model.graph.initializers["b"].const_value.numpy().copy()
    bias[[2, 5]] = 0.01
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    model.graph.initializers["b"].const_value = ir.tensor(bias, name="b")
    context, cut = oracles.context(model), model.clone()
    ThresholdReLU((("a", 0.2),), compensate=False).apply(cut, context)
    feeds = models.feeds(model, 64, 100)
    dead = (oracles.values(cut, feeds, ["a"])["a"] == 0).all(axis=(0, 2, 3))
    assert np.flatnonzero(dead).tolist() == [2, 5]
    groups, _ = groups_of(cut, analyse(cut))
    (group,) = [g for g in groups if len(g.units) == 8]
    shrunk = cut.clone()
    assert Shrink(((group.name, 6),), compensate=False).apply(shrunk, context).changed
    np.testing.assert_allclose(models.run(shrunk, feeds)["y"], models.run(cut, feeds)["y"], atol=1e-5)
