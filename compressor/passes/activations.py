"""Activations: the nodes that bend what sites give, what cuts their small values off, and how much of them is zero."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepress.compressor.passes.base import Stream, site_name
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.sites import constant

FUNCTIONS = frozenset(["Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish"])

GATES = frozenset(["Sigmoid", "HardSigmoid"])
"""x · gate(x) is one activation."""


@dataclass(frozen=True)
class Activation:
    """A node that bends its input, and what stands behind it.

    Attributes:
        node: gives the activation.
        cut: the node that cuts small values off; None where there is none yet.
    """

    node: ir.Node
    cut: ir.Node | None

    @property
    def name(self) -> str:
        """Under which users meet it."""
        return site_name(self.node)

    @property
    def y(self) -> ir.Value:
        """What sites behind it read."""
        return (self.cut or self.node).outputs[0]

    @property
    def signed(self) -> bool:
        """Whether it may be negative."""
        return self.node.op_type in ("HardSwish", "Swish", "Mul")


def activations(model: ir.Model) -> list[Activation]:
    """Those of the main graph, in its order; of x · gate(x) the product."""
    found: dict[ir.Node, ir.Node | None] = {}
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        if (x := _cut_off(node)) is not None:
            maker = x.producer()
            behind = maker is not None and found.get(maker, maker) is None and _alone(x, node)
            found[maker if behind and maker is not None else node] = node
        elif node.op_type in FUNCTIONS or (clip_bounds(node) or (1.0, 0.0))[0] == 0.0:
            found[node] = None
        elif (gate := _gate(node)) is not None:
            found[node] = None
            if len(gate.outputs[0].uses()) == 1:
                found.pop(gate, None)
    return [Activation(node, behind) for node, behind in found.items()]


def _gate(node: ir.Node) -> ir.Node | None:
    """The gate of a product x · gate(x), or None."""
    if node.op_type != "Mul":
        return None
    for x, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        gate = other.producer() if other is not None else None
        if gate is not None and gate.op_type in GATES and gate.inputs[0] is x:
            return gate
    return None


def _cut_off(node: ir.Node) -> ir.Value | None:
    """x, if the node is ThresholdedRelu(x) or Where(x > constant, x, 0)."""
    if node.op_type == "ThresholdedRelu":
        return node.inputs[0]
    if node.op_type != "Where":
        return None
    mask, x, other = node.inputs
    test, zero = (mask.producer() if mask is not None else None), constant(other)
    if x is None or test is None or test.op_type != "Greater" or test.inputs[0] is not x:
        return None
    return x if zero is not None and not zero.any() and constant(test.inputs[1]) is not None else None


def _alone(x: ir.Value, node: ir.Node) -> bool:
    """Whether a node that cuts x off is all that reads it."""
    readers = {use.node for use in x.uses()} - {node}
    return all(reader.op_type == "Greater" and reader.outputs[0] is node.inputs[0] for reader in readers)


@dataclass(frozen=True)
class Sparsity:
    """How much of an activation is zero.

    Attributes:
        zeros: how many values.
        values: of how many.
    """

    zeros: int
    values: int

    @property
    def share(self) -> float:
        """Zeros among the values; 0 where there are none."""
        return self.zeros / self.values if self.values else 0.0


def sparsity(model: ir.Model, stream: Stream) -> dict[str, Sparsity]:
    """Zeros in what is read of each activation, on samples; the same names before and after this pass.

    Args:
        model: any model.
        stream: gives samples.
    """
    found = {a.name: a.y.name or "" for a in activations(model)}
    zeros, values = dict.fromkeys(found, 0), dict.fromkeys(found, 0)
    for batch, _ in stream(model, list(found.values())):
        for name, y in found.items():
            zeros[name] += batch[y].size - int(np.count_nonzero(batch[y]))
            values[name] += batch[y].size
    return {name: Sparsity(zeros[name], values[name]) for name in found}
