"""What `compress passes` takes; its work is loaded when it is run."""

from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the JSON schema of a recipe file.")
@debug_option
def passes(**given: Any) -> int:
    """List the passes of a recipe (`compress MODEL --recipe FILE`) with their fields."""
    from edgepress.compressor.cli.passes import passes as work

    return work(**given)
