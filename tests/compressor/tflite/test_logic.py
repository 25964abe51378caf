import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, by_tflite, graph, one_op

from edgepress.compressor.export.tflite.convert import NotConvertibleError, convert

COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
NUMBERS = ["float32", "float16", "int32", "int64", "int8", "uint8", "int16", "uint16", "uint32"]


@st.composite
def shapes(draw: st.DrawFn, count: int) -> list[tuple[int, ...]]:
    """Shapes that go together, of any ranks."""
    whole = draw(st.lists(st.integers(1, 4), max_size=6))
    found = []
    for _ in range(count):
        rank = draw(st.integers(0, len(whole)))
        found.append(tuple(draw(st.sampled_from([size, 1])) for size in whole[len(whole) - rank :]))
    return found


def _numbers(seed: int, shape: tuple[int, ...], dtype: str, low: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).integers(low, 4, shape), dtype)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(COMPARISONS), shapes(2), st.sampled_from(["float32", "int32", "int64", "uint8", "int8"])
)
def test_comparisons_broadcast(op, sizes, dtype):
    feeds = {"a": _numbers(1, sizes[0], dtype), "b": _numbers(2, sizes[1], dtype)}
    assert_same(one_op(op, feeds), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["And", "Or", "Xor", "Equal"]), shapes(2))
def test_truth_values_broadcast(op, sizes):
    feeds = {
        name: _numbers(at, size, "int32") > 1 for at, (name, size) in enumerate(zip("ab", sizes, strict=True))
    }
    feeds = {name: np.asarray(array) for name, array in feeds.items()}
    assert_same(one_op(op, feeds), feeds, rtol=0, atol=0)


def test_not():
    feeds = {"a": np.array([[True], [False]])}
    assert_same(one_op("Not", feeds), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=50)
@given(shapes(3), st.sampled_from(["float32", "float16", "int64", "int32", "uint8", "bool"]), st.booleans())
def test_a_choice_broadcasts(sizes, dtype, held):
    condition = np.asarray(_numbers(3, sizes[0], "int32") > 1)
    a, b = _numbers(4, sizes[1], dtype), _numbers(5, sizes[2], dtype)
    if dtype in {"float16", "bool"}:  # onnxruntime lacks these
        a, b = a.astype("float32"), b.astype("float32")
    if held:
        model = one_op("Where", {"c": condition, "a": a}, constants={"b": b}, order=["c", "a", "b"])
        assert_same(model, {"c": condition, "a": a}, rtol=0, atol=0)
    else:
        feeds = {"c": condition, "a": a, "b": b}
        assert_same(one_op("Where", feeds), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=25)
@given(shapes(3))
def test_a_choice_between_8_bits_stays_in_them(sizes):
    rng = np.random.default_rng(6)
    a, b = (np.asarray(rng.uniform(-1, 3, size), np.float32) for size in sizes[1:])
    feeds = {"c": np.asarray(rng.random(sizes[0]) < 0.5), "a": a, "b": b}
    converted = assert_same_integers(one_op("Where", feeds), feeds)
    assert converted.operators["DEQUANTIZE"] == 1


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NUMBERS),
    st.sampled_from([*NUMBERS, "bool", "float64"]),
    st.lists(st.integers(1, 3), max_size=5),
)
def test_types_change_as_in_onnxruntime(before, after, shape):
    feeds = {"x": np.asarray(np.random.default_rng(7).uniform(0, 100, shape), before)}
    kind = np.dtype(after)
    model = one_op("Cast", feeds, to=onnx.helper.np_dtype_to_tensor_dtype(kind))
    assert_same(model, feeds, rtol=1e-6, atol=0)


@pytest.mark.parametrize("before", ["float32", "float16"])
def test_floats_are_cut_off_towards_0(before):
    feeds = {"x": np.array([-2.7, -0.5, 0.5, 2.7, -100.9], before)}
    assert_same(one_op("Cast", feeds, to=6), feeds, rtol=0, atol=0)


@pytest.mark.parametrize("after", [2, 3, 4, 5])
def test_integers_wrap_around(after):
    feeds = {"x": np.array([-300, -1, 70000, 2**31 - 1], np.int32)}
    assert_same(one_op("Cast", feeds, to=after), feeds, rtol=0, atol=0)


def test_narrow_integers_wrap_around():
    """Held against numpy: onnxruntime's bindings hand out no such arrays."""
    x = np.array([-9, -8, -1, 0, 7, 8, 15, 16], np.int32)
    for kind, bits, low in (("int4", 4, -8), ("uint4", 4, 0)):
        to = {"int4": 22, "uint4": 21}[kind]
        model = graph(f"g (int32[8] x) => ({kind}[8] y) {{ y = Cast <to={to}> (x) }}")
        np.testing.assert_array_equal(by_tflite(convert(model), {"x": x})["y"], (x - low) % 2**bits + low)


def test_the_type_of_another_value():
    feeds = {"x": np.array([1.5, -2.5], np.float32), "like": np.array([1], np.int32)}
    assert_same(one_op("CastLike", feeds), feeds, rtol=0, atol=0)


def test_a_type_that_tflite_lacks_is_refused():
    with pytest.raises(NotConvertibleError, match="dtype") as caught:
        convert(one_op("Add", {"a": np.ones(2, np.float64), "b": np.ones(2, np.float64)}))
    assert [each.node for each in caught.value.problems] == ["the_Add (Add)"]
    with pytest.raises(NotConvertibleError, match="input x: dtype"):
        convert(graph("g (float8e8m0[2] x) => (float[2] y) { y = Cast <to=1> (x) }", 25))


def test_a_mask_of_dropout_is_all_true():
    feeds = {"x": np.array([[1.0, 0.0, np.nan]], np.float32)}
    assert_same(one_op("Dropout", feeds, outputs=2), feeds, rtol=0, atol=0)


def test_a_constant_at_the_output():
    model = graph(
        "g (float[2] x) => (float[2] y, int64[2] c) { c = Constant <value_ints = [3, 4]> () y = Neg(x) }"
    )
    assert_same(model, {"x": np.ones(2, np.float32)}, rtol=0, atol=0)


def test_dropout_in_training_is_refused():
    feeds, held = {"x": np.ones((2, 2), np.float32)}, {"r": np.float32(0.5), "t": np.array(True)}
    with pytest.raises(NotConvertibleError, match="training"):
        convert(one_op("Dropout", feeds, constants=held))
