"""`compress selftest`: does a device compute what it should, on networks whose right answer is known exactly."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.selftest_run import EMULATED, Reached, reached
from edgepress.compressor.cli.targets import find_target
from edgepress.compressor.cli.troubles import line_told
from edgepress.compressor.columns import npz_columns
from edgepress.compressor.errors import DataError, DeviceError, UsageError, nearest
from edgepress.compressor.exact.models import precisions
from edgepress.compressor.exact.suite import FORMATS, MOST_IMAGES, TOGETHER, networks, outcomes, trials
from edgepress.compressor.outdir import write_file
from edgepress.compressor.parallel import seldom_collecting
from edgepress.compressor.printable import printable
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.selftest import Selftest, arithmetic_of, check_of, verdict_of
from edgepress.compressor.report.selftest_words import HEADINGS, faults, headline, notes, rows

EMULATED_TOGETHER = TOGETHER >> 4
"""As `TOGETHER`: there a part takes as long as all does here, and the bar shows how far it is between parts."""

EXIT = {"right": 0, "wrong": 1, "refused": 3}


def selftest(
    *, target: str, quick: bool, wanted: tuple[str, ...], formats: str | None, images: Path | None, threads: int,
    json_file: Path | None, quiet: bool, debug: bool,
) -> int:  # fmt: skip
    """Do it, and return the exit code; arguments as the options in `options/selftest.py`."""
    spec = find_target(target)
    known = precisions(spec.activation_dtype, spec.weight_bits)
    for name in wanted:
        if name not in known:
            raise UsageError(f"{name!r} is no precision.", nearest(name, known))
    nets = networks(quick=quick, images=None if images is None else _images(images))
    with line_told(quiet) as tell, reached(spec, threads, tell) as device:
        chosen, files = [known[name] for name in wanted or known], _files(formats, device)
        todo = trials(nets, chosen, files, brief=quick or device.how == EMULATED)
        if not todo:
            raise UsageError(
                f"{', '.join(each.name for each in chosen)} is not tested as {', '.join(files)}.",
                "Leave out --format, or --precision.",
            )
        started, found = time.monotonic(), []
        together = EMULATED_TOGETHER if device.how == EMULATED else TOGETHER
        with _progress(len(todo), quiet) as advance, seldom_collecting():
            for outcome in outcomes(todo, device.run, together):
                found.append(outcome)
                advance()
    checks = tuple(map(check_of, found))
    record = Selftest(
        device=spec.name, transport=device.how, cpu=device.cpu, engines=dict(device.engines), threads=threads,
        quick=quick, verdict=verdict_of(checks), seconds=time.monotonic() - started,
        arithmetic=arithmetic_of(found), checks=checks,
    )  # fmt: skip
    if not quiet and str(json_file) != "-":
        _show(record, Console())
    if json_file is not None:
        text = record.model_dump_json(indent=2) + "\n"
        if str(json_file) == "-":
            click.echo(text, nl=False)
        else:
            write_file(json_file, text, "Name another file with --json.")
    return EXIT[record.verdict]


def _files(wanted: str | None, device: Reached) -> list[str]:
    """Formats to run; raises `UsageError` for what is none, `DeviceError` for what does not run there."""
    names = list(device.formats) if wanted is None else [each.strip() for each in wanted.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"{name!r} is no format.", nearest(name, FORMATS))
        if name not in device.formats:
            raise DeviceError(
                f"Nothing there runs {name} files.", "Install an engine, or leave out --format."
            )
    if not names:
        raise DeviceError(
            "There is no engine that runs models.", "Install one there: python3 -m pip install onnxruntime"
        )
    return names


def _images(path: Path) -> npt.NDArray[np.float64]:
    """The first images of an archive, [images, height, width] from 0 to 1; raises `DataError`."""
    found = next((each for each in npz_columns(path).values() if len(each.shape) >= 3), None)
    if found is None or found.dtype.kind not in "fui" or np.prod(found.shape[1:-2]) != 1:
        raise DataError(
            f"{path} has no images: numbers [images, height, width], or [images, 1, height, width].",
            "Name an npz file such as MNIST's, or leave out --images for drawn digits.",
        )
    with found.open() as take:
        taken = take(np.arange(min(MOST_IMAGES, found.shape[0]))).astype(np.float64)
    images = taken.reshape(len(taken), *found.shape[-2:])
    top = images.max(initial=0.0)
    return images / top if top > 1 else images


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A line on stderr with the time left; silent when not a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("models"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("models", total=total)
        yield lambda: bar.advance(task)


def _show(record: Selftest, console: Console) -> None:
    colour = {"right": "green", "wrong": "red", "refused": "yellow"}[record.verdict]
    console.print(Text(encodable(console, headline(record)), style=colour), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("models", "rows") else "left")
    for row in rows(record):
        table.add_row(*map(Text, row))
    console.print(table)
    for line in faults(record):
        console.print(Text(f"✗ {printable(line)}", style="red"), soft_wrap=True)
    for line in notes(record):
        console.print(Text(f"· {printable(line)}"), soft_wrap=True)
