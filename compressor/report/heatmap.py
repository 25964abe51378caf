"""A heat map of damage by site and strength; rows are sites with their knobs, as in `compress inspect --json`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepress.compressor.report.words import number
from edgepress.compressor.sensitivity import LITTLE

Row = Mapping[str, Any]
"""A site: its name under `site`, its knobs under `bears`."""

Column = tuple[str, float]
"""Kind of a knob, and what is left of it: bits, or a share."""

LEVELS = (1e-5, 1e-4, 1e-3, LITTLE, 3e-2, 0.1, 1.0)
"""Damage at which the next colour begins."""

SHARES = {0.75: "¾", 0.5: "½", 0.25: "¼", 0.125: "⅛"}
"""What is left of a width or rank in the columns of the heat map."""

NEAR = 0.25
"""A value stands in the column whose share it differs from by no more, on a natural logarithmic scale."""

BITS = (8, 6, 5, 4, 3, 2)

_KINDS = {"width": "channels", "rank": "rank", "bits": "weights", "arithmetic": "arithmetic"}


@dataclass(frozen=True)
class Cell:
    """One field.

    Attributes:
        level: its colour; −1 where nothing was measured.
        text: its number.
        title: what the pointer shows.
        pointer: of the number in a record, or nothing.
        done: whether the result has about this setting.
    """

    level: int
    text: str
    title: str
    pointer: str = ""
    done: bool = False


@dataclass(frozen=True)
class Heatmap:
    """All that the template needs.

    Attributes:
        heads: head lines: what, over how many columns, and theirs.
        rows: name of a site, and its cells.
        firsts: columns before which there is a gap.
        legend: colours and what they stand for.
    """

    heads: tuple[tuple[str, int, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    firsts: tuple[int, ...]
    legend: tuple[tuple[int, str], ...]


def heatmap(rows: Sequence[Row], make: Callable[[Row, Row, int], Cell]) -> Heatmap:
    """Lay the knobs of sites out in columns.

    Args:
        rows: sites.
        make: a cell from a site, one of its knobs, and the place among its values.
    """
    own = columns(rows)

    def cell(row: Row, column: Column) -> Cell:
        found = _at(row, *column)
        return Cell(-1, "", "") if found is None else make(row, *found)

    return Heatmap(
        tuple(_heads(own)),
        tuple((row["site"], tuple(cell(row, column) for column in own)) for row in rows if row["bears"]),
        tuple(i for i in range(1, len(own)) if own[i][0] != own[i - 1][0]),
        tuple(_legend()),
    )


def small(damage: float) -> str:
    """Damage in few characters: two digits, and none where it is as good as nothing."""
    if damage < 1e-6:
        return "0"
    return number(damage, 2) if damage >= 1e-3 else f"{damage:.0e}".replace("e-0", "e-")


def what(knob: Row) -> str:
    """The knob in words."""
    form = f", {knob['form']}" if knob["form"] not in (None, "channels") else ""
    return _KINDS[knob["kind"]] + form


def setting(knob: Row, value: int) -> str:
    """A value of a knob in words: `12 of 64`, `4 bits`."""
    return f"{value} bits" if knob["kind"] in ("bits", "arithmetic") else f"{value} of {knob['full']}"


def level(damage: float) -> int:
    """Colour of a damage, from 0."""
    return sum(damage >= bound for bound in LEVELS)


def columns(rows: Sequence[Row]) -> list[Column]:
    """Columns that some site has a value in: kind, and share or bits."""
    every = [("arithmetic", 8.0), *(("bits", float(bits)) for bits in BITS)]
    every += [(kind, share) for kind in ("rank", "width") for share in SHARES]
    return [column for column in every if any(_at(row, *column) is not None for row in rows)]


def _at(row: Row, kind: str, wanted: float) -> tuple[Row, int] | None:
    """Knob of a site and place among its values that belong into a column."""
    for knob in row["bears"]:
        if knob["kind"] != kind or not knob["values"]:
            continue
        if kind == "arithmetic":
            return knob, 0
        if kind == "bits":
            return (knob, knob["values"].index(wanted)) if wanted in knob["values"] else None
        off = [abs(math.log(value / knob["full"] / wanted)) for value in knob["values"]]
        nearest = min(range(len(off)), key=lambda i: off[i])
        return (knob, nearest) if off[nearest] <= NEAR else None
    return None


def _heads(found: Sequence[Column]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    names = {
        "arithmetic": "8-bit arithmetic",
        "bits": "bits of weights",
        "rank": "rank left",
        "width": "channels left",
    }
    for kind, name in names.items():
        own = tuple(SHARES.get(at, f"{at:.0f}" if kind == "bits" else "") for k, at in found if k == kind)
        if own:
            yield name, len(own), own


def _legend() -> Iterator[tuple[int, str]]:
    yield 0, f"under {LEVELS[0]:g}"
    for index, bound in enumerate(LEVELS, start=1):
        yield index, f"from {bound:g}"
