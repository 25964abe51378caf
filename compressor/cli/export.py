"""`compress export MODEL --format tflite`: a model as it is, in the form that another runtime reads."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import onnx_ir as ir
from rich.console import Console
from rich.text import Text

from edgepress.compressor.claim import beside
from edgepress.compressor.cli.host import CheckedEngine, CheckedTflite
from edgepress.compressor.cli.remaining import Stage
from edgepress.compressor.cli.run import progress_bar
from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.export.onnx import save
from edgepress.compressor.export.onnx import verify as check
from edgepress.compressor.export.parity import Proof, facts
from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.model import input_specs, load, on_disk
from edgepress.compressor.printable import printable
from edgepress.compressor.report import agreement
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.tflite import Certificate, Tflite
from edgepress.compressor.report.words import quantity
from edgepress.compressor.serialize import serialize, write
from edgepress.compressor.together import tried
from edgepress.compressor.userfunction import is_function_name

VERIFY_ROWS = 16
"""Rows that are run together."""


def export(
    *,
    model: Path,
    kind: str,
    out: Path | None,
    data: str | None,
    io: str,
    keep_layout: bool,
    shapes: dict[str, tuple[int, ...]],
    preprocess: Path | None,
    threads: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/export.py`."""
    if kind == "onnx" and (io != "float32" or keep_layout or data is not None):
        raise UsageError("--io, --keep-layout and --verify go with --format tflite.", "Leave them out.")
    if out is None:
        if kind == "onnx":
            raise UsageError("--format onnx without --out.", "Name the file to write with --out FILE.")
        out = model.parent / f"{model.stem}.tflite"
    inputs = [model, *([Path(data)] if data is not None and not is_function_name(data) else [])]
    _check_target(out, force, inputs)
    source = load(model, shapes or None)
    if kind == "onnx":
        saved = save(source)
        check(source, saved)
        found = None
        _put(out, lambda path: write(saved, path))
    else:
        samples = None if data is None else open_data(data, input_specs(source), preprocess)
        converted = convert(source, io=io, keep_layout=keep_layout)
        found = facts(converted)
        if samples is not None:
            found = found.model_copy(
                update={"certificate": _certificate(source, converted, samples, threads, as_json or quiet)}
            )
        _put(out, lambda path: path.write_bytes(converted.data))
    if as_json:
        said = {} if found is None else found.model_dump(mode="json")
        size = on_disk(out)[0] if found is None else out.stat().st_size
        click.echo(json.dumps({"file": out.name, "format": kind, **said, "size_bytes": size}, indent=2))
    elif not quiet:
        _show(out, kind, found, model)
    return 0


def _certificate(
    source: ir.Model, converted: Converted, samples: Dataset, threads: int, quiet: bool
) -> Certificate:
    """Both files on all samples, each row by itself where the ONNX file needs that."""
    expected = CheckedEngine().load(serialize(source), threads)
    if tried(expected, samples, None).alone:
        samples = samples.one_at_a_time()
    proof = Proof.of(source, converted, expected, CheckedTflite(), threads)
    with progress_bar(quiet, [Stage("verify", work=1.0)]) as tell:
        for _ in proof.comparison.through(samples.batches(VERIFY_ROWS)):
            rows = proof.comparison.rows
            tell("verify", rows / samples.rows, f"{rows} of {samples.rows} samples")
    return proof.certificate()


def _check_target(out: Path, force: bool, inputs: Iterable[Path]) -> None:
    """Refuse before any work what cannot be written, or must not be."""
    choose = "Name another file with --out FILE."
    if any(path.resolve() == out.resolve() for path in inputs):
        raise OutputError(f"{out} is an input of this run; it would be overwritten.", choose)
    if out.is_dir():
        raise OutputError(
            f"{out} is a folder.", "Name a file in it, such as --out " + str(out / "model.tflite")
        )
    if out.exists() and not out.is_file():
        raise OutputError(f"{out} is no file, and a file would replace it.", choose)
    if not out.absolute().parent.is_dir():
        raise OutputError(f"The folder {out.absolute().parent} does not exist.", choose)
    if out.exists() and not force:
        raise OutputError(f"{out} is there already.", "Name another file, or add --force to overwrite it.")


def _put(out: Path, fill: Callable[[Path], object]) -> None:
    """Write a file, and what belongs to it, whole or not at all: beside it first, then renamed into place."""
    try:
        with beside(out) as folder:
            fill(folder / out.name)
    except OSError as error:
        raise OutputError(f"Cannot write {out}: {error.strerror or error}.", "Name another file.") from error


def _show(out: Path, kind: str, found: Tflite | None, model: Path) -> None:
    """What came out, in a few lines."""
    console = Console()
    size = out.stat().st_size if found is not None else on_disk(out)[0]
    said = [
        (
            "Written",
            f"{out}, {quantity(size, 'bytes')} ({model.name}: {quantity(on_disk(model)[0], 'bytes')})",
        )
    ]
    said += agreement.lines(found) if found is not None else []
    for label, text in said:
        console.print(Text(encodable(console, printable(f"{label:9}{text}"))), soft_wrap=True)
