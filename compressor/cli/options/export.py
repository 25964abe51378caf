"""What `compress export` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import (
    debug_option,
    preprocess_option,
    quiet_option,
    shape_option,
)
from edgepress.compressor.cli.units import THREADS


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["tflite", "onnx"]),
    default="tflite",
    show_default=True,
    help="What to write.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: MODEL.tflite).")
@click.option(
    "--verify",
    "data",
    metavar="DATA",
    help="Samples that both files run, for a certificate of how far they agree: npz, folder or module:function.",
)
@click.option(
    "--io",
    type=click.Choice(["float32", "int8", "uint8"]),
    default="float32",
    show_default=True,
    help="Type of inputs and outputs that are quantized.",
)
@click.option(
    "--keep-layout",
    is_flag=True,
    help="Inputs and outputs of rank 4 as in ONNX, at the cost of a transpose each.",
)
@shape_option
@preprocess_option
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of the runtimes.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON.")
@quiet_option
@debug_option
def export(**given: Any) -> int:
    """Write MODEL in another form, with the numbers that it has.

    A model with Q/DQ pairs becomes a TFLite file that computes in integers, with the same scales and zero points.
    Inputs and outputs of rank 4 have their channels last there.
    """
    from edgepress.compressor.cli.export import export as work

    return work(**given)
