"""`compress certify`: how far a changed net's outputs can be from the original's, proved."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edgepress.compressor.certify.certificate import Certificate
from edgepress.compressor.certify.choose import METHODS
from edgepress.compressor.cli.certify_check import checked
from edgepress.compressor.cli.certify_options import Net, Options
from edgepress.compressor.cli.certify_run import compared, pruned
from edgepress.compressor.cli.remaining import Stage
from edgepress.compressor.cli.run import progress_bar, shape_option

PLAN = (
    Stage("ranges", work=1.0),
    Stage("choose", work=3.0),
    Stage("bound", work=1.0),
    Stage("top1", work=5.0),
)


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
    type=click.FloatRange(0),
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
    type=click.Choice(sorted(METHODS)),
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
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def certify(**options: Any) -> int:
    """Zero weights of MODEL under a proved limit, or bound how far CANDIDATE can be from MODEL.

    \b
    compress certify MODEL --box 0,1 --limit 1% --data DATA --out DIR
    compress certify MODEL CANDIDATE --box 0,1 [--test DATA --near 1/255]
    compress certify MODEL CANDIDATE --check certificate.json
    """  # noqa: D301  click wants the character itself
    force = bool(options.pop("force"))
    options.pop("debug")
    chosen = Options(**options)
    chosen.refuse_nonsense()
    with progress_bar(chosen.quiet or chosen.as_json, PLAN) as tell:
        original = Net.of(chosen.model, chosen.shapes)
        if chosen.check is not None:
            return checked(original, chosen, tell)
        work = pruned if chosen.candidate is None else compared
        made = work(original, chosen, force, tell)
    if chosen.as_json:
        click.echo(made.model_dump_json(indent=2))
    elif not chosen.quiet:
        show(made, chosen.out)
    return 0 if made.within_limit else 1


def show(made: Certificate, out: Path | None) -> None:
    """What was found, in a few lines."""
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    largest = made.certified_change_max if made.kind == "certified" else made.observed_change_max
    inputs = f"[{made.box.low:g}, {made.box.high:g}]" + (
        ", by samples" if made.box.source == "statistical" else ""
    )
    words = (
        "certified: no output moves farther"
        if made.kind == "certified"
        else "observed ranges: nothing is proved"
    )
    rows = [
        ("Change", f"{largest:.6g}  {words}"),
        ("Inputs", inputs),
        ("Covers", f"{made.arithmetic} arithmetic"),
    ]
    if made.limit is not None:
        rows.append(("Limit", f"{made.limit}, {'kept' if made.within_limit else 'NOT kept'}"))
    if made.share_reset is not None:
        rows.append(("Reset", f"{100 * made.share_reset:.3g} % of the weights"))
    if made.compared == "apart":
        rows.append(("Note", "the two are built differently: ranges were subtracted, which is loose"))
    if made.top1 is not None:
        found = made.top1
        rows.append(
            ("Top-1", f"{found.rows_certified} of {found.rows} provably the same within {found.near:.3g}")
        )
    if out is not None:
        rows.append(("Results", str(out)))
    for row in rows:
        table.add_row(*row)
    console.print(table)
