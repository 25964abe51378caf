"""A gate's record in words: for the terminal, the job summary, annotations and JUnit alike."""

from edgepress.compressor.printable import printable
from edgepress.compressor.report.gate import Criterion, Gate
from edgepress.compressor.report.history import trend
from edgepress.compressor.report.words import UNKNOWN, number, quantity, score_text

VERDICTS = {"kept": "PASS", "broken": "FAIL", "inconclusive": "INCONCLUSIVE"}
HEADINGS = ("criterion", "baseline", "candidate", "found", "limit", "verdict")


def cells(criterion: Criterion) -> tuple[str, str, str, str, str, str]:
    """One line of the table; names as they came."""
    unit = criterion.limit_unit
    found = UNKNOWN if criterion.found is None else _amount(criterion.found, unit)
    if criterion.interval is not None:
        low, high = (_amount(end, unit, bare=unit != "bytes") for end in criterion.interval)
        found += f" [{low}, {high}]"
    if criterion.kind in ("quality", "output", "drift") and criterion.found is not None:
        found += " lost"
    return (
        criterion.name,
        _side(criterion, criterion.baseline),
        _side(criterion, criterion.candidate),
        found,
        f"≤ {_limit(criterion)}",
        VERDICTS[criterion.verdict],
    )


def _limit(criterion: Criterion) -> str:
    if criterion.limit_unit == "bytes":
        return quantity(criterion.limit, "bytes")
    return f"{criterion.limit:g}{'×' if criterion.limit_unit == '×' else ' %'}"


def _side(criterion: Criterion, value: float | None) -> str:
    if criterion.kind == "latency":
        return quantity(value, "ns")
    if criterion.kind in ("size", "memory"):
        return quantity(value, "bytes")
    return score_text(value, criterion.unit)


def _amount(value: float, unit: str, bare: bool = False) -> str:
    if unit == "bytes":
        return quantity(value, "bytes")
    text = number(value + 0.0) if abs(value) >= 0.005 or unit == "×" else "0"
    return text if bare else f"{text}{unit}" if unit == "×" else f"{text} {unit}"


def advice(criterion: Criterion) -> str:
    """Why a criterion is broken or open, and how many rows would tell; empty where nothing is to be said."""
    said = [_sentence(criterion.reason)] if criterion.reason else []
    if criterion.verdict == "inconclusive" and criterion.rows is not None:
        one, two = criterion.rows_to_decide, criterion.rows_to_pass
        if one is not None:
            said.append(
                f"About {one} rows would decide it, if what was found is the truth (here: {criterion.rows})."
            )
        elif two is not None:
            said.append("No number of rows would decide it, if what was found is the truth.")
        if two is not None and two != one:
            said.append(f"A candidate that loses nothing would pass with about {two}.")
    return " ".join(said)


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def message(criterion: Criterion) -> str:
    """A criterion in one line."""
    _, before, after, found, limit, verdict = cells(criterion)
    numbers = f"{before} → {after}, {found}, limit {limit}. " if criterion.found is not None else ""
    return printable(f"{verdict}: {numbers}{advice(criterion)}".strip())


def headline(gate: Gate) -> str:
    """The verdict in one line."""
    text = f"{VERDICTS[gate.verdict]}: {gate.candidate.name} against {gate.baseline.name}"
    if gate.rows:
        text += f", {gate.rows} rows of {gate.test}"
    if gate.verdict == "inconclusive" and gate.inconclusive != "report":
        text += f" (taken as {gate.inconclusive})"
    return printable(text)


def summary(gate: Gate) -> str:
    """All criteria, a line each, under the headline."""
    lines = [f"  {printable(each.name)}: {message(each)}" for each in gate.criteria]
    return "\n".join([headline(gate), *lines, f"Reproduce: {printable(gate.reproduce)}"])


def history_line(gate: Gate) -> str:
    """The trend of scores, and what drift means; empty without a history."""
    if len(gate.history) < 2:
        return ""
    return f"History: {trend(gate.history)}. Drift is against the last accepted candidate."


def footnote(gate: Gate) -> str:
    """What the numbers are."""
    return (
        f"Each end of an interval holds with {100 * gate.confidence:g} % confidence. Lost: percent of the baseline's "
        f"score. Device: {printable(gate.device)}."
    )
