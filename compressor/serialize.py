"""A model in the form that engines load and folders hold: bytes, or where it is large files.

Protobuf, and with it ONNX, ends at 2 GB in one piece; weights beyond that lie beside the file, as external data. From
`model.IN_MEMORY` on no copy is held in memory either: weights that still lie in the user's files are named there, the
others go to a temporary folder. `serialize` decides which it is and nobody else asks: all forms have a length, and
engines load them.
"""

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgepress.compressor import guard
from edgepress.compressor.errors import OutputError
from edgepress.compressor.inline import Piece, one_file, read, size_of, two_files
from edgepress.compressor.mapped import SMALL, Mapped, map_external, move_beside, named_by_file
from edgepress.compressor.maps import represent
from edgepress.compressor.model import (
    in_memory,
    in_one_message,
    prefix,
    prefix_bytes,
    tensor_bytes,
    to_proto,
)

__all__ = [
    "Serialized",
    "StoredModel",
    "contents",
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

_ELSEWHERE = "Set TMPDIR to a folder with more room."


class StoredModel(os.PathLike[str]):
    """A model file with its weights beside it.

    It stands where bytes would: `len` is its size, and an engine loads it, being a path. The weights lie where they
    came from (`home`), or in a temporary folder, which goes when the object does, or when the process ends, Ctrl-C
    included; sessions that an engine has loaded from it live on.

    Attributes:
        graph: the model file, without the weights beside it.
        weights_folder: where those lie; names in `graph` are relative to it.
        in_place: whether that is where they came from.
    """

    def __init__(self, model: ir.Model, edit: Edit) -> None:
        """Write `model`, which is not changed; `edit` has the last word on the file, not on its weights.

        Raises:
            OutputError: the folder for temporary files has no room.
        """
        copy = model.clone()
        common.LiftConstantsToInitializersPass()(copy)  # only initializers may lie outside
        common.RemoveUnusedNodesPass()(copy)
        self._path: Path | None = None
        home = _home(copy)
        self.in_place = home is not None
        if home is not None:
            self.weights_folder, self._copy = home, copy  # which keeps the weights where they are
            self.graph = _edited(to_proto(named_by_file(copy, home)), edit)
        else:
            self._path = self._saved(copy, edit)
            self.weights_folder, self.graph = self._path.parent, self._path.read_bytes()
        self._size = sum(files(self, FILE_NAME).values())

    @property
    def path(self) -> Path:
        """The model as a file with its weights beside it; made now where there is none yet.

        Raises:
            OutputError: as of the object.
        """
        if self._path is None:
            folder = self._folder()
            with _told(folder):
                write(self, folder / FILE_NAME, _ELSEWHERE)
            self._path = folder / FILE_NAME
        return self._path

    def lies_at(self, path: Path) -> None:
        """Say that there is such a file already: it stays when this object goes."""
        self._path = path

    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="edgepress-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _saved(self, model: ir.Model, edit: Edit) -> Path:
        """Write a model, which is changed, weights and all to a temporary folder."""
        folder = self._folder()
        path = folder / FILE_NAME
        _check_room(folder, tensor_bytes(model), _ELSEWHERE)
        with _told(folder):
            move_beside(model, _data_of(path))
            path.write_bytes(_edited(to_proto(model), edit))
        return path

    def __fspath__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self._size


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say what to do where files cannot be written to a temporary folder."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"A large model cannot be written to {folder.parent}: {error.strerror or error}.",
            "Set TMPDIR to another folder.",
        ) from error


Serialized = bytes | StoredModel
"""A model file's bytes, or where it is large files."""


def _home(model: ir.Model) -> Path | None:
    """The folder in which all weights of some size lie already, or None."""
    homes: set[Path | None] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= SMALL:
                homes.add(tensor.folder if isinstance(tensor, Mapped) else None)
    return homes.pop() if len(homes) == 1 else None


def serialize(model: ir.Model, edit: Edit = lambda proto: None) -> Serialized:
    """The form of a model that an engine loads; equal models give equal bytes.

    Args:
        model: is not changed.
        edit: changes the protobuf before it becomes a file, such as a clean-up that leaves weights alone.

    Raises:
        OutputError: it is large, and the folder for temporary files has no room.
    """
    return _edited(to_proto(model), edit) if tensor_bytes(model) <= in_memory() else StoredModel(model, edit)


def _edited(proto: onnx.ModelProto, edit: Edit) -> bytes:
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
    proto.ParseFromString(data if isinstance(data, bytes) else data.graph)
    return proto


def parse(data: Serialized) -> ir.Model:
    """The graph of a serialized model; weights in files are read from there when used."""
    model = represent(proto_of(data))
    if not isinstance(data, bytes):
        map_external(model, data.weights_folder, data)
    return model


def contents(data: Serialized) -> Iterator[bytes]:
    """All bytes of a model, weights in files included, in blocks."""
    if isinstance(data, bytes):
        yield data
        return
    graph, weights = two_files(proto_of(data), "")
    yield graph
    yield from read(weights, data.weights_folder)


def files(data: Serialized, name: str) -> Mapping[str, int]:
    """Bytes by file, where the model's is called `name`."""
    return {path: size_of(pieces) for path, pieces in _pieces(data, name).items()}


def write(data: Serialized, path: Path, hint: str = "Choose another folder.") -> None:
    """Write a model to `path`, and above 2 GB its weights beside it in `<name>.data`.

    Args:
        data: the model.
        path: of its file.
        hint: what else than free space helps where the disk has no room.

    Raises:
        OutputError: the disk has no room.
        ModelError: a file with weights has become shorter since it was loaded.
        OSError: it cannot be written.
    """
    if isinstance(data, bytes):
        path.write_bytes(data)
        return
    _check_room(path.parent, len(data), hint)
    for name, pieces in _pieces(data, path.name).items():
        with path.with_name(name).open("wb") as file:
            file.writelines(read(pieces, data.weights_folder))


def _pieces(data: Serialized, name: str) -> Mapping[str, Sequence[Piece]]:
    """What the files of a model consist of, by file."""
    if isinstance(data, bytes):
        return {name: [data]}
    proto = proto_of(data)
    if sum(map(guard.nbytes, guard.tensors(proto))) <= in_one_message():
        return {name: one_file(proto, data.weights_folder)}
    beside = _data_of(Path(name)).name
    graph, weights = two_files(proto, beside)
    return {name: [graph], beside: weights}


def _data_of(path: Path) -> Path:
    """The file with the weights of a model file."""
    return path.with_name(path.name + ".data")


def _check_room(folder: Path, needed: int, hint: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _ROOM:
        raise OutputError(
            f"{os.strerror(errno.ENOSPC)}: a model of this size needs {(needed + _ROOM) / 1e9:.1f} GB in {folder}, "
            f"and {free / 1e9:.1f} GB are free.",
            f"Free some space. {hint}",
        )
