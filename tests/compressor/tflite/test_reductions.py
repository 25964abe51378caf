import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, behind_a_pool, one_op

OPS = [
    "ReduceMean", "ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


@st.composite
def reductions(draw: st.DrawFn) -> dict:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    negative = draw(st.booleans())
    return {
        "shape": shape,
        "axes": [axis - len(shape) if negative else axis for axis in axes],
        "keepdims": draw(st.integers(0, 1)),
        "noop_with_empty_axes": draw(st.integers(0, 1)),
    }


def _model(op, form, feeds):
    held = {"a": np.array(form["axes"], np.int64)} if form["axes"] else {}
    given_as = {k: form[k] for k in ("keepdims", "noop_with_empty_axes")}
    return one_op(op, feeds, constants=held, **given_as)


@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, max_examples=12)
@given(form=reductions())
def test_a_reduction(op, form):
    numbers = np.random.default_rng(1).uniform(0.1, 2, form["shape"]).astype(np.float32)
    feeds = {"x": numbers if "Log" in op else numbers - 1}
    if op.startswith(("ReduceL", "ReduceSumS")) and not form["axes"]:
        form = {**form, "noop_with_empty_axes": 0}  # onnxruntime and ONNX differ
    assert_same(_model(op, form, feeds), feeds, rtol=1e-5, atol=1e-6)
    assert_same(behind_a_pool(_model(op, form, feeds)), feeds, rtol=1e-5, atol=1e-6)
    if op in {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"}:
        assert_same_integers(_model(op, form, feeds), feeds)


@settings(deadline=None, max_examples=25)
@given(reductions(), st.sampled_from(["int32", "int64", "int8", "uint8", "bool", "float16"]), st.data())
def test_a_reduction_of_other_types(form, dtype, data):
    wide = dtype in {"int32", "int64"}
    op = data.draw(
        st.sampled_from(["ReduceMax", "ReduceMin", *(["ReduceSum", "ReduceProd"] if wide else [])])
    )
    numbers = np.random.default_rng(2).integers(-3 if dtype[0] != "u" else 0, 4, form["shape"])
    feeds = {"x": numbers > 0 if dtype == "bool" else numbers.astype(dtype)}
    assert_same(_model(op, form, feeds), feeds, rtol=0, atol=0)


def test_a_sum_of_exponentials_does_not_overflow():
    feeds = {"x": np.array([[1000.0, 1000.0], [-1000.0, -np.inf]], np.float32)}
    model = one_op("ReduceLogSumExp", feeds, constants={"a": np.array([1])})
    assert_same(model, feeds, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.sampled_from(["ArgMax", "ArgMin"]),
    st.sampled_from(["float32", "int32", "int8", "uint8", "float16"]),
    st.data(),
)
def test_where_an_extreme_lies(shape, op, dtype, data):
    numbers = np.random.default_rng(3).integers(0, 3, shape).astype(dtype)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    keep, backwards = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    feeds = {"x": numbers}
    model = one_op(op, feeds, axis=axis, keepdims=keep, select_last_index=backwards)
    assert_same(model, feeds, rtol=0, atol=0)
    assert_same(behind_a_pool(model), feeds, rtol=0, atol=0)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from(["float32", "int32", "int64"]),
    st.data(),
)
def test_running_sums(shape, exclusive, reverse, dtype, data):
    feeds = {"x": np.random.default_rng(4).integers(-9, 9, shape).astype(dtype)}
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    model = one_op("CumSum", feeds, constants={"a": np.array(axis)}, exclusive=exclusive, reverse=reverse)
    assert_same(model, feeds, rtol=0, atol=1e-6)
    assert_same(behind_a_pool(model), feeds, rtol=0, atol=1e-6)


def test_a_mean_over_a_map_with_any_batch():
    feeds = {"x": np.random.default_rng(5).standard_normal((3, 4, 5, 6)).astype(np.float32)}
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        assert not assert_same(one_op(op, feeds, dynamic=True), feeds, rtol=1e-5, atol=1e-6).notes
        assert_same_integers(one_op(op, feeds), feeds)
