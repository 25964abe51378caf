"""Shrink whole neurons and channels, and refit what reads them towards the original's outputs.

Which go: backward elimination on the second moments of the readers' inputs, each removal charged with the
error that is left once the readers are refitted (optimal brain surgeon for blocks of columns: Hassibi & Stork
1993; activation based pruning: Hu et al. 2016, Çallı 2017 §1.5.2–1.5.3). What it costs to remove them is thus
put back at once, in closed form: reader after reader, its weights are fitted by ridge regression from the
shrunk net's activations to the original's pre-activations. Shrinking is not masking: the arrays get smaller.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import Channels, Group, Track, analyse, groups_of
from edgepress.compressor.numerics.least_squares import Consumer, eliminate, refit
from edgepress.compressor.observe import (
    KEPT,
    NEW,
    WIDEST,
    kept_channels,
    leave_inputs,
    own_moments,
    restructured,
    site_moments,
    wide,
)
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.sites import (
    Site,
    constant,
    find_sites,
    replace_constant,
    set_weights,
    site_name,
    site_of,
)
from edgepress.compressor.walk import walking

TOO_WIDE = f"a site that reads its channels has over {WIDEST} inputs"


@dataclass(frozen=True)
class Curve:
    """What it costs to remove units of a group.

    Attributes:
        order: unit ids, first to go first.
        damage: [units + 1], after k removals: summed error of the readers' outputs, over their variance.
    """

    order: Array
    damage: Matrix


@dataclass(frozen=True)
class Shrink(Pass):
    """Remove channels and neurons, then refit the sites that follow.

    Attributes:
        widths: (group, channels to keep) pairs; a group bears the name of the first site that makes it.
        compensate: refit the dense sites that read changed values.
    """

    kind: ClassVar[str] = "shrink"
    widths: tuple[tuple[str, int], ...] = ()
    compensate: bool = True

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Shrink the named groups of `model` in place."""
        if context.stream is None:
            return Outcome(False, (), tuple(Skipped(name, "needs samples") for name, _ in self.widths))
        channels = analyse(model)
        groups, stuck = groups_of(model, channels)
        known = {group.name: group for group in groups}
        reasons = {s.site: s.reason for s in stuck}
        skipped: list[Skipped] = []
        removed: set[int] = set()
        for name, width in self.widths:
            group = known.get(name)
            if group is not None and any(wide(s) for s in group.consumers):
                skipped.append(Skipped(name, TOO_WIDE))
            elif group is None or left_by_user(group, context):
                why = "--leave names it" if group else reasons.get(name, "no channels to shrink here")
                skipped.append(Skipped(name, why))
            elif 0 < width < len(group.units):
                removed |= leaving(channels, group_curve(model, channels, group, context), width)
        if not removed:
            return Outcome(False, (), tuple(skipped))
        changed = remove_units(model, channels, removed)
        if self.compensate:
            refit_following(model, changed, context)
        return Outcome(True, tuple(changed), tuple(skipped))


def left_by_user(group: Group, context: Context) -> bool:
    """Whether `--leave` names a site whose weights would change with this group."""
    return any(context.left_by_user(name) for name in (*group.producers, *(s.name for s in group.consumers)))


def group_curve(model: ir.Model, channels: Channels, group: Group, context: Context) -> Curve:
    """The elimination curve of one group on the context's samples; remembered in the context.

    Args:
        model: the model before anything was removed.
        channels: its analysis.
        group: one of its groups.
        context: with a stream.
    """
    key = ("curve", group.name)
    if restructured(model):
        context = replace(context, memo={})
    if key not in context.memo:
        position = {int(u): i for i, u in enumerate(group.units)}
        readers = []
        for site in group.consumers:
            fit, held = own_moments(model, site, context)
            moments = fit + held
            gram, _, outputs = moments.centred()
            variance = float(np.trace(outputs))
            ids = np.repeat(channels.roots(channels.tracks[site.x].ids), site.taps)
            unit_of = np.array([position.get(int(u), -1) for u in ids])
            mean = max(float(np.trace(gram)), 0.0) / max(len(gram), 1)
            ridge = mean * max(1e-4, 0.1 * len(gram) / max(moments.rows, 1)) + moments.rounding()
            readers.append(
                Consumer(gram, site.matrix().T.astype(np.float64), unit_of, 1.0 / (variance or 1.0), ridge)
            )
        order, damage = eliminate(readers, len(group.units))
        context.memo[key] = Curve(group.units[order], damage)
    curve = context.memo[key]
    if not isinstance(curve, Curve):
        raise TypeError(f"{key} is taken")
    return curve


def leaving(channels: Channels, curve: Curve, width: int) -> set[int]:
    """The units that go, those that hurt least first; no value loses its last one: no kernel runs on nothing.

    Args:
        channels: analysis of the model.
        curve: of one group.
        width: how many units of it to keep; more stay where a value would lose all.
    """
    units = {int(u) for u in curve.order}
    rosters = {frozenset(channels.roots(track.ids).tolist()) for track in channels.tracks.values()}
    left = {roster: len(roster) for roster in rosters if roster <= units}
    gone: set[int] = set()
    for unit in map(int, curve.order):
        holders = [roster for roster in left if unit in roster]
        if len(units) - len(gone) > width and all(left[roster] > 1 for roster in holders):
            gone.add(unit)
            left.update((roster, left[roster] - 1) for roster in holders)
    return gone


def remove_units(model: ir.Model, channels: Channels, removed: set[int]) -> list[str]:
    """Take the units out of every array that holds them.

    Args:
        model: changed in place.
        channels: analysis of `model`.
        removed: roots of the units.

    Returns:
        Names of the sites whose arrays got smaller.
    """
    gone = np.fromiter(removed, np.int64, len(removed))
    keep: dict[ir.Value, Array] = {}
    for value, track in channels.tracks.items():
        mask = ~np.isin(channels.roots(track.ids), gone)
        if not mask.all():
            keep[value] = mask
    changed = []
    for node in list(model.graph):
        site = site_of(node)
        if site is not None:
            if _cut_site(site, keep):
                changed.append(site.name)
        elif any(v in keep for v in node.inputs if v is not None):
            _cut_parameters(node, channels.tracks, keep)
    _note_shapes(channels, keep)
    return changed


def _cut_site(site: Site, keep: dict[ir.Value, Array]) -> bool:
    node, weight = site.node, site.weight
    rows, columns = keep.get(site.y), keep.get(site.x)
    if rows is None and columns is None:
        return False
    bias = site.bias() if site.bias_index is not None and len(node.inputs) > 2 else None
    if columns is not None and site.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", int(columns.sum()))
    elif columns is not None:
        weight = np.compress(columns, weight, axis=site.in_axis)
    if rows is not None:
        weight = np.compress(rows, weight, axis=site.out_axis)
        if bias is not None and node.inputs[2] is not None:
            replace_constant(node, 2, bias[rows].astype(weight.dtype))
    replace_constant(node, 1, weight)
    return True


def _cut_parameters(node: ir.Node, tracks: dict[ir.Value, Track], keep: dict[ir.Value, Array]) -> None:
    """Shrink the per-channel constants of a node that is no site."""
    out = node.outputs[0]
    mask, track = keep[next(v for v in node.inputs if v in keep)], tracks[out]
    if node.op_type in ("Reshape", "Flatten"):
        if node.op_type == "Reshape":
            replace_constant(node, 1, np.array([0, -1], np.int64))
            node.attributes.pop("allowzero", None)
        return
    if node.op_type in ("BatchNormalization", "InstanceNormalization"):
        for index, value in enumerate(node.inputs[1:], start=1):
            array = constant(value)
            if array is not None:
                replace_constant(node, index, array[mask])
        return
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None or node.op_type in ("Squeeze", "Clip") or "Reduce" in node.op_type:
            continue
        place = track.axis - (track.rank - array.ndim)
        if array.ndim and place >= 0 and array.shape[place] == len(mask) and len(mask) > 1:
            replace_constant(node, index, np.compress(mask, array, axis=place))


def _note_shapes(channels: Channels, keep: dict[ir.Value, Array]) -> None:
    """Set the shape of each value that shrank, and note which of the original's channels are left."""
    for value, mask in keep.items():
        value.meta[KEPT] = kept_channels(value, len(mask))[mask]
        if value.shape is not None:
            axis = channels.tracks[value].axis
            value.shape = ir.Shape([int(mask.sum()) if i == axis else d for i, d in enumerate(value.shape)])


def refit_following(model: ir.Model, changed: list[str], context: Context) -> None:
    """Refit, in order, every dense site that reads values which differ from the original's.

    Args:
        model: the shrunk model, changed in place.
        changed: names of the nodes that were changed: what they give differs.
        context: with a stream over the original and this model.
    """
    context = walking(context)
    different: set[ir.Value] = set()
    names = set(changed)
    for node in list(model.graph):
        site = site_of(node)
        moved = any(v in different for v in node.inputs if v is not None)
        if site is not None and moved and refittable(site, context):
            refit_site(model, site, context)
        if moved or site_name(node) in names:
            different.update(node.outputs)


def refittable(site: Site, context: Context) -> bool:
    """Whether a closed form can and may change this site's weights and bias, towards an original."""
    if context.stream is None or context.left_by_user(site.name) or NEW in site.y.meta:
        return False
    return site.dense and not wide(site) and (site.bias_index is None or site.bias() is not None)


def refit_site(model: ir.Model, site: Site, context: Context) -> None:
    """Ridge regression of one site towards the original's outputs at the same place."""
    fit, held = site_moments(model, site, context, paired=True)
    leave_inputs(model, site, context, fit, held)
    if fit.rows < 8 or held.rows < 2:
        return
    old = site.matrix().T.astype(np.float64)
    write_fit(site, *refit(fit, held, old))


def write_fit(site: Site, weights: Matrix, bias: Matrix) -> None:
    """Write W [in, out] and b [out] into a site, unless the fit failed."""
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return
    set_weights(
        site, weights.T.astype(np.float32), None if site.bias_index is None else bias.astype(np.float32)
    )


def shrunk_alone(model: ir.Model, name: str, width: int, context: Context) -> ir.Model:
    """A copy of the original with one group shrunk and its direct readers refitted, from moments at hand.

    Args:
        model: the normalised original.
        name: a group of it.
        width: units to keep.
        context: with a stream.
    """
    candidate = model.clone()
    channels = analyse(candidate)
    group = next(g for g in groups_of(candidate, channels)[0] if g.name == name)
    curve = group_curve(candidate, channels, group, context)
    before = {s.name: own_moments(candidate, s, context) for s in group.consumers}
    gone = leaving(channels, curve, width)
    columns = {
        s.name: ~np.isin(np.repeat(channels.roots(channels.tracks[s.x].ids), s.taps), list(gone))
        for s in group.consumers
    }
    remove_units(candidate, channels, gone)
    for site in find_sites(candidate):
        if site.name in before and refittable(site, context):
            rows = kept_channels(site.y, site.outputs)
            fit, held = (m.part(columns[site.name], rows) for m in before[site.name])
            write_fit(site, *refit(fit, held, site.matrix().T.astype(np.float64)))
    return candidate


def shrinkable(model: ir.Model) -> tuple[Channels, list[Group], list[Skipped]]:
    """Groups of a model that can shrink, for search and inspection."""
    channels = analyse(model)
    groups, skipped = groups_of(model, channels)
    narrow = [g for g in groups if not any(wide(s) for s in g.consumers)]
    skipped += [Skipped(g.name, TOO_WIDE) for g in groups if g not in narrow]
    return channels, narrow, skipped
