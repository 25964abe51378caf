"""Pad, and what windows add around their input."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.ops.gathering import taken
from edgepress.compressor.export.tflite.ops.moving import (
    arithmetic,
    converted,
    int32,
    known_ints,
    late,
    moved,
    narrowed,
    vector,
    write_moved,
)
from edgepress.compressor.export.tflite.ops.slicing import cut, late_axes, scattered
from edgepress.compressor.export.tflite.quantization import HIGH, LOW, ends
from edgepress.compressor.export.tflite.schema import numpy_dtype, options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import attribute

Pads = Sequence[tuple[int, int]]
RANK = 5
"""Highest rank of PAD and PADV2."""


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
        write_moved(emit, node.outputs[0], _constant_pad(emit, node, pads, last), last=last)
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
    write_moved(emit, node.outputs[0], result, last=last)


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
    value = converted(emit, emit.read(given), data.dtype) if late(emit, node, 2) else None
    return surrounded(emit, cut(emit, data, kept), outer, fill, value)


def surrounded(
    emit: Emitter, x: Tensor, pads: Pads, fill: float = 0.0, value: Tensor | None = None
) -> Tensor:
    """PAD with 0, PADV2 with another number; of integers on a grid, with what stands for it.

    Args:
        emit: the emitter.
        x: in the file's order of dimensions.
        pads: before and after, for each dimension; none negative.
        fill: the number.
        value: where it is known only at run time.
    """
    if not any(edge for each in pads for edge in each):
        return x
    whole = [size + sum(each) for size, each in zip(x.shape, pads, strict=True)]
    source, places = narrowed(emit, x, [axis for axis, each in enumerate(pads) if any(each)], RANK)
    here = [(0, 0)] * len(source.shape)
    for axis, place in places.items():
        here[place] = pads[axis]
    shape = [size + sum(each) for size, each in zip(source.shape, here, strict=True)]
    amounts = vector(emit, np.reshape(here, (-1, 2)))
    filler = _filler(x, fill) if value is None else None
    if filler is not None:
        value = emit.builder.constant(np.reshape(filler, 1), x.grid)
    made = _padded(emit, source, amounts, shape, value)
    return emit.builder.reshaped(made, whole)


def _padded(emit: Emitter, x: Tensor, amounts: Tensor, shape: Sequence[int], value: Tensor | None) -> Tensor:
    if value is None:
        return emit.builder.op("PAD", [x, amounts], shape, "", x.grid, options("Pad"))
    value = emit.builder.reshaped(value, (1,))
    return emit.builder.op("PADV2", [x, amounts, value], shape, "", x.grid, options("PadV2"))


def _filler(x: Tensor, fill: float) -> np.generic | None:
    """A number in the type and on the grid of a tensor; None for the one that PAD adds."""
    if x.grid is not None:
        level = np.clip(np.round(fill / x.grid.scale[0]) + x.grid.zero_point[0], LOW, HIGH)
        return None if level == x.grid.zero_point[0] else np.int8(level)
    if fill == 0:
        return None
    if x.dtype == "FLOAT32":
        most = np.finfo(np.float32).max
        return np.float32(np.clip(fill, -most, most) if np.isinf(fill) and fill < 0 else fill)
    kind = numpy_dtype(x.dtype)
    lowest = kind.kind in "iu" and np.isinf(fill)
    made: np.generic = kind.type(np.iinfo(kind).min if lowest else fill)
    return made


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
            spread = arithmetic(emit, "SUB", vector(emit, range(wanted)), before)
            data = taken(emit, data, _source(emit, spread, size, mode), axis)
        write_moved(emit, result, data, last=False)
        return
    given = operand_of(node, 2)
    value = None if given is None else converted(emit, emit.read(given), data.dtype)
    nothing = vector(emit, [0])
    outer = arithmetic(emit, "MAXIMUM", pads, nothing)
    made = _padded(emit, data, outer, sizes, value)
    first = emit.builder.reshaped(cut(emit, pads, {1: range(1)}), (len(shape),))
    begin = arithmetic(emit, "MAXIMUM", arithmetic(emit, "SUB", nothing, first), nothing)
    made = emit.builder.op(
        "SLICE", [made, begin, vector(emit, sizes)], sizes, "", made.grid, options("Slice")
    )
    write_moved(emit, result, made, last=False)


def _source(emit: Emitter, at: Tensor, size: int, mode: str) -> Tensor:
    """Which index of a dimension stands at places [n] that lie before, in and behind it."""
    if mode == "wrap":
        return arithmetic(emit, "FLOOR_MOD", at, vector(emit, [size]))
    if mode == "edge":
        inside = arithmetic(emit, "MAXIMUM", at, vector(emit, [0]))
        return arithmetic(emit, "MINIMUM", inside, vector(emit, [size - 1]))
    turn = vector(emit, [size - 1])
    folded = arithmetic(emit, "FLOOR_MOD", at, vector(emit, [max(2 * (size - 1), 1)]))
    away = emit.builder.op("ABS", [arithmetic(emit, "SUB", folded, turn)], at.shape, options=options("Abs"))
    return arithmetic(emit, "SUB", turn, away)


HANDLERS = {"Pad": pad}
