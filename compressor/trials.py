"""Candidates on samples that their calibration has not seen.

The calibration samples are parted into folds. A candidate is built once a fold, from the other samples, and run on
the fold: no sample is judged by a model that was fitted to it. The model that is shipped in the end is fitted to all of
them, so these judgements are a little too strict rather than too mild.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.columns import ArrayColumn
from edgepress.compressor.data import Batch, Dataset
from edgepress.compressor.estimate import Answers, Estimate, estimate
from edgepress.compressor.model import copies_within
from edgepress.compressor.observe import TARGETS, Streamer
from edgepress.compressor.parallel import side_by_side
from edgepress.compressor.passes import LowRank, Shrink
from edgepress.compressor.passes.base import Context, Pass, Skipped
from edgepress.compressor.protocols import Array, Engine, Feeds, Matrix, Runner, Target
from edgepress.compressor.recipe import digest
from edgepress.compressor.scoring import BuiltIn, Metric, score_all
from edgepress.compressor.serialize import serialize

CACHE_BYTES = 256 << 20
"""Samples up to this size are decoded once; beyond, they are read again at each pass."""

REFERENCE_BYTES = 32 << 20
"""The original's outputs on a fold's samples are kept up to this size."""

BUILT_BYTES = 4 << 30
"""So many bytes of models, at the original's size, are kept for each fold."""

Answering = tuple[Metric, Metric | None] | None
"""What `metrics.answers` gives, where the model gives classes."""

PROBE_ROWS = 32
"""Samples of a trial of one site where runs are dear."""


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
        ArrayColumn(slot.name, np.concatenate([b.feeds[slot.name][: len(b.rows)] for b in batches]))
        for slot in data.inputs
    )
    labels = [b.labels for b in batches if b.labels is not None]
    column = ArrayColumn("labels", np.concatenate(labels)) if labels else None
    return replace(data, columns=columns, label_column=column, index=np.arange(data.rows))


def make_context(
    engine: Engine, original: ir.Model, samples: Samples, target: Target, seed: int, leave: tuple[str, ...]
) -> Context:
    """What passes may look at: these samples, through the current and the original model."""
    streamer = Streamer(engine, original, samples.feeds)
    return Context(streamer, target, seed, leave, samples.dataset.rows)


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
        values: all models' values, by recipe.
    """

    context: Context
    judged: Samples
    reference: list[dict[str, Array]] = field(default_factory=list)
    base: list[Matrix] = field(default_factory=list)
    costs: Matrix = field(default_factory=lambda: np.ones(0))
    built: dict[str, ir.Model] = field(default_factory=dict)
    values: dict[str, list[Matrix]] = field(default_factory=dict)


@dataclass
class Trials:
    """Builds and judges candidates; the same recipe is never built twice.

    Attributes:
        original: normalised original.
        engine: runs models.
        reference: the original, loaded.
        metric: what the budget is about.
        answers: margins or agreement, where the model gives classes.
        costs: what a changed answer costs, where that is known.
        folds: see the module's docstring.
        full: the context over all samples, for what is shipped.
        shown: a context over the samples that judge the first fold.
        probe: a context over fewer samples where runs are dear, for trials of single sites.
        dear: one run over the samples takes so long that what refits layer by layer is judged on one fold only.
        others: fidelity of the outputs that the metric does not read.
        unseen: how many rows will give the verdict.
    """

    original: ir.Model
    engine: Engine
    reference: Runner
    metric: Metric
    answers: Metric | None
    costs: Metric | None
    folds: Sequence[Fold]
    full: Context
    probe: Context
    shown: Context
    dear: bool = False
    others: Sequence[BuiltIn] = ()
    unseen: float = np.inf

    def estimate(self, recipe: tuple[Pass, ...], budget_percent: float = np.inf) -> Estimate:
        """Judge a recipe; on half of the folds alone where that shows the budget to be out of reach."""
        refits = any(isinstance(step, Shrink | LowRank) for step in recipe)
        if self.dear and refits:
            return self._judged(recipe, self.folds[:1])
        half = self._judged(recipe, self.folds[: (len(self.folds) + 1) // 2])
        return half if half.hopeless(budget_percent) else self._judged(recipe, self.folds)

    def _judged(self, recipe: tuple[Pass, ...], folds: Sequence[Fold]) -> Estimate:
        values = side_by_side(lambda fold: self._values(recipe, fold), folds)
        base, ours = (
            [np.concatenate(parts) for parts in zip(*found, strict=True)]
            for found in ([fold.base for fold in folds], values)
        )
        costs = np.concatenate([fold.costs for fold in folds]) if self.costs is not None else None
        told = (
            None if self.answers is None else Answers(base[1], ours[1], self.answers.name == "margin", costs)
        )
        own, at = estimate(self.metric, base[0], ours[0], told, self.unseen), len(ours) - len(self.others)
        rest = [
            replace(estimate(m, b, o, None, self.unseen), output=m.output)
            for m, b, o in zip(self.others, base[at:], ours[at:], strict=True)
        ]
        worst = max([own, *rest], key=lambda each: each.cautious)
        return replace(worst, score=own.score, rows=own.rows)

    def _values(self, recipe: tuple[Pass, ...], fold: Fold) -> list[Matrix]:
        key = digest(recipe)
        if key not in fold.values:
            fold.values[key] = score_on(self, self.built(recipe, fold), fold)
        return fold.values[key]

    def built(self, recipe: tuple[Pass, ...], fold: Fold) -> ir.Model:
        """The model that a recipe makes from a fold's samples; steps in common with an earlier recipe are reused."""
        if not recipe:
            return self.original
        key = digest(recipe)
        if key not in fold.built:
            model = self.built(recipe[:-1], fold).clone()
            recipe[-1].apply(model, fold.context)
            if len(fold.built) >= min(24, copies_within(BUILT_BYTES, self.original)):
                fold.built.pop(next(iter(fold.built)))
            fold.built[key] = model
        return fold.built[key]

    def final(self, recipe: tuple[Pass, ...]) -> tuple[ir.Model, list[Skipped]]:
        """The model fitted to all samples, and the sites that were left alone on the way."""
        model, context = self.original.clone(), self.full.apart()
        skipped: list[Skipped] = []
        for step in recipe:
            skipped += step.apply(model, context).skipped
        return model, skipped


def score_on(trials: Trials, model: ir.Model, fold: Fold) -> list[Matrix]:
    """Values of the metric, of what tells changed answers, and of other outputs' fidelity, on a fold's samples."""
    return _scores(trials, [trials.metric, trials.answers, *trials.others], model, fold)


def _scores(trials: Trials, metrics: Sequence[Metric | None], model: ir.Model, fold: Fold) -> list[Matrix]:
    kept = iter(fold.reference)
    return score_all(
        [metric for metric in metrics if metric is not None],
        trials.engine.load(serialize(model)),
        fold.judged.batches(),
        lambda b: next(kept) if fold.reference else trials.reference(b.feeds),
    )


def _reference(trials: Trials, fold: Fold) -> list[dict[str, Array]]:
    """The original's outputs on a fold's samples, or nothing where they take too much room."""
    found, size = [], 0
    for batch in fold.judged.batches():
        found.append(trials.reference(batch.feeds))
        size += sum(array.nbytes for array in found[-1].values())
        if size > REFERENCE_BYTES:
            return []
    return found


def make_trials(
    original: ir.Model,
    engine: Engine,
    metric: Metric,
    answers: Answering,
    data: Dataset,
    target: Target,
    *,
    seed: int,
    leave: tuple[str, ...],
    batch: int,
    folds: int,
    dear: bool = False,
    others: Sequence[BuiltIn] = (),
    unseen: float = np.inf,
) -> Trials:
    """Part the samples and run the original on each part.

    Args:
        original: normalised.
        engine: runs models.
        metric: what the budget is about.
        answers: what tells changed answers and, where known, what they cost (`metrics.answers`).
        data: all calibration samples.
        target: the device.
        seed: of the partition.
        leave: sites not to touch.
        batch: rows a batch.
        folds: how many parts; with 1, a quarter of the samples judges and the rest calibrates.
        dear: see `Trials`.
        others: see `Trials`.
        unseen: see `Trials`.
    """
    data = decoded(data)
    full = make_context(engine, original, Samples(data, batch), target, seed, leave)
    few = Samples(data.subset(np.arange(min(data.rows, PROBE_ROWS if dear else data.rows))), batch)
    probe = make_context(engine, original, few, target, seed, leave)
    order = np.random.default_rng(seed).permutation(data.rows)
    cuts: list[Array] = np.array_split(order, folds) if folds > 1 else [order[: max(1, data.rows // 4)]]
    shown = make_context(engine, original, Samples(data.subset(cuts[0]), batch), target, seed, leave)
    told, costs = answers or (None, None)
    trials = Trials(
        original,
        engine,
        engine.load(serialize(original)),
        metric,
        told,
        costs,
        [],
        full,
        probe,
        shown,
        dear,
        others,
        unseen,
    )
    made = []
    for held in cuts:
        rest = np.setdiff1d(order, held)
        fitted = Samples(data.subset(rest) if len(rest) else data, batch)
        context = make_context(engine, original, fitted, target, seed, leave)
        context.memo[TARGETS] = {}
        fold = Fold(context, Samples(data.subset(held), batch))
        fold.reference = _reference(trials, fold)
        fold.base = score_on(trials, original, fold)
        if costs is not None:
            fold.costs = _scores(trials, [costs], original, fold)[0]
        made.append(fold)
    trials.folds = made
    return trials
