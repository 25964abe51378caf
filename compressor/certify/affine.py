"""Linear operators with a bias; sums, joins and moves of values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.intervals import (
    TINY,
    UNIT64,
    Interval,
    add,
    around,
    gamma,
    grow,
    joined,
    point,
)
from edgepress.compressor.certify.linear import Linear
from edgepress.compressor.certify.rules import Forms, Pair, Rule, dot, settled
from edgepress.compressor.protocols import Array


def magnitude(op: Linear, size: Array) -> Array:
    """|A| |x|: what rounding errors of y = A x are measured by; rounded up."""
    found = op.with_weight(np.abs(op.weight)).apply(size)
    return np.asarray(found * (1 + 2 * gamma(op.terms + 2)) + TINY)


def through(
    op: Linear, x: Interval, bias: Array, share: float = 0.0, bias_size: Array | None = None
) -> Interval:
    """Range of A x + b, with 4 γ_n (|A| |x| + |b|) for our own rounding and a share of it for what y may be off."""
    centre, radius = x.centred()
    spread = op.with_weight(np.abs(op.weight)).apply(radius)
    slack = magnitude(op, x.magnitude) + (np.abs(bias) if bias_size is None else bias_size)
    own = 4 * gamma(op.terms + 4) + share
    return around(op.apply(centre) + bias, spread + own * slack)


@dataclass(frozen=True, eq=False)
class Affine:
    """y = A x + b.

    Attributes:
        op: A.
        bias: b, broadcastable to a row of y.
        roundings: how often A and b were rounded when they were worked out from the net's own constants; 0 where
            they are those constants. Two nets' errors do not cancel as their weights do, so each counts whole.
        bias_size: absolute sum of the terms of b, of its shape, where it is a sum that may cancel; else |b|.
    """

    op: Linear
    bias: Array
    roundings: int = 0
    bias_size: Array | None = None

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """The exact range, for independent x."""
        return through(self.op, xs[0], self.bias, self._share(unit), self.bias_size)

    def _share(self, unit: float) -> float:
        """How far y may be off A x + b, as a share of `_size`: by the net's rounding, and by that of A and b here."""
        net = gamma(self.op.terms + 2 + self.roundings, unit) if unit else 0.0
        # One more, since sizes are of what was rounded already.
        return net + (gamma(self.roundings + 1) if self.roundings else 0.0)

    def _size(self, x: Interval) -> Array:
        """|A| |x| + |b|."""
        return magnitude(self.op, x.magnitude) + (
            np.abs(self.bias) if self.bias_size is None else self.bias_size
        )

    def _change(self, other: Rule) -> tuple["Affine", Linear | None, Array]:
        """The changed A, A' − A (None where it is nothing) and b' − b."""
        if not isinstance(other, Affine):
            raise TypeError("a linear step was paired with another kind")
        moved = other.op.weight - self.op.weight
        return other, self.op.with_weight(moved) if moved.any() else None, other.bias - self.bias

    def own_rounding(self, other: "Affine", pair: Pair, unit: float) -> Array | float:
        """What the two nets' own rounding may add to the difference, and that of weights which are not stored."""
        share = max(self._share(unit), other._share(unit))
        return np.asarray(share * (self._size(pair.x) + other._size(pair.z))) if share else 0.0

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """A' d + (A' − A) x + (b' − b)."""
        changed, moved, shift = self._change(other)
        found = through(changed.op, pairs[0].d, shift)
        if moved is not None:
            found = add(found, through(moved, pairs[0].x, np.zeros(1)))
        return grow(found, self.own_rounding(changed, pairs[0], unit))

    def _adjoint(self, op: Linear, a: Array) -> Array:
        found = op.adjoint(a.reshape(-1, *a.shape[2:]))
        return found.reshape(*a.shape[:2], *found.shape[1:])

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """Exact: ⟨a, A x + b⟩ = ⟨Aᵀ a, x⟩ + ⟨a, b⟩.

        The adjoint as computed is taken for what it is: it differs from Aᵀ a by rounding, by no more than γ_n
        |a||A||x|.
        """
        _, slack = dot(a, self._size(xs[0]))
        terms = a[0, 0].size
        value, absolute = dot(a, self.bias)
        own = 4 * gamma(self.op.terms + terms + 4) + self._share(unit)
        return (self._adjoint(self.op, a),), settled(value, absolute, terms) - own * slack

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """⟨a, A' d + (A' − A) x + (b' − b)⟩, likewise."""
        changed, moved, shift = self._change(other)
        pair = pairs[0]
        size = magnitude(changed.op, pair.d.magnitude) + np.abs(shift)
        ax = np.zeros((*a.shape[:2], *pair.x.shape[1:]))
        if moved is not None:
            ax = self._adjoint(moved, a)
            size = size + magnitude(moved, pair.x.magnitude)
        terms = a[0, 0].size
        value, absolute = dot(a, shift)
        slack = 4 * gamma(self.op.terms + terms + 4) * dot(a, size)[1]
        if np.any(off := np.asarray(self.own_rounding(changed, pair, unit))):
            slack = slack + (1 + UNIT64 * 8 * terms) * dot(a, off)[1]
        return (self._adjoint(changed.op, a),), (ax,), settled(value, absolute, terms) - slack

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """Aᵀ δ (eq. 8)."""
        centre, radius = delta.centred()
        absolute = self.op.with_weight(np.abs(self.op.weight))
        return (around(self.op.adjoint(centre), absolute.adjoint(radius)),)


def no_forms(pairs: Sequence[Pair], lead: tuple[int, int]) -> Forms:
    """Coefficients of nothing, for the original's values."""
    return tuple(np.zeros((*lead, *pair.x.shape[1:])) for pair in pairs)


@dataclass(frozen=True, eq=False)
class Sum:
    """y = x₁ + x₂ + …, with signs.

    Attributes:
        signs: 1 or −1, one an input.
    """

    signs: tuple[float, ...]

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Sum of ranges; the inputs are taken to be independent."""
        total = point(np.zeros(1))
        for sign, x in zip(self.signs, xs, strict=True):
            total = add(total, x if sign > 0 else Interval(-x.hi, -x.lo))
        return grow(total, unit * len(xs) * sum(x.magnitude for x in xs) if unit else 0.0)

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """Sum of differences."""
        own = unit * len(pairs) * sum(p.x.magnitude + p.z.magnitude for p in pairs) if unit else 0.0
        return grow(self.forward([p.d for p in pairs], 0.0), own)

    def _back(self, a: Array) -> Forms:
        return tuple(sign * a for sign in self.signs)

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """Exact."""
        size = np.asarray(sum(x.magnitude for x in xs))
        return self._back(a), -2 * unit * len(xs) * dot(a, size)[1]

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """Exact."""
        size = np.asarray(sum(p.x.magnitude + p.z.magnitude for p in pairs))
        return self._back(a), no_forms(pairs, a.shape[:2]), -2 * unit * len(pairs) * dot(a, size)[1]

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """δ, or −δ."""
        return tuple(delta if sign > 0 else Interval(-delta.hi, -delta.lo) for sign in self.signs)


@dataclass(frozen=True, eq=False)
class Join:
    """Concat.

    Attributes:
        axis: of a row, counted from 0.
        sizes: length of each input along it.
    """

    axis: int
    sizes: tuple[int, ...]

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Side by side."""
        return joined(xs, self.axis + 1)

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """Side by side."""
        return joined([p.d for p in pairs], self.axis + 1)

    def _parts(self, a: Array, before: int) -> Forms:
        return tuple(np.split(a, np.cumsum(self.sizes)[:-1], self.axis + before))

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """Taken apart."""
        return self._parts(a, 2), np.zeros(a.shape[:2])

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """Taken apart."""
        return self._parts(a, 2), no_forms(pairs, a.shape[:2]), np.zeros(a.shape[:2])

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """Taken apart."""
        los, his = self._parts(delta.lo, 1), self._parts(delta.hi, 1)
        return tuple(Interval(lo, hi) for lo, hi in zip(los, his, strict=True))


@dataclass(frozen=True, eq=False)
class Move:
    """Values that change their place only: axes of a row are permuted, then it is reshaped.

    Attributes:
        size: shape of the input row.
        order: its axes, permuted; counted from 0.
        shape: of the output row.
    """

    size: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def _moved(self, x: Array) -> Array:
        return x.transpose(0, *(i + 1 for i in self.order)).reshape(len(x), *self.shape)

    def _back(self, a: Array) -> Array:
        lead = a.shape[: a.ndim - len(self.shape)]
        flat = a.reshape(-1, *(self.size[i] for i in self.order))
        placed = flat.transpose(0, *(i + 1 for i in np.argsort(self.order)))
        return placed.reshape(*lead, *self.size)

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Moved."""
        return Interval(self._moved(xs[0].lo), self._moved(xs[0].hi))

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """Moved."""
        return self.forward([pairs[0].d], unit)

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """Moved back."""
        return (self._back(a),), np.zeros(a.shape[:2])

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """Moved back."""
        return (self._back(a),), no_forms(pairs, a.shape[:2]), np.zeros(a.shape[:2])

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """Moved back."""
        return (Interval(self._back(delta.lo), self._back(delta.hi)),)
