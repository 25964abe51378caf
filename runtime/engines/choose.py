"""Which engine runs a model: told by the file's suffix, or, where there is only its content, by how that begins."""

from __future__ import annotations

from os import PathLike, fspath

from edgepress.runtime.engines.base import Engine
from edgepress.runtime.record import EngineError

_TFLITE_MARK = b"TFL3"  # at byte 4 of a TFLite file: the FlatBuffer's file identifier
_ZIP_MARK = b"PK\x03\x04"  # an .npz file is a zip archive


def suffix_of(model: bytes | PathLike[str]) -> str:
    """`.tflite`, `.npz` for what the sparse engine runs, or `.onnx`, which anything else is taken for."""
    if isinstance(model, bytes):
        if model[4:8] == _TFLITE_MARK:
            return ".tflite"
        return ".npz" if model.startswith(_ZIP_MARK) else ".onnx"
    name = fspath(model).lower()
    return next((suffix for suffix in (".tflite", ".npz") if name.endswith(suffix)), ".onnx")


def is_tflite(model: bytes | PathLike[str]) -> bool:
    """Whether a model is a TFLite file."""
    return suffix_of(model) == ".tflite"


def is_onnx(model: bytes | PathLike[str]) -> bool:
    """Whether a model is taken for an ONNX file."""
    return suffix_of(model) == ".onnx"


def engine_for(model: bytes | PathLike[str]) -> Engine:
    """The engine for a model; TFLite files of ours are run as the ONNX files that they were made from.

    Raises:
        EngineError: the engine is not installed.
    """
    suffix = suffix_of(model)
    if suffix == ".tflite":
        from edgepress.runtime.engines.litert import LiteRTEngine  # a board has one engine or the other

        return LiteRTEngine(as_onnx=True)
    if suffix == ".npz":
        from edgepress.runtime.engines.sparse import SparseEngine

        return SparseEngine()
    try:
        from edgepress.runtime.engines.ort import OrtEngine
    except ImportError as error:
        raise EngineError(
            f"There is nothing here that runs ONNX files ({error}).",
            "Install it with: python3 -m pip install onnxruntime",
        ) from error
    return OrtEngine()
