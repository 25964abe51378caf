"""`compress MODEL`: the main job."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from edgepress.compressor.cli.host import make_host, usable_cache
from edgepress.compressor.cli.interrupt import INTERRUPTED, first_interrupt
from edgepress.compressor.cli.pick import picked
from edgepress.compressor.cli.remaining import APPLY, SEARCH, Remaining, Stage, in_words
from edgepress.compressor.cli.timings import read_timings, write_timings
from edgepress.compressor.cli.units import size_option, time_option
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import FORMATS, Job
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


def _shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """`name=1,3,224,224` → {name: (1, 3, 224, 224)}."""
    shapes = {}
    for text in values:
        name, _, dims = text.rpartition("=")
        try:
            shapes[name] = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shapes[name] = ()
        if not name or not shapes[name] or min(shapes[name]) < 1:
            raise click.BadParameter(f"{text!r}: write NAME=1,3,224,224", ctx, param)
    return shapes


shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    help="Fix dynamic dimensions: NAME=1,3,224,224.",
)
"""`--shape`, which reaches the command as `shapes`."""


def formats_option(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """`onnx,tflite` → ("onnx", "tflite"); what is unknown is refused with the job."""
    return tuple(dict.fromkeys(word.strip().lower() for word in value.split(",") if word.strip()))


def some_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete files where the value may be one."""
    return [CompletionItem(incomplete, type="file")]


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


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of the main job."""
    path = click.Path(path_type=Path)
    positive = click.FloatRange(0, min_open=True)
    options: Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]] = (
        click.option(
            "--target",
            "--device",
            default="local",
            show_default=True,
            help="Device profile: a name or a TOML file.",
        ),
        click.option(
            "--data",
            shell_complete=some_file,
            help="Samples for calibration and search: .npz, folder of images, or module:function.",
        ),
        click.option(
            "--test",
            shell_complete=some_file,
            help="Unseen samples for the verdict; without it, half of --data is set aside.",
        ),
        click.option("--metric", help="top1, top5, mse, mae, psnr, agreement, fidelity, or module:function."),
        click.option(
            "--output",
            help="Which output the metric reads (default: the first); the others are held to fidelity.",
        ),
        click.option(
            "--budget",
            type=click.FloatRange(0, 100, max_open=True),
            default=2.0,
            show_default=True,
            help="Percent of the score that may be lost.",
        ),
        click.option(
            "--objective",
            type=click.Choice(["latency", "size", "memory"]),
            default="latency",
            show_default=True,
            help="What is to become small.",
        ),
        click.option(
            "--max-size",
            "max_size_bytes",
            metavar="SIZE",
            callback=size_option,
            help="Largest file: 20kB, 1.5MB; else exit 1.",
        ),
        click.option(
            "--max-latency",
            "max_latency_ns",
            metavar="TIME",
            callback=time_option,
            help="Slowest inference: 300us, 2ms; else exit 1.",
        ),
        click.option(
            "--pick", metavar="N", help="Build point N of an earlier run's front, without searching again."
        ),
        click.option(
            "--from", "earlier", type=path, help="Folder of the earlier run for --pick (default: --out)."
        ),
        click.option(
            "--format",
            "formats",
            default=",".join(FORMATS),
            show_default=True,
            callback=formats_option,
            help="Files to write; TFLite where it can be. tflite alone: it must be, or exit 2.",
        ),
        click.option("--out", type=path, help="Folder for the results (default: MODEL-compressed)."),
        click.option("--recipe", type=path, help="TOML file of passes to apply, instead of a search."),
        click.option(
            "--time-limit", type=positive, help="Minutes after which the search begins nothing new."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of every random choice.",
        ),
        click.option(
            "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtime."
        ),
        shape_option,
        click.option("--leave", multiple=True, help="Regular expression of sites not to touch."),
        click.option("--preprocess", type=path, help="preprocess.toml for images."),
        click.option(
            "--timings", type=path, help="JSON file of timings: used where it has them, written after."
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Processes that work side by side (default: one a core).",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do it: tcp://HOST:8786."
        ),
        click.option(
            "--cache",
            type=path,
            envvar="EDGEPRESS_CACHE",
            help="Folder for what was worked out, from where an interrupted run goes on.",
        ),
        click.option(
            "--no-device",
            is_flag=True,
            help="Predict costs and judge here, even where the target could be emulated or reached.",
        ),
        click.option(
            "--device-rows",
            type=click.IntRange(1),
            metavar="N",
            help="Unseen rows that an emulated or distant target judges (default: what takes two minutes).",
        ),
        click.option("--no-cache", is_flag=True, help="Work everything out afresh."),
        click.option("--force", is_flag=True, help="Write into a folder that this tool did not write."),
        click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table."),
        click.option("--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--debug", is_flag=True, help="Show tracebacks."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@run_options
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
    """Compress MODEL for a device, within a budget; write model, report and manifest to a folder."""
    usual = model.with_name(f"{model.stem}-compressed")
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
