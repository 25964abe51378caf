"""Operators with scales of their own, products of bare integers, and those that ONNX itself takes apart."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import Array, Feeds, assert_same, by_onnxruntime, by_tflite, graph, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.export.tflite.lower import lower

STEP = 0.05


def _codes(seed: int, *shape: int, signed: bool = False) -> Array:
    low, high = (-127, 127) if signed else (0, 255)
    array = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    return array.astype(np.int8 if signed else np.uint8)


def _scalar(value: float, dtype: type = np.float32) -> Array:
    return np.array(value, dtype)


def _in_grids(op: str, operands: list[Array], domain: str = "com.microsoft", **attributes):
    """x → QuantizeLinear → op → DequantizeLinear, with constants beside x; the output's step is `STEP`."""
    x = np.random.default_rng(1).standard_normal(operands[0].shape).astype(np.float32)
    held = {
        "xs": _scalar(0.03),
        "xz": _scalar(120, np.uint8),
        "ys": _scalar(STEP),
        "yz": _scalar(128, np.uint8),
    }
    names = ["q", "xs", "xz"]
    for at, array in enumerate(operands[1:]):
        held |= {f"w{at}": array, f"s{at}": _scalar(0.02), f"z{at}": _scalar(0, array.dtype.type)}
        names += [f"w{at}", f"s{at}", f"z{at}"]
    ends = ["ys", "yz"]
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        onnx.helper.make_node(op, [*names, *ends], ["r"], domain=domain, **attributes),
        onnx.helper.make_node("DequantizeLinear", ["r", *ends], ["y"]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes,
        "grids",
        [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)), {"x": x}


def _like(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("op", "operands", "domain", "attributes"),
    [
        ("QLinearConv", [_like(1, 3, 6, 6), _codes(2, 4, 3, 3, 3, signed=True)], "", {"pads": [1, 1, 1, 1]}),
        ("QLinearMatMul", [_like(2, 5), _codes(2, 5, 4, signed=True)], "", {}),
        ("QLinearAdd", [_like(2, 5), _codes(2, 1, 5)], "com.microsoft", {}),
        ("QLinearMul", [_like(2, 5), _codes(2, 1, 5)], "com.microsoft", {}),
        ("QLinearSigmoid", [_like(2, 5)], "com.microsoft", {}),
        ("QLinearGlobalAveragePool", [_like(2, 3, 4, 4)], "com.microsoft", {"channels_last": 0}),
    ],
)
def test_operators_with_scales_of_their_own(op, operands, domain, attributes):
    model, feeds = _in_grids(op, operands, domain, **attributes)
    assert_same(model, feeds, rtol=0, atol=1.001 * STEP)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 5), st.data())
def test_products_of_integers(lead, outputs, data):
    signed = data.draw(st.booleans())
    feeds: Feeds = {"a": _codes(1, *lead)}
    w = _codes(2, lead[-1], outputs, signed=signed)
    zeros = {"az": _scalar(data.draw(st.integers(0, 255)), np.uint8)}
    if data.draw(st.booleans()):
        zeros["bz"] = _codes(3, outputs, signed=signed)
    order = ["a", "w", *zeros]
    held = {"w": w, **zeros}
    if data.draw(st.booleans()):
        feeds["w"] = held.pop("w")
    model = one_op("MatMulInteger", feeds, constants=held, order=order)
    np.testing.assert_array_equal(
        by_tflite(convert(model, keep_layout=True), feeds)["y0"], _product(feeds, held)
    )


def _product(feeds: Feeds, held: dict[str, Array]) -> Array:
    every = {**feeds, **held}
    a = every["a"].astype(np.int32) - every["az"].astype(np.int32)
    return a @ (every["w"].astype(np.int32) - every.get("bz", np.zeros(1)).astype(np.int32))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.data())
def test_convolutions_of_integers(dims, group, data):
    size = [data.draw(st.integers(3, 6)) for _ in range(dims)]
    feeds = {"x": _codes(1, 2, 2 * group, *size)}
    held = {"w": _codes(2, 3 * group, 2, *[data.draw(st.integers(1, 3)) for _ in size])}
    held["xz"] = _scalar(data.draw(st.integers(0, 255)), np.uint8)
    held["wz"] = _scalar(data.draw(st.integers(0, 255)), np.uint8)
    pads = [data.draw(st.integers(0, 1)) for _ in range(2 * dims)]
    strides = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    model = one_op("ConvInteger", feeds, constants=held, group=group, pads=pads, strides=strides)
    assert_same(model, feeds, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4, 5)])
def test_quantizing_by_the_range_of_the_run(shape):
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    model = one_op("DynamicQuantizeLinear", feeds, outputs=3)
    expected, got = by_onnxruntime(model, feeds), by_tflite(convert(model), feeds)
    np.testing.assert_allclose(got["y1"], expected["y1"], rtol=1e-6)
    for name in ("y0", "y2"):
        np.testing.assert_array_equal(got[name], expected[name])


def test_an_operator_without_a_handler_is_taken_apart():
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    model = one_op("SoftmaxCrossEntropyLoss", {"x": x}, constants={"l": np.array([0, 2])}, opset=18)
    big = ir.Tensor(np.ones((200, 100), np.float32), name="big")
    value = ir.Value(name="big", shape=big.shape, type=ir.TensorType(big.dtype), const_value=big)
    model.graph.register_initializer(value)
    lower(model)
    assert "SoftmaxCrossEntropyLoss" not in {node.op_type for node in model.graph}
    assert model.graph.initializers["big"].const_value is big


def test_attributes_that_are_left_out_have_their_defaults_where_an_operator_is_inlined() -> None:
    model = graph("g (float[6] x) => (float[6] y) { y = Shrink <lambd: float = 1.5> (x) }")
    assert_same(model, {"x": np.array([-3, -1.5, -1, 0.5, 2, 4], np.float32)}, rtol=1e-5, atol=0)


def test_parts_without_elements_vanish() -> None:
    model = graph(
        """g (float[2,3] x) => (float[2,3] y)
        <int64[2] sizes = {3, 0}> {
            a, b = Split <axis: int = 1> (x, sizes)
            c = Relu(a)
            y = Concat <axis: int = 1> (c, b)
        }"""
    )
    assert_same(model, {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}, rtol=0, atol=0)


def test_only_causes_are_told_not_what_follows_from_them() -> None:
    model = graph("g (float[2,2] x) => (float y) { a = Det(x) b = Relu(a) y = Exp(b) }")
    with pytest.raises(NotConvertibleError) as error:
        convert(model)
    assert [problem.why.split(":")[0] for problem in error.value.problems] == ["form"]
