"""Knobs: what one group, one site's structure or one site's weights can be turned down to, and what that does.

The local error of every strength comes in one go from second moments. What it does to the model is measured by a few
trials from a weak to a strong one; strengths between are interpolated, damage as a power of local error.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from edgepress.compressor.allocate import Knob
from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.context import exactly
from edgepress.compressor.inputs import rounding_work
from edgepress.compressor.numerics.packing import stored_bytes
from edgepress.compressor.numerics.rounding import Rounding
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.calibrate import bring_inputs
from edgepress.compressor.passes.cluster import Cluster
from edgepress.compressor.passes.shrink import group_curve, shrunk_alone
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.protocols import Target
from edgepress.compressor.sites import Site, find_sites
from edgepress.compressor.structures import MOST_LEFT, Structure, compared, numbers, splits, structures

Compare = Callable[[ir.Model], float]
"""How far a model's outputs are from the original's."""

TRIAL_ERRORS = (0.01, 0.05, 0.25)
"""Local relative errors at which damage is measured; where runs are dear, at the middle one alone."""

GROWTH = 1.4
"""Damage grows as local error to this power where one trial must do; over convolutions and dense layers of small nets
it was 1.3 to 2."""

LEAST_ERROR = 1e-9
"""A local error below this is rounding."""

MOST_DAMAGE = 1e6
"""What an output that is no number any more counts as."""

BITS = (6, 5, 4, 3, 2)
"""Widths of weights offered."""

ROUNDING: Rounding = "gptq"
"""Of few bits, in all candidates: going on weight by weight takes longer, and led to no better ones."""

MOST_TRIED = 1 << 34
"""Multiplications that rounding by outputs may take in a trial, some seconds; larger sites are tried with weights
rounded to nearest, which overstates what few bits do, and without indices, which take three times as long."""

SHARED_BITS = 3
"""Bits up to which weights may be indices of values that need not lie evenly; with 4 both do about as well."""

LEAST_SHARED = 2048
"""Weights from which on that is tried: the values and the nodes that look them up take about 100 bytes more."""

LADDER = 14
"""Most strengths offered per knob."""


def half_lanes(target: Target) -> int:
    """What widths and ranks are multiples of where latency counts: half of a kernel's lanes."""
    return max(1, target.channel_multiple // 2)


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
    compare: Compare,
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
    compare: Compare,
    trials: Sequence[float] = TRIAL_ERRORS,
) -> Knob | None:
    """The knob of one site's structure, or None where no strength makes it smaller enough."""

    def trial(form: Structure, strength: int) -> float:
        candidate = model.clone()
        splits(form, ((site.name, strength),)).apply(candidate, context)
        return compare(candidate)

    forms = structures(model, site, context)
    if len(forms) > 1:  # what is foretold is not what the fit will find
        harm = [trial(form, at) for (form, _), at in zip(forms, compared(site, forms), strict=True)]
        forms = [forms[harm.index(min(harm))]]
    for form, lost in forms:
        full = len(lost) - 1
        offered = range(full - 1, 0, -1) if form == "separable" else ladder(full, multiple)
        values = [v for v in offered if numbers(site, form, v) < MOST_LEFT * site.weight.size]
        if values:
            errors = [float(lost[v]) for v in values]
            points = measured_points(values, errors, partial(trial, form), trials)
            # A dense matrix makes errors good among inputs that go together; what flows between factors does not.
            rounded = {bits: along(points, [e + 2 * rounding_error(bits) for e in errors]) for bits in BITS}
            return Knob("rank", site.name, full, tuple(values), along(points, errors), form, rounded)
    return None


def bits_knob(
    model: ir.Model,
    site: Site,
    context: Context,
    multiple: int,
    compare: Compare,
    trials: Sequence[float] = TRIAL_ERRORS,
    indices: bool = True,
) -> Knob | None:
    """The knob of one site's weights, or None where fewer bits would not make the file smaller."""
    values = [b for b in BITS if stored_bytes(site.weight.size, b) < site.weight.size]
    if not values:
        return None
    errors = [rounding_error(bits) for bits in values]  # without what is made good: only their ratios count
    context, only = bring_inputs(model, site, context, find_sites(model)), (exactly(site.name),)

    large = rounding_work(site) > MOST_TRIED

    def trial(bits: int, share: bool = False) -> float:
        candidate = model.clone()
        even = StoreWeights(weight_bits=bits, sites=only, rounding="nearest" if large else ROUNDING)
        (Cluster(bits, sites=only) if share else even).apply(candidate, context)
        return compare(candidate)

    worth = indices and site.weight.size >= LEAST_SHARED and len(trials) > 1 and not large
    tried = {bits: trial(bits) for bits in values if bits <= SHARED_BITS and worth}

    def measured(bits: int) -> float:
        return tried[bits] if bits in tried else trial(bits)

    damage = along(measured_points(values, errors, measured, trials), errors)
    shared = bool(tried) and math.prod(trial(bits, True) for bits in tried) < math.prod(tried.values())
    return Knob("bits", site.name, 8, tuple(values), damage, shared=shared)


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
