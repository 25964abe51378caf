"""What `compress replay` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, quiet_option


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the rebuilt result.")
@click.option("--model", type=click.Path(path_type=Path), help="Where the model is now.")
@click.option("--data", help="Where the samples are now; or the run's function, without which it is not run.")
@click.option("--test", help="Where the unseen samples are now; a function likewise.")
@click.option("--metric", help="The run's metric, where that is a function: else it is not run.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="Where preprocess.toml is now.")
@click.option("--no-device", is_flag=True, help="Judge here, not on the target.")
@click.option("--force", is_flag=True, help="Write into a folder that this tool did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table.")
@quiet_option
@debug_option
def replay(**given: Any) -> int:
    """Rebuild the result that MANIFEST describes: the same bytes on the same machine, else exit 2."""
    from edgepress.compressor.cli.replay import replay as work

    return work(**given)
