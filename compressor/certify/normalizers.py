"""Softmax and local response normalisation: ranges by interval pruning's eq. 5 and §2.1; backward walls.

A wall ends a linear form: what is behind it counts by its range alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import no_forms
from edgepress.compressor.certify.intervals import UNIT64, Interval, grow, hull, outward, subtract
from edgepress.compressor.certify.rules import Forms, Pair, Rule, concretise
from edgepress.compressor.protocols import Array

NET_ULPS = 64
"""How far a runtime's softmax or norm may be off, in units of roundoff of the result: assumed, and not proved."""


class Wall(ABC):
    """What both have in common; subclasses say what ranges do."""

    @abstractmethod
    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Range of y."""

    @abstractmethod
    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """Ranges of ∂output/∂x."""

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """The two ranges, one off the other."""
        return subtract(other.forward([pairs[0].z], unit), self.forward([pairs[0].x], unit))

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """A number."""
        return (np.zeros((*a.shape[:2], *xs[0].shape[1:])),), concretise(a, self.forward(xs, unit))

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """A number."""
        nothing = no_forms(pairs, a.shape[:2])
        return nothing, nothing, concretise(a, self.difference(other, pairs, unit))


@dataclass(frozen=True, eq=False)
class Softmax(Wall):
    """exp(xᵢ) / Σ exp(xⱼ) along an axis of a row, counted from 0."""

    axis: int

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """1 / (1 + Σ_{j≠i} exp(xⱼ − xᵢ)), which rises in xᵢ and falls in the others (eq. 5)."""
        axis = self.axis + 1
        lo, hi = np.moveaxis(xs[0].lo, axis, -1), np.moveaxis(xs[0].hi, axis, -1)
        count = lo.shape[-1]
        with np.errstate(over="ignore", under="ignore"):
            low = 1 / (1 + _others(hi[..., None, :] - lo[..., :, None]))
            high = 1 / (1 + _others(lo[..., None, :] - hi[..., :, None]))
        gap = np.maximum(np.abs(lo), np.abs(hi)).max(-1, keepdims=True)
        slack = 8 * (count + 4 + 4 * gap) * UNIT64
        found = Interval(np.maximum(low * (1 - slack), 0.0), np.minimum(high * (1 + slack), 1.0))
        found = Interval(np.moveaxis(found.lo, -1, axis), np.moveaxis(found.hi, -1, axis))
        return grow(found, NET_ULPS * unit) if unit else found

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """By the derivative pᵢ(1 − pᵢ) and −pᵢ pⱼ on the way from x to z; or by the ranges, where that is less."""
        pair, axis = pairs[0], self.axis + 1
        between = self.forward([hull(pair.x, pair.z)], 0.0)
        p_lo, p_hi = np.moveaxis(between.lo, axis, -1), np.moveaxis(between.hi, axis, -1)
        d_lo, d_hi = np.moveaxis(pair.d.lo, axis, -1), np.moveaxis(pair.d.hi, axis, -1)
        # Δᵢ = ∫ pᵢ (dᵢ − Σⱼ pⱼ dⱼ): a mean of dᵢ − dⱼ, so no more than the farthest of them.
        least = d_lo - d_hi.max(-1, keepdims=True)
        most = d_hi - d_lo.min(-1, keepdims=True)
        factor = np.where(
            (p_lo <= 0.5) & (p_hi >= 0.5), 0.25, np.maximum(p_lo * (1 - p_lo), p_hi * (1 - p_hi))
        )
        wide = outward(factor * np.minimum(least, 0), factor * np.maximum(most, 0), ulps=8)
        found = Interval(np.moveaxis(wide.lo, -1, axis), np.moveaxis(wide.hi, -1, axis))
        found = grow(found, 2 * NET_ULPS * unit) if unit else found
        return found.within(super().difference(other, pairs, unit))

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """pᵢ (δᵢ − Σⱼ pⱼ δⱼ): of either sign, no more than the farthest δ apart, at most a quarter."""
        axis = self.axis + 1
        span = delta.hi.max(axis, keepdims=True) - delta.lo.min(axis, keepdims=True)
        most = np.broadcast_to(0.25 * span, delta.shape)
        return (Interval(-most, most),)


def _others(gaps: Array) -> Array:
    """Σ_{j≠i} exp(gapᵢⱼ)."""
    grown = np.exp(gaps)
    count = gaps.shape[-1]
    grown[..., np.arange(count), np.arange(count)] = 0.0
    return np.asarray(grown.sum(-1))


@dataclass(frozen=True, eq=False)
class Norm(Wall):
    """LRN: x / (bias + α/size Σ x²)^β over neighbouring channels.

    Attributes:
        size: channels in a sum.
        alpha: α ≥ 0.
        beta: β ≥ 0.
        bias: k > 0.
    """

    size: int
    alpha: float
    beta: float
    bias: float

    def _sums(self, squares: Array) -> Array:
        """Sums over neighbours, the value itself left out: [N, C, …]."""
        before = (self.size - 1) // 2
        after = self.size - 1 - before
        padded = np.pad(squares, [(0, 0), (before, after), *[(0, 0)] * (squares.ndim - 2)])
        channels = squares.shape[1]
        parts = [padded[:, i : i + channels] for i in range(self.size) if i != before]
        return sum(parts, np.zeros_like(squares))

    def _value(self, x: Array, others: Array) -> Array:
        share = self.alpha / self.size
        return np.asarray(x * (self.bias + share * (others + x * x)) ** -self.beta)

    def _peaks(self, others: Array) -> Array:
        """Where the value is largest for given neighbours: x² (2β − 1) α/n = k + α/n Σ; ∞ where it only rises."""
        share = self.alpha / self.size
        if share * (2 * self.beta - 1) <= 0:
            return np.full_like(others, np.inf)
        return np.sqrt((self.bias + share * others) / (share * (2 * self.beta - 1)))

    def _largest(self, lo: Array, hi: Array, others: Array) -> Array:
        """Largest value for x in [lo, hi] with these neighbours: at an end, or at the peak between them."""
        peak = np.clip(self._peaks(others), lo, hi)
        return np.maximum(
            np.maximum(self._value(lo, others), self._value(hi, others)), self._value(peak, others)
        )

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Falls (in size) as neighbours grow; in x it rises to its peak and then falls."""
        x = xs[0]
        inside = (x.lo <= 0) & (x.hi >= 0)
        few = self._sums(np.where(inside, 0.0, np.minimum(x.lo**2, x.hi**2)))
        many = self._sums(x.magnitude**2)
        high = np.maximum(self._largest(x.lo, x.hi, few), self._largest(x.lo, x.hi, many))
        low = np.maximum(self._largest(-x.hi, -x.lo, few), self._largest(-x.hi, -x.lo, many))
        ulps = int(64 + 16 * self.size * (1 + self.beta))
        found = outward(-low, high, ulps=ulps)
        return grow(found, NET_ULPS * unit * found.magnitude) if unit else found

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """|∂yᵢ/∂xⱼ| ≤ k^−β ([i = j] + 2 β α/n |xᵢ||xⱼ| / k), summed over the neighbours that read x."""
        size = xs[0].magnitude
        reach = delta.magnitude
        flat = self.bias**-self.beta
        share = 2 * self.beta * self.alpha / self.size / self.bias
        weighted = reach * size
        before = (self.size - 1) // 2
        after = self.size - 1 - before
        padded = np.pad(weighted, [(0, 0), (after, before), *[(0, 0)] * (weighted.ndim - 2)])
        readers = sum((padded[:, i : i + size.shape[1]] for i in range(self.size)), np.zeros_like(weighted))
        most = flat * (reach + share * size * readers)
        return (Interval(-most, most),)
