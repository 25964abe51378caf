"""Where compressor, runtime and devices meet: engines, clocks and profiles as the compressor wants them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click

from edgepress.compressor.cache import Cache
from edgepress.compressor.cli import micro
from edgepress.compressor.cli.away import Away
from edgepress.compressor.cli.targets import find_target
from edgepress.compressor.cli.troubles import errors_told
from edgepress.compressor.errors import DeviceError, UsageError
from edgepress.compressor.job import Host
from edgepress.compressor.parallel import address_space_left
from edgepress.compressor.protocols import (
    Array,
    Feeds,
    Latency,
    ModelFile,
    Runner,
    Tell,
    TfliteEngine,
    TfliteRunner,
)
from edgepress.compressor.serialize import StoredModel
from edgepress.devices.opening import transport_of
from edgepress.devices.profile import DeviceSpec, is_host, remark
from edgepress.runtime.engines.apart import ApartEngine, ApartRunner, alone
from edgepress.runtime.engines.base import Engine, InPlace
from edgepress.runtime.engines.base import Runner as EngineRunner
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.engines.sparse import SparseEngine
from edgepress.runtime.environment import describe
from edgepress.runtime.measure import PRECISION, measure
from edgepress.runtime.memory import memory_peak_bytes

NO_DEVICE = "EDGEPRESS_NO_DEVICE"
"""Environment variable that says, whatever its value, that no target is reached or emulated."""

GLANCE = 0.25
"""Share of a timing's limit that is enough for what is only sorted out or shown."""

GLANCE_PRECISION = 0.02
"""Half the width of an interval, as a share of the median, at which it is enough for that."""

WORKER_BYTES = 128 << 20
"""Address space of one that works: its stack, its heap, and the buffers of two libraries for linear algebra."""


APART_BYTES = 256 << 20
"""Size of a model from which it runs in a process of its own."""

LEAN_BYTES = 1 << 30
"""Size of one from which its weights are read where they lie, without a copy in the kernels' own order."""


class CheckedEngine:
    """onnxruntime, or another engine, its errors told as the compressor's.

    Models of `APART_BYTES` run in a process of their own: there they take what they take, and where that is too much it
    is an error, and not the end of this process.

    Attributes:
        name: the engine's name.
        version: its release.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or OrtEngine()
        self.name, self.version = self._engine.name, self._engine.version

    def load(self, model: ModelFile, threads: int = 1) -> Runner:
        """Load a model; raises `DeviceError` where the engine refuses it."""
        with errors_told():
            runner = (
                _load_files(model, threads)
                if isinstance(model, StoredModel)
                else self._engine.load(model, threads)
            )

        def run(feeds: Feeds) -> dict[str, Array]:
            with errors_told():
                return runner(feeds)

        return run


def _load_files(model: StoredModel, threads: int) -> EngineRunner:
    """Load a model that is files, where they are; a large one in another process."""
    given = InPlace(model.graph, os.fspath(model.weights_folder)) if model.in_place else model
    if len(model) < APART_BYTES:
        return OrtEngine().load(given, threads)
    lean = model.in_place and len(model) >= LEAN_BYTES
    return ApartEngine(partial(OrtEngine, lean=lean)).load(given, threads)


class CheckedTflite:
    """What runs TFLite files as the ONNX files that they were made from, in a process each; errors likewise.

    Attributes:
        name: the engine's name.
        version: its release.
    """

    def __init__(self, make: Callable[[], Engine] | None = None) -> None:
        """Find an interpreter; raises `DeviceError` where there is none.

        Args:
            make: makes it, in any process; None: that of computers.
        """
        with errors_told():
            self._engine = ApartEngine(make or partial(LiteRTEngine, as_onnx=True))
        self.name, self.version = self._engine.name, self._engine.version

    def load(self, model: bytes, threads: int = 1) -> TfliteRunner:
        """Load a file; raises `DeviceError` where the engine refuses it, or dies over it."""
        with errors_told():
            return CheckedTfliteRunner(self._engine.load(model, threads))


class CheckedTfliteRunner:
    """A loaded TFLite file.

    Attributes:
        delegate: what runs its operators.
        partitions: pieces that it runs.
        outside: operators that it did not take.
    """

    def __init__(self, runner: ApartRunner) -> None:
        self._runner = runner
        self.delegate, self.partitions, self.outside = runner.delegate, runner.partitions, runner.outside

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run one batch; raises `DeviceError` where the engine fails."""
        with errors_told():
            return self._runner(feeds)


def tflite_engine() -> TfliteEngine | None:
    """What runs TFLite files here, or None."""
    try:
        return CheckedTflite()
    except DeviceError:
        return None


def micro_engine() -> TfliteEngine | None:
    """What runs them here as microcontrollers do, or None."""
    return CheckedTflite(micro.make_engine) if micro.installed() is not None else None


def default_cache() -> Path:
    """The folder for what was worked out, as the system has it for programs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgepress"


def usable_cache() -> Path | None:
    """The default folder for what was worked out; None, and a warning, where it cannot be written to."""
    try:
        return Cache.open(default_cache(), "").path.parent
    except UsageError as error:
        click.echo(f"warning: {error} Nothing is kept of this run.", err=True)
        return None


def make_host(
    target: str,
    threads: int,
    seed: int,
    seconds: float,
    progress: Tell,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
    device: bool = True,
) -> Host:
    """Everything that a session needs from this machine.

    Args:
        target: profile name or path.
        threads: threads of the engine.
        seed: of the order of timing rounds.
        seconds: time limit of one timing.
        progress: told what goes on.
        workers: processes for the search; None: as many as there are cores.
        scheduler: address of a Dask scheduler.
        cache: folder for what was worked out, or None.
        stopped: whether the user wants what there is so far.
        device: whether the target may be reached or emulated, where it is not this machine; else costs are predicted.

    Raises:
        DeviceError: the target has an address, and does not answer there.
    """
    spec = find_target(target)
    workers = _affordable(workers or os.cpu_count() or 1)

    def stopwatch(
        limit_s: float, precision: float, models: Sequence[ModelFile], feeds: Feeds
    ) -> list[Latency]:
        timed = partial(measure, threads=threads, seed=seed, time_limit_s=limit_s, precision=precision)
        with errors_told():
            if any(len(model) >= APART_BYTES for model in models if isinstance(model, StoredModel)):
                paths = [model if isinstance(model, bytes) else Path(model) for model in models]
                found = alone("onnxruntime", timed, paths, feeds)
            else:
                found = timed(models, feeds)
        return [Latency(m.median_ns, m.ci95_ns, tuple(m.samples_ns)) for m in found]

    def memory(model: ModelFile, feeds: Feeds) -> int:
        with errors_told():
            if isinstance(model, StoredModel) and len(model) >= APART_BYTES:  # beside that there is no noise
                return memory_peak_bytes(model, feeds, threads=threads, repeats=1)
            return memory_peak_bytes(model, feeds, threads=threads)

    measured, board = is_host(spec), micro.board_of(spec)
    facts = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(describe()).items()}
    slow, quick = (
        partial(stopwatch, *how) if measured else None
        for how in ((seconds, PRECISION), (GLANCE * seconds, GLANCE_PRECISION))
    )
    host = Host(
        CheckedEngine(),
        spec,
        slow,
        memory if board is None else None,
        progress,
        facts,
        glance=quick,
        workers=workers,
        scheduler=scheduler or "",
        cache=cache,
        stopped=stopped,
        sparse=CheckedEngine(SparseEngine()),
        tflite=tflite_engine if board is None else micro_engine,
        micro=board,
        notes=tuple(filter(None, [remark(spec)])),
    )
    return _elsewhere(host, spec, threads, seconds) if device and os.environ.get(NO_DEVICE) is None else host


def _affordable(workers: int) -> int:
    """How many can work side by side where address space is limited (`ulimit -v`).

    The libraries for linear algebra do not say so when they get none: they wait for ever, or end the process.

    Raises:
        DeviceError: not even one can.
    """
    left, least = address_space_left(), 2 * WORKER_BYTES
    if left is None:
        return workers
    if left < least:
        raise DeviceError(
            f"Memory is limited: {left / 1e6:.0f} MB more may be taken, and {least / 1e6:.0f} MB are needed.",
            "Raise the limit: `ulimit -v unlimited`.",
        )
    return min(workers, left // WORKER_BYTES - 1)


def _elsewhere(host: Host, spec: DeviceSpec, threads: int, seconds: float) -> Host:
    """The same with what runs on the target, where that is not this machine and there is a way to it.

    Where it would only be emulated, and cannot, costs are predicted and the user is told; one that the user set up must
    answer.
    """
    transport = transport_of(spec)
    if transport not in ("qemu", "ssh") or spec.benchmark:
        return host

    def tell(line: str) -> None:
        host.progress("device", 0.0, line)

    tell(spec.name)
    try:
        away = Away(spec, threads, host.workers, host.cache, tell)
    except DeviceError as error:
        if spec.transport or spec.address:
            raise
        note = f"{spec.name} cannot be emulated here, so costs are predicted: {error}. {error.hint}"
        return replace(host, notes=(*host.notes, note.strip()))
    if transport == "qemu":
        return replace(host, board=away, counter=away.count)
    slow, quick = (partial(away.time, limit) for limit in (seconds, GLANCE * seconds))
    return replace(host, board=away, stopwatch=slow, glance=quick, memory=away.memory)
