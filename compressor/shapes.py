"""Shapes of values: inferred by onnx, and observed in runs where that fails."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor.model import dims, prefix, to_bytes
from edgepress.compressor.protocols import Array, Feeds

Run = Callable[[bytes, Feeds], dict[str, Array]]
"""Runs a serialized model once: feeds → outputs by name."""


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
    with quiet("onnx_ir"):
        common.ShapeInferencePass()(model)
    for value, shape, kind in edges:
        value.shape = shape if shape is not None else value.shape
        value.type = kind if kind is not None else value.type
    return _known(model) != before


def _known(model: ir.Model) -> dict[str, tuple[object, object]]:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return {name: (dims(value), value.dtype) for name, value in values.items()}


def missing_shapes(model: ir.Model) -> tuple[str, ...]:
    """Values of the main graph whose type or rank is unknown, in order of computation."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return tuple(
        value.name for value in values if value.name and (value.shape is None or value.dtype is None)
    )


def observed_shapes(
    model: ir.Model, run: Run, feeds: Sequence[Feeds], names: Sequence[str] | None = None
) -> dict[str, tuple[tuple[int | None, ...], ir.DataType]]:
    """Shapes and types seen in runs of the model itself.

    A dimension counts as fixed only when every dynamic dimension of the inputs took two sizes over `feeds`
    and it stayed the same; one row is run by itself as well, so that one batch is enough for the batch axis.

    Args:
        model: of which `missing_shapes` is not empty.
        run: runs a serialized model once.
        feeds: at least one batch.
        names: values to look at; by default those that miss a shape.

    Returns:
        Value name → dimensions (None where dynamic) and element type.
    """
    wanted = tuple(names if names is not None else missing_shapes(model))
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
    serialized = to_bytes(prefix(model, wanted))
    runs = [run(serialized, batch) for batch in batches]
    found: dict[str, tuple[tuple[int | None, ...], ir.DataType]] = {}
    for name in wanted:
        seen = [outputs[name].shape for outputs in runs]
        if len({len(shape) for shape in seen}) != 1:
            continue
        sizes = tuple(
            sizes[0] if varied and len(set(sizes)) == 1 else None for sizes in zip(*seen, strict=True)
        )
        found[name] = sizes, ir.DataType.from_numpy(runs[0][name].dtype)
    return found


def write_shapes(model: ir.Model, shapes: Mapping[str, tuple[tuple[int | None, ...], ir.DataType]]) -> None:
    """Write observed shapes and types into the values that miss them, in place."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    for name, (sizes, kind) in shapes.items():
        value = values[name]
        if value.shape is None:
            value.shape = ir.Shape(list(sizes))
        if value.dtype is None:
            value.dtype = kind
