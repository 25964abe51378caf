"""A recipe is a tuple of passes: read from TOML or JSON, written back, named by its digest.

    [[pass]]
    kind = "quantize"
    weight_bits = 4

A pass is its fields, so nothing here knows any single technique. Text comes from users: whatever is wrong
with it is a `UsageError` that names the pass by its place in the file, counted from 1. pydantic builds the
dataclasses, in its strict JSON mode: arrays become tuples, but `"4"` is no number and `4.5` no integer.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from pydantic import JsonValue, TypeAdapter, ValidationError

from edgepress.compressor.describe import field_words, fields, summary
from edgepress.compressor.errors import EdgepressError, UsageError, nearest
from edgepress.compressor.passes.base import Pass
from edgepress.compressor.sites import site_name

Recipe = tuple[Pass, ...]
Kinds = tuple[type[Pass], ...]
Entry = dict[str, JsonValue]
"""One pass as JSON: `kind`, then every field."""

_adapters: dict[type[Pass], TypeAdapter[Pass]] = {}
_TABLE = "pass"
_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def parse(text: str, passes: Kinds | None = None) -> Recipe:
    """Read a recipe from TOML.

    Args:
        text: `[[pass]]` tables with `kind` and the pass's fields; fields not named keep their defaults.
        passes: kinds to accept; all registered ones where None.

    Raises:
        UsageError: not TOML, an unknown key, kind or field, or a value that does not fit.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of 5000 digits is no TOMLDecodeError
        raise UsageError(
            f"The recipe is not valid TOML: {error}.", 'A pass is written as: [[pass]], then kind = "…".'
        ) from error
    for key in document:
        if key != _TABLE:
            raise UsageError(f"The recipe has an unknown key {key!r}.", nearest(key, [_TABLE]))
    return from_json(document.get(_TABLE, []), passes)


def from_json(entries: object, passes: Kinds | None = None) -> Recipe:
    """Read a recipe from its JSON form (`to_json`), as it stands in reports and manifests.

    Args:
        entries: a list of objects, each with `kind` and fields.
        passes: kinds to accept; all registered ones where None.

    Raises:
        UsageError: an unknown kind or field, or a value that does not fit.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise UsageError("The recipe's `pass` is not a list of tables.", "Write [[pass]] with two brackets.")
    kinds = {each.kind: each for each in _registered(passes)}
    return tuple(_build(place, entry, kinds) for place, entry in enumerate(entries, start=1))


def to_json(recipe: Recipe) -> list[Entry]:
    """A recipe as JSON values: every field of every pass, defaults included, in declared order."""
    return [{"kind": each.kind, **_fields_of(each)} for each in recipe]


def dump(recipe: Recipe) -> str:
    """A recipe as TOML, which `parse` reads back to an equal recipe.

    Raises:
        UsageError: a field is None though its default is not: TOML cannot say so.
    """
    return "\n".join(_table(each) for each in recipe)


def digest(recipe: Recipe) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON, keys sorted, no spaces: equal recipes, equal digests."""
    text = json.dumps(
        to_json(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def json_schema(passes: Kinds | None = None) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file, for editors and validators.

    It is made of the fields' annotations; what only a pass itself can check, such as which bits there are, is
    not in it.

    Args:
        passes: kinds to describe; all registered ones where None.
    """
    definitions: dict[str, Any] = {}
    variants = []
    for each in _registered(passes):
        schema = _adapter(each).json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        own, words = schema.get("properties", {}), field_words(each)
        for name, field in own.items():
            field.pop("title", None)
            own[name] = ({"description": words[name]} if name in words else {}) | field
        schema["properties"] = {"kind": {"const": each.kind}} | own
        schema["required"] = ["kind", *schema.get("required", [])]
        schema["additionalProperties"] = False
        variants.append(schema | {"title": each.kind, "description": summary(each)})
    return {
        "$schema": _SCHEMA_DIALECT,
        "title": "edgepress recipe",
        "type": "object",
        "properties": {_TABLE: {"type": "array", "items": {"oneOf": variants}}},
        "additionalProperties": False,
        **({"$defs": definitions} if definitions else {}),
    }


def check_names(place: int, step: Pass, models: Sequence[ir.Model]) -> None:
    """Refuse a pass that names what the model does not have: a misspelt site would be left alone in silence.

    Args:
        place: of the pass in its recipe, from 1.
        step: its pairs begin with a name, `leave` holds names, `sites` regular expressions of names.
        models: the original, and the model as the pass meets it; names of either will do.

    Raises:
        UsageError: with the names that are most like it.
    """
    nodes = [node for model in models for node in ir.traversal.RecursiveGraphIterator(model.graph)]
    named = {site_name(node) for node in nodes} | {v.name for node in nodes for v in node.outputs if v.name}
    # recipes that a search has written name parts of sites that in the end were not split
    named |= {f"{name}{suffix}" for kind in _registered(None) for suffix in kind.suffixes for name in named}
    open_to_it = {name for model in models for name in step.candidates(model)}
    for field in fields(type(step)):
        for item in _names_in(field.name, getattr(step, field.name)):
            where = f"Pass {place} of the recipe ({step.kind}): field {field.name!r}"
            if field.name == "sites":
                if not any(re.search(item, name) for name in open_to_it):
                    raise UsageError(
                        f"{where}: {item!r} matches no site of the model.", _like(item, open_to_it)
                    )
            elif item not in named:
                raise UsageError(
                    f"{where}: the model has no site {item!r}.", _like(item, open_to_it or named)
                )


def _names_in(field: str, value: object) -> Iterator[str]:
    """The names, or patterns of names, that a field holds."""
    for item in value if isinstance(value, tuple) else ():
        if isinstance(item, tuple) and item and isinstance(item[0], str):
            yield item[0]
        elif isinstance(item, str) and field in ("sites", "leave"):
            yield item


def _like(name: str, known: Collection[str]) -> str:
    """Hint with a few names only: a net has hundreds."""
    plain = re.sub(r"\\(.)|[\^$()*+?|]", r"\1", name)
    close = difflib.get_close_matches(plain, sorted(known), n=3, cutoff=0.0)
    like = f"Most like it: {', '.join(map(repr, close))}. " if close else ""
    return f"{like}`compress inspect MODEL` names all sites."


def _registered(passes: Kinds | None) -> Kinds:
    """The given kinds, or the registry, read only when needed: importing every pass is not free."""
    if passes is not None:
        return passes
    from edgepress.compressor import passes as registry

    return registry.ALL


def _adapter(kind: type[Pass]) -> TypeAdapter[Pass]:
    """Kept once built: that takes a millisecond, and a search digests thousands of recipes."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _fields_of(each: Pass) -> Entry:
    """Fields as reading them back gives them.

    Else `1` in a float field, or numpy's integers, would give the same recipe another digest after a replay.
    """
    adapter = _adapter(type(each))
    raw = {field.name: getattr(each, field.name) for field in fields(type(each))}
    text = json.dumps(raw, default=_plain, allow_nan=False)
    return cast(Entry, adapter.dump_python(adapter.validate_json(text, strict=True), mode="json"))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a recipe")


def _build(place: int, entry: object, kinds: Mapping[str, type[Pass]]) -> Pass:
    """One pass from its table; `place` counts from 1."""
    if not isinstance(entry, Mapping):
        raise UsageError(f"Pass {place} of the recipe is not a table.", "Write [[pass]] with two brackets.")
    if "kind" not in entry:
        raise UsageError(f"Pass {place} of the recipe has no `kind`.", nearest("", kinds))
    kind = entry["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(
            f"Pass {place} of the recipe has an unknown kind {kind!r}.", nearest(str(kind), kinds)
        )
    where = f"Pass {place} of the recipe ({kind})"
    given = {name: value for name, value in entry.items() if name != "kind"}
    known = [field.name for field in fields(kinds[kind])]
    for name in given:
        if name not in known:
            hint = nearest(str(name), known) if known else "This pass has no fields."
            raise UsageError(f"{where} has an unknown field {name!r}.", hint)
    try:
        text = json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{where} holds a value that no field takes: {error}.",
            "Fields are texts, finite numbers, true/false and lists of them.",
        ) from error
    try:
        return _adapter(kinds[kind]).validate_json(text, strict=True)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_fault(error)}") from error
    except EdgepressError as error:
        raise UsageError(f"{where}: {error}", error.hint) from error


def _first_fault(error: ValidationError) -> str:
    """The first of pydantic's faults in one line: field, what is wrong, what was given."""
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ") + "."
    field, *inner = fault["loc"]
    place = f"field {str(field)!r}" + "".join(f"[{index}]" for index in inner)
    if fault["type"] == "missing":
        return f"{place} is missing."
    given = json.dumps(fault["input"], ensure_ascii=False, default=str)
    return f"{place}: {fault['msg'][0].lower() + fault['msg'][1:]}, not {given}."


def _table(each: Pass) -> str:
    """One `[[pass]]` table, newline at the end."""
    defaults = {field.name: field.default for field in dataclasses.fields(each)}
    lines = [f"[[{_TABLE}]]", f"kind = {_toml(each.kind)}"]
    for name, value in _fields_of(each).items():
        if value is None:
            if defaults[name] is not None:
                raise UsageError(
                    f"TOML cannot write that {each.kind}'s {name} is nothing.",
                    "Keep this recipe in its JSON form.",
                )
            continue
        lines.append(f"{_key(name)} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: JsonValue) -> str:
    """A JSON value as TOML. The two share their texts and numbers but for DEL, which TOML wants escaped.

    A long list takes one line per item: people read and edit these files.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        items = [_toml(item) for item in value]
        flat = "[" + ", ".join(items) + "]"
        return flat if len(flat) <= 80 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"
    if value is None:
        raise UsageError("TOML cannot write a list with nothing in a place of it.", "Keep the JSON form.")
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _toml(name)
