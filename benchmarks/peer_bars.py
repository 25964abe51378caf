"""What of the peers' results counts, and whether ours meet the bars: pure functions of measured figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FP32 = "fp32"
OURS = "ours"
OURS_FOR_SIZE = "ours for size"

FEW_ROWS = 150
"""With fewer unseen rows a net counts in no mean, and agreement with the original stands for the score."""
AGREEMENT = 95.0
"""% of calibration and unseen rows together that such nets must answer as the original does."""
WHOLE_ROWS = 200
"""With fewer unseen rows the budget is rounded to whole rows: 2 % of 149 right ones are three."""

LATENCY_MEAN, LATENCY_EACH = 0.60, 1.03
SIZE_MEAN, SIZE_EACH = 0.35, 1.0
SMALLER_MEAN = 13.0
SLOWER = 1.02
"""Slower than fp32 is a median above that many times fp32's, with the ratio's whole 95 % interval above 1."""


@dataclass
class Result:
    """One file for one model; None where not measured.

    Attributes:
        size_bytes: of the file.
        score: on unseen rows.
        kept_percent: of the original's score.
        rows_lost: right rows on balance, where rows are right or wrong.
        agreement_percent: same first choice as the original, over calibration and unseen rows.
        latency_ns: median.
        ci95_ns: its 95 % interval.
        ratio_ci95: 95 % interval of its median over fp32's.
        too_noisy: the median is not known to a hundredth.
        seconds: that the tool took.
        others_kept_percent: fidelity of the worst output that the metric does not read.
        failure: why there is no result; empty where there is one.
    """

    size_bytes: int | None = None
    score: float | None = None
    kept_percent: float | None = None
    rows_lost: int | None = None
    agreement_percent: float | None = None
    latency_ns: float | None = None
    ci95_ns: tuple[float, float] | None = None
    ratio_ci95: tuple[float, float] | None = None
    too_noisy: bool | None = None
    seconds: float | None = None
    others_kept_percent: float | None = None
    failure: str = ""


@dataclass
class Entry:
    """All results for one model.

    Attributes:
        model: its name.
        metric: of the score.
        n_test: unseen rows.
        results: by tool; `fp32` is the original.
        misses: bars of this model that are missed; see `hold`.
    """

    model: str
    metric: str
    n_test: int
    results: dict[str, Result]
    misses: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bar:
    """A mean over the models beside its bound.

    Attributes:
        name: what it is of.
        value: the geometric mean.
        bound: what it must reach.
        at_most: whether the bound is one from above.
        models: how many the mean is over.
    """

    name: str
    value: float
    bound: float
    at_most: bool
    models: int

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def rows_allowed(right: float, budget: float) -> int:
    """Rows that may be lost where the budget is rounded to whole ones."""
    return round(budget / 100 * right)


def keeps_others(result: Result, budget: float) -> bool:
    """Whether outputs that the score does not look at are kept, too: a detector is no use without its boxes."""
    kept = result.others_kept_percent
    return kept is None or kept >= 100 - budget - 1e-9


def within(entry: Entry, result: Result, budget: float) -> bool:
    """Whether a result keeps the budget; the same rule for everybody's.

    Args:
        entry: of the model.
        result: one of its results.
        budget: percent of the original's score.
    """
    if result.failure or not keeps_others(result, budget):
        return False
    if entry.n_test < FEW_ROWS and result.agreement_percent is not None:
        return result.agreement_percent >= AGREEMENT
    original = entry.results[FP32].score
    if entry.n_test < WHOLE_ROWS and result.rows_lost is not None and original is not None:
        right = original / 100 * entry.n_test
        return result.rows_lost <= rows_allowed(right, budget)
    return result.kept_percent is not None and result.kept_percent >= 100 - budget - 1e-9


def best_peer(entry: Entry, budget: float, what: str) -> tuple[str, float] | None:
    """What an expert would ship: the best of fp32 and of the peers' results that keep the budget.

    Args:
        entry: of the model.
        budget: percent.
        what: `latency_ns` or `size_bytes`.

    Returns:
        The tool's name and its figure; None where nothing was measured.
    """
    found = {
        name: getattr(result, what)
        for name, result in entry.results.items()
        if name not in (OURS, OURS_FOR_SIZE) and (name == FP32 or within(entry, result, budget))
    }
    measured = {name: value for name, value in found.items() if value is not None}
    return min(measured.items(), key=lambda pair: pair[1]) if measured else None


def ratio(entry: Entry, budget: float, what: str) -> float | None:
    """Ours over the best peer; None where either was not measured."""
    ours, best = entry.results.get(OURS), best_peer(entry, budget, what)
    value = getattr(ours, what) if ours is not None and not ours.failure else None
    return None if value is None or best is None else value / best[1]


def smaller(entry: Entry) -> float | None:
    """fp32 over ours with `--objective size`, in bytes; None where either was not made."""
    before, after = entry.results[FP32].size_bytes, entry.results.get(OURS_FOR_SIZE)
    made = after is not None and not after.failure and after.size_bytes
    return before / made if before and made else None


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios, at least one."""
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def hold(entry: Entry, budget: float) -> None:
    """Note in `entry.misses` which bars of one model ours miss; nothing where ours were not made."""
    entry.misses.clear()
    for name in (OURS, OURS_FOR_SIZE):
        result = entry.results.get(name)
        if result is None:
            continue
        if result.failure:
            entry.misses.append(f"{name}: {result.failure}")
        elif not within(entry, result, budget):
            entry.misses.append(f"{name}: {_lost(entry, result, budget)}")
    for what, bound, word in (
        ("latency_ns", LATENCY_EACH, "slower"),
        ("size_bytes", SIZE_EACH, "larger"),
    ):
        found, best = ratio(entry, budget, what), best_peer(entry, budget, what)
        if found is not None and best is not None and found > bound:
            entry.misses.append(f"{word} than {best[0]}: {found:.2f}×, not ≤ {bound:g}")
    size = entry.results.get(OURS_FOR_SIZE)
    original = entry.results[FP32].latency_ns
    if size is not None and size.latency_ns and original and size.ratio_ci95:
        slower = size.latency_ns / original
        if slower > SLOWER and size.ratio_ci95[0] > 1:
            entry.misses.append(f"{OURS_FOR_SIZE}: slower than fp32: {slower:.2f}×")
    made = [entry.results[name] for name in (OURS, OURS_FOR_SIZE) if name in entry.results]
    if any(not result.failure and result.latency_ns is None for result in made):
        entry.misses.append("not timed")


def _lost(entry: Entry, result: Result, budget: float) -> str:
    if not keeps_others(result, budget):
        return f"keeps {result.others_kept_percent:.2f} % of another output"
    if entry.n_test < FEW_ROWS and result.agreement_percent is not None:
        return f"agrees on {result.agreement_percent:.1f} % of all rows, not ≥ {AGREEMENT:g}"
    kept = "nothing finite" if result.kept_percent is None else f"{result.kept_percent:.2f} %"
    return f"keeps {kept} of the score"


def means(entries: Sequence[Entry], budget: float) -> list[Bar]:
    """The bars over all models that count; a mean over none of them is no bar."""
    counted = [entry for entry in entries if entry.n_test >= FEW_ROWS]
    wanted: list[tuple[str, float, bool, list[float | None]]] = [
        ("latency, ours / best peer", LATENCY_MEAN, True, [ratio(e, budget, "latency_ns") for e in counted]),
        ("size, ours / smallest peer", SIZE_MEAN, True, [ratio(e, budget, "size_bytes") for e in counted]),
        ("objective size, fp32 / ours", SMALLER_MEAN, False, [smaller(e) for e in counted]),
    ]
    found = []
    for name, bound, at_most, all_values in wanted:
        values = [value for value in all_values if value is not None]
        if values:
            found.append(Bar(name, geometric_mean(values), bound, at_most, len(values)))
    return found
