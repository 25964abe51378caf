"""Activations, element by element and never falling, and rounding to a grid.

For a difference only slopes matter: f(x + d) − f(x) = λ d with λ between the least and the largest slope on the
way. That holds for lines and smooth curves alike; max over λ is convex in d and min concave, so chords bound them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepress.compressor.certify.affine import no_forms
from edgepress.compressor.certify.intervals import TINY, UNIT64, Interval, grow, hull, outward
from edgepress.compressor.certify.rules import Forms, Pair, Rule, dot, per_sign, worst
from edgepress.compressor.protocols import Array

SMOOTH_ULPS = 16
"""How far a runtime's sigmoid or tanh may be off, in units of roundoff at 1: what is assumed of it, and not proved."""
SMALLEST32 = 2.0**-126
"""Smallest normal float32: engines may take a product below it for 0."""


@dataclass(frozen=True, eq=False)
class Lines:
    """low_slope x + low ≤ f(x) ≤ high_slope x + high on an interval; [N, *row] each."""

    low_slope: Array
    low: Array
    high_slope: Array
    high: Array


def _curved(a: Array, lines: Lines, x: Interval) -> tuple[Array, Array]:
    """⟨a, f(x)⟩ from below, by the line that belongs to the sign of each coefficient."""
    number = worst(a, lines.low, lines.high)
    steep = np.maximum(np.abs(lines.low_slope), np.abs(lines.high_slope))
    return per_sign(a, lines.low_slope, lines.high_slope), number - 4 * UNIT64 * dot(a, steep * x.magnitude)[
        1
    ]


def _evaluated(a: Array, off: Array | float) -> Array | float:
    """What f's being off may take from ⟨a, f(x)⟩."""
    return np.asarray(1.01 * dot(a, np.asarray(off))[1]) if np.any(off) else 0.0


class Curve(ABC):
    """What curves have in common; subclasses say what f is."""

    @abstractmethod
    def value(self, x: Array) -> Array:
        """f, never falling."""

    @abstractmethod
    def slopes(self, x: Interval) -> tuple[Array, Array]:
        """Least and largest slope."""

    @abstractmethod
    def lines(self, x: Interval) -> Lines:
        """Linear bounds."""

    def off(self, x: Interval, unit: float) -> Array | float:
        """How far a runtime's own f may be off for x in a range; broadcasts to it, 0.0 where there is nothing."""
        return 0.0

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """[f(lo), f(hi)]."""
        found = outward(self.value(xs[0].lo), self.value(xs[0].hi), ulps=8)
        return grow(found, off) if np.any(off := self.off(xs[0], unit)) else found

    def _scaled(self, other: Rule, pair: Pair) -> tuple[Array, Array, Array, Array]:
        """Least and largest λ d at either end of d's range: (low at lo, low at hi, high at lo, high at hi)."""
        if type(other) is not type(self):
            raise TypeError("an activation was paired with another kind")
        least, most = self.slopes(hull(pair.x, pair.z))
        lo, hi = pair.d.lo, pair.d.hi
        return (
            np.minimum(least * lo, most * lo),
            np.minimum(least * hi, most * hi),
            np.maximum(least * lo, most * lo),
            np.maximum(least * hi, most * hi),
        )

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """λ d, for slopes λ on the way from x to z."""
        low, _, _, high = self._scaled(other, pairs[0])
        found = outward(low, high, ulps=2)
        return grow(found, off) if np.any(off := self._both_off(pairs[0], unit)) else found

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """By linear bounds."""
        form, number = _curved(a, self.lines(xs[0]), xs[0])
        return (form,), number - _evaluated(a, self.off(xs[0], unit))

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """By chords of the largest and the least λ d."""
        pair = pairs[0]
        low_lo, low_hi, high_lo, high_hi = self._scaled(other, pair)
        span = pair.d.hi - pair.d.lo
        safe = np.where(span > 0, span, 1.0)
        low_slope = np.where(span > 0, (low_hi - low_lo) / safe, 0.0)
        high_slope = np.where(span > 0, (high_hi - high_lo) / safe, 0.0)
        ends = (pair.d.lo, pair.d.hi)
        slack = 8 * UNIT64 * (np.abs(high_slope) + np.abs(low_slope) + 1) * pair.d.magnitude + TINY
        low = np.minimum(low_lo - low_slope * ends[0], low_hi - low_slope * ends[1]) - slack
        high = np.maximum(high_lo - high_slope * ends[0], high_hi - high_slope * ends[1]) + slack
        form, number = _curved(a, Lines(low_slope, low, high_slope, high), pair.d)
        number = number - _evaluated(a, self._both_off(pair, unit))
        return (form,), no_forms(pairs, a.shape[:2]), number

    def _both_off(self, pair: Pair, unit: float) -> Array | float:
        return self.off(pair.x, unit) + self.off(pair.z, unit)

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """δ times the range of slopes (eq. 10)."""
        least, most = self.slopes(xs[0])
        lo = np.minimum(least * delta.lo, most * delta.lo)
        return (Interval(lo, np.maximum(least * delta.hi, most * delta.hi)),)


@dataclass(frozen=True, eq=False)
class Bent(Curve):
    """Straight pieces: below `low` the slope is `below`, between `low` and `high` 1, above `high` 0.

    ReLU is Bent(0, ∞), Clip is Bent(low, high), LeakyReLU is Bent(0, ∞, slope).

    Attributes:
        low: where the middle piece begins.
        high: where it ends.
        below: slope of the first piece, in [0, 1]; a number, or an array that broadcasts to a row.
    """

    low: float = 0.0
    high: float = np.inf
    below: Array | float = 0.0

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Exact where a piece is clipped and not scaled: a ReLU gives no zero away."""
        if np.any(self.below):
            return super().forward(xs, unit)
        return Interval(self.value(xs[0].lo), self.value(xs[0].hi))

    def off(self, x: Interval, unit: float) -> Array | float:
        """What the one product is rounded by, where there is one: a slope of 0 or 1 multiplies nothing."""
        below = np.broadcast_to(self.below, x.shape)
        scaled = (below != 0) & (below != 1) & (x.lo < self.low)
        if not unit or not scaled.any():
            return 0.0
        return np.where(scaled, 1.01 * unit * below * (self.low - x.lo) + SMALLEST32, 0.0)

    def value(self, x: Array) -> Array:
        """F."""
        bent = np.minimum(np.maximum(x, self.low), self.high)
        return bent + self.below * np.minimum(x - self.low, 0.0) if np.any(self.below) else bent

    def slopes(self, x: Interval) -> tuple[Array, Array]:
        """At the ends, and 1 where the middle piece is touched."""
        below = np.broadcast_to(self.below, x.shape)
        least = np.where(x.lo >= self.low, np.where(x.hi <= self.high, 1.0, 0.0), below)
        least = np.where(x.hi > self.high, 0.0, least)
        most = np.where((x.hi > self.low) & (x.lo < self.high), 1.0, 0.0)
        return least, np.where(x.hi <= self.low, below, most)

    def lines(self, x: Interval) -> Lines:
        """Slopes are chosen, numbers follow: a straight piece is farthest from a line at its ends."""
        low, high = self.low, self.high
        below = np.broadcast_to(self.below, x.shape)
        whole = (x.lo >= low) & (x.hi <= high)
        top, bottom = np.minimum(x.hi, high), np.maximum(x.lo, low)
        rise = self.value(x.hi) - self.value(x.lo)
        # Above: the chord to where the curve turns flat; what begins on the middle piece goes on, or stays flat.
        reach = np.maximum(top - x.lo, TINY)
        up = np.where(x.lo < low, np.maximum((self.value(top) - self.value(x.lo)) / reach, 0.0), 1.0)
        flat_wins = (x.lo >= low) & (x.hi > high) & (high - x.lo <= x.hi - high)
        up = np.where(flat_wins, 0.0, up)
        # Below: the chord from where the middle piece begins, where the curve turns flat; else the steeper half.
        down = np.where(
            x.hi > high,
            rise / np.maximum(x.hi - bottom, TINY) * (x.lo < high) * (np.asarray(below) == 0),
            np.where(x.hi - low > low - x.lo, 1.0, below),
        )
        up, down = (np.where(whole, 1.0, slope) for slope in (up, down))
        lows, highs = [], []
        for at in (x.lo, x.hi, np.clip(low, x.lo, x.hi), np.clip(high, x.lo, x.hi)):
            value = self.value(at)
            slack = 8 * UNIT64 * (np.abs(value) + (np.abs(up) + np.abs(down) + 1) * np.abs(at)) + TINY
            lows.append(value - down * at - np.where(whole, 0.0, slack))
            highs.append(value - up * at + np.where(whole, 0.0, slack))
        return Lines(down, np.min(lows, axis=0), up, np.max(highs, axis=0))


@dataclass(frozen=True, eq=False)
class Smooth(Curve):
    """Sigmoid or tanh: steepest at 0, less so the farther away.

    Attributes:
        kind: which.
    """

    kind: Literal["Sigmoid", "Tanh"]

    def off(self, x: Interval, unit: float) -> Array | float:
        """As much anywhere."""
        return SMOOTH_ULPS * unit

    def value(self, x: Array) -> Array:
        """f; sigmoid by way of tanh, which does not overflow."""
        return np.tanh(x) if self.kind == "Tanh" else 0.5 + 0.5 * np.tanh(0.5 * x)

    def _slope(self, x: Array) -> Array:
        y = np.tanh(x if self.kind == "Tanh" else 0.5 * x)
        return np.asarray((1.0 - y) * (1.0 + y) * (1.0 if self.kind == "Tanh" else 0.25))

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Widened absolutely, too: near 0 a sigmoid by way of tanh has lost its leading digits."""
        return grow(super().forward(xs, unit), 8 * UNIT64)

    def slopes(self, x: Interval) -> tuple[Array, Array]:
        """Least at an end; largest at 0, or at the end next to it."""
        one, other = self._slope(x.lo), self._slope(x.hi)
        steepest = np.where((x.lo <= 0) & (x.hi >= 0), self._slope(np.zeros(1)), np.maximum(one, other))
        slack = 16 * UNIT64
        return np.maximum(np.minimum(one, other) - slack, 0.0), steepest * (1 + slack) + slack

    def lines(self, x: Interval) -> Lines:
        """The least slope through either end."""
        slope, _ = self.slopes(x)
        size = 16 * UNIT64 * (1 + np.abs(slope) * x.magnitude)
        low = self.value(x.lo) - slope * x.lo - size
        return Lines(slope, low, slope, self.value(x.hi) - slope * x.hi + size)


@dataclass(frozen=True, eq=False)
class Grid:
    """Rounding to multiples of a step: a QuantizeLinear/DequantizeLinear pair whose input is clipped already.

    The changed net may have it where the original has nothing: then w − y = d + e, |e| ≤ step/2. Which way a tie
    goes, and on which side of one an engine's own rounding leaves a number, makes no difference to that.

    Attributes:
        step: distance of two levels.
    """

    step: float

    def _half(self, x: Interval, unit: float) -> Array:
        """Half a step, and what the division and the product may be off."""
        return np.asarray(0.5 * self.step * (1 + 8 * UNIT64) + (8 * unit + 8 * UNIT64) * x.magnitude)

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """From the level of one end to that of the other, either side of a tie; half a step more where that is less."""
        tie = (16 * unit + 16 * UNIT64) * (1 + xs[0].magnitude / self.step)
        low, high = np.ceil(xs[0].lo / self.step - 0.5 - tie), np.floor(xs[0].hi / self.step + 0.5 + tie)
        wide = unit * self.step * np.maximum(np.abs(low), np.abs(high)) if unit else 0.0
        levels = grow(outward(low * self.step, high * self.step), wide)
        return levels.within(grow(xs[0], self._half(xs[0], unit)))

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """Both round by themselves."""
        return grow(pairs[0].d, self._half(pairs[0].x, unit) + self._half(pairs[0].z, unit))

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """⟨a, x⟩ − |a| step/2."""
        return (a,), -(1 + a[0, 0].size * 4 * UNIT64) * dot(a, self._half(xs[0], unit))[1]

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """Both round by themselves."""
        pair = pairs[0]
        half = self._half(pair.x, unit) + self._half(pair.z, unit)
        return (a,), no_forms(pairs, a.shape[:2]), -(1 + a[0, 0].size * 4 * UNIT64) * dot(a, half)[1]

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """A staircase has no derivative worth the name."""
        raise NotImplementedError("rounding has no derivative")


@dataclass(frozen=True, eq=False)
class Nothing:
    """What the original has where the changed net quantizes: y = x."""

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """The same."""
        return xs[0]

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """d, clipped where the changed net clips, and off by what it rounds."""
        pair = pairs[0]
        if isinstance(other, Grid):
            return grow(pair.d, other._half(pair.z, unit))
        if not isinstance(other, Bent):
            raise TypeError("only a quantizer may stand where the original has nothing")
        cut_lo, cut_hi = _clipped(other, pair.z)
        return outward(pair.d.lo + cut_lo, pair.d.hi + cut_hi)

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """The same."""
        return (a,), np.zeros(a.shape[:2])

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """As `difference`."""
        pair = pairs[0]
        if isinstance(other, Grid):
            half = other._half(pair.z, unit)
            number = -(1 + a[0, 0].size * 4 * UNIT64) * dot(a, half)[1]
        elif isinstance(other, Bent):
            number = worst(a, *_clipped(other, pair.z))
        else:
            raise TypeError("only a quantizer may stand where the original has nothing")
        return (a,), no_forms(pairs, a.shape[:2]), number

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """The same."""
        return (delta,)


def _clipped(clip: Bent, z: Interval) -> tuple[Array, Array]:
    """Range of clip(z) − z, rounded outward: falls as z grows, but for the middle piece, where it is 0."""
    low = np.minimum(clip.value(z.hi) - z.hi, 0.0)
    high = np.maximum(clip.value(z.lo) - z.lo, 0.0)
    return np.where(low < 0, np.nextafter(low, -np.inf), 0.0), np.where(
        high > 0, np.nextafter(high, np.inf), 0.0
    )
