"""From a model as it came to the graph that is written: every size fixed, few kinds of operators.

What has nothing to do with sizes is done once (`simplify`). A model that takes batches of any size is prepared with
a prime in the batch's place, one that divides no size of the model. What hangs on the batch is then a multiple of
it, and `builder.Builder` writes it so.
"""

from collections.abc import Iterator

import onnx_ir as ir

from edgepress.compressor.errors import ModelError
from edgepress.compressor.export.tflite.lower import drop_empty, lower, lower_weights
from edgepress.compressor.model import dims, tensor_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.shapes import infer_shapes, missing_shapes

OPSET = 18
"""Handlers expect the operators' forms from here on; older models are converted."""
LARGEST = 2**31 - 2**20
"""Bytes of weights beyond which nothing is tried: a FlatBuffer cannot address them."""
_TOLD_BY_SHAPES = frozenset({"Shape", "Size"})
"""Operators whose results are constants once sizes are fixed."""
_ALIKE = frozenset({"Sqrt", "Log", "Exp", "Abs", "Neg", "Cast", "Identity"})
"""Operators on each number by itself that reductions are followed by."""
_PRIMES = (9973, 9967, 9949, 9941, 9931, 9929, 9923, 9907, 9901, 9887)


def dynamic_inputs(model: ir.Model) -> list[tuple[ir.Value, int, str]]:
    """Dimensions of inputs that are not fixed: (input, axis, name or "")."""
    found = []
    for value in model.graph.inputs:
        if not value.is_initializer():
            sizes = dims(value)
            if sizes is None:
                raise ModelError(
                    f"Input {value.name!r} has no shape.", f"Give it with --shape {value.name}=1,3,224,224."
                )
            found += [
                (value, axis, str(size or "")) for axis, size in enumerate(sizes) if not isinstance(size, int)
            ]
    return found


def stand_ins(model: ir.Model) -> tuple[int, int]:
    """Two primes that divide no size of the model."""
    sizes = {
        size
        for graph in model.graphs()
        for value in ir.convenience.create_value_mapping(graph, include_subgraphs=True).values()
        for size in dims(value) or ()
        if isinstance(size, int) and size > 0
    }
    free = [prime for prime in _PRIMES if all(size % prime for size in sizes)]
    if len(free) < 2:
        raise ModelError("The model's sizes leave no number to stand for the batch.", "Fix it with --shape.")
    return free[0], free[1]


def simplify(model: ir.Model) -> ir.Model:
    """What does not hang on the batch: the opset, weights and scales in a form that handlers know, normalised.

    Args:
        model: is not changed.

    Raises:
        ModelError: the weights are over 2 GB.
    """
    if tensor_bytes(model) > LARGEST:
        raise ModelError(
            f"The weights take {tensor_bytes(model) / 1e9:.2f} GB; a TFLite file holds up to 2 GB.",
            "Store them in fewer bits first (compress --recipe), or use --format onnx.",
        )
    simple = model.clone()
    raise_opset(simple, OPSET)
    lower_weights(simple)
    return normalize(simple).model


def prepare(model: ir.Model, batch: int) -> ir.Model:
    """Fix all sizes, and bring the graph into the form that handlers expect.

    Args:
        model: as `simplify` gives it; it is not changed.
        batch: for first dimensions that are not fixed.

    Raises:
        ModelError: another dimension is not fixed.
    """
    fixed = model.clone()
    _fix(fixed, batch)
    declared = [] if dynamic_inputs(model) else [value.shape for value in fixed.graph.outputs]
    for value in _computed(fixed):
        value.shape = None
    infer_shapes(fixed)
    lowered = lower(fixed)
    for value, shape in zip(fixed.graph.outputs, declared, strict=False):
        _declare(value, shape)
    _shapes_from_behind(fixed)
    computed = any(node.op_type in _TOLD_BY_SHAPES for node in fixed.graph)
    if lowered or computed or missing_shapes(fixed):
        fixed = normalize(fixed).model
    _infer_outputs(fixed)
    drop_empty(fixed)
    return fixed


def _infer_outputs(model: ir.Model) -> None:
    """Let outputs have the sizes that are known now: normalizing holds on to what they were said to have."""
    vague = [value for value in model.graph.outputs if not _static(value)]
    for value in vague:
        value.shape = None
    if vague:
        infer_shapes(model)


def _declare(value: ir.Value, shape: ir.Shape | None) -> None:
    """Take over the shape that the model says an output has, where what is computed does not tell."""
    if shape is not None and shape.is_static() and not _static(value):
        value.shape = shape


def _shapes_from_behind(model: ir.Model) -> None:
    """What an operator on single numbers reads has the shape of its result, where only that is known."""
    for node in reversed(model.graph):
        x = node.inputs[0] if node.op_type in _ALIKE and node.domain in {"", "ai.onnx"} else None
        shape = node.outputs[0].shape
        if x is not None and shape is not None and shape.is_static() and not _static(x):
            x.shape = shape


def _static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _fix(model: ir.Model, batch: int) -> None:
    free = [(value, axis, name) for value, axis, name in dynamic_inputs(model) if axis > 0]
    if free:
        said = "; ".join(
            f"{value.name!r}: dimension {axis} ({name or 'unnamed'})" for value, axis, name in free
        )
        first = free[0][0]
        example = ",".join(str(size) if isinstance(size, int) else "N" for size in dims(first) or ())
        raise ModelError(
            f"TFLite wants fixed sizes, all but the batch; these are not: {said}.",
            f"Fix them with --shape {first.name}={example}.",
        )
    for value, axis, _ in dynamic_inputs(model):
        sizes = list(dims(value) or ())
        sizes[axis] = batch
        value.shape = ir.Shape(sizes)


def _computed(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        for node in graph:
            yield from node.outputs
