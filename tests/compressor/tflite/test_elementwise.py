import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, graph, one_op

ARITHMETIC = ["Add", "Sub", "Mul", "Div"]
WHOLE = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]


@st.composite
def broadcasting(draw: st.DrawFn, most: int = 6) -> tuple[tuple[int, ...], ...]:
    """Two shapes that go together, of any ranks."""
    whole = draw(st.lists(st.integers(1, 4), max_size=most))
    shapes = []
    for _ in range(2):
        rank = draw(st.integers(0, len(whole)))
        shapes.append(tuple(draw(st.sampled_from([size, 1])) for size in whole[len(whole) - rank :]))
    return tuple(shapes)


def _floats(seed: int, shape: tuple[int, ...], low: float = -4.0, high: float = 4.0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).uniform(low, high, shape), np.float32)


def _whole(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    wide = rng.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
    return np.asarray(np.where(rng.random(shape) < 0.5, wide, wide % 7), dtype)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ARITHMETIC), broadcasting(), st.booleans())
def test_arithmetic_of_floats_broadcasts(op, shapes, held):
    a, b = _floats(1, shapes[0]), _floats(2, shapes[1], 0.5, 4)
    model = (
        one_op(op, {"a": a}, constants={"b": b}, order=["a", "b"]) if held else one_op(op, {"a": a, "b": b})
    )
    assert_same(model, {"a": a} if held else {"a": a, "b": b}, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ARITHMETIC), broadcasting(), st.booleans())
def test_arithmetic_of_8_bits_is_at_most_one_step_off(op, shapes, held):
    a, b = _floats(1, shapes[0]), _floats(2, shapes[1], 1, 4)
    model = (
        one_op(op, {"a": a}, constants={"b": b}, order=["a", "b"]) if held else one_op(op, {"a": a, "b": b})
    )
    assert_same_integers(model, {"a": a} if held else {"a": a, "b": b})


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ARITHMETIC), broadcasting(), st.sampled_from(WHOLE))
def test_arithmetic_of_integers_wraps_around_and_cuts_off(op, shapes, dtype):
    a, b = _whole(3, shapes[0], dtype), _whole(4, shapes[1], dtype)
    if op == "Div":
        b = np.where(b == 0, dtype(3), b)
        b = np.where(b == np.array(-1).astype(dtype), dtype(2), b)  # the lowest integer has no negative
    assert_same(one_op(op, {"a": a, "b": b}), {"a": a, "b": b}, rtol=0, atol=0)


@pytest.mark.parametrize("divisor", [1, -1, 3, -7, 2**31 + 1, 2**62, -(2**63) + 1])
def test_quotients_of_64_bits_are_exact(divisor):
    ends = [2**63 - 1, -(2**63) + 1, 2**62, 10**18, 6, -6, 5, 0, 1, -1, 2**24 + 1, divisor, divisor - 1]
    feeds = {"a": np.array(ends, np.int64), "b": np.array([divisor], np.int64)}
    assert_same(one_op("Div", feeds), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["Sum", "Mean", "Max", "Min"]), st.integers(1, 4), broadcasting(4))
def test_any_number_of_operands(op, count, shapes):
    feeds = {f"x{at}": _floats(at, shapes[at % 2]) for at in range(count)}
    assert_same(one_op(op, feeds), feeds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float16])
def test_extremes_of_other_types(op, dtype):
    feeds = {f"x{at}": _floats(at, (2, 3, 4, 5), 0, 200).astype(dtype) for at in range(3)}
    assert_same(one_op(op, feeds), feeds, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_operands_amid_8_bits(op):
    feeds = {f"x{at}": _floats(at, (1, 3, 5, 4)) for at in range(2)}
    assert_same_integers(one_op(op, feeds), feeds)


SINGLE = {
    "Neg": (-4, 4), "Abs": (-4, 4), "Exp": (-4, 4), "Log": (0.01, 9), "Sqrt": (0, 9), "Reciprocal": (0.1, 5),
    "Floor": (-4, 4), "Ceil": (-4, 4), "Round": (-4, 4), "Sign": (-4, 4), "Sin": (-6, 6), "Cos": (-6, 6),
    "Erf": (-6, 6),
}  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(sorted(SINGLE)),
    st.lists(st.integers(1, 5), max_size=6),
    st.sampled_from(["float32", "float16"]),
)
def test_operators_of_one_operand(op, shape, dtype):
    feeds = {"x": _floats(5, tuple(shape), *SINGLE[op]).astype(dtype)}
    assume(dtype == "float32" or op not in {"Sign", "Round", "Neg", "Sin", "Cos", "Floor", "Ceil"})
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    assert_same(one_op(op, feeds), feeds, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("op", ["Neg", "Abs", "Exp", "Sqrt", "Floor", "Erf", "Sin"])
def test_operators_of_one_operand_amid_8_bits(op):
    feeds = {"x": _floats(6, (1, 3, 5, 4), *SINGLE[op])}
    assert_same_integers(one_op(op, feeds), feeds)


def test_halves_are_rounded_to_even():
    feeds = {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)}
    assert_same(one_op("Round", feeds), feeds, rtol=0, atol=0)


def test_erf_is_accurate_everywhere():
    feeds = {"x": np.linspace(-8, 8, 4001, dtype=np.float32)}
    assert_same(one_op("Erf", feeds), feeds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sign"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_single_operands_of_integers(op, dtype):
    feeds = {"x": np.array([[-7, 0, 3], [2**30, -1, 1]], dtype)}
    assert_same(one_op(op, feeds), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([-1, -0.5, 0.5, 1, 2, 3, 4, 2.5, 0]), broadcasting(), st.booleans())
def test_powers_of_floats(exponent, shapes, held):
    x, y = _floats(7, shapes[0], 0.2, 3), np.full(shapes[1], exponent, np.float32)
    model = (
        one_op("Pow", {"x": x}, constants={"y": y}, order=["x", "y"])
        if held
        else one_op("Pow", {"x": x, "y": y})
    )
    assert_same(model, {"x": x} if held else {"x": x, "y": y}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("kind", ["int32", "int64", "float32"])
def test_powers_of_integers(dtype, kind):
    base = np.array([-3, -2, -1, 0, 1, 2, 3, 5, 7, 1, -1, -1, 2, 9], dtype)
    exponent = np.array([3, 5, 9, 4, 77, 14, 9, 6, 5, 0, 0, 101, 0, 2], kind)
    feeds = {"x": base, "y": exponent}
    assert_same(one_op("Pow", feeds), feeds, rtol=0, atol=0)


def test_a_reciprocal_of_a_root_is_one_kernel():
    model = graph("g (float[1,3,4,5] x) => (float[1,3,4,5] y) { r = Sqrt(x) y = Reciprocal(r) }")
    converted = assert_same(model, {"x": _floats(8, (1, 3, 4, 5), 0.1, 9)}, rtol=1e-5, atol=1e-6)
    assert dict(converted.operators) == {"RSQRT": 1}


def test_a_batch_of_any_size_broadcasts():
    x = _floats(9, (3, 2, 4))
    model = one_op("Mul", {"x": x}, constants={"k": _floats(10, (2, 1))}, dynamic=True)
    assert not assert_same(model, {"x": x}, rtol=1e-5, atol=1e-6).notes


@pytest.mark.parametrize("shapes", [((), (1,)), ((2,), (1, 1)), ((2, 3), (1, 1, 1))])
@pytest.mark.parametrize("op", ["Add", "Max"])
def test_a_constant_of_one_element_gives_its_dimensions_to_the_result(op, shapes):
    feeds, held = {"a": _floats(11, shapes[0])}, {"b": np.full(shapes[1], 2, np.float32)}
    assert_same_integers(one_op(op, feeds, constants=held), feeds)
