"""Compress trained ONNX networks for small devices within an accuracy budget.

From Python the whole job is one call, `compress(model, data, …) -> Result`; `cli.api` says what it takes.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepress.compressor.cli.api import Result, compress

__all__ = ["Result", "compress"]


def __getattr__(name: str) -> object:
    """Load the job, and onnxruntime with it, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("edgepress.compressor.cli.api"), name)
