"""A model whose weights are stored narrow, as the floats that it computes with.

What `store`, `cluster`, `half` and `weight_only` write stands for floats: integers behind a DequantizeLinear or another
chain that takes them apart, float16 with a Cast on either side of the arithmetic, packed blocks in a MatMulNBits.
Activations in integers stay what they are: a net trained on would not round them so.
"""

from contextlib import suppress

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor.errors import ModelError
from edgepress.compressor.fold_constants import fold
from edgepress.compressor.numerics.blocks import unpacked_blocks
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes, quiet
from edgepress.compressor.sites import constant, int_attribute, new_constant, site_name
from edgepress.compressor.sizes import check_values

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOATS = HALVES | {ir.DataType.FLOAT}


def widened(model: ir.Model) -> ir.Model:
    """The same model with weights in float32, and nothing between them and what reads them.

    Args:
        model: is not changed.

    Returns:
        What computes the same, but for the rounding of activations to half precision, or to 8 bits in a MatMulNBits.

    Raises:
        ModelError: a MatMulNBits whose weights are not constant, or lie otherwise than this tool writes them; or a
            value that takes more memory than there is.
    """
    wide = model.clone()
    for node in list(wide.graph):
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits"):
            _unpack(wide.graph, node)
    infer_shapes(wide)
    check_values(wide)
    with quiet("onnx_ir", "onnxscript"):
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(wide)
        fold(wide, lambda node: True, shape_inference=False)
    _leave_half(wide.graph)
    common.RemoveUnusedNodesPass()(wide)
    infer_shapes(wide)
    return wide


def _unpack(graph: ir.Graph, node: ir.Node) -> None:
    """A MatMul, and an Add where there is a bias, in place of the kernel that unpacks its weights."""
    stored: list[ir.Value | None] = [*node.inputs[1:], *[None] * (6 - len(node.inputs))]
    codes, scales, zeros = (constant(value) for value in stored[:3])
    outputs, inputs, bits = (int_attribute(node, name, 0) for name in ("N", "K", "bits"))
    weights: Array | None = None
    if (
        codes is not None
        and scales is not None
        and (zeros is None) == (stored[2] is None)
        and bits in (2, 4, 8)
    ):
        with suppress(TypeError, ValueError):  # zero points in floats, or shapes that do not fit
            weights = unpacked_blocks(codes, scales, zeros, bits, inputs)
    if weights is None or weights.shape != (outputs, inputs) or stored[3] is not None:
        raise ModelError(
            f"MatMulNBits {site_name(node)!r}: its weights are not constant, or not packed as weight_only packs them.",
            "Give the model from before they were packed.",
        )
    operands = [node.inputs[0], new_constant(graph, f"{site_name(node)}_wide", weights.T)]
    made = [ir.Node("", "MatMul", operands)]
    if stored[4] is not None:
        made.append(ir.Node("", "Add", [made[0].outputs[0], stored[4]]))
    result, last = node.outputs[0], made[-1].outputs[0]
    last.name, last.type, last.shape = result.name, result.type, result.shape
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(result, last, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _leave_half(graph: ir.Graph) -> None:
    """Float32 in place of half precision; inputs and outputs stay what they are."""
    for value in graph.initializers.values():
        if value.dtype in HALVES and value.const_value is not None:
            value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype in FLOATS and int_attribute(node, "to", 0) in FLOATS:
            node.op_type, node.version = "Identity", None
            node.attributes.clear()
        for value in node.outputs:
            if value.dtype in HALVES and not value.is_graph_output():
                value.type = ir.TensorType(ir.DataType.FLOAT)
