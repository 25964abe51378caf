"""What handlers that move numbers share: types that kernels take, layouts of results, operands known late."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, Ending, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import to_last
from edgepress.compressor.export.tflite.schema import DTYPES, numpy_dtype, options
from edgepress.compressor.export.tflite.tensors import Array, Tensor

MOVED = ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
"""Types that kernels which move numbers take, if nothing else is said."""
COUNTED = ("FLOAT32", "INT32", "INT64")
"""Types that kernels which add and multiply take."""
_CARRIERS: Mapping[str, tuple[str, ...]] = {
    "FLOAT16": ("FLOAT32",),
    "BOOL": ("UINT8", "INT32"),
    "INT8": ("INT32", "FLOAT32"),
    "UINT8": ("INT32", "FLOAT32"),
    "INT16": ("INT32", "FLOAT32"),
    "UINT16": ("INT32", "FLOAT32"),
    "INT32": ("INT64",),
    "UINT32": ("INT64",),
}
"""Types that hold every number of a type, in the order of preference."""
FAR = 2**30
"""Beyond every size, and small enough that sums of two stay in 32 bits."""


def converted(emit: Emitter, tensor: Tensor, dtype: str) -> Tensor:
    """CAST, or nothing; constants are converted here."""
    if tensor.dtype == dtype:
        return tensor
    if tensor.array is not None and dtype in DTYPES.values():
        return emit.builder.constant(tensor.array.astype(numpy_dtype(dtype)))
    made = options("Cast", inDataType=tensor.dtype, outDataType=dtype)
    return emit.builder.op("CAST", [tensor], tensor.shape, dtype, options=made)


def carried(emit: Emitter, tensor: Tensor, kinds: Collection[str] = MOVED) -> Tensor:
    """A tensor in a type that a kernel takes: its own, or one that holds every number of it.

    Raises:
        UnsupportedError: there is none.
    """
    if tensor.grid is not None or tensor.dtype in kinds:
        return tensor
    carrier = next((kind for kind in _CARRIERS.get(tensor.dtype, ()) if kind in kinds), None)
    if carrier is None:
        raise UnsupportedError(f"dtype: the kernel does not take {tensor.dtype}")
    return converted(emit, tensor, carrier)


def moved(emit: Emitter, value: ir.Value | None, kinds: Collection[str] = MOVED, *, last: bool) -> Tensor:
    """A value for a kernel that leaves numbers as they are: integers where it has them."""
    return carried(emit, emit.read(value, integer=emit.grid(value) is not None, last=last), kinds)


def keeps_grid(emit: Emitter, value: ir.Value | None, ending: Ending) -> bool:
    """Whether a kernel that averages integers on their own grid stays within one step of the result's."""
    own = emit.grid(value)
    return own is not None and ending.grid is not None and ending.grid.scale[0] >= own.scale[0]


def write_moved(emit: Emitter, value: ir.Value, tensor: Tensor, *, last: bool) -> None:
    """The result of such a kernel, in the value's own type."""
    own = tensor if tensor.grid is not None else converted(emit, tensor, emit.dtype(value))
    emit.write(value, own, last=last)


def write_rest(
    emit: Emitter, value: ir.Value, tensor: Tensor, dropped: Collection[int], *, last: bool
) -> None:
    """A result whose dimensions `dropped` have size 1 and vanish.

    Args:
        emit: the emitter.
        value: without these dimensions.
        tensor: with them.
        dropped: axes in ONNX's order.
        last: whether the tensor's channels come last.
    """
    rank = len(tensor.shape)
    order = to_last(rank) if last else list(range(rank))
    stays = [axis for axis in order if axis not in dropped]
    shape = [size for axis, size in zip(order, tensor.shape, strict=True) if axis not in dropped]
    if dropped:
        tensor = emit.builder.reshaped(tensor, shape)
    still = last and len(stays) > 2 and stays == [sorted(stays)[at] for at in to_last(len(stays))]
    if not still:
        tensor = emit.builder.transposed(tensor, [stays.index(axis) for axis in sorted(stays)])
    write_moved(emit, value, tensor, last=still)


def known_ints(emit: Emitter, node: ir.Node, index: int) -> list[int] | None:
    """A constant operand of integers; None where it is left out or known only at run time."""
    array = emit.constant(operand_of(node, index))
    return None if array is None else [int(each) for each in array.reshape(-1)]


def late(emit: Emitter, node: ir.Node, *indices: int) -> bool:
    """Whether one of these operands is there, but known only at run time."""
    values = [operand_of(node, index) for index in indices]
    return any(value is not None and emit.constant(value) is None for value in values)


def int32(emit: Emitter, value: ir.Value | None) -> Tensor:
    """A vector of sizes or indices in int32; what lies beyond every size is cut to `FAR`."""
    tensor = emit.read(value)
    if tensor.dtype == "INT64":
        for code, bound in (("MINIMUM", FAR), ("MAXIMUM", -FAR)):
            tensor = emit.builder.op(code, [tensor, scalar(emit, bound, "INT64")], tensor.shape)
    return converted(emit, tensor, "INT32")


def scalar(emit: Emitter, number: float, dtype: str) -> Tensor:
    """A constant of rank 0."""
    return emit.builder.constant(np.array(number, numpy_dtype(dtype)))


def vector(emit: Emitter, numbers: Sequence[int] | Array) -> Tensor:
    """A constant operand in int32."""
    return emit.builder.constant(np.array(numbers, np.int32))


def arithmetic(emit: Emitter, code: str, left: Tensor, right: Tensor) -> Tensor:
    """ADD, SUB, MUL, MAXIMUM, MINIMUM or FLOOR_MOD of reals or plain integers, broadcast."""
    kinds = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "FLOOR_MOD": "FloorMod", "DIV": "Div"}
    shape = np.broadcast_shapes(left.shape, right.shape)
    made = options(kinds[code]) if code in kinds else options("MaximumMinimum")
    return emit.builder.op(code, [left, right], shape, options=made)


def narrowed(
    emit: Emitter, tensor: Tensor, touched: Collection[int], limit: int
) -> tuple[Tensor, dict[int, int]]:
    """A tensor of a rank that a kernel takes: dimensions side by side that it does not touch become one.

    Args:
        emit: the emitter.
        tensor: of any rank.
        touched: its dimensions that the kernel changes.
        limit: the kernel's highest rank.

    Returns:
        The tensor, and where each touched dimension went.

    Raises:
        UnsupportedError: too many remain.
    """
    if len(tensor.shape) <= limit:
        return tensor, {axis: axis for axis in touched}
    sizes: list[int] = []
    places: dict[int, int] = {}
    for axis, size in enumerate(tensor.shape):
        if axis in touched or axis == 0 or axis - 1 in touched:
            sizes.append(size)
        else:
            sizes[-1] *= size
        if axis in touched:
            places[axis] = len(sizes) - 1
    if len(sizes) > limit:
        raise UnsupportedError(f"rank: the kernel takes up to {limit} dimensions, not {len(sizes)}")
    return emit.builder.reshaped(tensor, sizes), places
