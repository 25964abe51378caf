"""What `compress gate` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepress.compressor.cli.options.shared import debug_option, preprocess_option, quiet_option
from edgepress.compressor.cli.units import THREADS, Finite

if TYPE_CHECKING:
    from edgepress.compressor.gate import Limit


def limit_option(context: click.Context, parameter: click.Parameter, value: str | None) -> "Limit | None":
    """`1.5MB` or `0.5x`."""
    from edgepress.compressor.cli.gate_settings import as_limit

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
    type=Finite(0, 100, max_open=True),
    help="Percent of the score that may be lost.  [default: 2]",
)
@click.option(
    "--target", "--device", "target", help="Device profile on which limits are measured.  [default: local]"
)
@click.option(
    "--max-latency-ratio",
    type=Finite(0, min_open=True),
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
    "--confidence", type=Finite(0.5, 1, min_open=True, max_open=True),
    help="Of each end of an interval.  [default: 0.95]",
)  # fmt: skip
@click.option(
    "--inconclusive",
    type=click.Choice(["report", "pass", "fail"]),
    help="What it counts as.  [default: report, exit 4]",
)
@click.option("--config", type=_path, help="Options as TOML (default: edgepress.toml beside the models).")
@preprocess_option
@click.option("--threads", type=THREADS, help="Threads of the runtime.  [default: 1]")
@click.option("--seconds", type=Finite(0, min_open=True), help="Of one timing.  [default: 3]")
@click.option("--seed", type=click.IntRange(0), help="Of the bootstrap.  [default: 0]")
@click.option("--history", type=_written, help="JSON lines with past results; this one is added.")
@click.option("--junit", "junit_file", type=_written, help="Write a JUnit file, one test case a criterion.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Write all that was found to this file; - prints it.",
)  # fmt: skip
@click.option("--markdown", "markdown_file", type=_written, help="Write a summary as Markdown.")
@quiet_option
@debug_option
def gate(**given: Any) -> int:
    """Let CANDIDATE pass if it keeps what BASELINE has, fail it if it does not, and say so where rows are too few.

    Both, .onnx, .tflite or sparse .npz, run on the same rows. Exit code 0 where the whole interval of what was lost
    lies within the budget and every limit is kept, 1 where one is broken, 2 for bad input, 3 for device trouble, 4
    where it cannot be told.
    """
    from edgepress.compressor.cli.gate import gate as work

    return work(**given)
