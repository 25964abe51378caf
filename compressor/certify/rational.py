"""Plain intervals in exact arithmetic: whole numbers over a common denominator, so that nothing is ever rounded.

Slow, and free of everything that makes the fast bounds hard to trust: no error terms, no centres and radii, no linear
forms. Float32 weights are whole numbers over powers of two, and so is all that sums and products make of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from edgepress.compressor.protocols import Array


@dataclass(frozen=True, eq=False)
class Whole:
    """Rational numbers.

    Attributes:
        tops: numerators, an object array of Python integers.
        den: their common denominator, above 0.
    """

    tops: Array
    den: int

    def over(self, den: int) -> Array:
        """Numerators over a multiple of the denominator."""
        return np.asarray(self.tops * (den // self.den), object)


def exactly(x: Array | float) -> Whole:
    """The very numbers that finite floats or integers are."""
    wide = np.asarray(x, np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("only finite numbers are rational")
    mantissas, exponents = np.frexp(wide)
    least = int(exponents.min(initial=0))
    tops = np.ldexp(mantissas, 53).astype(np.int64).astype(object) << (exponents - least).astype(object)
    power = 53 - least
    shared = math.gcd(*np.asarray(tops, object).reshape(-1).tolist(), 1 << max(power, 0))
    scale = 1 << max(-power, 0)
    return Whole(np.asarray(tops // shared * scale, object), (1 << max(power, 0)) // shared)


def reciprocal(x: Whole) -> Whole:
    """1 / x; none may be 0."""
    shared = math.lcm(*(abs(int(n)) for n in x.tops.reshape(-1)))
    return Whole(np.asarray(shared // x.tops * x.den, object), shared)


def same(*parts: Whole) -> tuple[list[Array], int]:
    """Numerators over one denominator."""
    den = math.lcm(*(part.den for part in parts))
    return [part.over(den) for part in parts], den


@dataclass(frozen=True, eq=False)
class Ends:
    """Closed intervals of rational numbers.

    Attributes:
        lo: numerators of lower ends, an object array of Python integers.
        hi: of upper ends.
        den: common denominator.
    """

    lo: Array
    hi: Array
    den: int

    @classmethod
    def of(cls, lo: Whole, hi: Whole) -> "Ends":
        """From two arrays."""
        (low, high), den = same(lo, hi)
        return cls(low, high, den)

    @property
    def ends(self) -> tuple[Whole, Whole]:
        """Both."""
        return Whole(self.lo, self.den), Whole(self.hi, self.den)

    def moved(self, how: Callable[[Array], Array]) -> "Ends":
        """The same numbers in other places."""
        return Ends(how(self.lo), how(self.hi), self.den)

    def within(self, other: "Ends") -> "Ends":
        """The intersection."""
        (lo, hi, low, high), den = same(*self.ends, *other.ends)
        return Ends(np.maximum(lo, low), np.minimum(hi, high), den)

    def __add__(self, other: "Ends") -> "Ends":
        (lo, hi, low, high), den = same(*self.ends, *other.ends)
        return Ends(lo + low, hi + high, den)

    def __neg__(self) -> "Ends":
        return Ends(-self.hi, -self.lo, self.den)

    def fractions(self) -> tuple[list[Fraction], list[Fraction]]:
        """Lower and upper ends, flat."""
        lo, hi = ([Fraction(n, self.den) for n in end.reshape(-1)] for end in (self.lo, self.hi))
        return lo, hi


@dataclass(frozen=True, eq=False)
class Triple:
    """Ranges of one value: in the original, in the changed net, and of the difference; each of the shape of a row."""

    x: Ends
    z: Ends
    d: Ends


def through(weight: Whole, apply: Callable[[Array, Array], Array], x: Ends) -> Ends:
    """Range of A x for independent x: `apply` is linear in x and in the weight, and A ≥ 0 for a weight ≥ 0."""
    up, down = np.maximum(weight.tops, 0), np.minimum(weight.tops, 0)
    lo = apply(x.lo, up) + apply(x.hi, down)
    return Ends(lo, apply(x.hi, up) + apply(x.lo, down), x.den * weight.den)


def linear(
    apply: Callable[[Array, Array], Array], ours: tuple[Whole, Whole], theirs: tuple[Whole, Whole], at: Triple
) -> Triple:
    """A x + b beside A' z + b'; the difference is A' d + (A' − A) x + (b' − b).

    Args:
        apply: x, weight → A x.
        ours: weight, and bias that broadcasts to a row of the result.
        theirs: of the changed net.
        at: ranges of the input.
    """
    (old, new), den = same(ours[0], theirs[0])
    (before, after), over = same(ours[1], theirs[1])
    d = through(theirs[0], apply, at.d)
    if (moved := np.asarray(new - old, object)).any():
        d = d + through(Whole(moved, den), apply, at.x)
    shift = np.asarray(after - before, object)
    return settled(
        through(ours[0], apply, at.x) + Ends(before, before, over),
        through(theirs[0], apply, at.z) + Ends(after, after, over),
        d + Ends(shift, shift, over),
    )


def settled(x: Ends, z: Ends, d: Ends) -> Triple:
    """A difference lies within z − x, and z within x + d."""
    d = d.within(z + -x)
    return Triple(x, z.within(x + d), d)


def product_of(one: Triple, two: Triple) -> Triple:
    """z₁ z₂ − x₁ x₂ = z₁ d₂ + d₁ x₂ = x₁ d₂ + d₁ z₂; the two are taken to be independent."""
    first = times(one.z, two.d) + times(one.d, two.x)
    second = times(one.x, two.d) + times(one.d, two.z)
    return settled(*map(shortened, (times(one.x, two.x), times(one.z, two.z), first.within(second))))


def shortened(x: Ends) -> Ends:
    """Outward to multiples of 2^-512 where denominators have grown beyond 2^1024: products double their digits."""
    if x.den.bit_length() <= 1024:
        return x
    wide = 1 << 512
    return Ends(x.lo * wide // x.den, -(-x.hi * wide // x.den), wide)


def times(one: Ends, two: Ends) -> Ends:
    """An end times an end."""
    corners = [a * b for a in (one.lo, one.hi) for b in (two.lo, two.hi)]
    return Ends(np.minimum.reduce(corners), np.maximum.reduce(corners), one.den * two.den)


def bent(at: Triple, low: Fraction | None, high: Fraction | None, below: Whole) -> Triple:
    """Straight pieces: slope `below` in [0, 1] up to `low`, 1 from there to `high`, 0 beyond.

    Args:
        at: ranges of the input.
        low: where the middle piece begins; None where there is no first one.
        high: where it ends; None where it does not.
        below: broadcasts to a row.
    """
    corners = [
        Whole(np.array(end.numerator, object), end.denominator) for end in (low, high) if end is not None
    ]
    values, den = same(*at.x.ends, *at.z.ends, *at.d.ends, *corners)
    x_lo, x_hi, z_lo, z_hi, d_lo, d_hi = values[:6]
    rest = values[6:]
    floor = None if low is None else rest[0]
    top = None if high is None else rest[-1]

    def value(x: Array) -> Array:
        kept = x if top is None else np.minimum(x, top)
        if floor is None:
            return np.asarray(kept * below.den, object)
        return np.asarray(np.maximum(kept, floor) * below.den + np.minimum(x - floor, 0) * below.tops, object)

    from_, to = np.minimum(x_lo, z_lo), np.maximum(x_hi, z_hi)
    first = np.asarray(from_ < floor if floor is not None else np.zeros(from_.shape, bool), bool)
    last = np.asarray(to > top if top is not None else np.zeros(to.shape, bool), bool)
    middle = np.asarray(
        (to > floor if floor is not None else True) & (from_ < top if top is not None else True), bool
    )
    slope = np.broadcast_to(below.tops, from_.shape)
    least = np.where(last, 0, np.where(first, slope, below.den))
    most = np.where(middle, below.den, np.where(first, slope, 0))
    wide = den * below.den
    d = Ends(np.minimum(least * d_lo, most * d_lo), np.maximum(least * d_hi, most * d_hi), wide)
    return settled(Ends(value(x_lo), value(x_hi), wide), Ends(value(z_lo), value(z_hi), wide), d)


def largest(at: Triple, reads: Array, shape: tuple[int, ...]) -> Triple:
    """The largest of each window.

    Args:
        at: ranges of the input.
        reads: [outputs, taps], numbers in the flat input; −1 where a window reaches over the edge.
        shape: of a row of the result.
    """
    inside = reads >= 0

    def seen(values: Array, outside: float) -> Array:
        return np.where(inside, values.reshape(-1)[np.maximum(reads, 0)], outside)

    def ends(x: Ends) -> tuple[Ends, Array]:
        lo = seen(x.lo, -np.inf).max(1)
        high = seen(x.hi, -np.inf)
        may_win = inside & np.asarray(high >= lo[:, None], bool)
        return Ends(lo.reshape(shape), high.max(1).reshape(shape), x.den), may_win

    x, wins = ends(at.x)
    z, wins_then = ends(at.z)
    d_hi = np.where(wins_then, seen(at.d.hi, -np.inf), -np.inf).max(1)
    d_lo = np.where(wins, seen(at.d.lo, np.inf), np.inf).min(1)
    return settled(x, z, Ends(d_lo.reshape(shape), d_hi.reshape(shape), at.d.den))
