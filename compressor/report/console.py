"""The table at the end of a run, for the terminal."""

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.report import agreement, fit, words
from edgepress.compressor.report.record import Report

_WIDTH = 80
_STYLES = {"kept": "green", "broken": "red", "inconclusive": "yellow", "unverified": "yellow"}
_ASCII = str.maketrans({"→": "->", "×": "x", "–": "-", "µ": "u", "−": "-", "…": "...", "≥": ">=", "·": "-"})


def summary(report: Report, console: Console, out: Path | None = None) -> None:
    """Print what came of a run: headline, before/after, budget, verdict, warnings, where the results are.

    Colour only where the console is a terminal; ASCII where its encoding has no more.

    Args:
        report: the record.
        console: where to print.
        out: folder with the results, or None where there is none.
    """

    def say(text: str, style: str = "") -> None:
        # Text, not markup: names like `conv[0]` come from models.
        console.print(Text(plain(text), style=style), width=_columns(console), soft_wrap=False)

    plain = partial(encodable, console)

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("before", "after"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for row in words.rows(report):
        style = "" if row.good is None else "green" if row.good else "red"
        cells = (row.label, row.before_text, row.after_text)
        table.add_row(*(Text(plain(cell)) for cell in cells), Text(plain(row.change), style=style))
    say(f"{report.model}: {words.headline(report)}", "bold")
    console.print()
    console.print(table, width=_columns(console))
    console.print()
    say(f"Budget   {words.budget_text(report)}")
    say(f"Verdict  {report.verdict}. {words.verdict_text(report)}", _STYLES[report.verdict])
    if device := words.device_text(report):
        say(f"Device   {device[0].upper()}{device[1:]}.")
    if limits := words.limits_text(report):
        say(f"Limits   {limits}", "red" if report.limits_missed else "green")
    if report.tflite is not None:
        score = "" if report.tflite.certificate is None else words.tflite_score(report)
        say(f"TFLite   {agreement.brief(report.tflite)}{score}")
    if sparse := words.sparse_text(report):
        say(f"Sparse   {sparse}")
    if report.microcontroller is not None:
        for label, text in fit.lines(report.microcontroller):
            say(f"{label:11}{text}")
    for warning in report.warnings:
        say(f"Note     {warning}")
    if out is not None:
        # One line whatever its length: a path that is broken in two cannot be copied.
        console.print(Text(plain(f"Results  {out}")), soft_wrap=True)


def encodable(console: Console, text: str) -> str:
    """A text as the console's encoding can say it."""
    fits = console.encoding.lower().replace("-", "") in ("utf8", "utf16", "utf32")
    return text if fits else text.translate(_ASCII).encode("ascii", "replace").decode()


def _columns(console: Console) -> int:
    return min(console.width, _WIDTH)
