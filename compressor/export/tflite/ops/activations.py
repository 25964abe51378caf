"""Activations: those with 8-bit kernels run as integers, the others as float islands, exactly as the pairs say."""

from collections.abc import Callable

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import FUSED, Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import arranged
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Grid
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.sites import int_attribute

Handler = Callable[[Emitter, ir.Node], None]

_FIXED = {"LOGISTIC": Grid.of(1 / 256, -128), "TANH": Grid.of(1 / 128, 0)}
"""Grids that 8-bit kernels put their results on, whatever the graph says; another one costs a QUANTIZE."""


def unary(emit: Emitter, node: ir.Node, code: str, kind: str = "", **fields: float) -> None:
    """An operator of one operand, in the layout that it comes in."""
    x = node.inputs[0]
    ending = emit.ending(node.outputs[0])
    fixed = _FIXED.get(code)
    integer = fixed is not None and emit.integral(ending, x)
    last = emit.last(x)
    data = emit.read(x, integer=integer, last=last)
    grid, dtype = (fixed, "INT8") if integer else (None, data.dtype)
    made = options(kind, **fields) if kind else None
    emit.write(ending.value, emit.builder.op(code, [data], data.shape, dtype, grid, made), last=last)


def clip(emit: Emitter, node: ir.Node) -> None:
    """Relu and Clip that no kernel before them took in."""
    bounds = clip_bounds(node)
    code = FUSED.get((float(bounds[0]), float(bounds[1]))) if bounds is not None else None
    if code is None:
        raise UnsupportedError("form: Clip with these bounds")
    unary(emit, node, code)


def softmax(emit: Emitter, node: ir.Node) -> None:
    """SOFTMAX over the last dimension."""
    x = node.inputs[0]
    rank = len(emit.shape(x))
    axis = int_attribute(node, "axis", -1) % rank
    if axis != rank - 1:
        raise UnsupportedError("form: Softmax over another dimension than the last")
    data = emit.read(x)
    made = options("Softmax", beta=1.0)
    emit.write(node.outputs[0], emit.builder.op("SOFTMAX", [data], arranged(data.shape, False), options=made))


def _named(code: str, kind: str = "") -> Handler:
    return lambda emit, node: unary(emit, node, code, kind)


HANDLERS: dict[str, Handler] = {
    "Relu": clip,
    "Clip": clip,
    "Sigmoid": _named("LOGISTIC"),
    "Tanh": _named("TANH"),
    "HardSwish": _named("HARD_SWISH", "HardSwish"),
    "Softmax": softmax,
}
