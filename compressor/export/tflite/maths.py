"""Arithmetic on tensors of the file, for what several kernels make together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgepress.compressor.export.tflite.builder import Builder
from edgepress.compressor.export.tflite.schema import numpy_dtype, options
from edgepress.compressor.export.tflite.tensors import Grid, Tensor

TINY = float(np.finfo(np.float32).tiny)
"""The least divisor that stands for 0."""
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
    "SQUARED_DIFFERENCE": "SquaredDifference",
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

    def binary(
        self, code: str, a: Operand, b: Operand, activation: str = "NONE", grid: Grid | None = None
    ) -> Tensor:
        """A kernel of two operands that broadcast; comparisons give BOOL.

        Args:
            code: its name in the schema.
            a: a tensor, or a number.
            b: likewise; not both are numbers.
            activation: that the kernel applies itself.
            grid: of the result, where all are 8-bit integers.
        """
        dtype = next(each.dtype for each in (a, b) if isinstance(each, Tensor))
        x, y = (each if isinstance(each, Tensor) else self.constant(each, dtype) for each in (a, b))
        x, y = widened(self.builder, x, y), widened(self.builder, y, x)
        fields = {"fusedActivationFunction": activation} if code in {"ADD", "SUB", "MUL", "DIV"} else {}
        shape = np.broadcast_shapes(x.shape, y.shape)
        kind = "BOOL" if code in _TRUTHS else dtype
        return self.builder.op(code, [x, y], shape, kind, grid, options(_KINDS[code], **fields))

    def add(self, a: Operand, b: Operand, activation: str = "NONE") -> Tensor:
        """The sum, with an activation of the kernel's behind it."""
        return self.binary("ADD", a, b, activation)

    def sub(self, a: Operand, b: Operand) -> Tensor:
        """The difference."""
        return self.binary("SUB", a, b)

    def mul(self, a: Operand, b: Operand, activation: str = "NONE") -> Tensor:
        """The product, with an activation of the kernel's behind it."""
        return self.binary("MUL", a, b, activation)

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

    def reduced(
        self,
        code: str,
        x: Tensor,
        axes: Sequence[int],
        *,
        keep: bool = True,
        grid: Grid | None = None,
    ) -> Tensor:
        """MEAN, SUM, REDUCE_MAX or the like over dimensions of the file."""
        over = sorted(set(axes))
        shape = [1 if at in over else size for at, size in enumerate(x.shape) if keep or at not in over]
        inputs = [x, self.builder.constant(np.array(over, np.int32))]
        return self.builder.op(code, inputs, shape, x.dtype, grid, options("Reducer", keepDims=keep))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """CAST; of constants at once."""
        if x.dtype == dtype:
            return x
        if x.array is not None and x.grid is None:
            return self.builder.constant(x.array.astype(numpy_dtype(dtype)))
        if {x.dtype, dtype} == {"INT64", "UINT64"}:  # which CAST does not know
            return self.builder.op("BITCAST", [x], x.shape, dtype)
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
