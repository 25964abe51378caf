"""Which units of a group matter least: criteria of `numerics.saliency` and `numerics.least_squares`, on samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import Channels, Group
from edgepress.compressor.dimensions import sizes_of
from edgepress.compressor.numerics.least_squares import Consumer, eliminate
from edgepress.compressor.numerics.saliency import Activity, Reader, fisher, pivots, weighted_gram
from edgepress.compressor.observe import TARGETS, own_moments, restructured
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.readers import Map, maps_of, moments_of, reader_of
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.walk import walking

Criterion = Literal["obs", "zeros", "outliers", "qr", "fisher"]

BY_ACTIVITY = ("zeros", "outliers")
"""Criteria that look at units alone, not at what reads them."""

MOST_TOGETHER = 1 << 21
"""Activations of one sample that are gathered in one run."""

ZERO_STAYS = frozenset([
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "Flatten", "Reshape",
    "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "ReduceMean", "ReduceSum", "ReduceMax",
    "ReduceMin", "Gather", "Slice", "Resize", "Upsample", "Split",
])  # fmt: skip
"""What gives zero where a unit is zero; activations are looked at in front of it."""


@dataclass(frozen=True)
class Curve:
    """What it costs to remove units of a group.

    Attributes:
        order: unit ids, first to go first.
        damage: [units + 1], after k removals; of `obs` the summed error of the readers' outputs over their variance,
            of others the sum of what the criterion says of each.
    """

    order: Array
    damage: Matrix


def group_curve(
    model: ir.Model, channels: Channels, group: Group, context: Context, criterion: Criterion = "obs"
) -> Curve:
    """The elimination curve of one group on the context's samples; remembered in the context.

    Args:
        model: the model before anything was removed.
        channels: its analysis.
        group: one of its groups.
        context: with a stream.
        criterion: what says which units matter least.
    """
    key = ("curve", group.name, criterion)
    if restructured(model):
        context = replace(context, memo={})
    if key not in context.memo:
        context.memo[key] = _curve(model, channels, group, context, criterion)
    curve = context.memo[key]
    if not isinstance(curve, Curve):
        raise TypeError(f"{key} is taken")
    return curve


def group_curves(
    model: ir.Model, channels: Channels, groups: Sequence[Group], context: Context, criterion: Criterion
) -> list[Curve]:
    """`group_curve` of several groups: from the moments at hand in a search, else gathered front to back in one walk.

    In their last bits those of a walk hang on where it was cut, that is on which groups were asked for. What is shipped
    must hang on its recipe alone, so they are remembered for these groups together.
    """
    if TARGETS in context.memo:
        return [group_curve(model, channels, group, context, criterion) for group in groups]
    key = ("curves", criterion, tuple(group.name for group in groups))
    found = None if restructured(model) else context.memo.get(key)
    if not isinstance(found, list):
        walk = replace(walking(context), memo={})
        found = [_curve(model, channels, group, walk, criterion) for group in groups]
        if not restructured(model):
            context.memo[key] = found
    return found


def _curve(
    model: ir.Model, channels: Channels, group: Group, context: Context, criterion: Criterion
) -> Curve:
    if criterion in BY_ACTIVITY:
        return curve_by_activity(group, activities(model, channels, [group], context)[0], criterion)
    readers = readers_of(model, channels, group, context)
    if criterion == "fisher":
        return by_score(group, fisher(readers, len(group.units)))
    if criterion == "qr":
        order, left = pivots(weighted_gram(readers, len(group.units)))
        return Curve(group.units[order[::-1]], np.concatenate([[0.0], np.cumsum(left[::-1])]))
    order, damage = eliminate(
        [Consumer(r.gram, r.weights, r.unit_of, r.weight, r.ridge) for r in readers], len(group.units)
    )
    return Curve(group.units[order], damage)


def curve_by_activity(group: Group, seen: Activity, criterion: Criterion) -> Curve:
    """Units by how often they are zero (of two that are as often the weaker one first), or by how weak they are."""
    if criterion == "outliers":
        return by_score(group, seen.strength())
    rate = seen.zero_rate()
    order = np.lexsort((seen.strength(), -rate))
    return Curve(group.units[order], np.concatenate([[0.0], np.cumsum(1 - rate[order])]))


def by_score(group: Group, score: Matrix) -> Curve:
    """Units by a score [units] of their own, least first."""
    order = np.argsort(score, kind="stable")
    return Curve(group.units[order], np.concatenate([[0.0], np.cumsum(score[order])]))


def readers_of(model: ir.Model, channels: Channels, group: Group, context: Context) -> list[Reader]:
    """What reads the units of a group, on samples."""
    position = {int(u): i for i, u in enumerate(group.units)}
    readers = []
    for site in group.consumers:
        fit, held = own_moments(model, site, context)
        moments = fit + held
        gram, variance = moments.covariance(), moments.variance()
        ids = np.repeat(channels.roots(channels.tracks[site.x].ids), site.taps)
        unit_of = np.array([position.get(int(u), -1) for u in ids])
        mean = max(float(np.trace(gram)), 0.0) / max(len(gram), 1)
        ridge = mean * max(1e-4, 0.1 * len(gram) / max(moments.rows, 1)) + moments.rounding()
        readers.append(
            Reader(gram, site.matrix().T.astype(np.float64), unit_of, 1.0 / (variance or 1.0), ridge)
        )
    maps = [
        one for node in group.others for one in maps_of(channels, node) if _reads(channels, one, position)
    ]
    for one, sums in zip(maps, moments_of(model, maps, context) if maps else [], strict=True):
        readers.append(reader_of(channels, one, sums, position))
    return readers


def _reads(channels: Channels, one: Map, position: dict[int, int]) -> bool:
    return any(int(u) in position for u in channels.roots(channels.tracks[one.value].ids))


def activities(
    model: ir.Model, channels: Channels, groups: Sequence[Group], context: Context
) -> list[Activity]:
    """What the units of each group do on the samples, in the activations that their readers see.

    An activation is looked at in front of pools and other nodes that hand zeros on: where a net is conv, Relu, pool, at
    what the Relu gives. With several (a residual stream is one after every Add) all count, each value once.

    Args:
        model: the model.
        channels: its analysis.
        groups: of the model.
        context: with a stream.
    """
    if context.stream is None:
        raise ValueError("activities need samples")
    values = [list(dict.fromkeys(_sources(channels, group))) for group in groups]
    found = [Activity(len(group.units)) for group in groups]
    owners = []
    for group, some in zip(groups, values, strict=True):
        position = {int(u): i for i, u in enumerate(group.units)}
        owners.append(
            [
                np.array([position.get(int(u), -1) for u in channels.roots(channels.tracks[v].ids)])
                for v in some
            ]
        )
    for part in _parts(values):
        names = list(dict.fromkeys(v.name or "" for i in part for v in values[i]))
        for now, _ in context.stream(model, names):
            for i in part:
                for value, owner in zip(values[i], owners[i], strict=True):
                    array = np.moveaxis(now[value.name or ""], channels.tracks[value].axis, 0)
                    found[i].update(array, owner)
    return found


def _parts(values: Sequence[Sequence[ir.Value]]) -> list[list[int]]:
    """Groups whose activations are gathered in one run of the samples, for want of memory not always all."""
    parts: list[list[int]] = []
    taken = 0
    for i, some in enumerate(values):
        size = sum(math.prod(d for d in sizes_of(v) if isinstance(d, int)) for v in some)
        if not parts or taken + size > MOST_TOGETHER:
            parts.append([])
            taken = 0
        parts[-1].append(i)
        taken += size
    return parts


def _sources(channels: Channels, group: Group) -> list[ir.Value]:
    """The activations behind what the readers of a group read."""
    read = [site.x for site in group.consumers]
    read += [one.value for node in group.others for one in maps_of(channels, node)]
    members = set(group.units.tolist())
    found = []
    for value in read:
        source = value
        while (
            (node := source.producer()) is not None
            and node.op_type in ZERO_STAYS
            and node.inputs[0] is not None
        ):
            if node.inputs[0] not in channels.tracks:
                break
            source = node.inputs[0]
        if members & set(channels.roots(channels.tracks[source].ids).tolist()):
            found.append(source)
    return found
