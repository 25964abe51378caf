"""`compress gate BASELINE CANDIDATE --test DATA`: may the candidate take the baseline's place."""

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.gate_run import run_gate
from edgepress.compressor.cli.gate_settings import command_of, settings_of
from edgepress.compressor.cli.remaining import Stage
from edgepress.compressor.cli.run import progress_bar
from edgepress.compressor.errors import OutputError
from edgepress.compressor.outdir import write_file
from edgepress.compressor.printable import printable
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.gate import Gate
from edgepress.compressor.report.gate_markdown import annotations, markdown
from edgepress.compressor.report.gate_words import HEADINGS, advice, cells, footnote, headline, history_line
from edgepress.compressor.report.junit import junit

_COLOURS = {"kept": "green", "broken": "red", "inconclusive": "yellow"}
_PLAN = (Stage("score", work=1.0), Stage("time", work=1.0), Stage("weigh", work=0.3))


def gate(
    *, config: Path | None, junit_file: Path | None, json_file: Path | None, markdown_file: Path | None,
    quiet: bool, debug: bool, **given: Any,
) -> int:  # fmt: skip
    """Do it, and return the exit code; arguments as the options in `options/gate.py`."""
    settings, path = settings_of(given, config)
    reproduce = command_of(given, path)
    with progress_bar(quiet, _PLAN) as tell:
        record = run_gate(settings, reproduce, tell)
    texts = {junit_file: junit(record), markdown_file: markdown(record)}
    for file, text in texts.items():
        if file is not None:
            write_file(file, text, "Name another file.")
    if json_file is not None:
        text = record.model_dump_json(indent=2) + "\n"
        if str(json_file) == "-":
            click.echo(text, nl=False)
        else:
            write_file(json_file, text, "Name another file with --json.")
    if not quiet and str(json_file) != "-":
        show(record, Console())
    tell_github(record, str(json_file) == "-")
    return record.exit_code


def show(record: Gate, console: Console) -> None:
    """Print the verdict, the table, and what is to be said about it."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(encodable(console, printable(text)), style=style), soft_wrap=True)

    say(headline(record), _COLOURS[record.verdict])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("criterion", "verdict") else "right"
        )
    for criterion in record.criteria:
        shown = [encodable(console, printable(cell)) for cell in cells(criterion)]
        table.add_row(*map(Text, shown[:-1]), Text(shown[-1], style=_COLOURS[criterion.verdict]))
    console.print(table)
    for criterion in record.criteria:
        text = advice(criterion)
        if text:
            say(f"{criterion.name}: {text}")
    for warning in record.warnings:
        say(f"Note: {warning}", "yellow")
    if history_line(record):
        say(history_line(record))
    say(footnote(record), "dim")


def tell_github(record: Gate, quiet: bool) -> None:
    """Annotations and the summary of a job, where GitHub's runner is what runs this; see its documentation of both."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for line in () if quiet else annotations(record):
        click.echo(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as stream:
                stream.write(markdown(record) + "\n")
        except OSError as error:
            raise OutputError(
                f"Cannot write {summary}: {error.strerror}.", "Is GITHUB_STEP_SUMMARY right?"
            ) from error
