"""Weights of a model become zero as `choose` found, and biases take up what they may."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.choose import Chosen
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import new_constant, replace_constant, site_name


def rewrite(model: ir.Model, chosen: Chosen) -> dict[str, int]:
    """Change `model` in place.

    Args:
        model: that the program was read from.
        chosen: what goes.

    Returns:
        Name of each node that lost weights → how many.
    """
    counts = {}
    for node in list(model.graph):
        name = node.outputs[0].name or ""
        if name not in chosen.gone:
            continue
        value, mask = node.inputs[1], chosen.gone[name]
        if value is None or value.const_value is None:
            raise ValueError(f"{site_name(node)} has no constant weights")
        replace_constant(node, 1, np.where(mask, np.float32(0), value.const_value.numpy()))
        _set_bias(node, chosen.biases, name)
        counts[site_name(node)] = int(mask.sum())
    return counts


def _set_bias(node: ir.Node, biases: Mapping[str, Array], name: str) -> None:
    if name not in biases or not isinstance(node.graph, ir.Graph):
        return
    bias = biases[name].reshape(-1).astype(np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        replace_constant(node, 2, bias)
    elif bias.any():
        node.resize_inputs(3)
        node.replace_input_with(2, new_constant(node.graph, f"{site_name(node)}_bias", bias))
