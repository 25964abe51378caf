"""Who runs the models of `compress selftest`: the worker on a device, or the interpreter of microcontrollers here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepress.compressor.cli.troubles import errors_told
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.exact.suite import Ran, Refusal, Run
from edgepress.compressor.protocols import Feeds
from edgepress.devices.opening import device_of, transport_of
from edgepress.devices.profile import MICRO, DeviceSpec
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime.engines.choose import suffix_of
from edgepress.runtime.environment import TFLITE_PACKAGES
from edgepress.runtime.record import EngineDiedError, EngineError

EMULATED = "emulated"
"""How an emulated core is reached; it is some 30 times slower than one that is there."""

LIMIT_S = 1800.0
"""Models that take longer together are ended."""

Answers = list[Ran | Refusal]


@dataclass(frozen=True)
class Reached:
    """A device that is open.

    Attributes:
        run: runs models there.
        how: it was reached.
        cpu: its core.
        engines: name → release.
        formats: of files that these run.
    """

    run: Run
    how: str
    cpu: str
    engines: Mapping[str, str]
    formats: tuple[str, ...]


@contextmanager
def reached(spec: DeviceSpec, threads: int, tell: Callable[[str], None]) -> Iterator[Reached]:
    """Open a device.

    Args:
        spec: its profile.
        threads: of its engine.
        tell: takes lines about what takes long.

    Raises:
        DeviceError: it does not answer, has no Python, or no engine; while it runs models: it was lost.
    """
    if spec.engine == MICRO:
        yield _interpreted(spec)
        return
    with errors_told(), device_of(spec, tell) as device:
        worker = RemoteWorker(device)
        facts, _ = worker.environment()
        formats = tuple(
            name
            for name, there in (
                ("onnx", "onnxruntime" in facts.engines),
                ("tflite", not TFLITE_PACKAGES.isdisjoint(facts.engines)),
                ("sparse", True),  # SciPy is all that it takes; where that is missing, it is refused
            )
            if there
        )
        how = transport_of(spec)
        how, cpu = (EMULATED, spec.cpu) if how == "qemu" else (how, facts.cpu)
        yield Reached(
            lambda files, feeds: _run(worker, files, feeds, threads), how, cpu, facts.engines, formats
        )


def _run(worker: RemoteWorker, files: Sequence[bytes], feeds: Sequence[Feeds], threads: int) -> Answers:
    """All at once; where the process dies, halves, until it is known over which one.

    Raises:
        DeviceTroubleError: the device itself fails.
    """
    try:
        with TemporaryDirectory(prefix="edgepress-") as folder:
            paths = []
            for place, data in enumerate(files):
                paths.append(Path(folder) / f"{place}{suffix_of(data)}")
                paths[-1].write_bytes(data)
            # A worker of its own each time: it remembers what it has put there by path, and paths come again.
            found = RemoteWorker(worker.device).attempt(paths, feeds, threads=threads, limit_s=LIMIT_S)
            return [
                Refusal(str(each)) if isinstance(each, EngineError) else Ran(each.outputs, each.kernels)
                for each in found
            ]
    except EngineError as error:
        if len(files) == 1:
            return [Refusal(str(error), died=isinstance(error, EngineDiedError))]
    middle = len(files) // 2
    return [
        *_run(worker, files[:middle], feeds[:middle], threads),
        *_run(worker, files[middle:], feeds[middle:], threads),
    ]


def _interpreted(spec: DeviceSpec) -> Reached:
    """A microcontroller, by the interpreter that would run there, with its reference kernels."""
    from edgepress.compressor.cli import micro  # both load all of the search: 1 s that no other target needs
    from edgepress.compressor.cli.host import CheckedTflite

    engine = CheckedTflite(micro.make_engine)

    def run(files: Sequence[bytes], feeds: Sequence[Feeds]) -> Answers:
        found: Answers = []
        for file, each in zip(files, feeds, strict=True):
            try:
                found.append(Ran(engine.load(file)(each)))
            except DeviceError as error:
                found.append(Refusal(str(error)))
        return found

    cpu = spec.cpu or spec.arch
    return Reached(run, "its interpreter, here", cpu, {engine.name: engine.version}, ("tflite",))
