"""Weights to few bits so that the outputs keep, not the weights: errors of one column are made good by the others.

With G = E[x xᵀ] of the inputs, rounding W to Q moves the outputs by E|(W − Q) x|² = tr((W − Q) G (W − Q)ᵀ). Columns
are rounded one after another, and what a column's rounding does to the outputs is taken up, as far as least squares
can, by those not rounded yet:

    e = (w_j − q_j) / U_jj,   w_k ← w_k − e U_jk  for k > j,   G⁻¹ = Uᵀ U  (U upper triangular)

(Frantar et al. 2023, GPTQ, algorithm 1; Hassibi & Stork 1993 for the update).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from edgepress.compressor.numerics.grids import Array, Floats, Grid, scale_of
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.protocols import Matrix

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Shares of a row's largest magnitude tried as its range: the fewer the bits, the more it pays to clip."""

DAMPINGS = (0.01, 0.1, 1.0)
"""Added to the diagonal of G, as shares of its mean, the first as in Frantar, §3.3: more of it makes less good."""

ENOUGH = 4
"""With so many rows for each input the first damping will do: what it makes good comes out alike on other rows."""

ROWS = 1024
"""Rows of weights that are rounded together: all of them would take much memory, twenty times that of the weights."""

BLOCK = 32
"""Columns whose updates of the later ones are applied together: the same numbers by fewer, larger products."""


def round_to_outputs(
    weights: Array,
    fit: Moments,
    held: Moments,
    grid: Grid,
    floor: Array | float = 0.0,
    ratios: Sequence[float] = RATIOS,
) -> tuple[Array, Floats]:
    """Round a matrix to a symmetric grid with little error on outputs, one scale per row.

    The range of a row is the one at which rounding to nearest does least to outputs, inputs taken for uncorrelated.
    With few rows of inputs errors would vanish into directions that none of them has, and come back with the next:
    so the damping is the one that does best on held-out rows, and where none helps, nearest it is. No row of W is
    worse than by rounding to nearest at the same range, over all rows of inputs together.

    Args:
        weights: W [out, in], finite.
        fit: moments of most rows of inputs.
        held: moments of the others.
        grid: signed, with zero point 0.
        floor: least scale, scalar or [out].
        ratios: shares of a row's largest magnitude to try as its range.

    Returns:
        Q [out, in] of `grid.dtype`, and scales [out] above zero.
    """
    both = fit + held
    gram, least = both.centred()[0], both.rounding()
    power, floors = np.diag(gram) + _ridge(gram, DAMPINGS[0], least), np.broadcast_to(floor, len(weights))
    parts = [slice(start, start + ROWS) for start in range(0, max(len(weights), 1), ROWS)]
    scales = np.concatenate([_ranges(weights[p], power, grid, floors[p], ratios) for p in parts])

    def nearest(part: slice) -> Matrix:
        each = scales[part, None].astype(np.float64)
        rounded: Matrix = np.clip(np.rint(weights[part] / each), grid.qmin, grid.qmax)
        return rounded

    best = 1
    if fit.rows < ENOUGH * fit.inputs:
        unseen, factors = held.centred()[0], _Factors.of(fit.centred()[0], DAMPINGS, least)
        lost = np.zeros(1 + len(DAMPINGS))
        for p in parts:
            tries = [nearest(p), *_compensated(weights[p], factors, scales[p], grid)]
            lost += [row_errors(weights[p] - q * scales[p, None], unseen).sum() for q in tries]
        best = int(np.argmin(lost))
    result = np.empty(weights.shape, grid.dtype)
    chosen = _Factors.of(gram, DAMPINGS[best - 1 : best], least) if best else None
    for p in parts:
        result[p] = rounded = nearest(p)
        if chosen is not None:
            q = _compensated(weights[p], chosen, scales[p], grid)[0]
            better = row_errors(weights[p] - q * scales[p, None], gram) <= row_errors(
                weights[p] - rounded * scales[p, None], gram
            )
            result[p][better] = q[better]
    return result, scales


def row_errors(change: Matrix, gram: Matrix) -> Matrix:
    """How far outputs move, mean square [out], when weights change by D [out, in]: the diagonal of D G Dᵀ."""
    errors: Matrix = np.einsum("oi,oi->o", change @ gram, change)
    return errors


def _ranges(
    weights: Matrix, power: Matrix, grid: Grid, floor: Array | float, ratios: Sequence[float]
) -> Floats:
    """The scale [out] of each row with the least rounding error, columns weighted by the power [in] of their inputs."""
    peaks = np.abs(weights).max(axis=1, initial=0.0)
    best, least = np.zeros(len(weights), np.float32), np.full(len(weights), np.inf)
    for ratio in ratios:
        scale = scale_of(np.asarray(peaks * ratio, np.float32), grid, floor)
        q = np.clip(np.rint(weights / scale[:, None]), grid.qmin, grid.qmax)
        error = np.square(weights - q * scale[:, None]) @ power
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _ridge(gram: Matrix, damping: float, least: float) -> float:
    """A share of the mean of G's diagonal, and all that could be rounding of its own."""
    return damping * max(float(np.trace(gram)), 0.0) / max(len(gram), 1) + len(gram) * least + 1e-30


@dataclass(frozen=True)
class _Factors:
    """How errors of a column are made good by the columns after it.

    Attributes:
        order: columns, those that carry most first [in].
        upper: U for each damping [dampings, in, in], in that order.
    """

    order: Array
    upper: Matrix

    @staticmethod
    def of(gram: Matrix, dampings: Sequence[float], least: float) -> "_Factors":
        """The factors of G [in, in]; variances below `least` are its rounding."""
        order = np.argsort(-np.diag(gram), kind="stable")
        turned = gram[np.ix_(order[::-1], order[::-1])]
        return _Factors(order, np.stack([_inverse_factor(turned, _ridge(gram, d, least)) for d in dampings]))


def _compensated(weights: Array, factors: _Factors, scales: Floats, grid: Grid) -> Matrix:
    """Round column by column, those that carry most first, each error taken up by the columns after it.

    Args:
        weights: W [rows, in].
        factors: for each damping; all at once, for the loop costs more than what is in it.
        scales: [rows].
        grid: the format.

    Returns:
        Integers as floats [dampings, rows, in].
    """
    upper, order, each = factors.upper, factors.order, scales.astype(np.float64)
    left = np.repeat(weights[None, :, order].astype(np.float64), len(upper), axis=0)
    result = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        block, across = left[:, :, start:end].copy(), upper[:, start:end, start:end]
        errors = np.empty_like(block)
        for j in range(end - start):
            q = np.rint(block[:, :, j] / each)
            q.clip(grid.qmin, grid.qmax, out=q)
            result[:, :, start + j] = q
            errors[:, :, j] = error = (block[:, :, j] - q * each) / across[:, j, j, None]
            block[:, :, j + 1 :] -= error[:, :, None] * across[:, j, None, j + 1 :]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    unsorted: Matrix = result[:, :, np.argsort(order)]
    return unsorted


def _inverse_factor(turned: Matrix, ridge: float) -> Matrix:
    """U, upper triangular, with (G + ridge · I)⁻¹ = Uᵀ U; the ridge grows until G is positive.

    Turned end for end, G = R Rᵀ is a Cholesky factorisation, and U = R⁻¹.

    Args:
        turned: G, its rows and columns the other way round.
        ridge: above zero.
    """
    while True:
        loaded = turned.copy()
        loaded[np.diag_indices_from(loaded)] += ridge
        lower, failed = scipy.linalg.lapack.dpotrf(loaded, lower=1, clean=1, overwrite_a=1)
        if not failed:
            break
        ridge *= 10
    upper, _ = scipy.linalg.lapack.dtrtri(np.asfortranarray(lower[::-1, ::-1]), lower=0)
    result: Matrix = np.ascontiguousarray(upper)
    return result
