"""Kernels that move numbers, and what their handlers share: types, layouts of results, operands known late."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, Ending, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import to_last
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.quantization import HIGH, LOW
from edgepress.compressor.export.tflite.schema import numpy_dtype, options
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
RANK = 5
"""Highest rank of STRIDED_SLICE, PAD and PADV2."""
Pads = Sequence[tuple[int, int]]
FAR = 2**30
"""Beyond every size, and small enough that sums of two stay in 32 bits."""


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
    return emit.maths.cast(tensor, carrier)


def moved(emit: Emitter, value: ir.Value | None, kinds: Collection[str] = MOVED, *, last: bool) -> Tensor:
    """A value for a kernel that leaves numbers as they are: integers where it has them."""
    return carried(emit, emit.read(value, integer=emit.grid(value) is not None, last=last), kinds)


def keeps_grid(emit: Emitter, value: ir.Value | None, ending: Ending) -> bool:
    """Whether a kernel that averages integers on their own grid stays within one step of the result's."""
    own = emit.grid(value)
    return own is not None and ending.grid is not None and ending.grid.scale[0] >= own.scale[0]


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
    write(emit, value, tensor, last=still)


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
        tensor = emit.maths.clipped(tensor, -FAR, FAR)
    return emit.maths.cast(tensor, "INT32")


def vector(emit: Emitter, numbers: Sequence[int] | Array) -> Tensor:
    """A constant operand in int32."""
    return emit.builder.constant(np.array(numbers, np.int32))


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


def taken(emit: Emitter, tensor: Tensor, indices: Tensor, axis: int) -> Tensor:
    """GATHER along a dimension of the file; the dimensions of `indices` stand in its place."""
    shape = (*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :])
    return emit.builder.op("GATHER", [tensor, indices], shape, "", tensor.grid, options("Gather", axis=axis))


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
    made = _strided(emit, source, here, shape)
    return emit.builder.reshaped(made, whole)


def _strided(emit: Emitter, tensor: Tensor, ranges: Mapping[int, range], shape: list[int]) -> Tensor:
    """STRIDED_SLICE; masks say that a range begins or ends where the dimension does, whatever its size.

    Without steps SLICE would do, but XNNPACK leaves it alone where a size is given as "the rest".
    """
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
    made = padded_by(emit, source, amounts, shape, value)
    return emit.builder.reshaped(made, whole)


def padded_by(
    emit: Emitter, x: Tensor, amounts: Tensor, shape: Sequence[int], value: Tensor | None
) -> Tensor:
    """PAD by amounts [rank, 2] that may be known only at run time, or PADV2 with a number."""
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
