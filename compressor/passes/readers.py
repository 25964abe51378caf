"""Weights that read channels in nodes that are no dense sites: ConvTranspose, and recurrent layers.

No least squares towards the original's outputs is made for these. Instead what goes is told by what stays, as well as
second moments let it, x_gone ≈ A x_kept, and folded into the weights: W_kept + Aᵀ W_gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.saliency import Reader, expressed
from edgepress.compressor.observe import ROWS_OF_MOMENTS, WIDEST
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.recurrent import R, W, recurrence_of
from edgepress.compressor.sites import replace_constant, site_of

RIDGE = 1e-3
"""Of the regression of what goes on what stays, relative to the mean square of a channel."""


@dataclass(frozen=True)
class Map:
    """A linear map of a value's channels.

    Attributes:
        node: which holds the weights.
        place: of the weights among its inputs.
        value: what it reads.
        axis: of the channels in `value`.
        direction: of a recurrent layer: W and R have one map each; None for others.
        own: whether `value` is its own state: [time, direction, batch, hidden].
    """

    node: ir.Node
    place: int
    value: ir.Value
    axis: int
    direction: int | None = None
    own: bool = False

    def array(self) -> Array:
        """The node's weights."""
        value = self.node.inputs[self.place]
        if value is None or value.const_value is None:
            raise ValueError(f"{self.node.name} has no weights")
        return value.const_value.numpy()

    def weights(self) -> Matrix:
        """[channels, outputs]."""
        array = self.array()
        one = array.reshape(len(array), -1) if self.direction is None else array[self.direction].T
        weights: Matrix = one.astype(np.float64)
        return weights

    def write(self, weights: Matrix) -> None:
        """Write [channels, outputs] back."""
        array = self.array().copy()
        if self.direction is None:
            array = weights.reshape(array.shape).astype(array.dtype)
        else:
            array[self.direction] = weights.T
        replace_constant(self.node, self.place, array)

    def rows(self, array: Array) -> Array:
        """[rows, channels] of what was observed of `value`."""
        if self.own and self.direction is not None:
            array = array[:, self.direction] if array.ndim == 4 else array[self.direction]
        rows: Array = np.moveaxis(array, -1 if self.own else self.axis, -1)
        return rows.reshape(-1, rows.shape[-1])


def maps_of(channels: Channels, node: ir.Node) -> list[Map]:
    """All by which a node reads channels that have units."""
    if not node.inputs:
        return []
    site, layer, x = site_of(node), recurrence_of(node), node.inputs[0]
    if site is not None and x in channels.tracks and x is not None:
        return [Map(node, 1, x, channels.tracks[x].axis)]
    found: list[Map] = []
    if layer is None:
        return found
    each = range(layer.directions)
    if x is not None and x in channels.tracks:
        found += [Map(node, W, x, channels.tracks[x].axis, d) for d in each]
    states = [v for v in node.outputs[:2] if v in channels.tracks]
    if states:
        found += [Map(node, R, states[0], channels.tracks[states[0]].axis, d, True) for d in each]
    return found


def too_wide(channels: Channels, group: Group) -> bool:
    """Whether one of the other readers has more inputs than second moments are kept of."""
    return any(len(one.weights()) > WIDEST for node in group.others for one in maps_of(channels, node))


def moments_of(model: ir.Model, maps: Sequence[Map], context: Context) -> list[Moments]:
    """Sums of what each map reads, streamed."""
    if context.stream is None:
        raise ValueError("moments need samples")
    found = [Moments(len(one.weights()), 0, about_zero=True) for one in maps]
    rng = context.rng()
    for now, _ in context.stream(model, [one.value.name or "" for one in maps]):
        for one, sums in zip(maps, found, strict=True):
            rows = one.rows(now[one.value.name or ""])
            if len(rows) > ROWS_OF_MOMENTS:
                rows = rows[np.sort(rng.choice(len(rows), ROWS_OF_MOMENTS, replace=False))]
            sums.update(rows, rows[:, :0])
    return found


def reader_of(channels: Channels, one: Map, moments: Moments, position: dict[int, int]) -> Reader:
    """A map as criteria see it.

    Args:
        channels: analysis of the model.
        one: the map.
        moments: of what it reads.
        position: of each unit of the group.
    """
    weights = one.weights()
    mean = moments.x_sum / max(moments.rows, 1)
    gram = moments.xx / max(moments.rows, 1) - np.outer(mean, mean)
    variance = max(float(np.einsum("io,io->", weights, gram @ weights)), 0.0)
    ids = channels.roots(channels.tracks[one.value].ids)
    unit_of = np.array([position.get(int(u), -1) for u in ids])
    ridge = max(float(np.trace(gram)), 0.0) / max(len(gram), 1) * 1e-4 + moments.rounding()
    return Reader(gram, weights, unit_of, 1.0 / (variance or 1.0), ridge)


def fold(
    model: ir.Model, channels: Channels, removed: set[int], context: Context, *, own: bool = True
) -> None:
    """Let the units that stay do, in these readers, what those that will go did.

    Args:
        model: changed in place; its units are all there still.
        channels: its analysis.
        removed: roots of the units that will go.
        context: with a stream.
        own: also in the weights by which a recurrent layer reads its own state.
    """
    gone = np.fromiter(removed, np.int64, len(removed))
    maps, masks = [], []
    for node in model.graph:
        if (site := site_of(node)) is not None and not site.transposed_conv:
            continue
        for one in maps_of(channels, node):
            mask = np.isin(channels.roots(channels.tracks[one.value].ids), gone)
            if mask.any() and not mask.all() and len(mask) <= WIDEST and (own or not one.own):
                maps.append(one)
                masks.append(mask)
    if not maps:
        return
    for one, mask, sums in zip(maps, masks, moments_of(model, maps, context), strict=True):
        told = expressed(sums.xx / max(sums.rows, 1), mask, RIDGE)  # (gone, kept)
        weights = one.weights()
        weights[~mask] += told.T @ weights[mask]
        if np.isfinite(weights).all():
            one.write(weights)
