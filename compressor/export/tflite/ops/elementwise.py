"""Arithmetic on operands that broadcast, and on single ones."""

from collections.abc import Callable
from functools import partial, reduce

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter
from edgepress.compressor.export.tflite.maths import Maths
from edgepress.compressor.export.tflite.ops.patterns import fused
from edgepress.compressor.export.tflite.ops.powers import power, quotient
from edgepress.compressor.export.tflite.ops.values import numbers, ordered, unsigned_real, working, write
from edgepress.compressor.export.tflite.tensors import Tensor

Handler = Callable[[Emitter, ir.Node], None]

_INTEGER = frozenset({"ADD", "SUB", "MUL"})
"""Kernels that take 8-bit operands, each on a grid of its own."""


def operands(emit: Emitter, node: ir.Node, *, bits: bool = False) -> tuple[list[Tensor], bool]:
    """All operands in the type that kernels work in (see `values.numbers`), and whether channels come last."""
    rank, last = len(emit.shape(node.outputs[0])), emit.last(*node.inputs)
    return [numbers(emit, value, rank, last=last, bits=bits) for value in node.inputs], last


def binary(emit: Emitter, node: ir.Node, code: str) -> None:
    """ADD, SUB, MUL or DIV; of integers, a quotient is cut off towards 0."""
    if fused(emit, node):
        return
    if emit.dtype(node.outputs[0]) != "FLOAT32":
        (a, b), last = operands(emit, node, bits=code != "DIV")
        maths = emit.maths
        result = quotient(maths, a, b) if code == "DIV" else maths.binary(code, a, b)
        write(emit, node.outputs[0], result, last=last)
        return
    ending = emit.ending(node.outputs[0], fuse=True)
    rank = len(emit.shape(node.outputs[0]))
    integer = code in _INTEGER and emit.integral(ending, *node.inputs)
    last = emit.last(*node.inputs)
    a, b = (emit.operand(value, rank, integer=integer, last=last) for value in node.inputs)
    grid = ending.grid if integer else None
    emit.write(ending.value, emit.maths.binary(code, a, b, ending.activation, grid), last=last)


def variadic(emit: Emitter, node: ir.Node, code: str, *, mean: bool = False) -> None:
    """Sum, Mean, Max and Min of any number of operands."""
    if code == "ADD" and len(node.inputs) == 2 and not mean:
        binary(emit, node, code)
        return
    extremes = code in {"MAXIMUM", "MINIMUM"}
    tensors, last = operands(emit, node, bits=extremes)
    maths = emit.maths
    result = reduce(partial(maths.binary, code), (ordered(emit, x, node.inputs[0]) for x in tensors))
    result = ordered(emit, result, node.inputs[0])
    write(emit, node.outputs[0], maths.mul(result, 1 / len(tensors)) if mean else result, last=last)


def pow_(emit: Emitter, node: ir.Node) -> None:
    """Pow in the type of its base."""
    working(emit.dtype(node.outputs[0]))
    (base, exponent), last = operands(emit, node, bits=True)
    exponent = unsigned_real(emit, exponent, node.inputs[1])
    whole = emit.dtype(node.outputs[0]) not in {"FLOAT32", "FLOAT16"}
    write(emit, node.outputs[0], power(emit.maths, base, exponent, whole=whole), last=last)


def single(emit: Emitter, node: ir.Node, work: Callable[[Maths, Tensor], Tensor]) -> None:
    """An operator of one operand, in the layout that it comes in."""
    if fused(emit, node):
        return
    last = emit.last(node.inputs[0])
    write(emit, node.outputs[0], work(emit.maths, numbers(emit, node.inputs[0], last=last)), last=last)


def reciprocal(emit: Emitter, node: ir.Node) -> None:
    """1 / x; RSQRT behind a Sqrt."""
    x = node.inputs[0]
    root = x.producer() if x is not None else None
    if root is not None and root.op_type == "Sqrt" and emit.grid(x) is None:
        last = emit.last(root.inputs[0])
        data = numbers(emit, root.inputs[0], last=last)
        write(emit, node.outputs[0], emit.maths.unary("RSQRT", data), last=last)
        return
    single(emit, node, lambda maths, data: maths.div(1.0, data))


def _absolute(maths: Maths, x: Tensor) -> Tensor:
    return maths.unary("ABS", x) if x.dtype == "FLOAT32" else maths.maximum(x, maths.unary("NEG", x))


def _sign(maths: Maths, x: Tensor) -> Tensor:
    return maths.unary("SIGN", x) if x.dtype == "FLOAT32" else maths.clipped(x, -1, 1)


_ERF_ABOVE = (1.128378987312317, 0.19276519119739532, 0.053060632199048996, 0.003868376836180687,
              0.0002874807105399668, 2.0347290501376847e-06)  # fmt: skip
_ERF_BELOW = (1.0, 0.5041653513908386, 0.11508508771657944, 0.01517239399254322, 0.0011881275568157434,
              3.8070647860877216e-05)  # fmt: skip
_ERF_END = 3.92
"""erf(x) = x · P(x²) / Q(x²) up to where it is 1 in float32.

The coefficients are a weighted least-squares fit, refined towards the smallest largest error: 4e-7 in float32.
"""


def _erf(maths: Maths, x: Tensor) -> Tensor:
    inside = maths.clipped(x, -_ERF_END, _ERF_END)
    square = maths.mul(inside, inside)
    above, below = (_polynomial(maths, square, each) for each in (_ERF_ABOVE, _ERF_BELOW))
    return maths.div(maths.mul(inside, above), below)


def _polynomial(maths: Maths, x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """By Horner's rule; the constant comes first."""
    result = maths.add(maths.mul(x, coefficients[-1]), coefficients[-2])
    for each in coefficients[-3::-1]:
        result = maths.add(maths.mul(result, x), each)
    return result


def _kernel(code: str) -> Handler:
    return partial(single, work=lambda maths, x: maths.unary(code, x))


HANDLERS: dict[str, Handler] = {
    **{
        name: partial(binary, code=code)
        for name, code in {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}.items()
    },
    "Sum": partial(variadic, code="ADD"),
    "Mean": partial(variadic, code="ADD", mean=True),
    "Max": partial(variadic, code="MAXIMUM"),
    "Min": partial(variadic, code="MINIMUM"),
    "Pow": pow_,
    **{name: _kernel(name.upper()) for name in ("Neg", "Exp", "Log", "Sqrt", "Floor", "Ceil", "Sin", "Cos")},
    "Round": _kernel("ROUND"),
    "Reciprocal": reciprocal,
    "Abs": partial(single, work=_absolute),
    "Sign": partial(single, work=_sign),
    "Erf": partial(single, work=_erf),
}
"""ROUND takes halves to even, as ONNX does."""
