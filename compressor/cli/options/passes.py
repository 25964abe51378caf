"""What `compress passes` takes; its work is loaded when it is run."""

from typing import Any

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the JSON schema of a recipe file.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def passes(**given: Any) -> int:
    """List the passes of a recipe (`compress MODEL --recipe FILE`) with their fields."""
    from edgepress.compressor.cli.passes import passes as work

    return work(**given)
