"""A model in the form that engines load and folders hold: bytes, or above 2 GB files.

Protobuf, and with it ONNX, ends at 2 GB in one piece; weights beyond that lie beside the file, as external data.
`serialize` decides which it is and nobody else asks: both forms have a length, and engines load both.
"""

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor import guard
from edgepress.compressor.errors import OutputError
from edgepress.compressor.mapped import map_external
from edgepress.compressor.maps import represent
from edgepress.compressor.model import (
    fits_protobuf,
    prefix,
    prefix_bytes,
    tensor_bytes,
    to_proto,
)

__all__ = [
    "Serialized",
    "StoredModel",
    "files",
    "parse",
    "proto_of",
    "serialize",
    "serialize_prefix",
    "write",
]

FILE_NAME = "model.onnx"
_ROOM = 64 << 20
"""Bytes asked of a disk beyond the weights: for the graph, and for what others write meanwhile."""

Edit = Callable[[onnx.ModelProto], None]
"""Changes a protobuf in place: of a large model every further copy is dear."""


class StoredModel(os.PathLike[str]):
    """A model file with its weights beside it, in a temporary folder that goes with this object.

    It stands where bytes would: `len` is its size, and an engine loads it, being a path. The folder goes when the
    object does, or when the process ends, Ctrl-C included; sessions that an engine has loaded from it live on.
    """

    def __init__(self, model: ir.Model, edit: Edit) -> None:
        """Write `model`, which is not changed; `edit` has the last word on the file, not on its weights.

        Raises:
            OutputError: the folder for temporary files has no room.
        """
        folder = Path(tempfile.mkdtemp(prefix="edgepress-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = folder / FILE_NAME
        _check_room(folder, tensor_bytes(model), "Set TMPDIR to a folder with more room.")
        copy = model.clone()
        common.LiftConstantsToInitializersPass()(copy)  # only initializers may lie outside
        common.RemoveUnusedNodesPass()(copy)
        try:
            ir.save(copy, self.path, external_data=_data_of(self.path).name)
            _data_of(self.path).touch()  # where every weight was too small to lie outside
            proto = onnx.ModelProto.FromString(self.path.read_bytes())
            edit(proto)
            self.path.write_bytes(proto.SerializeToString(deterministic=True))
        except OSError as error:
            raise OutputError(
                f"A model over 2 GB cannot be written to {folder.parent}: {error.strerror or error}.",
                "Set TMPDIR to another folder.",
            ) from error
        self._size = self.path.stat().st_size + _data_of(self.path).stat().st_size

    def __fspath__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self._size


Serialized = bytes | StoredModel
"""A model file's bytes, or above 2 GB files in a temporary folder."""


def serialize(model: ir.Model, edit: Edit = lambda proto: None) -> Serialized:
    """The form of a model that an engine loads; equal models give equal bytes.

    Args:
        model: is not changed.
        edit: changes the protobuf before it becomes a file, such as a clean-up that leaves weights alone.

    Raises:
        OutputError: it is over 2 GB, and the folder for temporary files has no room.
    """
    if not fits_protobuf(model):
        return StoredModel(model, edit)
    proto = to_proto(model)
    edit(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def serialize_prefix(model: ir.Model, outputs: Sequence[str], inputs: Sequence[str] = ()) -> Serialized:
    """What computes just some values, as `model.prefix` cuts it out.

    Args:
        model: is not changed.
        outputs: names of values.
        inputs: names of those that are fed.

    Raises:
        ModelError: a name is no value of the main graph, or nothing is asked for.
        OutputError: as of `serialize`.
    """
    return prefix_bytes(model, outputs, inputs) or serialize(prefix(model, outputs, inputs))


def proto_of(data: Serialized) -> onnx.ModelProto:
    """The protobuf of a serialized model; weights in files stay there."""
    proto = onnx.ModelProto()
    proto.ParseFromString(data if isinstance(data, bytes) else data.path.read_bytes())
    return proto


def parse(data: Serialized) -> ir.Model:
    """The graph of a serialized model; weights in files are read from there when used."""
    model = represent(proto_of(data))
    if not isinstance(data, bytes):
        map_external(model, data.path.parent)
    return model


def files(data: Serialized, name: str) -> Mapping[str, int]:
    """Bytes by file, where the model's is called `name`."""
    if isinstance(data, bytes):
        return {name: len(data)}
    size = data.path.stat().st_size
    return {name: size, _data_of(Path(name)).name: len(data) - size}


def write(data: Serialized, path: Path) -> None:
    """Write a model to `path`, and above 2 GB its weights beside it in `<name>.data`.

    Raises:
        OutputError: the disk has no room.
        OSError: it cannot be written.
    """
    if isinstance(data, bytes):
        path.write_bytes(data)
        return
    _check_room(path.parent, len(data), "Choose another folder.")
    shutil.copyfile(_data_of(data.path), _data_of(path))
    proto = proto_of(data)
    for tensor in guard.tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = _data_of(path).name
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _data_of(path: Path) -> Path:
    """The file with the weights of a model file."""
    return path.with_name(path.name + ".data")


def _check_room(folder: Path, needed: int, hint: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _ROOM:
        raise OutputError(
            f"{os.strerror(errno.ENOSPC)}: a model over 2 GB needs {(needed + _ROOM) / 1e9:.1f} GB in {folder}, "
            f"and {free / 1e9:.1f} GB are free.",
            f"Free some space. {hint}",
        )
