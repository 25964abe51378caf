"""Recurrent layers: hidden units are rows of W, rows and columns of R, and the last axis of Y, Y_h and Y_c.

    GRU, LSTM and RNN of ONNX: W [d, gates · h, in], R [d, gates · h, h], B [d, 2 · gates · h], P [d, 3 · h],
    initial_h and initial_c [d, batch, h]; Y [time, d, batch, h], Y_h and Y_c [d, batch, h]       (d directions)

Both directions have the same number of units: unit i of the one goes with unit i of the other.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import (
    constant,
    exclusive,
    replace_constant,
    site_name,
)

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
W, R, B, LENGTHS, FIRST_H, FIRST_C, PEEPHOLES = range(1, 8)
"""Places among the inputs."""

SPREADING = frozenset(
    ["Expand", "Slice", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast", "Tile"]
)


@dataclass(frozen=True)
class Recurrence:
    """A recurrent layer with constant weights.

    Attributes:
        node: the node.
        gates: how many rows of W each hidden unit has.
        weights: W [d, gates · h, in].
        recurrent: R [d, gates · h, h].
    """

    node: ir.Node
    gates: int
    weights: Array
    recurrent: Array

    @property
    def name(self) -> str:
        """Under which users meet it."""
        return site_name(self.node)

    @property
    def hidden(self) -> int:
        """Hidden units of each direction."""
        return int(self.recurrent.shape[2])

    @property
    def directions(self) -> int:
        """1 or 2."""
        return int(self.weights.shape[0])

    def input(self, place: int) -> ir.Value | None:
        """An input that may not be there."""
        return self.node.inputs[place] if place < len(self.node.inputs) else None

    def fixed(self) -> bool:
        """Whether its arrays are read elsewhere, too, or are no constants."""
        arrays = [self.input(place) for place in (W, R, B, PEEPHOLES)]
        return any(v is not None and (constant(v) is None or not exclusive(v)) for v in arrays)

    def starts(self) -> list[tuple[int, ir.Value]]:
        """First states that are given."""
        found = ((place, self.input(place)) for place in (FIRST_H, FIRST_C))
        return [(place, value) for place, value in found if value is not None]


def recurrence_of(node: ir.Node) -> Recurrence | None:
    """The recurrent layer that `node` is, or None."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in GATES or len(node.inputs) <= R:
        return None
    weights, recurrent = constant(node.inputs[W]), constant(node.inputs[R])
    if weights is None or recurrent is None or weights.ndim != 3 or recurrent.ndim != 3:
        return None
    gates = GATES[node.op_type]
    fits = weights.shape[:2] == recurrent.shape[:2] and weights.shape[1] == gates * recurrent.shape[2]
    if not fits or not weights.size or not recurrent.size or weights.dtype.kind != "f":
        return None
    return Recurrence(node, gates, weights, recurrent)


def always_zero(value: ir.Value | None, depth: int = 40) -> bool:
    """Whether a value is zero whatever is fed: exporters spread a zero over the batch."""
    array = constant(value)
    if array is not None:
        return not array.any()
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", "ai.onnx") or depth == 0:
        return False
    if node.op_type == "ConstantOfShape":
        given = node.attributes.get_tensor("value")
        return given is None or not given.numpy().any()
    if node.op_type == "Concat":  # of the two directions
        return all(always_zero(part, depth - 1) for part in node.inputs)
    return node.op_type in SPREADING and always_zero(node.inputs[0], depth - 1)


def cut_recurrence(layer: Recurrence, hidden: Array | None, inputs: Array | None) -> bool:
    """Take hidden units and inputs out of a recurrent layer's own arrays.

    Args:
        layer: its node is changed.
        hidden: mask [h] of those that stay, or None for all.
        inputs: mask [in] likewise.

    Returns:
        Whether anything went.
    """
    node, weights = layer.node, layer.weights
    if inputs is not None:
        weights = weights[:, :, inputs]
    if hidden is not None:
        rows = np.tile(hidden, layer.gates)
        weights = weights[:, rows]
        replace_constant(node, R, layer.recurrent[:, rows][:, :, hidden])
        for place, times in ((B, 2 * layer.gates), (PEEPHOLES, 3)):
            array = constant(layer.input(place))
            if array is not None:
                replace_constant(node, place, array[:, np.tile(hidden, times)])
        for place, value in layer.starts():
            array = constant(value)
            if array is not None:
                replace_constant(node, place, array[..., hidden])
            elif always_zero(value):
                node.replace_input_with(place, None)
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(hidden.sum()))
    if hidden is not None or inputs is not None:
        replace_constant(node, W, weights)
    return hidden is not None or inputs is not None
