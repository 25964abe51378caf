"""How units flow through nodes that make none: what comes out of a node, told from what goes in."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.dimensions import Dim, product, sizes_of, target_of
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, constant, exclusive, int_attribute, ints_attribute
from edgepress.compressor.units import Channels, Track

UNARY = frozenset([
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Clip", "Elu", "Gelu", "Erf", "Exp",
    "Abs", "Neg", "Softplus", "Dropout", "Identity", "Cast", "Selu", "Celu", "ThresholdedRelu", "Mish",
    "Sqrt", "Reciprocal", "Log", "Floor", "Ceil", "Round", "Sign", "Softsign", "Sin", "Cos", "Swish", "Not",
])  # fmt: skip
ELEMENTWISE = frozenset([
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum", "Where", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual",
])  # fmt: skip
POOLS = frozenset(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"])
REDUCE = frozenset(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
NORMS = frozenset(["BatchNormalization", "InstanceNormalization"])


def carried(channels: Channels, node: ir.Node, seen: Sequence[ir.Value]) -> list[Track] | None:
    """The units of a node's outputs, from the first on, or None where they cannot be followed.

    Args:
        channels: what is known so far; units that meet become equal.
        node: of the default domain, without bodies, and neither a site nor a recurrence.
        seen: those of its inputs that have units.
    """
    op = node.op_type
    if op in ELEMENTWISE:
        return _one(_elementwise(channels, node, seen))
    if op == "Concat":
        return _one(_concatenated(channels, node))
    if seen[0] is not node.inputs[0] or len(seen) > 1:
        return None
    first = channels.tracks[seen[0]]
    if op in UNARY:
        return [first]
    if op in POOLS or op in NORMS:
        usable = all(v is None or (constant(v) is not None and exclusive(v)) for v in node.inputs[1:])
        least = 2 if op == "BatchNormalization" else 3
        return [first] if first.axis == 1 and first.rank >= least and usable else None
    if op == "Transpose":
        perm = ints_attribute(node, "perm", range(first.rank)[::-1])
        return [Track(perm.index(first.axis), first.rank, first.ids)]
    if op in ("Flatten", "Reshape"):
        return _one(_reshaped(channels, node, first))
    if op == "Split":
        return _split(node, first)
    make = {
        "Squeeze": _squeezed,
        "Unsqueeze": _unsqueezed,
        "Slice": _sliced,
        "Gather": _gathered,
        "Pad": _padded,
    }
    make |= dict.fromkeys(("Resize", "Upsample"), _resized) | dict.fromkeys(REDUCE, _reduced)
    return _one(make[op](node, first)) if op in make else None


def _one(track: Track | None) -> list[Track] | None:
    return None if track is None else [track]


def _elementwise(channels: Channels, node: ir.Node, seen: Sequence[ir.Value]) -> Track | None:
    tracked = [channels.tracks[v] for v in seen]
    rank = max(t.rank for t in tracked)
    places = {t.axis + rank - t.rank for t in tracked}
    ids = tracked[0].ids
    if len(places) != 1 or any(len(t.ids) != len(ids) for t in tracked):
        return None
    axis = places.pop()
    for other in node.inputs:
        if other is None or other in channels.tracks:
            continue
        array = constant(other)
        if array is None or array.ndim > rank:
            return None
        place = axis - (rank - array.ndim)
        if place >= 0 and array.shape[place] != 1 and array.shape[place] != len(ids):
            return None
    for track in tracked[1:]:
        channels.union(ids, track.ids)
    return Track(axis, rank, ids)


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


def axes_of(node: ir.Node, place: int, rank: int) -> list[int] | None:
    """The axes that a node names, by an input or an attribute; none where it names none, None where unknown."""
    value = node.inputs[place] if len(node.inputs) > place else None
    array = constant(value)
    if value is not None and array is None:
        return None
    listed = ints_attribute(node, "axes", ()) if array is None else [int(a) for a in np.ravel(array)]
    return [a % rank for a in listed]


def _reduced(node: ir.Node, track: Track) -> Track | None:
    gone = axes_of(node, 1, track.rank)
    if not gone or track.axis in gone:
        return None
    return track if int_attribute(node, "keepdims", 1) else _without(track, gone)


def _squeezed(node: ir.Node, track: Track) -> Track | None:
    gone = axes_of(node, 1, track.rank)
    return _without(track, gone) if gone and track.axis not in gone else None


def _without(track: Track, gone: Sequence[int]) -> Track:
    return Track(track.axis - sum(a < track.axis for a in gone), track.rank - len(gone), track.ids)


def _unsqueezed(node: ir.Node, track: Track) -> Track | None:
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    count = len(ints_attribute(node, "axes", ())) if array is None else array.size
    new = axes_of(node, 1, track.rank + count)
    if not new:
        return None
    places = [a for a in range(track.rank + count) if a not in new]
    return Track(places[track.axis], track.rank + count, track.ids)


def slices(node: ir.Node, rank: int) -> dict[int, tuple[int, int, int]] | None:
    """(start, end, step) of each axis that a Slice cuts, or None where they are no constants."""
    if len(node.inputs) > 1:
        arrays = [constant(v) for v in node.inputs[1:]]
        if any(v is not None and a is None for v, a in zip(node.inputs[1:], arrays, strict=True)):
            return None
        starts, ends, axes, steps = ([None if a is None else np.ravel(a) for a in arrays] + [None] * 4)[:4]
    else:
        starts, ends, axes = (
            np.array(ints_attribute(node, name, ())) if name in node.attributes else None
            for name in ("starts", "ends", "axes")
        )
        steps = None
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    return {
        int(a) % rank: (int(s), int(e), int(t)) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)
    }


def _sliced(node: ir.Node, track: Track) -> Track | None:
    cuts = slices(node, track.rank)
    if cuts is None:
        return None
    if track.axis not in cuts:
        return track
    start, end, step = cuts[track.axis]
    ids = track.ids[start:end]
    return Track(track.axis, track.rank, ids) if step == 1 and len(ids) else None


def _gathered(node: ir.Node, track: Track) -> Track | None:
    axis = int_attribute(node, "axis", 0) % track.rank
    indices = constant(node.inputs[1])
    if axis != track.axis:
        more = len(sizes_of(node.inputs[1])) if indices is None else indices.ndim
        known = indices is not None or (node.inputs[1] is not None and node.inputs[1].shape is not None)
        place = track.axis + (more - 1 if axis < track.axis else 0)
        return Track(place, track.rank + more - 1, track.ids) if known else None
    if indices is None or indices.ndim != 1 or not indices.size:
        return None
    inside = all(-len(track.ids) <= i < len(track.ids) for i in indices)
    return Track(axis, track.rank, track.ids[indices]) if inside else None


def _padded(node: ir.Node, track: Track) -> Track | None:
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and array is None:
        return None
    pads = ints_attribute(node, "pads", ()) if array is None else [int(p) for p in array]
    axes = axes_of(node, 3, track.rank) if len(node.inputs) > 3 else []
    if axes is None:
        return None
    axes = axes or list(range(track.rank))
    if len(pads) != 2 * len(axes):
        return None
    both = [(pads[i], pads[i + len(axes)]) for i, a in enumerate(axes) if a == track.axis]
    return track if all(pair == (0, 0) for pair in both) else None


def _resized(node: ir.Node, track: Track) -> Track | None:
    if attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    if node.op_type == "Upsample" or len(node.inputs) == 2:
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        factors = attribute(node, "scales") if given is None else given.tolist()
    else:
        arrays = [constant(v) for v in node.inputs[2:4]]
        if any(v is not None and a is None for v, a in zip(node.inputs[2:4], arrays, strict=True)):
            return None
        scales, sizes = (*arrays, None)[:2]
        factors = scales.tolist() if scales is not None and scales.size else None
        if (
            factors is None
            and sizes is not None
            and len(sizes) == track.rank
            and "axes" not in node.attributes
        ):
            factors = (sizes / [len(track.ids) if i == track.axis else 1 for i in range(track.rank)]).tolist()
    axes = axes_of(node, 9, track.rank) or list(range(track.rank))
    if not isinstance(factors, (list, tuple)) or len(factors) != len(axes):
        return None
    return track if all(f == 1 for f, a in zip(factors, axes, strict=True) if a == track.axis) else None


def parts_of(node: ir.Node, size: int) -> list[int] | None:
    """The sizes that a Split gives, or None where they are no constants."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        parts = None if given is None else [int(p) for p in given]
    elif "split" in node.attributes:
        parts = list(ints_attribute(node, "split", ()))
    else:
        each = -(-size // len(node.outputs))
        parts = [min(each, size - i * each) for i in range(len(node.outputs))]
    fits = parts is not None and len(parts) == len(node.outputs) and sum(parts) == size and min(parts) > 0
    return parts if fits else None


def _split(node: ir.Node, track: Track) -> list[Track] | None:
    if int_attribute(node, "axis", 0) % track.rank != track.axis:
        return [track] * len(node.outputs)
    parts = parts_of(node, len(track.ids))
    if parts is None:
        return None
    pieces = np.split(track.ids, np.cumsum(parts)[:-1])
    return [Track(track.axis, track.rank, piece) for piece in pieces]


def _reshaped(channels: Channels, node: ir.Node, track: Track) -> Track | None:
    x = sizes_of(node.inputs[0])
    if len(x) != track.rank:
        return None
    if node.op_type == "Flatten":
        axis = int_attribute(node, "axis", 1)
        axis += len(x) if axis < 0 else 0
        if axis == 0 or axis > track.axis:
            return None
        return _regrouped(channels, track, product(x[track.axis + 1 :]), [None, product(x[axis:])])
    target = target_of(node)
    return None if target is None else _regrouped(channels, track, product(x[track.axis + 1 :]), target[1])


def _regrouped(channels: Channels, track: Track, after: int | None, sizes: Sequence[Dim]) -> Track | None:
    """Where units stand in an array of other sizes with the same elements in a row.

    Args:
        channels: units that end up at one position become equal.
        track: before.
        after: elements behind each position of a unit.
        sizes: of the axes; one may be unknown as long as it lies in front of the units.
    """
    count, tail = len(track.ids), 1
    if not after:
        return None
    for axis in reversed(range(len(sizes))):
        size = sizes[axis]
        if not isinstance(size, int) or size < 1:
            return None
        if (tail * size) % (count * after) == 0:
            ids = _spread(channels, track.ids, after, tail, size)
            return None if ids is None else Track(axis, len(sizes), ids)
        tail *= size
    return None


def _spread(channels: Channels, ids: Array, after: int, tail: int, size: int) -> Array | None:
    """Units along an axis of `size` with `tail` elements behind each position; before it were `after` of each."""
    if after % tail == 0:
        each = np.repeat(ids, after // tail)
    elif tail % after == 0 and len(ids) % (tail // after) == 0:
        blocks = ids.reshape(-1, tail // after)
        for column in blocks.T[1:]:
            channels.union(blocks[:, 0], column)
        each = blocks[:, 0]
    else:
        return None
    return np.tile(each, size // len(each)) if size % len(each) == 0 else None
