"""Sums, means, extremes and products over dimensions, where an extreme lies, and running sums."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, axes_of, operand_of
from edgepress.compressor.export.tflite.layout import axis_in
from edgepress.compressor.export.tflite.ops.moving import COUNTED, carried, int32, late, vector, write_rest
from edgepress.compressor.export.tflite.ops.values import axes_in, write
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Grid, Tensor
from edgepress.compressor.sites import int_attribute

Handler = Callable[[Emitter, ir.Node], None]
RANK = 6
"""Highest rank of the kernels."""
_TRUTH = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}
"""What kernels that keep numbers as they are are called for truth values."""


class Reduction:
    """Over which dimensions a node reduces, and how its result is written.

    Attributes:
        last: whether what is reduced comes with its channels last.
        idle: whether nothing is reduced.
    """

    def __init__(self, emit: Emitter, node: ir.Node, axes: Sequence[int] | None = None) -> None:
        """Read a node's axes.

        Args:
            emit: the emitter.
            node: with its axes as an attribute, or as its second input.
            axes: instead of the node's own.
        """
        x = node.inputs[0]
        self._emit, self._result = emit, node.outputs[0]
        self._rank = len(emit.shape(x))
        self._keep = bool(int_attribute(node, "keepdims", 1))
        self._late: Tensor | None = None
        if self._rank > RANK:
            raise UnsupportedError(f"rank: the kernel takes up to {RANK} dimensions, not {self._rank}")
        if axes is None and late(emit, node, 1):
            axes = self._declared(emit.shape(x))
            self._late = int32(emit, operand_of(node, 1)) if axes is None else None
        elif axes is None:
            axes = axes_of(emit, node, 1, self._rank) or None
        idle = axes is None and self._late is None and bool(int_attribute(node, "noop_with_empty_axes", 0))
        self._axes = list(range(self._rank) if axes is None else axes)
        self.idle = idle or not self._rank
        self.last = emit.last(x) and self._late is None

    def _declared(self, shape: Sequence[int]) -> list[int] | None:
        """Axes that the shapes of operand and result tell, or None."""
        if not self._keep:
            return None
        after = self._emit.shape(self._result)
        return [axis for axis, sizes in enumerate(zip(shape, after, strict=True)) if sizes[0] != sizes[1]]

    def apply(self, code: str, tensor: Tensor, grid: Grid | None = None) -> Tensor:
        """The kernel `code`; what is reduced stays, with size 1."""
        if self.idle:
            return tensor
        if self._late is not None:
            made, shape = options("Reducer", keepDims=True), (1,) * self._rank
            return self._emit.builder.op(code, [tensor, self._late], shape, tensor.dtype, grid, made)
        over = axes_in(self._axes, self._rank, self.last)
        return self._emit.maths.reduced(code, tensor, over, grid=grid) if over else tensor

    def settled(self, tensor: Tensor) -> Tensor:
        """The result in a shape that is known, for what follows."""
        if self._late is None:
            return tensor
        return self._emit.builder.reshaped(tensor, self._emit.shape(self._result))

    def write(self, value: ir.Value, tensor: Tensor) -> None:
        """Let a result be a value."""
        gone = () if self._keep or self.idle or self._late is not None else self._axes
        write_rest(self._emit, value, tensor, gone, last=self.last)


def reduce(emit: Emitter, node: ir.Node, code: str, axes: Sequence[int] | None = None) -> None:
    """MEAN, SUM or REDUCE_PROD; MEAN has an 8-bit kernel."""
    over = Reduction(emit, node, axes)
    ending = emit.ending(node.outputs[0])
    integer = code == "MEAN" and not over.idle and emit.integral(ending, node.inputs[0])
    data = carried(emit, emit.read(node.inputs[0], integer=integer, last=over.last), COUNTED)
    over.write(ending.value, over.settled(over.apply(code, data, ending.grid if integer else None)))


def extreme(emit: Emitter, node: ir.Node, code: str, axes: Sequence[int] | None = None) -> None:
    """REDUCE_MAX or REDUCE_MIN: integers stay on their grid."""
    over = Reduction(emit, node, axes)
    x = node.inputs[0]
    data = emit.read(x, integer=emit.grid(x) is not None, last=over.last)
    if data.dtype == "BOOL":
        code = _TRUTH[code]
    else:
        data = carried(emit, data, COUNTED)
    over.write(node.outputs[0], over.settled(over.apply(code, data, data.grid)))


def norm(emit: Emitter, node: ir.Node, before: str, after: str) -> None:
    """ReduceL1, ReduceL2, ReduceSumSquare and ReduceLogSum: a sum between two kernels.

    Args:
        emit: the emitter.
        node: the node.
        before: ABS, MUL (by itself) or nothing.
        after: SQRT, LOG or nothing.
    """
    over = Reduction(emit, node)
    kinds = ("FLOAT32", "INT32") if before == "ABS" or after else COUNTED
    data = carried(emit, emit.read(node.inputs[0], last=over.last), kinds)
    if after:
        data = emit.maths.cast(data, "FLOAT32")
    if before == "ABS":
        data = emit.maths.unary("ABS", data)
    elif before == "MUL":
        data = emit.maths.mul(data, data)
    made = over.settled(over.apply("SUM", data))
    over.write(node.outputs[0], emit.maths.unary(after, made) if after else made)


def log_sum_exp(emit: Emitter, node: ir.Node) -> None:
    """ReduceLogSumExp, with the largest number taken out first so that nothing overflows."""
    over = Reduction(emit, node)
    data = emit.maths.cast(carried(emit, emit.read(node.inputs[0], last=over.last), COUNTED), "FLOAT32")
    most = float(np.finfo(np.float32).max)
    largest = over.apply("REDUCE_MAX", data)
    largest = emit.maths.clipped(largest, -most, most)
    total = over.apply("SUM", emit.maths.unary("EXP", emit.maths.sub(data, largest)))
    made = emit.maths.add(emit.maths.unary("LOG", over.settled(total)), over.settled(largest))
    over.write(node.outputs[0], made)


def arg(emit: Emitter, node: ir.Node, code: str) -> None:
    """ARG_MAX or ARG_MIN; where the last of equals is asked for, of the numbers in reverse."""
    x, result = node.inputs[0], node.outputs[0]
    shape, last = emit.shape(x), emit.last(x)
    axis = int_attribute(node, "axis", 0) % len(shape)
    at = axis_in(axis, len(shape), last)
    data = emit.read(x, integer=emit.grid(x) is not None, last=last)
    data = carried(emit, data, ("FLOAT32", "INT8", "UINT8", "INT32"))
    backwards = bool(int_attribute(node, "select_last_index", 0))
    if backwards:
        over = vector(emit, [at])
        data = emit.builder.op("REVERSE_V2", [data, over], data.shape, "", data.grid, options("ReverseV2"))
    kept = [1 if place == at else size for place, size in enumerate(data.shape)]
    where = emit.builder.constant(np.array(at, np.int32))
    rest = [size for place, size in enumerate(data.shape) if place != at]
    kind = "ArgMax" if code == "ARG_MAX" else "ArgMin"
    found = emit.builder.op(code, [data, where], rest, "INT64", options=options(kind, outputType="INT64"))
    if backwards:
        found = emit.maths.sub(shape[axis] - 1, found)
    found = emit.builder.reshaped(found, kept)
    write_rest(emit, result, found, () if int_attribute(node, "keepdims", 1) else (axis,), last=last)


def cumulative_sum(emit: Emitter, node: ir.Node) -> None:
    """CUMSUM."""
    x = node.inputs[0]
    rank = len(emit.shape(x))
    axis = emit.constant(operand_of(node, 1))
    last = emit.last(x) and axis is not None
    where = (
        emit.builder.reshaped(int32(emit, operand_of(node, 1)), ())
        if axis is None
        else emit.builder.constant(np.array(axis_in(int(axis.reshape(())) % rank, rank, last), np.int32))
    )
    made = options(
        "Cumsum",
        exclusive=bool(int_attribute(node, "exclusive", 0)),
        reverse=bool(int_attribute(node, "reverse", 0)),
    )
    data = carried(emit, emit.read(x, last=last), COUNTED)
    write(
        emit, node.outputs[0], emit.builder.op("CUMSUM", [data, where], data.shape, options=made), last=last
    )


HANDLERS: dict[str, Handler] = {
    "ReduceMean": partial(reduce, code="MEAN"),
    "ReduceSum": partial(reduce, code="SUM"),
    "ReduceProd": partial(reduce, code="REDUCE_PROD"),
    "ReduceMax": partial(extreme, code="REDUCE_MAX"),
    "ReduceMin": partial(extreme, code="REDUCE_MIN"),
    "ReduceL1": partial(norm, before="ABS", after=""),
    "ReduceL2": partial(norm, before="MUL", after="SQRT"),
    "ReduceSumSquare": partial(norm, before="MUL", after=""),
    "ReduceLogSum": partial(norm, before="", after="LOG"),
    "ReduceLogSumExp": log_sum_exp,
    "ArgMax": partial(arg, code="ARG_MAX"),
    "ArgMin": partial(arg, code="ARG_MIN"),
    "CumSum": cumulative_sum,
}
