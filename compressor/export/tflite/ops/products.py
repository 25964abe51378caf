"""Gemm and MatMul: FULLY_CONNECTED where the weight is a constant matrix, else BATCH_MATMUL."""

import math

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, only_reader, operand_of
from edgepress.compressor.export.tflite.ops.convolution import (
    float_bias,
    integer_bias,
    integer_weights,
    packed,
)
from edgepress.compressor.export.tflite.ops.exact import sum_exactly
from edgepress.compressor.export.tflite.ops.values import real, write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Tensor
from edgepress.compressor.sites import int_attribute

MOST_DIMENSIONS = 5
"""Of BATCH_MATMUL's operands."""


def gemm(emit: Emitter, node: ir.Node) -> None:
    """Y = α A B + β C, A and B as they are or transposed."""
    x, w, bias = node.inputs[0], node.inputs[1], operand_of(node, 2)
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    flipped, transposed = (bool(int_attribute(node, name, 0)) for name in ("transA", "transB"))
    plain = alpha == 1 and not flipped and w is not None and emit.constant(w) is not None
    outputs = emit.shape(w)[0 if transposed else 1]
    if plain and w is not None and (bias is None or (beta == 1 and _is_row(emit, bias, outputs))):
        fully_connected(emit, x, w, bias, node.outputs[0], transposed=transposed)
        return
    data = real(emit, x)
    if w is not None and emit.constant(w) is not None:
        data = emit.builder.transposed(data, [1, 0]) if flipped else data
        weights = emit.stored(w, lambda array: array if transposed else array.T, 0)
        made = options("FullyConnected")
        y = emit.builder.op("FULLY_CONNECTED", [data, weights, None], (data.shape[0], outputs), options=made)
    else:
        made = options("BatchMatMul", adjX=flipped, adjY=transposed)
        rows = data.shape[1 if flipped else 0]
        y = emit.builder.op("BATCH_MATMUL", [data, real(emit, w)], (rows, outputs), options=made)
    y = y if alpha == 1 else emit.maths.mul(y, alpha)
    if bias is not None:
        added = real(emit, bias)
        y = emit.maths.add(y, added if beta == 1 else emit.maths.mul(added, beta))
    write(emit, node.outputs[0], y)


def _is_row(emit: Emitter, bias: ir.Value, outputs: int) -> bool:
    """Whether a bias has one number for each output, or one for all."""
    shape, known = emit.shape(bias), emit.constant(bias) is not None
    return math.prod(shape) == outputs == math.prod(shape[-1:]) or (known and math.prod(shape) == 1)


def matmul(emit: Emitter, node: ir.Node) -> None:
    """A product; with a constant matrix on the right it takes in the Add of a bias behind it."""
    x, w = node.inputs[0], node.inputs[1]
    known = emit.constant(w)
    if w is None or known is None or known.ndim != 2 or x is None or x.dtype != ir.DataType.FLOAT:
        batched(emit, node)
        return
    result, bias = node.outputs[0], None
    reader = only_reader(result)
    if reader is not None and reader.op_type == "Add":
        other = reader.inputs[1 if reader.inputs[0] is result else 0]
        added = emit.constant(other)
        if added is not None and added.shape in {(known.shape[1],), (1, known.shape[1])}:
            bias, result = other, reader.outputs[0]
            emit.done.add(reader)
    fully_connected(emit, x, w, bias, result, transposed=False)


def fully_connected(
    emit: Emitter,
    x: ir.Value | None,
    w: ir.Value,
    bias: ir.Value | None,
    result: ir.Value,
    *,
    transposed: bool,
) -> None:
    """FULLY_CONNECTED: x [..., I] by a constant [I, O] ([O, I] where `transposed`)."""
    shape = emit.shape(w)
    outputs = shape[0 if transposed else 1]
    ending = emit.ending(result, fuse=True)
    scale = integer_weights(emit, w, outputs, 0 if transposed else 1)
    known = bias is None or emit.constant(bias) is not None
    integer = scale is not None and known and emit.integral(ending, x)
    data = emit.read(x, integer=True) if integer else real(emit, x)

    def arrange(array: Array) -> Array:
        return array if transposed else array.T

    codes = emit.codes(w)
    if integer and codes is not None and scale is not None and data.grid is not None:
        weights = packed(emit, w, arrange(codes.integers), scale)
        offset: Tensor | None = integer_bias(emit, bias, data.grid, scale, outputs)
    elif (
        scale is not None
        and codes is not None
        and known
        and emit.grid(x) is not None
        and sum_exactly(emit, ending, x, arrange(codes.integers), scale, bias)
    ):
        return
    else:
        weights = emit.stored(w, arrange, 0)
        offset = float_bias(emit, bias, outputs) if bias is not None else None
    lead = data.shape[:-1]
    inputs = [data if lead else emit.builder.reshaped(data, (1, *data.shape)), weights, offset]
    made = options("FullyConnected", fusedActivationFunction=ending.activation, keepNumDims=len(lead) > 1)
    dtype, grid = ("INT8", ending.grid) if integer else ("FLOAT32", None)
    y = emit.builder.op("FULLY_CONNECTED", inputs, (*(lead or (1,)), outputs), dtype, grid, made)
    y = emit.builder.reshaped(y, (*lead, outputs))
    write(emit, ending.value, y)


def batched(emit: Emitter, node: ir.Node) -> None:
    """BATCH_MATMUL; a vector is a matrix with one row or column."""
    a, b = node.inputs[0], node.inputs[1]
    ending = emit.ending(node.outputs[0])
    integer = emit.integral(ending, a, b)
    one, other = (
        emit.read(value, integer=True) if integer else real(emit, value) for value in node.inputs[:2]
    )
    write(emit, ending.value, product(emit, one, other, ending.grid if integer else None))


def product(emit: Emitter, one: Tensor, other: Tensor, grid: Grid | None = None) -> Tensor:
    """A @ B of tensors, as numpy has it; in integers where there is a grid for the result."""
    reshaped = emit.builder.reshaped
    left = reshaped(one, (1, *one.shape)) if len(one.shape) == 1 else one
    right = reshaped(other, (*other.shape, 1)) if len(other.shape) == 1 else other
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows, columns = left.shape[-2], right.shape[-1]
    kept = (*lead, *[rows] * (len(one.shape) > 1), *[columns] * (len(other.shape) > 1))
    if len(lead) > 1 and left.shape[:-2] == right.shape[:-2]:
        left, right = (reshaped(each, (math.prod(lead), *each.shape[-2:])) for each in (left, right))
        lead = (math.prod(lead),)
    if len(lead) + 2 > MOST_DIMENSIONS:
        raise UnsupportedError(f"rank: a product of {len(lead) + 2} dimensions; the kernel takes 5")
    dtype, made = "FLOAT32" if grid is None else "INT8", options("BatchMatMul")
    y = emit.builder.op("BATCH_MATMUL", [left, right], (*lead, rows, columns), dtype, grid, made)
    return reshaped(y, kept)


HANDLERS = {"Gemm": gemm, "MatMul": matmul}
