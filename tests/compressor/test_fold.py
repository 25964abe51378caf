import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizing import kinds, normalized

from edgepress.compressor.fold import batchnorm_affine, per_channel, scaled_weight
from edgepress.compressor.normalize import normalize


def test_batchnorm_scale_and_shift_go_into_the_convolution() -> None:
    result = normalized(models.batchnorm())
    assert kinds(result.model) == {"Conv": 2, "Relu": 1}
    assert [node.outputs[0].name for node in result.model.graph] == ["n", "r", "y"]
    assert not result.left_alone


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "c = Conv(x, k) d = Conv(x, k) n = BatchNormalization(c, g, b, m, v) y = Add(n, d)",
            "'k' is shared",
        ),
        ("c = Conv(x, k) n = BatchNormalization(c, g, b, m, v) y = Add(n, c)", "read elsewhere"),
        ("c = Relu(x) y = BatchNormalization(c, g, b, m, v)", "no Conv"),
    ],
)
def test_a_batchnorm_that_cannot_be_folded_is_left_alone_with_the_reason(body: str, why: str) -> None:
    weights = models.constants(0, k=(2, 2, 1, 1), g=(2,), b=(2,), m=(2,)) | {"v": models.array(1, 2)}
    result = normalized(models.text("(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)", body, weights))
    assert kinds(result.model)["BatchNormalization"] == 1
    (skipped,) = result.left_alone
    assert why in skipped.reason


def test_a_shared_bias_is_copied_and_not_changed_for_the_other_user() -> None:
    model = models.text(
        "(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)",
        "c = Conv(x, k, b) m = Mul(c, s) y = Conv(m, q, b)",
        models.constants(0, k=(2, 2, 1, 1), q=(2, 2, 1, 1), b=(2,)) | {"s": np.array(3, np.float32)},
    )
    assert kinds(normalized(model).model) == {"Conv": 2}


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, k) y = Mul(c, column)",  # one number per row of the picture, not per channel
        "c = Conv(x, k) y = Div(s, c)",
        "c = Conv(x, k) y = Add(c, wide)",  # widens the result
        "c = Conv(x, k) y = Mul(c, x)",
    ],
)
def test_what_is_no_scale_per_channel_stays(body: str) -> None:
    weights = models.constants(1, k=(2, 2, 1, 1), column=(1, 1, 2, 1), wide=(1, 1, 2, 2, 2), s=(2, 1, 1))
    shape = "float[1, N, 2, 2, 2]" if "wide" in body else "float[N, 2, 2, 2]"
    result = normalized(models.text(f"(float[N, 2, 2, 2] x) => ({shape} y)", body, weights))
    assert len(result.model.graph) == 2


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("g = Gemm <transB = 1> (x, w) y = Mul(g, s)", {"Gemm": 1}),
        ("g = Gemm <beta = 0.5, alpha = 2.0> (x, w, b) h = Add(g, s) y = Div(h, t)", {"Gemm": 1}),
        ("g = Gemm(x, w, b) y = Sub(s, g)", {"Gemm": 1}),
        ("g = Gemm(x, w, b) y = BatchNormalization(g, s, b, b, t)", {"Gemm": 1}),
        ("g = MatMul(x, w) a = Add(g, b) y = BatchNormalization(a, s, b, b, t)", {"MatMul": 1, "Add": 1}),
        ("g = MatMul(x, w) a = Add(b, g) y = Mul(a, t)", {"MatMul": 1, "Add": 1}),
        ("g = MatMul(x, w) y = Add(g, b)", {"MatMul": 1, "Add": 1}),
        ("g = MatMul(x, w) y = Mul(t, g)", {"MatMul": 1}),
    ],
)
def test_dense_layers_take_what_follows(body: str, left: dict[str, int]) -> None:
    weights = models.constants(2, w=(3, 3), b=(3,), s=(3,)) | {"t": models.array(0.5, 2, 4)}
    result = normalized(models.text("(float[N, 3] x) => (float[N, 3] y)", body, weights))
    assert kinds(result.model) == left


def test_half_precision_that_would_overflow_is_not_folded() -> None:
    weights = models.constants(3, np.float16, w=(3, 3)) | {"s": models.array(6e4, 1, 1, dtype=np.float16)}
    weights["w"][:] = 100
    model = models.text("(float16[N, 3] x) => (float16[N, 3] y)", "g = MatMul(x, w) y = Mul(g, s)", weights)
    assert kinds(normalize(model).model) == {"MatMul": 1, "Mul": 1}


def direct_convolution(x: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """Oracle: x [c, h, w], weight [o, c/g, k, k], no padding, by four loops."""
    out, per_group, size, _ = w.shape
    high, wide = x.shape[1] - size + 1, x.shape[2] - size + 1
    y = np.zeros((out, high, wide))
    for o in range(out):
        first = (o // (out // group)) * per_group
        for i in range(high):
            for j in range(wide):
                y[o, i, j] = (w[o] * x[first : first + per_group, i : i + size, j : j + size]).sum()
    return y


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 3),
    ins=st.integers(1, 3),
    outs=st.integers(1, 3),
    size=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_folding_batchnorm_agrees_with_applying_it(
    group: int, ins: int, outs: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((group * outs, ins, size, size)), rng.standard_normal((group * ins, 4, 4))
    gamma, beta, mean = rng.standard_normal((3, group * outs))
    variance = rng.uniform(0.01, 4, group * outs)
    y = direct_convolution(x, weight, group)
    expected = np.stack(
        [gamma[o] * (y[o] - mean[o]) / (variance[o] + 1e-3) ** 0.5 + beta[o] for o in range(group * outs)]
    )
    scale, shift = batchnorm_affine(gamma, beta, mean, variance, 1e-3)
    got = direct_convolution(x, scaled_weight(weight, scale, "Conv"), group) + shift[:, None, None]
    np.testing.assert_allclose(got, expected, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(group=st.integers(1, 3), ins=st.integers(1, 2), outs=st.integers(1, 3), seed=st.integers(0, 999))
def test_transposed_convolutions_of_any_groups_take_a_batchnorm(
    group: int, ins: int, outs: int, seed: int
) -> None:
    out = group * outs
    model = models.text(
        f"(float[N, {group * ins}, 3, 3] x) => (float[N, {out}, 4, 4] y)",
        f"c = ConvTranspose <group = {group}> (x, k, b) y = BatchNormalization(c, g, b2, m, v)",
        models.constants(seed, k=(group * ins, outs, 2, 2), b=(out,), g=(out,), b2=(out,), m=(out,))
        | {"v": np.random.default_rng(seed).uniform(0.1, 3, out).astype(np.float32)},
    )
    assert kinds(normalized(model, 1e-4).model) == {"ConvTranspose": 1}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), True),
        ((4, 1, 1), True),
        ((1, 4, 1, 1), True),
        ((4,), False),
        ((1, 4), False),
        ((1, 1, 4, 1, 1), False),
    ],
)
def test_constants_count_as_per_channel_by_the_rules_of_broadcasting(
    shape: tuple[int, ...], expected: bool
) -> None:
    numbers = per_channel(np.ones(shape, np.float32), rank=4, axis=1, channels=4)
    assert (numbers is not None) == expected
