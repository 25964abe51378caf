"""Intervals and tests for two models on the same rows, against slow or foreign ways to them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from edgepress.compressor.paired import (
    CONTINUITY,
    Cells,
    bootstrap,
    mcnemar,
    rows_for_distance,
    rows_to_decide,
    score_statistic,
    share_interval,
)
from edgepress.compressor.protocols import Matrix

counts = st.integers(0, 60)


def slow_statistic(cells: Cells, share: float) -> float:
    """The cells' likelihood under p₂ = ρ p₁, maximised numerically; the contrast over its standard deviation there."""
    a, b, c = cells.both, cells.lost, cells.gained
    total = a + b + c

    def probabilities(gain: float) -> tuple[float, float, float]:
        lose = 1 - share + share * gain
        return 1 - lose - gain, lose, gain

    def unlikely(gain: float) -> float:
        return -sum(
            count * math.log(max(p, 1e-300))
            for count, p in zip((a, b, c), probabilities(gain), strict=True)
            if count
        )

    low, high = max(0.0, (share - 1) / share), share / (1 + share)
    gain = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-14}).x
    both, lose, gain = probabilities(gain)
    variance = total * (both * (1 - share) ** 2 + lose * share**2 + gain)
    return ((a + c) - share * (a + b)) / math.sqrt(variance)


@settings(max_examples=100, deadline=None)
@given(counts, counts, counts, st.floats(0.3, 3.0))
def test_the_statistic_rests_on_the_likeliest_cells(both: int, lost: int, gained: int, share: float) -> None:
    assume(both + lost + gained >= 5)
    assume(both + lost and both + gained)
    cells = Cells(both, lost, gained, 10)
    assert score_statistic(cells, share) == pytest.approx(slow_statistic(cells, share), abs=2e-3)


@settings(max_examples=100, deadline=None)
@given(counts, counts, counts, counts, st.floats(0.6, 0.99))
def test_the_interval_ends_where_the_test_refuses(
    both: int, lost: int, gained: int, neither: int, confidence: float
) -> None:
    assume(both + lost)
    cells = Cells(both, lost, gained, neither)
    low, high = share_interval(cells, confidence)
    assert 0 <= low <= cells.share <= high
    z = scipy.stats.norm.ppf(confidence)
    if 0 < low < cells.share * (1 - 1e-9):
        assert score_statistic(cells, low, CONTINUITY) == pytest.approx(z, abs=1e-6)
        assert score_statistic(cells, low * 0.9, CONTINUITY) > z
    if cells.share * (1 + 1e-9) < high < math.inf:
        assert score_statistic(cells, high, CONTINUITY) == pytest.approx(-z, abs=1e-6)
        assert score_statistic(cells, high * 1.1, CONTINUITY) < -z


def test_where_nothing_changed_the_interval_keeps_its_width() -> None:
    low, high = share_interval(Cells(40, 0, 0, 10), 0.95)
    assert 0.9 < low < 0.95
    assert 1 < high < 1.1
    wider, _ = share_interval(Cells(400, 0, 0, 100), 0.95)
    assert low < wider < 1


def test_cells_are_counted() -> None:
    first, second = np.array([1.0, 1, 0, 0, 1]), np.array([1.0, 0, 1, 0, 1])
    cells = Cells.of(first, second)
    assert cells == Cells(2, 1, 1, 1)
    assert (cells.rows, cells.share) == (5, 1)
    assert Cells(90, 10, 0, 0).without_drop() == Cells(95, 5, 5, -5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_counts_all_ways_to_lose_as_many(lost: int, gained: int) -> None:
    n = lost + gained
    ways = sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n
    assert mcnemar(Cells(5, lost, gained, 5)) == pytest.approx(ways)


SHARES: list[Callable[[Matrix, Matrix], Matrix]] = [
    lambda one, two: two / one,
    lambda one, two: one / two,
    lambda one, two: np.log10(10 + two) / np.log10(10 + one),
]


@pytest.mark.parametrize("share", SHARES)
def test_the_bootstrap_is_that_of_scipy(share: Callable[[Matrix, Matrix], Matrix]) -> None:
    """Few and skewed rows: without bias and acceleration, or with a sign turned, ends lie elsewhere by a tenth."""
    rng = np.random.default_rng(2)
    first = rng.lognormal(0, 1.5, 30)
    second = 2 + rng.normal(0, 0.1, 30)
    found = bootstrap(first, second, share, seed=1)
    assert found is not None
    assert abs(found.acceleration) > 0.05
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda one, two, axis: share(one.mean(axis), two.mean(axis)),
        paired=True, vectorized=True, n_resamples=4000, confidence_level=0.9, method="BCa",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert (found.end(0.05), found.end(0.95)) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_the_bootstrap_of_what_has_no_share_is_none() -> None:
    values = np.array([1.0, 0.0, 1.0])
    assert bootstrap(values, values * 0, lambda one, two: one / np.where(two == 0, np.nan, two), 0) is None
    assert bootstrap(values[:1], values[:1], lambda one, two: two / one, 0) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 99), st.integers(0, 8), st.integers(0, 8), st.sampled_from([0.9, 0.98, 0.99]))
def test_the_rows_asked_for_decide_and_fewer_do_not(
    both: int, lost: int, gained: int, allowed: float
) -> None:
    cells = Cells(both, lost, gained, 10)
    rows = rows_to_decide(cells, allowed, 0.95, 0.99, 0.9)
    if rows is None:
        assert cells.share == pytest.approx(allowed, abs=3e-4)
        return
    many = cells.scaled(rows)
    low, high = share_interval(many, 0.95)
    assert low >= allowed or high < allowed
    few = cells.scaled(rows / 6)
    low, high = share_interval(few, 0.95)
    whole = Cells(*(round(each) for each in (few.both, few.lost, few.gained, few.neither)))
    assert low < allowed < high or mcnemar(whole) > 0.005


def test_the_rows_asked_for_decide_nine_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    cells = Cells(860, 40, 10, 90)
    rows = rows_to_decide(cells, 0.98, 0.95, 0.99, 0.9)
    assert rows is not None
    shares = np.array([cells.both, cells.lost, cells.gained, cells.neither]) / cells.rows
    decided = 0
    for both, lost, gained, neither in rng.multinomial(rows, shares, 300):
        decided += score_statistic(Cells(both, lost, gained, neither), 0.98, CONTINUITY) <= -1.645
    assert 0.85 < decided / 300 < 0.97


def test_means_need_rows_by_the_square_of_the_distance() -> None:
    assert rows_for_distance(100, 1.0, 1.0, 0.95, 0.5) == 100
    assert rows_for_distance(100, 1.0, 0.5, 0.95, 0.5) == 400
    assert rows_for_distance(100, 1.0, 0.0, 0.95, 0.9) is None
    assert rows_for_distance(100, 1.0, 1e-9, 0.95, 0.9) is None
