"""Weights to integers: which width at which site, and which of the two neighbours each weight becomes.

At 7 and 8 bits the nearer one will do. Below, errors of a site with samples are made good within each row
(numerics/rounding.py); where there are none, or the inputs are too many, the range is the one that rounds the
weights best.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.inputs import input_moments, moments_of_inputs, widths
from edgepress.compressor.numerics.grids import CLIP_RATIOS, Array, Grid, integer_grid
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.packing import MOST_PACKED_BITS, stored_bytes
from edgepress.compressor.numerics.rounding import (
    ROWS,
    Rounding,
    Seen,
    nearest_codes,
    round_to_outputs,
)
from edgepress.compressor.numerics.steps import RATIOS, Granularity, Steps, best_steps, block_width
from edgepress.compressor.observe import wide
from edgepress.compressor.passes.base import Context
from edgepress.compressor.sites import Site
from edgepress.compressor.walk import walking

Ranges = Literal["auto", "minmax", "mse"]
Rounded = tuple[Array, Steps]
"""Integers [outputs, inputs] and the levels that they stand for."""

Key = TypeVar("Key", bound=Hashable)

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


def check_share(kind: str, spare: float) -> None:
    """Refuse what is no share.

    Raises:
        UsageError: below 0 or no number.
    """
    if not 0 <= spare < np.inf:
        raise UsageError(f"{kind}: spare is {spare}", "Choose a share, 0 for none.")


def weight_grid(bits: int, count: int, most: int = 8, *, symmetric: bool = True) -> Grid:
    """The grid of some weights, with all bits where fewer would not make the file smaller.

    Args:
        bits: wanted.
        count: how many weights.
        most: bits that kernels take.
        symmetric: zero point 0.
    """
    few = min(bits, most)
    kept = few if few > MOST_PACKED_BITS or packs(count, few) else most
    return integer_grid(kept, signed=True, symmetric=symmetric)


def packs(count: int, bits: int) -> bool:
    """Whether so many weights of so few bits take less than a byte each."""
    return bits <= MOST_PACKED_BITS and stored_bytes(count, bits) < count


def spared(weights: Mapping[Key, tuple[int, int]], share: float) -> set[Key]:
    """Weights that are worth 8 bits.

    Rounding to b bits moves the outputs of a site by a share of about 3 / (2ᵇ − 1)², however many weights it has: so
    those that take the fewest bytes lose most for each byte.

    Args:
        weights: count and bits of each.
        share: bytes that may come on top, as a share of those of all these weights.
    """
    few = {key: pair for key, pair in weights.items() if packs(*pair)}
    left = share * sum(stored_bytes(*pair) for pair in weights.values())
    chosen = set()
    for key, (count, bits) in sorted(few.items(), key=lambda item: item[1][0] * (8 - item[1][1])):
        left -= count * (8 - bits) / 8
        if left < 0:
            break
        chosen.add(key)
    return chosen


def ratios_of(ranges: Ranges, bits: int) -> Sequence[float]:
    """Shares of the least range that clips nothing which are tried; with few bits clipping pays."""
    if ranges == "minmax" or (ranges == "auto" and bits > MOST_PACKED_BITS):
        return (1.0,)
    return RATIOS if bits <= MOST_PACKED_BITS else CLIP_RATIOS


def round_plainly(
    matrix: Array, grid: Grid, width: int | None, floor: Array | float, ranges: Ranges
) -> Rounded:
    """W [rows, n] to the nearest integers; `width` weights of a row share a scale, all rows where it is None."""
    steps = best_steps(matrix, grid, width, floor=floor, ratios=ratios_of(ranges, grid.bits))
    codes = np.empty(matrix.shape, grid.dtype)
    for start in range(0, len(matrix), ROWS):
        part = slice(start, start + ROWS)
        codes[part] = nearest_codes(matrix[part], steps.part(part))
    return codes, steps


def round_by_outputs(
    model: ir.Model,
    grids: Mapping[ir.Node, Grid],
    sites: Sequence[Site],
    floors: Mapping[ir.Node, Array | float],
    context: Context,
    corrected: Collection[ir.Node] = (),
    *,
    how: Rounding = "gptq",
    ranges: Ranges = "auto",
    granularity: Granularity = "channel",
    block: int = 0,
) -> dict[ir.Node, Rounded]:
    """Round those sites that have few bits and inputs to look at; the others are not in the answer.

    Args:
        model: holds the sites, not changed.
        grids: of the sites.
        sites: in the order of the graph.
        floors: least scales, [outputs] or scalar.
        context: with the samples, if there are any.
        corrected: nodes whose bias will take up the mean error of their outputs.
        how: `nearest` looks at no inputs.
        ranges: how much may be clipped.
        granularity: what shares a scale.
        block: inputs of a block.
    """
    few = [site for site in sites if how != "nearest" and grids[site.node].bits <= MOST_PACKED_BITS]
    found: dict[ir.Node, Rounded] = {}
    for site, seen in zip(few, inputs_in_turn(model, few, context, corrected), strict=True):
        if seen is not None:
            matrix, floor, grid = site.matrix(), floors.get(site.node, 0.0), grids[site.node]
            found[site.node] = round_to_outputs(
                matrix, seen, grid, floor, ratios_of(ranges, grid.bits), how=how,
                width=block_width(granularity, block, matrix.shape[1]),
            )  # fmt: skip
    return found


def inputs_in_turn(
    model: ir.Model, sites: Sequence[Site | None], context: Context, centred: Collection[ir.Node] = ()
) -> Iterator[Seen | None]:
    """`inputs_seen` of sites one after another, gathered on one walk over the samples.

    Args:
        model: holds the sites, and must not change until the last is given; without samples it may.
        sites: in the order of the graph; None stands for what is no site.
        context: with the samples, if there are any.
        centred: nodes whose bias will take up the mean of what rounding does.
    """
    chosen = [site for site in sites if site is not None and visible(site, context)]
    found = moments_of_inputs(model, chosen, walking(context))
    nodes = {site.node for site in chosen}
    for site in sites:
        known = site is not None and site.node in nodes
        yield enough(next(found), centred=site.node in centred) if known and site is not None else None


def inputs_seen(
    model: ir.Model, site: Site, context: Context, *, centred: bool
) -> tuple[Moments, Moments] | None:
    """Moments of all of a site's inputs together, where there are few enough of them and rows enough to go by.

    Args:
        model: holds the site.
        site: whose weights to round.
        context: walks from front to back over the samples.
        centred: a bias will take up the mean of what rounding does.
    """
    if wide(site) or not visible(site, context):
        return None
    seen = enough(input_moments(model, site, context), centred=centred)
    return None if seen is None else seen[0]


def visible(site: Site, context: Context) -> bool:
    """Whether second moments of a site's inputs say what its rounding does."""
    return context.stream is not None and _alone(site) and bool(widths(site))


def enough(seen: Seen, *, centred: bool) -> Seen | None:
    """Moments as rounding takes them; None where rows are too few, or no numbers."""
    found = [
        (fit.of_inputs(about_zero=not centred), held.of_inputs(about_zero=not centred)) for fit, held in seen
    ]
    few = any(fit.rows < FEWEST_ROWS or held.rows < 2 for fit, held in found)
    total = sum(float(np.trace(fit.xx + held.xx)) for fit, held in found)
    return None if few or not 0 < total < np.inf else found


def _alone(site: Site) -> bool:
    """Whether the inputs of a site are all that its weights meet, in rows that can be looked at."""
    weight = site.node.inputs[1]
    shaped = site.is_conv or site.x.shape is None or len(site.x.shape) > 1
    return site.dense and shaped and weight is not None and len(weight.uses()) == 1


def in_layout(site: Site, q: Array) -> Array:
    """Q [out, in] in the operator's own layout; small integers are exact in the weights' type."""
    stored: Array = site.from_matrix(q).astype(q.dtype)
    return stored
