"""A record as text with a place for every number: what links in a page lead to.

Places are named by JSON pointers (RFC 6901) in the form that stands behind the # of an address, so that
`report.html#/compressed/size_bytes` is the number of that name in `report.json`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import JsonValue


@dataclass(frozen=True)
class Line:
    """One line of a JSON text.

    Attributes:
        pointer: of the value that begins on it; empty where none does.
        indent: its depth.
        text: without the indent.
    """

    pointer: str
    indent: int
    text: str


def pointer(*parts: str | int) -> str:
    """The JSON pointer to a place, as it stands in an address: `/compressed/files/model.onnx`."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return "".join("/" + quote(part.encode("utf-8", "replace"), safe="~") for part in escaped)


def lines(value: JsonValue, at: str = "", key: str = "", indent: int = 0, end: str = "") -> Iterator[Line]:
    """A JSON value as lines; what holds no object in it takes one line, however long.

    Args:
        value: to write.
        at: its pointer.
        key: what stands before it, such as `"size_bytes": `.
        indent: its depth.
        end: what stands behind it: a comma, or nothing.
    """
    if not isinstance(value, dict | list) or not value or not _holds_objects(value):
        yield Line(at, indent, f"{key}{json.dumps(value, ensure_ascii=False)}{end}")
        return
    brackets = "{}" if isinstance(value, dict) else "[]"
    yield Line(at, indent, f"{key}{brackets[0]}")
    items: list[tuple[str | int, JsonValue]] = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    )
    for index, (name, item) in enumerate(items):
        said = f"{json.dumps(name, ensure_ascii=False)}: " if isinstance(name, str) else ""
        comma = "" if index + 1 == len(items) else ","
        yield from lines(item, at + pointer(name), said, indent + 1, comma)
    yield Line("", indent, brackets[1] + end)


def _holds_objects(value: JsonValue) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_objects, value)))
