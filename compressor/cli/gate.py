"""`compress gate BASELINE CANDIDATE --test DATA`: may the candidate take the baseline's place."""

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.gate_run import run_gate
from edgepress.compressor.cli.gate_settings import as_limit, command_of, settings_of
from edgepress.compressor.cli.remaining import Stage
from edgepress.compressor.cli.run import progress_bar
from edgepress.compressor.errors import OutputError
from edgepress.compressor.gate import Limit
from edgepress.compressor.outdir import write_file
from edgepress.compressor.printable import printable
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.gate import Gate
from edgepress.compressor.report.gate_markdown import annotations, markdown
from edgepress.compressor.report.gate_words import HEADINGS, advice, cells, footnote, headline, history_line
from edgepress.compressor.report.junit import junit

_COLOURS = {"kept": "green", "broken": "red", "inconclusive": "yellow"}
_PLAN = (Stage("score", work=1.0), Stage("time", work=1.0), Stage("weigh", work=0.3))


def limit_option(context: click.Context, parameter: click.Parameter, value: str | None) -> Limit | None:
    """`1.5MB` or `0.5x`."""
    try:
        return None if value is None else as_limit(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


_path = click.Path(path_type=Path)
_written = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("baseline", required=False, type=_path)
@click.argument("candidate", required=False, type=_path)
@click.option("--test", help="Rows that neither has seen: npz, folder of images or module:function.")
@click.option("--metric", help="As of `compress run`; default: by what there is.")
@click.option(
    "--output", help="Which output the metric reads (default: the first); the others are held to fidelity."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 100, max_open=True),
    help="Percent of the score that may be lost.  [default: 2]",
)
@click.option(
    "--target", "--device", "target", help="Device profile on which limits are measured.  [default: local]"
)
@click.option(
    "--max-latency-ratio",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Most that candidate / baseline may be.",
)
@click.option(
    "--max-size",
    callback=limit_option,
    metavar="LIMIT",
    help="Of the file: 1.5MB, or 0.5x or 50% of the baseline's.",
)
@click.option(
    "--max-memory", callback=limit_option, metavar="LIMIT", help="Of the peak of one run: likewise."
)
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    help="Of each end of an interval.  [default: 0.95]",
)  # fmt: skip
@click.option(
    "--inconclusive",
    type=click.Choice(["report", "pass", "fail"]),
    help="What it counts as.  [default: report, exit 4]",
)
@click.option("--config", type=_path, help="Options as TOML (default: edgepress.toml beside the models).")
@click.option("--preprocess", type=_path, help="preprocess.toml for images.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime.  [default: 1]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Of one timing.  [default: 3]")
@click.option("--seed", type=click.IntRange(0), help="Of the bootstrap.  [default: 0]")
@click.option("--history", type=_written, help="JSON lines with past results; this one is added.")
@click.option("--junit", "junit_file", type=_written, help="Write a JUnit file, one test case a criterion.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Write all that was found to this file; - prints it.",
)  # fmt: skip
@click.option("--markdown", "markdown_file", type=_written, help="Write a summary as Markdown.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def gate(
    *, config: Path | None, junit_file: Path | None, json_file: Path | None, markdown_file: Path | None,
    quiet: bool, debug: bool, **given: Any,
) -> int:  # fmt: skip
    """Let CANDIDATE pass if it keeps what BASELINE has, fail it if it does not, and say so where rows are too few.

    Both, .onnx, .tflite or sparse .npz, run on the same rows. Exit code 0 where the whole interval of what was lost
    lies within the budget and every limit is kept, 1 where one is broken, 2 for bad input, 3 for device trouble, 4
    where it cannot be told.
    """
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
