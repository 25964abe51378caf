"""What a model costs on a device.

Measured latency is the `Stopwatch`'s; this module predicts, and what it predicts is labelled so. Where the profile has
a table of kernels (`kernels.py`), that tells; else it is a roofline with a fixed time per node: macs / rate + bytes /
bandwidth + overhead. Widths are rounded up to what fills the kernel's lanes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepress.compressor.kernels import FLOAT, INTEGER, Sizes, shape_of, table_ns
from edgepress.compressor.protocols import Target
from edgepress.compressor.sites import Site, int_attribute, site_name

_WITH_MACS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits"})

Shapes = Mapping[str, tuple[int, ...]]
"""Value name → observed shape for one sample."""

SIXTEEN_BITS = (ir.DataType.UINT16, ir.DataType.INT16)


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node for one sample.

    Attributes:
        name: the node's name.
        op: its operator.
        macs: multiply-accumulates.
        parameters: elements of its constants.
        weight_bytes: bytes of its constants.
        activation_bytes: bytes of its outputs.
        latency_ns: predicted time, where a target is known.
    """

    name: str
    op: str
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int
    latency_ns: float


def positions(site: Site, shapes: Shapes) -> int:
    """Output positions of a site per sample: pixels of a Conv, rows of a MatMul, 1 of a Gemm.

    Args:
        site: the site.
        shapes: observed for a batch of one.
    """
    of = site.x if site.transposed_conv else site.y
    shape = shapes.get(of.name or "", ())
    width = site.inputs if site.transposed_conv else site.outputs
    return max(1, math.prod(shape) // max(width, 1))


def kernel_ns(target: Target, macs: float, moved_bytes: float, *, integer: bool) -> float:
    """Predicted time of one kernel, without the node's fixed overhead."""
    rate = target.macs_per_ns_int8 if integer else target.macs_per_ns_fp32
    return macs / rate + moved_bytes / target.bytes_per_ns


def layer_ns(target: Target, sizes: Sizes, moved_bytes: float, *, integer: bool) -> float:
    """Predicted time of one layer with weights: by the target's table, else by its rates.

    Args:
        target: the device.
        sizes: kind of kernel, inputs × taps, outputs and positions.
        moved_bytes: weights and activations, for the rates.
        integer: in 8 bits.
    """
    kind, inputs, outputs, positions = sizes
    if target.table is not None:
        ns = target.table.ns(kind, INTEGER if integer else FLOAT, inputs, outputs, positions)
        if ns is not None:
            return ns
    macs = inputs * outputs * positions
    return target.node_overhead_ns + kernel_ns(target, macs, moved_bytes, integer=integer)


def node_costs(model: ir.Model, shapes: Shapes, target: Target | None) -> list[NodeCost]:
    """Cost of every node of the main graph.

    Args:
        model: the model.
        shapes: observed for a batch of one.
        target: for predicted time; zero without.
    """
    costs = []
    for node in model.graph:
        constants = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
        macs = node_macs(node, shapes)
        weight_bytes = sum(c.nbytes for c in constants)
        activations = sum(value_bytes(v, shapes) for v in node.outputs)
        moved = weight_bytes + activations
        integer = _in_integers(node) or takes_bytes(node.inputs[:1])
        ns = None
        if target is not None and target.table is not None:
            ns = table_ns(node, shapes, target.table, integer=integer, lanes=target.channel_multiple)
        if target is not None and ns is None:
            ns = target.node_overhead_ns + kernel_ns(target, macs, moved, integer=integer)
        parameters = sum(math.prod(c.shape.numpy()) for c in constants)
        costs.append(
            NodeCost(site_name(node), node.op_type, macs, parameters, weight_bytes, activations, ns or 0.0)
        )
    return costs


def _in_integers(node: ir.Node) -> bool:
    """Whether a product's operator computes in 8 bits, whatever it reads."""
    blocks = node.op_type == "MatMulNBits" and int_attribute(node, "accuracy_level", 0) == 4
    return blocks or node.op_type == "MatMulInteger"


def takes_bytes(values: Sequence[ir.Value | None]) -> bool:
    """Whether some of what a node reads comes as 8-bit integers, and nothing as 16: kernels of those are rare."""
    makers = [v.producer() for v in values if v is not None]
    found = [node for node in makers if node is not None and node.op_type == "DequantizeLinear"]
    zeros = [node.inputs[2] for node in found if len(node.inputs) > 2]
    return bool(found) and all(z is None or z.dtype not in SIXTEEN_BITS for z in zeros)


def node_macs(node: ir.Node, shapes: Shapes) -> int:
    """Multiply-accumulates of one node for one sample, 0 where it has none.

    Args:
        node: any node; its weights may be constant or come from a DequantizeLinear.
        shapes: observed for a batch of one, weights included.
    """
    if node.op_type not in _WITH_MACS or len(node.inputs) < 2:
        return 0
    x, w, y = (shape_of(v, shapes) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if not x or not w or not y:
        return 0
    if node.op_type == "Conv":
        return math.prod(y) * math.prod(w[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(x) * math.prod(w[1:])
    return math.prod(y) * (x[0] if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else x[-1])


def total_macs(model: ir.Model, shapes: Shapes) -> int:
    """Multiply-accumulates of all nodes, for one sample."""
    return sum(node_macs(node, shapes) for node in model.graph)


def peak_activation_bytes(model: ir.Model, shapes: Shapes) -> int:
    """Largest sum of activations that must be held at one time, in the graph's own order.

    Args:
        model: the model.
        shapes: observed for a batch of one.
    """
    nodes = list(model.graph)
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and value.const_value is None:
                last[value] = index
    for value in model.graph.outputs:
        last[value] = len(nodes)
    alive = {v: value_bytes(v, shapes) for v in model.graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(nodes):
        alive.update({v: value_bytes(v, shapes) for v in node.outputs})
        peak = max(peak, sum(alive.values()))
        alive = {v: size for v, size in alive.items() if last.get(v, -1) > index}
    return peak


def value_bytes(value: ir.Value, shapes: Shapes) -> int:
    """Bytes of a value; 0 where its shape was not observed."""
    shape = shapes.get(value.name or "")
    if shape is None:
        return 0
    return math.prod(shape) * max(1, math.ceil(value.dtype.itemsize if value.dtype is not None else 4))
