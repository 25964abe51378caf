"""What `compress report` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, quiet_option


@click.command()
@click.argument("folders", metavar="DIR …", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page [default: DIR/report.html; of several: report.html here].",
)
@click.option("--open", "opened", is_flag=True, help="Show it in the browser.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the record, or a list of them, instead of tables."
)
@quiet_option
@debug_option
def report(**given: Any) -> int:
    """Draw the page of an earlier run again from its report.json; of several DIRs one page, side by side."""
    from edgepress.compressor.cli.report import report as work

    return work(**given)
