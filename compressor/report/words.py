"""Numbers and verdicts as people read them; the terminal and the page say the same by using these."""

import math
from dataclasses import dataclass
from typing import Literal

from edgepress.compressor.report.device import Difference
from edgepress.compressor.report.record import CandidateRow, FrontPoint, Report, Side

Kind = Literal["bytes", "ns", "count"]

_SCALES: dict[Kind, tuple[tuple[float, str], ...]] = {
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
    "ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
    "count": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")),
}
_VERDICTS = {
    "kept": "The budget is kept.",
    "broken": "The budget is broken.",
    "inconclusive": "Too few rows to tell whether the budget is kept.",
    "unverified": "Not verified: give samples with --data, and --test, for a verdict.",
}
UNKNOWN = "–"
_BYTES: Kind = "bytes"
_NS: Kind = "ns"


@dataclass(frozen=True)
class Row:
    """One line of the before/after table.

    Attributes:
        label: what is compared.
        before: number before, or None where unknown; after likewise.
        before_text: number with its unit; after_text likewise.
        change: the factor in words, such as `5.3× faster`; empty where it cannot be said.
        good: whether the change is what one hopes for; None where it is neither.
        places: JSON pointers of both numbers in the record; empty where one is not in it.
    """

    label: str
    before: float | None
    after: float | None
    before_text: str
    after_text: str
    change: str
    good: bool | None
    places: tuple[str, str] = ("", "")


def number(value: float, digits: int = 3) -> str:
    """Rounded to `digits` significant digits, never in exponent form: 58.1, 165, 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(places, 0)}f}"


def quantity(value: float | None, kind: Kind) -> str:
    """With a unit of handy size: 10.4 kB, 58.1 µs, 1.20 M; a dash where unknown."""
    if value is None:
        return UNKNOWN
    # 999.6 kB would be written 1000 kB: the next unit starts where rounding does.
    fitting = [pair for pair in _SCALES[kind] if abs(value) >= pair[0] * 0.9995]
    scale, unit = fitting[0] if fitting else _SCALES[kind][-1]
    scaled = value / scale
    exact = scale == 1 and float(value).is_integer()
    return f"{scaled:.0f} {unit}".strip() if exact else f"{number(scaled)} {unit}".strip()


def score_text(value: float | None, unit: str) -> str:
    """A score with its unit: percent with two decimals, else four significant digits."""
    if value is None:
        return UNKNOWN
    return f"{value:.2f} %" if unit == "%" else f"{number(value, 4)} {unit}".strip()


_LARGEST = 1e300
"""A factor beyond that, or beyond its inverse, is no number to tell."""


def factor(before: float | None, after: float | None, better: str, worse: str) -> tuple[str, bool | None]:
    """How much less, in words: (`165× smaller`, True), (`1.09× larger`, False), (`the same`, None)."""
    if before is None or after is None or before <= 0 or after <= 0:
        return "", None
    ratio = before / after
    if not 1 / _LARGEST < ratio < _LARGEST:  # a record is anybody's file
        return "", None
    if abs(ratio - 1) < 0.005:
        return "the same", None
    return (f"{number(ratio)}× {better}", True) if ratio > 1 else (f"{number(1 / ratio)}× {worse}", False)


def latency_source(report: Report) -> str:
    """What latencies rest on."""
    if report.cost_kind == "instructions":
        return "not known of an emulated device: its instructions are counted"
    words = {
        "table": " from kernels that were measured on the device",
        "counted": " from kernels whose instructions were counted under emulation, at an assumed rate",
        "rates": " from multiply-accumulates and bytes, by the device's rates",
    }
    return report.cost_kind + words.get(report.latency_source or "", "")


def latency_change(report: Report) -> tuple[str, bool | None]:
    """Like `factor`, of instructions where these are the cost.

    Intervals that overlap are too noisy to tell, and what was not measured is said.
    """
    before, after = report.baseline, report.compressed
    change, good = factor(before.latency_ns_median, after.latency_ns_median, "faster", "slower")
    if report.cost_kind == "instructions":
        one, two = (None if c is None else c.total for c in (before.instructions, after.instructions))
        return factor(one, two, "fewer instructions", "more instructions")
    if not change or report.cost_kind != "measured":
        return (f"{change} ({report.cost_kind})" if change else ""), good
    first, second = before.latency_ns_ci95, after.latency_ns_ci95
    if good is not None and first and second and first[0] <= second[1] and second[0] <= first[1]:
        return "no clear difference", None
    return change, good


def rows(report: Report) -> list[Row]:
    """Score, other outputs, size, latency, memory, activations, parameters, MACs: before, after, change in words."""
    one, two = report.baseline, report.compressed
    score = Row(
        f"score ({report.metric})",
        one.score,
        two.score,
        score_text(one.score, report.metric_unit),
        score_text(two.score, report.metric_unit),
        kept_text(report),
        None if report.drop_percent is None else report.drop_percent <= report.budget_percent,
        _both("score"),
    )
    others = [
        Row(
            f"fidelity ({other.output})",
            100.0,
            other.kept_percent,
            score_text(100.0, "%"),
            score_text(other.kept_percent, "%"),
            "" if other.kept_percent is None else f"{other.kept_percent:.1f} % kept",
            None if other.kept_percent is None else other.kept_percent >= 100 - report.budget_percent,
            ("", f"/others/{index}/kept_percent"),
        )
        for index, other in enumerate(report.others)
    ]
    return [
        score,
        *others,
        _cost("size", "bytes", report, "size_bytes", ("smaller", "larger")),
        *_run_rows(report),
        *_memory_rows(report),
        _cost("parameters", "count", report, "parameters", ("fewer", "more")),
        _cost("MACs", "count", report, "macs", ("fewer", "more")),
    ]


def _memory_rows(report: Report) -> list[Row]:
    """Peak memory and activations; flash and arena, where the target is a microcontroller."""
    fit = report.microcontroller
    if fit is None:
        return [
            _cost("peak memory", "bytes", report, "memory_peak_bytes", ("less", "more")),
            _cost("activations", "bytes", report, "activation_bytes", ("less", "more")),
        ]
    found = (
        ("flash (TFLite)", "flash_bytes", fit.flash_bytes_before, fit.flash_bytes),
        ("arena", "arena_bytes", fit.arena_bytes_before, fit.arena_bytes),
    )
    return [
        _row(
            label,
            "bytes",
            (before, after),
            (f"/microcontroller/{field}_before", f"/microcontroller/{field}"),
            ("less", "more"),
        )
        for label, field, before, after in found
    ]


def _run_rows(report: Report) -> list[Row]:
    """What one inference costs: its latency, or on an emulated device instructions and heap."""
    one, two = report.baseline, report.compressed
    if report.cost_kind == "instructions":
        counts = [side.instructions for side in (one, two)]
        totals, heaps = ([getattr(c, name, None) for c in counts] for name in ("total", "heap_bytes"))
        return [
            _row(
                "instructions, emulated",
                "count",
                (totals[0], totals[1]),
                _both("instructions/total"),
                ("fewer", "more"),
            ),
            _row(
                "heap, emulated",
                "bytes",
                (heaps[0], heaps[1]),
                _both("instructions/heap_bytes"),
                ("less", "more"),
            ),
        ]
    source = f" by {report.latency_source}" if report.latency_source else ""
    kind = "" if report.cost_kind == "measured" else f", {report.cost_kind}{source}"
    change, good = latency_change(report)
    return [
        Row(
            f"latency{kind}",
            one.latency_ns_median,
            two.latency_ns_median,
            quantity(one.latency_ns_median, "ns"),
            quantity(two.latency_ns_median, "ns"),
            change.removesuffix(f" ({report.cost_kind})"),
            good,
            _both("latency_ns_median"),
        )
    ]


def run_cost(of: FrontPoint | CandidateRow) -> str:
    """What one inference takes: `9.91 µs`, or on an emulated device `2.00 M instructions`; a dash where unknown."""
    if of.instructions_total is not None:
        return f"{quantity(of.instructions_total, 'count')} instructions"
    return quantity(of.latency_ns, "ns")


def device_text(report: Report) -> str:
    """Where the verdict was made, if not on this machine, and what was otherwise there; empty elsewhere."""
    there = report.device
    if there is None:
        return ""
    rows = f"all {there.rows}" if there.rows == there.rows_unseen else f"{there.rows} of {there.rows_unseen}"
    cpu = "" if there.cpu in ("unknown", report.target) else f" ({there.cpu})"
    text = f"judged on {report.target}{cpu}, {there.how}, by {there.engine}, on {rows} unseen rows"
    return f"{text}; {_difference('the original', there.baseline)}; {_difference('the result', there.compressed)}"


def _difference(what: str, found: Difference) -> str:
    if found.identical:
        return f"{what} gives the same there as here, bit for bit"
    changed = found.rows_changed
    rows = (
        "" if changed is None else f", and {changed or 'no'} row{'' if changed == 1 else 's'} count otherwise"
    )
    return f"outputs of {what} differ from here by {quantity_percent(found.largest_percent)} at most{rows}"


def quantity_percent(value: float | None) -> str:
    """A small share in percent: `0.00004 %`."""
    return "any amount" if value is None else f"{number(value, 1)} %"


def kept_text(report: Report) -> str:
    """How much of the score is left: `99.1 % kept`."""
    return "" if report.drop_percent is None else f"{100 - report.drop_percent:.1f} % kept"


def verdict_text(report: Report) -> str:
    """The verdict as a sentence, and its reason."""
    reason = report.verdict_reason.strip().rstrip(".")
    return _VERDICTS[report.verdict] + (f" {reason[0].upper()}{reason[1:]}." if reason else "")


def budget_text(report: Report) -> str:
    """What was allowed, and what was lost: `2 % of the score may go, 0.86 % went, on 2501 unseen rows`."""
    text = f"{report.budget_percent:g} % of the score may go"
    if report.drop_percent is not None:
        drop = report.drop_percent
        text += f", {drop:.2f} % went" if drop >= 0.005 else f", {_nothing(drop)}"
    if report.drop_interval_95 is not None:
        low, high = report.drop_interval_95
        text += f" (95 % interval {low:.2f} to {high:.2f})"
    return text + (f", on {report.n_test} unseen row{'s' * (report.n_test != 1)}" if report.n_test else "")


def limits_text(report: Report) -> str:
    """What of `--max-size` and `--max-latency` is kept or missed; empty where nothing was asked for."""
    if report.limits_missed:
        return f"missed: {'; '.join(report.limits_missed)}"
    asked = [
        f"{quantity(limit, kind)} {text}"
        for limit, kind, text in (
            (report.max_size_bytes, _BYTES, "in size"),
            (report.max_latency_ns, _NS, "in latency"),
        )
        if limit is not None
    ]
    return f"kept: at most {' and '.join(asked)}" if asked else ""


def sparse_text(report: Report) -> str:
    """The file for the sparse engine: `2.1 MB, 3 % of the weights; 0.23 ms, model.onnx 1.77 ms`; empty without."""
    sparse = report.sparse
    if sparse is None:
        return ""
    share = f"{number(sparse.density_percent)} % of the weights"
    ours, dense = (quantity(ns, "ns") for ns in (sparse.latency_ns, sparse.onnx_latency_ns))
    times = "not timed" if sparse.latency_ns is None else f"{ours}, model.onnx {dense}"
    if sparse.reason:
        return f"none: {sparse.reason} ({share}; {times})"
    return f"{quantity(sparse.size_bytes, 'bytes')}, {share}; {times}"


def tflite_score(report: Report) -> str:
    """The TFLite file's score: `, top1 93.20 %`, on the target where that judged; empty where it has none."""
    if report.tflite is not None and report.tflite.score_on_device is not None:
        there = score_text(report.tflite.score_on_device, report.metric_unit)
        return f", {report.metric} {there} on {report.target}"
    certificate = report.tflite.certificate if report.tflite is not None else None
    if certificate is None or certificate.score is None:
        return ""
    return f", {report.metric} {score_text(certificate.score, report.metric_unit)}"


def point_text(point: FrontPoint) -> str:
    """A point of the front in one line: `float, step 3: 5.27 kB, 9.91 µs, about 0.54 % of the score lost`."""
    costs = f"{quantity(point.size_bytes, 'bytes')}, {run_cost(point)}"
    lost = f"about {point.drop_percent_estimated or 0.0:.2f} % of the score lost"
    return f"{point.label}: {costs}, {lost}{'' if point.within_budget else ' (outside the budget)'}"


def headline(report: Report) -> str:
    """The result in one line: `165× smaller, 5.3× faster on x86, top1 98.96 % → 98.04 %`."""
    one, two = report.baseline, report.compressed
    size, _ = factor(one.size_bytes, two.size_bytes, "smaller", "larger")
    latency, _ = latency_change(report)
    if latency.startswith(("the same", "no clear difference")):
        latency = "as many instructions" if report.cost_kind == "instructions" else "as fast"
    parts = ["same size" if size == "the same" else size, f"{latency} on {report.target}" if latency else ""]
    if one.score is not None and two.score is not None:
        unit = report.metric_unit
        parts.append(f"{report.metric} {score_text(one.score, unit)} → {score_text(two.score, unit)}")
    return ", ".join(part for part in parts if part)


def _nothing(drop: float) -> str:
    return "nothing went" if drop > -0.005 else f"it rose by {-drop:.2f} %"


def _cost(label: str, kind: Kind, report: Report, field: str, said: tuple[str, str]) -> Row:
    """A line for what either model costs."""
    return _row(
        label, kind, (getattr(report.baseline, field), getattr(report.compressed, field)), _both(field), said
    )


def _row(
    label: str,
    kind: Kind,
    values: tuple[float | None, float | None],
    places: tuple[str, str],
    said: tuple[str, str],
) -> Row:
    """A line; `said` names a change for the better and for the worse."""
    before, after = values
    change, good = factor(before, after, *said)
    return Row(label, before, after, quantity(before, kind), quantity(after, kind), change, good, places)


def _both(field: str) -> tuple[str, str]:
    """Where a number of either model stands in the record."""
    return f"/baseline/{field}", f"/compressed/{field}"


def interval_text(side: Side) -> str:
    """The 95 % interval of the latency, or nothing."""
    if side.latency_ns_ci95 is None:
        return ""
    low, high = side.latency_ns_ci95
    return f"{quantity(low, 'ns')} to {quantity(high, 'ns')}"
