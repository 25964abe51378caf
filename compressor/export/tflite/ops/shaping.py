"""Operators that move numbers and leave them as they are: integers stay integers."""

from collections.abc import Callable

import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError
from edgepress.compressor.export.tflite.layout import arranged, axis_in
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.sites import int_attribute, ints_attribute

Handler = Callable[[Emitter, ir.Node], None]


def reshape(emit: Emitter, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: all are RESHAPE to the shape that was inferred."""
    x, result = node.inputs[0], node.outputs[0]
    tensor = emit.read(x, integer=emit.grid(x) is not None)
    try:
        emit.write(result, emit.builder.reshaped(tensor, emit.shape(result)))
    except ValueError as error:
        raise UnsupportedError(f"dynamic shape: {error}", "Fix the batch size with --shape.") from error


def transpose(emit: Emitter, node: ir.Node) -> None:
    """TRANSPOSE; it vanishes where it undoes what the layout does."""
    x = node.inputs[0]
    rank = len(emit.shape(x))
    order = ints_attribute(node, "perm", tuple(reversed(range(rank))))
    last = emit.last(x)
    tensor = emit.read(x, integer=emit.grid(x) is not None, last=last)
    emit.write(
        node.outputs[0], emit.builder.transposed(tensor, [axis_in(axis, rank, last) for axis in order])
    )


def concat(emit: Emitter, node: ir.Node) -> None:
    """CONCATENATION; integers on different grids are put on the one behind it first."""
    result = node.outputs[0]
    ending = emit.ending(result)
    shape = emit.shape(result)
    last = emit.last(*node.inputs)
    grids = {emit.grid(value) for value in node.inputs}
    grid = grids.pop() if len(grids) == 1 else ending.grid if emit.on_grids(*node.inputs) else None
    tensors = [emit.read(value, integer=grid is not None, last=last) for value in node.inputs]
    if grid is not None:
        tensors = [emit.quantized(tensor, grid) for tensor in tensors]
    axis = axis_in(int_attribute(node, "axis", 0) % len(shape), len(shape), last)
    made = options("Concatenation", axis=axis)
    whole = emit.builder.op("CONCATENATION", tensors, arranged(shape, last), grid=grid, options=made)
    emit.write(result, whole, last=last)


def identity(emit: Emitter, node: ir.Node) -> None:
    """Another name for the same value."""
    if node.inputs[0] is not None:
        emit.alias(node.outputs[0], node.inputs[0])


HANDLERS: dict[str, Handler] = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Transpose": transpose,
    "Concat": concat,
    "Identity": identity,
}
