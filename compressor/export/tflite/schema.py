"""The TFLite schema, as the runtime's own package generates it; imported where it is first needed."""

import importlib
from functools import cache
from typing import Any

import numpy as np

from edgepress.compressor.errors import UsageError

DTYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
    "uint32": "UINT32",
    "int64": "INT64",
    "uint64": "UINT64",
    "bool": "BOOL",
}
"""numpy's name of a type → the schema's."""


@cache
def schema() -> Any:
    """The generated module.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        importlib.import_module("flatbuffers")
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise UsageError(
            f"TFLite files need a package that is not there: {error.name or error}.",
            'Install it with: pip install "edgepress[tflite]", or leave out --format tflite.',
        ) from error


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Numpy's type for the schema's name of one that numpy knows."""
    return np.dtype(next(ours for ours, theirs in DTYPES.items() if theirs == name))


def options(kind: str, **fields: Any) -> Any:
    """An options table of the schema, such as `Conv2D`; enumerations are given by name (`padding="SAME"`)."""
    table = getattr(schema(), f"{kind}OptionsT")()
    for field, value in fields.items():
        if not hasattr(table, field):
            raise AttributeError(f"{kind}Options has no field {field!r}")
        setattr(table, field, _number(field, value))
    return table


def _number(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kinds = {
        "padding": "Padding",
        "fusedActivationFunction": "ActivationFunctionType",
        "mode": "MirrorPadMode",
    }
    kind = kinds.get(field, "TensorType")
    return getattr(getattr(schema(), kind), value)
