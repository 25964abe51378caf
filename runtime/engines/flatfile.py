"""What a TFLite file says of itself in its metadata, read with the standard library: boards have no more.

A FlatBuffer is tables whose fields are offsets (https://flatbuffers.dev/internals/); four kinds of them are enough.
"""

from __future__ import annotations

import struct

_METADATA, _BUFFERS = 6, 4  # fields of the schema's Model
_NAME, _BUFFER = 0, 1  # of its Metadata
_DATA = 0  # of its Buffer


def note_in(content: bytes, name: str) -> bytes | None:
    """The metadata entry of that name, or None where there is none, or the file is damaged.

    Args:
        content: of a .tflite file.
        name: of the entry.
    """
    try:
        model = _at(content, 0)
        for entry in _tables(content, _field(content, model, _METADATA)):
            called = _field(content, entry, _NAME)
            if called and _bytes(content, called) == name.encode():
                place = _field(content, entry, _BUFFER)
                index = _number(content, place) if place else 0
                buffer = _tables(content, _field(content, model, _BUFFERS))[index]
                data = _field(content, buffer, _DATA)
                return _bytes(content, data) if data else b""
    except (struct.error, IndexError):
        pass
    return None


def _number(content: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", content, at)[0])


def _at(content: bytes, at: int) -> int:
    """Where the offset that stands at a place leads."""
    return at + _number(content, at)


def _field(content: bytes, table: int, field: int) -> int:
    """Where a table's field stands; 0 where it is left out."""
    vtable = table - int(struct.unpack_from("<i", content, table)[0])
    if vtable < 0:
        raise IndexError(vtable)
    (size,) = struct.unpack_from("<H", content, vtable)
    if 4 + 2 * field >= size:
        return 0
    (offset,) = struct.unpack_from("<H", content, vtable + 4 + 2 * field)
    return table + int(offset) if offset else 0


def _tables(content: bytes, field: int) -> list[int]:
    """Where the tables of a vector stand."""
    if not field:
        return []
    vector = _at(content, field)
    count = _number(content, vector)
    if count > len(content) // 4:
        raise IndexError(count)
    return [_at(content, vector + 4 + 4 * index) for index in range(count)]


def _bytes(content: bytes, field: int) -> bytes:
    """A string, or a vector of bytes."""
    vector = _at(content, field)
    return content[vector + 4 : vector + 4 + _number(content, vector)]
