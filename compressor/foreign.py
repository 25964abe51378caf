"""Files of other frameworks that are given as models: which they are, and how an ONNX file is made of them."""

import json
import struct
import zipfile
from pathlib import Path

_TORCH = "`torch.onnx.export(model.eval(), example, 'model.onnx', dynamo=True)`"
_HINTS = {
    "torch": f"This is a PyTorch file. Export it: {_TORCH}.",
    "keras": "This is a Keras model. Export it: "
    "`keras.saving.load_model('{name}').export('model.onnx', format='onnx')`.",
    "tflite": "This is a TensorFlow Lite file. Convert it: "
    "`python -m tf2onnx.convert --tflite {name} --output model.onnx`.",
    "savedmodel": "This is a TensorFlow SavedModel. Convert it: "
    "`python -m tf2onnx.convert --saved-model {name} --output model.onnx`.",
    "safetensors": "This file holds weights without a network. Load them into their network and export that: "
    f"{_TORCH}, or `optimum-cli export onnx --model FOLDER OUT` for a Hugging Face folder.",
    "lfs": "This is a Git LFS pointer, not the file itself. Fetch it: `git lfs pull`.",
    "html": "This is a web page: the download went wrong. Fetch the file itself.",
    "ort": "This is a model in onnxruntime's own format, not to be changed. Use the .onnx file behind it.",
    "gzip": "This is a gzip archive. Unpack it first.",
    "zip": "This is a zip archive. Unpack it first.",
    "npz": "This is an array file: data belongs to `--data`.",
}


def foreign(path: Path) -> str | None:
    """What a file is when it is a known format other than ONNX, as the hint that leads to an ONNX file.

    Args:
        path: a file or a folder that exists.
    """
    kind = _kind(path)
    return _HINTS[kind].format(name=path.name) if kind else None


def _kind(path: Path) -> str | None:
    if path.is_dir():
        return "savedmodel" if (path / "saved_model.pb").is_file() else None
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    by_head = (
        (b"\x89HDF\r\n\x1a\n", 0, "keras"),
        (b"TFL3", 4, "tflite"),
        (b"ORTM", 4, "ort"),
        (b"version https://git-lfs", 0, "lfs"),
        (b"\x1f\x8b", 0, "gzip"),
        (b"\x93NUMPY", 0, "npz"),
    )
    for magic, at, kind in by_head:
        if head[at : at + len(magic)] == magic:
            return kind
    if head.lstrip()[:5].lower() in {b"<!doc", b"<html"}:
        return "html"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":  # pickle, protocols 2 to 5
        return "torch"
    return "safetensors" if _is_safetensors(path, head) else None


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "torch" if path.suffix in {".pt", ".pth"} else "zip"
    if any(name.endswith(("data.pkl", "constants.pkl")) or "archive_format" in name for name in names):
        return "torch"
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "keras"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if head[8:9] != b"{" or not 2 <= length <= min(path.stat().st_size - 8, 100_000_000):
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except (ValueError, RecursionError):
            return False
