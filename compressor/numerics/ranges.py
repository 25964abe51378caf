"""Ranges of activations from a stream of batches, in memory that does not grow with it.

A histogram's bins are multiples of a power of two, [k·w, (k+1)·w): when the range outgrows the bins, w
doubles and neighbours merge. So the counts depend neither on the order nor on the size of the batches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.compressor.numerics.grids import Grid, affine

Array = npt.NDArray[Any]

BINS = 2048
SAMPLE = 1 << 16
"""Most values that one batch adds to a histogram; minimum and maximum always see all."""

PERCENTILE = 99.99
SHRINK = tuple(float(s) for s in np.linspace(1.0, 0.4, 31))
_FINEST = -100


@dataclass(frozen=True)
class Histogram:
    """How often values fell where.

    Attributes:
        counts: [BINS] of int64.
        first: number of the first bin: it starts at first · 2**exponent.
        exponent: the bins are 2**exponent wide.
        minimum: smallest value seen, +inf when there was none.
        maximum: largest value seen, −inf when there was none.
    """

    counts: npt.NDArray[np.int64]
    first: int
    exponent: int
    minimum: float
    maximum: float

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middle of each bin, [BINS]."""
        return np.asarray((self.first + np.arange(self.counts.size) + 0.5) * 2.0**self.exponent, np.float64)

    @property
    def finite(self) -> bool:
        """Whether every value was a number, and there was one."""
        return math.isfinite(self.minimum) and math.isfinite(self.maximum)


def empty() -> Histogram:
    """A histogram of nothing."""
    return Histogram(np.zeros(BINS, np.int64), 0, _FINEST, math.inf, -math.inf)


def observe(histogram: Histogram, x: Array, sample: int = SAMPLE) -> Histogram:
    """Add a batch.

    Args:
        histogram: what was seen before.
        x: floats of any shape.
        sample: at most about so many values are counted, at even distances; 0 counts none (extent only).

    Returns:
        A new histogram; one that is not `finite` where the batch holds NaN or infinity.
    """
    if x.size == 0:
        return histogram
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        low = high = math.nan
    grown = _stretch(histogram, low, high)
    if not sample or not grown.finite:
        return grown
    grown = _fit(grown)
    flat = x.reshape(-1)[:: _stride(x.size, sample)]
    # multiplying by a power of two is exact, so that no value changes its bin by rounding
    index = np.floor(flat.astype(np.float64) * 2.0**-grown.exponent).astype(np.int64) - grown.first
    return replace(grown, counts=grown.counts + np.bincount(index, minlength=BINS))


def _stretch(h: Histogram, low: float, high: float) -> Histogram:
    """`h` with a wider extent; NaN stays."""
    return replace(h, minimum=float(np.minimum(h.minimum, low)), maximum=float(np.maximum(h.maximum, high)))


def _stride(size: int, sample: int) -> int:
    """An odd step: an even one would meet the same columns of most images again and again."""
    return -(-size // sample) | 1 if size > sample else 1


def _fit(h: Histogram) -> Histogram:
    """The same counts in the finest bins that cover the whole extent."""
    span = max(h.maximum - h.minimum, abs(h.minimum) * 2.0**-40, abs(h.maximum) * 2.0**-40)
    exponent = max(h.exponent, math.ceil(math.log2(span / (BINS - 1))) if span > 0 else _FINEST)
    while math.floor(math.ldexp(h.maximum, -exponent)) - math.floor(math.ldexp(h.minimum, -exponent)) >= BINS:
        exponent += 1
    first = math.floor(math.ldexp(h.minimum, -exponent))
    counts = np.zeros(BINS, np.int64)
    used = np.flatnonzero(h.counts)
    np.add.at(counts, ((used + h.first) >> min(exponent - h.exponent, 63)) - first, h.counts[used])
    return replace(h, counts=counts, first=first, exponent=exponent)


def minmax(h: Histogram, grid: Grid) -> tuple[float, float]:
    """All that was seen."""
    del grid
    return h.minimum, h.maximum


def percentile(h: Histogram, grid: Grid, percent: float = PERCENTILE) -> tuple[float, float]:
    """The range without the most extreme (100 − percent) % of each side.

    Args:
        h: finite, with counts.
        grid: not looked at.
        percent: in (50, 100].

    Returns:
        Edges of bins, inside minimum … maximum.
    """
    del grid
    cut = (1.0 - percent / 100.0) * float(h.counts.sum())
    below = int(np.searchsorted(np.cumsum(h.counts), cut, side="right"))
    above = BINS - 1 - int(np.searchsorted(np.cumsum(h.counts[::-1]), cut, side="right"))
    width = 2.0**h.exponent
    low = max(h.minimum, (h.first + min(below, BINS - 1)) * width)
    high = min(h.maximum, (h.first + max(above, 0) + 1) * width)
    return (low, high) if low <= high else (h.minimum, h.maximum)


def rounding_error(h: Histogram, low: float, high: float, grid: Grid) -> float:
    """Sum of squared errors when what `h` saw is stored on `grid` for low … high."""
    params = affine(low, high, grid)
    centres = h.centres
    q = np.clip(np.rint(centres / params.scale) + params.zero_point, grid.qmin, grid.qmax)
    error = centres - (q - params.zero_point) * params.scale
    return float(h.counts @ np.square(error))


def least_error(h: Histogram, grid: Grid) -> tuple[float, float]:
    """The range with the least squared error: shares of either end, tried one after the other.

    Args:
        h: finite, with counts.
        grid: the format to fit.

    Returns:
        A range inside minimum … maximum.
    """
    low, high = h.minimum, h.maximum
    for _ in range(2):
        high = min((high * s for s in SHRINK), key=lambda v: rounding_error(h, low, v, grid))
        if low < 0:
            low = min((low * s for s in SHRINK), key=lambda v: rounding_error(h, v, high, grid))
    return low, high


CHOICES: Mapping[str, Callable[[Histogram, Grid], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": least_error,
}
"""Ways to choose a range, by the name a recipe uses."""


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution.

    Attributes:
        kernel: taps per spatial axis.
        strides: per spatial axis.
        dilations: per spatial axis.
        pads: (before, after) per spatial axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def patch_sums(image: Array, window: Window) -> tuple[npt.NDArray[np.float64], int]:
    """Sum of the im2col rows of one image, without building them.

    Args:
        image: [channels, *spatial], here the sum over a batch.
        window: the convolution.

    Returns:
        Sums [channels, *kernel] and the number of output positions.
    """
    padded = np.pad(image.astype(np.float64), ((0, 0), *window.pads))
    axes = zip(padded.shape[1:], window.kernel, window.dilations, window.strides, strict=True)
    counts = [(size - d * (k - 1) - 1) // s + 1 for size, k, d, s in axes]
    out = np.zeros((image.shape[0], *window.kernel))
    for tap in np.ndindex(*window.kernel):
        cut = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, window.dilations, window.strides, counts, strict=True)
        )
        out[(slice(None), *tap)] = padded[(slice(None), *cut)].reshape(image.shape[0], -1).sum(axis=1)
    return out, math.prod(counts)
