"""Values of the graph as operands of arithmetic: in the type that kernels work in, and back in their own."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import axis_in, channels_last
from edgepress.compressor.export.tflite.tensors import Array, Tensor

WORKING = {
    "FLOAT32": "FLOAT32",
    "FLOAT16": "FLOAT32",
    "INT64": "INT64",
    "UINT32": "INT64",
    **dict.fromkeys(("INT32", "INT8", "UINT8", "INT16", "UINT16", "BOOL"), "INT32"),
}
"""The type that kernels work in for each type of values; narrower results wrap around when they are cast back."""


def working(dtype: str) -> str:
    """The type that kernels work in; raises `UnsupportedError` where there is none."""
    if dtype not in WORKING:
        raise UnsupportedError(
            f"dtype: TFLite's kernels do not take {dtype.lower()}", "Cast it to a narrower type."
        )
    return WORKING[dtype]


def ordered(emit: Emitter, tensor: Tensor, value: ir.Value | None) -> Tensor:
    """Bits of uint64 held in INT64 as numbers in the same order, moved by 2⁶³; back again by the same."""
    if value is None or emit.dtype(value) != "UINT64":
        return tensor
    return emit.maths.add(tensor, -(2**63))


def unsigned_real(emit: Emitter, tensor: Tensor, value: ir.Value | None) -> Tensor:
    """Bits of uint64 held in INT64 as FLOAT32."""
    if value is None or emit.dtype(value) != "UINT64":
        return tensor
    signed = emit.maths.cast(tensor, "FLOAT32")
    return emit.maths.select(emit.maths.binary("LESS", tensor, 0), emit.maths.add(signed, 2.0**64), signed)


def plain(emit: Emitter, value: ir.Value | None, rank: int = 0, *, last: bool = False) -> Tensor:
    """A value's numbers in its own type: of what QuantizeLinear gave the integers, not what they stand for.

    Args:
        emit: the emitter.
        value: of the graph.
        rank: of the result that it is an operand of; default: its own.
        last: channels last.
    """
    own = emit.shape(value)
    whole = value is not None and value.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    if value is None or emit.grid(value) is None or not whole:
        return emit.operand(value, rank or len(own), last=last)
    maths, dtype = emit.maths, emit.dtype(value)
    held = maths.cast(emit.operand(value, rank or len(own), integer=True, last=last), "INT32")
    return maths.cast(maths.add(held, 128) if dtype == "UINT8" else held, dtype)


def numbers(
    emit: Emitter, value: ir.Value | None, rank: int = 0, *, last: bool = False, bits: bool = False
) -> Tensor:
    """A value's numbers in the type that kernels work in; arguments as `plain`.

    Args:
        emit: the emitter.
        value: of the graph.
        rank: of the result that it is an operand of; default: its own.
        last: channels last.
        bits: whether uint64 may come as the same bits in INT64, which sums and products do not mind (see `ordered`).
    """
    if bits and value is not None and emit.dtype(value) == "UINT64":
        return emit.maths.cast(plain(emit, value, rank, last=last), "INT64")
    if value is not None:
        working(emit.dtype(value))
    held = plain(emit, value, rank, last=last)
    return emit.maths.cast(held, working(held.dtype))


def real(emit: Emitter, value: ir.Value | None, *, last: bool = False) -> Tensor:
    """A value as float32; float16 is widened when the model runs, other types are refused."""
    tensor = emit.read(value, last=last)
    if tensor.dtype == "FLOAT16":
        return emit.dequantized(tensor)
    if tensor.dtype != "FLOAT32":
        name = value.name if value is not None else ""
        raise UnsupportedError(f"dtype: {name!r} is {tensor.dtype}; the kernel computes in float32")
    return tensor


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


def axes_in(axes: Sequence[int], rank: int, last: bool) -> list[int]:
    """Where axes of ONNX stand in the file."""
    return [axis_in(axis % rank, rank, last) for axis in axes]


def write(emit: Emitter, value: ir.Value | None, tensor: Tensor, *, last: bool = False) -> None:
    """Write a result in the type that its value has, whatever it was worked out in.

    Integers wrap around, those on a grid stay there. An output that the node leaves out is not written.
    """
    if value is None or not value.name:
        return
    own = tensor if tensor.grid is not None else emit.maths.cast(tensor, emit.dtype(value))
    emit.write(value, own, last=last)
