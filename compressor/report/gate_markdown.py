"""A gate as Markdown, for the summary of a job, and as annotations of GitHub's runner."""

import html
import re

from edgepress.compressor.printable import printable
from edgepress.compressor.report.gate import Gate
from edgepress.compressor.report.gate_words import (
    HEADINGS,
    advice,
    cells,
    footnote,
    headline,
    history_line,
    message,
)

_SIGNS = {"kept": "✅", "broken": "❌", "inconclusive": "❓"}


def markdown(gate: Gate) -> str:
    """A heading, the table, reasons, and how to repeat it."""
    lines = [
        f"### {_SIGNS[gate.verdict]} {_escaped(headline(gate))}",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{' --- |' * len(HEADINGS)}",
    ]
    lines += [f"| {' | '.join(_escaped(cell) for cell in cells(criterion))} |" for criterion in gate.criteria]
    said = [(criterion.name, advice(criterion)) for criterion in gate.criteria]
    lines += ["", *(f"- **{_escaped(name)}**: {_escaped(text)}" for name, text in said if text)]
    lines += [f"- Note: {_escaped(warning)}" for warning in gate.warnings]
    if history_line(gate):
        lines.append(f"- {_escaped(history_line(gate))}")
    lines += ["", _escaped(footnote(gate)), "", "Reproduce:", "", f"    {printable(gate.reproduce)}", ""]
    return "\n".join(lines)


def annotations(gate: Gate) -> list[str]:
    """One command of GitHub's runner for each criterion that is not kept."""
    levels = {"broken": "error", "inconclusive": {"pass": "notice"}.get(gate.inconclusive, "warning")}
    return [
        f"::{levels[each.verdict]} title={_property(f'edgepress gate: {each.name}')}::{_data(message(each))}"
        for each in gate.criteria
        if each.verdict in levels
    ]


def _escaped(text: str) -> str:
    """Text that Markdown, with the HTML in it, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(printable(text), quote=False))


def _data(text: str) -> str:
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
