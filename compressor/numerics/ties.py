"""Sums of 8-bit integers that every runtime rounds alike.

    q = z + round(s_a/s · (q_a − z_a) + s_b/s · (q_b − z_b))

Runtimes work this out in float32 or with multipliers of 21 bits, and differ where the sum lies next to the middle
between two integers. There are only 256 × 256 sums, so a scale can be chosen at which none does: a few parts in ten
thousand less, tried one after another.
"""

import math
from dataclasses import replace

import numpy as np

from edgepress.compressor.numerics.grids import Affine, Array, Grid

ROUNDING = 2.0**-24
"""Error of one float32 operation, as a share of the largest number in it."""
STEP = 2.0**-17
"""By what share of the scale one trial differs from the one before."""
TRIALS = 256
_BITS = 20  # of the larger multiplier in XNNPACK's qs8-vadd, above its leading one


def untied(a: Affine, b: Affine, result: Affine, grid: Grid) -> Affine:
    """The grid of a sum, its scale lowered by as little as separates all sums from ties; unchanged if none does.

    Args:
        a: of one operand.
        b: of the other.
        result: of the sum.
        grid: 8-bit format of all three.
    """
    integers = np.arange(grid.qmin, grid.qmax + 1, dtype=np.float64)
    sums = np.add.outer((integers - a.zero_point) * a.scale, (integers - b.zero_point) * b.scale)
    for trial in range(TRIALS):
        tried = replace(result, scale=float(np.float32(result.scale * (1 - trial * STEP))))
        if _is_untied(sums, a, b, tried, grid):
            return tried
    return result


def _is_untied(sums: Array, a: Affine, b: Affine, result: Affine, grid: Grid) -> bool:
    """Whether float32 and fixed-point arithmetic round all sums alike, and so does exact arithmetic."""
    exact = sums / result.scale
    inside = (exact > grid.qmin - result.zero_point - 1) & (exact < grid.qmax - result.zero_point + 1)
    near = np.abs(exact[inside] - np.floor(exact[inside]) - 0.5)
    largest = (grid.levels + 1) * (1 + (a.scale + b.scale) / result.scale)
    if near.min(initial=1.0) < ROUNDING * largest:
        return False
    fixed = by_multipliers(a, b, result, grid)
    return bool((fixed[inside] == np.rint(exact[inside])).all())


def by_multipliers(a: Affine, b: Affine, result: Affine, grid: Grid) -> Array:
    """All sums [256, 256] as XNNPACK's qs8-vadd-minmax has them, before zero point and clipping."""
    ratios = [float(np.float32(part.scale) / np.float32(result.scale)) for part in (a, b)]
    shift = _BITS - (math.frexp(max(ratios))[1] - 1)
    first, second = (round(math.ldexp(ratio, shift)) for ratio in ratios)
    integers = np.arange(grid.qmin, grid.qmax + 1, dtype=np.int64)
    wide = np.add.outer((integers - a.zero_point) * first, (integers - b.zero_point) * second)
    return np.asarray((wide + (1 << shift - 1)) >> shift)
