import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, between_pairs, one_op

SIZES = st.integers(1, 9)


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def convolutions(draw: st.DrawFn) -> dict:
    """A convolution of one or two dimensions, of any form that fits its input."""
    dims = draw(st.sampled_from([1, 2, 2]))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = draw(st.sampled_from([1, 2, 4]))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(dims)]
    pads = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [r + draw(st.integers(0, 5)) for r in reach]
    return {
        "x": (draw(st.integers(1, 2)), group * per_group, *size),
        "w": (group * draw(st.sampled_from([1, 2, 4])), per_group, *kernel),
        "attributes": {
            "group": group,
            "pads": pads,
            "strides": [draw(st.integers(1, 2)) for _ in range(dims)],
            "dilations": dilations,
        },
        "bias": draw(st.booleans()),
    }


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_convolution_of_floats_gives_the_same_as_onnxruntime(form):
    model, feeds = _model(form)
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_convolution_of_integers_is_at_most_one_step_off(form):
    model, feeds = _model(form)
    assert_same_integers(model, feeds, weights={"w": 0})


def _model(form: dict):
    feeds = {"x": _example(1, *form["x"])}
    held = {"w": _example(2, *form["w"])}
    if form["bias"]:
        held["b"] = _example(3, form["w"][0])
    return one_op("Conv", feeds, constants=held, **form["attributes"]), feeds


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_by_name(pad):
    feeds = {"x": _example(4, 1, 3, 7, 8)}
    model = one_op("Conv", feeds, constants={"w": _example(5, 4, 3, 3, 3)}, auto_pad=pad, strides=[2, 2])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


def test_a_batch_of_any_size():
    feeds = {"x": _example(6, 2, 3, 8, 8)}
    model = one_op("Conv", feeds, constants={"w": _example(7, 4, 3, 3, 3)}, dynamic=True)
    converted = assert_same(model, feeds, rtol=1e-5, atol=1e-6)
    assert not converted.notes


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_a_computed_weight_gives_the_same(form):
    _, feeds = _model(form)
    feeds["w"] = _example(2, *form["w"])
    if form["bias"]:
        feeds["b"] = _example(3, form["w"][0])
    model = one_op("Conv", feeds, **form["attributes"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6, keep_layout=True)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_of_a_pointwise_convolution_are_packed(bits):
    feeds = {"x": _example(1, 2, 32, 5, 4)}
    high = (1 << bits - 1) - 1
    w = np.random.default_rng(2).integers(-high, high, (16, 32, 1, 1), endpoint=True).astype(np.float32)
    w[:, 0] = high
    scale = (np.abs(_example(3, 16)) + 0.1).reshape(16, 1, 1, 1)
    model = one_op("Conv", feeds, constants={"w": w * scale, "b": _example(4, 16)})
    quantized, step = between_pairs(model, feeds)
    _as_integers(quantized, "w", w.astype(np.int8), scale.reshape(-1))
    converted = assert_same(quantized, feeds, rtol=0, atol=1.001 * step)
    assert converted.operators == {"DEQUANTIZE": 1, "FULLY_CONNECTED": 1, "QUANTIZE": 1}


def _as_integers(model: ir.Model, name: str, integers: np.ndarray, scale: np.ndarray) -> None:
    """Let a DequantizeLinear of integers give a weight."""
    graph = model.graph
    old = graph.initializers.pop(name)
    parts = []
    for part, array in (("q", integers), ("s", scale), ("z", np.zeros(scale.size, np.int8))):
        tensor = ir.Tensor(array, name=f"{name}_{part}")
        value = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
        parts.append(value)
    node = ir.Node("", "DequantizeLinear", parts, [ir.AttrInt64("axis", 0)])
    node.outputs[0].name = name
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(old, node.outputs[0])
