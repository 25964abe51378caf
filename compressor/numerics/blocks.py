"""Weights in blocks of columns, each row of a block with a scale and a zero point of its own.

    w ≈ s_b (c − z_b)        c of 2, 4 or 8 bits, b the block that the column is in

The more scales, the fewer bits do: outliers coarsen their own block alone (Dettmers et al. 2022, 8-bit optimizers via
block-wise quantization, §2.1). Without zero points z is half of all codes and the scale has a sign, so that the largest
weight of a block is met exactly, on the side of zero that has one code more.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgepress.compressor.numerics.grids import SMALLEST_SCALE, Array
from edgepress.compressor.numerics.rounding import (
    Seen,
    best_damping,
    levels_at,
    powers,
    round_among,
    spans,
)
from edgepress.compressor.numerics.steps import RATIOS
from edgepress.compressor.parallel import side_by_side
from edgepress.compressor.protocols import Matrix

ROWS = 1024
"""Rows that are looked at together: all of them would take many times the memory of the weights."""

TILE, TILE_ROWS = 1 << 16, 512
"""Weights that are looked at together where nothing but time hangs on it, 512 kB as float64; rows among them."""

SHARE = 16
"""Tiles that a further core is worth."""


@dataclass(frozen=True)
class Blocks:
    """The levels (c − zero) · scale of a matrix in blocks of columns; they are `rounding.Levels`.

    Attributes:
        scales: not zero [blocks, rows], float32.
        zeros: codes that stand for zero [blocks, rows], float32.
        top: the largest code.
        of: the block of each column [columns].
    """

    scales: Array
    zeros: Array
    top: int
    of: Array

    def part(self, rows: slice) -> "Blocks":
        """The levels of some rows."""
        return replace(self, scales=self.scales[:, rows], zeros=self.zeros[:, rows])

    def span(self, columns: slice) -> "Blocks":
        """The levels of some columns."""
        return replace(self, of=self.of[columns])

    def codes(self, x: Matrix, column: int | None = None) -> Matrix:
        """Codes, as floats, of the levels nearest to X [..., rows] of one column, or to X [columns, rows]."""
        at = self.of if column is None else self.of[column]
        codes: Matrix = np.rint(x / self.scales[at] + self.zeros[at])
        codes.clip(0, self.top, out=codes)
        return codes

    def values(self, codes: Array, column: int | None = None) -> Matrix:
        """The levels that codes of one column [..., rows], or of all [columns, rows], stand for."""
        at = self.of if column is None else self.of[column]
        values: Matrix = (codes - self.zeros[at]) * self.scales[at].astype(np.float64)
        return values


def fit_blocks(
    weights: Array, bits: int, size: int, symmetric: bool, importance: Matrix | None = None
) -> Blocks:
    """Scales and zero points with the least squared error among shares of each block's range.

    Args:
        weights: W [out, in], finite.
        bits: of a code.
        size: columns of a block; the last may have fewer.
        symmetric: leave zero points out.
        importance: how much an error in each column counts [in]; all alike where None.
    """
    return _fitted(weights, bits, size, symmetric, importance, None)


def _fitted(
    weights: Array, bits: int, size: int, symmetric: bool, importance: Matrix | None, codes: Array | None
) -> Blocks:
    """`fit_blocks`, which writes the nearest codes [out, in] as well where there is a place for them."""
    outputs, inputs = weights.shape
    count, top = -(-inputs // size), (1 << bits) - 1
    counts = None if importance is None else np.pad(importance, (0, count * size - inputs))
    scales, zeros = np.empty((count, outputs), np.float32), np.empty((count, outputs), np.float32)

    def fit(tile: tuple[slice, slice]) -> None:
        rows, blocks = tile
        columns = slice(blocks.start * size, min(blocks.stop * size, inputs))
        part = _in_blocks(weights[rows, columns], size)
        each = None if counts is None else counts[blocks.start * size : blocks.stop * size].reshape(-1, size)
        scale, zero = _best(part, each, top, symmetric)
        scales[blocks, rows], zeros[blocks, rows] = scale, zero
        if codes is not None:
            _coded(part, scale, zero, top, part)
            codes[rows, columns] = part.reshape(-1, part.shape[2])[: columns.stop - columns.start].T

    _by_tiles(fit, outputs, count, size)
    return Blocks(scales, zeros, top, np.arange(inputs) // size)


def _by_tiles(work: Callable[[tuple[slice, slice]], None], rows: int, blocks: int, size: int) -> None:
    """Do some rows of some blocks at a time, so few that all in between fits into a core's cache; on all cores."""
    wide = max(1, TILE // (min(rows, TILE_ROWS) * size))
    tiles = [
        (slice(row, min(row + TILE_ROWS, rows)), slice(block, min(block + wide, blocks)))
        for row in range(0, rows, TILE_ROWS)
        for block in range(0, blocks, wide)
    ]
    cores = min(os.cpu_count() or 1, len(tiles) // SHARE + 1)

    def share(first: int) -> None:
        for tile in tiles[first::cores]:
            work(tile)

    side_by_side(share, range(cores))


def _in_blocks(weights: Array, size: int) -> Matrix:
    """W [rows, columns] as [blocks, size, rows], zeros behind: so each operation is over many numbers."""
    rows, columns = weights.shape
    blocks = np.zeros((-(-columns // size), size, rows))
    blocks.reshape(-1, rows)[:columns] = weights.T
    return blocks


def _best(blocks: Matrix, counts: Matrix | None, top: int, symmetric: bool) -> tuple[Matrix, Matrix]:
    """Scales and zero points [blocks, rows] with the least error, weighed by counts [blocks, size]."""
    error = np.empty_like(blocks)
    least = np.full((len(blocks), blocks.shape[2]), np.inf)
    scales, zeros = np.empty_like(least), np.empty_like(least)
    for scale, zero in _candidates(blocks, top, symmetric):
        _coded(blocks, scale, zero, top, error)
        error -= zero[:, None]
        error *= scale[:, None]
        error -= blocks
        np.square(error, out=error)
        if counts is not None:
            error *= counts[:, :, None]
        loss = error.sum(axis=1)
        better = loss < least
        for held, found in ((scales, scale), (zeros, zero), (least, loss)):
            np.copyto(held, found, where=better)
    return scales, zeros


def _coded(blocks: Matrix, scale: Matrix, zero: Matrix, top: int, out: Matrix) -> None:
    """Nearest codes [blocks, size, rows] for scales and zero points [blocks, rows]."""
    np.divide(blocks, scale[:, None], out=out)
    out += zero[:, None]
    np.rint(out, out=out)
    out.clip(0, top, out=out)


def _candidates(blocks: Array, top: int, symmetric: bool) -> Iterator[tuple[Array, Array]]:
    """Scales and zero points [blocks, rows] to try, widest range first; scales as float32 has them."""
    low, high = np.minimum(blocks.min(axis=1), 0.0), np.maximum(blocks.max(axis=1), 0.0)
    if not symmetric:
        for ratio in RATIOS:
            scale = _scale((high - low) * ratio / top)
            yield scale, np.clip(np.rint(-low * ratio / scale), 0, top)
        return
    half = (top + 1) / 2
    zero = np.full(low.shape, half)
    peak, side = np.maximum(high, -low), np.where(high > -low, -1.0, 1.0)
    yield _scale(peak / (half - 1)), zero
    for ratio in RATIOS:
        yield side * _scale(peak * ratio / half), zero


def _scale(scale: Array) -> Array:
    """As a file has it; one where all weights are zero."""
    kept = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0)
    return kept.astype(np.float32).astype(np.float64)


def round_in_blocks(
    weights: Array, bits: int, size: int, symmetric: bool, seen: Seen | None
) -> tuple[Array, Blocks]:
    """Round a matrix in blocks; with a look at its inputs so that outputs keep.

    No row is worse, on all rows of inputs together, than by its nearest levels; where inputs were seen in parts, as
    far as these are uncorrelated with each other.

    Args:
        weights: W [out, in], finite.
        bits: of a code.
        size: columns of a block.
        symmetric: leave zero points out.
        seen: moments of the inputs.

    Returns:
        Codes [out, in], uint8, and their levels.
    """
    codes = np.empty(weights.shape, np.uint8)
    if seen is None:
        return codes, _fitted(weights, bits, size, symmetric, None, codes)
    levels = fit_blocks(weights, bits, size, symmetric, powers(seen))
    for columns, (fit, held) in zip(spans(seen), seen, strict=True):
        both, some, there = fit + held, weights[:, columns], levels.span(columns)
        damping = best_damping(some, fit, held, there)
        codes[:, columns] = round_among(some, both.covariance(), both.rounding(), damping, there, np.uint8)
    return codes, levels


def unblocked(codes: Array, levels: Blocks) -> Array:
    """What codes [out, in] stand for [out, in], float32."""
    rows = [slice(start, start + ROWS) for start in range(0, len(codes), ROWS)]
    parts = [levels_at(codes[r], levels.part(r)).astype(np.float32) for r in rows]
    whole: Array = np.concatenate(parts)
    return whole


def packed_blocks(codes: Array, bits: int, size: int) -> Array:
    """Codes as MatMulNBits reads them, the first in the lowest bits: uint8 [out, blocks, size · bits / 8].

    Args:
        codes: [out, in].
        bits: 2, 4 or 8.
        size: columns of a block; zeros fill the last.
    """
    outputs, inputs = codes.shape
    count = -(-inputs // size)
    whole = codes if inputs == count * size else np.pad(codes, ((0, 0), (0, count * size - inputs)))
    return _bytes(whole.astype(np.uint8, copy=False), bits).reshape(outputs, count, size * bits // 8)


def packed_zeros(levels: Blocks, bits: int) -> Array:
    """Zero points as MatMulNBits reads them: uint8 [out, bytes], each row filled with zeros."""
    zeros = levels.zeros.T.astype(np.uint8)
    return _bytes(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits)


def _bytes(codes: Array, bits: int) -> Array:
    """Codes [rows, n], n a multiple of those in a byte, side by side."""
    each = 8 // bits
    packed: Array = codes[:, ::each].copy()
    for place in range(1, each):
        packed |= codes[:, place::each] << np.uint8(place * bits)
    return packed


def unpacked_blocks(packed: Array, scales: Array, zeros: Array | None, bits: int, inputs: int) -> Array:
    """What weights packed as MatMulNBits reads them stand for: float32 [out, in].

    Args:
        packed: uint8 [out, blocks, bytes], as `packed_blocks` gives.
        scales: [out, blocks] in any shape.
        zeros: uint8 [out, bytes] in any shape, as `packed_zeros` gives; None: half of all codes.
        bits: 2, 4 or 8.
        inputs: columns; what fills the last block is left out.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    outputs, count, _ = packed.shape
    codes = _codes(packed.reshape(outputs * count, -1), bits).reshape(outputs, count, -1)
    half = np.full((outputs, count), 1 << (bits - 1), np.uint8)
    zero = half if zeros is None else _codes(zeros.reshape(outputs, -1), bits)[:, :count]
    levels = codes.astype(np.float32) - zero[:, :, None].astype(np.float32)
    levels *= scales.reshape(outputs, count, 1).astype(np.float32)
    return levels.reshape(outputs, -1)[:, :inputs]


def _codes(held: Array, bits: int) -> Array:
    """Codes [rows, n · 8 / bits] that lie side by side in bytes [rows, n], the first in the lowest bits."""
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    codes: Array = (held[:, :, None] >> shifts & ((1 << bits) - 1)).reshape(len(held), -1)
    return codes
