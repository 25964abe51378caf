"""What one step of a net does to bounds: ranges forward, ranges of differences, linear bounds backward.

A step stands for the same operator in two nets, the original (x → y) and the changed one (z → w). Beside ranges of
x and z there is the range of their difference d = z − x, which is far smaller than what the two ranges tell: the
change is carried along, and not worked out at the end (Paulsen, Wang & Wang 2020, ReluDiff).

Backward, a linear form ⟨a, y⟩ is bounded from below by one in the inputs, plus a number (Zhang et al. 2018, CROWN;
Singh et al. 2019, DeepPoly). a has the shape [N, K, *row]: K forms for each of N boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgepress.compressor.certify.intervals import UNIT64, Interval
from edgepress.compressor.protocols import Array


@dataclass(frozen=True, eq=False)
class Pair:
    """Ranges of one value in two nets.

    Attributes:
        x: in the original, [N, *row].
        z: in the changed net.
        d: of z − x.
    """

    x: Interval
    z: Interval
    d: Interval


Forms = tuple[Array, ...]
"""One array of coefficients [N, K, *row] an input of the step."""


class Rule(Protocol):
    """One operator. `unit` is the unit roundoff of the net's own arithmetic, 0 where it is taken to be exact."""

    def forward(self, xs: Sequence[Interval], unit: float) -> Interval:
        """Range of y for inputs in `xs`."""

    def difference(self, other: "Rule", pairs: Sequence[Pair], unit: float) -> Interval:
        """Range of w − y; `other` is the changed net's rule, of the same kind."""

    def backward(self, a: Array, xs: Sequence[Interval], unit: float) -> tuple[Forms, Array]:
        """Coefficients and a number [N, K] with ⟨a, y⟩ ≥ Σ ⟨coefficients, x⟩ + number."""

    def backward_difference(
        self, other: "Rule", a: Array, pairs: Sequence[Pair], unit: float
    ) -> tuple[Forms, Forms, Array]:
        """The same of ⟨a, w − y⟩: coefficients of the differences, of the original's values, and a number."""

    def sensitivity(self, delta: Interval, xs: Sequence[Interval]) -> tuple[Interval, ...]:
        """Ranges of ∂output/∂x [K, *row] from those of ∂output/∂y, for one box (interval pruning, phase 2)."""


def dot(a: Array, b: Array) -> tuple[Array, Array]:
    """⟨a, b⟩ over all axes but the first two, and the sum of absolute products; b has no axis K.

    Args:
        a: [N, K, *row].
        b: [N, *row], or broadcastable to it.
    """
    wide = np.broadcast_to(b, (len(a), *a.shape[2:])).reshape(len(a), -1, 1)
    flat = a.reshape(*a.shape[:2], -1)
    return (flat @ wide)[..., 0], (np.abs(flat) @ np.abs(wide))[..., 0]


def settled(value: Array, absolute: Array, terms: int) -> Array:
    """A sum made smaller by what rounding may have added to it.

    Args:
        value: the sum as computed.
        absolute: sum of its absolute terms.
        terms: how many.
    """
    return value - 2 * (terms + 8) * UNIT64 * absolute - np.finfo(float).tiny


def per_sign(a: Array, for_positive: Array, for_negative: Array) -> Array:
    """A times what belongs to its sign; the two have no axis K."""
    up, down = np.expand_dims(for_positive, 1), np.expand_dims(for_negative, 1)
    return np.asarray(a * np.where(a >= 0, up, down))


def worst(a: Array, lo: Array, hi: Array) -> Array:
    """Least ⟨a, v⟩ for lo ≤ v ≤ hi, rounded down: [N, K]."""
    centre, radius = Interval(lo, hi).centred()
    rows, terms = len(a), int(np.prod(a.shape[2:]))
    flat = a.reshape(rows, -1, terms)
    wide = [np.broadcast_to(v, (rows, *a.shape[2:])).reshape(rows, terms) for v in (centre, radius)]
    both = np.abs(flat) @ np.stack([wide[1], np.abs(wide[0])], -1)  # [N, K, (radius, size of centre)]
    return settled((flat @ wide[0][..., None])[..., 0] - both[..., 0], both.sum(-1), terms)


def concretise(a: Array, x: Interval) -> Array:
    """Least ⟨a, x⟩ over a box: [N, K]."""
    return worst(a, x.lo, x.hi)
