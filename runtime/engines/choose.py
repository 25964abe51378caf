"""Which engine runs a model: told by the file's suffix, or, where there is only its content, by how that begins."""

from __future__ import annotations

from os import PathLike, fspath

from edgepress.runtime.engines.base import Engine
from edgepress.runtime.record import EngineError

_TFLITE_MARK = b"TFL3"  # at byte 4 of a TFLite file: the FlatBuffer's file identifier


def is_tflite(model: bytes | PathLike[str]) -> bool:
    """Whether a model is a TFLite file; anything else is taken for ONNX."""
    if isinstance(model, bytes):
        return model[4:8] == _TFLITE_MARK
    return fspath(model).lower().endswith(".tflite")


def engine_for(model: bytes | PathLike[str]) -> Engine:
    """The engine for a model; TFLite files of ours are run as the ONNX files that they were made from.

    Raises:
        EngineError: the engine is not installed.
    """
    if is_tflite(model):
        from edgepress.runtime.engines.litert import LiteRTEngine  # a board has one engine or the other

        return LiteRTEngine(as_onnx=True)
    try:
        from edgepress.runtime.engines.ort import OrtEngine
    except ImportError as error:
        raise EngineError(
            f"There is nothing here that runs ONNX files ({error}).",
            "Install it with: python3 -m pip install onnxruntime",
        ) from error
    return OrtEngine()
