"""Weights to few bits so that the outputs keep, not the weights: errors of one column are made good by the others.

With G = E[x xᵀ] of the inputs, rounding W to Q moves the outputs by E|(W − Q) x|² = tr((W − Q) G (W − Q)ᵀ). Columns
are rounded one after another, and what a column's rounding does to the outputs is taken up, as far as least squares
can, by those not rounded yet:

    e = (w_j − q_j) / U_jj,   w_k ← w_k − e U_jk  for k > j,   G⁻¹ = Uᵀ U  (U upper triangular)

(Frantar et al. 2023, GPTQ, algorithm 1; Hassibi & Stork 1993 for the update). What a weight may become is a grid with
a scale for each row, or any other set of `Levels`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from edgepress.compressor.numerics.coordinate import descend
from edgepress.compressor.numerics.factors import DAMPINGS, ENOUGH, Factors, ridge, row_errors
from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Mask
from edgepress.compressor.numerics.steps import RATIOS, Steps, best_steps
from edgepress.compressor.protocols import Matrix

Rounding = Literal["nearest", "gptq", "coordinate"]

Seen = Sequence[tuple[Moments, Moments]]
"""Moments of inputs, of most rows and of those held out: of all columns at once, or where they are too many of some
after others, as if these were uncorrelated."""

ROW = 0
"""Width of a block that is the whole row."""

ROWS = 1024
"""Rows of weights that are rounded together: all of them would take much memory, twenty times that of the weights."""

MOST_PARTS = 4
"""Of so many times `ROWS` the damping is told by some: it takes four times as long as what it is for."""

BLOCK = 32
"""Columns whose updates of the later ones are applied together: the same numbers by fewer, larger products."""


class Levels(Protocol):
    """The numbers that weights may become, row by row."""

    def part(self, rows: slice) -> Self:
        """The levels of some rows."""
        ...

    def codes(self, x: Matrix, column: int | None = None) -> Matrix:
        """Codes, as floats, of the levels nearest to X [..., rows] of one column, or to X [in, rows]."""
        ...

    def values(self, codes: Array, column: int | None = None) -> Matrix:
        """The levels that codes of one column [..., rows], or of all [in, rows], stand for."""
        ...


def round_to_outputs(
    weights: Array,
    seen: Seen,
    grid: Grid,
    floor: Array | float = 0.0,
    ratios: Sequence[float] = RATIOS,
    *,
    width: int | None = ROW,
    how: Rounding = "gptq",
) -> tuple[Array, Steps]:
    """Round a matrix to a grid with little error on outputs.

    The range of a row is the one at which rounding to nearest does least to outputs, inputs taken for uncorrelated.
    No row of W is worse than by rounding to nearest at the same range, over all rows of inputs together; where inputs
    were seen in parts, as far as these are uncorrelated with each other.

    Args:
        weights: W [out, in], finite.
        seen: moments of the inputs.
        grid: signed.
        floor: least scale, scalar or [out].
        ratios: shares of the least range that clips nothing to try.
        width: columns that share a scale, a divisor of `in`; a whole row where 0, all rows where None.
        how: errors made good by the columns behind (`gptq`), or from the better of that and nearest down to where no
            weight can move alone (`coordinate`; with few rows of inputs that would fit those alone, and it is `gptq`),
            or left where they are (`nearest`).

    Returns:
        Q [out, in] of `grid.dtype`, and the levels that they stand for.
    """
    columns = weights.shape[1] if width == ROW else width
    steps = best_steps(weights, grid, columns, power=powers(seen), floor=floor, ratios=ratios)
    result = np.empty(weights.shape, grid.dtype)
    for some, (fit, held) in zip(spans(seen), seen, strict=True):
        result[:, some] = _round_some(weights[:, some], fit, held, steps.span(some), how, grid.dtype)
    return result, steps


def _round_some(
    weights: Array, fit: Moments, held: Moments, steps: Steps, how: Rounding, dtype: npt.DTypeLike
) -> Array:
    """Codes [out, some] of columns whose inputs were seen together."""
    both = fit + held
    gram, least = both.covariance(), both.rounding()
    damping = None if how == "nearest" else best_damping(weights, fit, held, steps)
    if how != "coordinate" or damping is None or both.rows < ENOUGH * both.inputs:
        return round_among(weights, gram, least, damping, steps, dtype)
    loaded = damped(gram, damping, least)
    start = round_among(weights, gram, least, damping, steps, np.float64, judge=loaded)
    result = np.empty(weights.shape, dtype)
    for part in _parts(weights):
        result[part] = descend(weights[part].astype(np.float64), loaded, start[part], steps.part(part))
    return result


def spans(seen: Seen) -> list[slice]:
    """The columns that each part of the moments is of."""
    ends = np.cumsum([0, *(fit.inputs for fit, _ in seen)])
    return [slice(int(start), int(end)) for start, end in pairwise(ends)]


def powers(seen: Seen) -> Matrix:
    """`power` of all inputs [in]."""
    totals = [fit + held for fit, held in seen]
    return np.concatenate([power(both.covariance(), both.rounding()) for both in totals])


def damped(gram: Matrix, damping: float, least: float) -> Matrix:
    """G with as much on its diagonal as compensation counts with."""
    loaded: Matrix = gram.copy()
    loaded[np.diag_indices_from(loaded)] += ridge(gram, damping, least)
    return loaded


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
    seen, unseen, least = fit.covariance(), held.covariance(), (fit + held).rounding()
    factors = Factors.of(seen, [ridge(seen, damping, least) for damping in DAMPINGS])
    lost = np.zeros(1 + len(DAMPINGS))
    for part in _sample(_parts(weights)):
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
    judge: Matrix | None = None,
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
        judge: what "more" is told by, G where None.

    Returns:
        Codes [out, in].
    """
    judge = gram if judge is None else judge
    result = np.empty(weights.shape, dtype)
    chosen = None if damping is None else Factors.of(gram, [ridge(gram, damping, least)])
    for part in _parts(weights):
        rows, some = weights[part], levels.part(part)
        result[part] = nearest = nearest_codes(rows, some)
        if chosen is not None:
            codes = _compensated(rows, chosen, some, None if stays is None else stays[part])[0]
            better = row_errors(rows - levels_at(codes, some), judge) <= row_errors(
                rows - levels_at(nearest, some), judge
            )
            result[part][better] = codes[better]
    return result


def power(gram: Matrix, least: float) -> Matrix:
    """How much an error of each weight counts [in], inputs taken for uncorrelated; above zero."""
    each: Matrix = np.diag(gram) + ridge(gram, DAMPINGS[0], least)
    return each


def _parts(weights: Array) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, max(len(weights), 1), ROWS)]


def _sample(parts: list[slice]) -> list[slice]:
    """A few of many parts, evenly spaced: what helps some thousand rows helps the others."""
    return parts[:: -(-len(parts) // MOST_PARTS)]


def nearest_codes(weights: Array, levels: Levels) -> Matrix:
    """Codes [rows, in] of the nearest levels."""
    return levels.codes(weights.T.astype(np.float64)).T


def levels_at(codes: Array, levels: Levels) -> Matrix:
    """Levels [rows, in] of codes [rows, in]."""
    values: Matrix = levels.values(codes.T).T
    return values


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
            column, at = block[:, :, j], int(order[start + j])
            wanted = column if stays is None else column * stays[:, at]
            result[:, :, start + j] = codes = levels.codes(wanted, at)
            errors[:, :, j] = error = (column - levels.values(codes, at)) / across[:, j, j, None]
            block[:, :, j + 1 :] -= error[:, :, None] * across[:, j, None, j + 1 :]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    unsorted: Matrix = result[:, :, np.argsort(order)]
    return unsorted
