"""Normalisation that proves itself."""

from collections import Counter

import models
import onnx_ir as ir

from edgepress.compressor.equality import interface_difference, same_outputs
from edgepress.compressor.model import to_bytes
from edgepress.compressor.normalize import Normalized, normalize


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def normalized(model: ir.Model, tolerance: float = 1e-5) -> Normalized:
    """Normalise, and prove that neither the given model nor the outputs changed."""
    feeds, before = models.feeds(model), to_bytes(model)
    expected = models.run(model, feeds)
    result = normalize(model)
    assert to_bytes(model) == before
    assert not interface_difference(model, result.model)
    assert same_outputs(expected, models.run(result.model, feeds), tolerance)
    return result
