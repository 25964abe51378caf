"""What passes say of themselves, and the schema made of it."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recipe import RECIPES, TOYS, Toy

from edgepress.compressor import recipe as recipes
from edgepress.compressor.describe import field_words, fields, summary, type_words
from edgepress.compressor.errors import UsageError
from edgepress.compressor.passes import ALL, StoreWeights
from edgepress.compressor.passes.base import Pass

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    "array": list, "object": dict,
}  # fmt: skip
NOTES = {"$schema", "title", "description", "default"}


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Draft 2020-12, as much of it as our schemas use; a keyword that is not known here is an error."""
    checks = {
        "type": lambda kind: isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)),
        "const": lambda wanted: value == wanted,
        "enum": lambda choices: value in choices,
        "anyOf": lambda each: any(valid(value, one) for one in each),
        "oneOf": lambda each: sum(valid(value, one) for one in each) == 1,
        "minItems": lambda count: not isinstance(value, list) or len(value) >= count,
        "maxItems": lambda count: not isinstance(value, list) or len(value) <= count,
        "prefixItems": lambda each: not isinstance(value, list)
        or all(valid(v, one) for v, one in zip(value, each, strict=False)),
        "items": lambda one: not isinstance(value, list) or all(valid(v, one) for v in value),
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "properties": lambda known: not isinstance(value, dict)
        or all(valid(v, known[name]) for name, v in value.items() if name in known),
        "additionalProperties": lambda more: not isinstance(value, dict)
        or more
        or set(value) <= set(schema.get("properties", {})),
    }  # fmt: skip
    return all(checks[word](content) for word, content in schema.items() if word not in NOTES)


REAL = """
[[pass]]
kind = "shrink"
widths = [["conv1", 16]]
[[pass]]
kind = "low_rank"
energy = 0.99
forms = [["conv2", "tucker"]]
[[pass]]
kind = "quantize"
bits = [["conv1", 4]]
ranges = "mse"
granularity = "tensor"
"""


def test_a_recipe_that_is_read_fits_the_schema() -> None:
    assert recipes.parse(REAL)
    assert valid(tomllib.loads(REAL), recipes.json_schema())
    assert valid({}, recipes.json_schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shrink"', '"shrinc"'),
        ('kind = "shrink"', ""),
        ("widths", "width"),
        ("[[pass]]", "[[passes]]"),
        ('[["conv1", 16]]', '[["conv1", "16"]]'),
        ('[["conv1", 16]]', '[["conv1", 16, 3]]'),
        ('[["conv1", 16]]', '[["conv1"]]'),
        ('[["conv1", 16]]', '["conv1", 16]'),
        ("0.99", '"all"'),
        ("0.99", "true"),
        ('"tucker"', '"turker"'),
        ('"mse"', '"best"'),
        ('"tensor"', "0"),
        ('[["conv1", 4]]', '[["conv1", 4.5]]'),
    ],
)
def test_what_is_refused_does_not_fit_the_schema(old: str, new: str) -> None:
    wrong = REAL.replace(old, new)
    assert wrong != REAL
    with pytest.raises(UsageError):
        recipes.parse(wrong)
    assert not valid(tomllib.loads(wrong), recipes.json_schema())


@given(RECIPES)
@settings(max_examples=60)
def test_every_recipe_that_is_written_fits_the_schema(recipe: recipes.Recipe) -> None:
    assert valid({"pass": json.loads(json.dumps(recipes.to_json(recipe)))}, recipes.json_schema(TOYS))
    assert valid(tomllib.loads(recipes.dump(recipe)), recipes.json_schema(TOYS))


SCALARS = st.none() | st.booleans() | st.integers(-3, 16) | st.sampled_from([0.5, "minmax", "a", "mse", "x"])


@given(
    st.sampled_from([f.name for f in fields(Toy)]), st.recursive(SCALARS, lambda s: st.lists(s, max_size=3))
)
@settings(max_examples=400)
def test_the_schema_takes_just_what_the_reader_takes(name: str, value: Any) -> None:
    entry = {"kind": "toy", name: value}
    try:
        recipes.from_json([entry], TOYS)
    except UsageError as error:
        if "energy must lie" in str(error) or "too many" in str(error):
            return  # what only the pass itself can check
        read = False
    else:
        read = True
    assert valid({"pass": [entry]}, recipes.json_schema(TOYS)) == read


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.kind)
def test_every_pass_says_what_it_does_and_what_each_field_means(kind: type[Pass]) -> None:
    assert summary(kind).endswith(".")
    assert set(field_words(kind)) == {field.name for field in fields(kind)}
    assert all(field_words(kind).values())
    (schema,) = recipes.json_schema((kind,))["properties"]["pass"]["items"]["oneOf"]
    assert schema["description"] == summary(kind)
    for name, words in field_words(kind).items():
        assert schema["properties"][name]["description"] == words
        assert "any" not in type_words(schema["properties"][name]).split()


@dataclass(frozen=True)
class Wordy(Pass):
    """Does something.

    And more.

    Attributes:
        one: a word: or two,
            and the rest.
        two: short.

    Raises:
        three: is no field.
    """

    kind: ClassVar[str] = "wordy"
    one: int = 1
    two: int = 2
    silent: int = 3


def test_words_of_fields_run_over_lines_and_end_with_their_section() -> None:
    assert field_words(Wordy) == {"one": "a word: or two, and the rest.", "two": "short."}
    (schema,) = recipes.json_schema((Wordy,))["properties"]["pass"]["items"]["oneOf"]
    assert "description" not in schema["properties"]["silent"]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("widths", "[[text, integer], …]"),
        ("energy", "number"),
        ("per_channel", "true | false"),
        ("method", '"minmax" | "mse"'),
        ("names", "[text, …]"),
        ("limit", "integer | nothing"),
    ],
)
def test_types_are_told_as_values_are_written(field: str, words: str) -> None:
    schema = recipes.json_schema((Toy,))["properties"]["pass"]["items"]["oneOf"][0]
    assert type_words(schema["properties"][field]) == words


def test_names_of_either_model_will_do_and_hints_are_short() -> None:
    one, other = models.mlp(), models.cnn()
    recipes.check_names(1, StoreWeights(bits=(("h", 4), ("c2", 4)), sites=("^c1$", "y")), (one, other))
    with pytest.raises(UsageError, match=r"Pass 3 .*'\^c1\$' matches no site") as caught:
        recipes.check_names(3, StoreWeights(sites=("^c1$",)), (one,))
    assert caught.value.hint.startswith("Most like it: ")
    with pytest.raises(UsageError, match="no site 'c3'") as caught:
        recipes.check_names(1, StoreWeights(bits=(("c3", 4),)), (other,))
    assert "'c2', 'c1', " in caught.value.hint or "'c1', 'c2', " in caught.value.hint
