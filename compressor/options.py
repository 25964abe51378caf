"""Options of a model: what can be turned down where, and what that does to the model's own outputs.

Which knobs a model has, and how far its outputs move in the trials of each (knobs.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from edgepress.compressor.allocate import Knob, Layer
from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.compare import log_probabilities
from edgepress.compressor.cost import Shapes, positions
from edgepress.compressor.knobs import TRIAL_ERRORS, bits_knob, rank_knob, width_knob
from edgepress.compressor.layers import layer_of
from edgepress.compressor.observe import output_names
from edgepress.compressor.parallel import one_thread_each, side_by_side
from edgepress.compressor.passes.base import Context, Pass, Skipped
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.passes.shrink import Shrink, left_by_user, shrinkable
from edgepress.compressor.passes.store import weights_of
from edgepress.compressor.protocols import Array
from edgepress.compressor.resume import resuming
from edgepress.compressor.sites import Site, find_sites
from edgepress.compressor.structures import Structure, parts_of, recipe_of, splittable

TRIAL_ROWS = 256
"""Samples of a sensitivity trial."""

WORTH_A_SPLIT = 0.02
"""A site with less than this share of both the MACs and the weights is not looked at for low rank."""


@dataclass(frozen=True)
class Options:
    """Everything the allocation needs to know of a model.

    Attributes:
        knobs: what can be turned down.
        layers: sites as the cost model sees them.
        skipped: what cannot, and why.
    """

    knobs: tuple[Knob, ...]
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]

    def recipe(self, state: Sequence[int]) -> tuple[Pass, ...]:
        """The passes that bring the structure of the full model into `state`."""
        passes: list[Pass] = []
        if widths := self._turned("width", state):
            passes.append(Shrink(widths=widths))
        forms = self._forms
        splits = [(name, value, forms[name]) for name, value in self._turned("rank", state)]
        return (*passes, *recipe_of(splits))

    def bits(self, state: Sequence[int], half: Sequence[str] = ()) -> tuple[tuple[str, int], ...]:
        """Sites with other than 8 bits in `state`; both parts of one that is split.

        Args:
            state: of the knobs.
            half: sites in half precision where nothing else is said.
        """
        forms = self._forms
        parts = {name: parts_of(forms[name]) for name, _ in self._turned("rank", state)}
        wanted = dict.fromkeys(half, HALF) | dict(self._turned("bits", state))
        return tuple(
            (f"{name}{part}", bits) for name, bits in wanted.items() for part in parts.get(name, ("",))
        )

    @property
    def shared(self) -> frozenset[str]:
        """Sites whose few bits do less harm as indices, and what their parts are called."""
        parts = {"", *(part for form in self._forms.values() for part in parts_of(form))}
        return frozenset(f"{knob.name}{part}" for knob in self.knobs if knob.shared for part in parts)

    @property
    def _forms(self) -> dict[str, Structure]:
        """How each site with a rank is split."""
        return {knob.name: knob.form for knob in self.knobs if knob.kind == "rank"}

    def _turned(self, kind: str, state: Sequence[int]) -> tuple[tuple[str, int], ...]:
        knobs = zip(self.knobs, state, strict=True)
        return tuple((k.name, s) for k, s in knobs if k.kind == kind and s < k.full)


def divergence(reference: dict[str, Array], outputs: dict[str, Array]) -> float:
    """How far outputs moved: mean KL divergence of class scores, else relative squared error; the worst output.

    Args:
        reference: the original's outputs, [n, …] each.
        outputs: the same of the changed model.
    """
    worst = 0.0
    for name, before in reference.items():
        if before.dtype.kind != "f":
            continue
        a, b = before.astype(np.float64), outputs[name].astype(np.float64)
        if a.shape != b.shape:  # boxes of pictures: what one has more than the other is lost
            a, b = a.ravel(), b.ravel()
            a, b = (np.pad(each, (0, max(a.size, b.size) - each.size)) for each in (a, b))
        if not a.size:
            continue
        if a.ndim == 2 and a.shape[1] > 1:
            p, q = log_probabilities(a), log_probabilities(b)
            moved = float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))
        else:
            spread = float(np.mean((a - a.mean(0)) ** 2)) or float(np.mean(a**2)) or 1.0
            moved = float(np.mean((a - b) ** 2)) / spread
        worst = max(worst, moved if math.isfinite(moved) else math.inf)
    return worst


def stacked_outputs(model: ir.Model, context: Context, limit: int = 512) -> dict[str, Array]:
    """The first `limit` rows of every output on the context's samples."""
    if context.stream is None:
        raise ValueError("outputs need samples")
    names = output_names(model)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    rows = 0
    for now, _ in context.stream(model, names):
        for name in names:
            parts[name].append(np.atleast_1d(now[name]))
        rows += max(len(parts[name][-1]) for name in names)
        if rows >= limit:
            break
    alike = {name: len({np.shape(array)[1:] for array in arrays}) == 1 for name, arrays in parts.items()}
    return {
        name: np.concatenate(arrays if alike[name] else [np.ravel(array) for array in arrays])[:limit]
        for name, arrays in parts.items()
    }


@dataclass(frozen=True)
class Comparison:
    """How far models are from the original.

    Attributes:
        reference: outputs of the original.
        context: with the samples that gave them.
    """

    reference: dict[str, Array]
    context: Context

    @classmethod
    def of(cls, original: ir.Model, context: Context) -> "Comparison":
        """With what the original gives on the context's samples, as many as a trial has."""
        return cls(stacked_outputs(original, context, TRIAL_ROWS), context)

    def __call__(self, model: ir.Model) -> float:
        """What `divergence` says of a model's outputs."""
        return divergence(self.reference, stacked_outputs(model, self.context, TRIAL_ROWS))


Job = tuple[str, str]
"""What a knob is of: its kind, and the group's or site's name."""


@dataclass(frozen=True)
class Gauge:
    """Measures the knobs of a model.

    Attributes:
        model: the normalised original.
        context: with the samples that trials are fitted to.
        shown: with others, on which outputs are compared: of few samples a fit knows too much.
        multiple: widths and ranks are multiples of this.
        trials: local errors near which each knob is tried.
        indices: whether few bits may be indices: integer kernels want even steps, and files are smaller.
    """

    model: ir.Model
    context: Context
    shown: Context
    multiple: int
    trials: Sequence[float] = TRIAL_ERRORS
    indices: bool = True

    @cached_property
    def _compare(self) -> Comparison:
        return Comparison(stacked_outputs(self.model, self.shown, TRIAL_ROWS), resuming(self.shown))

    @cached_property
    def shrinking(self) -> tuple[Channels, list[Group], list[Skipped]]:
        """What `shrinkable` says of the model."""
        return shrinkable(self.model)

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Its sites, by name."""
        return {site.name: site for site in find_sites(self.model)}

    def jobs(self, shapes: Shapes) -> list[Job]:
        """All knobs there may be, in an order in which neighbours share moments.

        Args:
            shapes: observed for a batch of one.
        """
        sites, context = list(self.sites.values()), self.context
        large, groups = _large(sites, shapes), self.shrinking[1]
        alone = {w.readers[0] for w in weights_of(self.model) if len(w.value.uses()) == 1}
        found = [("width", g.name, g.consumers[0].name) for g in groups if not left_by_user(g, context)]
        found += [("rank", s.name, s.name) for s in sites if s.name in large and splittable(s, context)]
        found += [
            ("bits", s.name, s.name) for s in sites if s.name in alone and not context.left_by_user(s.name)
        ]
        order = {name: place for place, name in enumerate(self.sites)}
        return [(kind, name) for kind, name, at in sorted(found, key=lambda each: order[each[2]])]

    def __call__(self, job: Job) -> Knob | None:
        """The knob, or None where it has no strength worth offering."""
        kind, name = job
        if kind == "width":
            channels, groups, _ = self.shrinking
            group = next(g for g in groups if g.name == name)
            return width_knob(
                self.model, channels, group, self.context, self.multiple, self._compare, self.trials
            )
        make = rank_knob if kind == "rank" else partial(bits_knob, indices=self.indices)
        return make(self.model, self.sites[name], self.context, self.multiple, self._compare, self.trials)


def collect(
    gauge: Gauge, shapes: Shapes, measure: Callable[[Sequence[Job]], Sequence[Knob | None]] | None = None
) -> Options:
    """Measure every knob of a model.

    Args:
        gauge: measures them.
        shapes: observed for a batch of one.
        measure: does so somewhere else.
    """
    jobs = gauge.jobs(shapes)
    if measure is None:
        with one_thread_each():
            measured: Sequence[Knob | None] = side_by_side(gauge, jobs)
    else:
        measured = measure(jobs)
    knobs = [knob for knob in measured if knob is not None]
    channels, groups, skipped = gauge.shrinking
    layers = tuple(layer_of(site, channels, groups, knobs, shapes) for site in gauge.sites.values())
    return Options(tuple(knobs), layers, tuple(skipped))


def _large(sites: Sequence[Site], shapes: Shapes) -> set[str]:
    """Names of the sites with a share of MACs or weights that is worth a trial."""
    macs = {s.name: s.macs_per_position * positions(s, shapes) for s in sites}
    weights = {s.name: s.weight.size for s in sites}
    return {
        name
        for costs in (macs, weights)
        for name, cost in costs.items()
        if cost >= WORTH_A_SPLIT * sum(costs.values())
    }
