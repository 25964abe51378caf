"""Comparisons, truth values, choices between two values, changes of type, and what is left of Dropout."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import NARROW_FLOATS, Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.ops.elementwise import operands
from edgepress.compressor.export.tflite.ops.narrow import rounded
from edgepress.compressor.export.tflite.ops.shaping import identity
from edgepress.compressor.export.tflite.ops.values import numbers, ordered, plain, write
from edgepress.compressor.sites import int_attribute

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
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    data, bits = plain(emit, x, last=last), _NARROW.get(kind)
    if kind in NARROW_FLOATS:
        whole = bool(int_attribute(node, "saturate", 1))
        data = rounded(emit, emit.maths.cast(data, "FLOAT32"), kind, saturate=whole)
    if bits is not None:
        maths, low = emit.maths, 0 if emit.dtype(node.outputs[0]) == "UINT8" else -(1 << bits - 1)
        above = maths.binary("FLOOR_MOD", maths.sub(maths.cast(data, "INT32"), low), 1 << bits)
        data = maths.add(above, low)
    write(emit, node.outputs[0], data, last=last)


def dropout(emit: Emitter, node: ir.Node) -> None:
    """Nothing, as in inference; a mask is all true. In training, what the node's seed draws."""
    training = operand_of(node, 2)
    mode = emit.constant(training) if training is not None else np.zeros((), bool)
    if mode is None or mode.any():
        _dropped(emit, node, training if mode is None else None)
        return
    identity(emit, node)
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        x, last = node.inputs[0], emit.last(node.inputs[0])
        maths = emit.maths
        truth = maths.cast(emit.read(x, last=last), "BOOL")
        emit.write(node.outputs[1], maths.binary("EQUAL", truth, truth), last=last)


def _dropped(emit: Emitter, node: ir.Node, training: ir.Value | None) -> None:
    """Zeros where the seed's numbers lie below the ratio, the same in every run, as ONNX's reference draws them.

    Args:
        emit: writes it.
        node: a Dropout.
        training: whether to drop anything, where that is not known before the model runs.
    """
    seed, shape = node.attributes.get("seed"), emit.shape(node.inputs[0])
    if seed is None:
        raise UnsupportedError("random: Dropout drops numbers in training", "Export for inference.")
    if emit.builder.batch:
        raise UnsupportedError("dynamic shape: what Dropout drops in training hangs on the batch size")
    maths, given = emit.maths, operand_of(node, 1)
    drawn = np.random.RandomState(seed.as_int()).uniform(0, 1, shape).astype(np.float32)
    data = numbers(emit, node.inputs[0])
    ratio = maths.constant(0.5, "FLOAT32") if given is None else maths.cast(emit.read(given), "FLOAT32")
    kept = maths.binary("GREATER_EQUAL", emit.builder.constant(drawn), emit.builder.reshaped(ratio, ()))
    if training is not None:
        mode = emit.builder.reshaped(emit.read(training), ())
        kept = maths.binary("LOGICAL_OR", kept, maths.unary("LOGICAL_NOT", mode))
        ratio = maths.mul(ratio, maths.cast(mode, "FLOAT32"))
    scaled = maths.mul(maths.select(kept, data, 0.0), maths.div(1.0, maths.sub(1.0, ratio)))
    write(emit, node.outputs[0], scaled)
    if len(node.outputs) > 1:
        write(emit, node.outputs[1], kept)


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
