"""Measuring a machine: what kernels cost on it, over grids of sizes, as the table of a profile.

Each point is the difference of two models that differ by some equal layers alone, per layer, in the same rounds of
`runtime.measure`: what a session costs falls out. Sizes that differ in inputs alone, in both precisions, are timed
interleaved. On one thread the clock is that of the thread: what other programs take of a busy machine does not count. A
reference runs along everywhere, and what is timed while that is slow is put on the scale of when it was not.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgepress.devices.kernels import INPUT, LONG, SHORT, TAPS, layers, row
from edgepress.devices.profile import DeviceSpec
from edgepress.devices.table import PRECISIONS, Kernel, KernelTable
from edgepress.runtime.measure import measure
from edgepress.runtime.record import Measurement

Feeds = Mapping[str, npt.NDArray[np.float32]]
Clock = Callable[[], int]
Progress = Callable[[float, str], None]
"""Told the share that is done, and what comes next."""

DEAREST_NS = 300_000
"""Layers that should take longer by the device's rates are not run: they get the throughput of smaller ones, which
changes little at such sizes."""

REFERENCE = (64, 64, 196)
"""Inputs, outputs and positions of the pointwise layer that is timed along with everything."""

_COPIES = 3
_FINE_S = 1e-6
"""Resolution of a clock that can time a kernel."""
_MIN_ROUNDS, _PRECISION = 20, 0.01


class Timer(Protocol):
    """`runtime.measure`, or what stands in for it."""

    def __call__(
        self, models: Sequence[bytes], feeds: Feeds, *, threads: int, time_limit_s: float,
        precision: float, min_rounds: int, clock: Callable[[], int],
    ) -> list[Measurement]:  # fmt: skip
        """Time models on the same feeds, interleaved."""


@dataclass(frozen=True)
class Grid:
    """Sizes at which one kind of kernel is timed; channels of `conv` count before they are multiplied by its taps."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    positions: tuple[int, ...]


GRIDS = (
    Grid("node", (1,), (1,), (1,)),
    Grid("add", (1,), (1,), (16, 4096, 65536, 262144)),
    Grid("sigmoid", (1,), (1,), (16, 4096, 65536, 262144)),
    Grid("quantize", (1,), (1,), (16, 4096, 65536, 262144)),
    Grid("pool", (1,), (1,), (16, 4096, 65536, 262144)),
    Grid("conv", (1, 4, 16, 64, 256), (16, 64, 256), (16, 196, 784, 3136)),
    Grid("pointwise", (16, 64, 256, 1024), (16, 64, 256, 1024), (1, 16, 196, 3136)),
    Grid("depthwise", (1,), (16, 64, 256, 1024), (16, 196, 784, 3136)),
    Grid("product", (16, 64, 256, 1024), (16, 64, 256, 1024), (1, 16, 256)),
)
"""From the least size at which a kernel's own work shows to large ones; powers of two fill the lanes."""

_ROWS = ("node", "add", "sigmoid", "quantize", "pool")
_FLOAT_ONLY = ("node", "quantize", "run")


@dataclass(frozen=True)
class _Point:
    """A place in a grid, in one precision."""

    grid: Grid
    precision: str
    at: tuple[int, int, int]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs and positions."""
        i, j, k = self.at
        return self.grid.inputs[i], self.grid.outputs[j], self.grid.positions[k]

    @property
    def group(self) -> tuple[object, ...]:
        """What is timed together: sizes that differ in inputs alone, and all rows of equally many values."""
        kind = "row" if self.grid.kind in _ROWS[1:] else self.grid.kind
        return kind, *self.sizes[1:]

    @property
    def counts(self) -> tuple[int, int]:
        """How many layers the two models have."""
        return (SHORT, LONG) if self.grid.kind in _ROWS else (1, _COPIES)

    def model(self, count: int, activation: str) -> bytes:
        """So many of the layer."""
        kind, integer = self.grid.kind, self.precision == "int8"
        if kind in _ROWS:
            return row(kind, activation, self.sizes[2], count, integer=integer)
        inputs, outputs, positions = self.sizes
        inputs = outputs if kind == "depthwise" else inputs
        return layers(kind, activation, inputs, outputs, positions, count, integer=integer)

    def too_dear(self, spec: DeviceSpec, dearest_ns: float) -> bool:
        """Whether a layer should take too long; the least positions of a grid are timed all the same."""
        if self.grid.kind in _ROWS or self.at[2] == 0:
            return False
        taps = TAPS if self.grid.kind in ("conv", "depthwise") else 1
        return float(np.prod(self.sizes)) * taps > dearest_ns * spec.macs_per_ns_fp32


def sweep(
    spec: DeviceSpec, *, threads: int = 1, time_limit_s: float = 110.0, grids: Sequence[Grid] = GRIDS,
    timer: Timer = measure, progress: Progress = lambda share, what: None, dearest_ns: float = DEAREST_NS,
) -> KernelTable:  # fmt: skip
    """Time kernels on this machine.

    Args:
        spec: says which activation type is fast here, and by its rates what would take too long.
        threads: of the engine.
        time_limit_s: of the whole; three rounds of everything always run, so that slow machines may take longer.
        grids: what to time; `node` must be the first.
        timer: `runtime.measure`.
        progress: told what goes on.
        dearest_ns: layers that should take longer are not run.

    Raises:
        EngineError: the engine cannot run a model.
    """
    groups, limit = _groups(grids, spec, dearest_ns), _Limit(time_limit_s)
    reference = layers("pointwise", spec.activation_dtype, *REFERENCE, _COPIES, integer=False)
    results: list[list[Measurement]] = []
    for number, points in enumerate(groups):
        progress(number / len(groups), points[0].grid.kind)
        models = [p.model(count, spec.activation_dtype) for p in points for count in p.counts]
        found = timer(
            [*models, reference], {INPUT: np.ones(1, np.float32)}, threads=threads,
            time_limit_s=limit.share(len(groups) - number), precision=_PRECISION, min_rounds=_MIN_ROUNDS,
            clock=clock_of(threads),
        )  # fmt: skip
        results.append(found)
    quiet = float(np.quantile([found[-1].median_ns for found in results], 0.25))
    times: dict[_Point, float] = {}
    run_ns = empty_ns = 1.0
    for points, found in zip(groups, results, strict=True):
        slowed = found[-1].median_ns / quiet
        for point, few, many in zip(points, found[:-1:2], found[1::2], strict=True):
            least, most = point.counts
            ns = (many.median_ns - few.median_ns) / (most - least) / slowed
            if point.grid.kind == "node":
                empty_ns = max(ns, 1.0)
                run_ns = max(few.median_ns / slowed - least * empty_ns, 1.0)
            # What cuts a layer's output down is a node as well; and no node costs less than one that does nothing.
            cut = 0.0 if point.grid.kind in _ROWS else empty_ns
            times[point] = max(ns - cut, empty_ns)
    kernels = [_kernel(grid, precision, times) for grid in grids for precision in _precisions(grid)]
    whole = Kernel("run", "fp32", (1.0,), (1.0,), (1.0,), (((round(run_ns, 1),),),))
    return KernelTable((*kernels, whole))


def clock_of(threads: int) -> Clock:
    """The thread's own clock where all work is done in one thread and the clock is fine enough, else the wall's."""
    fine = time.get_clock_info("thread_time").resolution <= _FINE_S
    return time.thread_time_ns if threads == 1 and fine else time.perf_counter_ns


class _Limit:
    """Parts the time that is left; clocks of threads stand still while other programs run."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._start, self._used = seconds, time.monotonic(), time.thread_time()

    def share(self, parts: int) -> float:
        """Seconds of the thread's time for one of `parts` that are left."""
        wall, used = time.monotonic() - self._start, time.thread_time() - self._used
        return max(self._seconds - wall, 0.0) / parts * (min(used / wall, 1.0) if wall > 1 else 1.0)


def measured_spec(spec: DeviceSpec, table: KernelTable) -> DeviceSpec:
    """The profile with the table, and with the rates that follow from it.

    Args:
        spec: whose other fields stay.
        table: of a whole sweep.
    """
    by_name = {(kernel.kind, kernel.precision): kernel for kernel in table.kernels}
    rates = {precision: _rate(by_name["conv", precision]) for precision in PRECISIONS}
    fetched = by_name["product", "fp32"]  # of one row: each weight is read once
    floats = fetched.inputs[-1] * fetched.outputs[-1]
    return replace(
        spec,
        source="measured",
        macs_per_ns_fp32=rates["fp32"],
        macs_per_ns_int8=rates["int8"],
        bytes_per_ns=float(f"{4 * floats / fetched.ns[-1][-1][0]:.4g}"),
        node_overhead_ns=by_name["node", "fp32"].ns[0][0][0],
        table=table,
    )


def _rate(kernel: Kernel) -> float:
    """Multiply-accumulates per nanosecond where a kernel has the most of them."""
    macs = kernel.inputs[-1] * kernel.outputs[-1] * kernel.positions[-1]
    return float(f"{macs / kernel.ns[-1][-1][-1]:.4g}")


def _groups(grids: Sequence[Grid], spec: DeviceSpec, dearest_ns: float) -> list[list[_Point]]:
    """Points that are timed together, in the grids' order."""
    groups: dict[tuple[object, ...], list[_Point]] = {}
    for point in _points(grids):
        if not point.too_dear(spec, dearest_ns):
            groups.setdefault(point.group, []).append(point)
    return list(groups.values())


def _points(grids: Sequence[Grid]) -> Iterator[_Point]:
    for grid in grids:
        for at in np.ndindex(len(grid.inputs), len(grid.outputs), len(grid.positions)):
            for precision in _precisions(grid):
                yield _Point(grid, precision, (at[0], at[1], at[2]))


def _precisions(grid: Grid) -> Sequence[str]:
    return PRECISIONS[:1] if grid.kind in _FLOAT_ONLY else PRECISIONS


def _kernel(grid: Grid, precision: str, times: Mapping[_Point, float]) -> Kernel:
    """The grid's times; where a size was too dear, by the throughput of the next smaller one."""

    def line(i: int, j: int) -> tuple[float, ...]:
        found: list[float] = []
        for k, positions in enumerate(grid.positions):
            ns = times.get(_Point(grid, precision, (i, j, k)))
            found.append(
                round(found[-1] * positions / grid.positions[k - 1], 1) if ns is None else round(ns, 1)
            )
        return tuple(found)

    ns = tuple(tuple(line(i, j) for j in range(len(grid.outputs))) for i in range(len(grid.inputs)))
    taps = TAPS if grid.kind in ("conv", "depthwise", "pool") else 1
    inputs = tuple(float(size * taps) for size in grid.inputs)
    outputs, positions = (tuple(map(float, sizes)) for sizes in (grid.outputs, grid.positions))
    return Kernel(grid.kind, precision, inputs, outputs, positions, ns)
