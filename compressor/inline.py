"""Model files with weights outside them, rearranged without a look at the weights: as one protobuf, or as two files.

A protobuf is its fields one after another, so one that holds the weights is the one without them, cut at the places
where they belong (protobuf.dev, "Encoding"; field numbers of onnx.proto3). Fields stand in the order of their numbers,
as serializers write them: the bytes are those of a model that was held in memory whole.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from edgepress.compressor import guard
from edgepress.compressor.errors import ModelError

_GRAPH, _INITIALIZER, _RAW = 7, 5, 9
_BEYOND = ("external_data", "data_location")
_BLOCK = 1 << 24
_LINE, _PAGE, _LARGE = 64, 4096, 1 << 20


class Range(NamedTuple):
    """Bytes of a file.

    Attributes:
        location: the file, relative to the folder of the weights.
        offset: of the first byte.
        length: how many.
    """

    location: str
    offset: int
    length: int


Piece = bytes | Range


def size_of(pieces: Sequence[Piece]) -> int:
    """Bytes of all pieces together."""
    return sum(piece.length if isinstance(piece, Range) else len(piece) for piece in pieces)


def read(pieces: Sequence[Piece], folder: Path) -> Iterator[bytes]:
    """The bytes of all pieces, in blocks.

    Args:
        pieces: in order.
        folder: of the weights.

    Raises:
        ModelError: a file has become shorter since the model was loaded.
        OSError: one cannot be read.
    """
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        path = folder / piece.location
        with path.open("rb") as file:
            file.seek(piece.offset)
            left = piece.length
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block
        if left:
            raise ModelError(
                f"{path}: has become shorter since the model was loaded; its weights end at byte "
                f"{piece.offset + piece.length}.",
                "Copy or download the data file again, and leave it alone while this runs.",
            )


def range_of(tensor: onnx.TensorProto) -> Range:
    """Where an external tensor lies."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = int(entries.get("length", guard.nbytes(tensor)))
    return Range(entries["location"], int(entries.get("offset", 0)), length)


def outside(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """All tensors of a model that lie outside it."""
    return [tensor for tensor in guard.tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def aligned(end: int, length: int) -> int:
    """Where a tensor starts in a file of weights: large ones at a page, all at a line of the processor's cache.

    Runtimes map the file and read weights where they lie. onnx.proto ("external_data") wants pages for all; small
    tensors, of which some models have thousands, would take more room for that than they have bytes.

    Args:
        end: of what is in the file before it, in bytes.
        length: of the tensor, in bytes.
    """
    step = _PAGE if length >= _LARGE else _LINE
    return -(-end // step) * step


def two_files(proto: onnx.ModelProto, name: str) -> tuple[bytes, list[Piece]]:
    """The model file for weights that lie in one file beside it, and what that file holds.

    Args:
        proto: is changed.
        name: of the file with the weights.
    """
    ranges: dict[Range, int] = {}
    pieces: list[Piece] = []
    end = 0
    for tensor in outside(proto):
        found = range_of(tensor)
        if found not in ranges:
            ranges[found] = start = aligned(end, found.length)
            pieces += [bytes(start - end), found]
            end = start + found.length
        new = {"location": name, "offset": str(ranges[found]), "length": str(found.length)}
        del tensor.external_data[:]
        for key, value in new.items():
            tensor.external_data.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True), pieces


def one_file(proto: onnx.ModelProto, folder: Path) -> list[Piece]:
    """A model with the weights in it.

    Args:
        proto: is changed.
        folder: of the weights; those of control-flow bodies are read from there.
    """
    apart = onnx.GraphProto()
    apart.initializer.extend(proto.graph.initializer)
    proto.graph.ClearField("initializer")
    for tensor in outside(proto):
        raw = b"".join(read([range_of(tensor)], folder))
        for field in _BEYOND:
            tensor.ClearField(field)
        tensor.raw_data = raw
    initializers: list[Piece] = []
    for tensor in apart.initializer:
        parts = _with_data(tensor)
        initializers += [_head(_INITIALIZER, size_of(parts)), *parts]
    graph = [*_before(proto.graph, _INITIALIZER), *initializers, *_behind(proto.graph, _INITIALIZER)]
    return [*_before(proto, _GRAPH), _head(_GRAPH, size_of(graph)), *graph, *_behind(proto, _GRAPH)]


def _with_data(tensor: onnx.TensorProto) -> list[Piece]:
    """An initializer with its data in it."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return [tensor.SerializeToString(deterministic=True)]
    found = range_of(tensor)
    for field in _BEYOND:
        tensor.ClearField(field)
    return [*_before(tensor, _RAW), _head(_RAW, found.length), found, *_behind(tensor, _RAW)]


def _before(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, number: int) -> list[Piece]:
    """The fields of a message with smaller numbers."""
    return [_only(message, range(number))]


def _behind(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, number: int) -> list[Piece]:
    """The fields of a message with larger numbers."""
    return [_only(message, range(number + 1, 1 << 29))]


def _only(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, numbers: range) -> bytes:
    """A message's fields of these numbers; its own weights are not copied for it, for there are none in it."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number not in numbers:
            copy.ClearField(field.name)
    found: bytes = copy.SerializeToString(deterministic=True)
    return found


def _head(number: int, length: int) -> bytes:
    """What stands before a field of bytes: its number and its length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
