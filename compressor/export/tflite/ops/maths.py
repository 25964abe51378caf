"""Kernels on tensors that broadcast, for what several of them make together, and the types that they work in."""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.builder import Builder
from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.schema import numpy_dtype, options
from edgepress.compressor.export.tflite.tensors import Tensor

WORKING = {
    "FLOAT32": "FLOAT32",
    "FLOAT16": "FLOAT32",
    "INT64": "INT64",
    "UINT32": "INT64",
    **dict.fromkeys(("INT32", "INT8", "UINT8", "INT16", "UINT16", "BOOL"), "INT32"),
}
"""The type that kernels work in for each type of values; narrower results wrap around when they are cast back."""

_KINDS = {
    **{code: code.capitalize() for code in ("ADD", "SUB", "MUL", "DIV", "POW", "LESS", "EQUAL", "GREATER")},
    **{code: code.capitalize() for code in ("NEG", "ABS", "EXP", "SIGN", "COS", "GELU")},
    "MAXIMUM": "MaximumMinimum",
    "MINIMUM": "MaximumMinimum",
    "FLOOR_MOD": "FloorMod",
    "LESS_EQUAL": "LessEqual",
    "GREATER_EQUAL": "GreaterEqual",
    "NOT_EQUAL": "NotEqual",
    "LOGICAL_AND": "LogicalAnd",
    "LOGICAL_OR": "LogicalOr",
    "LOGICAL_NOT": "LogicalNot",
    "HARD_SWISH": "HardSwish",
    "LEAKY_RELU": "LeakyRelu",
    "SELECT_V2": "SelectV2",
}
_TRUTHS = frozenset({"LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"})

Operand = Tensor | float


class Maths:
    """Appends kernels; numbers in place of tensors become constants of the other operand's type."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def constant(self, number: float, dtype: str) -> Tensor:
        """A scalar."""
        return self.builder.constant(np.array(number, numpy_dtype(dtype)))

    def binary(self, code: str, a: Operand, b: Operand, activation: str = "NONE") -> Tensor:
        """A kernel of two operands; comparisons give BOOL."""
        dtype = next(each.dtype for each in (a, b) if isinstance(each, Tensor))
        x, y = (each if isinstance(each, Tensor) else self.constant(each, dtype) for each in (a, b))
        x, y = widened(self.builder, x, y), widened(self.builder, y, x)
        fields = {"fusedActivationFunction": activation} if code in {"ADD", "SUB", "MUL", "DIV"} else {}
        shape = np.broadcast_shapes(x.shape, y.shape)
        kind = "BOOL" if code in _TRUTHS else dtype
        return self.builder.op(code, [x, y], shape, kind, options=options(_KINDS[code], **fields))

    def add(self, a: Operand, b: Operand, activation: str = "NONE") -> Tensor:
        """The sum, with an activation of the kernel's behind it."""
        return self.binary("ADD", a, b, activation)

    def sub(self, a: Operand, b: Operand) -> Tensor:
        """The difference."""
        return self.binary("SUB", a, b)

    def mul(self, a: Operand, b: Operand) -> Tensor:
        """The product."""
        return self.binary("MUL", a, b)

    def div(self, a: Operand, b: Operand) -> Tensor:
        """The quotient."""
        return self.binary("DIV", a, b)

    def maximum(self, a: Operand, b: Operand) -> Tensor:
        """The larger."""
        return self.binary("MAXIMUM", a, b)

    def minimum(self, a: Operand, b: Operand) -> Tensor:
        """The smaller."""
        return self.binary("MINIMUM", a, b)

    def clipped(self, x: Tensor, low: Operand, high: Operand) -> Tensor:
        """At least `low`, then at most `high`."""
        return self.minimum(self.maximum(x, low), high)

    def unary(self, code: str, x: Tensor, **fields: Any) -> Tensor:
        """A kernel of one operand."""
        kind = _KINDS.get(code)
        return self.builder.op(code, [x], x.shape, options=options(kind, **fields) if kind else None)

    def select(self, condition: Tensor, a: Operand, b: Operand) -> Tensor:
        """`a` where the condition holds, else `b`."""
        like = next(each for each in (a, b) if isinstance(each, Tensor))
        x, y = (each if isinstance(each, Tensor) else self.constant(each, like.dtype) for each in (a, b))
        shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
        return self.builder.op("SELECT_V2", [condition, x, y], shape, x.dtype, x.grid, options("SelectV2"))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """CAST; of constants at once."""
        if x.dtype == dtype:
            return x
        if x.array is not None and x.grid is None:
            return self.builder.constant(x.array.astype(numpy_dtype(dtype)))
        made = options("Cast", inDataType=x.dtype, outDataType=dtype)
        return self.builder.op("CAST", [x], x.shape, dtype, options=made)


def widened(builder: Builder, x: Tensor, other: Tensor) -> Tensor:
    """An operand with as many dimensions as a constant of one element has that goes with it.

    XNNPACK takes such a constant for a scalar, and gives the result too few dimensions.
    """
    missing = len(other.shape) - len(x.shape)
    if missing <= 0 or other.array is None or other.array.size != 1:
        return x
    return builder.reshaped(x, (1,) * missing + x.shape)


def working(dtype: str) -> str:
    """The type that kernels work in; raises `UnsupportedError` where there is none."""
    if dtype not in WORKING:
        raise UnsupportedError(
            f"dtype: TFLite's kernels do not take {dtype.lower()}", "Cast it to a narrower type."
        )
    return WORKING[dtype]


def plain(emit: Emitter, value: ir.Value | None, rank: int = 0, *, last: bool = False) -> Tensor:
    """A value's numbers in its own type: of what QuantizeLinear gave the integers, not what they stand for.

    Args:
        emit: the emitter.
        value: of the graph.
        rank: of the result that it is an operand of; default: its own.
        last: channels last.
    """
    own = emit.shape(value)
    whole = value is not None and value.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    if value is None or emit.grid(value) is None or not whole:
        return emit.operand(value, rank or len(own), last=last)
    maths, dtype = Maths(emit.builder), emit.dtype(value)
    held = maths.cast(emit.operand(value, rank or len(own), integer=True, last=last), "INT32")
    return maths.cast(maths.add(held, 128) if dtype == "UINT8" else held, dtype)


def numbers(emit: Emitter, value: ir.Value | None, rank: int = 0, *, last: bool = False) -> Tensor:
    """A value's numbers in the type that kernels work in; arguments as `plain`."""
    if value is not None:
        working(emit.dtype(value))
    held = plain(emit, value, rank, last=last)
    return Maths(emit.builder).cast(held, working(held.dtype))


def write(emit: Emitter, value: ir.Value, tensor: Tensor, *, last: bool = False) -> None:
    """Write a result that was worked out in another type than the value's; it wraps around."""
    emit.write(value, Maths(emit.builder).cast(tensor, emit.dtype(value)), last=last)
