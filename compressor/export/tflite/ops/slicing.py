"""Slice and Split."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import arranged, axis_in
from edgepress.compressor.export.tflite.ops.moving import (
    RANK,
    cut,
    int32,
    known_ints,
    late,
    moved,
    parts,
    scattered,
    taken,
    vector,
)
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import int_attribute


def slice_(emit: Emitter, node: ir.Node) -> None:
    """SLICE, or STRIDED_SLICE where a step is not 1."""
    if late(emit, node, 1, 2, 3, 4):
        _late_slice(emit, node)
        return
    x, last = node.inputs[0], emit.last(node.inputs[0])
    shape = emit.shape(x)
    starts, ends = known_ints(emit, node, 1) or [], known_ints(emit, node, 2) or []
    axes = known_ints(emit, node, 3) or list(range(len(starts)))
    steps = known_ints(emit, node, 4) or [1] * len(starts)
    ranges = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where = axis % len(shape)
        taken = range(*slice(start, end, step).indices(shape[where]))
        ranges[axis_in(where, len(shape), last)] = taken
    write(emit, node.outputs[0], cut(emit, moved(emit, x, last=last), ranges), last=last)


def _late_slice(emit: Emitter, node: ir.Node) -> None:
    """STRIDED_SLICE that reads its operands at run time; the result's shape must be declared."""
    x = node.inputs[0]
    shape = emit.shape(x)
    if len(shape) > RANK:
        raise UnsupportedError(f"rank: the kernel takes up to {RANK} dimensions, not {len(shape)}")
    count = emit.shape(operand_of(node, 1))[0]
    axes = late_axes(emit, operand_of(node, 3), count, len(shape))
    sizes = vector(emit, shape)
    starts, ends = int32(emit, operand_of(node, 1)), int32(emit, operand_of(node, 2))
    reached = taken(emit, sizes, axes, 0)
    beyond = scattered(emit, emit.maths.sub(ends, reached), axes, len(shape))
    steps = vector(emit, [1] * len(shape))
    if operand_of(node, 4) is not None:
        more = emit.maths.sub(int32(emit, operand_of(node, 4)), 1)
        steps = emit.maths.add(scattered(emit, more, axes, len(shape)), steps)
    begin, end = scattered(emit, starts, axes, len(shape)), emit.maths.add(sizes, beyond)
    data = moved(emit, x, last=False)
    made = emit.builder.op(
        "STRIDED_SLICE",
        [data, begin, end, steps],
        emit.shape(node.outputs[0]),
        "",
        data.grid,
        options("StridedSlice"),
    )
    write(emit, node.outputs[0], made, last=False)


def late_axes(emit: Emitter, value: ir.Value | None, count: int, rank: int) -> Tensor:
    """Axes [count] as a vector in int32, none negative."""
    if value is None:
        return vector(emit, range(count))
    return emit.maths.binary("FLOOR_MOD", int32(emit, value), rank)


def split(emit: Emitter, node: ir.Node) -> None:
    """SPLIT, or SPLIT_V where parts differ in size."""
    x, last = node.inputs[0], emit.last(node.inputs[0])
    rank = len(emit.shape(x))
    axis = int_attribute(node, "axis", 0) % rank
    data = moved(emit, x, ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "INT64"), last=last)
    shapes = [arranged(emit.shape(value), last) for value in node.outputs]
    sizes = [emit.shape(value)[axis] for value in node.outputs]
    if sum(sizes) != emit.shape(x)[axis]:
        raise UnsupportedError("dynamic shape: the sizes of the parts are worked out while the model runs")
    at = axis_in(axis, rank, last)
    results = [(shape, data.dtype, data.grid) for shape in shapes]
    if len(set(sizes)) == 1:
        pieces = parts(emit, data, at, len(sizes))
    else:
        made = options("SplitV", numSplits=len(sizes))
        where = emit.builder.constant(np.array(at, np.int32))
        pieces = emit.builder.ops("SPLIT_V", [data, vector(emit, sizes), where], results, made)
    for value, part in zip(node.outputs, pieces, strict=True):
        write(emit, value, part, last=last)


HANDLERS = {"Slice": slice_, "Split": split}
