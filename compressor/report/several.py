"""Several runs side by side, as one self-contained page and as a table for the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.printable import printable
from edgepress.compressor.report import embed, html, plots, words
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.record import Report, dump_report

_SAME = {
    "model": "models",
    "metric": "metrics",
    "target": "targets",
    "cost_kind": "kinds of latency (measured, predicted)",
    "n_test": "numbers of unseen rows",
    "budget_percent": "budgets",
}
"""What should be alike where numbers are compared, and what to call several of it."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        letter: how plots and tables call it.
        name: of its folder, as the user gave it.
        report: its record.
        rows: before and after, by label.
    """

    letter: str
    name: str
    report: Report
    rows: Mapping[str, words.Row]

    def change(self, label: str) -> str:
        """The number after, and by what factor it changed: `10.4 kB, 165× smaller`."""
        row = self.rows.get(label)
        if row is None:
            return words.UNKNOWN
        return row.after_text + (f", {row.change}" if row.change else "")


def side_by_side(runs: Sequence[tuple[str, Report]]) -> list[Run]:
    """Runs with their letters.

    Args:
        runs: name and record each.
    """
    return [
        Run(plots.letter(index), name, report, {_label(row): row for row in words.rows(report)})
        for index, (name, report) in enumerate(runs)
    ]


def _label(row: words.Row) -> str:
    """`latency` of `latency, predicted by rates`; `score` of `score (top1)`."""
    short = row.label.startswith(("score", "latency", "instructions"))
    return row.label.split(",")[0].split(" (")[0] if short else row.label


def differences(runs: Sequence[Run]) -> list[str]:
    """What makes the runs hard to compare, in words."""
    found = []
    for field, name in _SAME.items():
        values = dict.fromkeys(str(getattr(run.report, field)) for run in runs)
        if len(values) > 1:
            found.append(f"different {name}: {', '.join(values)}")
    return found


def render(runs: Sequence[tuple[str, Report]]) -> str:
    """The page as text.

    Args:
        runs: name and record each, at least one.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    found = side_by_side(runs)
    record = [json.loads(dump_report(run.report)) for run in found]
    return html.template("several.html", "The page").render(
        runs=found,
        labels=list(dict.fromkeys(label for run in found for label in run.rows)),
        differences=differences(found),
        fronts=plots.fronts([run.report for run in found]),
        layers=_layers(found),
        headline=words.headline,
        verdict=words.verdict_text,
        record=list(embed.lines(record)),
    )


def _layers(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int | None]]]]:
    """Layers of the first run with what each run did there, and the layer's place in its record."""
    places = [{row.name: index for index, row in enumerate(run.report.sites)} for run in runs]
    if len(runs) < 2 or not all(set(each) == set(places[0]) for each in places):
        return []
    return [
        (
            name,
            [
                (html.treatment(run.report.sites[place[name]]), place[name])
                for run, place in zip(runs, places, strict=True)
            ],
        )
        for name in places[0]
    ]


def overview(runs: Sequence[tuple[str, Report]], console: Console) -> None:
    """Print one line a run; colour only where the console is a terminal.

    Args:
        runs: name and record each.
        console: where to print.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "verdict", "score", "size", "one inference"):
        table.add_column(heading, overflow="fold")
    styles = {"kept": "green", "broken": "red"}
    for run in side_by_side(runs):
        cost = "instructions" if run.report.cost_kind == "instructions" else "latency"
        cells = [Text(encodable(console, run.change(label))) for label in ("score", "size", cost)]
        name = Text(encodable(console, printable(run.name)))
        verdict = Text(run.report.verdict, style=styles.get(run.report.verdict, "yellow"))
        table.add_row(name, verdict, *cells)
    console.print(table)
