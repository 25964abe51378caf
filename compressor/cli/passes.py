"""`compress passes`: what a recipe can be made of."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.compressor.describe import type_words
from edgepress.compressor.recipe import json_schema

WIDTH = 100
"""Columns of the tables at most."""

INDENT = 2
"""Columns that fields stand to the right of their pass."""


def passes(*, as_json: bool, debug: bool) -> int:
    """Do it, and return the exit code; arguments as the options in `options/passes.py`."""
    schema = json_schema()
    if as_json:
        click.echo(json.dumps(schema, indent=2, ensure_ascii=False))
    else:
        _print(schema["properties"]["pass"]["items"]["oneOf"], Console())
    return 0


def _print(kinds: list[dict[str, Any]], console: Console) -> None:
    width = min(console.width, WIDTH)
    for kind in kinds:
        title = Text(kind["title"], style="bold").append(f": {kind['description']}", style="not bold")
        console.print(title, width=width)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=INDENT - 2)
        for most in (None, 28, None, None):
            table.add_column(overflow="fold", max_width=most)
        for name, field in kind["properties"].items():
            if name != "kind":
                table.add_row(*map(Text, ("", name, type_words(field), _default(field), _words(field))))
        console.print(table, width=width)
        console.print()
    console.print(
        Text('A recipe is a TOML file of [[pass]] tables: kind = "…", then fields. --json: its schema.'),
        width=width,
    )


def _default(field: dict[str, Any]) -> str:
    """As it would stand in a recipe; TOML leaves out what is nothing."""
    if "default" not in field:
        return "must be given"
    return "nothing" if field["default"] is None else json.dumps(field["default"], ensure_ascii=False)


def _words(field: dict[str, Any]) -> str:
    return str(field.get("description", ""))
