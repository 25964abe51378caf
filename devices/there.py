"""Models of a sweep on another device: timed there, or their instructions counted where it is emulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepress.devices.base import Device
from edgepress.devices.profile import DeviceSpec
from edgepress.devices.remote import Feeds, RemoteWorker
from edgepress.runtime.record import Measurement

LIMIT_S = 1800.0

COUNTED_MACS = 8e6
"""Layers with more are not counted: one inference of three of them takes seconds of emulation."""


def timer_there(device: Device, spec: DeviceSpec) -> Callable[..., list[Measurement]]:
    """What stands in for `runtime.measure` on an open device.

    Where time there is no time, a measurement is what the instructions of one inference should take by the profile.

    Args:
        device: opened with `with`.
        spec: its profile.
    """

    def measure(
        models: Sequence[bytes], feeds: Feeds, *, threads: int, time_limit_s: float,
        precision: float, min_rounds: int, clock: Callable[[], int],
    ) -> list[Measurement]:  # fmt: skip
        with TemporaryDirectory(prefix="edgepress-") as folder:
            files = [Path(folder) / f"{place}.onnx" for place in range(len(models))]
            for file, model in zip(files, models, strict=True):
                file.write_bytes(model)
            worker = RemoteWorker(device)
            if device.timed:
                return worker.time(files, [feeds] * len(files), threads=threads, time_limit_s=time_limit_s)[0]
            answer = worker.ask("count", files, feeds, threads=threads, limit_s=LIMIT_S)
        return [_counted(spec.ns_of(row["instructions_total"])) for row in answer.result]

    return measure


def _counted(ns: float) -> Measurement:
    return Measurement(ns, (ns, ns), (round(ns),), ns, too_noisy=False, outliers=0, calls_per_sample=1)
