"""Options of a model: what can be turned down where, and what that does to the model's own outputs.

The local error of every strength comes in one go from second moments (elimination curves, output spectra). What it does
to the model is measured: a few trials per knob, from a weak to a strong one, run on calibration samples and compared
with the original's outputs; strengths between are interpolated, damage as a power of local error.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgepress.compressor.allocate import Knob, Layer
from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.cost import Shapes, positions
from edgepress.compressor.layers import layer_of
from edgepress.compressor.numerics.packing import stored_bytes
from edgepress.compressor.numerics.rounding import Rounding
from edgepress.compressor.observe import output_names, own_moments
from edgepress.compressor.parallel import one_thread_each, side_by_side
from edgepress.compressor.passes.base import Context, Pass, Skipped
from edgepress.compressor.passes.low_rank import Form, LowRank, best_form, inner, numbers, parts_of, refusal
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.passes.shrink import Shrink, group_curve, left_by_user, shrinkable, shrunk_alone
from edgepress.compressor.passes.store import StoreWeights, weights_of
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import Site, find_sites

TRIAL_ERRORS = (0.01, 0.05, 0.25)
"""Local relative errors at which damage is measured; where runs are dear, at the middle one alone."""

GROWTH = 1.4
"""Damage grows as local error to this power where one trial must do; over convolutions and dense layers of small nets
it was 1.3 to 2."""

LEAST_ERROR = 1e-9
"""A local error below this is rounding."""

MOST_DAMAGE = 1e6
"""What an output that is no number any more counts as."""

TRIAL_ROWS = 256
"""Samples of a sensitivity trial."""

WORTH_A_SPLIT = 0.02
"""A site with less than this share of both the MACs and the weights is not looked at for low rank."""

BITS = (6, 5, 4, 3, 2)
"""Widths of weights offered."""

ROUNDING: Rounding = "gptq"
"""Of few bits, in all candidates: going on weight by weight takes longer, and led to no better ones."""

LADDER = 14
"""Most strengths offered per knob."""


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
        if ranks := self._turned("rank", state):
            forms = self._forms
            others = tuple((name, forms[name]) for name, _ in ranks if forms[name] != "channels")
            passes.append(LowRank(ranks=ranks, forms=others))
        return tuple(passes)

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
    def _forms(self) -> dict[str, Form]:
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
        if a.ndim == 2 and a.shape[1] > 1:
            p, q = _log_probabilities(a), _log_probabilities(b)
            moved = float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))
        else:
            spread = float(np.mean((a - a.mean(0)) ** 2)) or float(np.mean(a**2)) or 1.0
            moved = float(np.mean((a - b) ** 2)) / spread
        worst = max(worst, moved if math.isfinite(moved) else math.inf)
    return worst


def _log_probabilities(scores: Array) -> Array:
    if scores.min() >= 0 and np.allclose(scores.sum(1), 1.0, atol=1e-3):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def stacked_outputs(model: ir.Model, context: Context, limit: int = 512) -> dict[str, Array]:
    """The first `limit` rows of every output on the context's samples."""
    if context.stream is None:
        raise ValueError("outputs need samples")
    names = output_names(model)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    rows = 0
    for now, _ in context.stream(model, names):
        for name in names:
            parts[name].append(now[name])
        rows += len(now[names[0]])
        if rows >= limit:
            break
    return {name: np.concatenate(arrays)[:limit] for name, arrays in parts.items()}


@dataclass(frozen=True)
class Comparison:
    """How far models are from the original.

    Attributes:
        reference: outputs of the original.
        context: with the samples that gave them.
    """

    reference: dict[str, Array]
    context: Context

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
    """

    model: ir.Model
    context: Context
    shown: Context
    multiple: int
    trials: Sequence[float] = TRIAL_ERRORS

    @cached_property
    def _compare(self) -> Comparison:
        return Comparison(stacked_outputs(self.model, self.shown, TRIAL_ROWS), self.shown)

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
        splits = [s for s in sites if s.dense and s.name in large and refusal(s, 1, context) is None]
        found += [("rank", s.name, s.name) for s in splits]
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
        make = rank_knob if kind == "rank" else bits_knob
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


def ladder(full: int, multiple: int, lowest: int = 1) -> list[int]:
    """Descending values below `full`: multiples of `multiple`, then halves of it, geometrically thinned."""
    fine = [m for m in (multiple, multiple // 2, multiple // 4) if m >= 1]
    values = (
        set(range(multiple, full, multiple))
        | {m for m in fine if m < full}
        | {v for v in (full * 3 // 4 // 4 * 4, full // 2) if 0 < v < full <= multiple}
    )
    ordered = sorted((v for v in values if v >= lowest), reverse=True)
    if len(ordered) <= LADDER:
        return ordered
    picks = np.unique(np.round(np.geomspace(1, len(ordered), LADDER)).astype(int) - 1)
    small_first = ordered[::-1]
    return sorted({small_first[i] for i in picks} | {ordered[0]}, reverse=True)


def width_knob(
    model: ir.Model,
    channels: Channels,
    group: Group,
    context: Context,
    multiple: int,
    compare: Comparison,
    trials: Sequence[float] = TRIAL_ERRORS,
) -> Knob | None:
    """The knob of one group, or None where it has no smaller width."""
    full = len(group.units)
    values = ladder(full, multiple)
    if not values:
        return None
    curve = group_curve(model, channels, group, context)
    errors = [float(curve.damage[full - v]) for v in values]

    def trial(width: int) -> float:
        candidate = shrunk_alone(model, group.name, width, context)
        return compare(candidate)

    return Knob(
        "width",
        group.name,
        full,
        tuple(values),
        along(measured_points(values, errors, trial, trials), errors),
    )


def rank_knob(
    model: ir.Model,
    site: Site,
    context: Context,
    multiple: int,
    compare: Comparison,
    trials: Sequence[float] = TRIAL_ERRORS,
) -> Knob | None:
    """The knob of one dense site, or None where no rank below its break-even is allowed."""
    fit, held = own_moments(model, site, context)
    form, lost = best_form(site, fit + held)
    size, full = site.weight.size, len(lost) - 1
    values = [v for v in ladder(full, multiple) if numbers(site, form, v, inner(site, v)) < 0.9 * size]
    if not values:
        return None
    errors = [float(lost[v]) for v in values]

    def trial(rank: int) -> float:
        candidate = model.clone()
        LowRank(ranks=((site.name, rank),), form=form, follow=False).apply(candidate, context)
        return compare(candidate)

    points = measured_points(values, errors, trial, trials)
    # A dense matrix makes errors good among inputs that go together; what flows between two factors does not.
    rounded = {bits: along(points, [e + 2 * rounding_error(bits) for e in errors]) for bits in BITS}
    return Knob("rank", site.name, full, tuple(values), along(points, errors), form, rounded)


def bits_knob(
    model: ir.Model,
    site: Site,
    context: Context,
    multiple: int,
    compare: Comparison,
    trials: Sequence[float] = TRIAL_ERRORS,
) -> Knob | None:
    """The knob of one site's weights, or None where fewer bits would not make the file smaller."""
    values = [b for b in BITS if stored_bytes(site.weight.size, b) < site.weight.size]
    if not values:
        return None
    errors = [rounding_error(bits) for bits in values]  # without what is made good: only their ratios count
    context = context.apart()

    def trial(bits: int) -> float:
        candidate = model.clone()
        only = (f"^{re.escape(site.name)}$",)
        StoreWeights(weight_bits=bits, sites=only, rounding=ROUNDING).apply(candidate, context)
        return compare(candidate)

    damage = along(measured_points(values, errors, trial, trials), errors)
    return Knob("bits", site.name, 8, tuple(values), damage)


def rounding_error(bits: int) -> float:
    """Relative squared error of weights rounded to nearest, on a grid three standard deviations to each side."""
    return float(3.0 / (2**bits - 1) ** 2)


Points = list[tuple[float, float]]
"""Logarithms of local error and damage, ascending."""


def measured_points(
    values: Sequence[int],
    errors: Sequence[float],
    trial: Callable[[int], float],
    trials: Sequence[float] = TRIAL_ERRORS,
) -> Points:
    """What some strengths of a knob do to the model.

    Args:
        values: strengths, descending.
        errors: local error of each.
        trial: measures the damage of one.
        trials: local errors near which to measure.
    """
    sure = [max(error, LEAST_ERROR) for error in errors]
    tried = {min(range(len(sure)), key=lambda i: abs(math.log(sure[i] / error))) for error in trials}
    return sorted(
        (math.log(sure[i]), math.log(min(max(trial(values[i]), 1e-12), MOST_DAMAGE))) for i in tried
    )


def along(points: Points, errors: Sequence[float]) -> tuple[float, ...]:
    """Damage at ascending errors; never falling, and never quite zero, so that ties go to what gains more."""
    result: list[float] = []
    floor = 1e-9
    for error in errors:
        damage = math.exp(_on_line(points, math.log(max(error, LEAST_ERROR))))
        floor = max(floor * 1.0001, min(damage, MOST_DAMAGE))
        result.append(floor)
    return tuple(result)


def _on_line(points: Points, x: float) -> float:
    """Linear between points (x ascending); beyond the ends, and with one point alone, by `GROWTH`."""
    first, last = points[0], points[-1]
    if x <= first[0]:
        return first[1] + GROWTH * (x - first[0])
    if x >= last[0]:
        return last[1] + GROWTH * (x - last[0])
    return float(np.interp(x, [point[0] for point in points], [point[1] for point in points]))
