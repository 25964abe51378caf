"""What the compressor needs from outside, as Protocols; `runtime` fits them, `cli` passes them in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


class Stopwatch(Protocol):
    """Interleaved timing of several models on one device."""

    def __call__(self, models: Sequence[ModelFile], feeds: Feeds) -> list[Latency]:
        """Time each model on the same feeds, A B A B …; one `Latency` a model, in order."""


class KernelTimes(Protocol):
    """What kernels cost on a device, as measured there; `devices/table.py` has the kinds and what their sizes mean."""

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


class TfliteEngine(Protocol):
    """A runtime that loads TFLite files."""

    name: str
    version: str

    def load(self, model: bytes, threads: int = 1) -> TfliteRunner:
        """Load a file; raises `DeviceError` where the engine refuses it, or dies over it."""
