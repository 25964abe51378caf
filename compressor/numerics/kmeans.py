r"""Weighted k-means of numbers: centres c with the least error, each value having the nearest one.

    error = Σ_i a_i (v_i − c_{k(i)})²,   a_i what an error of v_i counts

Clusters of numbers are intervals, so sums over those before each number are all that is needed: few numbers are
clustered exactly, by dynamic programming (Wang & Song 2011), others by Lloyd's iterations (Lloyd 1982) from several
starts, at the cost of a search for k bounds each.
"""

from dataclasses import dataclass

import numpy as np

from edgepress.compressor.numerics.grids import Array
from edgepress.compressor.protocols import Matrix

EXACT = 512
"""So many different weights are clustered exactly: that takes their square times the values in steps."""

SWEEPS = 60
"""Most iterations of Lloyd's."""

SETTLED = 1e-4
"""An iteration that lowers the error by a smaller share is the last."""

BINS = 2048
"""Of the histogram that starts are drawn from."""

LUMPS = 16
"""Lumps of weights for each value, of which one start is the best."""


def equal_bins(low: float, high: float, count: int) -> Matrix:
    """Centres of equal bins [count]."""
    centres: Matrix = low + (np.arange(count) + 0.5) / count * (high - low)
    return centres


def kmeans(values: Array, importance: Matrix, count: int) -> Matrix:
    """The centres with the least squared error, or nearly; never more than that of equal bins.

    Args:
        values: [n], finite.
        importance: what an error of each counts [n], above zero.
        count: of centres.

    Returns:
        Centres [count], rising; where there are fewer different values these, the last repeated.
    """
    distinct, which = np.unique(values.astype(np.float64), return_inverse=True)
    counts: Matrix = np.bincount(which.reshape(-1), importance).astype(np.float64)
    if len(distinct) <= count:
        return np.pad(distinct, (0, count - len(distinct)), mode="edge")
    middle = float(distinct @ counts / counts.sum())
    data = _Sorted.of(distinct - middle, counts)
    if len(distinct) <= EXACT:
        return _exact(data, count) + middle
    return _lloyd(data, _starts(data, count)) + middle


@dataclass(frozen=True)
class _Sorted:
    """Different values, rising, and sums over those before each.

    Attributes:
        values: v [n].
        sums: of a, a v and a v², a being what a value counts [3, n + 1].
    """

    values: Matrix
    sums: Matrix

    @staticmethod
    def of(values: Matrix, counts: Matrix) -> "_Sorted":
        """From values [n], rising, and what each counts [n]."""
        sums = np.zeros((3, len(values) + 1))
        for degree, total in enumerate(sums):
            np.cumsum(counts * values**degree, out=total[1:])
        return _Sorted(values, sums)

    def clusters(self, edges: Array) -> tuple[Matrix, Matrix]:
        """Means, and squared errors around them, of the values between edges [..., k + 1]; both [..., k]."""
        weight, first, second = np.diff(self.sums[:, edges], axis=-1)
        mean = np.divide(first, weight, out=np.zeros_like(first), where=weight > 0)
        return mean, np.maximum(second - mean * first, 0.0)


def _exact(data: _Sorted, count: int) -> Matrix:
    """The best codebook [count], by dynamic programming: of the best k clusters all but the last are the best k − 1."""
    weight, first, second = (total[None, :] - total[:, None] for total in data.sums)
    ahead = np.triu(np.ones_like(weight, bool), 1)
    mean = np.divide(first, weight, out=np.zeros_like(first), where=ahead)
    cost = np.where(ahead, np.maximum(second - mean * first, 0.0), np.inf)  # of a cluster [start, end]
    best, starts = cost[0], []
    for _ in range(count - 1):
        total = best[:, None] + cost
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    edges = [data.sums.shape[1] - 1]
    for start in reversed(starts):
        edges.append(int(start[edges[-1]]))
    return data.clusters(np.array([0, *edges[::-1]]))[0]


def _starts(data: _Sorted, count: int) -> Matrix:
    """Codebooks to start from [starts, count]: equal bins, a grid from end to end, and three by density.

    Of these one has as many weights in each bin, one is the best where the density is smooth, values as dense as its
    cube root (Panter & Dite 1951), and one is the best for weights that are lumped together by that measure.
    """
    values, mass = data.values, data.sums[0]
    low, high = float(values[0]), float(values[-1])
    shares = (np.arange(count) + 0.5) / count
    edges = np.linspace(low, high, BINS + 1)
    density = np.cbrt(np.diff(mass[[0, *np.searchsorted(values, edges[1:-1], side="right"), len(values)]]))
    measure = np.concatenate([[0.0], np.cumsum(density)])
    starts = [
        equal_bins(low, high, count),
        np.linspace(low, high, count),
        values[np.minimum(np.searchsorted(mass[1:], shares * mass[-1]), len(values) - 1)],
        np.interp(shares * measure[-1], measure, edges),
    ]
    lumps = min(EXACT, max(8, LUMPS * count))
    if lumps > 4 * count:
        cuts = np.interp(np.arange(1, lumps) / lumps * measure[-1], measure, edges)
        at = np.unique([0, *np.searchsorted(values, cuts, side="right"), len(values)])
        if len(at) > count:
            starts.append(_exact(_Sorted(values, data.sums[:, at]), count))
    return np.stack(starts)


def _lloyd(data: _Sorted, centres: Matrix) -> Matrix:
    """The best codebook [count] that Lloyd's iterations come to from some starts [starts, count], rising.

    A value that no weight is nearest to goes where it helps: to the far end of the cluster with the largest error.
    """
    last = np.full(len(centres), np.inf)
    ends = np.broadcast_to([[0], [len(data.values)]], (2, len(centres)))
    for _ in range(SWEEPS):
        middles = centres[:, :-1] / 2 + centres[:, 1:] / 2
        inner = np.searchsorted(data.values, middles, side="right")
        edges = np.concatenate([ends[0][:, None], inner, ends[1][:, None]], axis=1)
        means, errors = data.clusters(edges)
        empty = edges[:, 1:] == edges[:, :-1]
        centres = np.where(empty, centres, means)
        for start in np.flatnonzero(empty.any(axis=1)):
            worst = np.argsort(-errors[start], kind="stable")[: empty[start].sum()]
            first, final = data.values[edges[start, worst]], data.values[edges[start, worst + 1] - 1]
            far = np.where(means[start, worst] - first > final - means[start, worst], first, final)
            centres[start, empty[start]] = far
        centres.sort(axis=1)
        error = errors.sum(axis=1)
        if not empty.any() and (last - error <= SETTLED * error).all():
            break
        last = error
    best: Matrix = centres[int(np.argmin(error))]
    return best
