"""`compress bench --per-layer`: what each layer takes, by the profiler of the engine on the device."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.printable import printable
from edgepress.compressor.report.bench import LayerRow, ModelTimes
from edgepress.compressor.report.console import encodable
from edgepress.compressor.report.words import number, quantity
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.remote import Feeds, RemoteWorker
from edgepress.runtime.engines.choose import is_onnx

COUNTED = "instructions are counted of whole inferences: an emulator does not know layers"
NATIVE = "a program of the device's own times whole inferences"
FITTED = "nothing is timed on a microcontroller"
MOST = 20
"""Layers that are shown; the others are in the file of `--json`."""


def none(reason: str, count: int) -> list[dict[str, Any]]:
    """Fields of `ModelTimes` where layers cannot be had."""
    return [{"layers_reason": reason}] * count


def layers(
    worker: RemoteWorker, models: Sequence[Path], feeds: Sequence[Feeds], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Times of layers: fields of `ModelTimes`, one mapping a model.

    Args:
        worker: on the open device.
        models: files here.
        feeds: of each.
        threads: of the engine.
        seconds: for all models together, about.

    Raises:
        EngineError: the engine there refuses a model.
        DeviceTroubleError: the device does not answer, or not readably.
    """
    each = seconds / len(models)
    with TemporaryDirectory(prefix="edgepress-") as folder:
        named = [_named(model, Path(folder) / f"{place}.onnx") for place, model in enumerate(models)]
        limit = 2 * seconds + 60.0
        answer = worker.ask("layers", named, feeds, threads=threads, limit_s=limit, time_limit_s=each)
    try:
        return [_fields(said) for _, said in zip(models, answer.result, strict=True)]
    except (TypeError, KeyError, ValueError, ValidationError) as error:
        raise DeviceTroubleError(
            f"{worker.device.name}: the worker gave no readable answer", "Try again."
        ) from error


def _named(model: Path, target: Path) -> Path:
    """The same model with a name for each node: its first result's where it has none, or the engine would number it."""
    if not is_onnx(model):
        return model
    proto = onnx.load(model)
    for node in proto.graph.node:
        node.name = node.name or next((name for name in node.output if name), "")
    onnx.save(proto, target)
    return target


def _fields(said: Any) -> dict[str, Any]:
    if said["layers"] is None:
        return {"layers_reason": str(said["reason"])}
    whole = float(said["run_ns"])
    rows = tuple(
        LayerRow(
            name=str(row["name"]),
            op=str(row["op"]),
            ns=float(row["ns"]),
            share_percent=100 * float(row["ns"]) / whole if whole > 0 else 0.0,
            calls=float(row["calls"]),
        )
        for row in said["layers"]
    )
    return {"layers": rows, "layers_runs": int(said["runs"])}


def show(models: Sequence[ModelTimes], console: Console) -> None:
    """A table a model, the dearest layers first."""

    def plain(text: str) -> str:
        return encodable(console, printable(text))

    for model in models:
        console.print()
        if model.layers is None:
            said = f"{model.model}: no times of layers: {model.layers_reason}."
            console.print(Text(plain(said)), soft_wrap=True)
            continue
        console.print(Text(plain(f"{model.model}: layers, mean of {model.layers_runs} inferences")))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("layer", overflow="fold")
        table.add_column("operator", overflow="fold")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        for name, op, ns, percent in _shown(model.layers):
            cells = (name, op, quantity(ns, "ns"), f"{number(percent)} %")
            table.add_row(*(Text(plain(cell)) for cell in cells))
        console.print(table)


def _shown(rows: Sequence[LayerRow]) -> list[tuple[str, str, float, float]]:
    """The dearest, all others in one line, and what lies between kernels."""
    found = [(row.name, row.op, row.ns, row.share_percent) for row in rows[:MOST]]
    others = rows[MOST:]
    if others:
        share = sum(row.share_percent for row in others)
        found.append((f"{len(others)} others", "", sum(row.ns for row in others), share))
    between = 100 - sum(row.share_percent for row in rows)
    if rows and rows[0].share_percent > 0 and between > 0:
        found.append(("between them", "", between * rows[0].ns / rows[0].share_percent, between))
    return found
