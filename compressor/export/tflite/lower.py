"""What is said anew in the ONNX graph, before it is written: forms that inference or handlers do not know."""

from collections.abc import Iterator
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor.export.tflite.foreign import said_with_pairs
from edgepress.compressor.export.tflite.ops import HANDLERS
from edgepress.compressor.export.tflite.weights import dequantized_weights
from edgepress.compressor.passes.integer_forms import rewrite
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import attribute, ints_attribute

_SHAPED_LIKE_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization", "RMSNormalization"})
"""Operators with results like their first operand that inference passes by."""

_LOOPS = frozenset({"Range", "SequenceMap"})
"""Operators made of loops; a Range of constants is folded, a loop is not."""


def lower_weights(model: ir.Model) -> None:
    """Say operators that carry scales, and weights that are worked out of integers, with Q/DQ pairs, in place."""
    if said_with_pairs(model) | dequantized_weights(model):
        infer_shapes(model)


def lower(model: ir.Model) -> bool:
    """Bring a model of fixed sizes into forms that the writer knows, in place; shapes are inferred again.

    Returns:
        Whether there was anything to do.
    """
    changed = False
    while _inlined(model):
        changed = True
        _infer_anew(model)
    while sum(_without_output_shape(node) for node in _nodes(model)):
        changed = True
        _infer_anew(model)
    while sum(_give_shape(node) for node in _nodes(model)):
        changed = True
        infer_shapes(model)
    return changed


def drop_empty(model: ir.Model) -> None:
    """Leave out what Concat reads and Split gives that has no elements, and all that only served it, in place."""
    if sum(_without_empty(node) or _gives_all(node) for node in _nodes(model)):
        common.RemoveUnusedNodesPass()(model)


def _infer_anew(model: ir.Model) -> None:
    """Infer all shapes from the inputs on: behind what was not known they are no more than guesses."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(model)


def _inlined(model: ir.Model) -> bool:
    """Let operators without a handler be what ONNX itself says that they are made of, where that helps."""
    kinds = {node.op_type for node in _nodes(model)} - HANDLERS.keys() - _LOOPS
    found = [("", kind) for kind in sorted(kinds) if onnx.defs.has(kind) and _has_body(kind)]
    if not found:
        return False
    for node in _nodes(model):
        if ("", node.op_type) in found:
            _spell_out(node)
    try:
        rewrite(
            model,
            lambda proto: onnx.inliner.inline_selected_functions(
                proto, found, exclude=False, inline_schema_functions=True
            ),
        )
    except RuntimeError:  # of types that onnx's inference misses; the handlers' loop names the operators
        return False
    return True


def _without_empty(node: ir.Node) -> bool:
    kept = [x for x in node.inputs if not _is_empty(x)]
    if node.op_type != "Concat" or not kept or len(kept) == len(node.inputs):
        return False
    for at, value in enumerate(kept):
        node.replace_input_with(at, value)
    node.resize_inputs(len(kept))
    return True


def _gives_all(node: ir.Node) -> bool:
    """Let what a Split cuts off stand for all, where nothing is left and the rest is not read."""
    whole = [value for value in node.outputs if not _is_empty(value)]
    edge = any(value.is_graph_output() for value in node.outputs)
    if node.op_type != "Split" or edge or len(whole) != 1 or len(node.outputs) == 1 or node.inputs[0] is None:
        return False
    if any(value.uses() for value in node.outputs if value is not whole[0]):
        return False
    ir.convenience.replace_all_uses_with(whole[0], node.inputs[0])
    return True


def _is_empty(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and 0 in tuple(value.shape)


def _spell_out(node: ir.Node) -> None:
    """Write attributes that have their default: the inliner leaves out what hangs on them."""
    for name, known in onnx.defs.get_schema(node.op_type).attributes.items():
        if name not in node.attributes and known.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(known.default_value)


def _has_body(kind: str) -> bool:
    schema: Any = onnx.defs.get_schema(kind)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in list(model.graph) if node.domain in {"", "ai.onnx"})


def _give_shape(node: ir.Node) -> bool:
    x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type not in _SHAPED_LIKE_INPUT or x is None or x.shape is None or y.shape is not None:
        return False
    y.shape, y.type = x.shape, x.type
    return True


def _without_output_shape(node: ir.Node) -> bool:
    """Pads in the place of ConvTranspose's `output_shape`, of which inference makes a wrong rank."""
    x, w = (node.inputs[0], node.inputs[1]) if len(node.inputs) > 1 else (None, None)
    if node.op_type != "ConvTranspose" or "output_shape" not in node.attributes:
        return False
    if x is None or w is None or x.shape is None or w.shape is None:
        return False
    size, kernel = x.shape.numpy()[2:], w.shape.numpy()[2:]
    one = [1] * len(size)
    wanted = ints_attribute(node, "output_shape", ())[-len(size) :]
    extra = list(ints_attribute(node, "output_padding", [0] * len(size)))
    steps = zip(
        size,
        kernel,
        ints_attribute(node, "strides", one),
        ints_attribute(node, "dilations", one),
        strict=True,
    )
    full = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in steps]
    total = [f + e - out for f, e, out in zip(full, extra, wanted, strict=True)]
    upper = attribute(node, "auto_pad", "NOTSET") == "SAME_UPPER"
    before = [max(t, 0) // 2 if upper else max(t, 0) - max(t, 0) // 2 for t in total]
    after = [max(t, 0) - b for t, b in zip(total, before, strict=True)]
    node.attributes.pop("output_shape")
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*before, *after])
    node.attributes["output_padding"] = ir.AttrInt64s(
        "output_padding", [e + max(-t, 0) for e, t in zip(extra, total, strict=True)]
    )
    return True
