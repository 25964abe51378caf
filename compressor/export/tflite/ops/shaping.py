"""Operators that lay out numbers anew and leave them as they are: integers stay integers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import arranged, axis_in, to_last
from edgepress.compressor.export.tflite.ops.moving import MOVED, carried, joined, moved
from edgepress.compressor.export.tflite.ops.values import write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Shape, Tensor
from edgepress.compressor.sites import attribute, int_attribute, ints_attribute

Handler = Callable[[Emitter, ir.Node], None]
RANK = 6
"""Highest rank of TRANSPOSE."""


def reshape(emit: Emitter, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: all are RESHAPE to the shape that was inferred.

    Where batch and channels stay, it happens in the layout that the value comes in.
    """
    x, result = node.inputs[0], node.outputs[0]
    before, after = emit.shape(x), emit.shape(result)
    last = emit.last(x) and len(after) > 2 and before[:2] == after[:2]
    tensor = emit.read(x, integer=emit.grid(x) is not None, last=last)
    emit.write(result, _reshaped(emit, tensor, arranged(after, last)), last=last)


def _reshaped(emit: Emitter, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    try:
        return emit.builder.reshaped(tensor, shape)
    except ValueError as error:
        raise UnsupportedError(f"dynamic shape: {error}", "Fix the batch size with --shape.") from error


def transpose(emit: Emitter, node: ir.Node) -> None:
    """TRANSPOSE; it vanishes where it does what the layout does, or undoes it."""
    x = node.inputs[0]
    rank = len(emit.shape(x))
    order = ints_attribute(node, "perm", tuple(reversed(range(rank))))
    last = emit.last(x)
    tensor = emit.read(x, integer=emit.grid(x) is not None, last=last)
    forms = {
        turned: [axis_in(order[axis], rank, last) for axis in (to_last(rank) if turned else range(rank))]
        for turned in ((last, not last) if rank > 2 else (False,))
    }
    stays = [turned for turned, form in forms.items() if _keeps_order(tensor, form)]
    turned = stays[0] if stays else last and list(order[:2]) == [0, 1]
    if rank > RANK and not stays:
        raise UnsupportedError(f"rank: the kernel takes up to {RANK} dimensions, not {rank}")
    emit.write(node.outputs[0], emit.builder.transposed(tensor, forms[turned]), last=turned)


def _keeps_order(tensor: Tensor, order: Sequence[int]) -> bool:
    moves = [axis for axis in order if tensor.shape[axis] != 1]
    return moves == sorted(moves)


def expand(emit: Emitter, node: ir.Node) -> None:
    """Expand and Tile: TILE by as often as the result is longer."""
    x, result = node.inputs[0], node.outputs[0]
    shape, wanted = emit.shape(x), emit.shape(result)
    last = emit.last(x) and len(shape) == len(wanted)
    data = moved(emit, x, last=last)
    whole = arranged(wanted, last)
    if len(shape) < len(wanted):
        data = _reshaped(emit, data, (1,) * (len(wanted) - len(shape)) + shape)
    times = [size // own for size, own in zip(whole, data.shape, strict=True)]
    if any(time > 1 for time in times):
        repeats = emit.builder.constant(np.array(times, np.int32))
        data = emit.builder.op("TILE", [data, repeats], whole, "", data.grid)
    write(emit, result, data, last=last)


def concat(emit: Emitter, node: ir.Node) -> None:
    """CONCATENATION; integers on different grids are put on the one behind it first."""
    result = node.outputs[0]
    ending = emit.ending(result)
    shape = emit.shape(result)
    last = emit.last(*node.inputs)
    grids = {emit.grid(value) for value in node.inputs}
    grid = grids.pop() if len(grids) == 1 else ending.grid if emit.on_grids(*node.inputs) else None
    tensors = [emit.read(value, integer=grid is not None, last=last) for value in node.inputs]
    if grid is not None:
        tensors = [emit.quantized(tensor, grid) for tensor in tensors]
    tensors = [carried(emit, tensor, MOVED) for tensor in tensors]
    axis = axis_in(int_attribute(node, "axis", 0) % len(shape), len(shape), last)
    write(emit, result, joined(emit, tensors, axis), last=last)


_BLOCKS = ("FLOAT32", "INT8", "UINT8", "INT32", "INT64")


def _in_blocks(emit: Emitter, code: str, data: Tensor, shape: Shape, made: Any) -> Tensor:
    return data if made.blockSize == 1 else emit.builder.op(code, [data], shape, "", data.grid, made)


def depth_to_space(emit: Emitter, node: ir.Node) -> None:
    """DEPTH_TO_SPACE, or one TRANSPOSE where a channel's block lies together (mode CRD)."""
    block = int_attribute(node, "blocksize", 1)
    data = moved(emit, node.inputs[0], _BLOCKS, last=True)
    n, h, w, c = data.shape
    whole = n, h * block, w * block, c // block**2
    if attribute(node, "mode", "DCR") == "CRD":
        parts = _reshaped(emit, data, (n * h, w, whole[3], block, block))
        made = _reshaped(emit, emit.builder.transposed(parts, (0, 3, 1, 4, 2)), whole)
    else:
        made = _in_blocks(emit, "DEPTH_TO_SPACE", data, whole, options("DepthToSpace", blockSize=block))
    write(emit, node.outputs[0], made, last=True)


def space_to_depth(emit: Emitter, node: ir.Node) -> None:
    """SPACE_TO_DEPTH, or one TRANSPOSE where a channel's block lies together (mode CRD)."""
    block = int_attribute(node, "blocksize", 1)
    data = moved(emit, node.inputs[0], _BLOCKS, last=True)
    n, h, w, c = data.shape
    whole = n, h // block, w // block, c * block**2
    if attribute(node, "mode", "DCR") == "CRD":
        parts = _reshaped(emit, data, (n * h // block, block, w // block, block, c))
        made = _reshaped(emit, emit.builder.transposed(parts, (0, 2, 4, 1, 3)), whole)
    else:
        made = _in_blocks(emit, "SPACE_TO_DEPTH", data, whole, options("SpaceToDepth", blockSize=block))
    write(emit, node.outputs[0], made, last=True)


def shape_of(emit: Emitter, node: ir.Node) -> None:
    """Shape, or a part of it: a constant."""
    shape = emit.shape(node.inputs[0])
    part = shape[int_attribute(node, "start", 0) : int_attribute(node, "end", len(shape))]
    emit.write(node.outputs[0], emit.builder.constant(np.array(part, np.int64)))


def size_of(emit: Emitter, node: ir.Node) -> None:
    """Size: a constant."""
    count = np.prod(emit.shape(node.inputs[0]), dtype=np.int64)
    emit.write(node.outputs[0], emit.builder.constant(np.array(count)))


def constant_of_shape(emit: Emitter, node: ir.Node) -> None:
    """ConstantOfShape: a constant."""
    given = node.attributes.get("value")
    number = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
    array = np.full(emit.shape(node.outputs[0]), number.reshape(()), number.dtype)
    emit.write(node.outputs[0], emit.builder.constant(array))


_NUMBERS: dict[ir.AttributeType, type] = {
    ir.AttributeType.INT: np.int64,
    ir.AttributeType.INTS: np.int64,
    ir.AttributeType.FLOAT: np.float32,
    ir.AttributeType.FLOATS: np.float32,
}


def constant(emit: Emitter, node: ir.Node) -> None:
    """Constant, which stays a node only where it is an output of the graph."""
    given = next(iter(node.attributes.values()), None)
    if given is None:
        raise UnsupportedError("form: the constant has no value")
    if given.type == ir.AttributeType.TENSOR:
        array = given.as_tensor().numpy()
    elif given.type in _NUMBERS:
        array = np.array(given.value, _NUMBERS[given.type])
    else:
        raise UnsupportedError(f"dtype: a constant of type {given.type}")
    emit.write(node.outputs[0], emit.builder.constant(array))


def range_(emit: Emitter, node: ir.Node) -> None:
    """RANGE; the result's shape must be declared."""
    operands = [carried(emit, emit.read(value), ("FLOAT32", "INT32", "INT64")) for value in node.inputs]
    points = [emit.builder.reshaped(operand, ()) for operand in operands]
    result = node.outputs[0]
    write(
        emit,
        result,
        emit.builder.op("RANGE", points, emit.shape(result), options=options("Range")),
        last=False,
    )


def identity(emit: Emitter, node: ir.Node) -> None:
    """Another name for the same value."""
    if node.inputs[0] is not None:
        emit.alias(node.outputs[0], node.inputs[0])


HANDLERS: dict[str, Handler] = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": expand,
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape_of,
    "Size": size_of,
    "ConstantOfShape": constant_of_shape,
    "Identity": identity,
    "Constant": constant,
    "Range": range_,
}
