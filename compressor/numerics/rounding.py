"""Weights to few bits so that the outputs keep, not the weights: errors of one column are made good by the others.

With G = E[x xᵀ] of the inputs, rounding W to Q moves the outputs by E|(W − Q) x|² = tr((W − Q) G (W − Q)ᵀ). Columns
are rounded one after another, and what a column's rounding does to the outputs is taken up, as far as least squares
can, by those not rounded yet:

    e = (w_j − q_j) / U_jj,   w_k ← w_k − e U_jk  for k > j,   G⁻¹ = Uᵀ U  (U upper triangular)

(Frantar et al. 2023, GPTQ, algorithm 1; Hassibi & Stork 1993 for the update). What a weight may become is a grid with
a scale for each row, or any other set of `Levels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from edgepress.compressor.numerics.factors import DAMPINGS, ENOUGH, Factors, ridge, row_errors
from edgepress.compressor.numerics.grids import Array, Floats, Grid, scale_of
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Mask
from edgepress.compressor.protocols import Matrix

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Shares of a row's largest magnitude tried as its range: the fewer the bits, the more it pays to clip."""

ROWS = 1024
"""Rows of weights that are rounded together: all of them would take much memory, twenty times that of the weights."""

BLOCK = 32
"""Columns whose updates of the later ones are applied together: the same numbers by fewer, larger products."""


class Levels(Protocol):
    """The numbers that weights may become, row by row."""

    def part(self, rows: slice) -> Self:
        """The levels of some rows."""
        ...

    def column(self, index: int) -> Self:
        """The levels of one column, where columns differ."""
        ...

    def codes(self, x: Matrix) -> Matrix:
        """Codes, as floats, of the levels nearest to X [..., rows]."""
        ...

    def values(self, codes: Array) -> Matrix:
        """The levels that codes [..., rows] stand for."""
        ...


@dataclass(frozen=True)
class Steps:
    """The levels q · scale of a symmetric grid, q being the code.

    Attributes:
        scales: above zero [rows], float64.
        grid: signed, with zero point 0.
    """

    scales: Matrix
    grid: Grid

    def part(self, rows: slice) -> "Steps":
        """The levels of some rows."""
        return Steps(self.scales[rows], self.grid)

    def column(self, index: int) -> "Steps":
        """The same for all."""
        return self

    def codes(self, x: Matrix) -> Matrix:
        """Integers, as floats, nearest to X [..., rows] / scale."""
        q: Matrix = np.rint(x / self.scales)
        q.clip(self.grid.qmin, self.grid.qmax, out=q)
        return q

    def values(self, codes: Array) -> Matrix:
        """Codes [..., rows] times scales."""
        product: Matrix = codes * self.scales
        return product


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
    No row of W is worse than by rounding to nearest at the same range, over all rows of inputs together.

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
    each, floors = power(gram, least), np.broadcast_to(floor, len(weights))
    scales = np.concatenate([_ranges(weights[p], each, grid, floors[p], ratios) for p in _parts(weights)])
    steps = Steps(scales.astype(np.float64), grid)
    damping = best_damping(weights, fit, held, steps)
    return round_among(weights, gram, least, damping, steps, grid.dtype), scales


def best_damping(
    weights: Array, fit: Moments, held: Moments, levels: Levels, stays: Mask | None = None
) -> float | None:
    """How much to damp G; None where errors are best left where they are.

    With few rows of inputs errors would vanish into directions that none of them has, and come back with the next:
    so the damping is the one that does best on held-out rows, and where none helps, nearest it is.

    Args:
        weights: W [out, in], finite.
        fit: moments of most rows of inputs.
        held: moments of the others.
        levels: what the rows of W may become.
        stays: see `round_among`.
    """
    if fit.rows >= ENOUGH * fit.inputs:
        return DAMPINGS[0]
    seen, unseen, least = fit.centred()[0], held.centred()[0], (fit + held).rounding()
    factors = Factors.of(seen, [ridge(seen, damping, least) for damping in DAMPINGS])
    lost = np.zeros(1 + len(DAMPINGS))
    for part in _parts(weights):
        rows, some = weights[part], levels.part(part)
        live = None if stays is None else stays[part]
        tries = [nearest_codes(rows, some), *_compensated(rows, factors, some, live)]
        lost += [row_errors(rows - levels_at(codes, some), unseen).sum() for codes in tries]
    best = int(np.argmin(lost))
    return DAMPINGS[best - 1] if best else None


def round_among(
    weights: Array,
    gram: Matrix,
    least: float,
    damping: float | None,
    levels: Levels,
    dtype: npt.DTypeLike,
    stays: Mask | None = None,
) -> Array:
    """Round a matrix to levels with little error on outputs; no row does more to them than by its nearest levels.

    Args:
        weights: W [out, in], finite.
        gram: G [in, in] of the inputs.
        least: variances below are rounding of G.
        damping: as `best_damping` gives it; None rounds to nearest.
        levels: what the rows of W may become.
        dtype: of the answer.
        stays: where it is False, W is zero and becomes the level nearest to that, whatever it was to make good
            [out, in]; None where errors may be taken up by all.

    Returns:
        Codes [out, in].
    """
    result = np.empty(weights.shape, dtype)
    chosen = None if damping is None else Factors.of(gram, [ridge(gram, damping, least)])
    for part in _parts(weights):
        rows, some = weights[part], levels.part(part)
        result[part] = nearest = nearest_codes(rows, some)
        if chosen is not None:
            codes = _compensated(rows, chosen, some, None if stays is None else stays[part])[0]
            better = row_errors(rows - levels_at(codes, some), gram) <= row_errors(
                rows - levels_at(nearest, some), gram
            )
            result[part][better] = codes[better]
    return result


def power(gram: Matrix, least: float) -> Matrix:
    """How much an error of each weight counts [in], inputs taken for uncorrelated; above zero."""
    each: Matrix = np.diag(gram) + ridge(gram, DAMPINGS[0], least)
    return each


def _parts(weights: Array) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, max(len(weights), 1), ROWS)]


def nearest_codes(weights: Array, levels: Levels) -> Matrix:
    """Codes [rows, in] of the nearest levels."""
    return levels.codes(weights.T.astype(np.float64)).T


def levels_at(codes: Array, levels: Levels) -> Matrix:
    """Levels [rows, in] of codes [rows, in]."""
    values: Matrix = levels.values(codes.T).T
    return values


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


def _compensated(weights: Matrix, factors: Factors, levels: Levels, stays: Mask | None = None) -> Matrix:
    """Round column by column, those that carry most first, each error taken up by the columns after it.

    Args:
        weights: W [rows, in].
        factors: for each damping; all at once, for the loop costs more than what is in it.
        levels: of these rows.
        stays: see `round_among`.

    Returns:
        Codes as floats [dampings, rows, in].
    """
    upper, order = factors.upper, factors.order
    left = np.repeat(weights[None, :, order].astype(np.float64), len(upper), axis=0)
    result = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        block, across = left[:, :, start:end].copy(), upper[:, start:end, start:end]
        errors = np.empty_like(block)
        for j in range(end - start):
            column, some = block[:, :, j], levels.column(int(order[start + j]))
            wanted = column if stays is None else column * stays[:, order[start + j]]
            result[:, :, start + j] = codes = some.codes(wanted)
            errors[:, :, j] = error = (column - some.values(codes)) / across[:, j, j, None]
            block[:, :, j + 1 :] -= error[:, :, None] * across[:, j, None, j + 1 :]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    unsorted: Matrix = result[:, :, np.argsort(order)]
    return unsorted
