"""Predicted latency and memory of a whole model, as a runtime executes it rather than as the graph is written.

Runtimes compute what depends on constants alone when they load a model, so unpacking stored weights costs
nothing later; and between integer kernels QuantizeLinear and DequantizeLinear are part of the kernels.
"""

import math

import onnx_ir as ir

from edgepress.compressor.cost import Shapes, node_costs, peak_activation_bytes, takes_bytes, value_bytes
from edgepress.compressor.protocols import Target
from edgepress.compressor.sites import has_body

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid"})
_INTEGER_KERNELS = frozenset(
    {
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "AveragePool",
        "GlobalAveragePool",
        "MaxPool",
        "Concat",
        "Reshape",
    }
)


def predicted_ns(model: ir.Model, shapes: Shapes, target: Target) -> float:
    """Nanoseconds of one inference on a device, by its cost table.

    Args:
        model: nodes in topological order.
        shapes: observed for a batch of one.
        target: the device.
    """
    folded = computed_at_load(model)
    total = (target.table.ns("run", "fp32") or 0.0) if target.table is not None else 0.0
    for node, cost in zip(model.graph, node_costs(model, shapes, target), strict=True):
        if node in folded or _fused(node) or _follows_product(node):
            continue
        total += cost.latency_ns
        if target.table is not None:  # kernels were timed with their weights
            continue
        unpacked = sum(
            math.prod(shapes.get(value.name or "", ())) * (1 if maker.op_type == "DequantizeLinear" else 4)
            for value in node.inputs
            if value is not None and (maker := value.producer()) is not None and maker in folded
        )
        total += unpacked / target.bytes_per_ns
    return total


def predicted_memory_bytes(model: ir.Model, shapes: Shapes) -> int:
    """Bytes that one inference holds at its peak: weights as they are once loaded, and activations.

    Args:
        model: nodes in topological order.
        shapes: observed for a batch of one.
    """
    folded = computed_at_load(model)
    made = {value for node in folded for value in node.outputs}
    read = {value for node in model.graph if node not in folded for value in node.inputs if value is not None}
    weights = sum(
        value.const_value.nbytes if value.const_value is not None else value_bytes(value, shapes)
        for value in read
        if value.const_value is not None or value in made
    )
    names = {value.name for value in made}
    passing = {name: shape for name, shape in shapes.items() if name not in names}
    return weights + peak_activation_bytes(model, passing)


def computed_at_load(model: ir.Model) -> set[ir.Node]:
    """Nodes that depend on constants alone."""
    found: set[ir.Node] = set()
    for node in model.graph:
        random = node.op_type.startswith("Random") or has_body(node)
        constant = all(
            value is None or value.const_value is not None or value.producer() in found
            for value in node.inputs
        )
        if constant and not random:
            found.add(node)
    return found


def _fused(node: ir.Node) -> bool:
    """Whether a Q or DQ node becomes part of an integer kernel."""
    if node.op_type == "DequantizeLinear":
        users = [use.node for use in node.outputs[0].uses()]
        return bool(users) and all(_integer(user) for user in users)
    if node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
        maker = node.inputs[0].producer()
        if maker is not None and maker.op_type in _ACTIVATIONS and maker.inputs[0] is not None:
            maker = maker.inputs[0].producer()
        return maker is not None and _integer(maker)
    return _scales_sums(node)


def _follows_product(node: ir.Node) -> bool:
    """Whether an activation is worked out by the Conv or Gemm before it; in 8 bits, where it only clips."""
    if node.op_type not in _ACTIVATIONS or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    if maker is None or len(node.inputs[0].uses()) > 1:
        return False
    if _integer(maker):
        return node.op_type in ("Relu", "Clip")
    return maker.op_type in ("Conv", "Gemm")


def _scales_sums(node: ir.Node) -> bool:
    """Whether a node only makes floats of an integer product's sums: its kernel does that."""
    makers = {value.producer() for value in node.inputs if value is not None} - {None}
    kinds = {maker.op_type for maker in makers if maker is not None}
    if node.op_type == "Cast":
        return kinds == {"MatMulInteger"}
    sums = any(m is not None and m.op_type == "Cast" and _scales_sums(m) for m in makers)
    return node.op_type == "Mul" and (sums or kinds == {"DynamicQuantizeLinear"})


def _integer(node: ir.Node) -> bool:
    """Whether a kernel takes 8 bits and gives 8 bits (or sums, where it is a product)."""
    return node.op_type in _INTEGER_KERNELS and takes_bytes(node.inputs)
