"""What kernels cost on a device: times measured on a grid of sizes, and what follows for sizes between.

A grid is over inputs, outputs and positions. Times are interpolated linearly in log(ns) over log(size), which is the
same as in log(throughput), and errs little where time is a power of the sizes with slowly changing exponents. Beyond
the largest size the throughput there holds; below the smallest the time there, for what a kernel costs whatever its
size dominates. Noise is no reason for more outputs or positions to cost less: times are made monotone in both first.
Not in inputs, for some kernels really are slower with very few.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = {
    "conv": "inputs: channels × taps; positions: pixels",
    "pointwise": "a convolution of one tap",
    "depthwise": "inputs: taps; outputs: channels",
    "product": "Gemm, MatMul; positions: rows",
    "add": "operators that read and write each value once; positions: values",
    "sigmoid": "such operators with dear functions",
    "pool": "inputs: taps; positions: values that come out",
    "quantize": "a QuantizeLinear with a DequantizeLinear that are no part of other kernels; positions: values",
    "node": "a node that does next to nothing",
    "run": "an inference that does next to nothing",
}
"""Kind of kernel → what its sizes are, where they are not what their names say."""

PRECISIONS = ("fp32", "int8")
AXES = ("inputs", "outputs", "positions")


@dataclass(frozen=True)
class Kernel:
    """Times of one kind of kernel in one precision.

    Attributes:
        kind: one of `KINDS`.
        precision: one of `PRECISIONS`.
        inputs: sizes of the grid, ascending.
        outputs: the same.
        positions: the same.
        ns: one node's time, with all that a runtime adds, at inputs[i], outputs[j], positions[k]: ns[i][j][k].

    Raises:
        ValueError: no grid of positive numbers, or an unknown kind or precision.
    """

    kind: str
    precision: str
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    positions: tuple[float, ...]
    ns: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if self.kind not in [*KINDS]:  # a file may have anything there
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}")
        for name in AXES:
            sizes = getattr(self, name)
            if not sizes or not _positive(sizes) or any(b <= a for a, b in pairwise(sizes)):
                raise ValueError(f"{name} must be positive numbers that grow")
        shape = [len(getattr(self, name)) for name in AXES]
        even = len(self.ns) == shape[0] and all(
            len(plane) == shape[1] and all(len(line) == shape[2] for line in plane) for plane in self.ns
        )
        if not even:
            raise ValueError(f"ns must be {' × '.join(map(str, shape))} numbers")
        if not all(_positive(line) for plane in self.ns for line in plane):
            raise ValueError("ns must be positive and finite")

    def time(self, inputs: float, outputs: float, positions: float) -> float:
        """Nanoseconds at any sizes; never falls where outputs or positions grow."""
        (near_i, far_i, past_i), (near_j, far_j, past_j), (near_k, far_k, past_k) = map(
            _place, self._axes, self._logs, (inputs, outputs, positions)
        )
        total = past_i + past_j + past_k
        for i, share_i in (near_i, far_i):
            for j, share_j in (near_j, far_j):
                share = share_i * share_j
                if share:
                    line = self._log_ns[i][j]
                    total += share * (near_k[1] * line[near_k[0]] + far_k[1] * line[far_k[0]])
        return math.exp(total)

    @cached_property
    def _axes(self) -> list[tuple[float, ...]]:
        return [self.inputs, self.outputs, self.positions]

    @cached_property
    def _logs(self) -> list[list[float]]:
        return [[math.log(size) for size in axis] for axis in self._axes]

    @cached_property
    def _log_ns(self) -> list[list[list[float]]]:
        logs: list[list[list[float]]] = [
            monotone(np.log(np.array(plane, np.float64))).tolist() for plane in self.ns
        ]
        return logs


@dataclass(frozen=True)
class KernelTable:
    """All kernels that were measured on a device.

    Attributes:
        kernels: at most one of a kind and precision.
        counted: whether times follow from instructions, counted under emulation, and were not measured.

    Raises:
        ValueError: two are of one kind and precision.
    """

    kernels: tuple[Kernel, ...]
    counted: bool = False

    def __post_init__(self) -> None:
        if len(self._by_name) < len(self.kernels):
            raise ValueError("two kernels are of one kind and precision")

    def ns(
        self, kind: str, precision: str, inputs: float = 1, outputs: float = 1, positions: float = 1
    ) -> float | None:
        """Nanoseconds of one node, None where the table has no such kernel.

        Args:
            kind: one of `KINDS`, which has what the sizes mean.
            precision: one of `PRECISIONS`.
            inputs: what one value of the output is made of.
            outputs: of one position.
            positions: where they are computed.
        """
        key = (kind, precision, inputs, outputs, positions)
        if key not in self._known:
            kernel = self._by_name.get((kind, precision))
            self._known[key] = None if kernel is None else kernel.time(inputs, outputs, positions)
        return self._known[key]

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], Kernel]:
        return {(kernel.kind, kernel.precision): kernel for kernel in self.kernels}

    @cached_property
    def _known(self) -> dict[tuple[str, str, float, float, float], float | None]:
        """What was asked: a search asks for the same few sizes again and again."""
        return {}


def read_kernels(entries: Any, per_ns: float = 1.0) -> KernelTable:
    """The table from the `[[kernel]]` tables of a profile.

    Args:
        entries: each has times as `ns`, or counts as `instructions`.
        per_ns: instructions in a nanosecond.

    Raises:
        ValueError: which entry is wrong, and what is.
    """
    if not isinstance(entries, list):
        raise ValueError("kernel must be [[kernel]] tables")
    counted = [isinstance(entry, Mapping) and "instructions" in entry for entry in entries]
    kernels = []
    for number, entry in enumerate(entries, 1):
        try:
            if counted[number - 1] != counted[0]:
                raise ValueError("either all have ns, or all instructions")
            kernels.append(
                _kernel(entry, "instructions", per_ns) if counted[0] else _kernel(entry, "ns", 1.0)
            )
        except ValueError as error:
            raise ValueError(f"[[kernel]] {number}: {error}") from error
    return KernelTable(tuple(kernels), any(counted))


def kernel_lines(table: KernelTable, per_ns: float = 1.0) -> Iterable[str]:
    """The table as TOML; `read_kernels` reads it.

    Args:
        table: of times.
        per_ns: instructions in a nanosecond, as which times are written that follow from them.
    """
    for kernel in table.kernels:
        yield "[[kernel]]"
        yield f'kind = "{kernel.kind}"'
        yield f'precision = "{kernel.precision}"'
        for name in AXES:
            yield f"{name} = {[*getattr(kernel, name)]}"
        yield "instructions = [" if table.counted else "ns = ["
        for plane in kernel.ns:
            lines = ([round(ns * per_ns) for ns in line] if table.counted else [*line] for line in plane)
            yield "  [" + ", ".join(map(str, lines)) + "],"
        yield "]"
        yield ""


def monotone(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest by a simple rule that never falls along an axis: values that never fall stay as they are.

    The rule is the mean of the running maximum from the start and the running minimum from the end: one value that is
    far too large or too small moves others by half of what it would by either alone.

    Args:
        values: any shape.
    """
    above, below = values, values
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    mean: npt.NDArray[np.float64] = (above + below) / 2
    return mean


def _place(
    sizes: Sequence[float], logs: Sequence[float], size: float
) -> tuple[tuple[int, float], tuple[int, float], float]:
    """The grid points beside a size, each with its share, and how far it lies beyond the last (in logs)."""
    last = len(sizes) - 1
    if size >= sizes[last]:
        return (last, 1.0), (last, 0.0), math.log(size) - logs[last]
    if size <= sizes[0]:
        return (0, 1.0), (0, 0.0), 0.0
    index = bisect_right(sizes, size) - 1
    share = (math.log(size) - logs[index]) / (logs[index + 1] - logs[index])
    return (index, 1 - share), (index + 1, share), 0.0


def _kernel(entry: Any, unit: str, per_ns: float) -> Kernel:
    names = ("kind", "precision", *AXES, unit)
    if not isinstance(entry, Mapping):
        raise ValueError("must be a table")
    unknown, missing = sorted(set(entry) - set(names)), [name for name in names if name not in entry]
    if unknown or missing:
        raise ValueError(f"unknown key {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}")
    inputs, outputs, positions = (_numbers(name, entry[name], 1) for name in AXES)
    costs = _numbers(unit, entry[unit], 3)
    ns = tuple(tuple(tuple(cost / per_ns for cost in line) for line in plane) for plane in costs)
    return Kernel(entry["kind"], entry["precision"], inputs, outputs, positions, ns)


def _numbers(name: str, value: Any, depth: int) -> Any:
    """Nested lists of numbers as tuples of floats."""
    if depth == 0 and type(value) in (int, float):
        return as_float(value)
    if depth == 0 or not isinstance(value, list):
        raise ValueError(f"{name} must be numbers in brackets")
    return tuple(_numbers(name, each, depth - 1) for each in value)


def as_float(value: float) -> float:
    """Infinity where an integer is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _positive(values: Iterable[float]) -> bool:
    return all(0 < value < math.inf for value in values)  # NaN fails it too
