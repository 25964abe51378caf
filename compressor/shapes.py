"""Shapes of values: inferred by onnx, and observed in runs where that fails."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor import guard
from edgepress.compressor.maps import represent, unseen
from edgepress.compressor.model import dims, fits_protobuf, to_proto
from edgepress.compressor.protocols import Engine, Feeds
from edgepress.compressor.serialize import serialize_prefix

_CONTAINERS = ("Sequence", "Optional", "ZipMap")
"""In the names of operators that make something else than tensors."""

_GROWING = {
    *(
        "CenterCropPad",
        "ConstantOfShape",
        "ConvTranspose",
        "Expand",
        "EyeLike",
        "OneHot",
        "Pad",
        "RandomNormal",
    ),
    *(
        "RandomUniform",
        "Range",
        "Resize",
        "Tile",
        "Upsample",
        "BlackmanWindow",
        "HammingWindow",
        "HannWindow",
    ),
}
"""Operators that make much of little."""

MOST_DIMENSIONS = 1 << 20
"""Numbers in a vector up to which it may be a shape: onnx follows what vectors hold, at 100 bytes a number."""

Seen = tuple[tuple[int | None, ...], ir.DataType]
"""Dimensions, None where they vary, and element type."""


@contextmanager
def quiet(*loggers: str) -> Iterator[list[str]]:
    """Keep a library's log off the user's screen; yields the warnings."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            kept.append(f"{record.getMessage()} {cause or ''}".strip())

    kept: list[str] = []
    handler = Keep(logging.WARNING)
    states = [(logging.getLogger(name), logging.getLogger(name).propagate) for name in loggers]
    for logger, _ in states:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield kept
    finally:
        for logger, propagate in states:
            logger.removeHandler(handler)
            logger.propagate = propagate


def infer_shapes(model: ir.Model) -> bool:
    """Infer types and shapes of all values, in place; the graph's inputs and outputs keep theirs.

    Returns:
        Whether anything was learnt. Inference fails without an error: ask `missing_shapes` afterwards.
    """
    edges = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    before = _known(model)
    with quiet("onnx_ir"), unseen(model):
        if any(node.op_type in _GROWING for node in ir.traversal.RecursiveGraphIterator(model.graph)):
            common.ShapeInferencePass(data_prop=False)(model)
        common.ShapeInferencePass(data_prop=_longest(model) <= MOST_DIMENSIONS)(model)
    _restore_containers(model)
    for value, shape, kind in edges:
        container = kind is not None and not isinstance(kind, ir.TensorType)  # of any shape, if it says none
        value.shape = shape if shape is not None or container else value.shape
        value.type = kind if kind is not None else value.type
    return _known(model) != before


def _longest(model: ir.Model) -> int:
    """Numbers in the longest vector that is computed or fed, as far as sizes are known."""
    values = (
        v for graph in model.graphs() for v in (*graph.inputs, *(o for node in graph for o in node.outputs))
    )
    found = [size[0] for value in values if (size := dims(value)) is not None and len(size) == 1]
    return max((size for size in found if isinstance(size, int)), default=0)


def _restore_containers(model: ir.Model) -> None:
    """Give sequences, optionals and maps their types: the IR's inference takes each for a tensor of what it holds."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    if not any(word in node.op_type for node in nodes for word in _CONTAINERS) or not fits_protobuf(model):
        return
    try:
        proto = onnx.shape_inference.infer_shapes(_without_types(to_proto(model)))
    except onnx.shape_inference.InferenceError:
        return
    for graph, inferred in zip(model.graphs(), represent(proto).graphs(), strict=True):
        found = ir.convenience.create_value_mapping(inferred)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            kind = found[name].type if name in found else None
            if kind is not None and not isinstance(kind, ir.TensorType):
                value.type, value.shape = kind, None


def _without_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with what is known of values in between taken out, so that it is inferred anew."""
    for graph in guard.graphs(proto):
        graph.ClearField("value_info")
    return proto


def _known(model: ir.Model) -> dict[str, tuple[object, object]]:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return {name: (dims(value), value.dtype) for name, value in values.items()}


def missing_shapes(model: ir.Model) -> tuple[str, ...]:
    """Values of the main graph whose type or rank is unknown, in order of computation."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return tuple(
        value.name for value in values if value.name and (value.shape is None or value.dtype is None)
    )


def seen_shapes(model: ir.Model, engine: Engine, feeds: Sequence[Feeds]) -> dict[str, Seen]:
    """Shapes and types that values show in runs, of those that `missing_shapes` names.

    A dimension counts as fixed only when every dynamic dimension of the inputs took two sizes over `feeds`
    and it stayed the same; one row is run by itself as well, so that one batch is enough for the batch axis.

    Args:
        model: runs as it is.
        engine: runs it.
        feeds: at least one batch.

    Raises:
        DeviceError: the engine cannot give these values.
    """
    wanted = missing_shapes(model)
    if not wanted:
        return {}
    dynamic = {
        (value.name or "", axis)
        for value in model.graph.inputs
        for axis, dim in enumerate(dims(value) or ())
        if not isinstance(dim, int)
    }
    batches = [*feeds]
    if any(axis == 0 for _, axis in dynamic):
        one_row = {name: array[:1] if (name, 0) in dynamic else array for name, array in feeds[0].items()}
        batches.append(one_row)
    varied = all(len({batch[name].shape[axis] for batch in batches}) > 1 for name, axis in dynamic)
    run = engine.load(serialize_prefix(model, wanted))
    runs = [run(batch) for batch in batches]
    found: dict[str, Seen] = {}
    for name in wanted:
        arrays = [outputs[name] for outputs in runs]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            continue  # a sequence or a map has no shape
        seen = [array.shape for array in arrays]
        if len({len(shape) for shape in seen}) != 1:
            continue
        sizes = tuple(
            sizes[0] if varied and len(set(sizes)) == 1 else None for sizes in zip(*seen, strict=True)
        )
        found[name] = sizes, ir.DataType.from_numpy(arrays[0].dtype)
    return found


def write_shapes(model: ir.Model, shapes: Mapping[str, Seen]) -> None:
    """Write shapes and types into the values that miss them, in place."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    for name, (sizes, kind) in shapes.items():
        value = values[name]
        if value.shape is None:
            value.shape = ir.Shape(list(sizes))
        if value.dtype is None:
            value.dtype = kind
