"""`compress bench MODEL …`: models timed against each other, interleaved, on this machine or on a device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from rich.console import Console

from edgepress.compressor.cli import bench_layers
from edgepress.compressor.cli.bench_micro import fits
from edgepress.compressor.cli.bench_table import show
from edgepress.compressor.cli.host import CheckedEngine
from edgepress.compressor.cli.targets import find_target
from edgepress.compressor.cli.troubles import errors_told, line_told
from edgepress.compressor.data import InputSpec, open_data
from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.model import input_specs, load, on_disk
from edgepress.compressor.outdir import write_file
from edgepress.compressor.report.bench import Bench, MachineState, ModelTimes, verdict_on
from edgepress.compressor.samples import synthetic_feeds
from edgepress.compressor.serialize import serialize
from edgepress.devices.base import Device
from edgepress.devices.native import time_native
from edgepress.devices.opening import device_of, transport_of
from edgepress.devices.profile import MICRO, DeviceSpec
from edgepress.devices.remote import Feeds, Look, RemoteWorker
from edgepress.runtime.engines.choose import is_onnx
from edgepress.runtime.environment import Condition, warnings
from edgepress.runtime.measure import ratio_interval
from edgepress.runtime.record import Measurement

LAYER_SECONDS = 2.0
"""For the layers of one model."""
_UNKNOWN: dict[str, Any] = {
    "cpu": "unknown", "features": (), "cores": None, "governor": None, "system": "unknown",
    "before": None, "after": None, "warnings": (),
}  # fmt: skip


def bench(
    *, models: tuple[Path, ...], target: str, threads: int, data: str | None, preprocess: Path | None,
    shapes: dict[str, tuple[int, ...]], seconds: float, json_file: Path | None, per_layer: bool, quiet: bool,
    debug: bool,
) -> int:  # fmt: skip
    """Do it, and return the exit code; arguments as the options in `options/bench.py`."""
    spec = find_target(target)
    with TemporaryDirectory(prefix="edgepress-") as folder:
        files = [one_file(model, Path(folder) / f"{place}.onnx") for place, model in enumerate(models)]
        if spec.engine == MICRO:
            found = {**_UNKNOWN, "models": fits(spec, files)}
            split = bench_layers.none(bench_layers.FITTED, len(files))
        else:
            with errors_told(), line_told(quiet) as tell, device_of(spec, tell) as device:
                if spec.benchmark:
                    found = _natively(device, spec, files, threads, seconds)
                    split = bench_layers.none(bench_layers.NATIVE, len(files))
                else:
                    feeds = _Feeds(data, preprocess, shapes)
                    found, split = _by_worker(device, files, feeds, threads, seconds, per_layer)
    sizes = [on_disk(model)[0] if is_onnx(model) else model.stat().st_size for model in models]
    rows = [
        ModelTimes(model=str(model), size_bytes=size, **row, **(layers if per_layer else {}))
        for model, size, row, layers in zip(models, sizes, found.pop("models"), split, strict=True)
    ]
    record = Bench(
        device=spec.name, transport=transport_of(spec), threads=threads, models=tuple(rows), **found
    )
    if not quiet and str(json_file) != "-":
        show(record, Console())
        if per_layer:
            bench_layers.show(record.models, Console())
    if json_file is not None:
        text = record.model_dump_json(indent=2) + "\n"
        if str(json_file) == "-":
            click.echo(text, nl=False)
        else:
            write_file(json_file, text, "Name another file with --json.")
    return 0


class _Feeds:
    """What models are run on: a row of the user's samples, or random numbers; equal inputs get equal feeds."""

    def __init__(
        self, data: str | None, preprocess: Path | None, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._data, self._preprocess, self._shapes = data, preprocess, shapes
        self._made: dict[tuple[Any, ...], Feeds] = {}

    def of(self, model: Path, ports: Sequence[Sequence[Any]]) -> Feeds:
        """For a model on this machine whose inputs the device's engine calls `ports`."""
        if not is_onnx(model):
            specs = [spec_of(port) for port in ports]
            return self._remembered(specs, lambda: _random(specs))
        graph = load(model, self._shapes or None)
        run = CheckedEngine().load
        return self._remembered(
            input_specs(graph), lambda: synthetic_feeds(graph, run(serialize(graph)), seed=0)
        )

    def _remembered(self, specs: Sequence[InputSpec], make: Any) -> Feeds:
        key = tuple((spec.name, spec.dtype.str, *(_sizes(spec))) for spec in specs)
        if key not in self._made:
            if self._data is not None:
                batches = open_data(self._data, specs, self._preprocess).batches(1)
                self._made[key] = next(iter(batches)).feeds
            else:
                found = make()
                if found is None:
                    raise UsageError(
                        "No random input fits the model.", "Give --data, or fix dimensions with --shape."
                    )
                self._made[key] = found
        return self._made[key]


def spec_of(port: Sequence[Any]) -> InputSpec:
    """An input as LiteRT and the sparse engine tell it."""
    name, dtype, shape = port
    return InputSpec(str(name), np.dtype(str(dtype)), tuple(shape))


def _sizes(spec: InputSpec) -> list[int]:
    """One row; what is dynamic beyond that is 1."""
    return [size if isinstance(size, int) else 1 for size in spec.shape or ()]


def _random(specs: Sequence[InputSpec]) -> Feeds:
    """As `synthetic_feeds` has them: normal numbers, zeros where whole numbers are wanted."""
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.normal(size=_sizes(spec)).astype(spec.dtype)
        if spec.dtype.kind == "f"
        else np.zeros(_sizes(spec), spec.dtype)
        for spec in specs
    }


def one_file(model: Path, target: Path) -> Path:
    """The model as one file that can travel; refuses what is no model before any device is asked."""
    if not is_onnx(model):
        if not model.is_file():
            raise ModelError(f"{model}: no such file.", f"Give the path of a {model.suffix} file.")
        return model
    graph = load(model)
    if not on_disk(model)[1]:
        return model
    whole = serialize(graph)
    if not isinstance(whole, bytes):
        raise UsageError(f"{model} is over 2 GB and cannot go to a device.", "Compress it first.")
    target.write_bytes(whole)
    return target


def _by_worker(
    device: Device, files: Sequence[Path], feeds: _Feeds, threads: int, seconds: float, per_layer: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Times by our worker, in Python on the device; and those of layers, where they are wanted."""
    worker = RemoteWorker(device)
    machine, _ = worker.environment()
    facts = worker.look(files, threads=threads)
    given = [feeds.of(file, fact.inputs) for file, fact in zip(files, facts, strict=True)]
    common = {
        "cpu": machine.cpu, "features": machine.features, "cores": machine.cores,
        "governor": machine.governor, "system": machine.os,
    }  # fmt: skip
    if not device.timed:
        counts = [
            worker.ask("count", [file], each, threads=threads, limit_s=600.0).result[0]
            for file, each in zip(files, given, strict=True)
        ]
        rows = [
            {**_row(fact), **_compared(None, None), **count}
            for fact, count in zip(facts, counts, strict=True)
        ]
        return {**_UNKNOWN, **common, "models": rows}, bench_layers.none(bench_layers.COUNTED, len(files))
    times, answer = worker.time(files, given, threads=threads, time_limit_s=seconds)
    rows = [
        {**_row(fact), "load_ns": fact.load_ns, **_compared(one, times[0])}
        for fact, one in zip(facts, times, strict=True)
    ]
    split: list[dict[str, Any]] = [{}] * len(files)
    if per_layer:
        split = bench_layers.layers(worker, files, given, threads, min(seconds, LAYER_SECONDS * len(files)))
    found = {
        **common,
        "before": _state(answer.before),
        "after": _state(answer.after),
        "warnings": tuple(warnings(answer.before, answer.after, machine.cores)),
        "models": rows,
    }
    return found, split


def _natively(
    device: Device, spec: DeviceSpec, files: Sequence[Path], threads: int, seconds: float
) -> dict[str, Any]:
    """Times by a program of the device's own."""
    times = time_native(device, spec.benchmark, files, threads=threads, time_limit_s=seconds)
    fact = Look(Path(spec.benchmark).name, "unknown", "unknown", (), 0)
    rows = [{**_row(fact), **_compared(one, times[0])} for one in times]
    return {**_UNKNOWN, "models": rows}


def _row(fact: Look) -> dict[str, Any]:
    return {
        "engine": fact.engine,
        "engine_version": fact.version,
        "delegate": fact.delegate,
        "load_ns": None,
    }


def _compared(one: Measurement | None, first: Measurement | None) -> dict[str, Any]:
    """A model's times, and how they compare with the first's; all unknown where there is no time."""
    if one is None or first is None:
        names = ("median", "ci95", "p90", "p99")
        return {
            **{f"latency_ns_{name}": None for name in names},
            **dict.fromkeys(("calls_per_sample", "outliers", "ratio", "ratio_ci95", "verdict")),
            "samples_ns": (),
        }
    ratio = (1.0, 1.0) if one is first else ratio_interval(one, first)
    return {
        "latency_ns_median": one.median_ns,
        "latency_ns_ci95": one.ci95_ns,
        "latency_ns_p90": one.p90_ns,
        "latency_ns_p99": float(np.quantile(one.samples_ns, 0.99)),
        "samples_ns": one.samples_ns,
        "calls_per_sample": one.calls_per_sample,
        "outliers": one.outliers,
        "ratio": one.median_ns / first.median_ns,
        "ratio_ci95": ratio,
        "verdict": "first" if one is first else verdict_on(ratio),
    }


def _state(condition: Condition) -> MachineState:
    return MachineState(**asdict(condition))
