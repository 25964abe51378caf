"""Weights to integers: which width at which site, and which of the two neighbours each weight becomes.

At 7 and 8 bits the nearer one will do. Below, errors of a site with samples are made good within each row
(numerics/rounding.py); where there are none, or the inputs are too many, the range is the one that rounds the
weights best.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.grids import (
    Array,
    Floats,
    Grid,
    best_scale,
    integer_grid,
    quantize,
    symmetric_scale,
)
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS, stored_bytes
from edgepress.compressor.numerics.rounding import RATIOS, round_to_outputs
from edgepress.compressor.observe import input_moments, wide
from edgepress.compressor.passes.base import Context
from edgepress.compressor.sites import Site
from edgepress.compressor.walk import walking

Ranges = Literal["minmax", "mse"]
Rounded = tuple[Array, Floats]
"""Integers in the operator's layout, and their scales, one per output or a scalar."""

HALF = 16
"""Bits of half precision: where 8 break the budget, half of the file is still saved."""

FEWEST_ROWS = 8
"""Rows of inputs from which on outputs have a say."""


def check_bits(kind: str, default: int, bits: Sequence[tuple[str, int]], half: bool = False) -> None:
    """Refuse widths that no weight is stored in.

    Raises:
        UsageError: a width outside 2 … 8, or with `half` that is not 16 either.
    """
    for name, width in [("weight_bits", default), *bits]:
        if not 2 <= width <= 8 and not (half and width == HALF):
            raise UsageError(f"{kind}: {name} is {width}", "Choose 2 to 8" + (", or 16." if half else "."))


def weight_grid(bits: int, count: int, most: int = 8) -> Grid:
    """The grid of some weights: symmetric, zero point 0; with all bits where fewer would not make the file smaller.

    Args:
        bits: wanted.
        count: how many weights.
        most: bits that kernels take.
    """
    few = min(bits, most)
    worth = few > MOST_PACKED_BITS or stored_bytes(count, few) < count
    return integer_grid(few if worth else most, signed=True, symmetric=True)


def round_plainly(
    weights: Array, grid: Grid, axis: int | None, floor: Array | float, ranges: Ranges
) -> Rounded:
    """To the nearest integers, ranges as the recipe says; with few bits always those that round best."""
    if grid.bits <= MOST_PACKED_BITS:
        scale = best_scale(weights, grid, axis, floor=floor, ratios=RATIOS)
    else:
        scale = (best_scale if ranges == "mse" else symmetric_scale)(weights, grid, axis, floor=floor)
    return quantize(weights, scale, grid, axis=axis), scale


def round_by_outputs(
    model: ir.Model,
    grids: Mapping[ir.Node, Grid],
    sites: Sequence[Site],
    floors: Mapping[ir.Node, Array | float],
    context: Context,
    corrected: Collection[ir.Node] = (),
) -> dict[ir.Node, Rounded]:
    """Round those sites that have few bits and inputs to look at; the others are not in the answer.

    Args:
        model: holds the sites, not changed.
        grids: of the sites.
        sites: in the order of the graph.
        floors: least scales, [outputs] or scalar.
        context: with the samples, if there are any.
        corrected: nodes whose bias will take up the mean error of their outputs.
    """
    found: dict[ir.Node, Rounded] = {}
    walked = walking(context)
    for site in sites:
        if grids[site.node].bits > MOST_PACKED_BITS:
            continue
        seen = inputs_seen(model, site, walked, centred=site.node in corrected)
        if seen is not None:
            q, scale = round_to_outputs(site.matrix(), *seen, grids[site.node], floors.get(site.node, 0.0))
            found[site.node] = (in_layout(site, q), scale)
    return found


def inputs_seen(
    model: ir.Model, site: Site, context: Context, *, centred: bool
) -> tuple[Moments, Moments] | None:
    """Moments of a site's inputs, where there are few enough of them and rows enough to go by.

    Args:
        model: holds the site.
        site: whose weights to round.
        context: walks from front to back over the samples.
        centred: a bias will take up the mean of what rounding does.
    """
    if context.stream is None or not _alone(site) or wide(site):
        return None
    fit, held = (m.of_inputs(about_zero=not centred) for m in input_moments(model, site, context))
    if fit.rows < FEWEST_ROWS or held.rows < 2 or not 0 < np.trace(fit.xx + held.xx) < np.inf:
        return None
    return fit, held


def _alone(site: Site) -> bool:
    """Whether the inputs of a site are all that its weights meet, in rows that can be looked at."""
    weight = site.node.inputs[1]
    shaped = site.is_conv or site.x.shape is None or len(site.x.shape) > 1
    return site.dense and shaped and weight is not None and len(weight.uses()) == 1


def in_layout(site: Site, q: Array) -> Array:
    """Q [out, in] in the operator's own layout; small integers are exact in the weights' type."""
    stored: Array = site.from_matrix(q).astype(q.dtype)
    return stored
