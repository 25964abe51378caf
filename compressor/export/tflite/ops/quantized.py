"""QuantizeLinear and DequantizeLinear: between integer kernels they are only names for the same integers.

What is not 8 bits with one constant scale is worked out in floats as ONNX has it: divide, round, move, clip.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import NARROW_FLOATS, Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import axis_in, channels_last
from edgepress.compressor.export.tflite.ops.moving import taken
from edgepress.compressor.export.tflite.ops.narrow import rounded
from edgepress.compressor.export.tflite.ops.values import numbers, plain, write
from edgepress.compressor.export.tflite.quantization import grid_of
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import int_attribute

_BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16}


def quantize_linear(emit: Emitter, node: ir.Node) -> None:
    """QUANTIZE, or nothing where the integers are there already."""
    grid, x = grid_of(node, emit.constants), node.inputs[0]
    if grid is None or x is None or emit.dtype(x) != "FLOAT32":
        _composed(emit, node)
        return
    last = emit.last(x)
    if emit.grid(x) == grid:
        emit.alias(node.outputs[0], x)
        return
    source = emit.read(x, integer=emit.grid(x) is not None, last=last)
    emit.write(node.outputs[0], emit.quantized(source, grid), last=last)


def dequantize_linear(emit: Emitter, node: ir.Node) -> None:
    """A name for integers; reals are worked out where a float kernel asks for them."""
    x = node.inputs[0]
    grid = emit.grid(x)
    if x is not None and grid is not None and grid_of(node, emit.constants) == grid:
        emit.alias(node.outputs[0], x)
        return
    last = emit.last(x)
    held, maths = plain(emit, x, last=last), emit.maths
    data = maths.cast(held, "FLOAT32")
    scale, zero = _parameters(emit, node, last)
    if zero is not None:
        data = maths.sub(data, zero)
    write(emit, node.outputs[0], maths.mul(data, scale), last=last)


def _composed(emit: Emitter, node: ir.Node) -> None:
    """Integers in floats; cast, where not only a DequantizeLinear reads them."""
    x, result = node.inputs[0], node.outputs[0]
    kind = result.dtype.name if result.dtype is not None else ""
    if result.dtype in NARROW_FLOATS:
        _to_float(emit, node, result.dtype)
        return
    if kind not in _BITS:
        raise UnsupportedError(f"dtype: nothing is quantized to {kind.lower()}", "Use 8 bits.")
    last, maths = emit.last(x), emit.maths
    scale, zero = _parameters(emit, node, last)
    steps = maths.unary("ROUND", maths.div(maths.cast(numbers(emit, x, last=last), "FLOAT32"), scale))
    low = 0 if kind.startswith("U") else -(1 << _BITS[kind] - 1)
    moved = maths.add(steps, zero) if zero is not None else steps
    clipped = maths.clipped(moved, low, low + (1 << _BITS[kind]) - 1)
    inside = not result.is_graph_output() and all(
        use.node.op_type == "DequantizeLinear" and use.idx == 0 for use in result.uses()
    )
    if inside:
        emit.write(result, clipped, last=last)
    else:
        write(emit, result, clipped, last=last)


def _to_float(emit: Emitter, node: ir.Node, kind: ir.DataType) -> None:
    """Onto the numbers of a narrow float, which take the place of integers."""
    x, last, maths = node.inputs[0], emit.last(node.inputs[0]), emit.maths
    scale, zero = _parameters(emit, node, last)
    steps = maths.div(maths.cast(numbers(emit, x, last=last), "FLOAT32"), scale)
    moved = maths.add(steps, zero) if zero is not None else steps
    whole = bool(int_attribute(node, "saturate", 1))
    write(emit, node.outputs[0], rounded(emit, moved, kind, saturate=whole), last=last)


def _parameters(emit: Emitter, node: ir.Node, last: bool) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points in FLOAT32, shaped so that they broadcast; constants or not."""
    shape, given = emit.shape(node.inputs[0]), operand_of(node, 2)
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)
    parts = [_spread(emit, value, shape, axis, block, last) for value in (node.inputs[1], given) if value]
    known = emit.constant(given)
    return parts[0], parts[1] if given is not None and (known is None or known.any()) else None


def _spread(
    emit: Emitter, value: ir.Value, shape: Sequence[int], axis: int, block: int, last: bool
) -> Tensor:
    own, maths, rank = emit.shape(value), emit.maths, len(shape)
    tensor = maths.cast(emit.read(value), "FLOAT32")
    if own in {(), (1,)}:
        return emit.builder.reshaped(tensor, ())
    axis %= rank
    if not block:
        sizes = [1] * rank
        sizes[axis_in(axis, rank, last)] = own[0]
        return emit.builder.reshaped(tensor, sizes)
    if tensor.array is not None:
        repeated = np.repeat(tensor.array, block, axis).take(range(shape[axis]), axis)
        spread = emit.builder.constant(repeated)
    else:
        which = emit.builder.constant((np.arange(shape[axis]) // block).astype(np.int32))
        spread = taken(emit, tensor, which, axis)
    return channels_last(emit.builder, spread) if last and rank > 2 else spread


HANDLERS = {"QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear}
