"""Samples that calibrate and samples that judge: folds, and what the original gives on each.

A candidate is built once a fold, from the other samples, and run on the fold: no sample is judged by a model that was
fitted to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.columns import ArrayColumn
from edgepress.compressor.data import Batch, Dataset
from edgepress.compressor.observe import TARGETS, Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Array, Engine, Feeds, Matrix, Runner, Target
from edgepress.compressor.scoring import BuiltIn, Metric, score_all

CACHE_BYTES = 256 << 20
"""Samples up to this size are decoded once; beyond, they are read again at each pass."""

REFERENCE_BYTES = 32 << 20
"""The original's outputs on a fold's samples are kept up to this size."""

Answering = tuple[Metric, Metric | None] | None
"""What `metrics.answers` gives, where the model gives classes."""


@dataclass(frozen=True)
class Samples:
    """Batches of a dataset."""

    dataset: Dataset
    batch: int

    def batches(self) -> Iterator[Batch]:
        """All batches, in order."""
        return self.dataset.batches(self.batch)

    def feeds(self) -> Iterator[Feeds]:
        """Feeds of all batches."""
        return (batch.feeds for batch in self.batches())


def decoded(data: Dataset) -> Dataset:
    """The same rows in memory, where they are small: folds share them and nothing is read twice."""
    first = next(iter(data.batches(1)))
    if sum(a.nbytes for a in first.feeds.values()) // max(len(first.rows), 1) * data.rows > CACHE_BYTES:
        return data
    batches = list(data.batches(64))
    columns = tuple(
        ArrayColumn(slot.name, np.concatenate([batch.given(slot.name) for batch in batches]))
        for slot in data.inputs
    )
    labels = [b.labels for b in batches if b.labels is not None]
    column = ArrayColumn("labels", np.concatenate(labels)) if labels else None
    return replace(data, columns=columns, label_column=column, index=np.arange(data.rows))


@dataclass(frozen=True)
class Setup:
    """All that trials of a model hang on; with the model it can be sent to another process.

    Attributes:
        engine: runs models.
        metric: what the budget is about.
        answers: what tells changed answers and, where known, what they cost (`metrics.answers`).
        data: all calibration samples.
        target: the device.
        seed: of the partition.
        leave: sites not to touch.
        batch: rows a batch.
        folds: how many parts; with 1, a quarter of the samples judges and the rest calibrates.
        dear: one run over the samples takes so long that what refits layer by layer is judged on one fold only.
        others: fidelity of the outputs that the metric does not read.
        unseen: how many rows will give the verdict.
    """

    engine: Engine
    metric: Metric
    answers: Answering
    data: Dataset
    target: Target
    seed: int
    leave: tuple[str, ...]
    batch: int
    folds: int
    dear: bool = False
    others: Sequence[BuiltIn] = ()
    unseen: float = np.inf


def make_context(original: ir.Model, setup: Setup, data: Dataset) -> Context:
    """What passes may look at: these samples, through the current and the original model."""
    streamer = Streamer(setup.engine, original, Samples(data, setup.batch).feeds)
    return Context(streamer, setup.target, setup.seed, setup.leave, data.rows)


@dataclass
class Fold:
    """Samples to fit to, samples to judge by, and what was seen on the latter.

    Attributes:
        context: of the samples to fit to.
        judged: the others.
        reference: the original's outputs on those, batch by batch; empty where they are too large to keep.
        base: the original's values, by metric.
        costs: what a changed answer costs, where that is known.
        built: the last models, by recipe.
    """

    context: Context
    judged: Samples
    reference: list[dict[str, Array]] = field(default_factory=list)
    base: list[Matrix] = field(default_factory=list)
    costs: Matrix = field(default_factory=lambda: np.ones(0))
    built: dict[str, ir.Model] = field(default_factory=dict)


def parted(setup: Setup) -> list[Array]:
    """Numbers of the rows that judge, fold by fold."""
    order = np.random.default_rng(setup.seed).permutation(setup.data.rows)
    return np.array_split(order, setup.folds) if setup.folds > 1 else [order[: max(1, len(order) // 4)]]


def make_folds(original: ir.Model, setup: Setup, reference: Runner) -> list[Fold]:
    """Part the samples and run the original on each part.

    Args:
        original: normalised.
        setup: all else.
        reference: the original, loaded.
    """
    costs = setup.answers[1] if setup.answers else None
    made = []
    for held in parted(setup):
        rest = np.setdiff1d(np.arange(setup.data.rows), held)
        fitted = make_context(original, setup, setup.data.subset(rest) if len(rest) else setup.data)
        fitted.memo[TARGETS] = {}
        fold = Fold(fitted, Samples(setup.data.subset(held), setup.batch))
        fold.reference = _outputs(fold, reference)
        fold.base = scores(all_metrics(setup), reference, fold, reference)
        if costs is not None:
            fold.costs = scores([costs], reference, fold, reference)[0]
        made.append(fold)
    return made


def all_metrics(setup: Setup) -> list[Metric]:
    """That of the budget, what tells changed answers where there is such a thing, and those of other outputs."""
    told = setup.answers[0] if setup.answers else None
    return [setup.metric, *([told] if told is not None else []), *setup.others]


def scores(metrics: Sequence[Metric], runner: Runner, fold: Fold, reference: Runner) -> list[Matrix]:
    """Values [rows] of each metric on a fold's samples.

    Args:
        metrics: what is asked for.
        runner: a loaded model.
        fold: with the original's outputs, where they are kept.
        reference: the original, loaded.
    """
    kept = iter(fold.reference)
    return score_all(
        metrics,
        runner,
        fold.judged.batches(),
        lambda b: next(kept) if fold.reference else reference(b.feeds),
    )


def _outputs(fold: Fold, reference: Runner) -> list[dict[str, Array]]:
    """The original's outputs on a fold's samples, or nothing where they take too much room."""
    found, size = [], 0
    for batch in fold.judged.batches():
        found.append(reference(batch.feeds))
        size += sum(array.nbytes for array in found[-1].values() if isinstance(array, np.ndarray))
        if size > REFERENCE_BYTES:
            return []
    return found
