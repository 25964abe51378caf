"""Where compressor, runtime and devices meet: engines, clocks and profiles as the compressor wants them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from edgepress.compressor.errors import DeviceError, UsageError, nearest
from edgepress.compressor.job import Host
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
from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.profile import DeviceSpec, ProfileError, is_host, load_profile
from edgepress.runtime.engines.apart import ApartEngine, ApartRunner
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe
from edgepress.runtime.measure import measure
from edgepress.runtime.memory import memory_peak_bytes
from edgepress.runtime.record import EngineError

GLANCE = 0.25
"""Share of a timing's limit that is enough for what is only shown."""


class CheckedEngine:
    """onnxruntime, its errors told as the compressor's.

    Attributes:
        name: the engine's name.
        version: its release.
    """

    def __init__(self) -> None:
        self._engine = OrtEngine()
        self.name, self.version = self._engine.name, self._engine.version

    def load(self, model: ModelFile, threads: int = 1) -> Runner:
        """Load a model; raises `DeviceError` where the engine refuses it."""
        with errors_told():
            runner = self._engine.load(model, threads)

        def run(feeds: Feeds) -> dict[str, Array]:
            with errors_told():
                return runner(feeds)

        return run


class CheckedTflite:
    """What runs TFLite files as the ONNX files that they were made from, in a process each; errors likewise.

    Attributes:
        name: the engine's name.
        version: its release.
    """

    def __init__(self) -> None:
        """Find an interpreter; raises `DeviceError` where there is none."""
        with errors_told():
            self._engine = ApartEngine(partial(LiteRTEngine, as_onnx=True))
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


@contextmanager
def errors_told() -> Iterator[None]:
    """The runtime's and the devices' errors as the compressor's."""
    try:
        yield
    except (EngineError, DeviceTroubleError) as error:
        raise DeviceError(str(error), getattr(error, "hint", "")) from error


def tflite_engine() -> TfliteEngine | None:
    """What runs TFLite files here, or None."""
    try:
        return CheckedTflite()
    except DeviceError:
        return None


def user_profiles() -> list[Path]:
    """Where the user's own profiles lie: `devices/` in the folder where the system keeps settings of programs."""
    return [Path(click.get_app_dir("edgepress")) / "devices"]


def find_target(name: str) -> DeviceSpec:
    """A device profile by name or path; raises `UsageError` for unknown or damaged ones."""
    try:
        return load_profile(name, user_profiles())
    except ProfileError as error:
        raise UsageError(str(error), nearest(name, error.known) if error.known else "") from error


def default_cache() -> Path:
    """The folder for what was worked out, as the system has it for programs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgepress"


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
    """
    spec = find_target(target)

    def stopwatch(limit_s: float, models: Sequence[ModelFile], feeds: Feeds) -> list[Latency]:
        try:
            found = measure(models, feeds, threads=threads, seed=seed, time_limit_s=limit_s)
        except EngineError as error:
            raise DeviceError(str(error), getattr(error, "hint", "")) from error
        return [Latency(m.median_ns, m.ci95_ns, tuple(m.samples_ns)) for m in found]

    def memory(model: ModelFile, feeds: Feeds) -> int:
        try:
            return memory_peak_bytes(model, feeds, threads=threads)
        except EngineError as error:
            raise DeviceError(str(error), getattr(error, "hint", "")) from error

    measured = is_host(spec)
    facts = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(describe()).items()}
    slow, quick = (partial(stopwatch, limit) if measured else None for limit in (seconds, GLANCE * seconds))
    return Host(
        CheckedEngine(),
        spec,
        slow,
        memory,
        progress,
        facts,
        glance=quick,
        workers=workers or os.cpu_count() or 1,
        scheduler=scheduler or "",
        cache=cache,
        stopped=stopped,
        tflite=tflite_engine,
    )
