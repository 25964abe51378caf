"""Groups of channels that must shrink together.

Every value carries, on one axis, an array of *units*: one id per position. A dense site makes new units, an
element-wise node hands them on, an Add makes those of its inputs equal (union-find), a Concat strings arrays
together, a Flatten repeats each id. Two producers that meet in an Add thus end with the same units, and a
unit can go only from all of its positions at once. What is not understood pins the units that it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.carried import carried, slices
from edgepress.compressor.context import Skipped
from edgepress.compressor.dimensions import HANDED_ON
from edgepress.compressor.model import captured
from edgepress.compressor.protocols import Array
from edgepress.compressor.recurrent import Recurrence, always_zero, recurrence_of
from edgepress.compressor.sites import Site, constant, exclusive, has_body, int_attribute, site_name, site_of
from edgepress.compressor.units import Channels, Track

__all__ = ["Channels", "Group", "Track", "analyse", "groups_of"]

THE_OUTPUT = "the model's output"
"""Why the channels of what goes out stay."""


@dataclass(frozen=True)
class Group:
    """Units that live and die by the same decisions.

    Attributes:
        name: the site that first makes them.
        units: the ids that may be removed, in order of position.
        producers: names of the sites that make them.
        consumers: dense sites that read them.
        others: nodes with weights that read them and are no dense sites: ConvTranspose, recurrent layers.
    """

    name: str
    units: Array
    producers: tuple[str, ...]
    consumers: tuple[Site, ...]
    others: tuple[ir.Node, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all nodes whose arrays change with it."""
        readers = (*(site.name for site in self.consumers), *(site_name(node) for node in self.others))
        return tuple(dict.fromkeys((*self.producers, *readers)))


def analyse(model: ir.Model) -> Channels:
    """Track the units of every value of the main graph."""
    channels = Channels()
    for node in model.graph:
        _visit(channels, node)
    for node in model.graph:
        if node.op_type == "Shape" and node.domain in ("", "ai.onnx"):
            _check_shape(channels, node)
    channels.pin(model.graph.outputs, THE_OUTPUT)
    channels.settle()
    return channels


def groups_of(model: ir.Model, channels: Channels) -> tuple[list[Group], list[Skipped]]:
    """Groups that can shrink, and the sites whose outputs cannot.

    Args:
        model: the model.
        channels: its analysis.

    Returns:
        Groups in topological order of their first producer, and what is left alone with the reason.
    """
    pinned = channels.pinned_roots()
    family: dict[int, int] = {}

    def top(unit: int) -> int:
        while family.setdefault(unit, unit) != unit:
            unit = family[unit]
        return unit

    roots_of = {value: channels.roots(track.ids) for value, track in channels.tracks.items()}
    for roots in roots_of.values():
        first = top(int(roots[0]))
        for unit in roots[1:]:
            family[top(int(unit))] = first
    keys = {value: top(int(roots[0])) for value, roots in roots_of.items()}
    members: dict[int, list[str]] = {}
    consumers: dict[int, list[Site]] = {}
    others: dict[int, list[ir.Node]] = {}
    skipped: list[Skipped] = []
    units: dict[int, dict[int, None]] = {}
    for node in model.graph:
        for y in _made(channels, node):
            members.setdefault(keys[y], []).append(site_name(node))
            units.setdefault(keys[y], {}).update(dict.fromkeys(int(u) for u in roots_of[y]))
        site = site_of(node)
        if site is not None and site.dense and site.y in keys and site.x in keys:
            consumers.setdefault(keys[site.x], []).append(site)
        for value in _read(channels, node, site):
            if node not in others.setdefault(keys[value], []):
                others[keys[value]].append(node)
    groups = []
    for key, names in members.items():
        free = [u for u in units[key] if u not in pinned]
        readers, rest = consumers.get(key, []), others.get(key, [])
        if len(free) < 2 or not (readers or rest):
            why = next((pinned[u] for u in units[key] if u in pinned), "no dense site reads its channels")
            skipped += [Skipped(name, f"channels stay: {why}") for name in dict.fromkeys(names)]
            continue
        made_by = tuple(dict.fromkeys(names))
        groups.append(Group(names[0], np.asarray(free), made_by, tuple(readers), tuple(rest)))
    return groups, skipped


def _made(channels: Channels, node: ir.Node) -> list[ir.Value]:
    """One output of a node that makes units."""
    site = site_of(node)
    if site is not None:
        return [site.y] if site.y in channels.tracks else []
    return [v for v in node.outputs if v in channels.tracks][:1] if recurrence_of(node) else []


def _read(channels: Channels, node: ir.Node, site: Site | None) -> Iterator[ir.Value]:
    """Values whose units a node's weights meet though it is no dense site; a recurrent layer reads its own."""
    if site is not None and site.transposed_conv and site.groups == 1 and site.x in channels.tracks:
        yield site.x
    if site is None and recurrence_of(node) is not None:
        x = node.inputs[0]
        if x in channels.tracks:
            yield x
        yield from _made(channels, node)


def _visit(channels: Channels, node: ir.Node) -> None:
    op, tracks = node.op_type, channels.tracks
    site = site_of(node)
    seen = [v for v in node.inputs if v is not None and v in tracks]
    if node.domain not in ("", "ai.onnx") or has_body(node):
        channels.pin([*seen, *_captured(node)], f"{op} {site_name(node)} reads them in a way not understood")
        return
    if site is not None:
        _visit_site(channels, site)
        return
    layer = recurrence_of(node)
    if layer is not None:
        _visit_recurrence(channels, layer)
        return
    if not seen or op == "Shape":
        return
    new = carried(channels, node, seen)
    if new is None:
        channels.pin(seen, f"{op} {site_name(node)} needs all of them")
        return
    tracks.update(zip(node.outputs, new, strict=False))
    if any(o.uses() or o.is_graph_output() for o in node.outputs[len(new) :]):
        channels.pin(node.outputs[: len(new)], f"{op} {site_name(node)} has several outputs")


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values of the main graph that a node's bodies read."""
    return list(captured(node, node.graph)) if isinstance(node.graph, ir.Graph) else []


def _check_shape(channels: Channels, node: ir.Node) -> None:
    """Pin what a Shape reads, unless its numbers only go where they are replaced or hold no unit's axis."""
    x = node.inputs[0]
    if x not in channels.tracks or x is None:
        return
    axis = channels.tracks[x].axis - int_attribute(node, "start", 0)
    roots = set(channels.roots(channels.tracks[x].ids).tolist())
    todo, done = [node.outputs[0]], set[ir.Value]()
    while todo:
        value = todo.pop()
        if value in done:
            continue
        done.add(value)
        fine = not value.is_graph_output()
        for use in value.uses():
            if value is node.outputs[0] and _elsewhere(use.node, axis):
                continue
            if use.node.graph is node.graph and (use.node.op_type != "Reshape" or use.idx == 0):
                fine &= use.node.op_type in HANDED_ON
                todo += use.node.outputs
                continue
            data = channels.tracks.get(use.node.inputs[0]) if use.node.inputs[0] is not None else None
            fine &= data is not None and use.node.outputs[0] in channels.tracks
            fine &= data is not None and set(channels.roots(data.ids).tolist()) == roots
        if not fine:
            channels.pin([x], f"Shape {site_name(node)} needs all of them")
            return


def _elsewhere(node: ir.Node, axis: int) -> bool:
    """Whether a node takes other places than `axis` out of a shape."""
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        return indices is not None and bool((indices >= 0).all()) and axis not in indices.ravel()
    cuts = slices(node, 1) if node.op_type == "Slice" else None
    if not cuts or 0 not in cuts:
        return False
    start, end, step = cuts[0]
    return step == 1 and min(start, end) >= 0 and not start <= axis < end


def _visit_recurrence(channels: Channels, layer: Recurrence) -> None:
    node, tracks = layer.node, channels.tracks
    x = node.inputs[0]
    if x in tracks and tracks[x].axis != tracks[x].rank - 1:
        channels.pin([x], f"{node.op_type} {layer.name} needs all of them")
    for value in node.inputs[1:]:
        if value in tracks and value not in [v for _, v in layer.starts()]:
            channels.pin([value], f"{node.op_type} {layer.name} needs all of them")
    ids = channels.fresh(layer.hidden, layer.name)
    for value, rank in zip(node.outputs, (4, 3, 3), strict=False):
        if value.name:
            tracks[value] = Track(rank - 1, rank, ids)
    own = [v for v in node.outputs if v in tracks]
    for _, value in layer.starts():
        track = tracks.get(value)
        if track is not None and track.axis == track.rank - 1 and len(track.ids) == len(ids):
            channels.union(ids, track.ids)
        elif track is not None or (constant(value) is None and not always_zero(value)):
            channels.pin([*own, value], f"the first state of {layer.name} is computed")
    if layer.fixed():
        channels.pin([x, *own], f"the weights of {layer.name} are shared or not constant")


def _visit_site(channels: Channels, site: Site) -> None:
    node, tracks = site.node, channels.tracks
    rank = site.weight.ndim if "Conv" in node.op_type else 2
    axis = 1
    source = tracks.get(site.x)
    if node.op_type == "MatMul":
        known = source.rank if source else (len(site.x.shape) if site.x.shape is not None else 0)
        rank, axis = known, known - 1
        if known < 1:
            channels.pin([site.x], f"the rank of {site.name}'s input is unknown")
            return
    reads = 1 if node.op_type == "MatMul" else axis
    if source is not None and (
        source.axis != (source.rank - 1 if node.op_type == "MatMul" else reads)
        or (site.transposed_conv and site.groups > 1)
        or (site.groups > 1 and not site.depthwise)
    ):
        channels.pin([site.x], f"{site.name} ({node.op_type}) needs all of its inputs")
    channels.pin(node.inputs[1:], f"{site.name} reads them as its weights or bias")
    weight = node.inputs[1]
    fixed = weight is None or not exclusive(weight) or (site.bias_index is not None and site.bias() is None)
    if site.depthwise:
        if source is None or source.axis != 1:
            return
        ids = np.repeat(source.ids, site.outputs // site.groups)
    elif site.groups > 1:
        ids = channels.fresh(site.outputs, site.name)
    else:
        ids = channels.fresh(site.outputs, site.name)
    tracks[site.y] = Track(axis, rank, ids)
    if fixed:
        channels.pin([site.x, site.y], f"the weights of {site.name} are shared or not constant")
    elif site.groups > 1 and not site.depthwise:
        channels.pin([site.y], f"{site.name} has {site.groups} groups")
