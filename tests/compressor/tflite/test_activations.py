import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, by_tflite, graph, one_op

from edgepress.compressor.export.tflite import convert

SLOPES = st.floats(-2, 2, width=16)
FORMS = {
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
    "HardSwish": {},
    "Softplus": {},
    "Softsign": {},
    "Mish": {},
    "LeakyRelu": {"alpha": SLOPES},
    "Elu": {"alpha": st.sampled_from([1.0, 0.3, 2.0])},
    "Celu": {"alpha": st.sampled_from([1.0, 0.3, 2.0])},
    "Selu": {"alpha": st.floats(0.5, 2, width=16), "gamma": st.floats(0.5, 2, width=16)},
    "Gelu": {"approximate": st.sampled_from(["none", "tanh"])},
    "HardSigmoid": {"alpha": st.sampled_from([1 / 6, 0.2, -0.4, 0.0]), "beta": st.floats(-1, 1, width=16)},
    "ThresholdedRelu": {"alpha": SLOPES},
    "Softmax": {"axis": st.integers(-1, 3)},
    "LogSoftmax": {"axis": st.integers(-1, 3)},
}


def _floats(seed: int, *shape: int, spread: float = 3.0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * spread, np.float32)


@st.composite
def activations(draw: st.DrawFn) -> tuple[str, tuple[int, ...], dict]:
    op = draw(st.sampled_from(sorted(FORMS)))
    attributes = {name: draw(values) for name, values in FORMS[op].items()}
    least = max(attributes.get("axis", -1) + 1, 1) if op.endswith("oftmax") else 0
    return op, tuple(draw(st.lists(st.integers(1, 5), min_size=least, max_size=6))), attributes


@settings(deadline=None, max_examples=80)
@given(activations())
def test_an_activation_of_floats_gives_the_same_as_onnxruntime(form):
    op, shape, attributes = form
    feeds = {"x": _floats(1, *shape)}
    assert_same(one_op(op, feeds, opset=22, **attributes), feeds, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(activations())
def test_an_activation_amid_8_bits_is_at_most_one_step_off(form):
    op, shape, attributes = form
    assume(shape[attributes["axis"]] > 1 if "axis" in attributes else True)  # onnxruntime gives 0 there
    feeds = {"x": _floats(2, *shape)}
    assert_same_integers(one_op(op, feeds, opset=22, **attributes), feeds)


@pytest.mark.parametrize("op", sorted(set(FORMS) - {"Mish", "Softsign", "Celu", "Gelu", "HardSwish", "Selu"}))
def test_activations_of_float16(op):
    feeds = {"x": _floats(3, 2, 3, 4, 5).astype(np.float16)}
    assert_same(one_op(op, feeds, opset=22), feeds, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "LeakyRelu", "Elu"])
def test_these_run_as_integers(op):
    feeds = {"x": _floats(4, 1, 8, 5, 6)}
    converted = assert_same_integers(one_op(op, feeds), feeds)
    assert converted.operators["DEQUANTIZE"] == 1  # at the output alone


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["float32", "float16", "int32", "int64", "uint32", "int8", "uint8"]),
    st.sampled_from([(None, None), (None, 5), (2, None), (2, 5), (5, 2), (0, 6), (1, 1)]),
    st.lists(st.integers(1, 4), max_size=6),
    st.booleans(),
)
def test_bounds_of_any_kind_and_type(dtype, bounds, shape, held):
    feeds = {"x": np.asarray(_floats(5, *shape) + 3, dtype)}
    given_bounds = {
        name: np.array(bound, dtype)
        for name, bound in zip(("lo", "hi"), bounds, strict=True)
        if bound is not None
    }
    order = ["x", *(name if name in given_bounds else "" for name in ("lo", "hi"))]
    while not order[-1]:
        order.pop()
    if held:
        model = one_op("Clip", feeds, constants=given_bounds, order=order)
    else:
        model = one_op("Clip", {**feeds, **given_bounds}, order=order)
        feeds = {**feeds, **given_bounds}
    assert_same(model, feeds, rtol=0, atol=0)


@pytest.mark.parametrize("bounds", [(-1.5, 2.5), (0, 6), (0.5, 100), (-100, 100)])
def test_bounds_amid_8_bits(bounds):
    feeds = {"x": _floats(6, 1, 3, 5, 4)}
    held = {"lo": np.float32(bounds[0]), "hi": np.float32(bounds[1])}
    assert_same_integers(one_op("Clip", feeds, constants=held), feeds)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(["float32", "float16"]), st.booleans())
def test_slopes_of_any_shape(data, dtype, held):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)))
    rank = data.draw(st.integers(0, len(shape)))
    slopes = tuple(data.draw(st.sampled_from([size, 1])) for size in shape[len(shape) - rank :])
    x, slope = _floats(7, *shape).astype(dtype), _floats(8, *slopes).astype(dtype)
    model = (
        one_op("PRelu", {"x": x}, constants={"s": slope})
        if held
        else one_op("PRelu", {"x": x, "s": slope}, order=["x", "s"])
    )
    feeds = {"x": x} if held else {"x": x, "s": slope}
    assert_same(model, feeds, rtol=1e-5 if dtype != "float16" else 2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_slopes_of_integers(dtype):
    """Held against numpy: onnxruntime has no such kernel."""
    x, slope = (
        np.arange(24).reshape(1, 2, 3, 4).astype(dtype) - np.array(9, dtype),
        np.array([[[3]], [[7]]], dtype),
    )
    got = by_tflite(convert(one_op("PRelu", {"x": x}, constants={"s": slope})), {"x": x})["y0"]
    np.testing.assert_array_equal(got, np.where(x < 0, x * slope, x))


def test_slopes_of_channels_amid_8_bits():
    feeds = {"x": _floats(9, 1, 3, 5, 4)}
    assert_same_integers(one_op("PRelu", feeds, constants={"s": _floats(10, 3, 1, 1, spread=0.3)}), feeds)


SHAPE = "[1,3,4,5]"
PATTERNS = {
    "erf": ("GELU", "d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)"),
    "erf, halved first": ("GELU", "d = Mul(x, invroot) e = Erf(d) p = Add(one, e) h = Mul(half, x) y = Mul(h, p)"),
    "tanh": (
        "GELU",
        "c = Pow(x, three) k = Mul(c, coefficient) s = Add(x, k) a = Mul(s, factor) t = Tanh(a)"
        " p = Add(t, one) m = Mul(x, p) y = Mul(half, m)",
    ),
    "hard sigmoid": ("HARD_SWISH", "h = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul(x, h)"),
    "clip": ("HARD_SWISH", "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"),
}  # fmt: skip
NUMBERS = {
    "root": 2**0.5,
    "invroot": 0.5**0.5,
    "one": 1,
    "half": 0.5,
    "three": 3,
    "six": 6,
    "zero": 0,
    "coefficient": 0.044715,
    "factor": (2 / np.pi) ** 0.5,
}


def _pattern(nodes: str, result: str = "y"):
    held = ", ".join(f"float {name} = {{{float(np.float32(n))!r}}}" for name, n in NUMBERS.items())
    return graph(f"g (float{SHAPE} x) => (float{SHAPE} {result}) <{held}> {{ {nodes} }}")


@pytest.mark.parametrize("name", PATTERNS)
def test_what_exporters_write_in_several_nodes_is_one_kernel(name):
    code, nodes = PATTERNS[name]
    converted = assert_same(_pattern(nodes), {"x": _floats(11, 1, 3, 4, 5)}, rtol=1e-5, atol=1e-6)
    assert dict(converted.operators) == {code: 1}


@pytest.mark.parametrize("name", PATTERNS)
def test_almost_such_a_pattern_is_left_alone(name):
    code, nodes = PATTERNS[name]
    changed = (
        nodes.replace("half", "coefficient")
        .replace("beta=0.5", "beta=0.4")
        .replace("Div(m, six)", "Div(m, one)")
    )
    converted = assert_same(_pattern(changed), {"x": _floats(12, 1, 3, 4, 5)}, rtol=1e-5, atol=1e-6)
    assert code not in converted.operators


def test_a_pattern_whose_middle_is_read_elsewhere_is_left_alone():
    _, nodes = PATTERNS["erf"]
    converted = assert_same(
        _pattern(nodes.replace("y =", "n =") + " y = Add(n, e)"),
        {"x": _floats(13, 1, 3, 4, 5)},
        rtol=1e-5,
        atol=1e-6,
    )
    assert "GELU" not in converted.operators


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_softmax_over_channels_last_needs_no_transposition(axis):
    feeds = {"x": _floats(14, 2, 3, 4, 5)}
    converted = assert_same(one_op("Softmax", feeds, axis=axis), feeds, rtol=1e-5, atol=1e-6)
    assert ("TRANSPOSE" in converted.operators) == (axis != 1)


@pytest.mark.parametrize("op", ["Softmax", "HardSigmoid", "Gelu", "PRelu"])
def test_a_batch_of_any_size(op):
    feeds = {"x": _floats(15, 3, 4, 5)}
    held = {"s": _floats(16, 4, 1)} if op == "PRelu" else {}
    converted = assert_same(
        one_op(op, feeds, constants=held, opset=22, dynamic=True), feeds, rtol=1e-5, atol=1e-6
    )
    assert not converted.notes
