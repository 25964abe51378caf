"""The main job: a model and samples in, a smaller model, a judgement and a trail out. One direction, stage by stage."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgepress.compressor.budget import Budget, Judgement, Scores, judge, unverified
from edgepress.compressor.cost import Shapes, node_costs
from edgepress.compressor.data import Batch, Dataset, open_data, split, without_overlap
from edgepress.compressor.errors import DataError, DeviceError, EdgepressError, UsageError
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.metrics import resolve_metric
from edgepress.compressor.model import input_specs, load, to_bytes
from edgepress.compressor.normalize import Normalized, normalize, same_outputs
from edgepress.compressor.observe import output_names
from edgepress.compressor.options import Options, collect
from edgepress.compressor.passes import Pass, StoreWeights
from edgepress.compressor.passes.base import Context, Skipped
from edgepress.compressor.protocols import Array, Engine, Feeds, Latency, Stopwatch, Target
from edgepress.compressor.recipe import digest
from edgepress.compressor.samples import observed_shapes, synthetic_feeds
from edgepress.compressor.scoring import Metric, score_rows
from edgepress.compressor.search import Candidate, Objective, Progress, Search, Timer
from edgepress.compressor.trials import Trials, make_trials

LOSSLESS = 1e-4
"""Largest change of an output, as a share of its largest value, that a lossless step may make (rounding)."""

SEARCH_ROWS = 1024
"""Samples that the search works on at most; more make it slower rather than better."""

FOLD_ROWS = 200
"""From so many samples on, two folds are judged; below, or where one run is dear, a quarter is held out."""


@dataclass(frozen=True)
class Job:
    """What the user asked for; fields as in `compress --help`."""

    model: Path
    data: str | Path | dict[str, Array] | None = None
    test: str | Path | dict[str, Array] | None = None
    metric: str | None = None
    output: str | None = None
    budget: float = 2.0
    objective: Objective = "latency"
    recipe: tuple[Pass, ...] | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    leave: tuple[str, ...] = ()
    preprocess: Path | None = None
    time_limit_minutes: float | None = None
    seed: int = 0
    threads: int = 1
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """What the session needs from outside; `cli` brings it.

    Attributes:
        engine: runs models.
        target: the device.
        stopwatch: times models on the target, or None where it can only be predicted.
        memory: peak bytes of a serialized model on feeds, or None.
        progress: told what goes on.
    """

    engine: Engine
    target: Target
    stopwatch: Stopwatch | None
    memory: Callable[[bytes, Feeds], int] | None
    progress: Progress


@dataclass
class Result:
    """Everything that a session found out; `report.build` makes the record from it."""

    job: Job
    host: Host
    source: ir.Model
    normalized: Normalized
    shapes: Shapes
    data: Dataset | None = None
    test: Dataset | None = None
    metric: Metric | None = None
    options: Options | None = None
    candidates: list[Candidate] = field(default_factory=list)
    best: Candidate | None = None
    exported: bytes = b""
    judgement: Judgement | None = None
    latencies: tuple[Latency | None, Latency | None] = (None, None)
    predicted_ns: tuple[float, float] = (0.0, 0.0)
    memory: tuple[int | None, int | None] = (None, None)
    one_row: Feeds = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_alone: tuple[Skipped, ...] = ()
    time_limit_hit: bool = False

    @property
    def exit_code(self) -> int:
        """The verdict's, or 1 where a demanded recipe broke the budget."""
        return self.judgement.exit_code if self.judgement is not None else 4

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and announce it."""
        started = time.monotonic()
        self.host.progress(name, 0.0, "")
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def run(job: Job, host: Host) -> Result:
    """Do the whole job, short of writing files.

    Raises:
        EdgepressError: with what is wrong, where, and what to do.
    """
    started = time.monotonic()
    deadline = math.inf if job.time_limit_minutes is None else started + 60 * job.time_limit_minutes
    result, trials = look(job, host)
    context = trials.full if trials is not None else Context(None, host.target, job.seed, job.leave)
    if job.recipe is not None:
        _follow_recipe(result, job.recipe, context)
    elif trials is None:
        _without_data(result, context)
    else:
        _search(result, trials, deadline)
    with result.stage("export"):
        _export(result)
    with result.stage("measure"):
        _measure(result)
    with result.stage("judge"):
        result.judgement = _judge(result)
    result.seconds["total"] = time.monotonic() - started
    return result


def look(job: Job, host: Host) -> tuple[Result, Trials | None]:
    """Load, normalise and open the samples, without changing anything; for `inspect`, and the start of a run.

    Raises:
        EdgepressError: with what is wrong, where, and what to do.
    """
    source = load(job.model, job.shapes or None)
    data, test, warnings = open_samples(job, source)
    result = Result(job, host, source, Normalized(source, (), ()), {}, data, test, warnings=warnings)
    with result.stage("normalise"):
        _normalise(result)
    with result.stage("samples"):
        result.metric, answers = _metrics(result)
        trials = None if result.metric is None else _trials(result, result.metric, answers)
    return result, trials


def open_samples(job: Job, model: ir.Model) -> tuple[Dataset | None, Dataset | None, list[str]]:
    """Calibration samples and unseen ones, apart from each other; and what the user should know of them."""
    warnings: list[str] = []
    if job.data is None:
        if job.test is not None:
            raise UsageError(
                "--test without --data: there is nothing to calibrate on.", "Give samples with --data."
            )
        return None, None, warnings
    specs = input_specs(model)
    data = open_data(job.data, specs, job.preprocess)
    if job.test is None:
        kept, test = split(data, 0.5, job.seed)
        warnings.append(
            "No --test: half of --data was set aside for the verdict before anything looked at it."
        )
        return kept, test, warnings
    test = open_data(job.test, specs, job.preprocess)
    data, dropped = without_overlap(data, test)
    if dropped:
        warnings.append(f"{dropped} rows of --test were found in --data and dropped from it.")
    return data, test, warnings


def first_batch(result: Result, rows: int) -> Batch | None:
    """The first rows of the calibration samples, or None without."""
    return None if result.data is None else next(iter(result.data.batches(rows)))


def _normalise(result: Result) -> None:
    """Canonical form, each lossless step checked on samples (or on synthetic input where there are none)."""
    engine, threads = result.host.engine, result.job.threads
    batch, one = first_batch(result, 8), first_batch(result, 1)
    load_checked = engine.load(to_bytes(result.source), threads)
    if batch is not None and one is not None:
        feeds: Feeds | None = batch.feeds
        result.one_row = one.feeds
    else:
        feeds = synthetic_feeds(result.source, load_checked, result.job.seed)
        result.one_row = feeds or {}
        if feeds is None:
            result.warnings.append(
                "No input was found that the model accepts: fix its shape with --shape NAME=1,3,224,224."
            )
    check = None
    if feeds is not None:
        expected = load_checked(feeds)

        def check(candidate: ir.Model) -> bool:
            try:
                return same_outputs(expected, engine.load(to_bytes(candidate), threads)(feeds), LOSSLESS)
            except EdgepressError:
                return False

    result.normalized = normalize(result.source, check)
    result.shapes = observed_shapes(result.normalized.model, engine, result.one_row)
    for step in result.normalized.steps:
        if step.changed and not step.kept:
            result.warnings.append(f"Normalisation step {step.name!r} was rolled back: {step.why}.")


def _metrics(result: Result) -> tuple[Metric | None, Metric | None]:
    """The metric of the budget, and agreement where the model gives classes."""
    data, job = result.data, result.job
    if data is None:
        return None, None
    batch = next(iter(data.batches(64)))
    outputs = result.host.engine.load(to_bytes(result.source), job.threads)(batch.feeds)
    metric = resolve_metric(job.metric, outputs, batch, job.output)
    if metric.whole or metric.name not in ("top1", "top5", "agreement"):
        return metric, None
    return metric, resolve_metric("agreement", outputs, batch, job.output)


def _trials(result: Result, metric: Metric, answers: Metric | None) -> Trials:
    """Folds of the calibration samples, at most `SEARCH_ROWS` of them."""
    data, job, host = result.data, result.job, result.host
    if data is None:
        raise ValueError("trials need samples")
    if data.rows > SEARCH_ROWS:
        data = data.subset(np.random.default_rng(job.seed).permutation(data.rows)[:SEARCH_ROWS])
    activations = sum(math.prod(s) * 4 for s in result.shapes.values())
    batch = int(np.clip((128 << 20) // max(activations, 1), 1, 64))
    macs = sum(c.macs for c in node_costs(result.normalized.model, result.shapes, None))
    folds = 2 if data.rows >= FOLD_ROWS and macs * data.rows < 2e10 else 1
    return make_trials(
        result.normalized.model,
        host.engine,
        metric,
        answers,
        data,
        host.target,
        seed=job.seed,
        leave=job.leave,
        batch=batch,
        folds=folds,
    )


def _search(result: Result, trials: Trials, deadline: float) -> None:
    host, job = result.host, result.job
    with result.stage("options"):
        multiple = max(1, host.target.channel_multiple // 2) if job.objective == "latency" else 4
        result.options = collect(
            trials.original,
            trials.folds[0].context,
            result.shapes,
            multiple,
            lambda share, what: host.progress("options", share, what),
        )
    with result.stage("search"):
        timer = make_timer(result)
        search = Search(
            trials,
            result.options,
            host.target,
            job.objective,
            job.budget,
            result.shapes,
            timer,
            host.progress,
            deadline,
        )
        result.candidates = search.run()
        result.time_limit_hit = search.time_limit_hit
    result.best = next(c for c in result.candidates if c.kept)
    left = {s.site: s for s in (*result.options.skipped, *result.best.skipped)}
    result.left_alone = (*result.normalized.left_alone, *left.values())


def _follow_recipe(result: Result, recipe: tuple[Pass, ...], context: Context) -> None:
    """Apply what the user wrote, nothing else."""
    with result.stage("rewrite"):
        model, skipped = result.normalized.model.clone(), []
        for step in recipe:
            result.host.progress("rewrite", 0.0, step.kind)
            skipped += step.apply(model, context).skipped
    result.best = Candidate(
        "recipe", recipe, model=model, data=save(model), kept=True, why="as the recipe says"
    )
    result.candidates = [result.best]
    result.left_alone = (*result.normalized.left_alone, *skipped)


def _without_data(result: Result, context: Context) -> None:
    """Steps that need no samples: weights stored in 8 bits, where that pays."""
    original = Candidate(
        "original, normalised", (), model=result.normalized.model, data=save(result.normalized.model)
    )
    model = result.normalized.model.clone()
    step = StoreWeights()
    outcome = step.apply(model, context)
    stored = Candidate("weights in 8 bits", (step,), model=model, data=save(model), why="needs no samples")
    smaller = outcome.modified and len(stored.data) < len(original.data)
    times = (
        make_timer(result)([(digest(c.recipe), c.data) for c in (original, stored)])
        if smaller
        else [1.0, 2.0]
    )
    pays = smaller and times[1] <= 1.01 * times[0]
    result.best = stored if pays else original
    result.candidates = [original, stored]
    result.left_alone = (*result.normalized.left_alone, *outcome.skipped)


def make_timer(result: Result) -> Timer:
    """Times models by the stopwatch, by what `--timings` says, or by prediction."""
    host = result.host

    def timer(models: Sequence[tuple[str, bytes]]) -> list[float]:
        known = {**result.job.timings, **result.timings}
        if not all(name in known for name, _ in models):
            if host.stopwatch is not None and result.one_row:
                host.progress("time", 0.0, f"{len(models)} models")
                found = [
                    latency.median_ns
                    for latency in host.stopwatch([data for _, data in models], result.one_row)
                ]
            else:
                found = [predicted(result, data) for _, data in models]
            known.update({name: ns for (name, _), ns in zip(models, found, strict=True)})
        times = [known[name] for name, _ in models]
        result.timings.update({name: ns for (name, _), ns in zip(models, times, strict=True)})
        return times

    return timer


def predicted(result: Result, data: bytes) -> float:
    """Predicted nanoseconds of a serialized model on the target."""
    model = ir.from_proto(ir.serde.onnx.ModelProto.FromString(data))
    shapes = observed_shapes(model, result.host.engine, result.one_row)
    return sum(cost.latency_ns for cost in node_costs(model, shapes, result.host.target))


def _export(result: Result) -> None:
    """Serialize the chosen model; check it, load it again, run it and compare with what was judged."""
    best = result.best
    if best is None or best.model is None:
        raise ValueError("nothing to export")
    result.exported = best.data or save(best.model)
    original_size = result.job.model.stat().st_size if result.job.model.is_file() else 0
    if len(result.exported) > original_size > 0 and not best.recipe:
        result.exported = result.job.model.read_bytes()
    verify(result.source, result.exported)
    if result.one_row:
        engine, threads = result.host.engine, result.job.threads
        before = engine.load(to_bytes(best.model), threads)(result.one_row)
        if not same_outputs(before, engine.load(result.exported, threads)(result.one_row), LOSSLESS):
            raise DeviceError(
                "The written model gives other outputs than the one that was judged.", "Please report this."
            )


def _measure(result: Result) -> None:
    """Latency and memory of what came in and what goes out, as files that users have."""
    host = result.host
    pair = [to_bytes(result.source), result.exported]
    result.predicted_ns = (
        (predicted(result, pair[0]), predicted(result, pair[1])) if result.one_row else (0.0, 0.0)
    )
    if not result.one_row:
        return
    if host.stopwatch is not None:
        first, second = host.stopwatch(pair, result.one_row)
        result.latencies = (first, second)
    if host.memory is not None:
        result.memory = (host.memory(pair[0], result.one_row), host.memory(pair[1], result.one_row))


def _judge(result: Result) -> Judgement:
    """The verdict on unseen rows."""
    budget = Budget(result.job.budget)
    if result.test is None or result.metric is None:
        return unverified(budget)
    engine, threads = result.host.engine, result.job.threads
    original = engine.load(to_bytes(result.source), threads)
    compressed = engine.load(result.exported, threads)
    batch = 64
    base = score_rows(result.metric, original, result.test.batches(batch), lambda b: original(b.feeds))
    ours = score_rows(result.metric, compressed, result.test.batches(batch), lambda b: original(b.feeds))
    return judge(budget, result.metric, Scores(base, ours), rows=result.test.rows, seed=result.job.seed)
