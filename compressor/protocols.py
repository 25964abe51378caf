"""What the compressor needs from outside, as Protocols; `runtime` fits them, `cli` passes them in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Feeds = Mapping[str, Array]
"""One batch: input name → array whose first axis is the rows (where the model has a batch axis)."""
ModelFile = bytes | PathLike[str]
"""A serialized model: its bytes, or its path (over 2 GB, with external data)."""
Tell = Callable[[str, float, str], None]
"""Told what goes on: stage, share done, detail."""


@dataclass(frozen=True)
class Latency:
    """One model's time per inference on one device, in nanoseconds.

    Attributes:
        median_ns: median over all kept rounds.
        ci95_ns: 95 % bootstrap interval of the median.
        samples_ns: every kept round, in order.
    """

    median_ns: float
    ci95_ns: tuple[float, float]
    samples_ns: tuple[int, ...]


@dataclass(frozen=True)
class Count:
    """What one inference executes on an emulated device: a cost, and no time.

    Attributes:
        total: instructions.
        fma: those that multiply and add floats.
        dot: those that sum products of 8-bit integers.
        load_store: those that load or store.
        heap_bytes: what the model holds on the heap; None where that is not known.
        predicted_ns: what the device should take for them, by its profile's instructions a nanosecond.
    """

    total: int
    fma: int
    dot: int
    load_store: int
    heap_bytes: int | None
    predicted_ns: float


class Runner(Protocol):
    """A loaded model: feeds in, named outputs out."""

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run one batch; raises `DeviceError` where the engine fails."""


class Engine(Protocol):
    """A runtime that loads ONNX models."""

    name: str
    version: str

    def load(self, model: ModelFile, threads: int = 1) -> Runner:
        """Load a model; raises `DeviceError` where the engine refuses. Files may go once it is loaded."""


class Kernel(Protocol):
    """A kind of kernel that an engine ran."""

    @property
    def op(self) -> str:
        """The engine's name for it."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Types of what it reads, as numpy calls them."""


class Stopwatch(Protocol):
    """Interleaved timing of several models on one device."""

    def __call__(self, models: Sequence[ModelFile], feeds: Feeds) -> list[Latency]:
        """Time each model on the same feeds, A B A B …; one `Latency` a model, in order."""


class Counter(Protocol):
    """Counts instructions on an emulated device."""

    def __call__(self, models: Sequence[ModelFile], feeds: Feeds) -> list[Count]:
        """One inference of each model on the same feeds; the same again whenever it is asked for."""


class Board(Protocol):
    """The target where it is not this machine: emulated here, or reached."""

    @property
    def how(self) -> str:
        """`emulated`, or how it is reached: `ssh`."""

    @property
    def engine(self) -> str:
        """Runtime and version there."""

    @property
    def cpu(self) -> str:
        """Its core."""

    @property
    def runs_tflite(self) -> bool:
        """Whether it has an engine for TFLite files as well."""

    def run(self, models: Sequence[ModelFile], batches: Sequence[Feeds]) -> list[list[dict[str, Array]]]:
        """Outputs there: of each model, of each batch. Raises `DeviceError` where it does not answer."""


class KernelTimes(Protocol):
    """What kernels cost on a device; `devices/table.py` has the kinds and what their sizes mean."""

    @property
    def counted(self) -> bool:
        """Whether times follow from instructions, counted under emulation, and were not measured."""

    def ns(
        self, kind: str, precision: str, inputs: float = 1, outputs: float = 1, positions: float = 1
    ) -> float | None:
        """Nanoseconds of one node, with all that a runtime adds; None where the kind was not measured."""


class Target(Protocol):
    """What the compressor must know of a device; `devices` reads it from a profile."""

    @property
    def name(self) -> str:
        """Profile name, as the user wrote it."""

    @property
    def activation_dtype(self) -> str:
        """`uint8` or `int8`: the activation type whose integer kernels are fast there."""

    @property
    def weight_bits(self) -> int:
        """8, or 7 where u8·s8 products saturate at 16 bits (x86 without VNNI)."""

    @property
    def channel_multiple(self) -> int:
        """Widths and ranks that fill a kernel's lanes are multiples of this."""

    @property
    def runtime_version(self) -> str:
        """Onnxruntime release on the device, such as `1.23`; bounds opset and IR version."""

    @property
    def macs_per_ns_fp32(self) -> float:
        """Multiply-accumulates per nanosecond in float kernels, one thread."""

    @property
    def macs_per_ns_int8(self) -> float:
        """Multiply-accumulates per nanosecond in 8-bit kernels, one thread."""

    @property
    def bytes_per_ns(self) -> float:
        """Memory traffic per nanosecond, weights and activations."""

    @property
    def node_overhead_ns(self) -> float:
        """Fixed time of one node."""

    @property
    def table(self) -> KernelTimes | None:
        """What kernels were measured at; without it costs follow from the rates above."""


class TfliteRunner(Runner, Protocol):
    """A loaded TFLite file: takes and gives what the ONNX model does that it was made from."""

    @property
    def delegate(self) -> str:
        """What runs its operators: `XNNPACK`, or `none`."""

    @property
    def partitions(self) -> int | None:
        """Pieces that the delegate runs; None where the runtime does not tell."""

    @property
    def outside(self) -> Mapping[str, int] | None:
        """Operators that no delegate took, kind → count; None likewise."""


@dataclass(frozen=True)
class Footprint:
    """What a model takes of a microcontroller, as the TFLite file that goes there.

    Attributes:
        flash_bytes: of the file; None where there is none.
        arena_bytes: least memory in which the device's interpreter runs it; None where it does not, or nothing tells.
        activation_bytes: of those, what activations need at their peak.
        missing: (kind, name of the first result) of operators that the interpreter has no kernel for.
        floats: operators that compute in floats, kind → count.
        reason: why it does not run, where that is no missing operator; else empty.
        measured: whether the interpreter itself ran it; else the arena is what activations alone need at least.
    """

    flash_bytes: int | None = None
    arena_bytes: int | None = None
    activation_bytes: int | None = None
    missing: tuple[tuple[str, str], ...] = ()
    floats: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    measured: bool = False

    @property
    def runs(self) -> bool:
        """Whether there is a file, and nothing is known that keeps it from running in enough memory."""
        return self.flash_bytes is not None and not self.missing and not self.reason


class Microcontroller(Protocol):
    """A device without an operating system, whose interpreter runs a TFLite file out of flash in an arena."""

    @property
    def flash_bytes(self) -> int:
        """What is there for the file."""

    @property
    def arena_bytes(self) -> int:
        """What is there for the interpreter."""

    def footprint(self, file: bytes) -> Footprint:
        """What a TFLite file takes."""


class TfliteEngine(Protocol):
    """A runtime that loads TFLite files."""

    name: str
    version: str

    def load(self, model: bytes, threads: int = 1) -> TfliteRunner:
        """Load a file; raises `DeviceError` where the engine refuses it, or dies over it."""
