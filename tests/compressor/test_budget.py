import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.budget import (
    MIN_ROWS,
    Budget,
    Judgement,
    Scores,
    Verdict,
    hold,
    judge,
    unchanged,
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
    assert judge(Budget(), total, one, rows=500).drop_percent_interval is None


def test_the_gate_says_what_rows_it_wants() -> None:
    few = compare(lost=2, n=100, base=90, strict=True)
    assert few.rows_to_decide is not None
    assert few.rows_to_pass is not None
    more = compare(
        lost=2 * few.rows_to_decide // 100,
        n=few.rows_to_decide,
        base=9 * few.rows_to_decide // 10,
        strict=True,
    )
    assert (more.verdict, more.rows_to_decide) == (Verdict.BROKEN, None)
    at = compare(lost=2, n=100, base=100, strict=True)
    assert (at.verdict, at.rows_to_decide) == (Verdict.INCONCLUSIVE, None)
    values = np.random.default_rng(0).normal(5, 1, 40)
    mean = Mean("m:f", scale=1.0)
    open_ = judge(
        Budget(2), mean, Scores(values, values + np.random.default_rng(1).normal(0, 1, 40)), strict=True
    )
    assert open_.verdict is Verdict.INCONCLUSIVE
    assert open_.rows_to_decide is not None
    assert open_.rows_to_decide > 40


def test_no_failure_without_a_loss_that_chance_does_not_explain() -> None:
    """With no budget at all a model that loses as often as it gains would fail by the interval one time in twenty."""
    base = right(50, 100)
    ours = base.copy()
    ours[:8], ours[60:62] = 0, 1
    by_chance = judge(Budget(0), Mean(), Scores(base, ours), strict=True)
    assert by_chance.drop_percent_interval is not None
    assert by_chance.drop_percent_interval[0] > 0
    assert by_chance.verdict is Verdict.INCONCLUSIVE
    ours[:20] = 0
    assert judge(Budget(0), Mean(), Scores(base, ours), strict=True).verdict is Verdict.BROKEN


def test_losses_of_right_and_wrong_have_intervals_too() -> None:
    wrong = Mean("m:f", higher_is_better=False, scale=1.0)
    base, worse = right(100, 1000), right(200, 1000)
    for ours, verdict in ((base, "kept"), (worse, "broken"), (base * 0, "kept")):
        assert judge(Budget(10), wrong, Scores(base, ours), strict=True).verdict == verdict or ours is base
    found = judge(Budget(10), wrong, Scores(base, worse), strict=True)
    assert found.drop_percent_interval is not None
    assert found.drop_percent == pytest.approx(50)
    assert found.drop_percent_interval[0] < 50 < found.drop_percent_interval[1]


def test_the_same_outputs_are_kept_whatever_the_rows() -> None:
    found = unchanged(Budget(0), Mean(), np.zeros(1), 1)
    assert (found.verdict, found.drop_percent, found.drop_percent_interval, found.n) == ("kept", 0, (0, 0), 1)


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
        assert (found.verdict, found.drop, found.drop_percent_interval) == ("broken", None, None)
        assert "NaN" in found.reason
        assert judge(Budget(), metric, Scores(base, base * 0)).verdict == "kept"


def test_the_interval_of_means_covers_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        base = rng.normal(5, 1, 80)
        ours = base - rng.normal(0.3, 0.5, 80)
        interval = judge(Budget(), Mean("m:f", scale=1.0), Scores(base, ours)).drop_percent_interval
        assert interval is not None
        covered += interval[0] <= 6 <= interval[1]
        assert 1 < interval[1] - interval[0] < 8
    assert covered >= 50
    again = [judge(Budget(), LOSS, Scores(base, ours), seed=s).drop_percent_interval for s in (1, 1, 2)]
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
