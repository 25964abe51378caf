"""Operators of two operands that broadcast, and of one."""

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter
from edgepress.compressor.export.tflite.layout import arranged
from edgepress.compressor.export.tflite.schema import options

_KINDS = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div"}
_INTEGER = frozenset({"ADD", "SUB", "MUL"})
"""Kernels that take 8-bit operands, each on a grid of its own."""


def binary(emit: Emitter, node: ir.Node, code: str) -> None:
    """ADD, SUB, MUL or DIV."""
    ending = emit.ending(node.outputs[0], fuse=True)
    shape = emit.shape(node.outputs[0])
    integer = code in _INTEGER and emit.integral(ending, *node.inputs)
    last = emit.last(*node.inputs)
    operands = [emit.operand(value, len(shape), integer=integer, last=last) for value in node.inputs]
    grid, dtype = (ending.grid, "INT8") if integer else (None, operands[0].dtype)
    made = options(_KINDS[code], fusedActivationFunction=ending.activation)
    result = emit.builder.op(code, operands, arranged(shape, last), dtype, grid, made)
    emit.write(ending.value, result, last=last)


Handler = Callable[[Emitter, ir.Node], None]

HANDLERS: dict[str, Handler] = {
    name: partial(binary, code=code)
    for name, code in {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}.items()
}
