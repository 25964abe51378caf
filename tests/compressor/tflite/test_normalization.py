import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite import assert_same, one_op


def _example(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=4)


def _same(op: str, arrays: dict, constant: bool, *, outputs: int = 1, opset: int = 21, **attributes):
    names = list(arrays)
    feeds = arrays if not constant else {names[0]: arrays[names[0]]}
    held = {} if not constant else {name: arrays[name] for name in names[1:]}
    model = one_op(op, feeds, constants=held, order=names, outputs=outputs, opset=opset, **attributes)
    assert_same(model, feeds, rtol=1e-5, atol=1e-6)
    assert not assert_same(
        one_op(op, feeds, constants=held, order=names, outputs=outputs, opset=opset, **attributes),
        feeds, rtol=1e-5, atol=1e-6, keep_layout=True,
    ).notes  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.booleans())
def test_batch_normalization(shape, constant):
    c = shape[1]
    arrays = {"x": _example(1, *shape), "s": _example(2, c), "b": _example(3, c), "m": _example(4, c)}
    arrays["v"] = np.abs(_example(5, c)) + 0.1
    _same("BatchNormalization", arrays, constant, epsilon=1e-3)


def test_batch_normalization_in_training():
    arrays = {"x": _example(1, 3, 4, 5, 2)} | {name: np.abs(_example(2, 4)) + 0.1 for name in "sbmv"}
    _same("BatchNormalization", arrays, False, outputs=3, training_mode=1, momentum=0.8)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.data())
def test_layer_normalization_from_any_axis(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    bias = data.draw(st.booleans())
    arrays = {"x": _example(1, *shape) * 3 + 1, "s": _example(2, *shape[axis:])}
    if bias:
        arrays["b"] = _example(3, *shape[axis:])
    outputs = data.draw(st.sampled_from([1, 3]))
    _same("LayerNormalization", arrays, data.draw(st.booleans()), axis=axis, outputs=outputs, epsilon=1e-2)


@settings(deadline=None, max_examples=20)
@given(SHAPES, st.data())
def test_rms_normalization_from_any_axis(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    arrays = {"x": _example(1, *shape), "s": _example(2, *shape[axis:])}
    _same("RMSNormalization", arrays, data.draw(st.booleans()), axis=axis, opset=23)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=4), st.booleans())
def test_instance_normalization(shape, constant):
    arrays = {"x": _example(1, *shape), "s": _example(2, shape[1]), "b": _example(3, shape[1])}
    _same("InstanceNormalization", arrays, constant, epsilon=1e-2)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 5), min_size=1, max_size=2), st.booleans()
)
def test_group_normalization(groups, each, spatial, constant):
    c = groups * each
    arrays = {"x": _example(1, 2, c, *spatial), "s": _example(2, c), "b": _example(3, c)}
    _same("GroupNormalization", arrays, constant, num_groups=groups, epsilon=1e-2)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([1, 2]), st.data())
def test_lp_normalization(shape, p, data):
    x = _example(1, *shape)
    x[0] = 0
    _same("LpNormalization", {"x": x}, False, p=p, axis=data.draw(st.integers(-len(shape), len(shape) - 1)))


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 7)] * 4), st.integers(1, 3))
def test_local_response_normalization(shape, half):
    _same("LRN", {"x": _example(1, *shape)}, False, size=2 * half - 1, alpha=0.3, beta=0.6, bias=1.5)


@pytest.mark.parametrize("size", [2, 4])
def test_local_response_normalization_over_an_even_window(size):
    """onnxruntime has no kernel for it; the sums are written out."""
    from tflite import by_tflite

    from edgepress.compressor.export.tflite import convert

    x = _example(1, 2, 7, 3, 3)
    got = by_tflite(convert(one_op("LRN", {"x": x}, size=size, alpha=0.3, beta=0.6, bias=1.5)), {"x": x})
    powers = np.zeros_like(x)
    for c in range(7):
        low, high = max(0, c - (size - 1) // 2), min(6, c + size // 2)
        powers[:, c] = (x[:, low : high + 1] ** 2).sum(axis=1)
    np.testing.assert_allclose(got["y0"], x / (1.5 + 0.3 / size * powers) ** 0.6, rtol=1e-5)


@pytest.mark.parametrize("axes", [[0, 2, 3], [1], [2, 3]])
def test_mean_variance_normalization(axes):
    _same("MeanVarianceNormalization", {"x": _example(1, 2, 3, 4, 5)}, False, axes=axes)
