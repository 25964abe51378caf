"""What `compress inspect` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, preprocess_option, shape_option
from edgepress.compressor.cli.units import Finite


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", help="Samples: adds what each site can bear, and what that would bring.")
@click.option(
    "--target", "--device", default="local", show_default=True, help="Device profile for predicted latency."
)
@shape_option
@click.option("--leave", multiple=True, help="Regular expression of sites not to touch.")
@preprocess_option
@click.option(
    "--sort",
    "by",
    type=click.Choice(["net", "gain", "harm"]),
    default="net",
    show_default=True,
    help="Sites as in the net, or first those that bring most, or that 8 bits hurt most.",
)
@click.option(
    "--html", "--out", "html", type=click.Path(path_type=Path), help="Write a page with a heat map, too."
)
@click.option(
    "--time-limit",
    type=Finite(0, min_open=True),
    help="Minutes after which nothing new is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def inspect(**given: Any) -> int:
    """Show inputs, outputs, parameters, MACs and bytes per site, and what can be compressed."""
    from edgepress.compressor.cli.inspect import inspect as work

    return work(**given)
