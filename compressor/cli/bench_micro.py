"""`compress bench` and `compress devices check` of a microcontroller: whether models fit; nothing is timed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepress.compressor.cli import micro
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.micro import micro_file, missing_nodes
from edgepress.compressor.model import load
from edgepress.compressor.report.fit import KERNELS, exactly
from edgepress.compressor.report.micro import MicroFit, fit_of
from edgepress.devices.profile import DeviceSpec
from edgepress.runtime.engines.choose import is_tflite
from edgepress.runtime.engines.micro import INSTALL, NAME


def fits(spec: DeviceSpec, models: Sequence[Path]) -> list[dict[str, Any]]:
    """What models take: fields of `ModelTimes`, one mapping each.

    Args:
        spec: of a microcontroller.
        models: .tflite files, or .onnx files, which are written as TFLite first.

    Raises:
        DeviceError: tflite-micro is not installed, or a file is damaged.
        ModelError: a node cannot be written as TFLite.
    """
    release = _release()
    unknown = ("load_ns", *(f"latency_ns_{name}" for name in ("median", "ci95", "p90", "p99")))
    rest = ("calls_per_sample", "outliers", "ratio", "ratio_ci95", "verdict")
    row: dict[str, Any] = {"engine": NAME, "engine_version": release, "delegate": "none", "samples_ns": ()}
    row |= dict.fromkeys((*unknown, *rest))
    board = micro.Board(spec)
    return [{**row, "microcontroller": _fit(board, model)} for model in models]


def _fit(board: micro.Board, path: Path) -> MicroFit:
    if is_tflite(path):
        footprint = board.footprint(path.read_bytes())
        missing = [f"{output or 'unnamed'} ({kind})" for kind, output in footprint.missing]
    else:
        model = load(path)
        footprint = board.footprint(micro_file(model).data)
        missing = missing_nodes(footprint, model)
    return fit_of(board.name, board, footprint, missing)


def facts(spec: DeviceSpec) -> list[tuple[str, str]]:
    """What `compress devices check` tells, label and text."""
    release = _release()
    return [
        ("device", f"{spec.name}: {spec.description}"),
        ("source", f"from the {spec.source}" if spec.source == "data sheet" else spec.source or "not said"),
        ("processor", f"{spec.cpu or 'unknown'} ({spec.arch})"),
        ("engine", f"{NAME} {release}, on this machine: nothing is connected"),
        ("flash", f"{exactly(spec.flash_bytes)} bytes for a model"),
        ("arena", f"{exactly(spec.arena_bytes)} bytes"),
        ("note", KERNELS),
    ]


def _release() -> str:
    release = micro.installed()
    if release is None:
        raise DeviceError("tflite-micro is not installed, so nothing can be tried.", INSTALL)
    return release
