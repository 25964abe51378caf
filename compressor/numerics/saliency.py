r"""How much each unit of a layer matters, from sums that stream.

With x_u the activations of unit u [rows], W_u what a reader multiplies them with, and G the covariance of all:

    zeros      share of zeros among x_u: average percentage of zeros, APoZ (Hu et al. 2016, eq. 1)
    strength   mean of |x_u|; outliers lie below μ − 2σ of the layer's (Çallı 2017 §2.2.2)
    fisher     tr(W_uᵀ G_uu W_u) / tr Cov(y): the Fisher information of a gate m_u = 1 on the unit, where the reader's
               output is taken to be y ~ N(Σ m_u W_uᵀ x_u + b, tr Cov(y)). Removal is m_u = 0, and half of this is the
               second order Taylor term of what it costs, all else kept as it is (optimal brain damage, LeCun et al.
               1990; Fisher pruning, Theis et al. 2018). Elimination (`least_squares.eliminate`) is the same with all
               else refitted.
    qr         pivoted QR of A with columns x_u ‖W_u‖: a unit that the units before it span comes last
               (Businger & Golub 1965). Pivoted Cholesky of AᵀA takes the same pivots, and needs second moments only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from edgepress.compressor.protocols import Array, Matrix


@dataclass(frozen=True)
class Reader:
    """Weights that read units.

    Attributes:
        gram: G [in, in] of its inputs.
        weights: W [in, out].
        unit_of: for each input column the unit it belongs to, −1 where it belongs to none.
        weight: factor of what is lost in it: one over the variance of its output.
        ridge: a variance that every input has on top.
    """

    gram: Matrix
    weights: Matrix
    unit_of: Array
    weight: float
    ridge: float


def fisher(readers: Sequence[Reader], units: int) -> Matrix:
    """Fisher information [units] of a gate on each unit, over all readers."""
    total = np.zeros(units)
    for reader in readers:
        for unit in range(units):
            at = np.flatnonzero(reader.unit_of == unit)
            w = reader.weights[at]  # (block, out)
            total[unit] += reader.weight * float(np.einsum("io,ij,jo->", w, reader.gram[np.ix_(at, at)], w))
    return total


def weighted_gram(readers: Sequence[Reader], units: int) -> Matrix:
    """AᵀA [units, units] of output-weighted activations: a reader's taps, and readers, stand below one another in A."""
    total = np.zeros((units, units))
    for reader in readers:
        order = np.argsort(reader.unit_of, kind="stable")
        order = order[reader.unit_of[order] >= 0]
        owner = reader.unit_of[order]
        turn = np.arange(len(owner)) - np.searchsorted(owner, owner)  # first column of its unit, second …
        norms = np.linalg.norm(reader.weights, axis=1)
        for tap in range(int(turn.max(initial=-1)) + 1):
            at, who = order[turn == tap], owner[turn == tap]
            part = reader.gram[np.ix_(at, at)] * np.outer(norms[at], norms[at])
            total[np.ix_(who, who)] += reader.weight * part
    return total


def pivots(gram: Matrix) -> tuple[Array, Matrix]:
    """The pivots of the QR of A, from AᵀA.

    Args:
        gram: AᵀA [n, n].

    Returns:
        Order [n], what matters most first; and R_jj² [n], the share of each that those before it do not span.
    """
    factor, order, rank, _ = scipy.linalg.lapack.dpstrf(gram, lower=1)
    left = np.diag(factor) ** 2
    left[rank:] = 0.0
    return order.astype(np.int64) - 1, left


@dataclass
class Activity:
    """Running counts of what units do.

    Attributes:
        units: how many there are.
        zeros: [units] values that are zero.
        values: [units] values seen.
        total: [units] sum of |x|.
    """

    units: int
    zeros: Matrix = field(init=False)
    values: Matrix = field(init=False)
    total: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.zeros, self.values, self.total = (np.zeros(self.units) for _ in range(3))

    def update(self, x: Array, unit_of: Array) -> None:
        """Add activations.

        Args:
            x: [positions, …], position first.
            unit_of: [positions], the unit at each, −1 where it is none of these.
        """
        known = unit_of >= 0
        if not known.any():
            return
        flat, owner = x[known].reshape(int(known.sum()), -1), unit_of[known]
        zeros = flat.shape[1] - np.count_nonzero(flat, axis=1)
        self.zeros += np.bincount(owner, zeros, self.units)
        self.values += np.bincount(owner, minlength=self.units) * flat.shape[1]
        self.total += np.bincount(owner, np.abs(flat).sum(1, dtype=np.float64), self.units)

    def zero_rate(self) -> Matrix:
        """APoZ [units]; 1 for a unit that was not seen: nobody reads it."""
        return np.divide(self.zeros, self.values, out=np.ones(self.units), where=self.values > 0)

    def strength(self) -> Matrix:
        """Mean |x| [units]; 0 for a unit that was not seen, infinite where activations are no numbers."""
        mean = np.divide(self.total, self.values, out=np.zeros(self.units), where=self.values > 0)
        return np.where(np.isfinite(mean), mean, np.inf)


def outliers(strength: Matrix, sigmas: float) -> Array:
    """Which units [units] lie below μ − sigmas · σ of the layer; none where no two differ."""
    finite = strength[np.isfinite(strength)]
    if not len(finite):
        return np.zeros(len(strength), bool)
    below: Array = strength < finite.mean() - sigmas * finite.std()
    return below


def expressed(moment: Matrix, gone: Array, ridge: float) -> Matrix:
    """A [gone, kept] of least E|x_gone − A x_kept|², from E[x xᵀ]: what the units that stay tell of those that go.

    Args:
        moment: [n, n].
        gone: mask [n].
        ridge: added to the diagonal, relative to its mean.
    """
    kept = moment[np.ix_(~gone, ~gone)].copy()
    kept[np.diag_indices_from(kept)] += ridge * float(np.trace(moment)) / max(len(moment), 1) + 1e-12
    solved: Matrix = scipy.linalg.solve(kept, moment[np.ix_(~gone, gone)], assume_a="pos").T
    return solved


def rounded_up(keep: int, full: int, multiple: int) -> int:
    """A width of at least `keep` that kernels like: a multiple, or where that is all there is, of half or a quarter.

    Args:
        keep: units that are to stay.
        full: units there are; the answer is at most that.
        multiple: of which widths fill a kernel's lanes.
    """
    for each in (multiple, multiple // 2, multiple // 4):
        if each >= 1 and (width := max(-(-keep // each) * each, each)) < full:
            return width
    return full
