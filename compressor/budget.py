"""Is a compressed model good enough: pure comparison of paired values, with an interval.

The rule (Z is the budget in percent): where higher is better, the score must be at least (100 − Z) % of the
original's; for losses at most 1 / (1 − Z/100) times the original's. The share kept is compressed / original
(original / compressed for losses), and the drop in percent is 100 minus that share: one scale for both.

Verdicts: by the point estimate (`compress`), or, where asked (`gate`), by the whole interval of the drop. There a
failure also wants a loss that chance alone would show once in a hundred times: a budget near zero would else fail
models that lost nothing. Fewer than `MIN_ROWS` rows are inconclusive by the point estimate, and where there are only
means to go by. Between that and `rows_needed` (one row is worth more than the budget) the point estimate still
decides, and `Judgement.coarse` says so for the report. Intervals: see `paired`.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from edgepress.compressor import paired
from edgepress.compressor.errors import MetricError, UsageError
from edgepress.compressor.paired import Cells
from edgepress.compressor.protocols import Matrix

MIN_ROWS = 10
CERTAINTY = 0.99
"""Of a loss at all, without which no model fails the gate."""
POWER = 0.9
"""Probability that the rows asked for bring a verdict."""
_TWO_SIDED = 0.975
"""Of each end, for an interval of 95 %."""
_TAIL = 0.75
"""Of what may lie beyond an end, taken of the bootstrap: read at the end itself, of skewed losses exactly on the budget
5.5 to 6.2 % instead of 5 % were let through, on 200 and 1000 rows (`benchmarks/gate.py`)."""
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
        drop_percent_interval: of `drop_percent`, 95 %, or with the gate's confidence at each end; None where rows are
            too few, the metric is whole, or a score infinite.
        coarse: one row is worth more than the whole budget.
        reason: why it cannot be told, or a word of caution; may be empty.
        others: output that the metric does not read → percent of its fidelity to the original that is kept.
        rows_to_decide: inconclusive: how many rows would most likely bring a verdict if the drop is what was found;
            None where no number would, or it is unknown.
        rows_to_pass: and how many would pass a model that lost nothing.
    """

    verdict: Verdict
    budget_percent: float
    n: int = 0
    baseline_score: float | None = None
    compressed_score: float | None = None
    allowed_score: float | None = None
    drop: float | None = None
    drop_percent: float | None = None
    drop_percent_interval: tuple[float, float] | None = None
    coarse: bool = False
    reason: str = ""
    others: Mapping[str, float] = field(default_factory=dict)
    rows_to_decide: int | None = None
    rows_to_pass: int | None = None

    @property
    def exit_code(self) -> int:
        """The verdict's."""
        return self.verdict.exit_code


def unverified(budget: Budget, reason: str = "there were no samples") -> Judgement:
    """The judgement where nothing was measured."""
    return Judgement(Verdict.UNVERIFIED, budget.percent, reason=reason)


def unchanged(budget: Budget, metric: Scale, values: Matrix, rows: int) -> Judgement:
    """The judgement of a model that gives the very outputs of the original: no number of rows is too few for that.

    Args:
        budget: what may be lost.
        metric: how values make a score.
        values: of the rows; [n].
        rows: behind the values.
    """
    score = metric.finish(np.asarray(values, np.float64))
    allowed = budget.allowed(score, metric.higher_is_better)
    reason = "the outputs are the same, bit by bit, on every row"
    return Judgement(
        Verdict.KEPT, budget.percent, rows, score, score, allowed, 0.0, 0.0, (0.0, 0.0), reason=reason
    )


def judge(
    budget: Budget,
    metric: Scale,
    scores: Scores,
    *,
    rows: int | None = None,
    strict: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Judgement:
    """Compare a compressed model with its original on the same unseen rows.

    Args:
        budget: what may be lost.
        metric: how values make a score.
        scores: paired values.
        rows: rows behind the values of a `whole` metric; None: as many as values.
        strict: want the whole interval inside the budget (`gate`); without an interval that cannot be told.
        confidence: with which each end of the interval holds where `strict`.
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
    level = confidence if strict else _TWO_SIDED
    baseline, compressed = metric.finish(base), metric.finish(ours)
    _check_baseline(metric, baseline)
    sign = 1.0 if metric.higher_is_better else -1.0
    allowed = budget.allowed(baseline, metric.higher_is_better)
    inside = sign * (compressed - allowed) >= -_SLACK * abs(allowed)
    finite = math.isfinite(compressed)
    told = finite and not metric.whole and n >= (2 if strict else MIN_ROWS)
    evidence = _evidence(metric, base, ours, level, seed) if told else None
    coarse = _right_or_wrong(metric, base, ours) and n < budget.rows_needed()
    verdict = Verdict.KEPT if inside else Verdict.BROKEN
    reason = (
        f"one of {n} rows is {100 / n:.2g} %, more than the budget of {budget.percent:g} %" if coarse else ""
    )
    to_decide: tuple[int | None, int | None] = (None, None)
    if compressed == -sign * math.inf or math.isnan(compressed):
        verdict, reason = Verdict.BROKEN, "the compressed model gives NaN or infinity"
    elif strict:
        verdict, reason, to_decide = _strictly(budget, metric, evidence, n, confidence)
    elif n < MIN_ROWS:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"{n} {'row is' if n == 1 else 'rows are'} too few to tell; {MIN_ROWS} are the least",
        )
    kept = _share(compressed, baseline) if metric.higher_is_better else _share(baseline, compressed)
    drop = sign * (baseline - compressed) if finite else None
    percent = 100 * (1 - kept) if math.isfinite(kept) else None
    interval = None if evidence is None else evidence.drop_percent
    scored = (n, baseline, compressed, allowed, drop, percent, interval)
    judgement = Judgement(verdict, budget.percent, *scored, coarse=coarse, reason=reason)
    return replace(judgement, rows_to_decide=to_decide[0], rows_to_pass=to_decide[1])


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


@dataclass(frozen=True)
class _Evidence:
    """What rows say of the share kept.

    Attributes:
        low: lower end of the share's interval; high likewise.
        share: found.
        lost: whether chance alone would hardly have shown this loss.
        cells: of right/wrong rows.
    """

    low: float
    share: float
    high: float
    lost: bool
    cells: Cells | None = None

    @property
    def drop_percent(self) -> tuple[float, float] | None:
        """Interval of the drop; None where one end has no number."""
        ends = (100 * (1 - self.high), 100 * (1 - self.low))
        return ends if all(map(math.isfinite, ends)) else None


def _evidence(metric: Scale, base: Matrix, ours: Matrix, confidence: float, seed: int) -> _Evidence | None:
    """By cells where rows are right or wrong, else by resampling; None where a resampled score is not finite."""
    if _right_or_wrong(metric, base, ours):
        # Of losses the ones are wrong, and base / ours is kept.
        cells = Cells.of(base, ours) if metric.higher_is_better else Cells.of(ours, base)
        low, high = paired.share_interval(cells, confidence)
        return _Evidence(low, cells.share, high, paired.mcnemar(cells) <= 1 - CERTAINTY, cells)
    if len(base) < MIN_ROWS:
        return None
    found = paired.bootstrap(base, ours, lambda one, two: _shares(metric, one, two), seed)
    if found is None:
        return None
    beyond = _TAIL * (1 - confidence)
    low, high = found.end(beyond), found.end(1 - beyond)
    return _Evidence(low, found.share, high, found.end(CERTAINTY) < 1)


def _shares(metric: Scale, base: Matrix, ours: Matrix) -> Matrix:
    """Shares kept of means of values, [k] both."""

    def scored(means: Matrix) -> Matrix:
        if metric.scale is not None:
            return metric.scale * means
        return np.array([metric.finish(means[at : at + 1]) for at in range(len(means))])

    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = scored(base), scored(ours)
        return two / one if metric.higher_is_better else one / two


def _strictly(
    budget: Budget, metric: Scale, evidence: _Evidence | None, n: int, confidence: float
) -> tuple[Verdict, str, tuple[int | None, int | None]]:
    """Verdict by the whole interval, why it cannot be told, and how many rows would tell."""
    allowed = 1 - budget.percent / 100
    if evidence is None:
        few = f"{n} rows are too few for an interval of {metric.name}; {MIN_ROWS} are the least"
        whole = f"{metric.name} gives one value for all rows, which has no interval"
        return Verdict.INCONCLUSIVE, whole if metric.whole else few, (None, None)
    if evidence.low >= allowed - _SLACK:
        return Verdict.KEPT, "", (None, None)
    if evidence.high < allowed - _SLACK and evidence.lost:
        return Verdict.BROKEN, "", (None, None)
    if evidence.cells is not None:
        cells = evidence.cells
        found = tuple(
            paired.rows_to_decide(each, allowed, confidence, CERTAINTY, POWER)
            for each in (cells, cells.without_drop())
        )
        return Verdict.INCONCLUSIVE, "", (found[0], found[1])
    share, low, high = evidence.share, evidence.low, evidence.high
    toward = (share - low, share - allowed) if share >= allowed else (high - share, allowed - share)
    at_end = 1 - _TAIL * (1 - confidence)
    wide = paired.rows_for_distance(n, share - low, 1 - allowed, at_end, POWER)
    return Verdict.INCONCLUSIVE, "", (paired.rows_for_distance(n, *toward, at_end, POWER), wide)


def _right_or_wrong(metric: Scale, base: Matrix, ours: Matrix) -> bool:
    values = np.concatenate([base, ours])
    return metric.scale is not None and not metric.whole and bool(np.isin(values, (0.0, 1.0)).all())
