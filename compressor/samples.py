"""Feeds where the user gave none, and shapes as they come out of a run."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.cost import Shapes
from edgepress.compressor.errors import DeviceError
from edgepress.compressor.model import input_specs
from edgepress.compressor.predict import computed_at_load
from edgepress.compressor.protocols import Engine, Feeds, Runner
from edgepress.compressor.serialize import serialize_prefix
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import int_attribute
from edgepress.compressor.specs import InputSpec

GUESSES = (224, 96, 64, 48, 32, 28, 16, 1)
"""Sizes tried for dynamic dimensions other than the batch."""
_MOST_ELEMENTS = 1 << 28
"""Of all inputs together: a model may say anything."""
_MOST_FREE = 8
"""Dynamic dimensions up to which each is tried alone."""


_Shapes = Sequence[tuple[InputSpec, Sequence[int]]]


def synthetic_feeds(model: ir.Model, run: Runner, seed: int) -> Feeds | None:
    """One row of random input that the model accepts, or None.

    Args:
        model: whose inputs to feed.
        run: the model, loaded.
        seed: of the numbers.
    """
    for shapes in _attempts(model):
        if sum(math.prod(shape) for _, shape in shapes) > _MOST_ELEMENTS:
            continue
        feeds = _filled(shapes, seed)
        try:
            run(feeds)
        except DeviceError:
            continue
        return feeds
    return None


def _attempts(model: ir.Model) -> Iterator[_Shapes]:
    """Inputs whose free sizes are all alike, and then such with one that is not 1, as in a state beside a signal."""
    specs = input_specs(model)
    known = {value.name or "": {0: 1} | _sizes_read(value) for value in model.graph.inputs}
    free = [
        (spec.name, axis)
        for spec in specs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int) and axis not in known[spec.name]
    ]

    def shapes(sizes: Mapping[tuple[str, int], int]) -> _Shapes:
        said = {(name, axis): size for name, each in known.items() for axis, size in each.items()}
        said |= sizes
        return [
            (
                spec,
                [
                    d if isinstance(d, int) else said.get((spec.name, i), 1)
                    for i, d in enumerate(spec.shape or ())
                ],
            )
            for spec in specs
        ]

    yield from (shapes(dict.fromkeys(free, guess)) for guess in GUESSES[: None if free else 1])
    if 1 < len(free) <= _MOST_FREE:
        yield from (shapes({axis: guess}) for guess in GUESSES for axis in free)


def _filled(shapes: _Shapes, seed: int) -> Feeds:
    """Normal numbers, or zeros for integers."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.normal(size=shape).astype(spec.dtype)
        if spec.dtype.kind == "f"
        else np.zeros(shape, spec.dtype)
        for spec, shape in shapes
    }


def _sizes_read(value: ir.Value) -> dict[int, int]:
    """Axis → size of an input, where the weights of a node that reads it leave no choice."""
    found: dict[int, int] = {}
    rank = len(value.shape or ())
    for use in value.uses():
        weight = use.node.inputs[1] if use.idx == 0 and len(use.node.inputs) > 1 else None
        known = None if weight is None or weight.const_value is None else weight.const_value.shape.numpy()
        if known is None or len(known) < 2:
            continue
        if use.node.op_type == "Conv":
            found[1] = known[1] * int_attribute(use.node, "group", 1)
        elif use.node.op_type == "MatMul":
            found[rank - 1] = known[-2]
        elif use.node.op_type == "Gemm" and not int_attribute(use.node, "transA", 0):
            found[1] = known[1 if int_attribute(use.node, "transB", 0) else 0]
    return found


def shapes_in_one_run(model: ir.Model, engine: Engine, feeds: Feeds) -> Shapes:
    """Shapes of all tensors of the main graph in one run; what cannot be run is missing.

    Args:
        model: the model.
        engine: runs it.
        feeds: one row.
    """
    if not feeds:
        return {}
    shapes = {**_unpacked(model), **{name: tuple(np.shape(array)) for name, array in feeds.items()}}
    names = [
        v.name
        for node in model.graph
        for v in node.outputs
        if v.name and v.name not in shapes and (v.uses() or v.is_graph_output())
    ]
    try:
        outputs = engine.load(serialize_prefix(model, names))(feeds) if names else {}
    except DeviceError:
        outputs = {}
        for name in names:
            try:
                outputs.update(engine.load(serialize_prefix(model, [name]))(feeds))
            except DeviceError:
                continue
    arrays = {
        name: array for name, array in outputs.items() if isinstance(array, np.ndarray)
    }  # not sequences
    return {**shapes, **{name: array.shape for name, array in arrays.items()}}


def _unpacked(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of weights that are unpacked at load: known without a run, which would hold all of them at once."""
    at_load = computed_at_load(model)
    if not at_load:
        return {}
    copy = model.clone()
    infer_shapes(copy)
    constant = {value.name for node in at_load for value in node.outputs}
    found = {v.name: v.shape for node in copy.graph for v in node.outputs if v.name in constant}
    return {
        name: tuple(int(size) for size in shape.numpy())
        for name, shape in found.items()
        if name and shape is not None and shape.is_static()
    }
