"""Pad, and what windows add around their input."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.ops.moving import (
    RANK,
    Pads,
    cut,
    int32,
    known_ints,
    late,
    moved,
    padded_by,
    scattered,
    surrounded,
    taken,
    vector,
)
from edgepress.compressor.export.tflite.ops.slicing import late_axes
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.quantization import ends
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import attribute


def pad(emit: Emitter, node: ir.Node) -> None:
    """PAD, PADV2 or MIRROR_PAD; other modes gather along each dimension."""
    mode = str(attribute(node, "mode", "constant"))
    if late(emit, node, 1, 3):
        _late_pad(emit, node, mode)
        return
    x = node.inputs[0]
    shape, last = emit.shape(x), emit.last(x)
    given = known_ints(emit, node, 1) or []
    axes = known_ints(emit, node, 3) or list(range(len(shape)))
    pads = [(0, 0)] * len(shape)
    for at, axis in enumerate(axes):
        pads[axis_in(axis % len(shape), len(shape), last)] = given[at], given[at + len(axes)]
    if mode == "constant":
        write(emit, node.outputs[0], _constant_pad(emit, node, pads, last), last=last)
        return
    data = moved(emit, x, last=last)
    inner = [
        (max(0, -before), size - max(0, -after))
        for size, (before, after) in zip(data.shape, pads, strict=True)
    ]
    data = cut(emit, data, {axis: range(*ends) for axis, ends in enumerate(inner)})
    outer = [(max(0, before), max(0, after)) for before, after in pads]
    if mode == "reflect" and all(max(each) < size for each, size in zip(outer, data.shape, strict=True)):
        result = _mirrored(emit, data, outer)
    else:
        result = data
        for axis, each in enumerate(outer):
            if any(each):
                indices = np.pad(np.arange(data.shape[axis]), each, mode=mode)  # type: ignore[call-overload]
                result = taken(emit, result, vector(emit, indices), axis)
    write(emit, node.outputs[0], result, last=last)


def _mirrored(emit: Emitter, x: Tensor, pads: Pads) -> Tensor:
    shape = [size + sum(each) for size, each in zip(x.shape, pads, strict=True)]
    amounts = vector(emit, np.reshape(pads, (-1, 2)))
    return emit.builder.op(
        "MIRROR_PAD", [x, amounts], shape, "", x.grid, options("MirrorPad", mode="REFLECT")
    )


def _constant_pad(emit: Emitter, node: ir.Node, pads: Pads, last: bool) -> Tensor:
    x, given = node.inputs[0], operand_of(node, 2)
    number = emit.constant(given)
    fill = 0.0 if number is None else number.reshape(-1)[0]
    data = moved(emit, x, last=last)
    grid = data.grid
    if grid is not None and (late(emit, node, 2) or not ends(grid)[0] <= fill <= ends(grid)[1]):
        data = emit.read(x, last=last)
    kept = {
        axis: range(max(0, -before), size - max(0, -after))
        for axis, (size, (before, after)) in enumerate(zip(data.shape, pads, strict=True))
    }
    outer = [(max(0, before), max(0, after)) for before, after in pads]
    value = emit.maths.cast(emit.read(given), data.dtype) if late(emit, node, 2) else None
    return surrounded(emit, cut(emit, data, kept), outer, fill, value)


def _late_pad(emit: Emitter, node: ir.Node, mode: str) -> None:
    """Pads that are known only at run time; the result's shape must be declared."""
    x, result = node.inputs[0], node.outputs[0]
    shape, sizes = emit.shape(x), emit.shape(result)
    if len(shape) > RANK:
        raise UnsupportedError(f"rank: the kernel takes up to {RANK} dimensions, not {len(shape)}")
    count = emit.shape(operand_of(node, 1))[0] // 2
    both = emit.builder.reshaped(int32(emit, operand_of(node, 1)), (2, count))
    pads = emit.builder.transposed(both, (1, 0))
    axes = operand_of(node, 3)
    if axes is not None or count != len(shape):
        pads = scattered(emit, pads, late_axes(emit, axes, count, len(shape)), len(shape))
    data = moved(emit, x, last=False) if operand_of(node, 2) is None else emit.read(x)
    if mode != "constant":
        for axis, (size, wanted) in enumerate(zip(shape, sizes, strict=True)):
            before = emit.builder.reshaped(cut(emit, pads, {0: range(axis, axis + 1), 1: range(1)}), (1,))
            spread = emit.maths.sub(vector(emit, range(wanted)), before)
            data = taken(emit, data, _source(emit, spread, size, mode), axis)
        write(emit, result, data, last=False)
        return
    given = operand_of(node, 2)
    value = None if given is None else emit.maths.cast(emit.read(given), data.dtype)
    outer = emit.maths.maximum(pads, 0)
    made = padded_by(emit, data, outer, sizes, value)
    first = emit.builder.reshaped(cut(emit, pads, {1: range(1)}), (len(shape),))
    begin = emit.maths.maximum(emit.maths.sub(0, first), 0)
    made = emit.builder.op(
        "SLICE", [made, begin, vector(emit, sizes)], sizes, "", made.grid, options("Slice")
    )
    write(emit, result, made, last=False)


def _source(emit: Emitter, at: Tensor, size: int, mode: str) -> Tensor:
    """Which index of a dimension stands at places [n] that lie before, in and behind it."""
    if mode == "wrap":
        return emit.maths.binary("FLOOR_MOD", at, size)
    if mode == "edge":
        return emit.maths.clipped(at, 0, size - 1)
    folded = emit.maths.binary("FLOOR_MOD", at, max(2 * (size - 1), 1))
    return emit.maths.sub(size - 1, emit.maths.unary("ABS", emit.maths.sub(folded, size - 1)))


HANDLERS = {"Pad": pad}
