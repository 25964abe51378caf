"""Is a compressed model good enough: pure comparison of paired values, with an interval.

The rule (Z is the budget in percent): where higher is better, the score must be at least (100 − Z) % of the
original's; for losses at most 1 / (1 − Z/100) times the original's. The share kept is compressed / original
(original / compressed for losses), and the drop in percent is 100 minus that share: one scale for both.

Verdicts: by the point estimate (`compress`), or, where asked (`gate`), by the whole interval. Fewer than
`MIN_ROWS` rows are inconclusive either way. Between that and `rows_needed` (one row is worth more than the
budget) the point estimate still decides, and `Judgement.coarse` says so for the report.

Intervals at 95 %: for right/wrong rows Tango's score interval of a difference of paired proportions (Stat. in
Medicine 17, 1998, 891–908), which keeps its width where no row changed; otherwise the paired percentile
bootstrap.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from scipy.optimize import brentq

from edgepress.compressor.errors import MetricError, UsageError
from edgepress.compressor.protocols import Matrix

MIN_ROWS = 10
_Z95 = 1.959963984540054
_RESAMPLES = 2000
_SLACK = 1e-9
"""Relative; a score that meets the bound exactly must not fail by a rounding error."""


class Scale(Protocol):
    """What of a metric a comparison needs."""

    @property
    def name(self) -> str:
        """As the user writes it."""

    @property
    def whole(self) -> bool:
        """Whether it wants all rows at once, and gives one value for them."""

    @property
    def higher_is_better(self) -> bool:
        """False for losses."""

    @property
    def scale(self) -> float | None:
        """The score is `scale` times the mean of the values; None where it is not a mean."""

    def finish(self, values: Matrix) -> float:
        """The score of values [n], in the metric's unit."""


class Verdict(enum.StrEnum):
    """What can be said of the budget."""

    KEPT = "kept"
    BROKEN = "broken"
    INCONCLUSIVE = "inconclusive"
    UNVERIFIED = "unverified"

    @property
    def exit_code(self) -> int:
        """0 kept, 1 broken, 4 cannot tell."""
        return {Verdict.KEPT: 0, Verdict.BROKEN: 1}.get(self, 4)


@dataclass(frozen=True)
class Budget:
    """How much quality may be lost.

    Attributes:
        percent: of the original's score, 0 ≤ percent < 100.
    """

    percent: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.percent < 100:
            raise UsageError(f"a budget of {self.percent} %", "Give --budget a number from 0 to below 100.")

    def allowed(self, baseline: float, higher_is_better: bool = True) -> float:
        """The worst score that keeps the budget, in the metric's unit, for a positive baseline."""
        kept = 1 - self.percent / 100
        return baseline * kept if higher_is_better else baseline / kept

    def rows_needed(self) -> float:
        """Rows of a right/wrong metric from which on one row is worth no more than the budget."""
        return math.inf if self.percent == 0 else 100 / self.percent


@dataclass(frozen=True)
class Scores:
    """Values of the same rows under the original and the compressed model.

    Attributes:
        baseline_rows: [n].
        candidate_rows: [n].
    """

    baseline_rows: Matrix
    candidate_rows: Matrix


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on; None where nothing was measured.

    Attributes:
        verdict: kept, broken, inconclusive or unverified.
        budget_percent: Z.
        n: rows.
        baseline_score: in the metric's unit.
        compressed_score: in the metric's unit.
        allowed_score: the worst score that keeps the budget.
        drop: what was lost, in the metric's unit; positive is worse, for losses too.
        drop_percent: 100 minus the share kept, to be compared with the budget; None where that is infinite.
        drop_interval_95: of `drop`; None where rows are too few, the metric is whole, or a score infinite.
        coarse: one row is worth more than the whole budget.
        reason: why it cannot be told, or a word of caution; may be empty.
        others: output that the metric does not read → percent of its fidelity to the original that is kept.
    """

    verdict: Verdict
    budget_percent: float
    n: int = 0
    baseline_score: float | None = None
    compressed_score: float | None = None
    allowed_score: float | None = None
    drop: float | None = None
    drop_percent: float | None = None
    drop_interval_95: tuple[float, float] | None = None
    coarse: bool = False
    reason: str = ""
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The verdict's."""
        return self.verdict.exit_code


def unverified(budget: Budget, reason: str = "no data to judge by") -> Judgement:
    """The judgement where nothing was measured."""
    return Judgement(Verdict.UNVERIFIED, budget.percent, reason=reason)


def judge(
    budget: Budget,
    metric: Scale,
    scores: Scores,
    *,
    rows: int | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Judgement:
    """Compare a compressed model with its original on the same unseen rows.

    Args:
        budget: what may be lost.
        metric: how values make a score.
        scores: paired values.
        rows: rows behind the values of a `whole` metric; None: as many as values.
        strict: want the whole interval inside the budget (`gate`); without an interval that cannot be told.
        seed: of the bootstrap.

    Returns:
        The judgement; a compressed score that is not finite is broken.

    Raises:
        MetricError: where the values do not pair, there are none, or the original's score is zero,
            negative or not finite, so that no percentage of it means anything.
    """
    base, ours = (np.asarray(v, np.float64) for v in (scores.baseline_rows, scores.candidate_rows))
    if base.shape != ours.shape or base.ndim != 1 or not len(base):
        raise MetricError(f"metric {metric.name}: values {base.shape} and {ours.shape} do not pair")
    n = len(base) if rows is None else rows
    baseline, compressed = metric.finish(base), metric.finish(ours)
    _check_baseline(metric, baseline)
    sign = 1.0 if metric.higher_is_better else -1.0
    allowed = budget.allowed(baseline, metric.higher_is_better)
    inside = sign * (compressed - allowed) >= -_SLACK * abs(allowed)
    finite = math.isfinite(compressed)
    interval = (
        drop_interval(metric, base, ours, seed) if finite and not metric.whole and n >= MIN_ROWS else None
    )
    coarse = _right_or_wrong(metric, base, ours) and n < budget.rows_needed()
    verdict = Verdict.KEPT if inside else Verdict.BROKEN
    reason = (
        f"one of {n} rows is {100 / n:.2g} %, more than the budget of {budget.percent:g} %" if coarse else ""
    )
    if compressed == -sign * math.inf or math.isnan(compressed):
        verdict, reason = Verdict.BROKEN, "the compressed model gives NaN or infinity"
    elif n < MIN_ROWS:
        verdict, reason = Verdict.INCONCLUSIVE, f"{n} rows are too few to tell; {MIN_ROWS} are the least"
    elif strict:
        verdict = _by_interval(interval, sign * (baseline - allowed))
    kept = _share(compressed, baseline) if metric.higher_is_better else _share(baseline, compressed)
    drop = sign * (baseline - compressed) if finite else None
    percent = 100 * (1 - kept) if math.isfinite(kept) else None
    scored = (n, baseline, compressed, allowed, drop, percent, interval)
    return Judgement(verdict, budget.percent, *scored, coarse=coarse, reason=reason)


def hold(judgement: Judgement, others: Mapping[str, float]) -> Judgement:
    """Ask of outputs that the metric does not read what is asked of the score.

    Args:
        judgement: by the metric.
        others: output → percent of its fidelity to the original that is kept.

    Returns:
        The judgement with them; one that kept the budget is broken where one of them does not.
    """
    held = replace(judgement, others=dict(others))
    allowed = 100 - judgement.budget_percent
    lost = [name for name, kept in others.items() if not kept >= allowed * (1 - _SLACK)]
    if judgement.verdict is not Verdict.KEPT or not lost:
        return held
    worst = min(lost, key=lambda name: others[name])
    reason = f"output {worst!r} keeps {others[worst]:.4g} % of its fidelity, less than {allowed:g} %"
    return replace(held, verdict=Verdict.BROKEN, reason=reason)


def _share(part: float, of: float) -> float:
    """Ratio of two scores; infinite where the compressed model has no loss at all."""
    return part / of if of else math.inf


def _check_baseline(metric: Scale, baseline: float) -> None:
    if math.isfinite(baseline) and baseline > 0:
        return
    instead = {"top1": "agreement", "top5": "agreement", "psnr": "mse"}.get(
        metric.name.partition(":")[0], "fidelity"
    )
    raise MetricError(
        f"the original scores {baseline:g} by {metric.name}, so no percentage of it can be kept",
        f"Use --metric {instead}, or check that the labels belong to these samples.",
    )


def _by_interval(interval: tuple[float, float] | None, allowed_drop: float) -> Verdict:
    if interval is None:
        return Verdict.INCONCLUSIVE
    slack = _SLACK * max(abs(allowed_drop), 1e-300)
    if interval[1] <= allowed_drop + slack:
        return Verdict.KEPT
    return Verdict.BROKEN if interval[0] > allowed_drop + slack else Verdict.INCONCLUSIVE


def _right_or_wrong(metric: Scale, base: Matrix, ours: Matrix) -> bool:
    values = np.concatenate([base, ours])
    return metric.scale is not None and not metric.whole and bool(np.isin(values, (0.0, 1.0)).all())


def drop_interval(metric: Scale, base: Matrix, ours: Matrix, seed: int) -> tuple[float, float] | None:
    """95 % interval of the drop (positive is worse), in the metric's unit.

    Args:
        metric: how values make a score.
        base: [n] values of the original.
        ours: [n] values of the compressed model, same rows.
        seed: of the bootstrap.

    Returns:
        (low, high); None below two rows, or where a resampled score is not finite.
    """
    n = len(base)
    if n < 2:
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    if _right_or_wrong(metric, base, ours):
        lost, gained = int(((base == 1) & (ours == 0)).sum()), int(((base == 0) & (ours == 1)).sum())
        low, high = tango_interval(lost, gained, n)
        ends = sorted(sign * (metric.scale or 1.0) * end for end in (low, high))
        return ends[0], ends[1]
    rng = np.random.default_rng(seed)
    drops = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        rows = rng.integers(0, n, n)
        with np.errstate(invalid="ignore"):
            drops[number] = sign * (metric.finish(base[rows]) - metric.finish(ours[rows]))
    if not np.isfinite(drops).all():
        return None
    low, high = np.quantile(drops, (0.025, 0.975))
    return float(low), float(high)


def tango_interval(lost: int, gained: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Score interval of a difference of paired proportions.

    Args:
        lost: rows right before and wrong after.
        gained: rows wrong before and right after.
        n: all rows, at least lost + gained and at least 1.
        z: normal quantile; 1.96 for 95 %.

    Returns:
        (low, high) of the share of rows lost on balance, (lost − gained) / n, in [−1, 1].
    """
    estimate = (lost - gained) / n

    def score(delta: float) -> float:
        """Tango's statistic: the estimate's distance from `delta` in standard errors under `delta`."""
        b = -lost - gained + (2 * n - lost + gained) * delta
        c = -gained * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = lost - gained - n * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def end(bound: float, far: float, wanted: float) -> float:
        # At ±1 the variance is 0: step inside, where the statistic is finite and already beyond z.
        return (
            far
            if abs(score(bound)) <= z
            else float(brentq(lambda d: score(d) - wanted, bound, estimate, xtol=1e-12))
        )

    tiny = 1e-9
    low = -1.0 if estimate <= -1 + tiny else end(-1 + tiny, -1.0, z)
    high = 1.0 if estimate >= 1 - tiny else end(1 - tiny, 1.0, -z)
    return low, high
