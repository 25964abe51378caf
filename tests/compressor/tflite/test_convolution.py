import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, one_op

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
