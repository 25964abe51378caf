import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, behind_a_pool, one_op

WAYS = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]


def example(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def build(x, attributes, *, scales=None, sizes=None, dynamic=False):
    held = {"r": np.zeros(0, np.float32)}
    held["s"] = np.zeros(0, np.float32) if scales is None else np.array(scales, np.float32)
    held |= {} if sizes is None else {"z": np.array(sizes, np.int64)}
    return one_op("Resize", {"x": x}, constants=held, opset=19, dynamic=dynamic, **attributes)


def draw_target(data, x, *, exact=False):
    """Scales, or sizes, of the two last dimensions; exact: that floats hold, so that ties are ties."""
    if not exact and data.draw(st.booleans()):
        return {"sizes": [*x.shape[:2], *(data.draw(st.integers(1, 9)) for _ in range(2))]}
    factors = st.sampled_from([0.5, 1.0, 2.0, 4.0, *([] if exact else [0.6, 1.5, 2.3, 3.0])])
    scales = [data.draw(factors.filter(lambda s, n=n: int(n * s) > 0)) for n in x.shape[2:]]
    return {"scales": [1.0, 1.0, *scales]}


@settings(deadline=None, max_examples=80)
@given(
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from(WAYS),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    st.data(),
)
def test_nearest(height, width, how, rounding, data):
    x = example(2, 3, height, width)
    attributes = {"mode": "nearest", "coordinate_transformation_mode": how, "nearest_mode": rounding}
    tied = (how, rounding) in {("half_pixel_symmetric", "floor"), ("asymmetric", "round_prefer_ceil")}
    model = build(x, attributes, **draw_target(data, x, exact=tied))
    assert_same(model, {"x": x}, rtol=0, atol=0)
    assert_same_integers(model, {"x": x})


@settings(deadline=None, max_examples=80)
@given(
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from(WAYS),
    st.sampled_from(["linear", "cubic"]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_interpolation(height, width, how, mode, exclude, antialias, data):
    x = example(1, 2, height, width)
    attributes = {"mode": mode, "coordinate_transformation_mode": how, "antialias": int(antialias)}
    if mode == "cubic":
        attributes |= {
            "exclude_outside": int(exclude),
            "cubic_coeff_a": data.draw(st.sampled_from([-0.75, -0.5])),
        }
    model = build(x, attributes, **draw_target(data, x))
    assert_same(model, {"x": x}, rtol=1e-5, atol=1e-6)
    assert_same_integers(model, {"x": x})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("how", ["half_pixel", "asymmetric", "align_corners"])
def test_what_tflite_has_a_kernel_for_takes_one_operator_and_any_batch(mode, how):
    x = example(2, 3, 4, 5)
    attributes = {"mode": mode, "coordinate_transformation_mode": how}
    attributes |= {"nearest_mode": "floor"} if how == "asymmetric" else {}
    attributes |= {"nearest_mode": "round_prefer_ceil"} if how == "align_corners" else {}
    model = build(x, attributes, sizes=[2, 3, 8, 10])
    kernel = {"nearest": "RESIZE_NEAREST_NEIGHBOR", "linear": "RESIZE_BILINEAR"}[mode]
    assert assert_same(model, {"x": x}, rtol=1e-5, atol=1e-6).operators == {kernel: 1}
    assert assert_same_integers(model, {"x": x}).operators[kernel] == 1
    free = build(x, attributes, scales=[1, 1, 2, 2], dynamic=True)
    assert not assert_same(free, {"x": x}, rtol=1e-5, atol=1e-6).notes


@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 3, 5), (1, 2, 3, 4, 3)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_other_ranks(shape, mode):
    if len(shape) == 1 and mode == "linear":
        return  # onnxruntime has none
    x = example(*shape)
    scales = [1.0] * (len(shape) - 1) + [2.0] if len(shape) < 5 else [1, 1, 2.0, 1.5, 2.0]
    model = build(x, {"mode": mode}, scales=scales)
    assert_same(model, {"x": x}, rtol=1e-5, atol=1e-6)
    assert_same(behind_a_pool(model), {"x": x}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_part_is_cut_out(mode):
    x = example(1, 1, 4, 4)
    held = {
        "r": np.array([0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7], np.float32),
        "s": np.zeros(0, np.float32),
        "z": np.array([1, 1, 3, 3]),
    }
    model = one_op(
        "Resize",
        {"x": x},
        constants=held,
        opset=19,
        mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=10.0,
    )
    assert_same(model, {"x": x}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_the_ratio_of_sides_is_kept(policy):
    x = example(1, 1, 4, 6)
    held = {"r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32), "z": np.array([7, 8])}
    model = one_op(
        "Resize",
        {"x": x},
        constants=held,
        opset=19,
        mode="nearest",
        axes=[2, 3],
        keep_aspect_ratio_policy=policy,
    )
    assert_same(model, {"x": x}, rtol=0, atol=0)
