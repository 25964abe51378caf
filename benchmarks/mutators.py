"""Files changed at random, so that they are damaged, or hostile, in ways nobody thought of.

Each takes a file's bytes and a `random.Random`, and gives other bytes: of any file, of text with `key = value` or
`"key": value` in it, or of a protobuf message, whose fields stay well-formed while what they say makes no sense.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import onnx

Mutator = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
WORDS = (
    "",
    "x",
    "..",
    "../../x",
    "/etc/hostname",
    "a\0b",
    "\n",
    "' \"; $(touch ran)",
    "ä" * 300,
    "ai.onnx.ml",
)
VALUES = (
    *(
        "0",
        "-1",
        "2",
        "0.5",
        "1e308",
        "1e999",
        "-1e-320",
        "9" * 30,
        "9" * 4000,
        "9" * 5000,
        "NaN",
        "nan",
        "inf",
        "Infinity",
    ),
    *('""', '"x"', '"../x"', '"/etc/hostname"', '"os:getcwd"', '"a\\u0000b"', f'"{"x" * 9999}"', '"\\ud800"'),
    *("true", "false", "null", "[]", "{}", "[[1, 2], []]", '["a", 1]', "{a = 1}", '{"a": 1}', "1979-05-27"),
    *("[" * 5000 + "]" * 5000, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "{a=" * 5000),
)
"""What may stand for a value: of other types, out of range, huge, or nested deeply."""

_VALUE = re.compile(
    rb"(?<=[:=\[,])(\s*)(\"(?:[^\"\\\n]|\\.)*\"|-?\d[\d.eE+-]*|true|false|null|\[[^\[\]]*\]|\{[^{}]*\})"
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four places: bits flipped, bytes set, taken out, doubled or put in; or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(changed) - at)
        what = rng.randrange(6)
        if what == 0 and length:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at : at + length] = bytes(rng.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in range(length))
        elif what == 2:
            del changed[at : at + length]
        elif what == 3:
            changed[at:at] = changed[at : at + length]
        elif what == 4:
            number = rng.choice(NUMBERS) % 2**64
            changed[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """One or two values replaced by others, or lines taken out or doubled; now and then bytes."""
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_VALUE.finditer(data))
        lines = data.splitlines(keepends=True)
        what = rng.random()
        if what < 0.7 and places:
            place = rng.choice(places)
            data = data[: place.start(2)] + rng.choice(VALUES).encode() + data[place.end(2) :]
        elif what < 0.85 and lines:
            at = rng.randrange(len(lines))
            data = b"".join(lines[:at] + lines[at : at + 1] * rng.choice((0, 2)) + lines[at + 1 :])
        else:
            data = mutate_bytes(data, rng)
    return data


def mutate_message(message: Any, rng: random.Random, times: int) -> None:
    """Change fields of a protobuf message, or of any within it, in place."""
    for _ in range(times):
        inner = rng.choice(list(_messages(message)))
        field = rng.choice(inner.DESCRIPTOR.fields)
        if field.is_repeated:
            _mutate_repeated(getattr(inner, field.name), field, rng)
        elif rng.random() < 0.15:
            inner.ClearField(field.name)
        elif field.message_type is not None:
            getattr(inner, field.name).SetInParent()
        else:
            setattr(inner, field.name, _scalar(field, rng, getattr(inner, field.name)))


def _messages(message: Any) -> Iterator[Any]:
    """A message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _mutate_repeated(held: Any, field: Any, rng: random.Random) -> None:
    """Take an element out, double one, add one or change one."""
    at = rng.randrange(len(held)) if held else 0
    what = rng.randrange(4)
    if what == 0 and held:
        del held[at]
    elif field.message_type is not None:
        (held.add().CopyFrom(held[at]) if held else held.add()) if what < 3 else None
    elif what == 1 or not held:
        held.append(_scalar(field, rng, held[at] if held else None))
    else:
        held[at] = _scalar(field, rng, held[at])


def _scalar(field: Any, rng: random.Random, old: Any) -> Any:
    """Another value for a field of a plain type."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING and field.type == field.TYPE_BYTES:
        return mutate_bytes(old or b"x", rng)
    if kind == field.CPPTYPE_STRING:
        return rng.choice(WORDS)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e38, float("inf"), float("nan"), 1e-40))
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if kind == field.CPPTYPE_BOOL:
        return not old
    wide = kind in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64)
    low, high = (-(2**63), 2**63 - 1) if wide else (-(2**31), 2**31 - 1)
    least = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else low
    return rng.choice([number for number in (*NUMBERS, (old or 0) + 1) if least <= number <= high])


def mutate_model(data: bytes, rng: random.Random) -> bytes:
    """Bytes of an ONNX file at random; or, mostly, what its fields say."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    mutate_message(proto, rng, rng.randint(1, 3))
    try:
        return bytes(proto.SerializeToString())
    except Exception:  # a text that protobuf cannot write: lone surrogates
        return mutate_bytes(data, rng)
