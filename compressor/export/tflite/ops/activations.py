"""Activations: those with 8-bit kernels run as integers, the others as float islands, exactly as the pairs say."""

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import FUSED, Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.maths import Maths
from edgepress.compressor.export.tflite.ops.elementwise import single
from edgepress.compressor.export.tflite.ops.patterns import fused
from edgepress.compressor.export.tflite.ops.values import numbers, write
from edgepress.compressor.export.tflite.quantization import covers
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Grid, Tensor
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.sites import int_attribute

Handler = Callable[[Emitter, ir.Node], None]

_FIXED = {"LOGISTIC": Grid.of(1 / 256, -128), "TANH": Grid.of(1 / 128, 0)}
"""Grids that 8-bit kernels put their results on, whatever the graph says; another one costs a QUANTIZE."""
_SIXTH = 1e-6
"""How far from 1/6 a HardSigmoid's slope may be rounded."""


def unary(emit: Emitter, node: ir.Node, code: str, kind: str = "", **fields: float) -> None:
    """A kernel of one operand that takes 8-bit integers, in the layout that it comes in."""
    x = node.inputs[0]
    if emit.dtype(node.outputs[0]) != "FLOAT32":
        single(emit, node, lambda maths, data: maths.unary(code, data, **fields))
        return
    ending = emit.ending(node.outputs[0])
    integer = emit.integral(ending, x)
    last = emit.last(x)
    data = emit.read(x, integer=integer, last=last)
    grid, dtype = (_FIXED.get(code, ending.grid), "INT8") if integer else (None, data.dtype)
    made = options(kind, **fields) if kind else None
    emit.write(ending.value, emit.builder.op(code, [data], data.shape, dtype, grid, made), last=last)


def tanh(emit: Emitter, node: ir.Node) -> None:
    """TANH, or the GELU that it is a part of."""
    if not fused(emit, node):
        unary(emit, node, "TANH")


def clip(emit: Emitter, node: ir.Node) -> None:
    """Relu and Clip that no kernel before them took in: at least the lower bound, then at most the upper one."""
    x, result = node.inputs[0], node.outputs[0]
    bounds, ending = clip_bounds(node), emit.ending(node.outputs[0])
    grid = ending.grid if emit.grid(x) == ending.grid else None
    if x is not None and bounds is not None and grid is not None and covers(bounds, grid):
        emit.alias(result, x)
        return
    if fused(emit, node):
        return
    last, rank = emit.last(x), len(emit.shape(x))
    data, maths = numbers(emit, x, last=last), emit.maths
    code = FUSED.get((float(bounds[0]), float(bounds[1]))) if bounds is not None else None
    if code is not None and data.dtype == "FLOAT32":
        data = maths.unary(code, data)
    elif node.op_type == "Relu":
        data = maths.maximum(data, 0)
    else:
        for index, kernel in ((1, "MAXIMUM"), (2, "MINIMUM")):
            bound = operand_of(node, index)
            if bound is not None:
                data = maths.binary(kernel, data, numbers(emit, bound, rank, last=last))
    write(emit, result, data, last=last)


def leaky_relu(emit: Emitter, node: ir.Node) -> None:
    """LEAKY_RELU."""
    unary(emit, node, "LEAKY_RELU", "LeakyRelu", alpha=node.attributes.get_float("alpha", 0.01))


def p_relu(emit: Emitter, node: ir.Node) -> None:
    """PRELU; of integers, composed."""
    x, rank = node.inputs[0], len(emit.shape(node.inputs[0]))
    last, maths = emit.last(x), emit.maths
    data, slope = (numbers(emit, value, rank, last=last) for value in node.inputs)
    if data.dtype == "FLOAT32":
        made = emit.builder.op("PRELU", [data, slope], data.shape)
    else:
        made = maths.select(maths.binary("LESS", data, 0), maths.mul(data, slope), data)
    write(emit, node.outputs[0], made, last=last)


def elu(emit: Emitter, node: ir.Node) -> None:
    """ELU, where it goes to -1; it takes 8-bit integers."""
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1:
        unary(emit, node, "ELU")
    else:
        single(emit, node, lambda maths, x: _bent(maths, x, alpha))


def _bent(maths: Maths, x: Tensor, alpha: float, inner: float = 1.0) -> Tensor:
    """What is above 0 stays, below it: alpha · (exp(inner · x) − 1)."""
    below = maths.minimum(x, 0.0)
    below = below if inner == 1 else maths.mul(below, inner)
    return maths.add(maths.unary("RELU", x), maths.mul(maths.unary("ELU", below), alpha))


def selu(emit: Emitter, node: ir.Node) -> None:
    """Selu: gamma · Elu."""
    alpha = node.attributes.get_float("alpha", 1.6732632423543772)
    gamma = node.attributes.get_float("gamma", 1.0507009873554805)
    single(emit, node, lambda maths, x: maths.mul(_bent(maths, x, alpha), gamma))


def celu(emit: Emitter, node: ir.Node) -> None:
    """Celu: Elu whose slope does not break at 0."""
    alpha = node.attributes.get_float("alpha", 1.0)
    single(emit, node, lambda maths, x: _bent(maths, x, alpha, 1 / alpha))


def _softplus(maths: Maths, x: Tensor) -> Tensor:
    """log(1 + exp(x)), the exponential always of what is below 0."""
    size = maths.unary("EXP", maths.unary("NEG", maths.unary("ABS", x)))
    return maths.add(maths.unary("RELU", x), maths.unary("LOG", maths.add(size, 1.0)))


def _softsign(maths: Maths, x: Tensor) -> Tensor:
    return maths.div(x, maths.add(maths.unary("ABS", x), 1.0))


def _mish(maths: Maths, x: Tensor) -> Tensor:
    return maths.mul(x, maths.unary("TANH", _softplus(maths, x)))


def swish(emit: Emitter, node: ir.Node) -> None:
    """Sigmoid of alpha · x, times x."""
    alpha = node.attributes.get_float("alpha", 1.0)

    def work(maths: Maths, x: Tensor) -> Tensor:
        return maths.mul(x, maths.unary("LOGISTIC", x if alpha == 1 else maths.mul(x, alpha)))

    single(emit, node, work)


def gelu(emit: Emitter, node: ir.Node) -> None:
    """GELU in both forms."""
    by_tanh = node.attributes.get_string("approximate", "none") == "tanh"
    single(emit, node, lambda maths, x: maths.unary("GELU", x, approximate=by_tanh))


def hard_sigmoid(emit: Emitter, node: ir.Node) -> None:
    """Relu6(6 · (alpha · x + beta)) / 6: kernels have no bounds of 0 and 1 that delegates know."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)

    def work(maths: Maths, x: Tensor) -> Tensor:
        inner = x if abs(alpha - 1 / 6) < _SIXTH / 6 else maths.mul(x, 6 * alpha)
        return maths.mul(maths.add(inner, 6 * beta, "RELU6"), 1 / 6)

    single(emit, node, work)


def thresholded_relu(emit: Emitter, node: ir.Node) -> None:
    """What is above alpha stays, all else becomes 0."""
    alpha = node.attributes.get_float("alpha", 1.0)
    single(emit, node, lambda maths, x: maths.select(maths.binary("GREATER", x, alpha), x, 0.0))


def softmax(emit: Emitter, node: ir.Node, code: str) -> None:
    """SOFTMAX or LOG_SOFTMAX; another dimension than the file's last one is moved there."""
    x = node.inputs[0]
    rank = len(emit.shape(x))
    if not rank:
        raise UnsupportedError("rank: Softmax of a scalar", "It is 1 whatever comes in; leave it out.")
    axis, last = int_attribute(node, "axis", -1) % rank, emit.last(x)
    if axis_in(axis, rank, last) != rank - 1 == axis_in(axis, rank, not last):
        last = not last
    data, at = numbers(emit, x, last=last), axis_in(axis, rank, last)
    order = list(range(rank))
    order[at], order[-1] = order[-1], order[at]
    data = emit.builder.transposed(data, order)
    made = options("Softmax", beta=1.0) if code == "SOFTMAX" else options("LogSoftmax")
    result = emit.builder.op(code, [data], data.shape, options=made)
    write(emit, node.outputs[0], emit.builder.transposed(result, order), last=last)


HANDLERS: dict[str, Handler] = {
    "Relu": clip,
    "Clip": clip,
    "Sigmoid": partial(unary, code="LOGISTIC"),
    "Tanh": tanh,
    "HardSwish": partial(single, work=lambda maths, x: maths.unary("HARD_SWISH", x)),
    "HardSigmoid": hard_sigmoid,
    "LeakyRelu": leaky_relu,
    "PRelu": p_relu,
    "Elu": elu,
    "Selu": selu,
    "Celu": celu,
    "Softplus": partial(single, work=_softplus),
    "Softsign": partial(single, work=_softsign),
    "Mish": partial(single, work=_mish),
    "Swish": swish,
    "Gelu": gelu,
    "ThresholdedRelu": thresholded_relu,
    "Softmax": partial(softmax, code="SOFTMAX"),
    "LogSoftmax": partial(softmax, code="LOG_SOFTMAX"),
}
