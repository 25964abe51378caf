"""A target that is not this machine: emulated here, or reached; what runs there, as the compressor wants it.

The device is opened for each piece of work: a connection that is lost in between, during a long search, hurts nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgepress.compressor.cache import Cache
from edgepress.compressor.cli.troubles import errors_told
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.protocols import Array, Count, Feeds, Latency, ModelFile
from edgepress.devices.base import Device
from edgepress.devices.opening import device_of, transport_of
from edgepress.devices.profile import DeviceSpec
from edgepress.devices.qemu import QemuDevice
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime import counting, worker
from edgepress.runtime.engines.choose import suffix_of
from edgepress.runtime.environment import TFLITE_PACKAGES

LIMIT_S = 1800.0
"""A piece of work that takes longer is ended."""

FIELDS = ("total", "fma", "dot", "load_store")
"""What is counted; the worker puts `instructions_` before."""


class Away:
    """A board, emulated or reached.

    Attributes:
        how: `emulated`, or `ssh`.
        engine: onnxruntime and its version there.
        cpu: its core.
        runs_tflite: whether it has an engine for TFLite files as well.
    """

    def __init__(
        self, spec: DeviceSpec, threads: int, workers: int, cache: Path | None, tell: Callable[[str], None]
    ) -> None:
        """Reach it once, and ask what it is; an emulated one is made where that has not been done.

        Args:
            spec: a profile with a way to the device.
            threads: of the engine there.
            workers: emulated machines that may run side by side.
            cache: folder for what was counted, or None.
            tell: takes lines about what takes long.

        Raises:
            DeviceError: it does not answer, cannot be made, or has no onnxruntime.
        """
        self._spec, self._threads, self._workers, self._tell = spec, threads, workers, tell
        self.how = "emulated" if transport_of(spec) == "qemu" else transport_of(spec)
        with self._opened() as device:
            self._stored = self._store(device, cache)
            facts = self._known("environment") or self._facts(device)
        self._keep({"environment": facts})
        if "onnxruntime" not in facts["engines"]:
            raise DeviceError(
                f"{spec.name} has no onnxruntime, so nothing can be judged there",
                "Install it there, or go by predictions with --no-device.",
            )
        self.engine = f"onnxruntime {facts['engines']['onnxruntime']}"
        self.runs_tflite = not TFLITE_PACKAGES.isdisjoint(facts["engines"])
        self.cpu = str(facts["cpu"] if self.how != "emulated" else spec.cpu)

    def count(self, models: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
        """Instructions of one inference of each model, on an emulated device; what was counted before is known."""
        shapes = {name: [str(array.dtype), *array.shape] for name, array in feeds.items()}
        keys = [f"{_sha256(model)} {json.dumps(shapes, sort_keys=True)}" for model in models]
        rows = {key: row for key in keys if (row := self._known(key)) is not None}
        fresh = {key: model for key, model in zip(keys, models, strict=True) if key not in rows}
        shares = [list(fresh.items())[start :: self._workers] for start in range(self._workers)]

        def counted(share: Sequence[tuple[str, ModelFile]]) -> dict[str, Any]:
            with self._opened() as device, _files([model for _, model in share]) as files:
                answer = RemoteWorker(device).ask(
                    "count", files, feeds, threads=self._threads, limit_s=LIMIT_S
                )
            found = dict(zip((key for key, _ in share), answer.result, strict=True))
            self._keep(found)
            return found

        with ThreadPoolExecutor(self._workers) as pool:
            for found in pool.map(counted, [share for share in shares if share]):
                rows |= found
        return [self._count(rows[key]) for key in keys]

    def run(self, models: Sequence[ModelFile], batches: Sequence[Feeds]) -> list[list[dict[str, Array]]]:
        """Outputs there: of each model, of each batch; raises `DeviceError`."""

        def outputs(model: ModelFile) -> list[dict[str, Array]]:
            with self._opened() as device, _files([model]) as files:
                return RemoteWorker(device).run(
                    files * len(batches), batches, threads=self._threads, limit_s=LIMIT_S
                )

        side_by_side = self._workers if self.how == "emulated" else 1
        with ThreadPoolExecutor(side_by_side) as pool:
            return list(pool.map(outputs, models))

    def time(self, limit_s: float, models: Sequence[ModelFile], feeds: Feeds) -> list[Latency]:
        """Times there, interleaved."""
        with self._opened() as device, _files(models) as files:
            found, _ = RemoteWorker(device).time(
                files, [feeds] * len(files), threads=self._threads, time_limit_s=limit_s
            )
        return [Latency(m.median_ns, m.ci95_ns, tuple(m.samples_ns)) for m in found]

    def memory(self, model: ModelFile, feeds: Feeds) -> int:
        """Peak bytes there of loading a model and running it."""
        with self._opened() as device, _files([model]) as files:
            return int(RemoteWorker(device).ask("memory", files, feeds, limit_s=LIMIT_S).result[0])

    @contextmanager
    def _opened(self) -> Iterator[Device]:
        with errors_told(), device_of(self._spec, self._tell) as device:
            yield device

    def _facts(self, device: Device) -> dict[str, Any]:
        return asdict(RemoteWorker(device).environment()[0])

    def _store(self, device: Device, cache: Path | None) -> Cache | None:
        """Where counts are kept: emulated, they hang on nothing else than this."""
        if cache is None or not isinstance(device, QemuDevice):
            return None
        source = "".join(Path(module.__file__ or "").read_text("utf-8") for module in (worker, counting))
        text = f"{device.identity} {self._threads} {source}"
        return Cache.open(cache, f"emulated {hashlib.sha256(text.encode()).hexdigest()}")

    def _known(self, key: str) -> Any | None:
        return None if self._stored is None else self._stored.get(key)

    def _keep(self, rows: dict[str, Any]) -> None:
        if self._stored is not None:
            self._stored.put(rows)

    def _count(self, row: dict[str, Any]) -> Count:
        values = {name: int(row[f"instructions_{name}"]) for name in FIELDS}
        heap = row["heap_bytes"]
        return Count(
            **values,
            heap_bytes=None if heap is None else int(heap),
            predicted_ns=self._spec.ns_of(values["total"]),
        )


@contextmanager
def _files(models: Sequence[ModelFile]) -> Iterator[list[Path]]:
    """The models as files that can travel; raises `DeviceError` where one is more than a file."""
    with TemporaryDirectory(prefix="edgepress-") as folder:
        paths = []
        for place, model in enumerate(models):
            if not isinstance(model, bytes):
                raise DeviceError(
                    "A model over 2 GB cannot be brought to a device.", "Go by predictions with --no-device."
                )
            path = Path(folder) / f"{place}{suffix_of(model)}"
            path.write_bytes(model)
            paths.append(path)
        yield paths


def _sha256(model: ModelFile) -> str:
    return hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else ""
