"""Max pooling: which of several inputs goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.rules import Forms, Pair, Rule, worst
from edgepress.compressor.protocols import Array


@dataclass(frozen=True, eq=False)
class Largest:
    """The largest input of each window.

    Attributes:
        size: shape of an input row.
        shape: shape of an output row.
        reads: [outputs, taps], numbers in the flat input row; −1 where a window reaches over the edge.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    reads: Array

    def _windows(self, values: Array, outside: float) -> Array:
        """[N, *size] → [N, outputs, taps]."""
        flat = values.reshape(len(values), -1)
        padded = np.concatenate([flat, np.full((len(flat), 1), outside, flat.dtype)], 1)
        return padded[:, self.reads]

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """[max of lower ends, max of upper ends] (eq. 3)."""
        lo = self._windows(xs[0].lo, -np.inf).max(-1)
        return Interval(lo, self._windows(xs[0].hi, -np.inf).max(-1)).reshape(len(lo), *self.shape)

    def _may_win(self, x: Interval) -> Array:
        """Which inputs may be the largest: [N, outputs, taps]."""
        lo, hi = self._windows(x.lo, -np.inf), self._windows(x.hi, -np.inf)
        return np.asarray((hi >= lo.max(-1, keepdims=True)) & (self.reads >= 0))

    def difference(self, other: Rule, pairs: Sequence[Pair], unit: float) -> Interval:
        """At most the difference of the one that is largest in the changed net, at least of that in the original."""
        pair = pairs[0]
        high = np.where(self._may_win(pair.z), self._windows(pair.d.hi, -np.inf), -np.inf).max(-1)
        low = np.where(self._may_win(pair.x), self._windows(pair.d.lo, np.inf), np.inf).min(-1)
        return Interval(low, high).reshape(len(low), *self.shape)

    def _scatter(self, a: Array, tap: Array) -> Array:
        """Coefficients [N, K, outputs] put back to where tap [N, outputs] of each window reads."""
        lead, inputs = a.shape[:2], int(np.prod(self.size))
        where = np.take_along_axis(
            np.broadcast_to(self.reads, (*tap.shape, self.reads.shape[1])), tap[..., None], 2
        )
        base = np.arange(lead[0] * lead[1]).reshape(*lead, 1) * inputs
        index = (base + where[:, None, :, 0]).reshape(-1)
        found = np.bincount(index, a.reshape(-1), minlength=lead[0] * lead[1] * inputs)
        return found.reshape(*lead, *self.size)

    def _sided(
        self, a: Array, certain: Array, tap: Array, low: Array, high: Array, lows_follow: bool
    ) -> tuple[Array, Array]:
        """Where the winner is known its value, else a number; from below the likeliest winner will do."""
        flat = a.reshape(*a.shape[:2], -1)
        follows = certain[:, None] | ((flat >= 0) & lows_follow)
        number = worst(np.where(follows, 0.0, flat), low, high)
        return self._scatter(np.where(follows, flat, 0.0), tap), number

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """From below the input with the largest lower end, from above the largest upper end (Singh et al. 2019)."""
        may = self._may_win(xs[0])
        tap = self._windows(xs[0].lo, -np.inf).argmax(-1)
        found = self.forward(xs, unit)
        ends = (found.lo.reshape(len(tap), -1), found.hi.reshape(len(tap), -1))
        form, number = self._sided(a, may.sum(-1) == 1, tap, *ends, lows_follow=True)
        return (form,), number

    def backward_difference(
        self, other: Rule, a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """The winner's difference where both nets have the same one for sure, else the range."""
        pair = pairs[0]
        may, then = self._may_win(pair.x), self._may_win(pair.z)
        certain = (may | then).sum(-1) == 1
        found = self.difference(other, pairs, unit)
        ends = (found.lo.reshape(len(certain), -1), found.hi.reshape(len(certain), -1))
        form, number = self._sided(a, certain, may.argmax(-1), *ends, lows_follow=False)
        return (form,), (np.zeros_like(form),), number

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """δ times [wins for sure, may win] (eq. 9), summed over windows."""
        may = self._may_win(xs[0])[0]
        sure = may & (may.sum(-1, keepdims=True) == 1)
        lo, hi = (np.zeros((len(delta.lo), int(np.prod(self.size)))) for _ in range(2))
        flat_lo, flat_hi = delta.lo.reshape(len(lo), -1), delta.hi.reshape(len(lo), -1)
        for tap in range(self.reads.shape[1]):
            where, inside = self.reads[:, tap], self.reads[:, tap] >= 0
            least = np.where(sure[:, tap], flat_lo, np.where(may[:, tap], np.minimum(flat_lo, 0), 0))
            most = np.where(sure[:, tap], flat_hi, np.where(may[:, tap], np.maximum(flat_hi, 0), 0))
            for row in range(len(lo)):
                np.add.at(lo[row], where[inside], least[row][inside])
                np.add.at(hi[row], where[inside], most[row][inside])
        return (Interval(lo.reshape(-1, *self.size), hi.reshape(-1, *self.size)),)
