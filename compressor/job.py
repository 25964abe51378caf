"""What a session is asked for, what it needs from outside, and what it finds out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from pydantic import JsonValue

from edgepress.compressor.budget import Judgement
from edgepress.compressor.cache import Cache
from edgepress.compressor.choice import Candidate, Limits, Objective
from edgepress.compressor.cost import Shapes
from edgepress.compressor.data import Dataset, Source
from edgepress.compressor.errors import UsageError, nearest
from edgepress.compressor.metrics import Metric
from edgepress.compressor.normalize import Normalized
from edgepress.compressor.options import Options
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import Skipped
from edgepress.compressor.protocols import (
    Board,
    Count,
    Counter,
    Engine,
    Feeds,
    Footprint,
    Latency,
    Matrix,
    Microcontroller,
    ModelFile,
    Stopwatch,
    Target,
    Tell,
    TfliteEngine,
)
from edgepress.compressor.report.device import OnDevice
from edgepress.compressor.report.sparse import Sparse
from edgepress.compressor.report.tflite import Tflite
from edgepress.compressor.scoring import BuiltIn
from edgepress.compressor.serialize import Serialized

BATCH_BYTES = 192 << 20
MOST_ROWS = 64
FORMATS = ("onnx", "tflite")
"""Of files that a result may hold."""


@dataclass(frozen=True)
class Job:
    """What the user asked for; fields as in `compress --help`.

    Attributes:
        model: an .onnx file.
        data: samples for calibration and search, or None.
        test: unseen samples for the verdict; None: half of `data`.
        metric: name or `module:function`; None: by what there is.
        output: the output that the metric reads; None: the first.
        budget: percent of the score that may be lost.
        objective: what is to become small.
        recipe: passes to apply instead of a search.
        strict: whether a name in the recipe that the model lacks is refused: a search may leave some behind.
        shapes: input name → shape that fixes its dynamic dimensions.
        leave: regular expressions of sites not to touch.
        preprocess: TOML file for images; None: the one beside them.
        time_limit_minutes: after which the search begins nothing new.
        seed: of every random choice.
        threads: of the runtime.
        timings: nanoseconds by candidate, from an earlier run of the same model.
        memories: bytes of peak memory by candidate, likewise.
        max_size_bytes: of the result; None: as many as it likes.
        max_latency_ns: of one inference of the result, likewise.
        device_rows: unseen rows that are judged on a target that is not this machine; None: what takes two minutes.
        formats: of `FORMATS`; ONNX is always written, and TFLite alone means that it must be.
    """

    model: Path
    data: Source | None = None
    test: Source | None = None
    metric: str | None = None
    output: str | None = None
    budget: float = 2.0
    objective: Objective = "latency"
    recipe: tuple[Pass, ...] | None = None
    strict: bool = True
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    leave: tuple[str, ...] = ()
    preprocess: Path | None = None
    time_limit_minutes: float | None = None
    seed: int = 0
    threads: int = 1
    timings: dict[str, float] = field(default_factory=dict)
    memories: dict[str, int] = field(default_factory=dict)
    max_size_bytes: int | None = None
    max_latency_ns: float | None = None
    device_rows: int | None = None
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        """Refuse limits that nothing can keep to, and unknown formats, before any work."""
        Limits(self.max_size_bytes, self.max_latency_ns)
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"unknown format {name!r}", nearest(name, FORMATS))
        if not self.formats:
            raise UsageError("No format is asked for.", nearest("", FORMATS))

    @property
    def needs_tflite(self) -> bool:
        """Whether a result without a TFLite file is none."""
        return set(self.formats) == {"tflite"}

    @property
    def limits(self) -> Limits:
        """What the result may take."""
        return Limits(self.max_size_bytes, self.max_latency_ns)


@dataclass(frozen=True)
class Host:
    """What the session needs from outside; `cli` brings it.

    Attributes:
        engine: runs models.
        target: the device.
        stopwatch: times models on the target, or None where it can only be predicted.
        memory: peak bytes of a serialized model on feeds, or None.
        progress: told what goes on.
        environment: facts of this machine that bear on timing, for the report.
        workers: processes of this machine that a search keeps busy.
        scheduler: address of a Dask scheduler whose workers do it instead, or empty.
        cache: folder for what was worked out; None: nothing is kept.
        stopped: whether the user wants what there is so far.
        glance: a stopwatch that takes less time and errs more, for what is only shown; None: the same one.
        tflite: gives what runs TFLite files, or None where nothing does; the target's interpreter where that is a
            microcontroller.
        sparse: runs perceptrons of few weights, as .npz files.
        board: the target, where it is not this machine and models can be run on it; the verdict is made there.
        counter: counts instructions on it, which are the cost then; None where it is not emulated.
        notes: what the user should know of the target.
        micro: the target's memories, where it is a microcontroller.
    """

    engine: Engine
    target: Target
    stopwatch: Stopwatch | None
    memory: Callable[[ModelFile, Feeds], int] | None
    progress: Tell
    environment: Mapping[str, JsonValue] = field(default_factory=dict)
    workers: int = 1
    scheduler: str = ""
    cache: Path | None = None
    stopped: Callable[[], bool] = lambda: False
    glance: Stopwatch | None = None
    tflite: Callable[[], TfliteEngine | None] = lambda: None
    sparse: Engine | None = None
    board: Board | None = None
    counter: Counter | None = None
    notes: tuple[str, ...] = ()
    micro: Microcontroller | None = None


@dataclass
class Findings:
    """Everything that a session found out; `report.build` makes the record from it.

    Pairs are (what came in, what goes out).

    Attributes:
        job: what was asked for.
        host: what it ran with.
        source: the model as it came.
        source_bytes: its size on disk, external data included.
        external: files with its external data.
        normalized: the model that all candidates start from.
        shapes: observed for one row; empty where the model cannot be run.
        data: samples for calibration and search.
        test: unseen samples.
        metric: of the budget.
        others: fidelity of the outputs that it does not read.
        original_scores: of the unseen rows, by the metric and the others.
        options: what could be turned down where.
        candidates: all that were considered.
        front: those of them that no other beats in drop, latency and size (front.py).
        best: the one that goes out.
        exported: its file, or files.
        tflite_file: the same as TFLite, or None.
        tflite: what is known of that; None where it was not asked for.
        sparse_file: the same for the sparse engine; empty where that is not faster.
        sparse: what is known of that; None where it was not tried.
        footprints: what the files take of the target, where that is a microcontroller.
        on_device: values of the unseen rows by the metric and the others, as the target's own kernels computed them.
        judgement: the verdict.
        latencies: measured, or None.
        counted: instructions, where these are the cost.
        predicted_ns: by the target's cost table.
        memory: peak bytes, or None.
        one_row: feeds of one row; empty where none is known.
        timings: nanoseconds by candidate, as the search used them.
        timed: measurements of what came in and what goes out, by the name under which a timer took them.
        memories: bytes of peak memory by candidate, likewise.
        counts: instructions by candidate.
        judged: unseen rows that were judged on the device; None where it was not asked.
        there: what they showed there.
        seconds: wall time by stage.
        warnings: what the user should know.
        left_alone: sites that nothing touched.
        time_limit_hit: whether the time limit ended the search.
        stopped: whether the user ended it.
        hired: processes of this machine that worked for the search.
        stored: what was worked out before, where that is kept.
    """

    job: Job
    host: Host
    source: ir.Model
    source_bytes: int
    external: tuple[Path, ...]
    normalized: Normalized
    shapes: Shapes = field(default_factory=dict)
    data: Dataset | None = None
    test: Dataset | None = None
    metric: Metric | None = None
    others: tuple[BuiltIn, ...] = ()
    original_scores: list[Matrix] = field(default_factory=list)
    options: Options | None = None
    candidates: list[Candidate] = field(default_factory=list)
    front: list[Candidate] = field(default_factory=list)
    best: Candidate | None = None
    exported: Serialized = b""
    tflite_file: bytes | None = None
    tflite: Tflite | None = None
    sparse_file: bytes = b""
    sparse: Sparse | None = None
    footprints: tuple[Footprint | None, Footprint | None] = (None, None)
    on_device: list[Matrix] = field(default_factory=list)
    judgement: Judgement | None = None
    latencies: tuple[Latency | None, Latency | None] = (None, None)
    counted: tuple[Count | None, Count | None] = (None, None)
    predicted_ns: tuple[float, float] = (0.0, 0.0)
    memory: tuple[int | None, int | None] = (None, None)
    one_row: Feeds = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    timed: dict[str, Latency] = field(default_factory=dict)
    memories: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Count] = field(default_factory=dict)
    judged: Dataset | None = None
    there: OnDevice | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_alone: tuple[Skipped, ...] = ()
    time_limit_hit: bool = False
    stopped: bool = False
    hired: int = 0
    stored: Cache | None = None

    @property
    def exit_code(self) -> int:
        """The verdict's, 1 where a limit is missed; 4 before there is a verdict."""
        if self.judgement is None:
            return 4
        return 1 if self.misses_limits else self.judgement.exit_code

    @property
    def latency_ns(self) -> float:
        """Of what goes out: measured, or else predicted; 0 where neither is known."""
        return self.latencies[1].median_ns if self.latencies[1] is not None else self.predicted_ns[1]

    @property
    def misses_limits(self) -> bool:
        """Whether what goes out is larger or slower than the job allows, or a file is missing that must be there."""
        if self.job.needs_tflite and self.tflite_file is None:
            return True
        footprint = self.footprints[1]
        if self.host.micro is not None and (footprint is None or self.limits.overflow(footprint) > 0):
            return True
        return self.limits.excess(len(self.exported), self.latency_ns) > 0

    @property
    def limits(self) -> Limits:
        """What the result may take: as the job says, and what the target has."""
        micro = self.host.micro
        if micro is None:
            return self.job.limits
        return replace(self.job.limits, flash_bytes=micro.flash_bytes, arena_bytes=micro.arena_bytes)

    @property
    def batch(self) -> int:
        """Rows that are run together: all values of all of them take `BATCH_BYTES` at most."""
        row = sum(4 * math.prod(shape) for shape in self.shapes.values())
        return min(max(BATCH_BYTES // max(row, 1), 1), MOST_ROWS)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and announce it."""
        started = time.monotonic()
        self.host.progress(name, 0.0, "")
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
