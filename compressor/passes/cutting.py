"""Units taken out of every array of a model that holds them."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.carried import ELEMENTWISE, NORMS, parts_of, slices
from edgepress.compressor.channels import Channels, Track
from edgepress.compressor.dimensions import target_of
from edgepress.compressor.observe import KEPT, kept_channels
from edgepress.compressor.protocols import Array
from edgepress.compressor.recurrent import cut_recurrence, recurrence_of
from edgepress.compressor.sites import Site, constant, int_attribute, new_constant, replace_constant, site_of


def remove_units(model: ir.Model, channels: Channels, removed: set[int]) -> list[str]:
    """Take the units out of every array that holds them.

    Args:
        model: changed in place.
        channels: analysis of `model`.
        removed: roots of the units.

    Returns:
        Names of the sites and recurrent layers whose arrays got smaller.
    """
    gone = np.fromiter(removed, np.int64, len(removed))
    keep: dict[ir.Value, Array] = {}
    for value, track in channels.tracks.items():
        mask = ~np.isin(channels.roots(track.ids), gone)
        if not mask.all():
            keep[value] = mask
    changed = []
    replaced: list[ir.Value] = []  # what worked out sizes and first states
    for node in list(model.graph):
        before = node.inputs
        site, layer = site_of(node), recurrence_of(node)
        if site is not None:
            if _cut_site(site, keep):
                changed.append(site.name)
        elif layer is not None:
            hidden = next((keep[v] for v in node.outputs if v in keep), None)
            x = node.inputs[0]
            if cut_recurrence(layer, hidden, keep.get(x) if x is not None else None):
                changed.append(layer.name)
        elif any(v in keep for v in node.inputs if v is not None) and node.op_type != "Shape":
            _cut_parameters(node, channels, keep)
        replaced += [v for v in before if v is not None and v not in node.inputs]
    _note_shapes(channels, keep)
    for value in replaced:
        _drop_unread(model.graph, value)
    return changed


def _drop_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Take out a value, and what only made it, if nobody reads it any more."""
    todo = [value]
    while todo:
        last = todo.pop()
        node = last.producer()
        if last.uses() or last.is_graph_output():
            continue
        if last.is_initializer() and not last.is_graph_input() and last.graph is graph:
            graph.initializers.pop(last.name or "", None)
        elif (
            node is not None
            and node.graph is graph
            and not any(v.uses() or v.is_graph_output() for v in node.outputs)
        ):
            read = [v for v in node.inputs if v is not None]
            graph.remove(node, safe=True)
            todo += read


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


def _cut_parameters(node: ir.Node, channels: Channels, keep: dict[ir.Value, Array]) -> None:
    """Shrink the per-channel constants of a node that is no site, and the sizes that it names."""
    x = next(v for v in node.inputs if v in keep)
    mask, track = keep[x], channels.tracks[node.outputs[0]]
    if node.op_type == "Reshape":
        _cut_target(node, track, keep)
    elif node.op_type in NORMS:
        for index, value in enumerate(node.inputs[1:], start=1):
            array = constant(value)
            if array is not None:
                replace_constant(node, index, array[mask])
    elif node.op_type in ELEMENTWISE:
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is None:
                continue
            place = track.axis - (track.rank - array.ndim)
            if array.ndim and place >= 0 and array.shape[place] == len(mask) and len(mask) > 1:
                replace_constant(node, index, np.compress(mask, array, axis=place))
    elif node.op_type in ("Split", "Slice", "Gather", "Resize"):
        _cut_selection(node, channels.tracks[x], mask)


def _cut_target(node: ir.Node, track: Track, keep: dict[ir.Value, Array]) -> None:
    """Write the sizes that come out of a Reshape now."""
    target = target_of(node)
    mask = keep.get(node.outputs[0])
    if target is None or mask is None or not isinstance(node.graph, ir.Graph):
        return
    entries = target[0]
    if entries[track.axis] != -1:
        entries[track.axis] = int(mask.sum())
    array = np.array(entries, np.int64)
    node.attributes.pop("allowzero", None)
    if constant(node.inputs[1]) is not None:
        replace_constant(node, 1, array)
    else:
        node.replace_input_with(1, new_constant(node.graph, f"{node.outputs[0].name}_shape", array))


def _cut_selection(node: ir.Node, track: Track, mask: Array) -> None:
    """Let a node that picks positions of the units' axis pick those that are left of them."""
    before = np.concatenate([[0], np.cumsum(mask)])  # kept positions in front of each
    if node.op_type == "Split":
        _cut_split(node, track, mask, before)
    elif node.op_type == "Slice":
        _cut_slice(node, track, before)
    elif node.op_type == "Gather" and int_attribute(node, "axis", 0) % track.rank == track.axis:
        indices = constant(node.inputs[1])
        if indices is not None:
            whole = np.where(indices < 0, indices + len(mask), indices)
            replace_constant(node, 1, before[whole[mask[whole]]].astype(indices.dtype))
    elif node.op_type == "Resize" and len(node.inputs) > 3:
        sizes = constant(node.inputs[3])
        if sizes is not None and sizes.size:
            changed = sizes.copy()
            changed[track.axis] = before[-1]
            replace_constant(node, 3, changed)


def _cut_split(node: ir.Node, track: Track, mask: Array, before: Array) -> None:
    parts = parts_of(node, len(mask))
    if parts is None or int_attribute(node, "axis", 0) % track.rank != track.axis:
        return
    sizes = np.diff(before[np.concatenate([[0], np.cumsum(parts)])])
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        replace_constant(node, 1, sizes)
    elif "split" in node.attributes or not isinstance(node.graph, ir.Graph) or _opset(node.graph) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes.tolist())
    else:
        node.resize_inputs(2)
        node.replace_input_with(1, new_constant(node.graph, f"{node.outputs[0].name}_split", sizes))


def _opset(graph: ir.Graph) -> int:
    return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 13))


def _cut_slice(node: ir.Node, track: Track, before: Array) -> None:
    cuts = slices(node, track.rank)
    if cuts is None or track.axis not in cuts:
        return
    start, end, _ = slice(*cuts[track.axis]).indices(len(before) - 1)
    cuts[track.axis] = int(before[start]), int(before[end]), 1
    columns = [list(cuts), *([cut[i] for cut in cuts.values()] for i in range(3))]
    if len(node.inputs) == 1:
        for name, values in zip(("axes", "starts", "ends"), columns, strict=False):
            node.attributes[name] = ir.AttrInt64s(name, values)
        return
    order = (1, 2, 0, 3)  # starts, ends, axes, steps
    for index, values in enumerate((columns[i] for i in order), start=1):
        if index < len(node.inputs) and node.inputs[index] is not None:
            replace_constant(node, index, np.array(values, np.int64))


def _note_shapes(channels: Channels, keep: dict[ir.Value, Array]) -> None:
    """Set the shape of each value that shrank, and note which of the original's channels are left."""
    for value, mask in keep.items():
        value.meta[KEPT] = kept_channels(value, len(mask))[mask]
        if value.shape is not None:
            axis = channels.tracks[value].axis
            value.shape = ir.Shape([int(mask.sum()) if i == axis else d for i, d in enumerate(value.shape)])
