r"""Second moments, ridge regression and backward elimination: what is removed is put back as well as can be.

With X [rows, in] and Y [rows, out], everything here needs only means and second moments, so it streams:

    G = E[(x − x̄)(x − x̄)ᵀ]          [in, in]
    C = E[(x − x̄)(y − ȳ)ᵀ]          [in, out]
    ridge:        W = W₀ + (G + λI)⁻¹ (C − G W₀)         towards the old weights W₀, not towards zero
    elimination:  removing the columns B costs  tr(W_Bᵀ ([G⁻¹]_BB)⁻¹ W_B)   once the others are refitted
                  (Hassibi & Stork 1993, optimal brain surgeon, for blocks).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import scipy.linalg

from edgepress.compressor.protocols import Array, Matrix

HUGE = 1e15
"""Values beyond are multiplied in double precision."""

MOST_OUTPUTS = 4096
"""Outputs up to which their covariance is kept: it takes outputs² × 8 bytes several times over, and its directions
outputs³ steps, a minute at this size. Of more outputs only the variances are."""


@dataclass
class Moments:
    """Running sums of X and Y, in float64.

    Attributes:
        rows: how many rows were seen.
        about_zero: whether means count as zero: nothing at the site, no bias, could take them up.
        yy: of Y with itself [out, out]; of over `MOST_OUTPUTS` outputs the diagonal [out].
    """

    inputs: int
    outputs: int
    rows: int = 0
    about_zero: bool = False
    x_sum: Matrix = field(init=False)
    y_sum: Matrix = field(init=False)
    xx: Matrix = field(init=False)
    xy: Matrix = field(init=False)
    yy: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.x_sum, self.y_sum = np.zeros(self.inputs), np.zeros(self.outputs)
        self.xx, self.xy = np.zeros((self.inputs, self.inputs)), np.zeros((self.inputs, self.outputs))
        self.yy = np.zeros((self.outputs,) * (2 if self.outputs <= MOST_OUTPUTS else 1))

    def update(self, x: Array, y: Array) -> None:
        """Add rows X [rows, in] and Y [rows, out]; those with a value that is no number tell nothing."""
        # Products of float16 would overflow, and those of huge float32.
        x, y = (a.astype(np.float32, copy=False) if a.dtype == np.float16 else a for a in (x, y))
        peaks = np.maximum(np.abs(x).max(1, initial=0), np.abs(y).max(1, initial=0))
        if not (finite := np.isfinite(peaks)).all():
            x, y, peaks = x[finite], y[finite], peaks[finite]
        if peaks.max(initial=0) > HUGE:
            x, y = x.astype(np.float64), y.astype(np.float64)
        self.rows += len(x)
        self.x_sum += x.sum(0, dtype=np.float64)
        self.y_sum += y.sum(0, dtype=np.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y if self.yy.ndim == 2 else np.einsum("ro,ro->o", y, y, dtype=np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return self.xx.nbytes + self.xy.nbytes + self.yy.nbytes + self.x_sum.nbytes + self.y_sum.nbytes

    def part(self, inputs: Array, outputs: Array) -> "Moments":
        """The moments of some inputs and outputs; each argument is a mask or indices."""
        xx, yy = self.xx[inputs][:, inputs], self.yy[outputs]
        yy = yy[:, outputs] if yy.ndim == 2 else yy
        some = Moments(len(xx), len(yy), self.rows, self.about_zero)
        some.x_sum, some.y_sum = self.x_sum[inputs], self.y_sum[outputs]
        some.xx, some.xy, some.yy = xx, self.xy[inputs][:, outputs], yy
        return some

    def of_inputs(self, *, about_zero: bool = False) -> "Moments":
        """The same of X alone, sharing its arrays."""
        some = Moments(0, 0, self.rows, about_zero)
        some.inputs, some.x_sum, some.xx = self.inputs, self.x_sum, self.xx
        some.xy = np.zeros((self.inputs, 0))
        return some

    def means(self) -> tuple[Matrix, Matrix]:
        """The means of X [in] and of Y [out] that a bias takes up."""
        n = np.inf if self.about_zero else max(self.rows, 1)
        return self.x_sum / n, self.y_sum / n

    def __add__(self, other: "Moments") -> "Moments":
        total = Moments(self.inputs, self.outputs, self.rows + other.rows, self.about_zero)
        for name in ("x_sum", "y_sum", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def centred(self) -> tuple[Matrix, Matrix, Matrix]:
        """G [in, in], C [in, out] and S [out, out], the covariances of X, of X with Y, and of Y.

        Of over `MOST_OUTPUTS` outputs S is its diagonal [out].
        """
        n, (mx, my) = max(self.rows, 1), self.means()
        outer = _about(self.yy, n, my, my) if self.yy.ndim == 2 else self.yy / n - my * my
        return self.covariance(), _about(self.xy, n, mx, my), outer

    def covariance(self) -> Matrix:
        """G [in, in] alone."""
        mx = self.means()[0]
        return _about(self.xx, max(self.rows, 1), mx, mx)

    def variance(self) -> float:
        """Variance of all outputs together, the trace of S."""
        _, my = self.means()
        return float((self._squares() / max(self.rows, 1) - my * my).sum())

    def _squares(self) -> Matrix:
        """Of each output [out], the diagonal of `yy`."""
        return self.yy.diagonal() if self.yy.ndim == 2 else self.yy

    def rounding(self) -> float:
        """A variance below which an input's is rounding: its mean square was summed in single precision."""
        return 1e-6 * float(np.trace(self.xx)) / max(self.rows, 1) / max(self.inputs, 1)

    def bias_for(self, weights: Matrix) -> Matrix:
        """The bias [out] that makes the mean of X W equal that of Y; W is [in, out]."""
        mx, my = self.means()
        bias: Matrix = my - mx @ weights
        return bias

    def error(self, weights: Matrix, bias: Matrix) -> float:
        """Mean of |x W + b − y|² over the rows."""
        n, (mx, my) = max(self.rows, 1), self.means()
        xx, xy = self.xx / n, self.xy / n
        quadratic = float(np.einsum("io,io->", weights, xx @ weights)) - 2 * float(
            np.einsum("io,io->", weights, xy)
        )
        linear = 2 * float((mx @ weights) @ bias) - 2 * float(my @ bias) + float(bias @ bias)
        return quadratic + linear + float(self._squares().sum()) / n


def _about(total: Matrix, rows: int, a: Matrix, b: Matrix) -> Matrix:
    """E[x yᵀ] − a bᵀ, some rows at a time: a second array of that size would be much."""
    moment: Matrix = total / rows
    for start in range(0, len(a), 256):
        moment[start : start + 256] -= np.outer(a[start : start + 256], b)
    return moment


STRENGTHS: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge strengths, in units of the mean square of an input, its mean not taken off."""


def refit(fit: Moments, held: Moments, old: Matrix) -> tuple[Matrix, Matrix]:
    """Ridge regression of Y on X towards `old`, its strength chosen on held-out moments.

    Args:
        fit: moments of most rows.
        held: moments of the others.
        old: W₀ [in, out].

    Returns:
        W [in, out] and b [out] fitted to all rows; `old` with a corrected bias where no strength beats it.
    """
    strength = best_strength(fit, held, old)
    total = fit + held
    if strength is None:
        return old, total.bias_for(old)
    gram, cross, _ = total.centred()
    weights = old + solve_ridge(gram, cross - gram @ old, strength)
    return weights, total.bias_for(weights)


def best_strength(fit: Moments, held: Moments, old: Matrix) -> float | None:
    """The ridge strength whose fit to one part errs least on the other; None where all err more than W₀.

    From the middle on: the error falls, then rises, for too little of it fits noise, too much nothing. It is told
    from single precision, in units in which that neither overflows nor vanishes; what is kept is fitted in double.

    Args:
        fit: moments of most rows.
        held: moments of the others.
        old: W₀ [in, out].
    """
    scale = float(np.trace(fit.xx)) / max(fit.rows, 1) / max(fit.inputs, 1) or 1.0
    gram, cross, _ = fit.centred()
    right = ((cross - gram @ old) / scale).astype(np.float32)
    gram = (gram / scale).astype(np.float32)

    grows = _growth(fit, held, old, scale)

    @cache
    def growth(place: int) -> float:
        return grows(solve_ridge(gram, right, STRENGTHS[place]))

    best = (len(STRENGTHS) - 1) // 2
    for step in (1, -1):
        while 0 <= best + step < len(STRENGTHS) and growth(best + step) < growth(best):
            best += step
    return STRENGTHS[best] * scale if growth(best) < 0 else None


def _growth(fit: Moments, held: Moments, old: Matrix, scale: float) -> Callable[[Array], float]:
    """By how much the error on held-out rows grows, in units of `scale`, where D [in, out] is added to the weights.

    The bias is the one that `fit` makes of them. Of a difference single precision leaves more than of two errors:

        |(x − x̄)(W₀ + D) − (y − ȳ)|² − |(x − x̄) W₀ − (y − ȳ)|² = 2 ⟨D, H W₀ − K⟩ + ⟨D, H D⟩

    with H and K the moments of the held-out rows about x̄ and ȳ, the means of the others.
    """
    n, (x_fit, y_fit), (x_held, y_held) = max(held.rows, 1), fit.means(), held.means()
    about: Matrix = _about(held.xx, n, x_fit, x_held)
    about -= np.outer(x_held - x_fit, x_fit)
    cross: Matrix = held.xy / n - np.outer(x_fit, y_held) - np.outer(x_held - x_fit, y_fit)
    with np.errstate(over="ignore"):
        slope = ((about @ old - cross) / scale).astype(np.float32)
        bend = (about / scale).astype(np.float32)

    def growth(added: Array) -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # what no float32 holds becomes NaN: no gain
            return 2 * float(np.vdot(added, slope)) + float(np.vdot(added, bend @ added))

    return growth


def solve_ridge(gram: Array, right: Array, strength: float) -> Array:
    """(G + strength · I)⁻¹ right, with G positive semidefinite up to rounding; the strength grows until that is gone.

    Where all inputs have a large mean, and products are summed in single precision, rounding comes to more than the
    least strengths.

    Raises:
        LinAlgError: G is not finite.
    """
    strength = max(strength, 0.0) + 1e-12
    while True:
        loaded = gram.copy()
        loaded[np.diag_indices_from(loaded)] += strength
        try:
            factor = scipy.linalg.cho_factor(loaded, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            if not np.isfinite(gram).all():
                raise
            strength *= 10
            continue
        solved: Array = scipy.linalg.cho_solve(factor, right, check_finite=False)
        return solved


@dataclass
class Consumer:
    """One reader of the units that elimination may remove.

    Attributes:
        gram: G [in, in] of its inputs.
        weights: W [in, out].
        unit_of: for each input column the unit it belongs to, −1 where it belongs to none.
        weight: factor of its damage in the sum (one over the variance of its output, times its sensitivity).
        ridge: added to the diagonal of G.
    """

    gram: Matrix
    weights: Matrix
    unit_of: Array
    weight: float
    ridge: float

    def __post_init__(self) -> None:
        self.inverse: Matrix = solve_ridge(self.gram, np.eye(len(self.gram)), self.ridge)
        self.current: Matrix = self.weights.astype(np.float64)
        self.columns: Array = np.asarray(self.unit_of)

    def damages(self, units: Array) -> Matrix:
        """Damage [units] of removing each unit alone, the other columns refitted."""
        order = np.argsort(self.columns, kind="stable")
        starts = np.searchsorted(self.columns[order], units)
        ends = np.searchsorted(self.columns[order], units, side="right")
        result = np.zeros(len(units))
        for size in np.unique(ends - starts):
            if not size:
                continue
            group = np.flatnonzero(ends - starts == size)
            index = order[starts[group][:, None] + np.arange(size)]  # (units, block)
            block = self.inverse[index[:, :, None], index[:, None, :]]  # (units, block, block)
            w = self.current[index]  # (units, block, out)
            result[group] = np.einsum("ubo,ubo->u", w, np.linalg.solve(block, w))
        return self.weight * np.maximum(result, 0.0)

    def remove(self, units: Array) -> None:
        """Remove these units' columns and refit the others."""
        gone = np.isin(self.columns, units)
        if not gone.any():
            return
        kept = ~gone
        across = self.inverse[np.ix_(kept, gone)]
        solved = np.linalg.solve(self.inverse[np.ix_(gone, gone)], np.hstack([across.T, self.current[gone]]))
        self.current = self.current[kept] - across @ solved[:, kept.sum() :]
        self.inverse = self.inverse[np.ix_(kept, kept)] - across @ solved[:, : kept.sum()]
        self.columns = self.columns[kept]


def eliminate(consumers: Sequence[Consumer], units: int, steps: int = 32) -> tuple[Array, Matrix]:
    """Backward elimination: the order in which units hurt least, and what it costs.

    At each step the unit with the least damage goes; where there are many units, a few at a time, so that the
    work stays O(steps · in²) rather than O(units · in²).

    Args:
        consumers: readers of the units; they are used up.
        units: how many there are.
        steps: one in so many of the units left goes at each step.

    Returns:
        order [units], first to go first, and damage [units + 1]: the sum so far after k removals.
    """
    alive = np.arange(units)
    order: list[int] = []
    damage = [0.0]
    while len(alive):
        each = sum((c.damages(alive) for c in consumers), np.zeros(len(alive)))
        batch = max(1, len(alive) // steps)
        chosen = np.argsort(each, kind="stable")[:batch]
        for pick in chosen:
            damage.append(damage[-1] + float(each[pick]))
        order += [int(alive[i]) for i in chosen]
        for consumer in consumers:
            consumer.remove(alive[chosen])
        alive = np.delete(alive, chosen)
    return np.asarray(order, dtype=np.int64), np.asarray(damage)
