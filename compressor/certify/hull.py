"""Ranges behind Conv → ReLU → MaxPool → Conv, with every pool seen as a function of its whole window.

A unit u = maxₜ (wₜ x + bₜ), one term a tap of the pool and one of zeros for the ReLU, is bounded on a box by

    u ≤ ℓ x + maxₜ [bₜ + max over the box of (wₜ − ℓ) x]      for any ℓ
    u ≥ Σₜ γₜ (wₜ x + bₜ)                                     for any γ ≥ 0, Σ γ = 1

and with the best ℓ and γ no linear bounds are better: they are the hull (Anderson et al. 2020, §5; Tjandraatmadja
et al. 2020). A sum Σ kᵤ u takes the upper one where kᵤ > 0 and the lower one elsewhere; both are linear in x, so that
their maximum over the box is exact, and taps that read the same pixels are summed with signs. Which ℓ and γ are best is
a linear program; some steps of a subgradient method come near enough, and what they find holds in any case.

Bounds that look at the taps' ranges only end at a pool whose winner is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from edgepress.compressor.certify.affine import Affine, magnitude
from edgepress.compressor.certify.curves import Bent
from edgepress.compressor.certify.intervals import Interval, gamma
from edgepress.compressor.certify.linear import ConvMap
from edgepress.compressor.certify.program import Program, Step
from edgepress.compressor.certify.selection import Largest
from edgepress.compressor.protocols import Array

STEPS = 120
"""Of the subgradient method."""
PLACES = 12
"""Places of a window that may differ (at edges, or where the box does) before it is left to others."""
NUMBERS = 1 << 22
"""How many a temporary array may hold."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Two convolutions with what is between them.

    Attributes:
        front: the one in front, [C, in, *kernel].
        front_bias: [C].
        x: name of what it reads.
        taps: [units, taps], positions of the front one that each position of a pool reads; −1 nowhere.
        rectified: whether there is a ReLU between them.
        pooled: name of what the second one reads.
        back: the one behind, [out, C, *kernel].
        back_bias: [out].
    """

    front: ConvMap
    front_bias: Array
    x: str
    taps: Array
    rectified: bool
    pooled: str
    back: ConvMap
    back_bias: Array


def stack(program: Program, name: str) -> Stack | None:
    """What gives a value, where it is two convolutions that this module is for."""
    made = {step.output: step for step in program.steps}
    last = _convolution(made.get(name))
    if last is None:
        return None
    rectified, taps, at = False, None, made[name].inputs[0]
    while (step := made.get(at)) is not None:
        rule = step.rule
        if isinstance(rule, Bent) and (rule.low, rule.high) == (0.0, np.inf) and not np.any(rule.below):
            rectified = True
        elif isinstance(rule, Largest) and taps is None and (rule.reads >= 0).all():
            taps = rule.reads[: int(np.prod(rule.shape[1:]))]  # of the first channel
        else:
            break
        at = step.inputs[0]
    first = _convolution(step)
    if step is None or first is None or not (rectified or taps is not None):
        return None
    if taps is None:
        taps = np.arange(int(np.prod(first[0].positions)))[:, None]
    return Stack(*first, step.inputs[0], taps, rectified, made[name].inputs[0], *last)


def _convolution(step: Step | None) -> tuple[ConvMap, Array] | None:
    """Operator and bias of a convolution of all channels."""
    if step is None or not isinstance(step.rule, Affine) or not isinstance(step.rule.op, ConvMap):
        return None
    op = step.rule.op
    if op.groups != 1 or step.rule.bias.size not in (1, len(op.weight)):
        return None
    return op, np.broadcast_to(step.rule.bias.reshape(-1), (len(op.weight),))


@dataclass(frozen=True, eq=False)
class Place:
    """What one position of the second convolution sees, however many positions see the same.

    Attributes:
        weight: [units, C, taps, pixels] of the first convolution, by the pixels that each unit reads.
        bias: [C, taps].
        pixels: [units, pixels], numbers of pixels; those that a unit has too few of are the last one, which is 0.
        lo: of each pixel, [pixels + 1].
        hi: likewise.
        there: [units], whether a unit is there or in padding.
    """

    weight: Array
    bias: Array
    pixels: Array
    lo: Array
    hi: Array
    there: Array


def places(of: Stack, x: Interval) -> list[tuple[Place, list[int]]]:
    """All different places with their positions; none for several boxes, or where there are more than `PLACES`."""
    if len(x.lo) > 1:
        return []
    reads = of.front.reads()[of.taps]  # [units, taps, pixels]
    edges = [np.append(end.reshape(-1), 0.0) for end in (x.lo, x.hi)]
    found: dict[bytes, tuple[Array, Array, list[Array], list[int]]] = {}
    windows = of.back.reads()[:, : int(np.prod(of.back.weight.shape[2:]))]  # of the first channel
    for number, window in enumerate(windows):
        there = window >= 0
        seen = np.where(there[:, None, None], reads[window], -1)
        labels, local = np.unique(np.append(seen, -1), return_inverse=True)
        local = np.where(seen >= 0, local[:-1].reshape(seen.shape) - 1, -1)
        ends = [edge[np.append(labels[1:], -1)] for edge in edges]
        key = b"".join(part.tobytes() for part in (there, local, *ends))
        found.setdefault(key, (there, local, ends, []))[3].append(number)
        if len(found) > PLACES:
            return []
    return [(_place(of, there, local, ends), numbers) for there, local, ends, numbers in found.values()]


def _place(of: Stack, there: Array, local: Array, ends: list[Array]) -> Place:
    """Weights by pixels."""
    units = [np.unique(part[part >= 0]) for part in local]
    outside = len(ends[0]) - 1
    pixels = np.full((len(units), max(map(len, units))), outside)
    filters = of.front.weight.reshape(len(of.front.weight), -1)
    weight = np.zeros((len(units), len(filters), local.shape[1] + of.rectified, pixels.shape[1]))
    for unit, own in enumerate(units):
        pixels[unit, : len(own)] = own
        for tap, read in enumerate(local[unit]):
            weight[unit][:, tap, np.searchsorted(own, read[read >= 0])] = filters[:, read >= 0]
    bias = np.zeros(weight.shape[1:3])
    bias[:, : local.shape[1]] = of.front_bias[:, None]
    return Place(weight, bias, pixels, ends[0], ends[1], there)


def work_of(of: Stack) -> float:
    """Operations to bound one place from both sides, roughly."""
    taps = of.taps.shape[1]
    numbers = of.back.weight.size * (taps + of.rectified) * of.front.terms * (1 + taps) / 2
    return float(5 * 2 * STEPS * numbers)


def bounded(
    of: Stack,
    found: Sequence[tuple[Place, list[int]]],
    name: str,
    ranges: Mapping[str, Interval],
    unit: float,
) -> Interval:
    """Both ends of a value by hulls.

    Args:
        of: what gives the value.
        found: its places.
        name: of the value.
        ranges: of all values, one box.
        unit: unit roundoff of the net's arithmetic.
    """
    before = ranges[name]
    lo, hi = (end.reshape(len(of.back.weight), -1).copy() for end in (before.lo, before.hi))
    off = (_front_rounding(of, ranges[of.x], unit), _back_rounding(of, ranges[of.pooled], unit))
    for place, numbers in found:
        filters = (
            of.back.weight.reshape(*of.back.weight.shape[:2], -1).transpose(0, 2, 1) * place.there[:, None]
        )
        for sign, end in ((1.0, hi), (-1.0, lo)):
            most = most_of(place, sign * filters, sign * of.back_bias, off[0])
            end[:, numbers] = sign * (most[:, None] + off[1][:, numbers])
    return Interval(lo.reshape(before.shape), hi.reshape(before.shape)).within(before)


def _front_rounding(of: Stack, x: Interval, unit: float) -> Array:
    """How far the net's own rounding may move a unit: [C]."""
    if not unit:
        return np.zeros(len(of.front_bias))
    size = magnitude(of.front, x.magnitude).reshape(len(of.front_bias), -1).max(1) + np.abs(of.front_bias)
    return np.asarray(gamma(of.front.terms + 2, unit) * size * (1 + 1e-9))


def _back_rounding(of: Stack, pooled: Interval, unit: float) -> Array:
    """How far it may move what the second convolution gives, beside that: [out, positions]."""
    size = magnitude(of.back, pooled.magnitude).reshape(len(of.back_bias), -1) + np.abs(of.back_bias)[:, None]
    return np.asarray(gamma(of.back.terms + 2, unit) * size * (1 + 1e-9)) if unit else np.zeros(size.shape)


def most_of(place: Place, filters: Array, bias: Array, off: Array) -> Array:
    """Upper bounds [out] of Σ filters · units + bias.

    Args:
        place: the units.
        filters: [out, units, C].
        bias: [out].
        off: how far each unit may be from exact, [C].
    """
    at_once = max(1, NUMBERS // max(1, place.weight.size))
    parts = list[Array]()
    for start in range(0, len(filters), at_once):
        chosen = filters[start : start + at_once]
        slopes, mixed = improved(place, chosen)
        parts.append(proved(place, chosen, bias[start : start + at_once], slopes, mixed))
    return np.asarray(np.concatenate(parts) + (np.abs(filters) * off).sum((1, 2)) * (1 + 1e-9))


def proved(place: Place, filters: Array, bias: Array, slopes: Array, mixed: Array) -> Array:
    """The bound that ℓ and γ give, whatever they are, rounded up: [out].

    Args:
        place: the units.
        filters: k, [out, units, C].
        bias: [out].
        slopes: ℓ, [out, units, C, pixels].
        mixed: γ, [out, units, C, taps], each at least 0; brought to a sum of 1.
    """
    mixed = mixed / mixed.sum(-1, keepdims=True)
    up, down = np.maximum(filters, 0), np.minimum(filters, 0)
    lo, hi = (end[place.pixels][:, None, None] for end in (place.lo, place.hi))  # [units, 1, 1, pixels]
    rest = place.weight - slopes[..., None, :]
    tops = (np.maximum(rest * lo, rest * hi).sum(-1) + place.bias).max(-1)
    below = (mixed[..., None, :] @ place.weight)[..., 0, :]
    number = (up * tops + down * (mixed * place.bias).sum(-1)).sum((1, 2)) + bias
    form = summed(place, (up[..., None] * slopes + down[..., None] * below).sum(2))
    found = number + np.maximum(form * place.lo, form * place.hi).sum(1)
    size = np.maximum(np.abs(place.lo), np.abs(place.hi))[place.pixels][:, None]
    heaviest = (np.abs(place.weight) * size[:, :, None]).sum(-1).max(-1) + np.abs(place.bias).max(-1)
    absolute = (np.abs(filters) * (heaviest + 2 * (np.abs(slopes) * size).sum(-1))).sum((1, 2)) + np.abs(bias)
    terms = place.weight.size + len(place.lo)
    return np.asarray(found + 4 * gamma(terms + 8) * absolute)


def summed(place: Place, forms: Array) -> Array:
    """Coefficients by unit [out, units, pixels] → by pixel [out, pixels + 1]."""
    found = np.zeros((len(forms), len(place.lo)), forms.dtype)
    for unit, pixels in enumerate(place.pixels):
        found[:, pixels] += forms[:, unit]
    return found


def improved(place: Place, filters: Array) -> tuple[Array, Array]:
    """ℓ and γ by Adam on the bound's subgradient, in float32, for pixels that run from −1 to 1.

    Args:
        place: the units.
        filters: [out, units, C].

    Returns:
        The best slopes [out, units, C, pixels] and shares [out, units, C, taps] that were met.
    """
    middle, radius = (0.5 * (place.hi + sign * place.lo) for sign in (1.0, -1.0))
    wide = radius[place.pixels][:, None]  # [units, 1, pixels]
    weight = (place.weight * wide[:, :, None]).astype(np.float32)
    offset = (place.weight * middle[place.pixels][:, None, None]).sum(-1)
    bias = (place.bias + offset).astype(np.float32)  # [units, C, taps]
    k = filters.astype(np.float32)
    up, down = np.maximum(k, 0), np.minimum(k, 0)
    slopes = np.broadcast_to(0.2 * weight.mean(2), (*k.shape, weight.shape[-1])).copy()
    logits = np.zeros((*k.shape, weight.shape[2]), np.float32)
    kept, least = [slopes.copy(), softmax(logits, axis=-1)], np.full(len(k), np.inf)
    usual = float(np.abs(weight).sum()) / max(1, weight.size)  # a window of padding alone has no pixels
    moves = Adam(0.3 * usual, slopes.shape), Adam(3.0, logits.shape)
    for step in range(STEPS):
        mixed = softmax(logits, axis=-1)
        rest = weight - slopes[..., None, :]
        sums = np.abs(rest).sum(-1) + bias
        top = sums.argmax(-1)[..., None]
        below = (mixed[..., None, :] @ weight)[..., 0, :]
        form = summed(place, (up[..., None] * slopes + down[..., None] * below).sum(2))
        found = up * np.take_along_axis(sums, top, -1)[..., 0] + down * (mixed * bias).sum(-1)
        bound = found.sum((1, 2)) + np.abs(form).sum(1)
        better = bound < least
        least = np.where(better, bound, least)
        for best, now in zip(kept, (slopes, mixed), strict=True):
            best[better] = now[better]
        at = np.sign(form)[:, place.pixels][:, :, None]  # where the form is largest: [out, units, 1, pixels]
        chosen = np.sign(np.take_along_axis(rest, top[..., None], -2)[..., 0, :])
        values = (weight @ at[..., None])[..., 0] + bias
        towards = down[..., None] * mixed * (values - (mixed * values).sum(-1, keepdims=True))
        slopes -= moves[0].step((at - chosen) * (k > 0)[..., None], step)
        logits -= moves[1].step(towards, step)
    return kept[0] / np.where(wide > 0, wide, 1.0) * (wide > 0), kept[1].astype(np.float64)


class Adam:
    """Steps along a gradient, each number by its own (Kingma & Ba 2015), shorter to the end.

    Args:
        rate: of the first step.
        shape: of the numbers.
    """

    def __init__(self, rate: float, shape: tuple[int, ...]) -> None:
        self.rate = rate
        self.mean: Array = np.zeros(shape, np.float32)
        self.square: Array = np.zeros(shape, np.float32)

    def step(self, gradient: Array, number: int) -> Array:
        """What to take off."""
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient**2
        return np.asarray(self.rate * (1 - number / STEPS) * self.mean / (np.sqrt(self.square) + 1e-6))
