"""What `compress selftest` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, quiet_option, threads_option


@click.command()
@click.option(
    "--target", "--device", "target", default="local", show_default=True,
    help="Device profile; one with an address is reached there.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Three small networks, fewer rows of each: about 3 s here.")
@click.option(
    "--precision", "wanted", multiple=True, metavar="NAME",
    help="Only this one, such as int8; may be given several times.",
)  # fmt: skip
@click.option(
    "--format", "formats", metavar="F[,F]", help="onnx, tflite, sparse [default: all that runs there]."
)
@click.option(
    "--images", type=click.Path(path_type=Path, dir_okay=False),
    help="npz of images, such as MNIST's, to make a network of; default: drawn digits.",
)  # fmt: skip
@threads_option
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Write all that was found to this file; - prints it.",
)  # fmt: skip
@quiet_option
@debug_option
def selftest(**given: Any) -> int:
    """Run networks whose right answer is known exactly, and name every operator that computes something else.

    Exit code 0 when all is right, 1 when a kernel is wrong, 3 where the device does not answer or runs nothing.
    """
    from edgepress.compressor.cli.selftest import selftest as work

    return work(**given)
