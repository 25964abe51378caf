import hashlib
import json
import tomllib
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgepress.compressor import recipe as recipes
from edgepress.compressor.errors import UsageError
from edgepress.compressor.passes import ALL
from edgepress.compressor.passes.base import Pass


@dataclass(frozen=True)
class Toy(Pass):
    """A pass with a field of every sort."""

    kind: ClassVar[str] = "toy"
    widths: tuple[tuple[str, int], ...] = ()
    energy: float = 0.95
    bits: int = 8
    per_channel: bool = True
    method: Literal["minmax", "mse"] = "minmax"
    names: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError("energy must lie in (0, 1]")
        if self.bits > 16:
            raise UsageError(f"{self.bits} bits are too many", "Use 2 to 16.")


@dataclass(frozen=True)
class Bare(Pass):
    """A pass without fields, and one field that must be given."""

    kind: ClassVar[str] = "bare"


@dataclass(frozen=True)
class Needy(Pass):
    """A pass with a field that must be given."""

    kind: ClassVar[str] = "needy"
    rank: int
    start: int | None = 3


TOYS = (Toy, Bare, Needy)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
TOY_PASSES = st.builds(
    Toy,
    widths=st.lists(st.tuples(TEXTS, st.integers(-(2**62), 2**62)), max_size=12).map(tuple),
    energy=st.floats(0, 1, exclude_min=True),
    bits=st.integers(-9, 16),
    per_channel=st.booleans(),
    method=st.sampled_from(["minmax", "mse"]),
    names=st.lists(TEXTS, max_size=9).map(tuple),
    limit=st.none() | st.integers(0, 9),
)
RECIPES = st.lists(
    TOY_PASSES | st.just(Bare()) | st.builds(Needy, rank=st.integers(1, 9), start=st.integers())
).map(tuple)


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        recipes.parse(text, TOYS)
    return caught.value


def test_a_recipe_is_read_as_people_write_it() -> None:
    text = """
    # first the widths
    [[pass]]
    kind = "toy"
    widths = [["conv1", 16], ["conv2", 24]]
    energy = 1          # a whole number is a number
    [[pass]]
    kind = "bare"
    """
    assert recipes.parse(text, TOYS) == (Toy(widths=(("conv1", 16), ("conv2", 24)), energy=1.0), Bare())
    assert recipes.parse("", TOYS) == ()


@given(RECIPES)
@example((Toy(names=('"\\\x00\x7f\n\u2028', "'''", "#", "")),))
def test_toml_and_json_give_the_same_recipe_back(recipe: recipes.Recipe) -> None:
    text = recipes.dump(recipe)
    assert recipes.parse(text, TOYS) == recipe
    as_json = recipes.to_json(recipe)
    assert recipes.from_json(json.loads(json.dumps(as_json)), TOYS) == recipe
    # The writer against the standard library's reader: nothing but the None fields may be missing.
    written = tomllib.loads(text).get("pass", [])
    assert written == [{k: v for k, v in entry.items() if v is not None} for entry in as_json]


@given(RECIPES, RECIPES)
def test_digests_are_equal_just_where_recipes_are(one: recipes.Recipe, two: recipes.Recipe) -> None:
    assert (recipes.digest(one) == recipes.digest(two)) == (one == two)
    assert recipes.digest(one) == recipes.digest(recipes.parse(recipes.dump(one), TOYS))


def test_a_digest_is_the_same_on_every_machine_and_in_every_release() -> None:
    text = (
        '[{"bits":8,"energy":0.95,"kind":"toy","limit":null,"method":"minmax","names":[],'
        '"per_channel":true,"widths":[["ü",1]]},{"kind":"bare"}]'
    )
    assert recipes.digest((Toy(widths=(("ü", 1),)), Bare())) == hashlib.sha256(text.encode()).hexdigest()


def test_the_search_may_use_numpy_integers_and_whole_floats() -> None:
    loose: Any = (Toy(widths=(("a", np.int64(8)),), energy=1, per_channel=np.bool_(True)),)  # type: ignore[arg-type]
    assert recipes.digest(loose) == recipes.digest(recipes.parse(recipes.dump(loose), TOYS))
    assert recipes.to_json(loose) == recipes.to_json((Toy(widths=(("a", 8),), energy=1.0),))


def test_long_lists_are_written_one_item_a_line() -> None:
    text = recipes.dump((Toy(widths=tuple((f"layer{n}", n) for n in range(20))),))
    assert '\n  ["layer7", 7],\n' in text
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[[pass]", "not valid TOML", "[[pass]]"),
        ("[[passes]]\nkind = 'toy'", "unknown key 'passes'", "Did you mean 'pass'?"),
        ("[pass]\nkind = 'toy'", "not a list of tables", "two brackets"),
        ("pass = 'toy'", "not a list of tables", "two brackets"),
        ("pass = ['toy']", "Pass 1 of the recipe is not a table", "two brackets"),
        ("[[pass]]\nbits = 4", "Pass 1 of the recipe has no `kind`", "bare, needy, toy"),
        ("[[pass]]\nkind = 'toi'", "unknown kind 'toi'", "Did you mean 'toy'?"),
        ("[[pass]]\nkind = ['toy']", "unknown kind ['toy']", "bare"),
        ("[[pass]]\nkind = 'bare'\n[[pass]]\nkind = 'toy'\nbit = 4", "Pass 2", "Did you mean 'bits'?"),
        ("[[pass]]\nkind = 'bare'\nbits = 4", "unknown field 'bits'", "no fields"),
        ("[[pass]]\nkind = 'toy'\nbits = 'four'", "(toy): field 'bits': input should be a valid integer", ""),
        ("[[pass]]\nkind = 'toy'\nbits = 4.5", "field 'bits'", ""),
        ("[[pass]]\nkind = 'toy'\nbits = true", "not true", ""),
        ("[[pass]]\nkind = 'toy'\nenergy = '0.5'", 'not "0.5"', ""),
        ("[[pass]]\nkind = 'toy'\nenergy = 0.0", "energy must lie in (0, 1].", ""),
        ("[[pass]]\nkind = 'toy'\nenergy = nan", "holds a value that no field takes", "finite"),
        ("[[pass]]\nkind = 'toy'\nenergy = 1979-05-27", "holds a value that no field takes", "numbers"),
        ("[[pass]]\nkind = 'toy'\nbits = 17", "Pass 1 of the recipe (toy): 17 bits are too many", "2 to 16"),
        ("[[pass]]\nkind = 'toy'\nwidths = [['a', 1], ['b']]", "field 'widths'[1][1] is missing", ""),
        ("[[pass]]\nkind = 'toy'\nwidths = [['a', 1.5]]", "field 'widths'[0][1]", ""),
        ("[[pass]]\nkind = 'toy'\nmethod = 'max'", "'minmax' or 'mse'", ""),
        ("[[pass]]\nkind = 'needy'", "field 'rank' is missing", ""),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_remedy(text: str, says: str, hint: str) -> None:
    error = refused(text)
    assert says in str(error)
    assert hint in error.hint


def test_what_toml_cannot_say_is_refused_and_not_lost() -> None:
    lossy = (Needy(rank=1, start=None),)
    with pytest.raises(UsageError, match="needy's start"):
        recipes.dump(lossy)
    assert recipes.from_json(recipes.to_json(lossy), TOYS) == lossy


def test_the_schema_describes_every_kind_with_its_fields_and_no_others() -> None:
    schema = recipes.json_schema(TOYS)
    kinds = {
        each["properties"]["kind"]["const"]: each for each in schema["properties"]["pass"]["items"]["oneOf"]
    }
    assert set(kinds) == {"toy", "bare", "needy"}
    assert set(kinds["toy"]["properties"]) == {"kind", *(field.name for field in fields(Toy))}
    assert kinds["needy"]["required"] == ["kind", "rank"]
    assert not any(each["additionalProperties"] for each in kinds.values())
    json.dumps(schema)


def test_every_registered_pass_can_be_written_and_read() -> None:
    defaults: tuple[Any, ...] = tuple(each() for each in ALL)
    assert recipes.from_json(recipes.to_json(defaults)) == defaults
    assert recipes.parse(recipes.dump(defaults)) == defaults
    assert len({recipes.digest((each,)) for each in defaults}) == len(ALL)
    assert len(recipes.json_schema()["properties"]["pass"]["items"]["oneOf"]) == len(ALL)


def test_a_recipe_is_not_changed_by_writing_it() -> None:
    toy = Toy(widths=(("a", 1),))
    recipes.dump((toy,))
    assert toy == replace(toy)
