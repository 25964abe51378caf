"""QuantizeLinear and DequantizeLinear as steps."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.affine import Move
from edgepress.compressor.certify.curves import Bent, Grid
from edgepress.compressor.certify.operators import MOVES, name_of, optional, step
from edgepress.compressor.certify.program import CLIP_OF_GRID, Reader, Step, refused
from edgepress.compressor.sites import site_name


def quantizer(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """QuantizeLinear: clipped to what the integers hold, then rounded; the integers are told in units of the reals."""
    scale, zero = reader.number(node, 1), optional(reader, node, 2)
    kind = node.outputs[0].dtype
    if scale.size != 1 or kind is None or not kind.is_integer():
        raise refused(node, "its scale differs from channel to channel")
    reads = [use.node.op_type for use in node.outputs[0].uses()]
    if set(reads) != {"DequantizeLinear"} or node.outputs[0].is_graph_output():
        raise refused(node, "integers are read by other operators")
    if on_grid(reader, node.inputs[0], node):
        row = reader.row(node.inputs[0], node)
        return step(node, Move(row, tuple(range(len(row))), row))
    about = np.iinfo(kind.numpy())
    step_size, offset = float(scale.reshape(-1)[0]), 0.0 if zero is None else float(zero.reshape(-1)[0])
    middle = name_of(node.outputs[0]) + CLIP_OF_GRID
    ends = Bent((about.min - offset) * step_size, (about.max - offset) * step_size)
    name = site_name(node)
    return [
        Step(name + CLIP_OF_GRID, (name_of(node.inputs[0]),), middle, ends),
        Step(name, (middle,), name_of(node.outputs[0]), Grid(step_size)),
    ]


def on_grid(reader: Reader, value: ir.Value | None, node: ir.Node) -> bool:
    """Whether a value has just come from a pair with the grid of `node` and was only moved: it rounds to itself."""
    maker = None if value is None else value.producer()
    if maker is None:
        return False
    if maker.op_type == "DequantizeLinear":
        return same_grid(reader, maker, node)
    if maker.op_type == "Concat":
        return all(on_grid(reader, each, node) for each in maker.inputs)
    return maker.op_type in (*MOVES, "MaxPool") and on_grid(reader, maker.inputs[0], node)


def same_grid(reader: Reader, one: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes have the same scale and zero point."""
    ours, theirs = ([reader.constant(v) for v in n.inputs[1:]] for n in (one, other))
    return len(ours) == len(theirs) and all(
        a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(ours, theirs, strict=True)
    )


def dequantizer(reader: Reader, node: ir.Node) -> Sequence[Step]:
    """DequantizeLinear of what a QuantizeLinear with the same grid gave: nothing is left to do."""
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "QuantizeLinear":
        raise refused(node, "it reads integers that no QuantizeLinear gave")
    if not same_grid(reader, node, maker):
        raise refused(node, "its scale or zero point is not that of its QuantizeLinear")
    row = reader.row(node.outputs[0], node)
    return step(node, Move(row, tuple(range(len(row))), row))
