import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, between_pairs, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SIZES = st.integers(1, 6)


@st.composite
def gemms(draw: st.DrawFn) -> dict:
    m, k, n = draw(SIZES), draw(SIZES), draw(SIZES)
    flips = {name: draw(st.integers(0, 1)) for name in ("transA", "transB")}
    shapes = {
        "a": (k, m) if flips["transA"] else (m, k),
        "b": (n, k) if flips["transB"] else (k, n),
    }
    bias = draw(st.sampled_from([None, (), (1,), (n,), (1, n), (m, 1), (m, n)]))
    if bias is not None:
        shapes["c"] = bias
    numbers = {name: draw(st.sampled_from([1.0, 1.0, 0.5, -2.0])) for name in ("alpha", "beta")}
    return {
        "arrays": {name: _example(at, *shape) for at, (name, shape) in enumerate(shapes.items())},
        "attributes": {**flips, **numbers},
        "fed": {"a"} | {name for name in ("b", "c") if draw(st.booleans()) and name in shapes},
    }


@settings(deadline=None, max_examples=100)
@given(gemms())
def test_a_gemm_of_any_form(form):
    feeds = {name: array for name, array in form["arrays"].items() if name in form["fed"]}
    held = {name: array for name, array in form["arrays"].items() if name not in form["fed"]}
    model = one_op("Gemm", feeds, constants=held, order=list(form["arrays"]), **form["attributes"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@st.composite
def factors(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that numpy multiplies: vectors, matrices, and stacks that broadcast."""
    k = draw(SIZES)
    lead = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 3)))]
    both = []
    for last in ((draw(SIZES), k), (k, draw(SIZES))):
        kept = [size if draw(st.booleans()) else 1 for size in lead][draw(st.integers(0, len(lead))) :]
        both.append((*kept, *last))
    left = (k,) if draw(st.integers(0, 4)) == 0 else both[0]
    right = (k,) if draw(st.integers(0, 4)) == 0 else both[1]
    return left, right


@settings(deadline=None, max_examples=100)
@given(factors(), st.sampled_from(["neither", "left", "right"]))
def test_a_product_of_any_shapes(shapes, constant):
    arrays = dict(zip("ab", (_example(1, *shapes[0]), _example(2, *shapes[1])), strict=True))
    held = {"left": ["a"], "right": ["b"], "neither": []}[constant]
    feeds = {name: array for name, array in arrays.items() if name not in held}
    model = one_op("MatMul", feeds, constants={name: arrays[name] for name in held}, order=["a", "b"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(factors())
def test_a_product_of_integers_is_at_most_one_step_off(shapes):
    feeds = {"a": _example(1, *shapes[0]), "b": _example(2, *shapes[1])}
    assert_same_integers(one_op("MatMul", feeds), feeds)


@settings(deadline=None, max_examples=60)
@given(st.lists(SIZES, min_size=2, max_size=4), SIZES)
def test_constant_weights_in_integers_are_at_most_one_step_off(lead, outputs):
    feeds = {"x": _example(1, *lead)}
    model = one_op("MatMul", feeds, constants={"w": _example(2, lead[-1], outputs)})
    assert_same_integers(model, feeds, weights={"w": 1})


def test_six_dimensions_that_differ_are_refused_by_rank():
    feeds = {"a": _example(1, 2, 1, 2, 1, 3, 4), "b": _example(2, 1, 2, 1, 2, 4, 3)}
    with pytest.raises(NotConvertibleError, match="rank: a product of 6 dimensions"):
        convert(one_op("MatMul", feeds))


def test_a_stack_of_any_size():
    feeds = {"a": _example(1, 3, 2, 4, 5), "b": _example(2, 3, 2, 5, 4)}
    assert not assert_same(one_op("MatMul", feeds, dynamic=True), feeds, rtol=1e-5, atol=1e-6).notes


def test_products_of_integers_run_as_integers():
    feeds = {"a": _example(1, 3, 4, 5), "b": _example(2, 3, 5, 4)}
    quantized, _ = between_pairs(one_op("MatMul", feeds), feeds)
    assert convert(quantized).operators == {"BATCH_MATMUL": 1, "DEQUANTIZE": 1, "QUANTIZE": 2}
