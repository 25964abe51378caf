"""The verdict's rows on the target itself: both models run there, and what this machine gives is held against it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepress.compressor.data import Batch, Dataset
from edgepress.compressor.job import Findings
from edgepress.compressor.protocols import Array, Board, Count, Feeds, Latency, Matrix, ModelFile, Runner
from edgepress.compressor.report.device import Difference, OnDevice
from edgepress.compressor.scoring import Metric, score_all
from edgepress.compressor.serialize import serialize

SECONDS = 120.0
"""What the rows may take on the device, unless the user says how many they are."""

INSTRUCTIONS_PER_SECOND = 1.5e8
"""Of emulation, on one core of a fast PC."""

FMA = 12
"""So many other instructions take as long to emulate as one that multiplies and adds four floats: in software."""

FEWEST_ROWS = 100
"""However long they take; of fewer a verdict says little."""

MOST_BYTES = 256 << 20
"""Of feeds that are held at a time."""

PART_SECONDS = 20.0
"""Rows go there in parts that take about so long, between which is told how far it is."""

Outputs = dict[str, Array]


@dataclass
class There:
    """What both models gave on the device.

    Attributes:
        test: the rows that were judged.
        scores: for each model the values of each metric.
        facts: for the report.
    """

    test: Dataset
    scores: tuple[list[Matrix], list[Matrix]]
    facts: OnDevice


def judge_there(found: Findings, board: Board) -> There:
    """Run what came in and what goes out on the device, on unseen rows, and value them by the metrics.

    Args:
        found: with the exported model, unseen rows and a metric.
        board: the device.

    Raises:
        DeviceError: it does not answer, or its engine refuses a model.
    """
    if found.test is None or found.metric is None:
        raise ValueError("nothing to judge by")
    started = time.monotonic()
    seconds = row_seconds(found.counted, found.latencies)
    test = drawn(found.test, found.job.device_rows, seconds, found.job.seed)
    models = (serialize(found.source), found.exported)
    both = [_Both(), _Both()]
    engine, threads = found.host.engine, found.job.threads
    here = [engine.load(model, threads) for model in models]
    told = f"{test.rows} rows on {found.host.target.name}"
    done = 0
    for batches in _parts(test.batches(found.batch), seconds):
        found.host.progress("judge", done / test.rows, told)
        for each, runner, outputs in zip(
            both, here, board.run(models, [b.feeds for b in batches]), strict=True
        ):
            each.add(batches, runner, outputs)
        done += sum(len(batch.rows) for batch in batches)
    metrics = [found.metric, *found.others]
    scores = [_scores(metrics, each.there, both[0].there, test, found.batch) for each in both]
    at_home = [_scores(metrics, each.here, both[0].here, test, found.batch) for each in both]
    before, after = (
        each.difference(found.metric, ours[0], home[0])
        for each, ours, home in zip(both, scores, at_home, strict=True)
    )
    facts = OnDevice(
        how=board.how,
        engine=board.engine,
        cpu=board.cpu,
        rows=test.rows,
        rows_unseen=found.test.rows,
        baseline=before,
        compressed=after,
        seconds=round(time.monotonic() - started, 3),
    )
    return There(test, (scores[0], scores[1]), facts)


def file_there(found: Findings, board: Board, file: bytes) -> float:
    """The score of one more file on the device, on the rows that were judged there.

    Args:
        found: with a verdict from the device.
        board: the device.
        file: of a model with the same inputs and outputs.

    Raises:
        DeviceError: it has no engine for it, or that refuses it.
    """
    test, metric = found.judged, found.metric
    if test is None or metric is None:
        raise ValueError("nothing was judged there")
    models: list[ModelFile] = [file]
    models += [serialize(found.source)] if metric.needs_reference else []
    outputs: list[list[Outputs]] = [[] for _ in models]
    for batches in _parts(test.batches(found.batch), row_seconds(found.counted, found.latencies)):
        for each, some in zip(outputs, board.run(models, [b.feeds for b in batches]), strict=True):
            each.extend(some)
    return metric.finish(_scores([metric], outputs[0], outputs[-1], test, found.batch)[0])


def row_seconds(
    counted: tuple[Count | None, Count | None], latencies: tuple[Latency | None, Latency | None]
) -> float:
    """How long both models take there for one row; 0 where nothing is known."""
    emulated = sum(c.total + (FMA - 1) * c.fma for c in counted if c is not None) / INSTRUCTIONS_PER_SECOND
    return emulated + sum(latency.median_ns * 1e-9 for latency in latencies if latency is not None)


def drawn(test: Dataset, wanted: int | None, seconds: float, seed: int) -> Dataset:
    """The rows that are judged on the device: all, or so many at random.

    Args:
        test: the unseen rows.
        wanted: by the user, or None.
        seconds: that one row takes there.
        seed: of the draw.
    """
    rows = wanted or max(FEWEST_ROWS, int(SECONDS / max(seconds, 1e-9)))
    if rows >= test.rows:
        return test
    return test.subset(np.random.default_rng(seed).permutation(test.rows)[:rows])


def _parts(batches: Iterator[Batch], seconds: float) -> Iterator[list[Batch]]:
    """Batches that go there together."""
    part: list[Batch] = []
    rows = size = 0
    for batch in batches:
        part.append(batch)
        rows += len(batch.rows)
        size += sum(array.nbytes for array in batch.feeds.values())
        if size > MOST_BYTES or rows * seconds > PART_SECONDS:
            yield part
            part, rows, size = [], 0, 0
    if part:
        yield part


def _scores(
    metrics: Sequence[Metric], ours: Sequence[Outputs], original: Sequence[Outputs], test: Dataset, size: int
) -> list[Matrix]:
    """Values of outputs that are there already, in the order of the batches."""
    run, reference = _replayed(ours), iter(original)
    return score_all(metrics, run, test.batches(size), lambda batch: next(reference))


def _replayed(outputs: Sequence[Outputs]) -> Runner:
    """A model that was run: gives one batch's outputs after another's."""
    left = iter(outputs)

    def run(feeds: Feeds) -> Outputs:
        return next(left)

    return run


@dataclass
class _Both:
    """One model's outputs, batch by batch, on the device and on this machine."""

    there: list[Outputs] = field(default_factory=list)
    here: list[Outputs] = field(default_factory=list)

    def add(self, batches: Sequence[Batch], runner: Runner, outputs: Sequence[Outputs]) -> None:
        for batch, values in zip(batches, outputs, strict=True):
            self.there.append(values)
            self.here.append(runner(batch.feeds))

    def difference(self, metric: Metric, there: Matrix, here: Matrix) -> Difference:
        """What the device gives otherwise than this machine."""
        same, largest = True, 0.0
        for name in self.here[0]:
            ours, theirs = (
                np.concatenate([np.atleast_1d(o[name]) for o in outputs])
                for outputs in (self.here, self.there)
            )
            same = same and _identical(ours, theirs)
            largest = max(largest, _largest_percent(ours, theirs))
        changed = None if metric.whole else int(np.count_nonzero(~np.isclose(there, here, rtol=1e-3, atol=0)))
        return Difference(
            identical=same, largest_percent=largest, score_here=metric.finish(here), rows_changed=changed
        )


def _identical(ours: Array, theirs: Array) -> bool:
    same: bool = np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f" and theirs.dtype.kind == "f")
    return same


def _largest_percent(ours: Array, theirs: Array) -> float:
    """Largest difference in percent of the largest value; infinite where shapes differ, 0 of text that is equal."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.dtype.kind not in "biuf":
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    one, two = (np.nan_to_num(values.astype(np.float64)) for values in (ours, theirs))
    scale: Any = np.abs(one).max(initial=0.0)
    return float(100 * np.abs(one - two).max(initial=0.0) / (scale or 1.0))
