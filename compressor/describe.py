"""What passes say of themselves: read off their dataclasses and docstrings, so that nothing is written twice."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from edgepress.compressor.passes.base import Pass

_ENTRY = re.compile(r" {4}(\w+): (.*)")
_SECTION = "Attributes:"


def summary(kind: type[Pass]) -> str:
    """What a pass does: the first line of its docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def field_words(kind: type[Pass]) -> dict[str, str]:
    """What each field means, by its name: the `Attributes` section of the pass's docstring, one line an entry."""
    words: dict[str, str] = {}
    name = ""
    lines = iter((inspect.getdoc(kind) or "").splitlines())
    for line in lines:
        if line == _SECTION:
            break
    for line in lines:
        if found := _ENTRY.fullmatch(line):
            name, words[found[1]] = found[1], found[2].strip()
        elif name and line.startswith(" " * 5):
            words[name] += f" {line.strip()}"
        elif line.strip():
            break  # the next section
    return words


def fields(kind: type[Pass]) -> tuple[dataclasses.Field[Any], ...]:
    """Those that a recipe may name."""
    return tuple(field for field in dataclasses.fields(kind) if field.init)


def type_words(schema: Mapping[str, Any]) -> str:
    """The JSON schema of a field as people write its values: `[[text, integer], …]`.

    Args:
        schema: of one field, as pydantic makes it of an annotation; references are not followed.
    """
    if "enum" in schema:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "anyOf" in schema:
        return " | ".join(type_words(each) for each in schema["anyOf"])
    if "prefixItems" in schema:
        return f"[{', '.join(type_words(each) for each in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"[{type_words(schema.get('items', {}))}, …]"
    return _PLAIN.get(str(schema.get("type")), "any")


_PLAIN = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true | false",
    "null": "nothing",
}
