"""`compress evolve`: train a perceptron that is sparse from the start."""

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from threadpoolctl import threadpool_limits

from edgepress.compressor.cli.host import CheckedEngine
from edgepress.compressor.cli.remaining import EVOLVE
from edgepress.compressor.cli.run import progress_bar
from edgepress.compressor.errors import UsageError
from edgepress.compressor.evolve import kernels, session
from edgepress.compressor.evolve.augment import Augmentation
from edgepress.compressor.evolve.layers import Step
from edgepress.compressor.evolve.schedules import Schedule
from edgepress.compressor.evolve.start import Start, read_start
from edgepress.compressor.evolve.training import Settings, Training
from edgepress.compressor.outdir import staged
from edgepress.compressor.printable import printable, showable
from edgepress.compressor.protocols import Tell
from edgepress.compressor.report import evolve_page
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.build import input_of, peak_rss_bytes
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.evolve import Evolved, dump
from edgepress.compressor.report.html import MissingExtra
from edgepress.compressor.report.record import FILE_NAME
from edgepress.compressor.report.words import number, quantity
from edgepress.compressor.userfunction import is_function_name


def evolve(
    *,
    data: str,
    test: str | None,
    source: Path | None,
    out: Path | None,
    preprocess: Path | None,
    threads: int | None,
    resume: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **rest: Any,
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/evolve.py`."""
    threads = threads or os.cpu_count() or 1
    named, modules = kernels.choose(rest.pop("kernels"), threads)
    start = None if source is None else read_start(source)
    settings = _settings(start, **rest)
    out = out or _usual(data, source)
    path = out.parent / f"{out.name}.checkpoint.npz"
    if path.exists() and not (resume or force):
        raise UsageError(
            f"{path} is the checkpoint of an interrupted run.",
            "Go on with --resume, or drop it with --force.",
        )
    files = [Path(each) for each in (data, test) if each is not None and not is_function_name(each)]
    files += [each for each in (source, preprocess) if each is not None]
    shape = None if start is None else start.shape
    with staged(out, force, files) as folder, threadpool_limits(threads):
        with progress_bar(quiet or as_json, EVOLVE) as tell:
            tell("samples", 0.0, "")
            rows = session.read_rows(data, test, settings.seed, shape, preprocess)
            session.check(settings, rows)
            training = session.prepare(settings, rows, modules, start)
            wanted = session.fingerprint(settings, rows, start)
            if resume:
                session.resume(training, path, wanted)
            _train(training, path, wanted, tell)
            peak = peak_rss_bytes(0)
            tell("export", 0.0, "")
            net, accuracy = session.write_models(training, folder, CheckedEngine())
        found = session.record(training, rows, net, accuracy, peak, named, threads, folder)
        found = _write(found, folder, [("data", data), ("test", test), ("model", source)], out)
    path.unlink(missing_ok=True)
    if as_json:
        click.echo((out / FILE_NAME).read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        _show(found, out)
    for warning in () if quiet else found.warnings:
        click.echo(showable(f"warning: {warning}"), err=True)
    return 0


def _settings(
    start: Start | None,
    *,
    layers: tuple[int, ...] | None,
    method: Any,
    zeta: float,
    zeta_min: float,
    kappa: float,
    interest: float,
    rate: float,
    momentum: float,
    decay: float,
    shift: int,
    flip: bool,
    threshold: float,
    **rest: Any,
) -> Settings:
    """What the options say.

    Raises:
        UsageError: they contradict each other.
    """
    if (layers is None) == (start is None):
        raise UsageError(
            "Exactly one of --layers and --from is needed.", "Say --layers 784,1000,10, for example."
        )
    if zeta_min > zeta:
        raise UsageError(f"--zeta-min {zeta_min:g} is above --zeta {zeta:g}.", "Lower it.")
    if start is not None and threshold:
        raise UsageError("--threshold with --from: the model has its own.", "Leave out --threshold.")
    return Settings(
        layers=start.widths if start is not None else layers or (),
        schedule=Schedule(method, zeta, zeta_min, kappa, interest),
        step=Step(rate, momentum, decay),
        augmentation=Augmentation(shift, flip),
        threshold=threshold if start is None else start.threshold,
        **rest,
    )


def _usual(data: str, source: Path | None) -> Path:
    """Where results go if nobody says."""
    if source is not None:
        return source.parent / f"{source.stem}-evolved"
    if is_function_name(data):
        return Path(f"{data.replace(':', '-')}-evolved")
    return Path(data).parent / f"{Path(data).stem}-evolved"


def _train(training: Training, path: Path, wanted: dict[str, Any], tell: Tell) -> None:
    try:
        session.train(training, path, wanted, tell)
    except UsageError:
        path.unlink(missing_ok=True)  # it would only diverge again
        raise
    except KeyboardInterrupt:
        if path.exists():
            click.echo(f"Epoch {len(training.history)} is in {path}: --resume goes on from there.", err=True)
        raise


def _write(found: Evolved, folder: Path, sources: list[tuple[Any, Any]], out: Path) -> Evolved:
    """Write report and manifest beside the models; returns the record as written."""
    try:
        (folder / "report.html").write_text(evolve_page.render(found), encoding="utf-8")
    except MissingExtra as error:
        found = found.model_copy(update={"warnings": (*found.warnings, str(error))})
    (folder / FILE_NAME).write_text(dump(found), encoding="utf-8")
    inputs = tuple(input_of(role, source, out) for role, source in sources if source is not None)
    manifests.write(
        manifests.Manifest(
            tool_version=found.versions["edgepress"],
            versions=found.versions,
            seed=int(str(found.settings["seed"])),
            options={"command": "evolve", **found.settings},
            recipe=(),
            inputs=inputs,
            files=manifests.hash_files(folder),
        ),
        folder,
    )
    return found


def _show(found: Evolved, out: Path) -> None:
    """What came out, in a few lines."""
    console = Console()
    lines = (
        ("accuracy", f"{found.test_accuracy:.2f} % of {found.test_rows} test rows"),
        (
            "weights",
            f"{quantity(found.weights, 'count')} of {quantity(found.dense_weights, 'count')}, "
            f"{number(found.compression)}× fewer; neurons {' – '.join(map(str, found.widths))}",
        ),
        ("an epoch", f"{number(found.seconds_per_epoch)} s ({found.kernels}, {found.threads} threads)"),
        (
            "written",
            f"{out}: " + ", ".join(f"{n} {quantity(s, 'bytes')}" for n, s in found.size_bytes.items()),
        ),
    )
    for label, text in lines:
        console.print(Text(encodable(console, printable(f"{label:10}{text}"))), soft_wrap=True)
