import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tflite import assert_same, assert_same_integers, one_op

from edgepress.compressor.export.tflite import convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def transposed(draw: st.DrawFn) -> dict:
    """A transposed convolution of one or two dimensions, of any form."""
    dims = draw(st.sampled_from([1, 2, 2]))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    each, outputs = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    kernel = [draw(st.integers(1, 4)) for _ in range(dims)]
    strides = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(dims)]
    size = [draw(st.integers(1, 5)) for _ in range(dims)]
    full = [
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
    ]
    attributes = {"group": group, "strides": strides, "dilations": dilations}
    how = draw(st.sampled_from(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape"]))
    if how == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
        pads = attributes["pads"]
        assume(all(f > pads[at] + pads[dims + at] for at, f in enumerate(full)))
    elif how == "output_shape":
        attributes["output_shape"] = [max(1, f - draw(st.integers(0, 2))) for f in full]
    else:
        attributes["auto_pad"] = how
    return {
        "x": (draw(st.integers(1, 2)), group * each, *size),
        "w": (group * each, outputs, *kernel),
        "attributes": attributes,
        "bias": draw(st.booleans()),
    }


def _parts(form: dict) -> tuple[dict, dict]:
    held = {"w": _example(2, *form["w"])}
    if form["bias"]:
        held["b"] = _example(3, form["w"][1] * form["attributes"]["group"])
    return {"x": _example(1, *form["x"])}, held


@settings(deadline=None, max_examples=80)
@given(transposed())
def test_floats_give_the_same_as_onnxruntime(form):
    feeds, held = _parts(form)
    model = one_op("ConvTranspose", feeds, constants=held, **form["attributes"])
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(transposed())
def test_computed_weights_give_the_same(form):
    feeds, held = _parts(form)
    model = one_op("ConvTranspose", {**feeds, **held}, **form["attributes"])
    assert_same(model, {**feeds, **held}, rtol=1e-5, atol=1e-6, keep_layout=True)


@settings(deadline=None, max_examples=60)
@given(transposed())
def test_integers_are_at_most_one_step_off(form):
    feeds, held = _parts(form)
    model = one_op("ConvTranspose", feeds, constants=held, **form["attributes"])
    assert_same_integers(model, feeds, weights={"w": 1})


def test_a_batch_of_any_size():
    feeds = {"x": _example(6, 3, 4, 5, 6)}
    held = {"w": _example(7, 4, 3, 3, 3)}
    model = one_op("ConvTranspose", feeds, constants=held, dynamic=True, strides=[2, 2], pads=[0, 1, 1, 1])
    assert not assert_same(model, feeds, rtol=1e-5, atol=1e-6).notes


def test_integers_run_as_integers():
    from tflite import between_pairs

    feeds = {"x": _example(6, 1, 4, 5, 6)}
    model = one_op("ConvTranspose", feeds, constants={"w": _example(7, 4, 3, 2, 2)}, strides=[2, 2])
    quantized, _ = between_pairs(model, feeds, weights={"w": 1})
    assert convert(quantized).operators == {"DEQUANTIZE": 1, "QUANTIZE": 1, "TRANSPOSE_CONV": 1}


def test_three_dimensions_are_refused():
    feeds = {"x": _example(6, 1, 2, 3, 3, 3)}
    model = one_op("ConvTranspose", feeds, constants={"w": _example(7, 2, 1, 2, 2, 2)})
    with pytest.raises(NotConvertibleError, match="rank: ConvTranspose in 3 dimensions"):
        convert(model)
