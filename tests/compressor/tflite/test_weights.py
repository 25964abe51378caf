"""Weights in few bits, however a pass stores them, stay small in the file and give the same results."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import oracles
import pytest
from tflite import Array, Feeds, assert_same, by_onnxruntime, by_tflite, one_op

from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.passes.base import Context, Pass
from edgepress.compressor.passes.cluster import Cluster
from edgepress.compressor.passes.dynamic import Dynamic
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.passes.weight_only import WeightOnly

INPUTS, HIDDEN, CLASSES = 96, 80, 64


def _example(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _net(kind: str) -> tuple[ir.Model, Feeds]:
    """One layer with a few thousand weights, and a batch for it."""
    x, w, attributes = {
        "Gemm": ((5, INPUTS), (CLASSES, INPUTS), {"transB": 1}),
        "MatMul": ((5, INPUTS), (INPUTS, CLASSES), {}),
        "Conv": ((2, 24, 6, 6), (40, 24, 3, 3), {}),
        "ConvTranspose": ((2, 24, 6, 6), (24, 32, 3, 3), {"strides": [2, 2]}),
    }[kind]
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], name="layer", **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, x)],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(_example(1, *w), "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), {"x": _example(2, *x)}


def _applied(kind: str, step: Pass) -> tuple[ir.Model, Feeds, int, int]:
    """The changed model, a batch, bytes of the TFLite file before, and how many weights there are."""
    model, feeds = _net(kind)
    size, count = len(convert(model).data), math.prod(model.graph.initializers["w"].shape.numpy())
    assert step.apply(model, Context()).changed
    return model, feeds, size, count


def _saved(converted: Converted, size: int, count: int) -> float:
    """Bytes saved for each weight."""
    return (size - len(converted.data)) / count


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "block", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul", "Conv", "ConvTranspose"])
def test_stored_weights_take_a_byte_each(kind, bits, granularity, symmetric):
    step = StoreWeights(bits, granularity=granularity, symmetric=symmetric, spare=0)
    model, feeds, size, count = _applied(kind, step)
    converted = assert_same(model, feeds, rtol=1e-5, atol=1e-6)
    assert converted.operators["DEQUANTIZE"] == 1
    assert _saved(converted, size, count) > 2


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
def test_half_precision_takes_two_bytes(kind):
    model, feeds, size, count = _applied(kind, StoreWeights(16))
    assert _saved(assert_same(model, feeds, rtol=1e-5, atol=1e-6), size, count) > 1.8


@pytest.mark.parametrize("kind", ["Gemm", "Conv"])
def test_codebooks_are_looked_up_before(kind):
    model, feeds, _, _ = _applied(kind, Cluster(4))
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_of_few_bits_are_written_as_rows(bits, symmetric):
    """onnxruntime's kernel quantizes activations, too: the oracle is its own at level 0."""
    model, feeds, size, count = _applied("MatMul", WeightOnly(bits, 32, symmetric=symmetric))
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    converted = assert_same(model, feeds, rtol=1e-5, atol=1e-6)
    assert _saved(converted, size, count) > 2


def test_shapes_behind_blocks_are_known():
    model, feeds = _two_layers("MatMul")
    assert WeightOnly(4).apply(model, Context()).changed
    converted = convert(model)
    expected, got = by_onnxruntime(model, feeds)["y"], by_tflite(converted, feeds)["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_dynamic_quantization_gives_the_same_integers(kind, bits):
    model, feeds, size, count = _applied(kind, Dynamic(bits))
    converted = assert_same(model, feeds, rtol=1e-5, atol=1e-5)
    assert _saved(converted, size, count) > 2


def test_a_dynamic_lstm_is_written_with_weights_of_8_bits():
    feeds = {"X": _example(1, 3, 2, 24)}
    held = {"W": _example(2, 1, 64, 24) / 4, "R": _example(3, 1, 64, 16) / 4, "B": _example(4, 1, 128)}
    model = one_op("LSTM", feeds, constants=held, outputs=3, hidden_size=16)
    expected, size = by_onnxruntime(model, feeds), len(convert(model).data)
    assert Dynamic().apply(model, Context()).changed
    converted = convert(model)
    got = by_tflite(converted, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=0.02)
    assert _saved(converted, size, 64 * 40) > 2


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_few_bits_of_an_integer_layer_are_packed(kind, bits):
    model, feeds = _two_layers(kind)
    sizes = []
    for each in (8, bits):
        quantized = model.clone()
        step = Quantize(8, bits=(("first", each),), spare=0, rounding="nearest")
        assert step.apply(quantized, oracles.context(model, 5, feeds=feeds)).changed
        converted = convert(quantized)
        sizes.append(len(converted.data))
        expected, got = (run["y"] for run in (by_onnxruntime(quantized, feeds), by_tflite(converted, feeds)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert sizes[0] - sizes[1] > 0.95 * INPUTS * HIDDEN * (8 - bits) / 8 - 1000


def _two_layers(kind: str) -> tuple[ir.Model, Feeds]:
    """Two products; the result of the first lies on a grid once it is quantized."""
    nodes = [
        onnx.helper.make_node(kind, ["x", "w"], ["h"], name="first"),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node(kind, ["r", "v"], ["y"], name="second"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, (5, INPUTS))],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [
            onnx.numpy_helper.from_array(_example(1, INPUTS, HIDDEN), "w"),
            onnx.numpy_helper.from_array(_example(3, HIDDEN, CLASSES), "v"),
        ],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), {"x": _example(2, 5, INPUTS)}
