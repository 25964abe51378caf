"""`report.html`: one self-contained page, drawn by jinja2 templates; no network, one small script that sorts tables.

Names in a report come from models of unknown origin, so the template engine escapes everything; this file only prepares
numbers, `plots.py` coordinates, and the templates alone make markup.
"""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgepress.compressor.report import agreement, embed, fit, heatmap, plots, words
from edgepress.compressor.report.record import Bearing, Gain, Report, SiteCost, SiteRow, dump_report

if TYPE_CHECKING:
    import jinja2

_UNTOUCHED = ("", "as it was")

SIGNATURE = 'name="generator" content="edgepress"'
"""By which a page of ours is known."""

LONG = 12
"""Tables with more rows begin closed."""

_CERTIFIED = {
    "TFLite": "/tflite",
    "Run by": "/tflite/certificate/engine",
    "Parity": "/tflite/certificate",
    "Scales": "/tflite/certificate/grids",
}
"""Where the record has what a line of the certificate says."""


class MissingExtra(RuntimeError):  # noqa: N818  says what is missing, like ModuleNotFoundError
    """jinja2 is not installed; the message says what was not written and how to get it."""


@dataclass(frozen=True)
class Bars:
    """A pair of bars.

    Attributes:
        before: length as a share of the longest in the chart, in [0, 1], None where there is none.
        after: likewise.
        texts: both numbers with their units.
        rank: the number after, which a column is sorted by; None where it is unknown.
    """

    before: float | None
    after: float | None
    texts: tuple[str, str]
    rank: float | None


@dataclass(frozen=True)
class Layer:
    """One layer: what was done to it, or why not, its bars, and its outputs' error.

    Attributes:
        index: its place in the record.
        name: of the site.
        op: its operator.
        text: what was done.
        alone: whether nothing was.
        reason: why, or why not more.
        size: bytes of its weights.
        latency: predicted.
        error_index: its place among the record's errors.
        error: of its outputs, in percent; None where it is unknown.
    """

    index: int
    name: str
    op: str
    text: str
    alone: bool
    reason: str
    size: Bars
    latency: Bars
    error_index: int
    error: float | None


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
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    style, script = _source("page.css"), _source("page.js")
    environment.globals |= {
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "pointer": embed.pointer,
    }
    return environment.get_template(file)


def _source(file: str) -> str:
    return importlib.resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(report: Report) -> str:
    """The page as text; equal reports give equal pages.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    made = template("report.html", "report.html")
    layers, others = _layers(report)
    rows = words.rows(report)
    return made.render(
        report=report,
        headline=words.headline(report),
        verdict=words.verdict_text(report),
        budget=words.budget_text(report),
        cards=[row for row in rows if row.label.startswith(("size", "latency", "instructions", "score"))],
        rows=[(row, _pair(row.before, row.after)) for row in rows],
        latency_source=words.latency_source(report),
        intervals=(words.interval_text(report.baseline), words.interval_text(report.compressed)),
        timings=plots.distributions(report),
        layers=layers,
        others=others,
        map=heatmap.heatmap(_bearings(report), partial(_cell, report)),
        zeros=[(index, row) for index, row in enumerate(report.zeros) if row.after is not None],
        zero_means=_zero_means(report),
        scatters=plots.scatters(report),
        fronts=plots.fronts([report]),
        limits=words.limits_text(report),
        device=words.device_text(report),
        run_cost=words.run_cost,
        cost="instructions" if report.cost_kind == "instructions" else "latency",
        cost_field="instructions_total" if report.cost_kind == "instructions" else "latency_ns",
        tflite=[(*line, _CERTIFIED.get(line[0], "")) for line in _tflite(report)],
        micro=[] if report.microcontroller is None else list(fit.lines(report.microcontroller)),
        record=list(embed.lines(json.loads(dump_report(report)))),
        long=LONG,
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
    errors = {row.site: (index, row.error_percent) for index, row in enumerate(report.layer_errors)}
    layers = [
        Layer(
            index,
            row.name,
            row.op,
            treatment(row),
            row.treatment in _UNTOUCHED and row.after is not None,
            "; ".join(reasons.pop(row.name, [])),
            _bars(row.before, row.after, lambda cost: cost.bytes, most_bytes, "bytes"),
            _bars(row.before, row.after, lambda cost: cost.latency_ns, most_ns, "ns"),
            *errors.get(row.name, (0, None)),
        )
        for index, row in enumerate(report.sites)
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


def treatment(row: SiteRow) -> str:
    """What was done to a layer, in words."""
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
    texts = words.quantity(one, kind), "gone" if after is None else words.quantity(two, kind)
    return Bars(_share(one, longest), _share(two, longest), texts, 0.0 if after is None else two)


def _parameters(parameters: Mapping[str, object]) -> str:
    """Fields of a pass in one line: `rank 8, from 64`."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in parameters.items()
        if value not in (None, [], {})
    )


def _saves(gain: Gain) -> list[tuple[str, str]]:
    """What a step saves, in words, and the field that says so; negative where it costs."""
    found = []
    if gain.bytes is not None:
        found.append((words.quantity(gain.bytes, "bytes"), "bytes"))
    if gain.macs is not None:
        found.append((f"{words.quantity(gain.macs, 'count')} MACs", "macs"))
    if gain.latency_ns_measured is not None:
        found.append((words.quantity(gain.latency_ns_measured, "ns"), "latency_ns_measured"))
    elif gain.latency_ns_predicted is not None:
        predicted = f"{words.quantity(gain.latency_ns_predicted, 'ns')} (predicted)"
        found.append((predicted, "latency_ns_predicted"))
    return found


def _tflite(report: Report) -> Iterator[tuple[str, str]]:
    if report.tflite is not None:
        yield from agreement.lines(report.tflite)


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


def _bearings(report: Report) -> list[dict[str, object]]:
    """Sites with their knobs, as the heat map wants them; each knob knows its place in the record."""
    sites: dict[str, list[dict[str, object]]] = {}
    for index, row in enumerate(report.sensitivity):
        if len(row.values) == len(row.damage) and row.full > 0 and all(value > 0 for value in row.values):
            sites.setdefault(row.site, []).append({**dict(row), "index": index})
    return [{"site": site, "bears": knobs} for site, knobs in sites.items()]


def _cell(report: Report, row: heatmap.Row, knob: heatmap.Row, at: int) -> heatmap.Cell:
    damage, value = knob["damage"][at], knob["values"][at]
    said = f"{row['site']}, {heatmap.what(knob)}, {heatmap.setting(knob, value)}"
    if damage is None:
        return heatmap.Cell(len(heatmap.LEVELS), "∞", f"{said}: breaks the model")
    bearing: Bearing = report.sensitivity[knob["index"]]
    nearest = min(bearing.values, key=lambda each: abs(each - (bearing.chosen or bearing.full)))
    return heatmap.Cell(
        heatmap.level(damage),
        heatmap.small(damage),
        f"{said}: damage {heatmap.small(damage)}",
        embed.pointer("sensitivity", knob["index"], "damage"),
        bearing.chosen is not None and value == nearest,
    )
