"""Thresholds of activations, by how much of their energy lies below.

    y = x if x > ε else 0          (Im & Dasari, §8, eq. 7)
    lost(ε) = Σ x² over x ≤ ε      as a share of Σ x²

The energy is gathered in bins of fixed place, sixteen an octave: so they add up batch by batch, in any order, and take
the same memory whatever comes. A threshold lies on the edge of a bin: at most 6 % under the largest one possible.
"""

from dataclasses import dataclass, field

import numpy as np

from edgepress.compressor.protocols import Array, Matrix

FIRST = -40
"""Values below 2**FIRST, negative ones among them, share the first bin: they lie below every threshold."""

OCTAVES, STEPS = 64, 16
"""The bins run up to 2**(FIRST + OCTAVES); what is larger shares the last one, and lies above every threshold."""

BINS = OCTAVES * STEPS + 2

CHUNK = 1 << 18
"""Values that are sorted into bins at a time."""


@dataclass
class Energies:
    """Running energy of values by their size, one row a channel.

    Attributes:
        channels: rows; 1 for all values together.
        finite: whether every value was a number.
        sums: [channels, BINS].
    """

    channels: int
    finite: bool = True
    sums: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.channels, BINS))

    def update(self, x: Array) -> None:
        """Add values [channels, count], of any float type."""
        step = max(1, CHUNK // self.channels)
        rows = np.arange(self.channels)[:, None] * BINS
        for start in range(0, x.shape[1], step):
            part = x[:, start : start + step].astype(np.float64)
            if not np.isfinite(part).all():
                self.finite = False
                return
            found = np.bincount((rows + bins_of(part)).reshape(-1), part.reshape(-1) ** 2, self.sums.size)
            self.sums += found.reshape(self.sums.shape)

    def thresholds(self, share: float) -> Matrix:
        """The largest edges [channels] such that what lies below has at most this share of the energy.

        What lies on an edge does not lie below it. 0 where there is no energy, or nothing can go; −1 where even
        ε = 0 takes more than that, negative values being among what it takes.

        Args:
            share: in (0, 1).
        """
        total = self.sums.sum(axis=1)
        below = np.cumsum(self.sums, axis=1)[:, :-1]  # of the bins up to the edge where the next begins
        fits = (below <= share * total[:, None]).sum(
            axis=1
        )  # it never falls: the first ones are those that fit
        edges = np.where(fits > 1, EDGES[np.maximum(fits - 1, 0)], 0.0)
        edges[fits == 0] = -1.0
        edges[total == 0] = 0.0
        return np.asarray(edges)


def bins_of(x: Matrix) -> Array:
    """The bin of each value; what is zero or less is in the first."""
    mantissa, exponent = np.frexp(x)
    bins = 1 + (exponent - 1 - FIRST) * STEPS + np.floor((2 * mantissa - 1) * STEPS).astype(np.int64)
    return np.where(x < EDGES[0], 0, np.minimum(bins, BINS - 1))


def _edges() -> Matrix:
    """Where the bins 1, 2, … begin."""
    octave, step = np.divmod(np.arange(BINS - 1), STEPS)
    return np.asarray(np.ldexp(1.0 + step / STEPS, octave + FIRST))


EDGES = _edges()


def just_below(edges: Matrix, dtype: "np.dtype[np.floating]") -> Array:
    """The largest numbers of a float type below some edges, at least 0: what lies on an edge stays."""
    info = np.finfo(dtype)
    rounded = np.clip(edges, 0.0, float(info.max)).astype(dtype)
    lower = np.nextafter(rounded, dtype.type(-np.inf), dtype=dtype)
    return np.asarray(np.maximum(np.where(rounded < edges, rounded, lower), dtype.type(0)))


def swallowed(threshold: float, scale: float) -> bool:
    """Whether a quantizer with this step takes all that lies below the threshold to zero by itself.

    Args:
        threshold: ε ≥ 0, in the unit of the values.
        scale: the step; x becomes round(x / scale), halves to the even side.
    """
    return threshold <= scale / 2
