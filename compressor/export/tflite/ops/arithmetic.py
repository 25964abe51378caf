"""Arithmetic in float32 on tensors of the file, for operators that are composed of several kernels."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import axis_in, channels_last
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Tensor

TINY = float(np.finfo(np.float32).tiny)
"""The least divisor that stands for 0."""
_KINDS = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "MAXIMUM": "MaximumMinimum",
    "MINIMUM": "MaximumMinimum",
    "SQUARED_DIFFERENCE": "SquaredDifference",
    "POW": "Pow",
}


def real(emit: Emitter, value: ir.Value | None, *, last: bool = False) -> Tensor:
    """A value as float32; float16 is widened, other types are refused."""
    tensor = emit.read(value, last=last)
    if tensor.dtype == "FLOAT16":
        return emit.dequantized(tensor)
    if tensor.dtype != "FLOAT32":
        name = value.name if value is not None else ""
        raise UnsupportedError(f"dtype: {name!r} is {tensor.dtype}; the kernel computes in float32")
    return tensor


def give(emit: Emitter, value: ir.Value | None, tensor: Tensor, *, last: bool = False) -> None:
    """Write a float32 result as the type that a value has; one that nobody asks for is not written."""
    if value is None or not value.name:
        return
    if value.dtype == ir.DataType.FLOAT16:
        made = options("Cast", inDataType="FLOAT32", outDataType="FLOAT16")
        tensor = emit.builder.op("CAST", [tensor], tensor.shape, "FLOAT16", options=made)
    emit.write(value, tensor, last=last)


def number(emit: Emitter, value: float) -> Tensor:
    """A constant of no dimensions."""
    return emit.builder.constant(np.array(value, np.float32))


def integers(emit: Emitter, values: Sequence[int]) -> Tensor:
    """A constant list [n] in int32, as kernels want axes and sizes."""
    return emit.builder.constant(np.array(values, np.int32).reshape(-1))


def binary(emit: Emitter, code: str, one: Tensor, other: Tensor | float) -> Tensor:
    """An elementwise kernel of two operands that broadcast."""
    second = other if isinstance(other, Tensor) else number(emit, other)
    shape = np.broadcast_shapes(one.shape, second.shape)
    return emit.builder.op(code, [one, second], shape, "FLOAT32", options=options(_KINDS[code]))


def unary(emit: Emitter, code: str, x: Tensor) -> Tensor:
    """An elementwise kernel of one operand."""
    return emit.builder.op(code, [x], x.shape, "FLOAT32")


def reduced(emit: Emitter, code: str, x: Tensor, axes: Sequence[int], *, keep: bool = True) -> Tensor:
    """MEAN, SUM or REDUCE_MAX over dimensions of the file."""
    over = sorted(set(axes))
    shape = [1 if at in over else size for at, size in enumerate(x.shape) if keep or at not in over]
    made = options("Reducer", keepDims=keep)
    return emit.builder.op(code, [x, integers(emit, over)], shape, "FLOAT32", options=made)


def axes_in(axes: Sequence[int], rank: int, last: bool) -> list[int]:
    """Where axes of ONNX stand in the file."""
    return [axis_in(axis % rank, rank, last) for axis in axes]


def spread(
    emit: Emitter, value: ir.Value | None, shape: Sequence[int], *, last: bool, array: Array | None = None
) -> Tensor:
    """A parameter in a shape of the result's rank, so that it broadcasts in the result's layout.

    Args:
        emit: reads it.
        value: of the graph; not read where `array` is given.
        shape: in ONNX's order.
        last: whether the result has its channels last.
        array: numbers in the value's place.
    """
    tensor = real(emit, value) if array is None else emit.builder.constant(array.astype(np.float32))
    wide = emit.builder.reshaped(tensor, shape)
    return channels_last(emit.builder, wide) if last and len(shape) > 2 else wide


def sliced(emit: Emitter, x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """SLICE: `length` indices of one dimension of the file, from `start` on."""
    if start == 0 and length == x.shape[axis]:
        return x
    begin = [start if at == axis else 0 for at in range(len(x.shape))]
    size = [length if at == axis else -1 for at in range(len(x.shape))]
    shape = [length if at == axis else whole for at, whole in enumerate(x.shape)]
    inputs = [x, integers(emit, begin), integers(emit, size)]
    return emit.builder.op("SLICE", inputs, shape, grid=x.grid, options=options("Slice"))


def parts(emit: Emitter, x: Tensor, axis: int, count: int) -> list[Tensor]:
    """SPLIT: equal parts of one dimension of the file; constants are cut here."""
    if count == 1:
        return [x]
    if x.array is not None and (x.grid is None or x.grid.single):
        return [emit.builder.constant(each, x.grid) for each in np.split(x.array, count, axis)]
    shape = [size // count if at == axis else size for at, size in enumerate(x.shape)]
    at = emit.builder.constant(np.array(axis, np.int32))
    made = options("Split", numSplits=count)
    return emit.builder.ops("SPLIT", [at, x], [(shape, x.dtype, x.grid)] * count, made)


def joined(emit: Emitter, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """CONCATENATION along one dimension of the file."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    shape = list(first.shape)
    shape[axis] = sum(each.shape[axis] for each in tensors)
    made = options("Concatenation", axis=axis)
    return emit.builder.op("CONCATENATION", list(tensors), shape, first.dtype, first.grid, made)
