"""`compress certify`: how far a changed net's outputs can be from the original's, proved."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edgepress.compressor.certify.certificate import Certificate
from edgepress.compressor.cli.certify_check import checked
from edgepress.compressor.cli.certify_options import Net, Options
from edgepress.compressor.cli.certify_run import compared, pruned
from edgepress.compressor.cli.remaining import Stage
from edgepress.compressor.cli.run import progress_bar

PLAN = (
    Stage("ranges", work=1.0),
    Stage("choose", work=3.0),
    Stage("bound", work=1.0),
    Stage("top1", work=5.0),
)


def certify(**options: Any) -> int:
    """Do it, and return the exit code; arguments as the options in `options/certify.py`."""
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
