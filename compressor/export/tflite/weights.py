"""Weights that the graph works out of integers, said anew as a DequantizeLinear of int8, which handlers know.

What `store` and `cluster` write folds to floats at load, through any chain of operators; the last of them is a
Mul by the scales. Blocks become rows, which are put together by a Reshape.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.constants import Constants
from edgepress.compressor.export.tflite.tensors import SHORTEST, Array, Factors
from edgepress.compressor.sites import new_constant


def dequantized_weights(model: ir.Model) -> bool:
    """Let a DequantizeLinear give what a Mul of integers and scales gives, in place; whether there was any."""
    constants, changed = Constants(), False
    for node in list(model.graph):
        if (
            node.op_type != "Mul"
            or node.domain not in {"", "ai.onnx"}
            or not constants.known(node.outputs[0])
        ):
            continue
        factors = _multiplied(constants, node)
        if factors is None or factors.integers.size < SHORTEST:
            continue
        value = node.outputs[0]
        found = from_integers(model.graph, node, value.name or "weight", factors)
        if found is not None:
            ir.convenience.replace_all_uses_with(value, found)
            changed = True
    return changed


def from_integers(graph: ir.Graph, before: ir.Node, name: str, factors: Factors) -> ir.Value | None:
    """What factors stand for, from a DequantizeLinear; None where the scales would take more than is saved.

    Args:
        graph: gets the nodes.
        before: the node that they come before.
        name: that names of new values begin with.
        factors: of a weight.
    """
    factors = factors.positive()
    codes, shape = factors.codes(), factors.integers.shape
    back = list(range(len(shape)))
    if codes is not None:
        rows, scale, zero, axis = codes.integers, codes.scale, codes.zero_point, codes.axis
    else:
        found = _rows(factors)
        if found is None:
            return None
        moved, back, width = found
        rows, axis = moved.integers.reshape(-1, width), 0
        scale, zero = (part.reshape(-1, width)[:, 0] for part in (moved.scale, moved.zero_point))
        shape = moved.integers.shape
    parts: list[Array] = [rows.astype(np.int8), scale.astype(np.float32), zero.astype(np.int8)]
    if scale.size == 1:
        parts[1:] = [part.reshape(()) for part in parts[1:]]
    inputs = [new_constant(graph, f"{name}_{part}", array) for part, array in zip("qsz", parts, strict=True)]
    nodes = [ir.Node("", "DequantizeLinear", inputs, [ir.AttrInt64("axis", axis)])]
    if rows.shape != shape:
        target = new_constant(graph, f"{name}_shape", np.array(shape, np.int64))
        nodes.append(ir.Node("", "Reshape", [nodes[0].outputs[0], target]))
    if back != sorted(back):
        nodes.append(ir.Node("", "Transpose", nodes[-1].outputs, [ir.AttrInt64s("perm", back)]))
        shape = tuple(shape[at] for at in back)
    for each in nodes:
        each.outputs[0].name = f"{name}_{each.op_type}"
        each.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    nodes[0].outputs[0].shape, nodes[-1].outputs[0].shape = ir.Shape(rows.shape), ir.Shape(shape)
    graph.insert_before(before, nodes)
    return nodes[-1].outputs[0]


def _rows(factors: Factors) -> tuple[Factors, list[int], int] | None:
    """The factors with the axis last along which scales repeat, the way back, and how often; None for none."""
    rank = factors.integers.ndim
    for axis in reversed(range(rank)):
        order = [*(at for at in range(rank) if at != axis), axis]
        moved = factors.moved(lambda part, order=order: np.ascontiguousarray(part.transpose(order)))  # type: ignore[misc]
        width = moved.run()
        if width >= SHORTEST:
            return moved, [order.index(at) for at in range(rank)], width
    return None


def _multiplied(constants: Constants, node: ir.Node) -> Factors | None:
    """The factors of (q − z) · s, computed in float32 as runtimes fold it."""
    for one, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        scale, maker = constants.array(other), one.producer() if one is not None else None
        if scale is None or scale.dtype != np.float32 or maker is None:
            continue
        whole, zero = one, np.zeros(1, np.float32)
        if maker.op_type == "Sub":
            given = constants.array(maker.inputs[1])
            whole, zero = maker.inputs[0], zero if given is None else given
        wide = constants.array(whole)
        if wide is None or wide.dtype != np.float32 or not wide.size:
            continue
        middle = 128 if wide.max() > 127 else 0
        shape = np.broadcast_shapes(wide.shape, scale.shape, zero.shape)
        if shape == wide.shape and _fit((wide - middle, zero - middle)):
            narrow = (zero - middle).astype(np.int8)
            return Factors(
                (wide - middle).astype(np.int8), np.broadcast_to(scale, shape), np.broadcast_to(narrow, shape)
            )
    return None


def _fit(arrays: Sequence[Array]) -> bool:
    """Whether all numbers are integers of 8 bits."""
    return all(((a == np.round(a)) & (a >= -128) & (a <= 127)).all() for a in arrays)
