"""Text in protobuf messages: parsers let bytes through that are none, and whoever writes the message again stumbles."""

from functools import cache
from typing import Any


def not_utf8(message: Any) -> str | None:
    """Name the first field of text, in a message or below it, that holds no UTF-8; None where all do.

    Args:
        message: as it was parsed; no field of bytes is read, so weights are not copied.
    """
    stack = [message]
    while stack:
        each = stack.pop()
        texts, below = _fields(each.DESCRIPTOR)
        for name, repeated in texts:
            value = getattr(each, name)
            # Protobuf gives text that it cannot decode as bytes.
            if isinstance(value, bytes) or (repeated and any(isinstance(text, bytes) for text in value)):
                return f"{name!r} of a {each.DESCRIPTOR.name}"
        for name, repeated in below:
            if repeated:
                stack.extend(getattr(each, name))
            elif each.HasField(name):
                stack.append(getattr(each, name))
    return None


@cache
def _fields(kind: Any) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Names of a message's fields of text and of messages, each with whether it is repeated (ONNX is in proto2)."""
    texts = [(field.name, not field.has_presence) for field in kind.fields if field.type == field.TYPE_STRING]
    below = [(field.name, not field.has_presence) for field in kind.fields if field.message_type is not None]
    return texts, below
