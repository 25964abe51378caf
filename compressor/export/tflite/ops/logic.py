"""Comparisons, truth values, choices between two values, changes of type, and what is left of Dropout."""

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.ops.elementwise import operands
from edgepress.compressor.export.tflite.ops.shaping import identity
from edgepress.compressor.export.tflite.ops.values import ordered, plain, write

Handler = Callable[[Emitter, ir.Node], None]

_NARROW = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT2: 2, ir.DataType.UINT2: 2}


def compare(emit: Emitter, node: ir.Node, code: str) -> None:
    """LESS, EQUAL and the like."""
    tensors, last = operands(emit, node, bits=True)
    a, b = (ordered(emit, x, node.inputs[0]) for x in tensors)
    emit.write(node.outputs[0], emit.maths.binary(code, a, b), last=last)


def logical(emit: Emitter, node: ir.Node, code: str) -> None:
    """LOGICAL_AND and LOGICAL_OR; exclusive or is inequality."""
    rank, last = len(emit.shape(node.outputs[0])), emit.last(*node.inputs)
    a, b = (emit.operand(value, rank, last=last) for value in node.inputs)
    emit.write(node.outputs[0], emit.maths.binary(code, a, b), last=last)


def logical_not(emit: Emitter, node: ir.Node) -> None:
    """LOGICAL_NOT."""
    last = emit.last(node.inputs[0])
    data = emit.read(node.inputs[0], last=last)
    emit.write(node.outputs[0], emit.maths.unary("LOGICAL_NOT", data), last=last)


def where(emit: Emitter, node: ir.Node) -> None:
    """SELECT_V2; integers stay integers where both sides lie on one grid, or are put on the one behind."""
    _, a, b = node.inputs
    result, last = node.outputs[0], emit.last(*node.inputs)
    rank, ending = len(emit.shape(node.outputs[0])), emit.ending(node.outputs[0])
    condition = emit.operand(node.inputs[0], rank, last=last)
    emit.dtype(result)
    same = emit.grid(a) if emit.grid(a) == emit.grid(b) else None
    grid = same or (ending.grid if emit.on_grids(a, b) else None)
    if grid is not None:
        sides = [emit.quantized(emit.operand(x, rank, integer=True, last=last), grid) for x in (a, b)]
    else:
        sides = [plain(emit, x, rank, last=last) for x in (a, b)]
    emit.write(result, emit.maths.select(condition, *sides), last=last)


def cast(emit: Emitter, node: ir.Node) -> None:
    """CAST; floats are cut off towards 0, integers wrap around."""
    x, last = node.inputs[0], emit.last(node.inputs[0])
    for value in (x, node.outputs[0]):
        if value is not None and emit.dtype(value) == "UINT64":
            raise UnsupportedError(f"dtype: {value.name!r} is uint64, which CAST does not know")
    data, bits = plain(emit, x, last=last), _NARROW.get(node.outputs[0].dtype or ir.DataType.FLOAT)
    if bits is not None:
        maths, low = emit.maths, 0 if emit.dtype(node.outputs[0]) == "UINT8" else -(1 << bits - 1)
        above = maths.binary("FLOOR_MOD", maths.sub(maths.cast(data, "INT32"), low), 1 << bits)
        data = maths.add(above, low)
    write(emit, node.outputs[0], data, last=last)


def dropout(emit: Emitter, node: ir.Node) -> None:
    """Nothing, as in inference; a mask is all true."""
    training = operand_of(node, 2)
    if training is not None:
        mode = emit.constant(training)
        if mode is None or mode.any():
            raise UnsupportedError("random: Dropout drops numbers in training", "Export for inference.")
    identity(emit, node)
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        x, last = node.inputs[0], emit.last(node.inputs[0])
        maths = emit.maths
        truth = maths.cast(emit.read(x, last=last), "BOOL")
        emit.write(node.outputs[1], maths.binary("EQUAL", truth, truth), last=last)


HANDLERS: dict[str, Handler] = {
    "Equal": partial(compare, code="EQUAL"),
    "Greater": partial(compare, code="GREATER"),
    "GreaterOrEqual": partial(compare, code="GREATER_EQUAL"),
    "Less": partial(compare, code="LESS"),
    "LessOrEqual": partial(compare, code="LESS_EQUAL"),
    "And": partial(logical, code="LOGICAL_AND"),
    "Or": partial(logical, code="LOGICAL_OR"),
    "Xor": partial(logical, code="NOT_EQUAL"),
    "Not": logical_not,
    "Where": where,
    "Cast": cast,
    "CastLike": cast,
    "Dropout": dropout,
}
