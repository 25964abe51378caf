"""`report.html`: one self-contained page, drawn by a jinja2 template; no network, no scripts.

Names in a report come from models of unknown origin, so the template engine escapes everything; this file
only prepares numbers and coordinates, and the template alone makes markup.
"""

import importlib.resources
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepress.compressor.report import agreement, words
from edgepress.compressor.report.record import CandidateRow, FrontPoint, Gain, Report, SiteCost, SiteRow

if TYPE_CHECKING:
    import jinja2

_UNTOUCHED = ("", "as it was")


class MissingExtra(RuntimeError):  # noqa: N818  says what is missing, like ModuleNotFoundError
    """jinja2 is not installed; the message says what was not written and how to get it."""


@dataclass(frozen=True)
class Bars:
    """A pair of bars; lengths are shares of the longest in the chart, in [0, 1], None where there is none."""

    before: float | None
    after: float | None
    text: str


@dataclass(frozen=True)
class Layer:
    """One layer: what was done to it, or why not, and its bars."""

    name: str
    op: str
    text: str
    alone: bool
    reason: str
    size: Bars
    latency: Bars


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in [0, 1] and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One candidate in a scatter plot; x and y in [0, 1], y upwards; `mark` is written beside it."""

    x: float
    y: float
    kept: bool
    text: str
    mark: str = ""
    beyond: bool = False


@dataclass(frozen=True)
class Scatter:
    """Quality (`of`) against a cost (`title`), over all candidates that have both; `budget` is a height."""

    title: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    of: str = "score"
    up: bool = True
    budget: float | None = None


def template(file: str, what: str) -> "jinja2.Template":
    """A template of this package, which escapes everything.

    Args:
        file: its name.
        what: is written with it, for the message.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra(f"{what} not written: pip install 'edgepress[report]'") from error
    source = importlib.resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def render(report: Report) -> str:
    """The page as text; equal reports give equal pages.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    made = template("report.html", "report.html")
    layers, others = _layers(report)
    return made.render(
        report=report,
        headline=words.headline(report),
        verdict=words.verdict_text(report),
        budget=words.budget_text(report),
        rows=[(row, _pair(row.before, row.after)) for row in words.rows(report)],
        latency_source=words.latency_source(report),
        intervals=(words.interval_text(report.baseline), words.interval_text(report.compressed)),
        layers=layers,
        others=others,
        zeros=[row for row in report.zeros if row.after is not None],
        zero_means=_zero_means(report),
        scatters=[plot for plot in _scatters(report) if plot is not None],
        fronts=[plot for plot in _fronts(report) if plot is not None],
        limits=words.limits_text(report),
        tflite=[] if report.tflite is None else list(agreement.lines(report.tflite)),
        parameters=_parameters,
        saves=_saves,
        plain=_plain,
        seconds=_seconds(report),
        number=words.number,
        quantity=words.quantity,
        score=lambda value: words.score_text(value, report.metric_unit),
    )


def _pair(before: float | None, after: float | None) -> tuple[float | None, float | None]:
    """Lengths of two bars that share one scale of their own."""
    longest = max(before or 0, after or 0)
    return _share(before, longest), _share(after, longest)


def _share(value: float | None, longest: float) -> float | None:
    return None if value is None or longest <= 0 else max(value, 0) / longest


def _layers(report: Report) -> tuple[list[Layer], list[tuple[str, str]]]:
    """Rows by layer, and the sites left alone that have no row, with their reasons."""
    reasons: dict[str, list[str]] = {}
    for left in report.left_alone:
        known = reasons.setdefault(left.site, [])
        if left.reason not in known:
            known.append(left.reason)
    costs = [cost for row in report.sites for cost in (row.before, row.after) if cost is not None]
    most_bytes = max((cost.bytes for cost in costs), default=0)
    most_ns = max((cost.latency_ns or 0 for cost in costs), default=0)
    layers = [
        Layer(
            row.name,
            row.op,
            _treatment(row),
            row.treatment in _UNTOUCHED and row.after is not None,
            "; ".join(reasons.pop(row.name, [])),
            _bars(row.before, row.after, lambda cost: cost.bytes, most_bytes, "bytes"),
            _bars(row.before, row.after, lambda cost: cost.latency_ns, most_ns, "ns"),
        )
        for row in report.sites
    ]
    return layers, [(site, "; ".join(why)) for site, why in reasons.items()]


def _zero_means(report: Report) -> list[tuple[str, float, float]]:
    """Percent of zeros before and after, of all weights and of all activations that are still there to count."""
    found = []
    for kind in ("weights", "activations"):
        rows = [row for row in report.zeros if row.of == kind and row.after is not None]
        total = sum(row.values for row in rows)
        if total:
            before, after = (
                sum(row.values * (share or 0.0) for row, share in zip(rows, shares, strict=True)) / total
                for shares in ([row.before for row in rows], [row.after for row in rows])
            )
            found.append((kind, before, after))
    return found


def _treatment(row: SiteRow) -> str:
    if row.treatment not in _UNTOUCHED:
        return row.treatment
    return "removed" if row.after is None else "left alone"


def _bars(
    before: SiteCost,
    after: SiteCost | None,
    get: Callable[[SiteCost], float | None],
    longest: float,
    kind: words.Kind,
) -> Bars:
    one = get(before)
    two = None if after is None else get(after)
    text = f"{words.quantity(one, kind)} → " + ("gone" if after is None else words.quantity(two, kind))
    return Bars(_share(one, longest), _share(two, longest), text)


def _parameters(parameters: Mapping[str, object]) -> str:
    """Fields of a pass in one line: `rank 8, from 64`."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in parameters.items()
        if value not in (None, [], {})
    )


def _saves(gain: Gain) -> list[str]:
    """What a step saves, in words, one a line; negative where it costs."""
    found = []
    if gain.bytes is not None:
        found.append(words.quantity(gain.bytes, "bytes"))
    if gain.macs is not None:
        found.append(f"{words.quantity(gain.macs, 'count')} MACs")
    if gain.latency_ns_measured is not None:
        found.append(words.quantity(gain.latency_ns_measured, "ns"))
    elif gain.latency_ns_predicted is not None:
        found.append(f"{words.quantity(gain.latency_ns_predicted, 'ns')} (predicted)")
    return found


def _seconds(report: Report) -> tuple[float, list[tuple[str, float]]]:
    """Wall time in all, and by stage; a stage named `total` is the sum that the run itself took."""
    stages = [(name, value) for name, value in report.seconds.items() if name != "total"]
    return report.seconds.get("total", sum(value for _, value in stages)), stages


def _plain(value: object) -> str:
    """A fact of the environment in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(item) for item in value)
    return words.number(value) if isinstance(value, float) else str(value)


def _scatters(report: Report) -> list[Scatter | None]:
    """Score against latency and against size."""
    return [
        _scatter(report, f"latency ({report.cost_kind})", lambda row: row.latency_ns, "ns"),
        _scatter(report, "size", lambda row: row.size_bytes, "bytes"),
    ]


def _scatter(
    report: Report, title: str, get: Callable[[CandidateRow], float | None], kind: words.Kind
) -> Scatter | None:
    """None where fewer than two candidates have both numbers: nothing to compare."""
    shown = [(row, x, row.score) for row in report.candidates if (x := get(row)) and row.score is not None]
    if len(shown) < 2:
        return None
    x_at, x_ticks = _axis([x for _, x, _ in shown])
    y_at, y_ticks = _axis([y for _, _, y in shown])
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


def _fronts(report: Report) -> list[Scatter | None]:
    """What is kept, as estimated, against latency and against size; memory where that is the objective."""
    return [
        _front(report, f"latency ({report.cost_kind})", lambda point: point.latency_ns, "ns"),
        _front(report, "size", lambda point: point.size_bytes, "bytes"),
        _front(report, "memory", lambda point: point.memory_peak_bytes, "bytes"),
    ]


def _front(
    report: Report, title: str, get: Callable[[FrontPoint], float | None], kind: words.Kind
) -> Scatter | None:
    """None where fewer than two points have the number."""
    shown = [(point, x) for point in report.front if (x := get(point))]
    if len(shown) < 2:
        return None
    x_at, x_ticks = _ratio_axis([x for _, x in shown])
    budget = 100 - report.budget_percent
    y_at, y_ticks = _axis([budget, *(100 - point.cautious_drop_percent for point, _ in shown)])
    points = tuple(
        Point(
            x_at(x),
            y_at(100 - point.cautious_drop_percent),
            point.chosen,
            f"{point.number}, {words.point_text(point)}",
            str(point.number),
            not point.within_budget,
        )
        for point, x in sorted(shown, key=lambda each: each[0].chosen)
    )
    return Scatter(
        title,
        points,
        tuple(Tick(x_at(tick), words.quantity(tick, kind)) for tick in x_ticks),
        tuple(Tick(y_at(tick), f"{tick:.6g} %") for tick in y_ticks),
        "score kept, estimated cautiously,",
        budget=y_at(budget),
    )


def _axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
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


def _ratio_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
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
        ticks = _axis(values)[1]
    return (lambda value: (math.log10(value) - start) / (end - start)), ticks
