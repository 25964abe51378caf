"""`compress MODEL`: the main job."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.errors import UsageError
from edgepress.compressor.outdir import staged
from edgepress.compressor.recipe import parse
from edgepress.compressor.report.build import build_report, write_result
from edgepress.compressor.report.console import summary
from edgepress.compressor.session import Job
from edgepress.compressor.session import run as run_session

STAGES = ("normalise", "samples", "options", "search", "fit", "time", "export", "measure", "judge")


def shape_option(
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


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Any]:
    """A line on stderr that says what goes on; silent when not a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage, share, detail: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("load", total=float(len(STAGES)), detail="")

        def tell(stage: str, share: float, detail: str) -> None:
            place = STAGES.index(stage) if stage in STAGES else 0
            bar.update(task, description=stage, completed=place + share, detail=detail[:50])

        yield tell


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", "--device", default="local", show_default=True, help="Device profile: a name or a TOML file."
)
@click.option(
    "--data", help="Samples for calibration and search: .npz, folder of images, or module:function."
)
@click.option("--test", help="Unseen samples for the verdict; without it, half of --data is set aside.")
@click.option("--metric", help="top1, top5, mse, mae, psnr, agreement, fidelity, or module:function.")
@click.option("--output", help="Which output the metric reads (default: the first).")
@click.option(
    "--budget",
    type=click.FloatRange(0, 100, max_open=True),
    default=2.0,
    show_default=True,
    help="Percent of the score that may be lost.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "size", "memory"]),
    default="latency",
    show_default=True,
    help="What is to become small.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the results (default: MODEL-compressed)."
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="TOML file of passes to apply, instead of a search."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    help="Minutes after which the search begins nothing new.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtime."
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=shape_option,
    help="Fix dynamic dimensions: NAME=1,3,224,224.",
)
@click.option("--leave", multiple=True, help="Regular expression of sites not to touch.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="preprocess.toml for images.")
@click.option(
    "--timings",
    type=click.Path(path_type=Path),
    help="JSON file of timings: used where it has them, written after.",
)
@click.option("--force", is_flag=True, help="Replace a folder that this tool did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def run(
    model: Path,
    target: str,
    out: Path | None,
    recipe: Path | None,
    time_limit: float | None,
    timings: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **rest: Any,
) -> int:
    """Compress MODEL for a device, within a budget; write model, report and manifest to a folder."""
    out = out or model.with_name(f"{model.stem}-compressed")
    job = Job(
        model,
        recipe=None if recipe is None else parse(read_text(recipe)),
        time_limit_minutes=time_limit,
        timings={} if timings is None or not timings.exists() else read_timings(timings),
        **rest,
    )
    with staged(out, force) as folder:
        with progress_bar(quiet or as_json) as tell:
            host = make_host(target, job.threads, job.seed, 10.0, tell)
            result = run_session(job, host)
        report = build_report(result)
        write_result(result, report, folder, out, recipe)
        if timings is not None:
            timings.write_text(json.dumps(result.timings, indent=2, sort_keys=True) + "\n")
    if as_json:
        click.echo((out / "report.json").read_text(), nl=False)
    elif not quiet:
        summary(report, Console(), out)
    return report.exit_code


def read_text(path: Path) -> str:
    """A text file of the user's; raises `UsageError` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {path}: {error}.", "Give the path of a text file.") from error


def read_timings(path: Path) -> dict[str, float]:
    """Stored timings: candidate digest → nanoseconds; raises `UsageError` where the file is damaged."""
    try:
        document = json.loads(read_text(path))
        return {str(name): float(ns) for name, ns in document.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path} holds no timings: {error}.", "Delete it; the next run writes it anew."
        ) from error
