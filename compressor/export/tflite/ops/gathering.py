"""Gather and GatherND."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.ops.moving import (
    MOVED,
    carried,
    joined,
    moved,
    taken,
    vector,
    write_rest,
)
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import int_attribute


def gather(emit: Emitter, node: ir.Node) -> None:
    """GATHER; indices of one dimension or none keep the layout."""
    x, at = node.inputs[0], node.inputs[1]
    rank, places = len(emit.shape(x)), len(emit.shape(at))
    axis = int_attribute(node, "axis", 0) % rank
    last = emit.last(x) and places < 2
    data = _source(emit, x, last)
    indices = _indices(emit, at, vector(emit, emit.shape(x)[axis : axis + 1]))
    if places == 0:
        indices = emit.builder.reshaped(indices, (1,))
    result = taken(emit, data, indices, axis_in(axis, rank, last))
    if places == 0:
        write_rest(emit, node.outputs[0], result, [axis], last=last)
    else:
        write(emit, node.outputs[0], result, last=last)


def _source(emit: Emitter, x: ir.Value | None, last: bool) -> Tensor:
    """A value to take from; a table that is constant stays in the type that the graph stores it in."""
    codes = emit.codes(x)
    if x is not None and codes is not None and codes.symmetric and not codes.block:
        return emit.stored(x, lambda array: array, codes.axis)
    if x is not None and emit.constant(x) is not None and emit.constants.half(x):
        return emit.stored(x, lambda array: array, 0)
    return moved(emit, x, last=last)


def _indices(emit: Emitter, value: ir.Value | None, sizes: Tensor) -> Tensor:
    """Indices in int32 or int64; negative ones count from the end of `sizes`, which broadcasts."""
    known = emit.constant(value)
    if known is not None and sizes.array is not None:
        return vector(emit, known.astype(np.int64) % sizes.array)
    tensor = carried(emit, emit.read(value), ("INT32", "INT64"))
    return emit.maths.binary("FLOOR_MOD", tensor, emit.maths.cast(sizes, tensor.dtype))


def gather_nd(emit: Emitter, node: ir.Node) -> None:
    """GATHER_ND; what batches share is put in front of the indices."""
    x, at = node.inputs[0], node.inputs[1]
    shape, places = emit.shape(x), emit.shape(at)
    batches, depth = int_attribute(node, "batch_dims", 0), places[-1]
    if emit.builder.batch and batches:
        raise UnsupportedError("dynamic shape: GatherND with batch_dims needs a fixed batch size")
    sizes = vector(emit, shape[batches : batches + depth])
    indices = _indices(emit, at, sizes)
    if batches:
        grid = np.indices(places[:-1])[:batches]
        front = np.moveaxis(grid, 0, -1).astype(np.int64 if indices.dtype == "INT64" else np.int32)
        indices = joined(emit, [emit.builder.constant(front), indices], len(places) - 1)
    data = moved(emit, x, MOVED, last=False)
    made = options("GatherNd")
    result = emit.builder.op(
        "GATHER_ND", [data, indices], (*places[:-1], *shape[batches + depth :]), "", data.grid, made
    )
    write(emit, node.outputs[0], result, last=False)


HANDLERS = {"Gather": gather, "GatherND": gather_nd}
