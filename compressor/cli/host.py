"""Where compressor, runtime and devices meet: engines, clocks and profiles as the compressor wants them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from edgepress.compressor.errors import DeviceError, UsageError, nearest
from edgepress.compressor.job import Host
from edgepress.compressor.protocols import Array, Feeds, Latency, ModelFile, Runner
from edgepress.devices.profile import DeviceSpec, ProfileError, is_host, load_profile
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe
from edgepress.runtime.measure import measure
from edgepress.runtime.memory import memory_peak_bytes
from edgepress.runtime.record import EngineError


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
        try:
            runner = self._engine.load(model, threads)
        except EngineError as error:
            raise DeviceError(str(error), getattr(error, "hint", "")) from error

        def run(feeds: Feeds) -> dict[str, Array]:
            try:
                return runner(feeds)
            except EngineError as error:
                raise DeviceError(str(error), getattr(error, "hint", "")) from error

        return run


def user_profiles() -> list[Path]:
    """Where the user's own profiles lie: `devices/` in the folder where the system keeps settings of programs."""
    return [Path(click.get_app_dir("edgepress")) / "devices"]


def find_target(name: str) -> DeviceSpec:
    """A device profile by name or path; raises `UsageError` for unknown or damaged ones."""
    try:
        return load_profile(name, user_profiles())
    except ProfileError as error:
        raise UsageError(str(error), nearest(name, error.known) if error.known else "") from error


def make_host(
    target: str, threads: int, seed: int, seconds: float, progress: Callable[[str, float, str], None]
) -> Host:
    """Everything that a session needs from this machine.

    Args:
        target: profile name or path.
        threads: threads of the engine.
        seed: of the order of timing rounds.
        seconds: time limit of one timing.
        progress: told what goes on.
    """
    spec = find_target(target)

    def stopwatch(models: Sequence[ModelFile], feeds: Feeds) -> list[Latency]:
        try:
            found = measure(models, feeds, threads=threads, seed=seed, time_limit_s=seconds)
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
    return Host(CheckedEngine(), spec, stopwatch if measured else None, memory, progress, facts)
