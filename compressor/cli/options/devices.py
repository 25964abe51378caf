"""What `compress devices` and its commands take; their work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, quiet_option, threads_option
from edgepress.compressor.cli.units import Finite


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@debug_option
@click.pass_context
def devices(context: click.Context, /, **given: Any) -> int:
    """List device profiles (`--target NAME`) and what costs on each rest on."""
    return _listed(given) if context.invoked_subcommand is None else 0


@devices.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@debug_option
def list_profiles(**given: Any) -> int:
    """List device profiles; `compress devices` alone does so, too."""
    return _listed(given)


def _listed(given: dict[str, Any]) -> int:
    from edgepress.compressor.cli.devices import devices as work

    return work(**given)


@devices.command()
@click.option("--name", help="Of the profile [default: local, which all runs here use; else the device's].")
@click.option(
    "--device", metavar="PROFILE",
    help="Another device: a board is timed there; of an emulated core instructions are counted.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="TOML file to write instead.")
@threads_option
@click.option(
    "--time-limit", type=Finite(0, min_open=True), default=2.0, show_default=True,
    help="Minutes; a slow machine may take longer. Counting takes as long as it takes.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the file's name as JSON.")
@quiet_option
@debug_option
def profile(**given: Any) -> int:
    """Time kernels on this machine, or on another device, and write a profile of it."""
    from edgepress.compressor.cli.devices import profile as work

    return work(**given)


@devices.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def show(**given: Any) -> int:
    """Print a profile as TOML, with all that it takes from others."""
    from edgepress.compressor.cli.boards import show as work

    return work(**given)


@devices.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def check(**given: Any) -> int:
    """Connect to a device and print what it is; exit code 3 where it does not answer."""
    from edgepress.compressor.cli.boards import check as work

    return work(**given)


@devices.command()
@click.argument("name")
@click.option("--address", help="user@board, a name from ssh's configuration, or for adb a serial number.")
@click.option("--transport", type=click.Choice(["ssh", "adb"]), help="Default: ssh.")
@click.option("--base", metavar="PROFILE", help="What it is like; without it, the board is asked.")
@click.option("--python", help="The command that starts Python there [default: python3].")
@click.option("--benchmark", help="benchmark_model or onnxruntime_perf_test, where there is no Python.")
@click.option("--force", is_flag=True, help="Overwrite a profile of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def add(**given: Any) -> int:
    """Write a profile of your own for a board, and have it answer once."""
    from edgepress.compressor.cli.boards import add as work

    return work(**given)
