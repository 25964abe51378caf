"""Candidates on samples that their calibration has not seen.

They are judged fold by fold (folds.py). The model that is shipped in the end is fitted to all samples, so these
judgements are a little too strict rather than too mild.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.estimate import Answers, Estimate, estimate
from edgepress.compressor.folds import (
    Fold,
    Setup,
    all_metrics,
    decoded,
    make_context,
    make_folds,
    parted,
    scores,
)
from edgepress.compressor.model import copies_within
from edgepress.compressor.options import Comparison
from edgepress.compressor.parallel import side_by_side
from edgepress.compressor.passes import LowRank, Separable, Shrink
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped
from edgepress.compressor.protocols import Matrix, Runner
from edgepress.compressor.recipe import digest
from edgepress.compressor.serialize import serialize

BUILT_BYTES = 4 << 30
"""So many bytes of models, at the original's size, are kept for each fold."""

REFITTING = Shrink | LowRank | Separable
"""Passes that refit site by site."""

FINALS = 4
"""So many structures fitted to all samples are kept for the candidates that begin with them."""

Fitted = tuple[ir.Model, dict[str, object], tuple[Skipped, ...]]
"""A model, what its passes left behind, and the sites that they left alone."""

PROBE_ROWS = 32
"""Samples of a trial of one site where runs are dear."""


class Stopped(Exception):  # noqa: N818  nothing is wrong
    """The user wants what there is so far."""


class Task(ABC):
    """A piece of a search's work: the same wherever it is done. A frozen dataclass, for it travels.

    Attributes:
        optional: whether it may be left out when time is over.
        stage: under which its end is told; empty: it is not.
    """

    optional: bool = False
    stage: str = ""

    @property
    def key(self) -> str:
        """Names it among all of one model, samples and settings; empty where its result is not worth keeping."""
        return ""

    @property
    def label(self) -> str:
        """What it is about, for people."""
        return ""

    @property
    def home(self) -> int | None:
        """Of those that work, the one that may have something at hand for it; None: any."""
        return None

    @abstractmethod
    def do(self, trials: "Trials") -> Any:
        """Do it."""

    def pack(self, result: Any) -> Any:
        """The result as it travels; of a task with a key it is JSON."""
        return result

    def unpack(self, packed: Any) -> Any:
        """The result again."""
        return packed


@dataclass
class Trials:
    """Builds and judges candidates; the same recipe is never built twice.

    Attributes:
        original: normalised original.
        setup: what else there was to begin with.
        reference: the original, loaded.
        folds: see the module's docstring.
        full: the context over all samples, for what is shipped.
        shown: a context over the samples that judge the first fold.
        probe: a context over fewer samples where runs are dear, for trials of single sites.
        perform: does tasks, here or elsewhere; results in order, None for what was left out at a time limit.
        known: results by key.
        finals: the last structures fitted to all samples, by recipe.
    """

    original: ir.Model
    setup: Setup
    reference: Runner
    folds: Sequence[Fold]
    full: Context
    probe: Context
    shown: Context
    perform: Callable[[Sequence[Task]], list[Any]] = field(init=False)
    known: dict[str, Any] = field(default_factory=dict)
    finals: dict[str, Fitted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.perform = lambda tasks: side_by_side(lambda task: task.do(self), tasks)

    def results(self, tasks: Sequence[Task]) -> list[Any]:
        """What tasks give, in order; the same is never worked out twice."""
        new = [task for task in tasks if not (task.key and task.key in self.known)]
        fresh = dict(zip(map(id, new), self.perform(new), strict=True))
        self.known.update({task.key: fresh[id(task)] for task in new if task.key})
        return [fresh[id(task)] if id(task) in fresh else self.known[task.key] for task in tasks]

    @property
    def dear(self) -> bool:
        """See `Setup`."""
        return self.setup.dear

    def estimate(self, recipe: tuple[Pass, ...], budget_percent: float = np.inf) -> Estimate:
        """Judge a recipe; on half of the folds alone where the others will hardly say otherwise."""
        refits = any(isinstance(step, REFITTING) for step in recipe)
        if self.dear and refits:
            return self._judged(recipe, 1)
        half = self._judged(recipe, (len(self.folds) + 1) // 2)
        return half if half.settled(budget_percent) else self._judged(recipe, len(self.folds))

    def _judged(self, recipe: tuple[Pass, ...], count: int) -> Estimate:
        """On the first folds."""
        setup, folds = self.setup, self.folds[:count]
        values = self.results([Judge(recipe, number) for number in range(count)])
        base, ours = (
            [np.concatenate(parts) for parts in zip(*found, strict=True)]
            for found in ([fold.base for fold in folds], values)
        )
        told, costs = setup.answers or (None, None)
        cost = np.concatenate([fold.costs for fold in folds]) if costs is not None else None
        moved = None if told is None else Answers(base[1], ours[1], told.name == "margin", cost)
        own, at = estimate(setup.metric, base[0], ours[0], moved, setup.unseen), len(ours) - len(setup.others)
        rest = [
            replace(estimate(m, b, o, None, setup.unseen), output=m.output)
            for m, b, o in zip(setup.others, base[at:], ours[at:], strict=True)
        ]
        worst = max([own, *rest], key=lambda each: each.cautious)
        chance = max(each.chance_percent for each in (own, *rest))
        return replace(worst, score=own.score, rows=own.rows, chance_percent=chance)

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

    @cached_property
    def _probed(self) -> Comparison:
        return Comparison.of(self.original, self.probe)

    def alone(self, step: Pass) -> tuple[Outcome, float]:
        """What a pass alone does to the original on the samples of `probe`, and how far that moves the outputs."""
        candidate = self.original.clone()
        outcome = step.apply(candidate, self.probe.apart())
        return outcome, self._probed(candidate) if outcome.modified else 0.0

    def final(self, recipe: tuple[Pass, ...]) -> tuple[ir.Model, list[Skipped]]:
        """The model fitted to all samples, and the sites that were left alone on the way."""
        model, _, skipped = self._fitted(recipe)
        return model, list(skipped)

    def _fitted(self, recipe: tuple[Pass, ...]) -> Fitted:
        """The same, and what is left behind; a structure is kept for the candidates that have it in common.

        Each begins with what its own steps left behind: it does not hang on what was built before it.
        """
        if not recipe:
            return self.original, {}, ()
        key = digest(recipe)
        if (known := self.finals.get(key)) is not None:
            return known
        start, left_behind, skipped = self._fitted(recipe[:-1])
        model, context = start.clone(), replace(self.full, left_behind=dict(left_behind))
        found = model, context.left_behind, (*skipped, *recipe[-1].apply(model, context).skipped)
        if isinstance(recipe[-1], REFITTING):
            while len(self.finals) >= min(FINALS, copies_within(BUILT_BYTES, self.original)):
                self.finals.pop(next(iter(self.finals), ""), None)
            self.finals[key] = found
        return found


@dataclass(frozen=True)
class Judge(Task):
    """Run what a recipe makes on a fold's samples.

    Attributes:
        recipe: built from the other samples.
        fold: number of the fold.
    """

    recipe: tuple[Pass, ...]
    fold: int

    @property
    def home(self) -> int:
        """By fold."""
        return self.fold

    @property
    def key(self) -> str:
        """By recipe and fold."""
        return f"judge {self.fold} {digest(self.recipe)}"

    def do(self, trials: Trials) -> list[Matrix]:
        """Values [rows] of the metric, of what tells changed answers, and of other outputs' fidelity."""
        fold, setup = trials.folds[self.fold], trials.setup
        runner = setup.engine.load(serialize(trials.built(self.recipe, fold)))
        return scores(all_metrics(setup), runner, fold, trials.reference)

    def pack(self, result: list[Matrix]) -> list[list[float]]:
        """Numbers."""
        return [values.tolist() for values in result]

    def unpack(self, packed: list[list[float]]) -> list[Matrix]:
        """Arrays."""
        return [np.array(values, np.float64) for values in packed]


def make_trials(original: ir.Model, setup: Setup) -> Trials:
    """Part the samples and run the original on each part.

    Args:
        original: normalised.
        setup: all else.
    """
    data = decoded(setup.data)
    setup = replace(setup, data=data)
    few = data.subset(np.arange(min(data.rows, PROBE_ROWS if setup.dear else data.rows)))
    reference = setup.engine.load(serialize(original))
    full, probe, shown = (
        make_context(original, setup, some) for some in (data, few, data.subset(parted(setup)[0]))
    )
    return Trials(original, setup, reference, make_folds(original, setup, reference), full, probe, shown)
