"""What a model wants as inputs: names, types, shapes; and the user's word on dynamic dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import ModelError, UsageError, nearest


@dataclass(frozen=True)
class InputSpec:
    """What a model wants as one input.

    Attributes:
        name: the input's name.
        dtype: element type.
        shape: an int where fixed, a name or None where dynamic; None for an unknown rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


def forget_negative_dims(model: ir.Model) -> None:
    """Some exporters write -1 for a dynamic dimension; ONNX says it by leaving the dimension out."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
            value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the user's shapes, and carry each named dimension that got one number to the whole graph."""
    inputs = {spec.name: spec for spec in input_specs(model)}
    numbers: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"--shape: the model has no input {name!r}.", nearest(name, inputs))
        said = inputs[name].shape
        if any(dim < 1 for dim in shape):
            raise UsageError(f"--shape: dimensions of {name!r} must be positive, not {shape}.")
        if said is not None:
            fits = len(said) == len(shape) and all(
                not isinstance(old, int) or old == new for old, new in zip(said, shape, strict=False)
            )
            if not fits:
                raise UsageError(
                    f"--shape: {name!r} is {_said(said)}, which cannot become {_said(shape)}.",
                    "Fix only the dynamic dimensions; the others must stay.",
                )
            for old, new in zip(said, shape, strict=True):
                if isinstance(old, str):
                    numbers.setdefault(old, set()).add(new)
        next(value for value in model.graph.inputs if value.name == name).shape = ir.Shape(shape)
    known = {symbol: next(iter(found)) for symbol, found in numbers.items() if len(found) == 1}
    for value in ir.convenience.create_value_mapping(model.graph).values():
        if value.shape is not None and not value.is_initializer():
            value.shape = ir.Shape(
                [
                    known.get(str(dim.value), dim) if isinstance(dim, ir.SymbolicDim) else dim
                    for dim in value.shape
                ]
            )


def _said(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """What must be fed: the graph's inputs, without those that have a default."""
    return tuple(
        InputSpec(value.name or "", _numpy_dtype(value), dims(value))
        for value in model.graph.inputs
        if not value.is_initializer()
    )


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None or value.dtype is ir.DataType.UNDEFINED:
        raise ModelError(
            f"Input {value.name!r} is not a tensor.", "Only models with tensor inputs are served."
        )
    return np.dtype(object) if value.dtype is ir.DataType.STRING else value.dtype.numpy()


def dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """A value's shape as plain Python: int, name, or None where unknown; None for an unknown rank."""
    if value.shape is None:
        return None
    return tuple(dim.value if isinstance(dim, ir.SymbolicDim) else int(dim) for dim in value.shape)
