"""Slice and Split."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import arranged, axis_in
from edgepress.compressor.export.tflite.ops.moving import (
    arithmetic,
    int32,
    known_ints,
    late,
    moved,
    narrowed,
    vector,
    write_moved,
)
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import int_attribute

RANK = 5
"""Highest rank of SLICE and STRIDED_SLICE."""


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
    write_moved(emit, node.outputs[0], cut(emit, moved(emit, x, last=last), ranges), last=last)


def cut(emit: Emitter, tensor: Tensor, ranges: Mapping[int, range]) -> Tensor:
    """Part of a tensor: for some of its dimensions, which indices are taken, in which order."""
    ranges = {axis: taken for axis, taken in ranges.items() if taken != range(tensor.shape[axis])}
    if len(tensor.shape) > RANK and len(ranges) > 1:
        for axis, taken in ranges.items():
            tensor = cut(emit, tensor, {axis: taken})
        return tensor
    if not ranges:
        return tensor
    whole = [len(ranges[axis]) if axis in ranges else size for axis, size in enumerate(tensor.shape)]
    source, places = narrowed(emit, tensor, ranges, RANK)
    here = {places[axis]: taken for axis, taken in ranges.items()}
    shape = [len(here[axis]) if axis in here else size for axis, size in enumerate(source.shape)]
    if all(taken.step == 1 for taken in here.values()):
        begin = [here[axis].start if axis in here else 0 for axis in range(len(shape))]
        size = [len(here[axis]) if axis in here else -1 for axis in range(len(shape))]
        made = emit.builder.op(
            "SLICE",
            [source, vector(emit, begin), vector(emit, size)],
            shape,
            "",
            tensor.grid,
            options("Slice"),
        )
    else:
        made = _strided(emit, source, here, shape)
    return emit.builder.reshaped(made, whole)


def _strided(emit: Emitter, tensor: Tensor, ranges: Mapping[int, range], shape: list[int]) -> Tensor:
    """STRIDED_SLICE; masks say that a range begins or ends where the dimension does, whatever its size."""
    begin, end, step = ([0] * len(shape), [0] * len(shape), [1] * len(shape))
    from_edge = to_edge = 0
    for axis, size in enumerate(tensor.shape):
        taken = ranges.get(axis, range(size))
        forward = taken.step > 0
        first, behind = (0, size) if forward else (size - 1, -1)
        step[axis] = taken.step
        if taken.start == first:
            from_edge |= 1 << axis
        else:
            begin[axis] = taken.start
        if taken.stop == behind:
            to_edge |= 1 << axis
        else:
            end[axis] = taken.stop
    made = options("StridedSlice", beginMask=from_edge, endMask=to_edge)
    operands = [tensor, *(vector(emit, each) for each in (begin, end, step))]
    return emit.builder.op("STRIDED_SLICE", operands, shape, "", tensor.grid, made)


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
    reached = emit.builder.op("GATHER", [sizes, axes], (count,), options=options("Gather", axis=0))
    beyond = scattered(emit, arithmetic(emit, "SUB", ends, reached), axes, len(shape))
    steps = vector(emit, [1] * len(shape))
    if operand_of(node, 4) is not None:
        more = arithmetic(emit, "SUB", int32(emit, operand_of(node, 4)), vector(emit, [1]))
        steps = arithmetic(emit, "ADD", scattered(emit, more, axes, len(shape)), steps)
    begin, end = scattered(emit, starts, axes, len(shape)), arithmetic(emit, "ADD", sizes, beyond)
    data = moved(emit, x, last=False)
    made = emit.builder.op(
        "STRIDED_SLICE",
        [data, begin, end, steps],
        emit.shape(node.outputs[0]),
        "",
        data.grid,
        options("StridedSlice"),
    )
    write_moved(emit, node.outputs[0], made, last=False)


def late_axes(emit: Emitter, value: ir.Value | None, count: int, rank: int) -> Tensor:
    """Axes [count] as a vector in int32, none negative."""
    if value is None:
        return vector(emit, range(count))
    return arithmetic(emit, "FLOOR_MOD", int32(emit, value), vector(emit, [rank]))


def scattered(emit: Emitter, numbers: Tensor, axes: Tensor, rank: int) -> Tensor:
    """Numbers [count, …] for some axes as [rank, …], 0 for the others."""
    shape = (rank, *numbers.shape[1:])
    indices = emit.builder.reshaped(axes, (*axes.shape, 1))
    return emit.builder.op(
        "SCATTER_ND",
        [indices, numbers, vector(emit, shape)],
        shape,
        numbers.dtype,
        options=options("ScatterNd"),
    )


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
    where = emit.builder.constant(np.array(axis_in(axis, rank, last), np.int32))
    results = [(shape, data.dtype, data.grid) for shape in shapes]
    if len(set(sizes)) == 1:
        made = options("Split", numSplits=len(sizes))
        parts = emit.builder.ops("SPLIT", [where, data], results, made)
    else:
        made = options("SplitV", numSplits=len(sizes))
        parts = emit.builder.ops("SPLIT_V", [data, vector(emit, sizes), where], results, made)
    for value, part in zip(node.outputs, parts, strict=True):
        write_moved(emit, value, part, last=last)


HANDLERS = {"Slice": slice_, "Split": split}
