"""What `compress selftest` found, in words."""

from collections.abc import Iterable
from itertools import groupby

from edgepress.compressor.report.selftest import Arithmetic, Check, Selftest, WrongLayer

HEADINGS = ("format", "precision", "models", "rows", "computed in", "result", "r_d off by")

MOST_LINES = 20
"""Wrong layers that are told one by one."""


def rows(record: Selftest) -> list[tuple[str, ...]]:
    """Cells of the table: a line for each format and precision."""
    found: list[tuple[str, ...]] = []
    computed = {(each.format, each.precision): _computed(each) for each in record.arithmetic}
    for (kind, precision), group in groupby(
        sorted(record.checks, key=_kind), key=lambda each: (each.format, each.precision)
    ):
        mine = list(group)
        ran = [each for each in mine if each.verdict != "refused" and not each.reason]
        found.append(
            (
                kind,
                precision,
                str(len(ran)),
                str(sum(each.rows for each in ran)),
                computed.get((kind, precision), ""),
                _result(mine),
                _threshold(ran),
            )
        )
    return found


def faults(record: Selftest) -> list[str]:
    """What is wrong, a line each: device, format, precision, operator, and what would explain it."""
    lines = []
    for check in record.checks:
        if check.verdict != "wrong":
            continue
        where = f"{record.device}, {check.format}, {check.precision}"
        if check.reason:
            lines.append(f"{where}, {check.operators}: {check.reason} ({check.network})")
        lines += [
            f"{where}, {_layer(each, check)} of {check.network}"
            for each in check.wrong_layers
            if not each.harmless
        ]
        if not check.wrong_layers and not check.reason:
            lines.append(f"{where}, {check.operators}: {_answers(check)} ({check.network})")
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"and {more} more: --json FILE has them all"]


def notes(record: Selftest) -> list[str]:
    """What is not wrong, and worth knowing: other arithmetic than the file's, refusals, and subnormal numbers."""
    found = {line: None for each in record.arithmetic if (line := _stored(each))}
    for check in record.checks:
        if check.verdict == "refused":
            found[f"{check.format}, {check.precision} is not offered: {check.reason}"] = None
        elif any(each.harmless for each in check.wrong_layers):
            found[f"{check.format}, {check.precision}: subnormal numbers become 0; no network needs them"] = (
                None
            )
    return list(found)


def headline(record: Selftest) -> str:
    """The verdict in one line."""
    ran = [each for each in record.checks if each.verdict != "refused"]
    where = f"{record.device} ({record.transport}, {record.cpu})"
    if record.verdict == "refused":
        return f"NOT RUN: {where} ran none of {len(record.checks)} models"
    wrong = sum(each.verdict == "wrong" for each in ran)
    layers = sum(each.layers for each in ran)
    if wrong:
        return f"WRONG: {where} computes {wrong} of {len(ran)} models wrong"
    return f"RIGHT: {where} computes all of {len(ran)} models, {layers} layers, exactly"


def _computed(each: Arithmetic) -> str:
    """Arithmetic of the products, and of how many models it is not known."""
    left = each.models - each.known
    unknown = "not known" if left == each.models else f"not known of {left}" if left else ""
    return ", ".join((*(each.computed_in or ()), *filter(None, [unknown])))


def _stored(each: Arithmetic) -> str:
    """Where the file's numbers are of another type than the arithmetic, that; else nothing."""
    held = each.precision.split()[0]
    if each.computed_in is None or each.computed_in == (held,):
        return ""
    around = f"{', '.join(each.casts)} around " if each.casts else ""
    return (
        f"{each.format}, {each.precision}: {held} is stored, and computed in {', '.join(each.computed_in)} "
        f"({around}{', '.join(each.kernels)})"
    )


def _kind(check: Check) -> tuple[str, str]:
    return check.format, check.precision


def _result(checks: Iterable[Check]) -> str:
    checks = list(checks)
    wrong = sum(each.verdict == "wrong" for each in checks)
    refused = sum(each.verdict == "refused" for each in checks)
    if refused == len(checks):
        return "not offered"
    flushed = any(layer.harmless for each in checks for layer in each.wrong_layers)
    said = f"{wrong} wrong" if wrong else "become 0" if flushed else "exact"
    return f"{said}, {refused} refused" if refused else said


def _threshold(checks: Iterable[Check]) -> str:
    errors = [(each.threshold_error, each.step) for each in checks if each.kind == "changed"]
    if not errors:
        return ""
    if any(error is None for error, _ in errors):
        return "lost"
    worst = max(error for error, _ in errors if error is not None)
    steps = sorted(step for _, step in errors if step is not None)
    span = f"{steps[0]:.2g}" if steps[0] == steps[-1] else f"{steps[0]:.2g} to {steps[-1]:.2g}"
    return f"{worst:.2g} (steps of {span})"


def _layer(each: WrongLayer, check: Check) -> str:
    found = "no number" if each.found is None else f"{each.found:.7g}"
    cause = f"; {each.cause}" if each.cause else ""
    return (
        f"{each.operator}, layer {each.layer} of {check.layers}: {each.wrong_values} of {each.values} values; "
        f"{each.neuron} gives {found} for {each.row}, right is {each.expected:.7g}{cause}"
    )


def _answers(check: Check) -> str:
    if check.false_alarms:
        return f"a wrong category is on top in {check.false_alarms} of {check.rows} rows"
    if check.wrong_rows:
        return f"wrong categories answer in {check.wrong_rows} of {check.rows} rows"
    return "categories are not lost where the formula says"
