"""What `compress evolve` takes; its work is loaded when it is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import debug_option, preprocess_option, quiet_option, some_file
from edgepress.compressor.cli.units import THREADS, Finite
from edgepress.compressor.evolve.schedules import METHODS

SHARE = Finite(0, 1, max_open=True)
POSITIVE = Finite(0, min_open=True)


def _widths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`784,1000,10` → (784, 1000, 10)."""
    if value is None:
        return None
    try:
        widths = tuple(int(word) for word in value.split(","))
    except ValueError:
        widths = ()
    if len(widths) < 2 or min(widths) < 1:
        raise click.BadParameter(
            f"{value!r}: write inputs, hidden layers and classes, as in 784,1000,10", ctx, param
        )
    return widths


_PATH = click.Path(path_type=Path)
_WHOLE = click.IntRange(1)


def _plain(name: str, kind: Any, default: Any, text: str, *names: str) -> Any:
    return click.option(name, *names, type=kind, default=default, show_default=True, help=text)


OPTIONS = (
    click.option(
        "--data", required=True, shell_complete=some_file, help="Samples with classes to learn from."
    ),
    click.option("--test", shell_complete=some_file, help="Samples to judge by; without, a tenth of --data."),
    click.option("--layers", callback=_widths, help="Neurons, from inputs to classes: 784,1000,1000,10."),
    click.option("--from", "source", type=_PATH, help="ONNX perceptron to start from, instead of --layers."),
    _plain(
        "--method",
        click.Choice(METHODS),
        "set",
        "How ζ goes; fixprob: never evolves, dense: all weights.",
    ),
    _plain("--epsilon", POSITIVE, 20.0, "ε: a layer has about ε (inputs + outputs) connections."),
    _plain("--zeta", SHARE, 0.3, "ζ: share of the connections that evolves after an epoch, at the start."),
    _plain("--zeta-min", SHARE, 0.01, "Smallest ζ of ldv and osv."),
    _plain("--kappa", Finite(0), 1.0, "κ: how often ζ swings in osv."),
    _plain("--interest", SHARE, 0.01, "Share by which ζ falls each epoch in exd."),
    _plain(
        "--last-epoch",
        click.Choice(["prune", "keep"]),
        "prune",
        "Whether the weakest go at the end.",
        "last",
    ),
    _plain("--epochs", _WHOLE, 100, "Passes over the samples."),
    _plain("--batch", _WHOLE, 100, "Samples a step."),
    _plain("--learning-rate", POSITIVE, 0.01, "Of stochastic gradient descent.", "rate"),
    _plain("--momentum", SHARE, 0.9, "Share of the last step that is made again."),
    _plain("--weight-decay", Finite(0), 0.0002, "L2, of weights.", "decay"),
    _plain("--dropout", SHARE, 0.3, "Share of hidden neurons silent in a step."),
    _plain("--threshold", Finite(0), 0.0, "ε of the modified ReLU: sums up to it become zero."),
    _plain("--shift", click.IntRange(0), 0, "Move images by up to so many pixels."),
    click.option("--flip", is_flag=True, help="Mirror half of the images."),
    _plain("--seed", click.IntRange(0), 0, "Seed of every random choice."),
    click.option("--kernels", type=click.Choice(["numba", "scipy"]), help="Default: numba where installed."),
    click.option("--threads", type=THREADS, help="Threads (default: one a core)."),
    click.option("--out", type=_PATH, help="Folder for the results (default: DATA-evolved)."),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run."),
    preprocess_option,
    click.option("--force", is_flag=True, help="Write into a folder that is not ours; drop a checkpoint."),
    click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a summary."),
    quiet_option,
    debug_option,
)
"""All options of the command, in the order of its help."""


def evolve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all of them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@evolve_options
def evolve(**given: Any) -> int:
    """Train a perceptron with few connections, which move after every epoch; write it as ONNX and sparse.

    After each epoch a checkpoint is written beside the output folder; --resume goes on from there to the same bytes.
    """
    from edgepress.compressor.cli.evolve import evolve as work

    return work(**given)
