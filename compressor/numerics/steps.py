"""Evenly spaced levels for weights: which scales and zero points, for a matrix, its rows, or blocks in them.

A weight w at row o and column i is stored as an integer q of a grid,

    w ≈ (q − z) · s        s and z of the matrix, of row o, or of the block of row o that column i lies in

with z = 0 on a symmetric grid. Of the ranges tried, each a share of the least one that clips nothing, that one is taken
with the least squared error, columns weighted by the power of their inputs: the fewer the bits, the more it pays to
clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepress.compressor.numerics.grids import SMALLEST_SCALE, Array, Grid, scale_of
from edgepress.compressor.protocols import Matrix

Granularity = Literal["tensor", "channel", "block"]
"""What shares a scale: all weights, those of an output, or so many inputs of an output side by side."""

ROWS = 4096
"""Rows that are looked at together."""

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Shares of the least range that clips nothing."""


@dataclass(frozen=True)
class Steps:
    """The levels (q − zero) · scale of a grid, q being the code; they are `rounding.Levels`.

    Attributes:
        scales: above zero [rows, blocks], float64; blocks are as wide as each other.
        zeros: integers of the grid [rows, blocks]; all zero on a symmetric grid.
        grid: signed.
        block: columns that share a scale; all of them where there is one block.
    """

    scales: Matrix
    zeros: Matrix
    grid: Grid
    block: int

    def part(self, rows: slice) -> "Steps":
        """The levels of some rows."""
        return Steps(self.scales[rows], self.zeros[rows], self.grid, self.block)

    def span(self, columns: slice) -> "Steps":
        """The levels of some columns."""
        if self.scales.shape[1] == 1:
            return self
        start, end = columns.start, columns.stop
        if start % self.block == 0 and (end % self.block == 0 or end == self.scales.shape[1] * self.block):
            some = slice(start // self.block, -(-end // self.block))
            return Steps(self.scales[:, some], self.zeros[:, some], self.grid, self.block)
        each = np.arange(start, end) // self.block
        return Steps(self.scales[:, each], self.zeros[:, each], self.grid, 1)

    def at(self, column: int | None = None) -> tuple[Matrix, Matrix]:
        """Scales and zero points of a column [rows], or of all [in or 1, rows]."""
        if self.scales.shape[1] == 1:
            return self.scales[:, 0], self.zeros[:, 0]
        if column is not None:
            return self.scales[:, column // self.block], self.zeros[:, column // self.block]
        return np.repeat(self.scales.T, self.block, axis=0), np.repeat(self.zeros.T, self.block, axis=0)

    def codes(self, x: Matrix, column: int | None = None) -> Matrix:
        """Integers, as floats, nearest to X [..., rows] of one column, or to X [in, rows]."""
        scales, zeros = self.at(column)
        q: Matrix = np.rint(x / scales)
        q += zeros
        q.clip(self.grid.qmin, self.grid.qmax, out=q)
        return q

    def values(self, codes: Array, column: int | None = None) -> Matrix:
        """The levels that codes of one column [..., rows], or of all [in, rows], stand for."""
        scales, zeros = self.at(column)
        product: Matrix = (codes - zeros) * scales
        return product


def block_width(granularity: Granularity, block: int, inputs: int) -> int | None:
    """Columns that share a scale within a row; None where all rows do. What a block does not divide has none."""
    if granularity == "tensor":
        return None
    return block if granularity == "block" and 0 < block < inputs and inputs % block == 0 else inputs


def best_steps(
    weights: Array,
    grid: Grid,
    width: int | None,
    *,
    power: Array | None = None,
    floor: Array | float = 0.0,
    ratios: Sequence[float] = RATIOS,
) -> Steps:
    """The ranges that round a matrix to nearest with the least error.

    Args:
        weights: W [out, in], finite.
        grid: signed; with zero points where it is not symmetric.
        width: columns that share a scale, a divisor of `in`; None for one scale in all.
        power: how much an error of each column counts [in]; alike where None.
        floor: least scale, scalar or [out].
        ratios: shares of the least range that clips nothing; on a tie the earlier one stays.
    """
    if width is not None and len(weights) > ROWS:
        # All at once would take many times the memory of the weights.
        floors = np.broadcast_to(floor, len(weights)) if np.ndim(floor) else floor
        found = [
            best_steps(
                weights[part], grid, width, power=power, ratios=ratios,
                floor=floors[part] if isinstance(floors, np.ndarray) else floors,
            )
            for part in (slice(start, start + ROWS) for start in range(0, len(weights), ROWS))
        ]  # fmt: skip
        scales, zeros = (np.concatenate([getattr(p, name) for p in found]) for name in ("scales", "zeros"))
        return Steps(scales, zeros, grid, width)
    rows, inputs = weights.shape
    wide = weights.astype(np.float32, copy=False)
    counts = np.ones(inputs) if power is None else power
    if width is None:
        parts, counts, floors = wide.reshape(1, -1), np.tile(counts, rows)[None], np.max(floor, initial=0.0)
    else:
        parts, counts = wide.reshape(-1, width), np.tile(counts.reshape(-1, width), (rows, 1))
        floors = np.repeat(np.broadcast_to(floor, rows), inputs // width) if np.ndim(floor) else floor
    scales, zeros = _best(parts, counts, grid, floors, ratios)
    shape = (rows, -1) if width is not None else (1, 1)
    scales, zeros = (a.reshape(shape).astype(np.float64) for a in (scales, zeros))
    if width is None:
        scales, zeros = np.repeat(scales, rows, axis=0), np.repeat(zeros, rows, axis=0)
    return Steps(scales, zeros, grid, inputs if width is None else width)


def _best(
    parts: Array, counts: Array, grid: Grid, floor: Array | float, ratios: Sequence[float]
) -> tuple[Array, Array]:
    """Scale and zero point of each row of `parts`, whose errors count as much as `counts` says."""
    low, high = parts.min(axis=1, initial=0.0), parts.max(axis=1, initial=0.0)
    if is_symmetric(grid):
        high = np.maximum(-low, high)
        low = np.zeros_like(low)
    reach = grid.qmax if is_symmetric(grid) else grid.levels
    scales, zeros = np.zeros(len(parts), np.float32), np.zeros(len(parts))
    least = np.full(len(parts), np.inf)
    for ratio in ratios:
        # `scale_of` divides by qmax, and knows what to do where all is zero
        peaks = np.asarray((high - low) * np.float32(ratio * grid.qmax / reach), np.float32)
        scale = np.maximum(scale_of(peaks, grid, floor), np.float32(SMALLEST_SCALE))
        zero = zero_points(low * np.float32(ratio), scale, grid)
        if len(ratios) == 1:
            return scale, zero
        q = np.rint(parts / scale[:, None])
        q += zero[:, None]
        q.clip(grid.qmin, grid.qmax, out=q)
        error = np.einsum("rc,rc->r", np.square(parts - (q - zero[:, None]) * scale[:, None]), counts)
        better = error < least
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
        least = np.minimum(error, least)
    return scales, zeros


def zero_points(low: Array, scale: Array, grid: Grid) -> Array:
    """Integers that stand for 0.0 when `low`, at most zero, is to be the least level; as floats."""
    if is_symmetric(grid):
        return np.zeros_like(scale)
    zeros: Array = np.clip(np.rint(grid.qmin - low / scale), grid.qmin, grid.qmax)
    return zeros


def is_symmetric(grid: Grid) -> bool:
    """Whether a grid lies evenly around zero, so that the zero point is 0."""
    return grid.qmin == -grid.qmax
