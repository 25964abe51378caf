"""Whether two models, or what they give, are the same: for steps that may lose nothing."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepress.compressor.model import dims
from edgepress.compressor.protocols import Array

STEPS = 4
"""Roundings of a float16 by which two ways to compute it may differ."""


def interface_difference(one: ir.Model, other: ir.Model) -> str:
    """How inputs and outputs of two models differ in name, type or shape; empty where they do not."""
    for kind, left, right in (
        ("inputs", _fed(one), _fed(other)),
        ("outputs", one.graph.outputs, other.graph.outputs),
    ):
        if [value.name for value in left] != [value.name for value in right]:
            return f"{kind} are {[v.name for v in right]} instead of {[v.name for v in left]}"
        for old, new in zip(left, right, strict=True):
            if old.dtype is not None and old.dtype != new.dtype:
                return f"{old.name!r} is {new.dtype} instead of {old.dtype}"
            if old.shape is not None and dims(old) != dims(new):
                return f"{old.name!r} has shape {dims(new)} instead of {dims(old)}"
    return ""


def _fed(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if not value.is_initializer()]


def same_outputs(expected: Mapping[str, Array], got: Mapping[str, Array], tolerance: float) -> bool:
    """Whether outputs agree.

    Args:
        expected: output name → array; or a list (a sequence), a dictionary (a map) or None (an empty optional).
        got: the same of the other model.
        tolerance: largest difference, as a share of the largest magnitude of that array; of a float16, a few of its
            steps at least.
    """
    return expected.keys() == got.keys() and all(
        _same(value, got[name], tolerance) for name, value in expected.items()
    )


def _same(value: object, other: object, tolerance: float) -> bool:
    """Whether two values agree, element by element where they hold some."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other, [tolerance] * len(value)))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(v, other[k], tolerance) for k, v in value.items())
    if isinstance(value, float) and isinstance(other, float):  # what a map holds
        return _close(np.asarray(value, np.float32), np.asarray(other, np.float32), tolerance)
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return _close(value, other, tolerance)
    return type(value) is type(other) and bool(value == other)


def _close(array: Array, other: Array, tolerance: float) -> bool:
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    if array.dtype.kind not in "fV":
        return np.array_equal(array, other)
    wide, new = array.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], new[~finite], equal_nan=True):
        return False
    steps = STEPS * float(np.finfo(np.float16).eps) if array.dtype == np.float16 else 0.0
    bound = max(tolerance, steps) * max(float(np.abs(wide[finite]).max(initial=0.0)), 1e-30)
    return bool((np.abs(wide[finite] - new[finite]) <= bound).all())
