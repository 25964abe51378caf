"""The product of two values that vary, element by element.

With centres c and radii r, x₁ x₂ = c₁ x₂ + c₂ x₁ − c₁ c₂ ± r₁ r₂. Between two nets z₁ z₂ − x₁ x₂ = z₁ d₂ + d₁ x₂ =
x₁ d₂ + d₁ z₂: what differs stays small where the factors' differences are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.affine import no_forms
from edgepress.compressor.certify.intervals import TINY, UNIT64, Interval, add, grow, outward
from edgepress.compressor.certify.rules import Forms, Pair, Rule, dot, worst
from edgepress.compressor.protocols import Array

SLACK = 32 * UNIT64
"""More than what a handful of operations in float64 and a sum of their absolutes may be off."""


def times(one: Interval, other: Interval) -> Interval:
    """Range of the product of two independent values: an end times an end."""
    corners = [a * b for a in (one.lo, one.hi) for b in (other.lo, other.hi)]
    return outward(np.minimum.reduce(corners) - TINY, np.maximum.reduce(corners) + TINY)


@dataclass(frozen=True, eq=False)
class Product:
    """y = x₁ x₂, both of one shape and taken to be independent."""

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Ends times ends."""
        found = times(*xs)
        return grow(found, unit * found.magnitude) if unit else found

    def _own(self, pairs: Sequence[Pair], unit: float) -> Array:
        """What both nets' own rounding may add to the difference."""
        one, other = pairs
        ours, theirs = one.x.magnitude * other.x.magnitude, one.z.magnitude * other.z.magnitude
        return np.asarray(1.01 * unit * (ours + theirs))

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """z₁ d₂ + d₁ x₂, and x₁ d₂ + d₁ z₂."""
        one, two = pairs
        found = add(times(one.z, two.d), times(one.d, two.x))
        found = found.within(add(times(one.x, two.d), times(one.d, two.z)))
        return grow(found, self._own(pairs, unit)) if unit else found

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """By the two centres."""
        (c1, r1), (c2, r2) = (x.centred() for x in xs)
        size = np.abs(c1) * xs[1].magnitude + np.abs(c2) * xs[0].magnitude + np.abs(c1 * c2) + r1 * r2
        number = worst(a, -c1 * c2 - r1 * r2, -c1 * c2 + r1 * r2)
        own = SLACK * size + 1.01 * unit * xs[0].magnitude * xs[1].magnitude
        return (a * c2[:, None], a * c1[:, None]), number - _weighed(a, own)

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """Centres of z₁ and x₂ times the differences; what the factors may be off their centres counts absolutely."""
        one, two = pairs
        (c1, r1), (c2, r2) = one.z.centred(), two.x.centred()
        d1, d2 = one.d.magnitude, two.d.magnitude
        off = r1 * d2 + r2 * d1
        own = off + SLACK * (off + np.abs(c1) * d2 + np.abs(c2) * d1) + self._own(pairs, unit)
        return (a * c2[:, None], a * c1[:, None]), no_forms(pairs, a.shape[:2]), -_weighed(a, own)

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """δ times the other factor."""
        return times(delta, xs[1]), times(delta, xs[0])


def _weighed(a: Array, size: Array) -> Array:
    """Σ |a| size, rounded up."""
    return np.asarray((1 + 8 * a[0, 0].size * UNIT64) * dot(a, size)[1] + TINY)
