"""Coordinates of the plots of a page: scatters of quality against cost, and distributions of timings.

Places are shares of an axis, in [0, 1]; the template alone makes markup. Records may come from anybody, so numbers that
no axis can hold (infinite, not positive where ratios count, beyond all measure) are left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepress.compressor.report import words
from edgepress.compressor.report.record import CandidateRow, FrontPoint, Report, Side

LARGEST = 1e30
"""Beyond it a number is none: differences of two must be finite."""

BINS = 150
"""Of a distribution: so many columns over the whole axis."""

AT_EDGES = (0.005, 0.95)
"""Shares of the samples that an axis must reach to, and some way on; slower ones are counted in its last column."""

BEYOND = 1.15
"""So many times as far it does reach."""

WIDTH, HEIGHT = 340, 220
"""Of a scatter plot between its axes."""

OFFSETS = ((8, -5), (-8, -5), (8, 13), (-8, 13))
"""Where a point's mark may stand, the best place first."""

Kind = words.Kind
Place = Callable[[float], float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in [0, 1] and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One model in a scatter plot.

    Attributes:
        x: in [0, 1], to the right; y likewise, upwards.
        y: see x.
        kept: whether it is the chosen one.
        text: what the pointer shows.
        mark: is written beside it.
        beyond: whether it is outside the budget.
        run: index of its run, where several are drawn together.
        offset: of the mark from the point, in the plot's units, right and down; to the left it is its end's.
    """

    x: float
    y: float
    kept: bool
    text: str
    mark: str = ""
    beyond: bool = False
    run: int = 0
    offset: tuple[float, float] = (8, -5)


@dataclass(frozen=True)
class Scatter:
    """Quality (`of`) against a cost (`title`).

    Attributes:
        title: of the horizontal axis.
        points: the chosen ones last, so that they are drawn on top.
        x_ticks: marks on the horizontal axis.
        y_ticks: on the vertical one.
        of: what the vertical axis shows.
        up: whether more of it is better.
        budget: height of the budget's line, or None.
        width: of the plot between its axes, in its own units; height likewise.
        height: see width.
    """

    title: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    of: str = "score"
    up: bool = True
    budget: float | None = None
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def description(self) -> str:
        """The plot in words, for those who cannot see it."""
        chosen = "; ".join(point.text for point in self.points if point.kept)
        return f"{len(self.points)} models. Chosen: {chosen or 'none of them'}."


@dataclass(frozen=True)
class Strip:
    """How timings of one model are spread.

    Attributes:
        label: which model.
        columns: (left end, width, height) each, all in [0, 1].
        median: its place.
        text: the same in words.
        pointer: of the samples in the record.
    """

    label: str
    columns: tuple[tuple[float, float, float], ...]
    median: float
    text: str
    pointer: str


@dataclass(frozen=True)
class Distributions:
    """Timings of both models on one axis."""

    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]


def scatters(report: Report) -> list[Scatter]:
    """Score of the search's candidates against latency, or instructions, and against size."""
    found = (
        _scatter(report, f"latency ({report.cost_kind})", lambda row: row.latency_ns, "ns"),
        _scatter(report, "instructions (emulated)", lambda row: row.instructions_total, "count"),
        _scatter(report, "size", lambda row: row.size_bytes, "bytes"),
    )
    return [plot for plot in found if plot is not None]


def fronts(reports: Sequence[Report]) -> list[Scatter]:
    """What is kept, as estimated, against latency (or instructions), size, and memory where that is the objective.

    Args:
        reports: one, or several that are drawn together; then a point's mark begins with its run's letter.
    """
    kinds = {report.cost_kind for report in reports}
    source = f" ({kinds.pop()})" if len(kinds) == 1 else ""
    found = (
        _front(reports, f"latency{source}", lambda point: point.latency_ns, "ns"),
        _front(reports, "instructions (emulated)", lambda point: point.instructions_total, "count"),
        _front(reports, "size", lambda point: point.size_bytes, "bytes"),
        _front(reports, "memory", lambda point: point.memory_peak_bytes, "bytes"),
    )
    return [plot for plot in found if plot is not None]


def _usable(value: float | None, positive: bool = False) -> bool:
    return value is not None and abs(value) < LARGEST and (value > 1 / LARGEST or not positive)


def _scatter(
    report: Report, title: str, get: Callable[[CandidateRow], float | None], kind: Kind
) -> Scatter | None:
    """None where fewer than two candidates have both numbers: nothing to compare."""
    shown = [
        (row, x, row.score)
        for row in report.candidates
        if (x := get(row)) is not None and row.score is not None and _usable(x) and _usable(row.score)
    ]
    if len(shown) < 2:
        return None
    x_at, x_ticks = axis([x for _, x, _ in shown])
    y_at, y_ticks = axis([y for _, _, y in shown])
    unit = report.metric_unit
    points = tuple(
        Point(
            x_at(x),
            y_at(y),
            row.kept,
            f"{row.label}: {words.score_text(y, unit)}, {words.quantity(x, kind)}. {row.why}".strip(),
        )
        for row, x, y in sorted(shown, key=lambda each: each[0].kept)  # the chosen one is drawn last, on top
    )
    return Scatter(
        title,
        points,
        tuple(Tick(x_at(tick), words.quantity(tick, kind)) for tick in x_ticks),
        tuple(Tick(y_at(tick), f"{tick:.6g}") for tick in y_ticks),
        up=report.higher_is_better,
    )


def letter(run: int) -> str:
    """A run's name where several are compared: A, B, …, Z, AA, …."""
    name = ""
    while run >= 0:
        run, rest = run // 26 - 1, run % 26
        name = chr(ord("A") + rest) + name
    return name


def _front(
    reports: Sequence[Report], title: str, get: Callable[[FrontPoint], float | None], kind: Kind
) -> Scatter | None:
    """None where fewer than two points have the number."""
    shown = [
        (run, point, x)
        for run, report in enumerate(reports)
        for point in report.front
        if (x := get(point)) is not None
        and _usable(x, positive=True)
        and _usable(point.cautious_drop_percent)
    ]
    if len(shown) < 2:
        return None
    x_at, x_ticks = ratio_axis([x for _, _, x in shown])
    budgets = {100 - report.budget_percent for report in reports if _usable(report.budget_percent)}
    y_at, y_ticks = axis([*budgets, *(100 - point.cautious_drop_percent for _, point, _ in shown)])
    several = len(reports) > 1
    points = tuple(
        Point(
            x_at(x),
            y_at(100 - point.cautious_drop_percent),
            point.chosen,
            f"{letter(run) if several else ''}{point.number}, {words.point_text(point)}",
            f"{letter(run) if several else ''}{point.number}",
            not point.within_budget,
            run,
        )
        for run, point, x in sorted(shown, key=lambda each: each[1].chosen)
    )
    return Scatter(
        title,
        _marked(points),
        tuple(Tick(x_at(tick), words.quantity(tick, kind)) for tick in x_ticks),
        tuple(Tick(y_at(tick), f"{tick:.6g} %") for tick in y_ticks),
        "score kept, estimated cautiously,",
        budget=y_at(budgets.pop()) if len(budgets) == 1 else None,
    )


def _marked(points: Sequence[Point]) -> tuple[Point, ...]:
    """Marks where they hide nothing, those of chosen points first; what finds no such place has none."""
    centres = [(point.x * WIDTH, (1 - point.y) * HEIGHT) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    marked = list(points)
    for index in sorted(range(len(points)), key=lambda i: not points[i].kept):
        point, (x, y) = points[index], centres[index]
        size = 7.0 * len(point.mark)
        for offset in OFFSETS:
            left = x + offset[0] - (size if offset[0] < 0 else 0)
            box = (left, y + offset[1] - 8, left + size, y + offset[1])
            others = (each for each in taken if each != taken[index])
            if not any(_overlap(box, other) for other in others):
                taken.append(box)
                marked[index] = replace(point, offset=offset)
                break
        else:
            marked[index] = point if point.kept else replace(point, mark="")
    return tuple(marked)


Box = tuple[float, float, float, float]


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def distributions(report: Report) -> Distributions | None:
    """Timings before and after on one axis of ratios; None where there are no samples of both."""
    sides = (("before", "baseline", report.baseline), ("after", "compressed", report.compressed))
    samples = [
        np.array([ns for ns in side.latency_samples_ns if _usable(ns, positive=True)]) for _, _, side in sides
    ]
    if any(len(each) < 2 for each in samples):
        return None
    ends = [
        reach * float(np.quantile(each, share))
        for each in samples
        for share, reach in zip(AT_EDGES, (1, BEYOND), strict=True)
    ]
    at, ticks = ratio_axis(ends)
    return Distributions(
        tuple(
            _strip(label, side, values, at, f"/{name}/latency_samples_ns")
            for (label, name, side), values in zip(sides, samples, strict=True)
        ),
        tuple(Tick(at(tick), words.quantity(tick, "ns")) for tick in ticks),
    )


def _strip(
    label: str, side: Side, samples: "np.ndarray[tuple[int], np.dtype[np.float64]]", at: Place, pointer: str
) -> Strip:
    places = np.clip([at(float(ns)) for ns in samples], 0, 1)
    counts, _ = np.histogram(places, BINS, (0, 1))
    columns = tuple(
        (index / BINS, 1 / BINS, count / counts.max()) for index, count in enumerate(counts.tolist()) if count
    )
    low, median, high = (float(each) for each in np.quantile(samples, (0.05, 0.5, 0.95)))
    shown = side.latency_ns_median if _usable(side.latency_ns_median, positive=True) else median
    text = (
        f"median {words.quantity(shown, 'ns')}, nine in ten from {words.quantity(low, 'ns')} "
        f"to {words.quantity(high, 'ns')}, {len(samples)} samples"
    )
    return Strip(label, columns, min(max(at(shown or median), 0.0), 1.0), text, pointer)


def axis(values: Sequence[float]) -> tuple[Place, list[float]]:
    """Place on the axis, in [0, 1], and values for its marks (steps of 1, 2 or 5 times a power of ten)."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    start, end = low - room, high + room
    if low > 0:
        start = max(start, 0.0)
    power = 10.0 ** math.floor(math.log10((end - start) / 4))
    step = next(power * each for each in (1, 2, 5, 10) if (end - start) / (power * each) <= 5)
    first = math.ceil(start / step)
    ticks = [step * index for index in range(first, math.floor(end / step) + 1)]
    return (lambda value: (value - start) / (end - start)), ticks


def ratio_axis(values: Sequence[float]) -> tuple[Place, list[float]]:
    """The same for positive values that are compared by ratio: the tenth of a size is no sliver at the edge."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = (high - low) * 0.08 or 0.02
    start, end = low - room, high + room
    powers = range(math.floor(start), math.ceil(end) + 1)
    ticks = [each * 10.0**power for power in powers for each in (1, 2, 5)]
    ticks = [tick for tick in ticks if start <= math.log10(tick) <= end]
    if len(ticks) > 5:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    if len(ticks) < 2:
        ticks = axis(values)[1]
    return (lambda value: (math.log10(value) - start) / (end - start)), ticks
