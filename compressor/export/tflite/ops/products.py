"""Gemm and MatMul: FULLY_CONNECTED where the weight is constant, else BATCH_MATMUL."""

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, Ending, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.ops.convolution import float_bias, integer_bias, integer_weights
from edgepress.compressor.export.tflite.ops.exact import integers_of, is_exact
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Array, Grid, Tensor
from edgepress.compressor.sites import int_attribute


def gemm(emit: Emitter, node: ir.Node) -> None:
    """Y = x W + b with a constant W and a bias for each output."""
    x, w, bias = node.inputs[0], node.inputs[1], operand_of(node, 2)
    if w is None or emit.constant(w) is None:
        raise UnsupportedError("form: the weight is not a constant")
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if alpha != 1 or (bias is not None and beta != 1) or int_attribute(node, "transA", 0):
        raise UnsupportedError("form: Gemm with alpha, beta or transA")
    fully_connected(emit, x, w, bias, node.outputs[0], transposed=bool(int_attribute(node, "transB", 0)))


def matmul(emit: Emitter, node: ir.Node) -> None:
    """A product; with a constant matrix on the right it takes in the Add of a bias behind it."""
    x, w = node.inputs[0], node.inputs[1]
    known = emit.constant(w)
    if w is None or known is None or known.ndim != 2:
        _batched(emit, node)
        return
    result, bias = node.outputs[0], None
    uses = list(result.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not result.is_graph_output():
        other = uses[0].node.inputs[1 - uses[0].idx]
        added = emit.constant(other)
        if added is not None and added.shape in {(known.shape[1],), (1, known.shape[1])}:
            bias, result = other, uses[0].node.outputs[0]
            emit.done.add(uses[0].node)
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
    scale = integer_weights(emit, w, outputs)
    integer = scale is not None and emit.integral(ending, x)
    data = emit.read(x, integer=integer)

    def arrange(array: Array) -> Array:
        return array if transposed else array.T

    codes = emit.codes(w)
    if integer and codes is not None and scale is not None and data.grid is not None:
        weights = packed(emit, w, arrange(codes.integers), scale)
        offset: Tensor | None = integer_bias(emit, bias, data.grid, scale, outputs)
    elif (
        scale is not None
        and codes is not None
        and emit.grid(x) is not None
        and _exactly(emit, ending, x, (w, arrange(codes.integers), scale), bias)
    ):
        return
    else:
        weights = emit.stored(w, arrange, 0)
        offset = float_bias(emit, bias, outputs) if bias is not None else None
    _write(emit, ending, [data, weights, offset], integer=integer)


def _exactly(
    emit: Emitter,
    ending: Ending,
    x: ir.Value | None,
    weight: tuple[ir.Value, Array, Array],
    bias: ir.Value | None,
) -> bool:
    """Sum integers in floats, where that is exact; see `exact`."""
    data = emit.read(x, integer=True)
    value, integers, scale = weight
    held = integer_bias(emit, bias, data.grid, scale, len(integers)).array if data.grid is not None else None
    if data.grid is None or held is None or not is_exact(integers, held, data.grid):
        return False
    unit = Grid.of(1.0)
    weights = emit.dequantized(emit.builder.constant(integers.astype(np.int8), unit, name=value.name or ""))
    offset = emit.builder.constant(held.astype(np.float32))
    shape = emit.shape(ending.value)
    made = options("FullyConnected", keepNumDims=len(shape) > 2)
    sums = emit.builder.op("FULLY_CONNECTED", [integers_of(emit, data), weights, offset], shape, options=made)
    steps = emit.builder.constant(
        (np.float32(data.grid.scale[0]) * scale.astype(np.float32)).astype(np.float32)
    )
    result = options("Mul", fusedActivationFunction=ending.activation)
    emit.write(ending.value, emit.builder.op("MUL", [sums, steps], shape, options=result))
    return True


def packed(emit: Emitter, value: ir.Value, integers: Array, scale: Array) -> Tensor:
    """Constant weights [O, I] in the fewest bits that the kernel unpacks: 2, 4 or 8."""
    codes = emit.codes(value)
    bits = codes.bits if codes is not None else 8
    dtype = {2: "INT2", 4: "INT4"}.get(bits, "INT8")
    per_output = np.broadcast_to(scale, (integers.shape[0],)) if dtype != "INT8" else scale
    grid = Grid(tuple(per_output.astype(np.float32).tolist()), (0,) * per_output.size)
    return emit.builder.constant(integers.astype(np.int8), grid, dtype, value.name or "")


def _write(emit: Emitter, ending: Ending, inputs: list[Tensor | None], *, integer: bool) -> None:
    shape = emit.shape(ending.value)
    made = options("FullyConnected", fusedActivationFunction=ending.activation, keepNumDims=len(shape) > 2)
    grid, dtype = (ending.grid, "INT8") if integer else (None, "FLOAT32")
    emit.write(ending.value, emit.builder.op("FULLY_CONNECTED", inputs, shape, dtype, grid, made))


def _batched(emit: Emitter, node: ir.Node) -> None:
    ending = emit.ending(node.outputs[0])
    integer = emit.integral(ending, *node.inputs)
    inputs = [emit.read(value, integer=integer) for value in node.inputs]
    if min(len(each.shape) for each in inputs) < 2:
        raise UnsupportedError("rank: a product with a vector")
    shape = emit.shape(ending.value)
    grid, dtype = (ending.grid, "INT8") if integer else (None, "FLOAT32")
    emit.write(
        ending.value, emit.builder.op("BATCH_MATMUL", inputs, shape, dtype, grid, options("BatchMatMul"))
    )


HANDLERS = {"Gemm": gemm, "MatMul": matmul}
