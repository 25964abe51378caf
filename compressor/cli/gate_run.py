"""The work of `compress gate`: both models run, weighed and timed, and everything put into one record."""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgepress.compressor.budget import Budget, Scores
from edgepress.compressor.cli.bench import one_file, spec_of
from edgepress.compressor.cli.gate_history import Memory
from edgepress.compressor.cli.gate_settings import Settings
from edgepress.compressor.cli.targets import find_target
from edgepress.compressor.cli.troubles import errors_told
from edgepress.compressor.data import Dataset, InputSpec, describe, open_data
from edgepress.compressor.errors import DeviceError, ModelError, UsageError
from edgepress.compressor.gate import (
    BrokenCandidateError,
    Limit,
    broken_candidate,
    judge_latency,
    limited,
    quality,
    run_both,
    untimed,
)
from edgepress.compressor.model import input_specs, load, on_disk
from edgepress.compressor.protocols import Array, Feeds, Runner
from edgepress.compressor.report.gate import Criterion, File, Gate, Session, exit_code, overall
from edgepress.compressor.scoring import Metric
from edgepress.compressor.together import tried
from edgepress.devices.base import Device
from edgepress.devices.native import time_native
from edgepress.devices.opening import device_of, transport_of
from edgepress.devices.profile import DeviceSpec, is_host
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime.engines.apart import ApartEngine, ApartRunner
from edgepress.runtime.engines.choose import engine_for, is_onnx, is_tflite
from edgepress.runtime.memory import null_model
from edgepress.runtime.record import EngineError, Measurement
from edgepress.runtime.stats import ratio_interval

PRECISION = 0.002
"""Share of a median at which a timing may stop: well below the least difference that counts."""
BATCH_ROWS = 256
BATCH_BYTES = 1 << 22
MEMORY_RUNS = 3
Tell = Callable[[str, float, str], None]


class _Found:
    """What is known so far."""

    def __init__(self) -> None:
        self.metric: str | None = None
        self.rows = 0
        self.transport = ""
        self.criteria: list[Criterion] = []
        self.sessions: tuple[Session, ...] = ()
        self.warnings: list[str] = []


def run_gate(settings: Settings, reproduce: str, tell: Tell = lambda stage, share, detail: None) -> Gate:
    """Judge a candidate.

    Args:
        settings: what is asked; baseline, candidate and test must be there.
        reproduce: the command, for the record.
        tell: told what goes on.

    Raises:
        EdgepressError: something else than the candidate is wrong; `DeviceError` where the device is.
    """
    baseline, candidate, test = settings.baseline, settings.candidate, settings.test
    if baseline is None or candidate is None or test is None:
        missing = next(name for name in ("baseline", "candidate", "test") if getattr(settings, name) is None)
        raise UsageError(f"No {missing}.", f"Name it, or put `{missing} = …` under [gate] in edgepress.toml.")
    for model in (baseline, candidate):
        if not model.is_file():
            raise ModelError(
                f"{model}: no such file.", "Give the path of an .onnx, .tflite or sparse .npz file."
            )
    spec = find_target(settings.target)
    found = _Found()
    memory = None if settings.history is None else Memory.of(settings.history)
    files = (_file(baseline), _file(candidate))
    with (
        TemporaryDirectory(prefix="edgepress-") as folder,
        _baseline(baseline, settings.threads) as (base, specs),
    ):
        data = open_data(test, specs, settings.preprocess)
        try:
            with _board(spec, settings, (baseline, candidate), Path(folder)) as board:
                models = (base, _candidate(candidate, settings.threads))
                metric, scores = _score(found, settings, models, data, tell)
                if memory is not None:
                    _remember(found, settings, memory, metric, scores, files[1].sha256, data)
                if board is not None:
                    _on_device(found, settings, board, next(iter(data.batches(1))).feeds, tell)
        except BrokenCandidateError as error:
            found.criteria.append(
                broken_candidate(str(error), Budget(settings.budget), found.metric or settings.metric)
            )
    if settings.max_size is not None:
        base_bytes, own_bytes = ([file.size_bytes] for file in files)
        found.criteria.append(limited("size", settings.max_size, base_bytes, own_bytes))
    criteria = tuple(sorted(found.criteria, key=lambda criterion: _ORDER.index(criterion.kind)))
    verdict = overall(criteria)
    gate = Gate(
        verdict=verdict,
        exit_code=exit_code(verdict, settings.inconclusive),
        inconclusive=settings.inconclusive,
        baseline=files[0],
        candidate=files[1],
        test=test,
        rows=found.rows,
        metric=found.metric,
        budget_percent=settings.budget,
        confidence=settings.confidence,
        device=spec.name,
        transport=found.transport,
        criteria=criteria,
        latency=found.sessions,
        warnings=tuple(found.warnings),
        reproduce=reproduce,
        version=importlib.metadata.version("edgepress"),
    )
    return gate if memory is None else memory.add(gate)


def _score(
    found: _Found, settings: Settings, models: tuple[Runner, Runner], data: Dataset, tell: Tell
) -> tuple[Metric, Scores]:
    """Both models on all rows, and their criteria; each row by itself where the baseline needs that."""

    def told(rows: int) -> None:
        tell("score", rows / data.rows, f"{rows} of {data.rows} rows")

    trial = tried(models[0], data, settings.output, "baseline")
    if trial.alone:
        data = data.one_at_a_time()
    batches = data.batches(_batch_rows(data))
    free = trial.alone and not trial.refused
    pairs = run_both(*models, batches, settings.metric, settings.output, told, free)
    scores = pairs.scores()
    found.metric, found.rows = pairs.metric.name, pairs.rows
    found.criteria += quality(pairs, scores, Budget(settings.budget), settings.confidence, settings.seed)
    return pairs.metric, scores[0]


def _remember(
    found: _Found,
    settings: Settings,
    memory: Memory,
    metric: Metric,
    scores: Scores,
    sha256: str,
    data: Dataset,
) -> None:
    """Compare with the last accepted candidate, and keep this one's rows."""
    memory.test_sha256 = describe(data)["sha256"]
    memory.values = None if metric.whole else scores.candidate_rows
    since = memory.drift(metric, sha256, Budget(settings.budget), settings.confidence)
    found.criteria += [] if since is None else [since]


_ORDER = ("quality", "output", "drift", "latency", "size", "memory")


@dataclass(frozen=True)
class Board:
    """An open device, with a file for each model that can go there."""

    device: Device
    spec: DeviceSpec
    files: tuple[Path, Path]


@contextmanager
def _baseline(path: Path, threads: int) -> Iterator[tuple[Runner, list[InputSpec]]]:
    """The baseline, loaded, and what it takes, with any number of rows."""
    try:
        if not is_onnx(path):
            apart = _apart(path, threads)
            specs, runner = [spec_of(port) for port in apart.inputs], _checked(apart)
            size = None if specs and specs[0].shape and specs[0].shape[0] == 1 else _fixed_rows(apart.inputs)
        else:
            specs = list(input_specs(load(path)))
            apart = _apart(path, threads)
            runner, size = _checked(apart), _fixed_rows(apart.inputs)
    except DeviceError as error:
        raise ModelError(f"The baseline does not load: {error}", error.hint) from error
    try:
        yield in_pieces(runner, size), [_any_rows(spec) for spec in specs]
    finally:
        apart.close()


def _candidate(path: Path, threads: int) -> Runner:
    """The candidate in a process of its own; raises `BrokenCandidateError` where it does not load."""
    try:
        apart = _apart(path, threads)
    except DeviceError as error:
        raise BrokenCandidateError(f"it does not load: {error}") from error
    rows = _fixed_rows(apart.inputs)
    return in_pieces(_checked(apart), None if is_tflite(path) and rows == 1 else rows)


def _apart(path: Path, threads: int) -> ApartRunner:
    with errors_told():
        return ApartEngine(partial(engine_for, path)).load(path, threads)


def _checked(runner: ApartRunner) -> Runner:
    def run(feeds: Feeds) -> dict[str, Array]:
        with errors_told():
            return runner(feeds)

    return run


def _fixed_rows(ports: Sequence[Any]) -> int | None:
    """How many rows a model wants at once; None for any number."""
    first = ports[0][2][:1] if ports else ()
    return first[0] if first and isinstance(first[0], int) and first[0] > 0 else None


def _any_rows(spec: InputSpec) -> InputSpec:
    return replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec


def in_pieces(run: Runner, size: int | None) -> Runner:
    """A model that takes a fixed number of rows, for any number: the last rows are repeated to fill it.

    Args:
        run: the model.
        size: rows that it wants at once; None: any number.

    Returns:
        The model for any number; an output whose pieces are no rows of one size is the first piece's alone.
    """
    if size is None:
        return run

    def split(feeds: Feeds) -> dict[str, Array]:
        rows = len(next(iter(feeds.values())))
        parts: list[Mapping[str, Array]] = []
        for start in range(0, rows, size):
            piece = {name: array[start : start + size] for name, array in feeds.items()}
            lacking = size - len(next(iter(piece.values())))
            filled = {name: np.concatenate([a, np.repeat(a[-1:], lacking, 0)]) for name, a in piece.items()}
            parts.append(run(filled if lacking else piece))
        whole = {}
        for name, first in parts[0].items():
            pieces = [part[name] for part in parts]
            alike = len({np.shape(piece) for piece in pieces}) == 1
            by_row = alike and np.ndim(first) > 0 and len(first) == size
            whole[name] = np.concatenate(pieces)[:rows] if by_row else first
        return whole

    return split


def _batch_rows(data: Dataset) -> int:
    one = sum(array.nbytes for array in next(iter(data.batches(1, with_labels=False))).feeds.values())
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(one, 1)))


@contextmanager
def _board(
    spec: DeviceSpec, settings: Settings, models: tuple[Path, Path], folder: Path
) -> Iterator[Board | None]:
    """The device, where something is to be done there; that both models load there is looked at first."""
    asked = settings.max_latency_ratio is not None or settings.max_memory is not None
    if not asked and is_host(spec):
        yield None
        return
    with errors_told(), device_of(spec) as device:
        files = (
            one_file(models[0], folder / "baseline.onnx"),
            _its_file(models[1], folder / "candidate.onnx"),
        )
        if not spec.benchmark:
            worker = RemoteWorker(device)
            worker.look(files[:1], threads=settings.threads)
            try:
                worker.look(files[1:], threads=settings.threads)
            except EngineError as error:
                raise BrokenCandidateError(f"it does not load on {spec.name}: {error}") from error
        yield Board(device, spec, files)


def _its_file(model: Path, target: Path) -> Path:
    try:
        return one_file(model, target)
    except ModelError as error:
        raise BrokenCandidateError(str(error)) from error


def _on_device(found: _Found, settings: Settings, board: Board, feeds: Feeds, tell: Tell) -> None:
    """Latency and memory, where a limit is set."""
    found.transport = transport_of(board.spec)
    limit = settings.max_latency_ratio
    if limit is not None and not board.device.timed:
        found.criteria.append(
            untimed(limit, f"{board.spec.name} is emulated, and emulated time is no latency")
        )
    elif limit is not None:
        tell("time", 0.0, board.spec.name)
        timed = partial(time_session, board, feeds, settings)
        criterion, found.sessions = judge_latency(timed, limit, settings.confidence)
        found.criteria.append(criterion)
    if settings.max_memory is not None:
        tell("weigh", 0.0, board.spec.name)
        found.criteria.append(_memory(settings.max_memory, board, feeds, settings.threads))


def time_session(board: Board, feeds: Feeds, settings: Settings, turn: int) -> Session:
    """Both models timed, interleaved, in a fresh process there; they are loaded first in turns."""
    swapped = turn % 2 == 1
    files = board.files[::-1] if swapped else board.files
    seconds = settings.seconds * (2 if turn else 1)
    if board.spec.benchmark:
        times = time_native(
            board.device, board.spec.benchmark, files, threads=settings.threads, time_limit_s=seconds
        )
    else:
        times, _ = RemoteWorker(board.device).time(
            files, [feeds, feeds], threads=settings.threads, time_limit_s=seconds, precision=PRECISION
        )
    base, ours = times[::-1] if swapped else times
    return session_of(base, ours, settings)


def session_of(base: Measurement, ours: Measurement, settings: Settings) -> Session:
    """Both models' samples of one session, and their ratio."""
    level = 2 * settings.confidence - 1
    rng = np.random.default_rng(settings.seed)
    return Session(
        baseline_ns=base.samples_ns,
        candidate_ns=ours.samples_ns,
        ratio=ours.median_ns / base.median_ns,
        ratio_interval=ratio_interval(ours.samples_ns, base.samples_ns, rng, level),
    )


def _memory(limit: Limit, board: Board, feeds: Feeds, threads: int) -> Criterion:
    """Peak memory of each model, some times over; of ONNX files less that of a model that does nothing."""
    if board.spec.benchmark:
        return limited("memory", limit, (), (), "a device without our worker does not tell its memory")
    if not board.device.timed:
        return limited(
            "memory", limit, (), (), f"{board.spec.name} is emulated: its memory is the emulator's, too"
        )
    worker = RemoteWorker(board.device)
    with TemporaryDirectory(prefix="edgepress-") as folder:
        null = Path(folder) / "null.onnx"
        null.write_bytes(null_model())
        nothing = {"x": np.zeros(1, np.float32)}

        def growth(file: Path, given: Feeds) -> list[float]:
            return [
                float(worker.ask("memory", [file], given, threads=threads).result[0])
                for _ in range(MEMORY_RUNS)
            ]

        least = float(np.median(growth(null, nothing))) if any(map(is_onnx, board.files)) else 0.0
        base, ours = (
            [max(0.0, each - least * is_onnx(file)) for each in growth(file, feeds)] for file in board.files
        )
    return limited("memory", limit, base, ours)


def _file(path: Path) -> File:
    try:
        size = on_disk(path)[0] if is_onnx(path) else path.stat().st_size
    except Exception:  # whatever a damaged file makes of protobuf: its own bytes are all there is
        size = path.stat().st_size
    with path.open("rb") as stream:
        return File(name=str(path), size_bytes=size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
