"""`compress MODEL`: the main job."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from edgepress.compressor.cli.host import make_host, usable_cache
from edgepress.compressor.cli.interrupt import INTERRUPTED, first_interrupt
from edgepress.compressor.cli.pick import picked
from edgepress.compressor.cli.remaining import APPLY, SEARCH, Remaining, Stage, in_words
from edgepress.compressor.cli.timings import read_timings, write_timings
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Job
from edgepress.compressor.outdir import staged
from edgepress.compressor.printable import printable, showable
from edgepress.compressor.protocols import Tell
from edgepress.compressor.recipe import parse
from edgepress.compressor.report.build import build_report, write_result
from edgepress.compressor.report.console import summary
from edgepress.compressor.report.record import FILE_NAME, Report
from edgepress.compressor.session import run as run_session
from edgepress.compressor.userfunction import is_function_name

STAGES = tuple(dict.fromkeys(stage.name for plan in (APPLY, SEARCH) for stage in plan))
"""All that are told."""

TIMING_SECONDS = 10.0
"""Time limit of one interleaved timing."""


@contextmanager
def progress_bar(quiet: bool, plan: Sequence[Stage] = SEARCH, minutes: float | None = None) -> Iterator[Tell]:
    """A line on stderr that says what goes on, and about how long yet; silent when not a terminal.

    Args:
        quiet: say nothing.
        plan: the stages that will come.
        minutes: after which the search begins nothing new.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage, share, detail: None
        return
    limit = math.inf if minutes is None else 60 * minutes
    remaining = Remaining(plan, limit, time.monotonic())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:9}"),
        Whole(remaining),
        TimeElapsedColumn(),
        Left(remaining),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("load", total=None, detail="")

        def tell(stage: str, share: float, detail: str) -> None:
            remaining.tell(time.monotonic(), stage, share)
            bar.update(task, description=stage, detail=printable(detail)[:40])

        yield tell


class Whole(ProgressColumn):
    """The share of the whole run that is over, as a bar."""

    def __init__(self, remaining: Remaining) -> None:
        super().__init__()
        self.remaining = remaining

    def render(self, task: Task) -> ProgressBar:
        """Draw the bar as it is now."""
        return ProgressBar(total=1.0, completed=self.remaining.done(time.monotonic()), width=20)


class Left(ProgressColumn):
    """How long it may take yet, in words."""

    def __init__(self, remaining: Remaining) -> None:
        super().__init__()
        self.remaining = remaining

    def render(self, task: Task) -> Text:
        """Say it as it is now."""
        return Text(in_words(self.remaining.left(time.monotonic())), style="cyan")


def run(
    *,
    model: Path,
    target: str,
    out: Path | None,
    recipe: Path | None,
    time_limit: float | None,
    timings: Path | None,
    workers: int | None,
    scheduler: str | None,
    cache: Path | None,
    no_cache: bool,
    no_device: bool,
    pick: str | None,
    earlier: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **rest: Any,
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/run.py`."""
    usual = model.parent / f"{model.stem}-compressed"
    out = out or usual
    point = None if pick is None else picked(pick, earlier, [out, usual])
    if point is not None:
        job, target = point.job({"model": model, **given(rest)}), point.target
    elif earlier is not None:
        raise UsageError("--from without --pick.", "Say which point with --pick N.")
    else:
        job = Job(
            model,
            recipe=None if recipe is None else parse(read_text(recipe)),
            time_limit_minutes=time_limit,
            **rest,
        )
    with staged(out, force, input_paths(job, recipe, timings)) as folder:
        plan = SEARCH if job.data is not None and job.recipe is None else APPLY
        bar = progress_bar(quiet or as_json, plan, time_limit)
        with bar as tell, first_interrupt() as (watch, stopped):
            host = make_host(
                target,
                job.threads,
                job.seed,
                TIMING_SECONDS,
                watch(tell),
                workers=workers,
                scheduler=scheduler,
                cache=None if no_cache else cache or usable_cache(),
                stopped=stopped,
                device=not no_device,
            )
            job = read_timings(timings, job, host.target.name)
            found = run_session(job, host)
        report = build_report(found)
        if point is not None:
            report = point.report(report, found)
        write_result(found, report, folder, out, recipe)
        if timings is not None:
            write_timings(timings, found)
    if as_json:
        click.echo((out / FILE_NAME).read_text(encoding="utf-8"), nl=False)
    show(report, found.warnings, out, table=not (as_json or quiet), warn=not quiet)
    return INTERRUPTED if found.stopped else report.exit_code


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of this command that the user named."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in options.items() if source(name) is not ParameterSource.DEFAULT}


def show(report: Report, warnings: Sequence[str], out: Path, *, table: bool, warn: bool) -> None:
    """The table on stdout, and what the user should know on stderr."""
    if table:
        summary(report.model_copy(update={"warnings": ()}), Console(), out)
    for warning in warnings if warn else ():
        click.echo(showable(f"warning: {warning}"), err=True)


def input_paths(job: Job, *others: Path | None) -> list[Path]:
    """Files and folders that a run reads; the output may not lie over them."""
    sources = [source for source in (job.data, job.test) if isinstance(source, str | Path)]
    named = [Path(s) for s in sources if not (isinstance(s, str) and is_function_name(s))]
    return [job.model, *named, *(path for path in (job.preprocess, *others) if path is not None)]


def read_text(path: Path) -> str:
    """A text file of the user's; raises `UsageError` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}.", "Give the path of a text file.") from error
