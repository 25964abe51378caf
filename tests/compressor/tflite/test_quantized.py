import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tflite import assert_same, by_onnxruntime, by_tflite, graph, one_op

from edgepress.compressor.export.tflite.convert import NotConvertibleError, convert

KINDS = ["int8", "uint8", "int16", "uint16"]


def _floats(seed: int, *shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 3, np.float32)


@st.composite
def pairs(draw: st.DrawFn) -> dict:
    """Scales and zero points for a whole tensor, for each index of an axis, or for blocks of it."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    axis = draw(st.integers(0, len(shape) - 1))
    kind = draw(st.sampled_from(["whole", "axis", "block"][: 2 + (len(shape) > 1)]))
    attributes = {
        "whole": {},
        "axis": {"axis": axis},
        "block": {"axis": axis, "block_size": draw(st.integers(2, 3))},
    }
    sizes = {
        "whole": draw(st.sampled_from([(), (1,)])),
        "axis": (shape[axis],),
        "block": tuple(
            -(-size // attributes["block"]["block_size"]) if at == axis else size
            for at, size in enumerate(shape)
        ),
    }
    if kind == "block" and shape[axis] % attributes["block"]["block_size"]:
        shape[axis] = sizes["block"][axis] * attributes["block"]["block_size"]
    return {
        "shape": shape,
        "sizes": sizes[kind],
        "attributes": attributes[kind],
        "dtype": draw(st.sampled_from(KINDS)),
    }


def _parameters(form: dict) -> dict:
    rng = np.random.default_rng(1)
    zero = rng.integers(0, 9, form["sizes"])
    return {
        "s": np.asarray(rng.uniform(0.01, 0.1, form["sizes"]), np.float32),
        "z": np.asarray(zero, form["dtype"]),
    }


@settings(deadline=None, max_examples=60)
@given(pairs(), st.booleans())
def test_integers_at_the_output(form, held):
    feeds, parts = {"x": _floats(2, *form["shape"])}, _parameters(form)
    model = (
        one_op("QuantizeLinear", feeds, constants=parts, **form["attributes"])
        if held
        else one_op("QuantizeLinear", {**feeds, **parts}, **form["attributes"])
    )
    assert_same(model, feeds if held else {**feeds, **parts}, rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(pairs(), st.booleans())
def test_integers_at_the_input(form, held):
    ends = np.iinfo(form["dtype"])
    x = np.random.default_rng(3).integers(
        ends.min, ends.max, form["shape"], dtype=form["dtype"], endpoint=True
    )
    feeds, parts = {"x": x}, _parameters(form)
    model = (
        one_op("DequantizeLinear", feeds, constants=parts, **form["attributes"])
        if held
        else one_op("DequantizeLinear", {**feeds, **parts}, **form["attributes"])
    )
    assert_same(model, feeds if held else {**feeds, **parts}, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(pairs())
def test_pairs_between_floats(form):
    # onnxruntime takes a block with one scale for a whole tensor when it merges a pair, and then fails
    assume("block_size" not in form["attributes"] or np.prod(form["sizes"]) > 1)
    feeds, parts = {"x": _floats(4, *form["shape"])}, _parameters(form)
    model = one_op("QuantizeLinear", feeds, constants=parts, **form["attributes"])
    integers = model.graph.outputs[0]
    back = ir.node("DequantizeLinear", [integers, *model.graph.initializers.values()], form["attributes"])
    back.outputs[0].name, back.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    back.outputs[0].shape = integers.shape
    model.graph.append(back)
    model.graph.outputs[0] = back.outputs[0]
    converted = assert_same(model, feeds, rtol=1e-6, atol=1e-6)
    assert "CAST" not in converted.operators


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_the_border_takes_integers_without_a_detour(kind):
    zero = 128 if kind == "uint8" else 0
    model = graph(
        f"g ({kind}[1,3,4,5] x) => ({kind}[1,3,4,5] y)"
        f" <float s = {{0.05}}, {kind} z = {{3}}, float s2 = {{0.0078125}}, {kind} z2 = {{{zero}}}>"
        " { r = DequantizeLinear(x, s, z) t = Tanh(r) y = QuantizeLinear(t, s2, z2) }"
    )
    ends = np.iinfo(kind)
    x = np.random.default_rng(5).integers(ends.min, ends.max, (1, 3, 4, 5), dtype=kind, endpoint=True)
    expected, converted = by_onnxruntime(model, {"x": x})["y"], convert(model)
    got = by_tflite(converted, {"x": x})["y"]
    assert got.dtype == expected.dtype
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert "DEQUANTIZE" not in converted.operators


def test_integers_that_are_read_as_such_are_the_ones_of_onnx():
    model = graph(
        "g (float[1,3,4,5] x) => (float[1,3,4,5] y, int32[1,3,4,5] i) <float s = {0.05}, uint8 z = {100}>"
        " { q = QuantizeLinear(x, s, z) i = Cast <to=6> (q) y = DequantizeLinear(q, s, z) }"
    )
    assert_same(model, {"x": _floats(6, 1, 3, 4, 5)}, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "low", "high"), [("int4", -8, 7), ("uint4", 0, 15)])
def test_narrow_integers_are_held_in_8_bits(kind, low, high):
    """Held against numpy: onnxruntime's bindings hand out no such arrays."""
    model = graph(
        f"g (float[2,9] x) => ({kind}[2,9] y, float[2,9] z) <float s = {{0.5}}, {kind} zero = {{1}}>"
        " { y = QuantizeLinear(x, s, zero) z = DequantizeLinear(y, s, zero) }"
    )
    x = np.linspace(-9, 9, 18, dtype=np.float32).reshape(2, 9)
    converted = convert(model)
    got = by_tflite(converted, {"x": x})
    expected = np.clip(np.round(x / 0.5) + 1, low, high)
    np.testing.assert_array_equal(got["y"], expected)
    np.testing.assert_array_equal(got["z"], (expected - 1) * 0.5)
    assert converted.notes == (f"'y' is {kind}; the file has it as {kind.replace('4', '8')}.",)


def test_a_type_without_a_container_is_refused():
    model = graph(
        "g (double[2] x) => (uint8[2] y) <double s = {0.05}> { y = QuantizeLinear (x, s) }",
        opset=23,
    )
    with pytest.raises(NotConvertibleError, match="dtype"):
        convert(model)


def test_a_type_given_by_attribute():
    feeds = {"x": _floats(7, 2, 3) * 1000}
    model = one_op("QuantizeLinear", feeds, constants={"s": np.float32(0.5)}, output_dtype=4)
    assert_same(model, feeds, rtol=0, atol=0)
