"""Intervals that hold in floating point: every result is widened by what rounding may have taken off.

A dot product of n terms in arithmetic of unit roundoff u is off by at most γ_n Σ|aᵢ||bᵢ|, γ_n = n u / (1 − n u), in
whatever order it is summed, with fused operations or without (Higham 2002, §3.1). Bounds are worked out in float64;
where they are to hold for nets that compute in float32 as well, u of float32 is added to what the net itself may be
off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.protocols import Array

UNIT64 = 2.0**-53
UNIT32 = 2.0**-24
TINY = 1e-290
"""Added where a product may have fallen below the smallest normal number."""


def gamma(terms: int, unit: float = UNIT64) -> float:
    """γ_n: the largest relative error of a sum of `terms` products, of their absolute sum.

    Args:
        terms: n.
        unit: unit roundoff u of the arithmetic; n u must be below 1/2.
    """
    share = terms * unit
    if share >= 0.5:
        raise ValueError(f"a sum of {terms} terms has no digits left at unit roundoff {unit}")
    return share / (1 - share)


@dataclass(frozen=True, eq=False)
class Interval:
    """Closed intervals, element by element.

    Attributes:
        lo: lower ends, float64.
        hi: upper ends, of the same shape; lo ≤ hi.
    """

    lo: Array
    hi: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ends."""
        return self.lo.shape

    @property
    def magnitude(self) -> Array:
        """Largest absolute value."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    @property
    def width(self) -> Array:
        """Hi − lo, rounded up."""
        return np.asarray(np.nextafter(self.hi - self.lo, np.inf))

    def centred(self) -> tuple[Array, Array]:
        """Centre c and radius r with [lo, hi] ⊆ [c − r, c + r]."""
        centre = 0.5 * self.lo + 0.5 * self.hi
        radius = np.maximum(self.hi - centre, centre - self.lo)
        return centre, np.nextafter(radius * (1 + 4 * UNIT64), np.inf)

    def reshape(self, *shape: int) -> "Interval":
        """The same intervals in another shape."""
        return Interval(self.lo.reshape(shape), self.hi.reshape(shape))

    def contains(self, x: Array) -> bool:
        """Whether every element of `x` lies inside."""
        return bool((self.lo <= x).all() and (x <= self.hi).all())

    def within(self, other: "Interval") -> "Interval":
        """The intersection with intervals that hold as well; where rounding left none, `other`."""
        lo, hi = np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi)
        return Interval(np.where(lo <= hi, lo, other.lo), np.where(lo <= hi, hi, other.hi))


def point(x: Array) -> Interval:
    """Intervals that hold one number each."""
    wide = np.asarray(x, np.float64)
    return Interval(wide, wide)


def outward(lo: Array, hi: Array, ulps: int = 1) -> Interval:
    """Ends that were rounded once (or `ulps` times), moved outward so that they hold."""
    if ulps == 1:
        return Interval(np.nextafter(lo, -np.inf), np.nextafter(hi, np.inf))
    slack = 2 * ulps * UNIT64
    return Interval(lo - slack * np.abs(lo) - TINY, hi + slack * np.abs(hi) + TINY)


def around(centre: Array, radius: Array) -> Interval:
    """[c − r, c + r], outward."""
    return outward(centre - radius, centre + radius)


def add(one: Interval, other: Interval) -> Interval:
    """Sum of two independent intervals."""
    return outward(one.lo + other.lo, one.hi + other.hi)


def subtract(one: Interval, other: Interval) -> Interval:
    """Difference of two independent intervals."""
    return outward(one.lo - other.hi, one.hi - other.lo)


def grow(x: Interval, by: Array | float) -> Interval:
    """Both ends moved outward by at least `by` ≥ 0."""
    return outward(x.lo - by, x.hi + by)


def hull(one: Interval, other: Interval) -> Interval:
    """The smallest intervals that hold both."""
    return Interval(np.minimum(one.lo, other.lo), np.maximum(one.hi, other.hi))


def joined(parts: Sequence[Interval], axis: int) -> Interval:
    """Intervals side by side along an axis."""
    return Interval(np.concatenate([p.lo for p in parts], axis), np.concatenate([p.hi for p in parts], axis))
