"""What `compress bench` takes; its work is loaded when it is run."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import (
    debug_option,
    preprocess_option,
    quiet_option,
    shape_option,
    threads_option,
)
from edgepress.compressor.cli.units import Finite


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--device", "--target", "target", default="local", show_default=True,
    help="Device profile; one with an address is reached there.",
)  # fmt: skip
@threads_option
@click.option(
    "--data", metavar="DATA", help="Samples whose first row is run: npz, folder or module:function."
)
@preprocess_option
@shape_option
@click.option(
    "--seconds", type=Finite(0, min_open=True), default=10.0, show_default=True,
    help="Timing ends after this long, or when all medians are known within 1 %.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Write all that was measured to this file; - prints it.",
)  # fmt: skip
@click.option("--per-layer", is_flag=True, help="What each layer takes, by the engine's own profiler.")
@quiet_option
@debug_option
def bench(**given: Any) -> int:
    """Time MODELS, .onnx, .tflite or sparse .npz, against the first of them.

    They take turns on the same inputs, so that whatever slows the device slows all of them. Exit code 3 where the
    device does not answer.
    """
    from edgepress.compressor.cli.bench import bench as work

    return work(**given)
