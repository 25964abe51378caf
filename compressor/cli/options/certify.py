"""What `compress certify` takes; its work is loaded when it is run."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, quiet_option, shape_option
from edgepress.compressor.cli.units import Finite


def limit_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, bool] | None:
    """`1%` → (0.01, True), a share of each output's observed range; `0.3` → (0.3, False)."""
    if value is None:
        return None
    relative = value.endswith("%")
    try:
        number = float(value.rstrip("%")) / (100 if relative else 1)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise click.BadParameter(f"{value!r}: write 1% or 0.25", context, parameter)
    return number, relative


def near_option(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """`1/255` or `0.01` → a number."""
    try:
        number = float(Fraction(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.BadParameter(f"{value!r}: write 1/255 or 0.01", context, parameter)
    return number


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path), required=False)
@click.option(
    "--box", "given", help="Inputs: LO,HI for every element, or samples that show each element's range."
)
@click.option(
    "--margin",
    type=Finite(0),
    default=0.0,
    show_default=True,
    help="Share added to ranges of samples.",
)
@click.option(
    "--limit", callback=limit_option, help="How far an output may move: 1% of its observed range, or 0.25."
)
@click.option("--data", help="Samples that show the ranges of outputs, for --limit in %.")
@click.option(
    "--method",
    type=click.Choice(["plain", "tight"]),
    default="tight",
    show_default=True,
    help="How bounds are found.",
)
@click.option(
    "--ranges",
    type=click.Choice(["proved", "observed"]),
    default="proved",
    show_default=True,
    help="Ranges inside the net: proved, or what --data shows, which proves nothing.",
)
@click.option(
    "--arithmetic",
    type=click.Choice(["exact", "float32"]),
    default="exact",
    show_default=True,
    help="What the bound covers: both nets as formulas, or as engines compute them.",
)
@click.option("--test", help="Samples of a classifier: counts those whose class provably stays.")
@click.option(
    "--near",
    callback=near_option,
    default="0",
    show_default=True,
    help="How far inputs may be from those samples: 1/255.",
)
@click.option(
    "--check", type=click.Path(path_type=Path), help="A certificate of MODEL and CANDIDATE to prove again."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for model.onnx and certificate.json.")
@shape_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the plain method's shuffling.")
@click.option("--force", is_flag=True, help="Write into a folder that this tool did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate.")
@quiet_option
@debug_option
def certify(**given: Any) -> int:
    """Zero weights of MODEL under a proved limit, or bound how far CANDIDATE can be from MODEL.

    \b
    compress certify MODEL --box 0,1 --limit 1% --data DATA --out DIR
    compress certify MODEL CANDIDATE --box 0,1 [--test DATA --near 1/255]
    compress certify MODEL CANDIDATE --check certificate.json
    """  # noqa: D301  click wants the character itself
    from edgepress.compressor.cli.certify import certify as work

    return work(**given)
