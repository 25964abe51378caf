"""Options of several commands."""

import click
from click.shell_completion import CompletionItem


def _shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """`name=1,3,224,224` → {name: (1, 3, 224, 224)}."""
    shapes = {}
    for text in values:
        name, _, dims = text.rpartition("=")
        try:
            shapes[name] = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shapes[name] = ()
        if not name or not shapes[name] or min(shapes[name]) < 1:
            raise click.BadParameter(f"{text!r}: write NAME=1,3,224,224", ctx, param)
    return shapes


shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    help="Fix dynamic dimensions: NAME=1,3,224,224.",
)
"""`--shape`, which reaches the command as `shapes`."""


def some_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete files where the value may be one."""
    return [CompletionItem(incomplete, type="file")]
