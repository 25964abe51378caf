import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from edgepress.compressor.budget import (
    MIN_ROWS,
    Budget,
    Judgement,
    Scores,
    Verdict,
    hold,
    judge,
    tango_interval,
    unverified,
)
from edgepress.compressor.errors import MetricError, UsageError
from edgepress.compressor.protocols import Matrix


@dataclass(frozen=True)
class Mean:
    name: str = "top1"
    higher_is_better: bool = True
    scale: float | None = 100.0
    whole: bool = False

    def finish(self, values: Matrix) -> float:
        return (self.scale or 1.0) * float(np.mean(values))


@dataclass(frozen=True)
class Decibel(Mean):
    name: str = "psnr"
    scale: float | None = None

    def finish(self, values: Matrix) -> float:
        mean = float(np.mean(values))
        return -10 * math.log10(mean) if 0 < mean < math.inf else math.copysign(math.inf, 0.5 - mean)


LOSS = Mean("mse", higher_is_better=False, scale=1.0)


def right(count: int, n: int) -> Matrix:
    return (np.arange(n) < count).astype(float)


def compare(
    lost: int, n: int = 1000, base: int = 900, percent: float = 2.0, strict: bool = False
) -> Judgement:
    return judge(Budget(percent), Mean(), Scores(right(base, n), right(base - lost, n)), strict=strict)


def test_the_score_must_be_that_share_of_the_originals() -> None:
    kept, broken = compare(lost=18), compare(lost=19)
    assert (kept.verdict, kept.exit_code) == (Verdict.KEPT, 0)
    assert (broken.verdict, broken.exit_code) == (Verdict.BROKEN, 1)
    assert kept.baseline_score == 90
    assert kept.compressed_score == pytest.approx(88.2)
    assert kept.allowed_score == pytest.approx(88.2)
    assert kept.drop == pytest.approx(1.8)
    assert kept.drop_percent == pytest.approx(2.0)
    assert kept.n == 1000
    assert compare(lost=-5).drop_percent == pytest.approx(-100 * 5 / 900)


def test_losses_may_grow_to_the_inverse_share() -> None:
    base = np.full(50, 2.0)
    for factor, verdict in ((0.5, "kept"), (1 / 0.9, "kept"), (1.1112, "broken")):
        found = judge(Budget(10), LOSS, Scores(base, base * factor))
        assert found.verdict == verdict
        assert found.drop_percent == pytest.approx(100 * (1 - 1 / factor))
        assert found.drop == pytest.approx(2 * (factor - 1))
    none = judge(Budget(10), LOSS, Scores(base, base * 0))
    assert (none.verdict, none.drop_percent) == ("kept", None)


@settings(max_examples=80, deadline=None)
@given(
    base=st.integers(1, 60),
    ours=st.integers(0, 60),
    percent=st.integers(0, 99),
    higher=st.booleans(),
)
def test_the_rule_in_whole_numbers(base: int, ours: int, percent: int, higher: bool) -> None:
    metric = Mean("m", higher, 1.0)
    found = judge(Budget(percent), metric, Scores(np.full(60, float(base)), np.full(60, float(ours))))
    inside = 100 * ours >= (100 - percent) * base if higher else (100 - percent) * ours <= 100 * base
    assert found.verdict == ("kept" if inside else "broken")
    if found.drop_percent is not None:
        assert (found.drop_percent <= percent + 1e-6) == inside


def test_few_rows_cannot_tell() -> None:
    nine = compare(lost=0, n=MIN_ROWS - 1, base=9)
    assert (nine.verdict, nine.exit_code) == (Verdict.INCONCLUSIVE, 4)
    assert "9 rows" in nine.reason
    assert compare(lost=0, n=MIN_ROWS, base=9).verdict == Verdict.KEPT
    lost = compare(lost=1, n=21, base=14)
    assert (lost.verdict, lost.coarse) == (Verdict.BROKEN, True)
    assert "one of 21 rows is 4.8 %" in lost.reason
    assert not compare(lost=1, n=50, base=40).coarse


def test_the_gate_wants_the_whole_interval() -> None:
    assert compare(lost=18, strict=True).verdict == Verdict.INCONCLUSIVE
    assert compare(lost=4, strict=True).verdict == Verdict.KEPT
    assert compare(lost=60, strict=True).verdict == Verdict.BROKEN
    assert compare(lost=0, n=100, base=90, strict=True).verdict == Verdict.INCONCLUSIVE
    total = Mean("m:f", scale=1.0, whole=True)
    one = Scores(np.array([0.9]), np.array([0.9]))
    assert judge(Budget(), total, one, rows=500).verdict == Verdict.KEPT
    assert judge(Budget(), total, one, rows=500, strict=True).verdict == Verdict.INCONCLUSIVE
    assert judge(Budget(), total, one, rows=500).drop_interval_95 is None


def test_no_data_is_unverified() -> None:
    found = unverified(Budget(3))
    assert (found.verdict, found.exit_code, found.budget_percent, found.n) == ("unverified", 4, 3, 0)


@pytest.mark.parametrize(
    ("metric", "base", "hint"),
    [
        (Mean(), 0.0, "agreement"),
        (Mean("m:f", scale=1.0), -0.5, "fidelity"),
        (Decibel(), 2.0, "mse"),
        (LOSS, 0.0, "fidelity"),
        (LOSS, math.inf, "fidelity"),
    ],
)
def test_a_baseline_that_is_not_positive_is_refused(metric: Mean, base: float, hint: str) -> None:
    values = np.full(20, base)
    with pytest.raises(MetricError, match="the original scores") as caught:
        judge(Budget(), metric, Scores(values, values))
    assert f"--metric {hint}" in caught.value.hint


def test_values_that_do_not_pair_and_wrong_budgets_are_refused() -> None:
    for base, ours in (
        (np.ones(3), np.ones(4)),
        (np.ones(0), np.ones(0)),
        (np.ones((2, 2)), np.ones((2, 2))),
    ):
        with pytest.raises(MetricError, match="do not pair"):
            judge(Budget(), Mean(), Scores(base, ours))
    for percent in (-1, 100, math.nan, math.inf):
        with pytest.raises(UsageError, match="a budget of"):
            Budget(percent)
    assert Budget(0).rows_needed() == math.inf
    assert Budget(4).rows_needed() == 25


def test_a_model_that_gives_nan_is_broken_and_a_perfect_one_is_not() -> None:
    base = np.full(20, 0.01)
    for metric in (LOSS, Decibel()):
        found = judge(Budget(), metric, Scores(base, np.full(20, math.inf)))
        assert (found.verdict, found.drop, found.drop_interval_95) == ("broken", None, None)
        assert "NaN" in found.reason
        assert judge(Budget(), metric, Scores(base, base * 0)).verdict == "kept"


def slow_statistic(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's statistic with the nuisance cell found by maximising the likelihood numerically."""

    def unlikely(gain: float) -> float:
        cells = ((lost, gain + delta), (gained, gain), (n - lost - gained, 1 - 2 * gain - delta))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    gain = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (lost - gained - n * delta) / math.sqrt(n * (2 * gain + delta - delta**2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200))
def test_the_interval_ends_where_the_score_test_says(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    assume(n >= 5)
    low, high = tango_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    for end, wanted in ((low, 1.96), (high, -1.96)):
        if abs(end) < 1 - 1e-6:
            assert slow_statistic(lost, gained, n, end) == pytest.approx(wanted, abs=0.02)
    back = tango_interval(gained, lost, n)
    assert (-back[1], -back[0]) == pytest.approx((low, high), abs=1e-6)


def test_where_nothing_changed_the_interval_keeps_its_width() -> None:
    interval = compare(lost=0, n=50, base=40).drop_interval_95
    assert interval == pytest.approx((-100 * 3.8415 / 53.8415, 100 * 3.8415 / 53.8415), rel=1e-4)


def test_the_interval_of_means_covers_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        base = rng.normal(5, 1, 80)
        ours = base - rng.normal(0.3, 0.5, 80)
        interval = judge(Budget(), Mean("m:f", scale=1.0), Scores(base, ours)).drop_interval_95
        assert interval is not None
        covered += interval[0] <= 0.3 <= interval[1]
        assert 0.05 < interval[1] - interval[0] < 0.4
    assert covered >= 50
    again = [judge(Budget(), LOSS, Scores(base, ours), seed=s).drop_interval_95 for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    assert again[0] is not None
    assert again[0][1] < 0  # less loss is no drop


def test_an_output_that_the_metric_does_not_read_must_keep_as_much() -> None:
    kept = compare(lost=0)
    assert hold(kept, {}) == kept
    assert hold(kept, {"a": 98.0, "b": 99.9}).verdict is Verdict.KEPT
    broken = hold(kept, {"a": 97.9, "b": 99.0, "c": 80.123})
    assert (broken.verdict, broken.exit_code) == (Verdict.BROKEN, 1)
    assert "'c' keeps 80.12 %" in broken.reason
    assert broken.others["b"] == 99.0
    assert broken.drop_percent == kept.drop_percent == 0
    assert hold(kept, {"a": math.nan}).verdict is Verdict.BROKEN


def test_other_outputs_neither_mend_a_verdict_nor_make_one() -> None:
    lost = compare(lost=19)
    assert hold(lost, {"a": 100.0}).verdict is Verdict.BROKEN
    assert hold(lost, {"a": 1.0}).reason == lost.reason
    few = compare(lost=0, n=5, base=5)
    assert hold(few, {"a": 1.0}).verdict is Verdict.INCONCLUSIVE
