"""Does a candidate keep what its baseline has: rows of both, streamed, and a criterion for each thing that is asked.

A candidate that cannot be run, gives other outputs, or NaN, is broken, and the reason says where. What goes wrong with
the baseline or the samples is an error of the user's.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t as student

from edgepress.compressor.budget import Budget, Judgement, Scores, Verdict, judge, unchanged
from edgepress.compressor.data import Batch
from edgepress.compressor.errors import DataError, DeviceError
from edgepress.compressor.metrics import resolve_metric, unread
from edgepress.compressor.protocols import Array, Matrix, Runner
from edgepress.compressor.report.gate import Criterion, Kind, Said, Session
from edgepress.compressor.scoring import BuiltIn, Metric, Outputs, cut, joined, truth
from edgepress.compressor.together import ran

SAME = 0.01
"""Latencies that may differ by less than this share are not called different: it is the timing's own precision."""

SESSIONS = 4
"""Where the first one does not pass."""


class BrokenCandidateError(Exception):
    """The candidate cannot be what is asked for; the message says why."""


@dataclass
class Pairs:
    """Rows of both models, as metrics value them.

    Attributes:
        metric: that the budget is about.
        others: outputs that it does not read, held to fidelity.
        rows: so far.
        identical: whether all outputs were the same so far, bit by bit.
    """

    metric: Metric
    others: tuple[BuiltIn, ...]
    rows: int = 0
    identical: bool = True
    _base: list[list[Matrix]] = field(default_factory=list)
    _ours: list[list[Matrix]] = field(default_factory=list)
    _kept: list[tuple[Outputs, Outputs, Array | None]] = field(default_factory=list)

    def add(self, batch: Batch, base: Outputs, ours: Outputs) -> None:
        """Value the rows of a batch, outputs without padding."""
        metrics: tuple[Metric, ...] = (self.metric, *self.others)
        self._base = self._base or [[] for _ in metrics]
        self._ours = self._ours or [[] for _ in metrics]
        self.rows += len(batch.rows)
        self.identical = self.identical and _same(base, ours)
        for metric, before, after in zip(metrics, self._base, self._ours, strict=True):
            wanted = truth(metric, batch)
            if metric.whole:
                self._kept.append((base, ours, wanted))
                continue
            before.append(metric.per_row(base, wanted, base))
            after.append(metric.per_row(ours, wanted, base))

    def scores(self) -> list[Scores]:
        """Of the metric, then of the other outputs."""
        if self._kept:
            labels = [each for _, _, each in self._kept if each is not None]
            together = np.concatenate(labels) if labels else None
            for values, outputs in (
                (self._base, [base for base, _, _ in self._kept]),
                (self._ours, [ours for _, ours, _ in self._kept]),
            ):
                values[0].append(self.metric.per_row(joined(outputs), together, None))
        return [
            Scores(np.concatenate(base), np.concatenate(ours))
            for base, ours in zip(self._base, self._ours, strict=True)
        ]


def run_both(
    baseline: Runner,
    candidate: Runner,
    batches: Iterable[Batch],
    metric: str | None,
    output: str | None,
    tell: Callable[[int], None] = lambda rows: None,
    free: bool = False,
) -> Pairs:
    """Both models on all rows, a batch at a time.

    Args:
        baseline: the model that is known to be good.
        candidate: raises `DeviceError` where it fails.
        batches: of the test rows.
        metric: what the user asked for; None: by what there is.
        output: that the metric reads; None: the first.
        tell: told how many rows are done.
        free: what comes out of a row may be of another size than the baseline's: boxes of a picture.

    Raises:
        BrokenCandidateError: the candidate fails, gives other outputs, or NaN.
        DataError: the baseline does not run on the samples, or there are none.
        MetricError: the metric does not fit.
    """
    pairs: Pairs | None = None
    for batch in batches:
        whole = ran(baseline, batch.feeds, "baseline")
        if pairs is None:
            settled = resolve_metric(metric, whole, batch, output)
            pairs = Pairs(settled, unread(settled, whole))
        try:
            given = candidate(batch.feeds)
        except DeviceError as error:
            raise BrokenCandidateError(f"it does not run: {error}") from error
        base, ours = cut(whole, batch), cut(given, batch)
        _check(base, ours, batch, free)
        pairs.add(batch, base, {name: ours[name] for name in base})
        tell(pairs.rows)
    if pairs is None:
        raise DataError("There are no rows to judge by.", "Give samples with --test.")
    return pairs


def _check(base: Outputs, ours: Outputs, batch: Batch, free: bool) -> None:
    """Refuse outputs that cannot stand for the baseline's."""
    missing = [name for name in base if name not in ours]
    if missing:
        have = ", ".join(repr(name) for name in ours) or "none"
        raise BrokenCandidateError(f"it has no output {missing[0]!r}; its outputs are {have}")
    for name, expected in base.items():
        got = np.asarray(ours[name])
        alike = got.shape == np.shape(expected)
        if not alike and not (free and got.shape[:1] == np.shape(expected)[:1]):
            raise BrokenCandidateError(
                f"output {name!r} has shape {list(got.shape)}, the baseline's {list(np.shape(expected))}"
            )
        if got.dtype.kind != "f":
            continue
        bad = np.isnan(got)
        if alike and expected.dtype.kind == "f":
            bad &= ~np.isnan(expected)
        if bad.any():
            row = int(np.argwhere(bad)[0][0]) if bad.ndim else 0
            at = batch.rows[row] if row < len(batch.rows) else row
            raise BrokenCandidateError(f"output {name!r} is NaN on row {at}, where the baseline's is not")


def _same(base: Outputs, ours: Outputs) -> bool:
    return all(
        np.asarray(ours[name]).dtype == array.dtype and np.asarray(ours[name]).tobytes() == array.tobytes()
        for name, array in base.items()
    )


def quality(
    pairs: Pairs, found: Sequence[Scores], budget: Budget, confidence: float, seed: int = 0
) -> list[Criterion]:
    """The metric within its budget; each output that it does not read with as much of its fidelity.

    Args:
        pairs: all rows.
        found: their scores.
        budget: what may be lost.
        confidence: of each end of the intervals.
        seed: of the bootstrap.

    Raises:
        MetricError: the baseline's score is none of which a percentage means anything.
    """
    metric = pairs.metric
    judged = []
    for each, scores in zip((metric, *pairs.others), found, strict=True):
        if pairs.identical:
            judgement = unchanged(budget, each, scores.baseline_rows, pairs.rows)
        else:
            judgement = judge(
                budget, each, scores, rows=pairs.rows, strict=True, confidence=confidence, seed=seed
            )
        judged.append(judgement)
    first = _of_quality(metric.name, "quality", metric.unit, judged[0])
    others = [
        _of_quality(f"output {each.output}", "output", each.unit, judgement)
        for each, judgement in zip(pairs.others, judged[1:], strict=True)
    ]
    return [first, *others]


def _of_quality(name: str, kind: Kind, unit: str, judgement: Judgement) -> Criterion:
    said: dict[Verdict, Said] = {Verdict.KEPT: "kept", Verdict.BROKEN: "broken"}
    return Criterion(
        name=name,
        kind=kind,
        verdict=said.get(judgement.verdict, "inconclusive"),
        unit=unit,
        baseline=judgement.baseline_score,
        candidate=judgement.compressed_score,
        found=judgement.drop_percent,
        interval=judgement.drop_percent_interval,
        limit=judgement.budget_percent,
        limit_unit="%",
        rows=judgement.n,
        rows_to_decide=judgement.rows_to_decide,
        rows_to_pass=judgement.rows_to_pass,
        reason=judgement.reason,
    )


def drift(
    metric: Metric, before: Matrix, now: Matrix, same: bool, budget: Budget, confidence: float
) -> Criterion:
    """The candidate against the last one that was accepted, on the same rows.

    Args:
        metric: of right and wrong.
        before: rows of the last accepted, one of them right at least; [n].
        now: rows of the candidate; [n].
        same: whether they are the same file.
        budget: what may be lost since.
        confidence: of each end of the interval.
    """
    if same:
        judgement = replace(
            unchanged(budget, metric, now, len(now)), reason="the same file was accepted before"
        )
    else:
        judgement = judge(budget, metric, Scores(before, now), strict=True, confidence=confidence)
    return _of_quality("drift", "drift", metric.unit, judgement)


def broken_candidate(reason: str, budget: Budget, metric: str | None) -> Criterion:
    """The criterion of quality where the candidate gave nothing to score."""
    return Criterion(
        name=metric or "quality", kind="quality", verdict="broken", unit="", baseline=None, candidate=None,
        found=None, interval=None, limit=budget.percent, limit_unit="%", reason=f"the candidate is broken: {reason}",
    )  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """The most that is allowed.

    Attributes:
        value: bytes, or times the baseline's.
        relative: which of the two.
    """

    value: float
    relative: bool


def limited(
    kind: Kind, limit: Limit, baseline: Sequence[float], candidate: Sequence[float], reason: str = ""
) -> Criterion:
    """Size or memory against its limit.

    Args:
        kind: `size` or `memory`.
        limit: what is allowed.
        baseline: bytes, measured once or more often; empty where it could not be.
        candidate: likewise.
        reason: why it could not be measured.

    Returns:
        Kept where every measurement keeps it, broken where none does.
    """
    ratios = limit.relative
    below = list(baseline) if ratios else [1.0]
    if not candidate or (ratios and (not baseline or min(baseline) <= 0)):
        return Criterion(
            name=kind, kind=kind, verdict="inconclusive", unit="bytes", baseline=None, candidate=None, found=None,
            interval=None, limit=limit.value, limit_unit="×" if ratios else "bytes",
            reason=reason or "the baseline's is nil, so there is no ratio",
        )  # fmt: skip
    low, high = min(candidate) / max(below), max(candidate) / min(below)
    verdict: Said = "kept" if high <= limit.value else "broken" if low > limit.value else "inconclusive"
    return Criterion(
        name=kind,
        kind=kind,
        verdict=verdict,
        unit="bytes",
        baseline=float(np.median(baseline)) if len(baseline) else None,
        candidate=float(np.median(candidate)),
        found=float(np.median(candidate)) / float(np.median(below)),
        interval=None if low == high else (low, high),
        limit=limit.value,
        limit_unit="×" if ratios else "bytes",
        reason="measurements lie on both sides of the limit" if verdict == "inconclusive" else "",
    )


def ratio_over(sessions: Sequence[Session], confidence: float) -> tuple[float, float, float]:
    """The ratio of latencies over all sessions: found, low, high.

    A model that is loaded again lies elsewhere in memory and may be a few percent faster or slower for all of a
    session, so sessions are what is repeated (Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, 2013):
    Student's interval of the mean logarithm of their ratios; of a single one its own.
    """
    if len(sessions) == 1:
        return (sessions[0].ratio, *sessions[0].ratio_interval)
    logs = np.log([session.ratio for session in sessions])
    reach = float(student.ppf(confidence, len(logs) - 1)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    middle = float(logs.mean())
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def latency_verdict(sessions: Sequence[Session], limit: float, confidence: float) -> Said:
    """By the whole interval, where `SAME` beyond the limit is still on it; a failure wants all sessions to agree."""
    _, low, high = ratio_over(sessions, confidence)
    bound = limit * (1 + SAME)
    if high <= bound:
        return "kept"
    agreed = all(session.ratio_interval[0] > bound for session in sessions)
    return "broken" if low > bound and agreed else "inconclusive"


def judge_latency(
    time: Callable[[int], Session], limit: float, confidence: float
) -> tuple[Criterion, tuple[Session, ...]]:
    """One session, and where that does not pass, some more before anything is said.

    Args:
        time: the first, short session (0), and the longer ones of the second run (1 …).
        limit: the most that candidate / baseline may be.
        confidence: of each end of the interval.

    Raises:
        DeviceError: from timing.
    """
    sessions = [time(0)]
    if latency_verdict(sessions, limit, confidence) != "kept":
        sessions += [time(turn) for turn in range(1, SESSIONS)]
    found, low, high = ratio_over(sessions, confidence)
    verdict = latency_verdict(sessions, limit, confidence)
    many = f"{len(sessions)} sessions" if len(sessions) > 1 else "one session"
    base, ours = (
        float(np.median(np.concatenate(each)))
        for each in ([s.baseline_ns for s in sessions], [s.candidate_ns for s in sessions])
    )
    criterion = Criterion(
        name="latency", kind="latency", verdict=verdict, unit="ns", baseline=base, candidate=ours, found=found,
        interval=(low, high), limit=limit, limit_unit="×",
        reason=f"too noisy to tell, after {many}" if verdict == "inconclusive" else "",
    )  # fmt: skip
    return criterion, tuple(sessions)


def untimed(limit: float, reason: str) -> Criterion:
    """The criterion of latency where there is no time."""
    return Criterion(
        name="latency", kind="latency", verdict="inconclusive", unit="ns", baseline=None, candidate=None, found=None,
        interval=None, limit=limit, limit_unit="×", reason=reason,
    )  # fmt: skip
