"""Ridge regression and elimination against numpy's lstsq and against trying everything."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.least_squares import (
    STRENGTHS,
    Consumer,
    Moments,
    best_strength,
    eliminate,
    refit,
)

RIDGE = 0.05
seeds = st.integers(0, 10_000)


def moments(x: np.ndarray, y: np.ndarray, pieces: int = 3) -> Moments:
    """Moments of these rows, added piece by piece."""
    found = Moments(x.shape[1], y.shape[1])
    for a, b in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        found.update(a, b)
    return found


def rows(seed: int, n: int = 60, inputs: int = 5, outputs: int = 3, noise: float = 0.1):
    """Correlated X about a mean, and Y = X W + b + noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs)) + rng.normal(size=inputs)
    w = rng.normal(size=(inputs, outputs))
    y = x @ w + rng.normal(size=outputs) + noise * rng.normal(size=(n, outputs))
    return x, y, w


@given(seeds, st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_moments_are_those_of_all_rows(seed: int, pieces: int) -> None:
    x, y, _ = rows(seed)
    gram, cross, outputs = moments(x, y, pieces).centred()
    joint = np.cov(np.hstack([x, y]).T, bias=True)
    np.testing.assert_allclose(gram, joint[:5, :5], atol=1e-9)
    np.testing.assert_allclose(cross, joint[:5, 5:], atol=1e-9)
    np.testing.assert_allclose(outputs, joint[5:, 5:], atol=1e-9)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_errors_biases_and_parts_from_moments_are_those_from_rows(seed: int) -> None:
    x, y, w = rows(seed)
    found = moments(x, y)
    bias = found.bias_for(w)
    np.testing.assert_allclose(bias, y.mean(0) - x.mean(0) @ w, atol=1e-9)
    some = np.array([True, False, True, True, False])
    part = found.part(some, np.array([2, 0]))
    direct = moments(x[:, some], y[:, [2, 0]])
    for name in ("x_sum", "y_sum", "xx", "xy", "yy", "rows"):
        np.testing.assert_allclose(getattr(part, name), getattr(direct, name), atol=1e-9)
    other = np.random.default_rng(seed).normal(size=3)
    expected = np.mean(np.sum((x @ w + other - y) ** 2, axis=1))
    assert found.error(w, other) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_moments_add_up() -> None:
    x, y, _ = rows(1)
    a, b = moments(x[:20], y[:20]), moments(x[20:], y[20:])
    np.testing.assert_allclose((a + b).centred()[0], moments(x, y).centred()[0], atol=1e-12)
    assert a.rows == 20  # addition makes something new


def test_half_precision_does_not_overflow() -> None:
    x, y = np.full((200, 3), 200, np.float16), np.full((200, 2), -200, np.float16)
    found = moments(x, y)
    np.testing.assert_allclose(found.xx, 200.0**3)
    np.testing.assert_allclose(found.xy, -(200.0**3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_no_numbers_are_left_out(bad: float) -> None:
    x, y, w = rows(4)
    expected = refit(moments(x[2:50], y[2:50]), moments(x[50:], y[50:]), w)
    x[0, 1], y[1, 2] = bad, bad
    fit = moments(x[:50], y[:50])
    assert fit.rows == 48
    for one, other in zip(refit(fit, moments(x[50:], y[50:]), w), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


@given(seeds, st.booleans())
@settings(max_examples=25, deadline=None)
def test_refit_is_ridge_regression_towards_the_old_weights(seed: int, bias: bool) -> None:
    x, y, w = rows(seed)
    old = w + np.random.default_rng(seed + 1).normal(size=w.shape)
    fit, held = moments(x[:45], y[:45]), moments(x[45:], y[45:])
    if not bias:
        fit.about_zero = True
        held.about_zero = True
    found, offset = refit(fit, held, old)
    scale = np.mean(x[:45] ** 2)

    def held_error(strength: float) -> float:
        weights, b = oracles.ridge(x[:45], y[:45], old, strength * scale, bias=bias)
        return float(np.mean(np.sum((x[45:] @ weights + b - y[45:]) ** 2, axis=1)))

    best = min(STRENGTHS, key=held_error)
    expected, expected_bias = oracles.ridge(x, y, old, best * scale, bias=bias)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(offset, expected_bias, atol=1e-6)


@given(seeds, st.integers(20, 60), st.sampled_from([0.0, 0.3, 3.0]), st.sampled_from([1e-9, 1.0, 1e9]))
@settings(max_examples=25, deadline=None)
def test_the_strength_errs_as_little_as_the_best_of_all(
    seed: int, wide: int, noise: float, unit: float
) -> None:
    """Inputs that hardly differ, of any magnitude, so that single precision has a hard time."""
    rng = np.random.default_rng(seed)
    x = unit * (rng.normal(size=(200, 4)) @ rng.normal(size=(4, wide)) + 0.01 * rng.normal(size=(200, wide)))
    w = rng.normal(size=(wide, 3)) / unit
    y, old = x @ w + noise * rng.normal(size=(200, 3)), w + 0.3 * rng.normal(size=w.shape) / unit
    fit, held = moments(x[:160], y[:160]), moments(x[160:], y[160:])
    scale = np.mean(x[:160] ** 2)

    def error(strength: float) -> float:
        weights, b = oracles.ridge(x[:160], y[:160], old, strength * scale, bias=True)
        return float(np.mean(np.sum((x[160:] @ weights + b - y[160:]) ** 2, axis=1)))

    found = best_strength(fit, held, old)
    least = min(error(strength) for strength in STRENGTHS)
    assert found is not None
    assert error(found / scale) <= 1.02 * least + 1e-9


def test_without_noise_refit_finds_what_made_the_rows() -> None:
    x, y, w = rows(3, n=200, noise=0.0)
    found, bias = refit(moments(x[:150], y[:150]), moments(x[150:], y[150:]), np.zeros_like(w))
    exact = np.linalg.lstsq(np.hstack([x, np.ones((200, 1))]), y, rcond=None)[0]
    np.testing.assert_allclose(found, exact[:-1], atol=5e-2)
    assert np.mean((x @ found + bias - y) ** 2) < 1e-4 * np.var(y)


@given(seeds, st.integers(6, 40), st.sampled_from([0.0, 0.5, 5.0]))
@settings(max_examples=60, deadline=None)
def test_refit_is_never_worse_than_the_old_weights(seed: int, n: int, noise: float) -> None:
    x, y, w = rows(seed, n=n, noise=noise)
    cut = n - max(2, n // 5)
    fit, held = moments(x[:cut], y[:cut]), moments(x[cut:], y[cut:])
    found, bias = refit(fit, held, w)
    total = fit + held
    assert total.error(found, bias) <= total.error(w, total.bias_for(w)) + 1e-9
    if noise == 0.0:  # the old weights are right: nothing beats them on rows not fitted to
        np.testing.assert_allclose(found, w, atol=1e-6)


def test_noise_alone_leaves_the_old_weights() -> None:
    rng = np.random.default_rng(0)
    kept = 0
    for seed in range(20):
        x, w = rng.normal(size=(12, 8)), rng.normal(size=(8, 3))
        y = x @ w + 0.5 * rng.normal(size=(12, 3))
        found, bias = refit(moments(x[:9], y[:9]), moments(x[9:], y[9:]), w)
        fresh = np.random.default_rng(seed + 100).normal(size=(500, 8))
        kept += float(np.mean(np.square(fresh @ found + bias - fresh @ w))) < 0.25
    assert kept >= 18  # twelve rows of noise do not spoil eight good weights


def test_moments_that_rounding_made_indefinite_are_refitted_all_the_same() -> None:
    """As of many inputs with one large mean, whose products are summed in single precision."""
    inputs, lost = 40, np.zeros(40)
    lost[:2] = 1, -1
    fit, held = (Moments(inputs, 3, rows=100, about_zero=True) for _ in range(2))
    old = np.random.default_rng(0).standard_normal((inputs, 3))
    for found in (fit, held):
        gram = np.ones((inputs, inputs)) - 1e-3 * np.outer(lost, lost)
        found.xx, found.xy, found.yy = 100 * gram, 100 * gram @ (old + 0.1), 100 * np.eye(3) * inputs**2
    assert np.linalg.eigvalsh(fit.xx)[0] < -100 * STRENGTHS[0]
    weights, bias = refit(fit, held, old)
    assert np.isfinite(weights).all()
    assert held.error(weights, bias) < held.error(old, bias)
    fit.xx[1, 0] = -np.inf
    with pytest.raises(np.linalg.LinAlgError):
        refit(fit, held, old)


def problem(seed: int, units: int, readers: int, block: int):
    """Readers of the same units, each with columns of its own in front."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(readers):
        columns = 2 + units * block
        x = rng.normal(size=(80, columns)) @ (np.eye(columns) + 0.5 * rng.normal(size=(columns, columns)))
        unit_of = np.concatenate([[-1, -1], rng.permutation(np.repeat(np.arange(units), block))])
        w = rng.normal(size=(columns, 3)) * rng.choice([0.1, 1.0, 3.0], size=(columns, 1))
        made.append(
            (np.cov(x.T, bias=True) + RIDGE * np.eye(columns), w, unit_of, float(rng.uniform(0.5, 2)))
        )
    return made


@given(seeds, st.integers(2, 6), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_elimination_is_what_trying_everything_finds(seed: int, units: int, readers: int, block: int) -> None:
    made = problem(seed, units, readers, block)
    consumers = [
        Consumer(gram - RIDGE * np.eye(len(gram)), w, unit_of, weight, RIDGE)
        for gram, w, unit_of, weight in made
    ]
    order, damage = eliminate(consumers, units, steps=10**9)
    assert order.tolist() == oracles.elimination_order(made, units)
    expected = [oracles.total_damage(made, order[:k].tolist()) for k in range(units + 1)]
    np.testing.assert_allclose(damage, expected, rtol=1e-5, atol=1e-7)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_several_at_a_time_cost_about_as_much(seed: int) -> None:
    made = problem(seed, 12, 1, 1)
    order, damage = eliminate([Consumer(*each, 1e-9) for each in made], 12, steps=4)
    assert sorted(order.tolist()) == list(range(12))
    assert (np.diff(damage) >= 0).all()
    assert damage[0] == 0


def test_a_unit_that_nobody_reads_goes_first_and_costs_nothing() -> None:
    made = problem(5, 5, 1, 2)
    made[0][1][made[0][2] == 3] = 0.0
    order, damage = eliminate([Consumer(*each, 1e-9) for each in made], 5, steps=10**9)
    assert order[0] == 3
    assert damage[1] == pytest.approx(0, abs=1e-12)


def test_a_unit_that_another_can_stand_in_for_goes_first() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 4))
    x[:, 3] = 2 * x[:, 1]
    w = 5 * rng.normal(size=(4, 2))
    reader = Consumer(np.cov(x.T, bias=True), w, np.arange(4), 1.0, 1e-6)
    order, damage = eliminate([reader], 4, steps=10**9)
    assert order[0] in (1, 3)
    assert damage[1] < 1e-3


@pytest.mark.parametrize("short", [5e-4, 5e-2, 50.0])
def test_rounding_that_is_larger_than_a_ridge_does_not_stop_a_refit(short: float) -> None:
    """Sums in single precision may leave an input that others dwarf with a variance below zero."""
    rng = np.random.default_rng(0)
    parts = [moments(rng.standard_normal((40, 6)), rng.standard_normal((40, 3))) for _ in range(2)]
    old = rng.standard_normal((6, 3))
    for part in parts:
        scale = float(np.trace(part.xx)) / part.rows / 6
        part.x_sum[2] = 0
        part.xx[2], part.xx[:, 2] = 0, 0
        part.xx[2, 2] = -short * scale * part.rows
    weights, bias = refit(*parts, old)
    assert np.isfinite(weights).all()
    assert np.isfinite(bias).all()


def test_of_many_outputs_only_variances_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes outputs² bytes is left out, and all but the covariance of the outputs is as before."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 40)) + 2
    weights, bias = rng.standard_normal((6, 40)), rng.standard_normal(40)
    whole = Moments(6, 40)
    whole.update(x, y)
    monkeypatch.setattr("edgepress.compressor.numerics.least_squares.MOST_OUTPUTS", 39)
    thin = Moments(6, 40)
    for part in (slice(0, 20), slice(20, 50)):
        thin.update(x[part], y[part])
    assert thin.nbytes < whole.nbytes - 8 * 40 * 38
    np.testing.assert_allclose(thin.centred()[2], np.diag(whole.centred()[2]), rtol=1e-9)
    assert thin.variance() == pytest.approx(float(np.trace(whole.centred()[2])), rel=1e-9)
    assert thin.error(weights, bias) == pytest.approx(whole.error(weights, bias), rel=1e-9)
    inputs, outputs = np.array([1, 4]), np.array([0, 7, 39])
    for one, other in ((thin, whole), (thin.part(inputs, outputs), whole.part(inputs, outputs))):
        old = np.zeros((one.inputs, one.outputs))
        for ours, theirs in zip(refit(one, one + one, old), refit(other, other + other, old), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
