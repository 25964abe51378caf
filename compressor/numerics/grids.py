"""Number formats with few bits: arrays to integers and back.

A grid holds the integers qmin … qmax; a real x is stored as

    q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax),    x ≈ (q − zero_point) · scale

which is ONNX QuantizeLinear/DequantizeLinear, in float32 as runtimes compute it. Nothing else in this package
computes `2 ** (bits - 1)`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.errors import UsageError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SMALLEST_SCALE = float(np.float32(2.0**-60))
"""No scale is below this, so that the product of two scales is still a normal float32."""

CLIP_RATIOS = tuple(float(r) for r in np.linspace(1.0, 0.8, 11))
"""Shares of the largest magnitude that are tried as the range of weights of 7 and 8 bits."""


@dataclass(frozen=True)
class Grid:
    """A number format.

    Attributes:
        name: such as `int8` or `uint4`.
        bits: width of a value.
        signed: whether qmin is negative.
        dtype: numpy type that stores the integers, at least `bits` wide.
        qmin: smallest integer in use.
        qmax: largest integer in use.
    """

    name: str
    bits: int
    signed: bool
    dtype: npt.DTypeLike
    qmin: int
    qmax: int

    @property
    def levels(self) -> int:
        """Steps between the smallest and the largest value."""
        return self.qmax - self.qmin


def integer_grid(bits: int, signed: bool, symmetric: bool = False) -> Grid:
    """The grid of all integers of a width.

    Args:
        bits: 2 to 32.
        signed: two's complement, or from zero.
        symmetric: leave out the most negative integer, so that −qmin = qmax (for weights with zero point 0).

    Raises:
        UsageError: for a width that no grid has.
    """
    if not 2 <= bits <= 32:
        raise UsageError(f"a grid of {bits} bits does not exist", "Choose 2 to 32 bits.")
    container = next(width for width in (8, 16, 32) if bits <= width)
    name = "int" if signed else "uint"
    half = 2 ** (bits - 1)
    low, high = (-half + int(symmetric), half - 1) if signed else (0, 2 * half - 1)
    return Grid(f"{name}{bits}", bits, signed, np.dtype(f"{name}{container}"), low, high)


BIAS_GRID = integer_grid(32, signed=True, symmetric=True)


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of a tensor.

    Attributes:
        scale: real distance of two neighbouring integers, a float32 above zero.
        zero_point: the integer that stands for 0.0.
    """

    scale: float
    zero_point: int


def along(values: Array | float, axis: int | None, ndim: int) -> Array:
    """Shape per-axis values [n] so that they broadcast along `axis` of an array with `ndim` axes."""
    array = np.asarray(values)
    if axis is None or array.ndim == 0:
        return array
    shape = [1] * ndim
    shape[axis] = -1
    spread: Array = array.reshape(shape)
    return spread


def quantize(
    x: Array, scale: Array | float, grid: Grid, zero_point: Array | int = 0, axis: int | None = None
) -> Array:
    """Nearest grid points of `x`.

    Args:
        x: any shape, finite.
        scale: scalar, or [x.shape[axis]].
        grid: the format.
        zero_point: scalar, or as `scale`.
        axis: of the per-axis scale; None for one scale.

    Returns:
        Integers of `grid.dtype`, shaped as `x`.
    """
    wide = np.float32 if grid.bits <= 16 else np.float64
    ratio = np.asarray(x, wide) / along(scale, axis, x.ndim).astype(wide)
    q = np.rint(ratio) + along(zero_point, axis, x.ndim).astype(wide)
    stored: Array = np.clip(q, grid.qmin, grid.qmax).astype(grid.dtype)
    return stored


def dequantize(
    q: Array,
    scale: Array | float,
    zero_point: Array | int = 0,
    axis: int | None = None,
) -> Floats:
    """Reals that stored integers stand for; arguments as in `quantize`."""
    shifted = q.astype(np.float32) - along(zero_point, axis, q.ndim).astype(np.float32)
    return np.asarray(shifted * along(scale, axis, q.ndim).astype(np.float32), np.float32)


def scale_of(peaks: Floats, grid: Grid, floor: Array | float) -> Floats:
    """Scales that put `peaks` on qmax; where a peak is zero, the largest of the others (or 1)."""
    scale = np.asarray(peaks / np.float32(grid.qmax), np.float32)
    fallback = np.float32(scale.max(initial=0.0)) or np.float32(1.0)
    scale = np.where(peaks > 0, scale, fallback)
    return np.asarray(np.maximum(scale, np.maximum(floor, SMALLEST_SCALE)), np.float32)


def affine(low: float, high: float, grid: Grid, inside: tuple[float, float] | None = None) -> Affine:
    """Scale and zero point for the reals low … high, with 0.0 exact.

    Args:
        low: smallest value to represent; above zero counts as zero.
        high: largest value to represent; below zero counts as zero.
        grid: the format.
        inside: bounds, around zero, that no grid point may pass. A runtime drops a Clip in front of a
            QuantizeLinear only when the integers cannot express anything that the Clip would have cut.

    Returns:
        A scale above zero and a zero point in qmin … qmax.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32(max((high - low) / grid.levels, SMALLEST_SCALE))
    zero = int(np.clip(np.rint(grid.qmin - low / float(scale)), grid.qmin, grid.qmax))
    if inside is not None:
        if inside[0] >= 0.0:
            zero = grid.qmin
        limits = [abs(b) / n for b, n in zip(inside, (zero - grid.qmin, grid.qmax - zero), strict=True) if n]
        scale = np.float32(max(min(float(scale), *limits), SMALLEST_SCALE))
    return Affine(float(scale), zero)


def symmetric(low: float, high: float, grid: Grid) -> Affine:
    """Scale for the reals low … high with the zero point in the middle of a signed grid."""
    peak = max(abs(float(low)), abs(float(high)))
    return Affine(float(np.float32(max(peak / grid.qmax, SMALLEST_SCALE))), 0)


def bias_scale(input_scale: float, weight_scale: Array | float) -> Floats:
    """Scale of an int32 bias: that of the products it is added to, s_in · s_w, shaped as `weight_scale`."""
    product = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
    return np.asarray(product, np.float32)


def bias_floor(bias: Array, input_scale: float) -> Floats:
    """Least weight scales at which `bias` [n] still fits 32 bits, with a bit to spare for the sum; [n]."""
    floors = np.abs(bias, dtype=np.float64) / (float(input_scale) * BIAS_GRID.qmax / 2)
    return np.asarray(np.minimum(floors, np.finfo(np.float32).max), np.float32)
