"""Groups of channels that must shrink together.

Every value carries, on one axis, an array of *units*: one id per position. A dense site makes new units, an
element-wise node hands them on, an Add makes those of its inputs equal (union-find), a Concat strings arrays
together, a Flatten repeats each id. Two producers that meet in an Add thus end with the same units, and a
unit can go only from all of its positions at once. What is not understood pins the units that it sees.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepress.compressor.context import Skipped
from edgepress.compressor.model import captured
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import (
    Site,
    constant,
    exclusive,
    int_attribute,
    ints_attribute,
    site_name,
    site_of,
)

UNARY = frozenset([
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Clip", "Elu", "Gelu", "Erf", "Exp",
    "Abs", "Neg", "Softplus", "Dropout", "Identity", "Cast", "Selu", "Celu", "ThresholdedRelu", "Mish",
    "Sqrt", "Reciprocal", "Log", "Floor", "Ceil", "Round", "Sign", "Softsign", "Sin", "Cos", "Swish",
])  # fmt: skip
BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"])
POOLS = frozenset(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
REDUCE = frozenset(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])


@dataclass(frozen=True)
class Track:
    """Units of one value: `ids[i]` is the unit at position i of `axis`, of a value of `rank` axes."""

    axis: int
    rank: int
    ids: Array


@dataclass(frozen=True)
class Group:
    """Units that live and die by the same decisions.

    Attributes:
        name: the site that first makes them.
        units: the ids that may be removed, in order of position.
        producers: names of the sites that make them.
        consumers: dense sites that read them.
    """

    name: str
    units: Array
    producers: tuple[str, ...]
    consumers: tuple[Site, ...]


@dataclass
class Channels:
    """Units of every value of a model."""

    tracks: dict[ir.Value, Track] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    made_by: dict[int, str] = field(default_factory=dict)
    settled: Array | None = None

    def fresh(self, count: int, maker: str) -> Array:
        """New units."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        self.made_by.update(dict.fromkeys(range(first, first + count), maker))
        return np.arange(first, first + count)

    def root(self, unit: int) -> int:
        """The unit that stands for all that are equal to `unit`."""
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def roots(self, ids: Array) -> Array:
        """`root` of each."""
        if self.settled is not None:
            return self.settled[ids]
        return np.fromiter((self.root(int(i)) for i in ids), np.int64, len(ids))

    def settle(self) -> None:
        """Look every root up once; no unit is made or joined after that."""
        self.settled = self.roots(np.arange(len(self.parent)))

    def union(self, a: Array, b: Array) -> None:
        """Make units equal, position by position."""
        for left, right in zip(a, b, strict=True):
            x, y = sorted((self.root(int(left)), self.root(int(right))))
            self.parent[y] = x

    def pin(self, values: Iterable[ir.Value | None], reason: str) -> None:
        """Forbid the removal of all units of these values."""
        for value in values:
            if value is not None and value in self.tracks:
                for unit in self.tracks[value].ids:
                    self.pinned.setdefault(int(unit), reason)

    def pinned_roots(self) -> dict[int, str]:
        """Roots that may not be removed, and why."""
        return {self.root(unit): why for unit, why in self.pinned.items()}


def analyse(model: ir.Model) -> Channels:
    """Track the units of every value of the main graph."""
    channels = Channels()
    for node in model.graph:
        _visit(channels, node)
    channels.pin(model.graph.outputs, "the model's output")
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
    members: dict[int, list[Site]] = {}
    consumers: dict[int, list[Site]] = {}
    skipped: list[Skipped] = []
    units: dict[int, dict[int, None]] = {}
    for node in model.graph:
        site = site_of(node)
        if site is None or site.y not in channels.tracks:
            continue
        key = top(int(roots_of[site.y][0]))
        members.setdefault(key, []).append(site)
        units.setdefault(key, {}).update(dict.fromkeys(int(u) for u in roots_of[site.y]))
        if site.dense and site.x in channels.tracks:
            consumers.setdefault(top(int(roots_of[site.x][0])), []).append(site)
    groups = []
    for key, sites in members.items():
        free = [u for u in units[key] if u not in pinned]
        readers = consumers.get(key, [])
        if len(free) < 2 or not readers:
            why = next((pinned[u] for u in units[key] if u in pinned), "no dense site reads its channels")
            skipped += [Skipped(s.name, f"channels stay: {why}") for s in sites]
            continue
        names = tuple(s.name for s in sites)
        groups.append(Group(names[0], np.asarray(free), names, tuple(readers)))
    return groups, skipped


def _visit(channels: Channels, node: ir.Node) -> None:
    op, tracks = node.op_type, channels.tracks
    site = site_of(node)
    seen = [v for v in node.inputs if v is not None and v in tracks]
    if node.domain not in ("", "ai.onnx") or any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    ):
        channels.pin([*seen, *_captured(node)], f"{op} {site_name(node)} reads them in a way not understood")
        return
    if site is not None:
        _visit_site(channels, site)
        return
    if not seen:
        return
    new = _carried(channels, node, seen)
    if new is None:
        channels.pin(seen, f"{op} {site_name(node)} needs all of them")
        return
    tracks[node.outputs[0]] = new
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        channels.pin(node.outputs[:1], f"{op} {site_name(node)} has several outputs")


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values of the main graph that a node's bodies read."""
    return list(captured(node, node.graph)) if isinstance(node.graph, ir.Graph) else []


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
        or site.transposed_conv
        or (site.groups > 1 and not site.depthwise)
    ):
        channels.pin([site.x], f"{site.name} ({node.op_type}) needs all of its inputs")
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


def _carried(channels: Channels, node: ir.Node, seen: Sequence[ir.Value]) -> Track | None:
    """The units of a node's first output, or None where they cannot be followed."""
    op, first = node.op_type, channels.tracks[seen[0]]
    if op in UNARY:
        return first if seen[0] is node.inputs[0] and len(seen) == 1 else None
    if op in BINARY:
        return _binary(channels, node, seen)
    if op in POOLS or op in ("BatchNormalization", "InstanceNormalization"):
        rest = node.inputs[1:]
        usable = all(v is None or (constant(v) is not None and exclusive(v)) for v in rest)
        return first if first.axis == 1 and first.rank >= 3 and usable else None
    if op in REDUCE:
        return _reduced(node, first)
    if op == "Concat":
        return _concatenated(channels, node)
    if op == "Transpose":
        perm = ints_attribute(node, "perm", range(first.rank)[::-1])
        return Track(perm.index(first.axis), first.rank, first.ids)
    if op in ("Flatten", "Reshape"):
        return _flattened(node, first)
    if op == "Squeeze":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        gone = (
            [int(a) % first.rank for a in np.ravel(axes)]
            if axes is not None
            else [a % first.rank for a in ints_attribute(node, "axes", ())]
        )
        if not gone or first.axis in gone:
            return None
        return Track(first.axis - sum(a < first.axis for a in gone), first.rank - len(gone), first.ids)
    return None


def _binary(channels: Channels, node: ir.Node, seen: Sequence[ir.Value]) -> Track | None:
    tracked = [channels.tracks[v] for v in seen]
    rank = max(t.rank for t in tracked)
    places = {t.axis + rank - t.rank for t in tracked}
    if len(places) != 1 or len(node.inputs) != 2:
        return None
    axis = places.pop()
    if len(tracked) == 2:
        a, b = tracked
        if len(a.ids) != len(b.ids):
            return None
        channels.union(a.ids, b.ids)
        return Track(axis, rank, a.ids)
    other = next(v for v in node.inputs if v is not None and v not in channels.tracks)
    array = constant(other)
    if array is None or array.ndim > rank:
        return None
    place, ids = axis - (rank - array.ndim), tracked[0].ids
    if place >= 0 and array.shape[place] != 1 and (array.shape[place] != len(ids) or not exclusive(other)):
        return None
    return Track(axis, rank, ids)


def _reduced(node: ir.Node, track: Track) -> Track | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed = [int(a) for a in np.ravel(axes)] if axes is not None else list(ints_attribute(node, "axes", ()))
    gone = [a % track.rank for a in listed]
    if not gone or track.axis in gone:
        return None
    if int_attribute(node, "keepdims", 1):
        return track
    return Track(track.axis - sum(a < track.axis for a in gone), track.rank - len(gone), track.ids)


def _concatenated(channels: Channels, node: ir.Node) -> Track | None:
    tracks = [channels.tracks.get(v) for v in node.inputs if v is not None]
    known = [t for t in tracks if t is not None]
    if len(known) != len(tracks) or len({(t.axis, t.rank) for t in known}) != 1:
        return None
    first = known[0]
    if int_attribute(node, "axis", 0) % first.rank == first.axis:
        return Track(first.axis, first.rank, np.concatenate([t.ids for t in known]))
    for other in known[1:]:
        if len(other.ids) != len(first.ids):
            return None
        channels.union(first.ids, other.ids)
    return first


def _flattened(node: ir.Node, track: Track) -> Track | None:
    """Flattening of [n, C, *spatial] to [n, C·spatial] with known spatial size; the batch stays first."""
    x = node.inputs[0]
    if track.axis != 1 or x is None or x.shape is None:
        return None
    spatial = [d for d in x.shape[2:] if isinstance(d, int)]
    if len(spatial) < len(x.shape) - 2:
        return None
    ids = np.repeat(track.ids, math.prod(spatial))
    if node.op_type == "Flatten":
        return Track(1, 2, ids) if int_attribute(node, "axis", 1) == 1 else None
    shape = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None or shape.size != 2:
        return None
    rows, columns = (int(d) for d in shape)
    keeps_rows = rows in (0, x.shape[0]) and not int_attribute(node, "allowzero", 0)
    if columns == len(ids) or (columns == -1 and keeps_rows):
        return Track(1, 2, ids)
    return None
