"""From the chosen candidate to what is handed over: timed, checked, measured and judged."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from onnx_ir.passes import common

from edgepress.compressor.budget import Budget, Judgement, Scores, hold, judge, unverified
from edgepress.compressor.choice import NOISE, Candidate, Weigher
from edgepress.compressor.data import Dataset
from edgepress.compressor.equality import same_outputs
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.job import Findings
from edgepress.compressor.ondevice import judge_there
from edgepress.compressor.predict import predicted_memory_bytes, predicted_ns
from edgepress.compressor.protocols import Counter, Latency, Matrix
from edgepress.compressor.recipe import digest
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.scoring import Metric, score_all
from edgepress.compressor.search import Timer
from edgepress.compressor.serialize import Serialized, StoredModel, parse, serialize

LOSSLESS = 1e-4
"""Largest change of an output, as a share of its largest value, that a lossless step may make (rounding)."""

SLOWER = 1.02
"""A result that takes longer than the input by this factor, whatever the noise, is taken back."""

DOUBTFUL = 1.06
"""A model slower by less than this may only lie badly in memory: loaded anew it is as fast as the original."""

ROUNDS = 3
"""Timings of what is in doubt, with all models loaded anew."""

INPUT, OUTPUT = "input", "output "
"""What timers call the file that came in, and the one that goes out, with its recipe's digest behind."""


def make_timer(found: Findings, glance: bool = False) -> Timer:
    """Times models by what `--timings` says, by the stopwatch (or the host's quicker one), or by prediction.

    A time once used is never replaced, so that stored timings lead to the same choices again; later ones are
    put on the same scale by the models that both measurements have in common.
    """
    host = found.host
    if host.counter is not None and found.one_row:
        return _counting(found, host.counter)
    stopwatch = host.glance if glance and host.glance is not None else host.stopwatch
    stored = recorded(found, "timings")

    def timer(models: Sequence[tuple[str, Serialized]]) -> list[float]:
        known = {**stored, **found.job.timings, **found.timings}
        if not all(name in known for name, _ in models):
            if stopwatch is not None and found.one_row:
                host.progress("time", 0.0, f"{len(models)} models")
                take = partial(stopwatch, [data for _, data in models], found.one_row)
                times, latencies = settled(take, 1 if glance else ROUNDS)
                found.timed = {name: each for (name, _), each in zip(models, latencies, strict=True)}
            else:
                times = [predicted(found, data) for _, data in models]
            pairs = list(zip((name for name, _ in models), times, strict=True))
            scale = next((known[name] / ns for name, ns in pairs if name in known and ns > 0), 1.0)
            known = {**{name: ns * scale for name, ns in pairs}, **known}
        found.timings.update({name: known[name] for name, _ in models})
        record(found, "timings", {**stored, **found.timings})
        return [known[name] for name, _ in models]

    return timer


def settled(take: Callable[[], list[Latency]], rounds: int = ROUNDS) -> tuple[list[float], list[Latency]]:
    """Nanoseconds of each model; where one is slower than the first by little, by the middle one of several rounds.

    Args:
        take: times all models in turns.
        rounds: an odd number; 1 never times again.

    Returns:
        Times on the scale of the first round, and latencies of the round that gave the last model its time.
    """
    taken = [take()]
    first = taken[0][0].median_ns
    if any(first * (1 + NOISE) < each.median_ns <= first * DOUBTFUL for each in taken[0]):
        taken += [take() for _ in range(rounds - 1)]
    ratios = [[each[i].median_ns / each[0].median_ns for each in taken] for i in range(len(taken[0]))]
    middle = [statistics.median(each) for each in ratios]
    return [first * ratio for ratio in middle], taken[ratios[-1].index(middle[-1])]


def _counting(found: Findings, counter: Counter) -> Timer:
    """A timer that counts instructions, and says what the device should take for them: they repeat, time does not."""

    def timer(models: Sequence[tuple[str, Serialized]]) -> list[float]:
        fresh = [(name, data) for name, data in models if name not in found.counts]
        if fresh:
            found.host.progress("count", 0.0, f"{len(fresh)} models")
            counts = counter([data for _, data in fresh], found.one_row)
            found.counts.update({name: each for (name, _), each in zip(fresh, counts, strict=True)})
        times = [found.counts[name].predicted_ns for name, _ in models]
        found.timings.update({name: ns for (name, _), ns in zip(models, times, strict=True)})
        return times

    return timer


def recorded(found: Findings, what: str) -> dict[str, Any]:
    """What a run of the same job measured, by candidate."""
    values = found.stored.get(_key(found, what)) if found.stored is not None else None
    return values or {}


def record(found: Findings, what: str, values: Mapping[str, float]) -> None:
    """Keep what was measured, for a run that goes on where this one was broken off."""
    if found.stored is not None:
        found.stored.put({_key(found, what): dict(values)})


def _key(found: Findings, what: str) -> str:
    """All that decides which models are measured together."""
    job = found.job
    return f"{what} {job.objective} {job.budget} {job.limits} {job.threads} {job.time_limit_minutes}"


def make_scale(found: Findings) -> Weigher:
    """Weighs models by what `--timings` says, by a run in a process of its own, or by prediction.

    As of times: what was once used is never replaced.
    """
    host = found.host
    stored = recorded(found, "memories")

    def weigh(name: str, data: Serialized) -> int:
        known: dict[str, int] = {**stored, **found.job.memories, **found.memories}
        if name not in known and host.memory is not None and found.one_row:
            host.progress("weigh", 0.0, name)
            known[name] = host.memory(data, found.one_row)
        elif name not in known:
            model = parse(data)
            known[name] = predicted_memory_bytes(model, shapes_in_one_run(model, host.engine, found.one_row))
        found.memories[name] = known[name]
        record(found, "memories", {**stored, **found.memories})
        return known[name]

    return weigh


def predicted(found: Findings, data: Serialized) -> float:
    """Predicted nanoseconds of a serialized model on the target, for one row."""
    model = parse(data)
    if model.functions:  # calls say nothing of what they cost
        common.InlinePass()(model)
    shapes = shapes_in_one_run(model, found.host.engine, found.one_row)
    return predicted_ns(model, shapes, found.host.target)


def original(found: Findings) -> Candidate:
    """The candidate that changes nothing but the form."""
    model = found.normalized.model
    return Candidate("original, normalised", (), model=model, data=save(model))


def export(found: Findings) -> None:
    """Serialize the chosen model; check it, load it again, run it and compare with what was judged.

    Where the passes did nothing, and the file would be larger than the one that came in, or nothing could be
    run to check it, the file that came in is handed on as it is.

    Raises:
        DeviceError: the written model gives other outputs; OutputError: it fails the checker.
    """
    best = found.best
    if best is None or best.model is None:
        raise ValueError("nothing to export")
    found.exported = best.data or save(best.model)
    as_it_came = len(found.exported) > found.source_bytes or not found.one_row
    if as_it_came and not best.recipe and not found.external and not found.job.shapes:
        found.exported = found.job.model.read_bytes()
    verify(found.source, found.exported)
    if found.one_row:
        engine, threads = found.host.engine, found.job.threads
        before = engine.load(serialize(best.model), threads)(found.one_row)
        if not same_outputs(before, engine.load(found.exported, threads)(found.one_row), LOSSLESS):
            raise DeviceError(
                "The written model gives other outputs than the one that was judged.", "Please report this."
            )


def take_back_if_slower(found: Findings, timer: Timer) -> None:
    """Hand the original on where the exported model is slower than the very file that came in.

    The search compares with the normalised original; this looks at what the user has.
    """
    best = found.best
    if best is None or found.job.recipe is not None or not found.one_row:
        return
    name = digest(best.recipe)
    times = timer([(INPUT, _came_in(found)), (f"{OUTPUT}{name}", found.exported)])
    if times[1] <= SLOWER * times[0]:
        return
    found.timed = {}  # of a file that does not go out
    why = f"slower than the file that came in ({times[1] / times[0]:.2f} times its latency)"
    kept = replace(original(found), kept=True, why="what was found is slower than the file that came in")
    if best.recipe:
        found.candidates = [
            *(
                replace(c, kept=False, why=why) if c.kept else c
                for c in found.candidates
                if c.recipe or c.kept
            ),
            kept,
        ]
        found.best = kept
        export(found)
    if not found.external and not found.job.shapes:
        found.exported = found.job.model.read_bytes()
    found.warnings.append(f"The result was taken back: {why}.")


def _came_in(found: Findings) -> Serialized:
    """The model that came in, as users have it."""
    data = serialize(found.source)
    if isinstance(data, StoredModel) and not found.job.shapes:
        data.lies_at(found.job.model)
    return data


def measure(found: Findings) -> None:
    """Latency (or instructions) and memory of what came in and what goes out, as files that users have."""
    host = found.host
    if not found.one_row:
        return
    pair = (_came_in(found), found.exported)
    found.predicted_ns = (predicted(found, pair[0]), predicted(found, pair[1]))
    names = (INPUT, f"{OUTPUT}{digest(found.best.recipe)}") if found.best is not None else ()
    if host.counter is not None:
        known = [found.counts[name] for name in names if name in found.counts]
        before, after = known if len(known) == len(pair) else host.counter(pair, found.one_row)
        found.counted = (before, after)
        found.predicted_ns = (before.predicted_ns, after.predicted_ns)
    elif names and all(name in found.timed for name in names):  # both were timed together just before
        found.latencies = (found.timed[names[0]], found.timed[names[1]])
    elif host.stopwatch is not None:
        first, second = host.stopwatch(pair, found.one_row)
        found.latencies = (first, second)
    if host.memory is not None:
        try:
            found.memory = (host.memory(pair[0], found.one_row), host.memory(pair[1], found.one_row))
        except DeviceError as error:  # a process that dies at the end must not cost a user the result
            found.warnings.append(f"Memory was not measured: {error}.")


def verdict(found: Findings) -> Judgement:
    """Both models on the unseen rows."""
    budget = Budget(found.job.budget)
    if found.test is None or found.metric is None:
        return unverified(budget)
    if found.host.board is not None:
        there = judge_there(found, found.host.board)
        found.judged, found.there = there.test, there.facts
        return judged(found, *there.scores, there.test.rows)
    ours = _scores_here(found, found.test, [found.metric, *found.others])
    return judged(found, found.original_scores, ours, found.test.rows)


def judged(found: Findings, base: Sequence[Matrix], ours: Sequence[Matrix], rows: int) -> Judgement:
    """The verdict on what both models gave on unseen rows.

    Args:
        found: with the metric.
        base: the original's values, by the metric and the others.
        ours: the result's.
        rows: how many they are of.
    """
    if found.metric is None:
        raise ValueError("nothing was judged")
    judgement = judge(
        Budget(found.job.budget), found.metric, Scores(base[0], ours[0]), rows=rows, seed=found.job.seed
    )
    kept = zip(found.others, base[1:], ours[1:], strict=True)
    return hold(judgement, {m.output: 100 * m.finish(o) / (m.finish(b) or 1.0) for m, b, o in kept})


def _scores_here(found: Findings, test: Dataset, metrics: Sequence[Metric]) -> list[Matrix]:
    """Values of what goes out, on this machine."""
    engine, threads = found.host.engine, found.job.threads
    before = engine.load(serialize(found.source), threads)
    after = engine.load(found.exported, threads)
    return score_all(metrics, after, test.batches(found.batch), lambda b: before(b.feeds))
