"""A product of integers whose result is real, in float32 and without rounding.

onnxruntime sums such products in 32-bit integers and scales the sum once: y = (Σ q_w q_x + q_b) · s_w s_x. TFLite has
no kernel from 8-bit integers to floats; but float32 holds every integer up to 2²⁴, so the float kernel gives the same
sum, in whatever order it adds, when it is fed integers. One multiplication follows, and the outputs are the same bits.

Larger matrices stay in 8 bits: the kernel of float operands and int8 weights quantizes each row by its least and its
largest number, here two further ones that are the ends of the grid. So its step is exactly 1, the integers are the
ones that were there, and their sum is one of 32-bit integers (a quarter of the memory traffic, five times as fast).
"""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, Ending
from edgepress.compressor.export.tflite.ops.convolution import float_bias, integer_bias
from edgepress.compressor.export.tflite.quantization import HIGH, LOW
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Shape, Tensor

LARGEST = 2**24
"""Integers up to here are exact in float32."""
WORTHWHILE = 2**13
"""Weights below which quantizing the rows takes longer than it saves."""


def is_exact(weights: Array, bias: Array | None, x: Grid) -> bool:
    """Whether no sum can leave the integers that float32 holds.

    Args:
        weights: [outputs, inputs].
        bias: [outputs] on the grid of the sums, or None.
        x: grid of the inputs.
    """
    reach = max(abs(edge - x.zero_point[0]) for edge in (LOW, HIGH))
    sums = np.abs(weights.astype(np.int64)).sum(axis=1) * reach
    return bool((sums + (0 if bias is None else np.abs(bias.astype(np.int64)))).max(initial=0) < LARGEST)


def integers_of(emit: Emitter, x: Tensor) -> Tensor:
    """Q − z of a tensor on a grid, as float32."""
    if x.grid is None:
        raise ValueError("the tensor lies on no grid")
    near = emit.maths.mul(emit.dequantized(x), float(1 / np.float32(x.grid.scale[0])))
    return emit.maths.unary("ROUND", near)


def sum_exactly(
    emit: Emitter,
    ending: Ending,
    x: ir.Value | None,
    integers: Array,
    scale: Array,
    bias: ir.Value | None,
) -> bool:
    """FULLY_CONNECTED of integers, where that is exact.

    Args:
        emit: of the file.
        ending: what the result stands for.
        x: [..., inputs], on a grid, of two dimensions or more.
        integers: weights [outputs, inputs].
        scale: [1] or [outputs].
        bias: constant, or None.

    Returns:
        Whether it was written.
    """
    data, shape = emit.read(x, integer=True), emit.shape(ending.value)
    if data.grid is None or len(shape) < 2:
        return False
    whole = bias is None or emit.codes(bias) is not None
    held = integer_bias(emit, bias if whole else None, data.grid, scale, len(integers)).array
    if held is None or not is_exact(integers, held, data.grid):
        return False
    offset = emit.builder.constant(held.astype(np.float32))
    if emit.hybrid and integers.size >= WORTHWHILE:
        sums = _of_rows(emit, data, integers, offset, shape)
    else:
        weights = emit.dequantized(emit.builder.constant(integers.astype(np.int8), Grid.of(1.0)))
        kept = options("FullyConnected", keepNumDims=len(shape) > 2)
        inputs = [integers_of(emit, data), weights, offset]
        sums = emit.builder.op("FULLY_CONNECTED", inputs, shape, options=kept)
    steps = np.float32(data.grid.scale[0]) * scale.astype(np.float32)
    factor = emit.builder.constant(steps.astype(np.float32))
    if whole:
        result = emit.maths.mul(sums, factor, ending.activation)
    else:  # a real bias, which onnxruntime adds behind
        result = emit.maths.add(
            emit.maths.mul(sums, factor), float_bias(emit, bias, len(integers)), ending.activation
        )
    emit.write(ending.value, result)
    return True


def _of_rows(emit: Emitter, x: Tensor, integers: Array, bias: Tensor, shape: Shape) -> Tensor:
    """FULLY_CONNECTED by int8 weights, each row of x with the ends of its grid behind it, which count for nothing."""
    zero = x.grid.zero_point[0] if x.grid is not None else 0
    wide, ends = (*x.shape[:-1], x.shape[-1] + 2), np.zeros(x.shape[-1] + 2, np.float32)
    ends[-2:] = LOW - zero, HIGH - zero
    room = emit.builder.constant(np.array([(0, 0)] * (len(wide) - 1) + [(0, 2)], np.int32))
    rows = emit.builder.op("PAD", [integers_of(emit, x), room], wide, options=options("Pad"))
    rows = emit.maths.add(rows, emit.builder.constant(ends))
    weights = emit.builder.constant(np.pad(integers, ((0, 0), (0, 2))).astype(np.int8), Grid.of(1.0))
    made = options("FullyConnected", keepNumDims=len(shape) > 2, asymmetricQuantizeInputs=True)
    return emit.builder.op("FULLY_CONNECTED", [rows, weights, bias], shape, options=made)
