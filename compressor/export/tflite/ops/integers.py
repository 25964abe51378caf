"""Products of integers without scales: computed in float32, which holds sums up to 2²⁴ exactly.

Behind a DynamicQuantizeLinear, whose scale is known at run time only, no integer kernel of TFLite would do.
"""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, only_reader, operand_of
from edgepress.compressor.export.tflite.layout import arranged
from edgepress.compressor.export.tflite.maths import TINY
from edgepress.compressor.export.tflite.ops.convolution import padded, window_of
from edgepress.compressor.export.tflite.ops.products import product
from edgepress.compressor.export.tflite.ops.values import real, write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Tensor
from edgepress.compressor.sites import int_attribute

_INTEGERS = frozenset({"INT8", "UINT8", "INT32"})


def whole(emit: Emitter, value: ir.Value | None, *, last: bool = False) -> Tensor:
    """An integer value as float32 numbers of the same size."""
    if value is None:
        raise UnsupportedError("form: an operand is missing")
    if emit.grid(value) is not None:
        moved = emit.maths.cast(emit.read(value, integer=True, last=last), "FLOAT32")
        return emit.maths.add(moved, 128.0) if value.dtype == ir.DataType.UINT8 else moved
    tensor = emit.read(value, last=last)
    code, sources = emit.builder.maker(tensor)
    maker = value.producer()
    if (
        code == "CAST"
        and maker is not None
        and maker.op_type == "DynamicQuantizeLinear"
        and sources[0] is not None
    ):
        return sources[0]
    if tensor.dtype not in _INTEGERS:
        raise UnsupportedError(f"dtype: {value.name!r} is {tensor.dtype}, no integer")
    return emit.maths.cast(tensor, "FLOAT32")


def centred(
    emit: Emitter, value: ir.Value | None, zero: ir.Value | None, *, channels: int = 0, last: bool = False
) -> Tensor:
    """Integers less their zero point, as float32.

    Args:
        emit: reads them.
        value: the integers.
        zero: one, or one for each index of a dimension; None stands for 0.
        channels: dimensions behind that one.
        last: channels last; only with one zero point.
    """
    known, offset = emit.constant(value), emit.constant(zero)
    if known is not None and (zero is None or offset is not None):
        shifted = known.astype(np.int32) - _aligned(offset, channels)
        return _constant(emit, shifted)
    x = whole(emit, value, last=last)
    if zero is None or (offset is not None and not offset.any()):
        return x
    shift = whole(emit, zero) if offset is None else None
    if shift is None:
        return emit.maths.sub(x, emit.builder.constant(_aligned(offset, channels).astype(np.float32)))
    shape = (*shift.shape, *(1 for _ in range(channels))) if shift.shape not in {(), (1,)} else ()
    return emit.maths.sub(x, emit.builder.reshaped(shift, shape))


def _aligned(zero: Array | None, channels: int) -> Array:
    if zero is None:
        return np.zeros((), np.int32)
    wide = zero.astype(np.int32)
    return wide.reshape(-1, *(1 for _ in range(channels))) if wide.size > 1 else wide.reshape(())


def _constant(emit: Emitter, integers: Array) -> Tensor:
    """A constant, in int8 where it fits."""
    if integers.size and integers.min() >= -128 and integers.max() <= 127:
        return emit.dequantized(emit.builder.constant(integers.astype(np.int8), Grid.of(1.0)))
    return emit.builder.constant(integers.astype(np.float32))


def dynamic_quantize_linear(emit: Emitter, node: ir.Node) -> None:
    """X in 8 bits by the least and the largest number of this very run, the scale and the zero point."""
    x, last = node.inputs[0], emit.last(node.inputs[0])
    data = real(emit, x, last=last)
    axes = list(range(len(data.shape)))
    low = emit.maths.minimum(emit.maths.reduced("REDUCE_MIN", data, axes, keep=False), 0.0)
    high = emit.maths.maximum(emit.maths.reduced("REDUCE_MAX", data, axes, keep=False), 0.0)
    scale = emit.maths.maximum(emit.maths.div(emit.maths.sub(high, low), 255.0), TINY)
    steps = emit.maths.div(emit.maths.sub(0.0, low), scale)
    zero = emit.maths.clipped(emit.maths.unary("ROUND", steps), 0.0, 255.0)
    levels = emit.maths.add(emit.maths.unary("ROUND", emit.maths.div(data, scale)), zero)
    levels = emit.maths.clipped(levels, 0.0, 255.0)
    emit.write(node.outputs[0], emit.maths.cast(levels, "UINT8"), last=last)
    write(emit, node.outputs[1], scale)
    emit.write(node.outputs[2], emit.maths.cast(zero, "UINT8"))


def matmul_integer(emit: Emitter, node: ir.Node) -> None:
    """(A − a) @ (B − b) in int32; zero points of rows of A and of columns of B."""
    a, b = node.inputs[0], node.inputs[1]
    one = centred(emit, a, operand_of(node, 2), channels=1)
    known = emit.constant(b)
    zero = operand_of(node, 3)
    if b is not None and known is not None and known.ndim == 2 and len(one.shape) > 1 and _known(emit, zero):
        integers = known.astype(np.int32) - _aligned(emit.constant(zero), 0)
        weights = _constant(emit, np.ascontiguousarray(np.broadcast_to(integers, known.shape).T))
        made = options("FullyConnected", keepNumDims=len(one.shape) > 2)
        shape = (*one.shape[:-1], known.shape[1])
        y = emit.builder.op("FULLY_CONNECTED", [one, weights, None], shape, options=made)
    else:
        y = product(emit, one, centred(emit, b, zero))
    _write_sums(emit, node.outputs[0], y)


def _write_sums(emit: Emitter, value: ir.Value, sums: Tensor, *, last: bool = False) -> None:
    """Write sums as int32; a Cast to float32 behind them is taken in."""
    reader = only_reader(value)
    if (
        reader is not None
        and reader.op_type == "Cast"
        and int_attribute(reader, "to", 0) == ir.DataType.FLOAT
    ):
        emit.done.add(reader)
        emit.write(reader.outputs[0], sums, last=last)
    else:
        emit.write(value, emit.maths.cast(sums, "INT32"), last=last)


def _known(emit: Emitter, zero: ir.Value | None) -> bool:
    return zero is None or emit.constant(zero) is not None


def conv_integer(emit: Emitter, node: ir.Node) -> None:
    """CONV_2D of x − z and w − z, in int32; a zero point for each output of w."""
    x, w = node.inputs[0], node.inputs[1]
    weight, rank = emit.shape(w), len(emit.shape(x))
    window = window_of(node, emit.shape(x)[2:], weight[2:])
    data = centred(emit, x, operand_of(node, 2), last=True)
    if emit.constant(x) is not None:
        raise UnsupportedError("form: a ConvInteger of a constant")
    if rank == 3:
        data = emit.builder.reshaped(data, (data.shape[0], 1, *data.shape[1:]))
    data, padding = padded(emit, data, window)
    filters = centred(emit, w, operand_of(node, 3), channels=rank - 1)
    if rank == 3:
        filters = emit.builder.reshaped(filters, (*weight[:2], 1, weight[2]))
    filters = emit.builder.transposed(filters, [0, 2, 3, 1])
    made = options(
        "Conv2D",
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        dilationHFactor=window.dilations[0],
        dilationWFactor=window.dilations[1],
    )
    shape = arranged(emit.shape(node.outputs[0]), last=True)
    four = shape if rank == 4 else (shape[0], 1, *shape[1:])
    bias = emit.builder.constant(np.zeros(weight[0], np.float32))
    y = emit.builder.op("CONV_2D", [data, filters, bias], four, "FLOAT32", options=made)
    _write_sums(emit, node.outputs[0], emit.builder.reshaped(y, shape), last=True)


HANDLERS = {
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "ConvInteger": conv_integer,
}
