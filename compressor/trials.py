"""Candidates on samples that their calibration has not seen.

The calibration samples are parted into folds. A candidate is built once a fold, from the other samples, and run on
the fold: every sample is judged, none by a model that was fitted to it. The model that is shipped in the end is fitted
to all of them, so these judgements are a little too strict rather than too mild.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.columns import ArrayColumn
from edgepress.compressor.data import Batch, Dataset
from edgepress.compressor.model import copies_within
from edgepress.compressor.observe import Streamer
from edgepress.compressor.parallel import side_by_side
from edgepress.compressor.passes import LowRank, Shrink
from edgepress.compressor.passes.base import Context, Pass, Skipped
from edgepress.compressor.protocols import Array, Engine, Feeds, Matrix, Runner, Target
from edgepress.compressor.recipe import digest
from edgepress.compressor.scoring import BuiltIn, Metric, score_all
from edgepress.compressor.serialize import serialize

CACHE_BYTES = 256 << 20
"""Samples up to this size are decoded once; beyond, they are read again at each pass."""

BUILT_BYTES = 4 << 30
"""So many bytes of models, at the original's size, are kept for each fold."""

COST_OF_A_CHANGE = 0.6
"""Right answers lost per changed answer on unseen samples: some were wrong before, some become right. Over small nets
it was between 0.1 and 0.65 (Fashion-MNIST, MNIST; candidates at 0.5 to 5 % changed answers)."""

PROBE_ROWS = 32
"""Samples of a trial of one site where runs are dear."""

MARGIN = 0.5
"""Standard errors added to an estimated drop. The folds fit candidates to half of the samples, which already makes
them look worse than what is shipped."""


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


@dataclass(frozen=True)
class Estimate:
    """How a candidate does on samples that it was not fitted to.

    Attributes:
        score: in the metric's unit.
        drop_percent: relative loss of the metric, the share of changed answers, or the loss of fidelity of an output
            that the metric does not read: the largest.
        margin_percent: one standard error of it.
        rows: samples judged.
    """

    score: float
    drop_percent: float
    margin_percent: float
    rows: int

    def within(self, budget_percent: float) -> bool:
        """Whether drop and margin together keep the budget."""
        return self.drop_percent + MARGIN * self.margin_percent <= budget_percent


def estimate(metric: Metric, base: Matrix, ours: Matrix, flips: Matrix | None) -> Estimate:
    """Compare two models on the same rows.

    Labels of calibration samples are often ones that the net was trained on, so that right answers there flatter it;
    an answer that changes is a warning whether it was right or not. The larger of both losses counts.

    Args:
        metric: how values make a score.
        base: the original's values [n].
        ours: the candidate's values [n].
        flips: 1 where the candidate's answer differs from the original's [n]; None where there are no classes.
    """
    before, after = metric.finish(base), metric.finish(ours)
    n = len(base)
    # An original that is never right on these rows has no share to lose; changed answers still count.
    ratio = (after / before if before else 1.0) if metric.higher_is_better else before / max(after, 1e-300)
    drop = 100 * (1 - ratio) if np.isfinite(ratio) else 100.0
    change = (base - ours) if metric.higher_is_better else (ours - base)
    scale = abs(float(np.mean(base))) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):  # a candidate may overflow; its drop says so
        margin = 0.0 if metric.whole or n < 2 else 100 * float(np.std(change)) / np.sqrt(n) / scale
    if metric.name.startswith("psnr"):
        # A decibel is a logarithm: the relative change of the score is that of the loss over ln(10)/10 · score.
        margin = margin * 10 / np.log(10) / max(abs(before), 1e-9)
    if flips is not None and len(flips) == n:
        cost = 1.0 if metric.needs_reference else COST_OF_A_CHANGE
        share = float(np.mean(flips))
        error = 100 * cost * np.sqrt(max(share * (1 - share), 0.0) / n)
        if 100 * cost * share + error > drop + margin:
            drop, margin = 100 * cost * share, float(error)
    return Estimate(after, float(drop), float(margin), n)


@dataclass
class Fold:
    """Samples to fit to, samples to judge by, and the original's values on the latter."""

    context: Context
    judged: Samples
    base: list[Matrix]
    built: dict[str, ir.Model] = field(default_factory=dict)


@dataclass
class Trials:
    """Builds and judges candidates; the same recipe is never built twice.

    Attributes:
        original: normalised original.
        engine: runs models.
        reference: the original, loaded.
        metric: what the budget is about.
        answers: agreement with the original, where the model gives classes.
        folds: see the module's docstring.
        full: the context over all samples, for what is shipped.
        probe: a context over fewer samples where runs are dear, for trials of single sites.
        dear: one run over the samples takes so long that what refits layer by layer is judged on one fold only.
        others: fidelity of the outputs that the metric does not read.
    """

    original: ir.Model
    engine: Engine
    reference: Runner
    metric: Metric
    answers: Metric | None
    folds: Sequence[Fold]
    full: Context
    probe: Context
    dear: bool = False
    others: Sequence[BuiltIn] = ()
    judged: dict[str, Estimate] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def estimate(self, recipe: tuple[Pass, ...]) -> Estimate:
        """Judge a recipe on every fold."""
        key = digest(recipe)
        if key not in self.judged:
            refits = any(isinstance(step, Shrink | LowRank) for step in recipe)
            folds = self.folds[:1] if self.dear and refits else self.folds
            values = side_by_side(lambda fold: score_on(self, self.built(recipe, fold), fold), folds)
            base = [np.concatenate(parts) for parts in zip(*(fold.base for fold in folds), strict=True)]
            ours = [np.concatenate(parts) for parts in zip(*values, strict=True)]
            flips = None if self.answers is None else 1.0 - ours[1]
            own, at = estimate(self.metric, base[0], ours[0], flips), len(ours) - len(self.others)
            rest = [
                estimate(m, b, o, None) for m, b, o in zip(self.others, base[at:], ours[at:], strict=True)
            ]
            worst = max([own, *rest], key=lambda e: e.drop_percent + e.margin_percent)
            self.judged[key] = replace(worst, score=own.score, rows=own.rows)
        return self.judged[key]

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
        model = self.original.clone()
        skipped: list[Skipped] = []
        for step in recipe:
            skipped += step.apply(model, self.full).skipped
        return model, skipped


def score_on(trials: Trials, model: ir.Model, fold: Fold) -> list[Matrix]:
    """Values of the metric, of agreement, and of other outputs' fidelity, on a fold's samples."""
    metrics = [trials.metric, *([trials.answers] if trials.answers is not None else []), *trials.others]
    return score_all(
        metrics,
        trials.engine.load(serialize(model)),
        fold.judged.batches(),
        lambda b: trials.reference(b.feeds),
    )


def make_trials(
    original: ir.Model,
    engine: Engine,
    metric: Metric,
    answers: Metric | None,
    data: Dataset,
    target: Target,
    *,
    seed: int,
    leave: tuple[str, ...],
    batch: int,
    folds: int,
    dear: bool = False,
    others: Sequence[BuiltIn] = (),
) -> Trials:
    """Part the samples and run the original on each part.

    Args:
        original: normalised.
        engine: runs models.
        metric: what the budget is about.
        answers: agreement, where the model gives classes.
        data: all calibration samples.
        target: the device.
        seed: of the partition.
        leave: sites not to touch.
        batch: rows a batch.
        folds: how many parts; with 1, a quarter of the samples judges and the rest calibrates.
        dear: see `Trials`.
        others: see `Trials`.
    """
    data = decoded(data)
    full = make_context(engine, original, Samples(data, batch), target, seed, leave)
    few = Samples(data.subset(np.arange(min(data.rows, PROBE_ROWS if dear else data.rows))), batch)
    probe = make_context(engine, original, few, target, seed, leave)
    trials = Trials(
        original, engine, engine.load(serialize(original)), metric, answers, [], full, probe, dear, others
    )
    order = np.random.default_rng(seed).permutation(data.rows)
    cuts: list[Array] = np.array_split(order, folds) if folds > 1 else [order[: max(1, data.rows // 4)]]
    made = []
    for held in cuts:
        rest = np.setdiff1d(order, held)
        fitted = Samples(data.subset(rest) if len(rest) else data, batch)
        fold = Fold(
            make_context(engine, original, fitted, target, seed, leave), Samples(data.subset(held), batch), []
        )
        fold.base = score_on(trials, original, fold)
        made.append(fold)
    trials.folds = made
    return trials
