"""Options of several commands."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from edgepress.compressor.cli.units import THREADS


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


quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
debug_option = click.option("--debug", is_flag=True, help="Show tracebacks.")
threads_option = click.option(
    "--threads", type=THREADS, default=1, show_default=True, help="Threads of the runtime."
)
preprocess_option = click.option(
    "--preprocess", type=click.Path(path_type=Path), help="preprocess.toml for images."
)
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
