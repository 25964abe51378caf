"""What `compress run` takes; its work is loaded when it is run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.options.shared import (
    debug_option,
    preprocess_option,
    quiet_option,
    shape_option,
    some_file,
    threads_option,
)
from edgepress.compressor.cli.units import Finite, size_option, time_option


def formats_option(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """`onnx,tflite` → ("onnx", "tflite"); what is unknown is refused with the job."""
    return tuple(dict.fromkeys(word.strip().lower() for word in value.split(",") if word.strip()))


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of the main job."""
    path = click.Path(path_type=Path)
    positive = Finite(0, min_open=True)
    options: Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]] = (
        click.option(
            "--target",
            "--device",
            default="local",
            show_default=True,
            help="Device profile: a name or a TOML file.",
        ),
        click.option(
            "--data",
            shell_complete=some_file,
            help="Samples for calibration and search: .npz, folder of images, or module:function.",
        ),
        click.option(
            "--test",
            shell_complete=some_file,
            help="Unseen samples for the verdict; without it, half of --data is set aside.",
        ),
        click.option("--metric", help="top1, top5, mse, mae, psnr, agreement, fidelity, or module:function."),
        click.option(
            "--output",
            help="Which output the metric reads (default: the first); the others are held to fidelity.",
        ),
        click.option(
            "--budget",
            type=Finite(0, 100, max_open=True),
            default=2.0,
            show_default=True,
            help="Percent of the score that may be lost.",
        ),
        click.option(
            "--objective",
            type=click.Choice(["latency", "size", "memory"]),
            default="latency",
            show_default=True,
            help="What is to become small.",
        ),
        click.option(
            "--max-size",
            "max_size_bytes",
            metavar="SIZE",
            callback=size_option,
            help="Largest file: 20kB, 1.5MB; else exit 1.",
        ),
        click.option(
            "--max-latency",
            "max_latency_ns",
            metavar="TIME",
            callback=time_option,
            help="Slowest inference: 300us, 2ms; else exit 1.",
        ),
        click.option(
            "--pick", metavar="N", help="Build point N of an earlier run's front, without searching again."
        ),
        click.option(
            "--from", "earlier", type=path, help="Folder of the earlier run for --pick (default: --out)."
        ),
        click.option(
            "--format",
            "formats",
            default="onnx,tflite",
            show_default=True,
            callback=formats_option,
            help="Files to write; TFLite where it can be. tflite alone: it must be, or exit 2.",
        ),
        click.option("--out", type=path, help="Folder for the results (default: MODEL-compressed)."),
        click.option("--recipe", type=path, help="TOML file of passes to apply, instead of a search."),
        click.option(
            "--time-limit", type=positive, help="Minutes after which the search begins nothing new."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of every random choice.",
        ),
        threads_option,
        shape_option,
        click.option("--leave", multiple=True, help="Regular expression of sites not to touch."),
        preprocess_option,
        click.option(
            "--timings", type=path, help="JSON file of timings: used where it has them, written after."
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Processes that work side by side (default: one a core).",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do it: tcp://HOST:8786."
        ),
        click.option(
            "--cache",
            type=path,
            envvar="EDGEPRESS_CACHE",
            help="Folder for what was worked out, from where an interrupted run goes on.",
        ),
        click.option(
            "--no-device",
            is_flag=True,
            help="Predict costs and judge here, even where the target could be emulated or reached.",
        ),
        click.option(
            "--device-rows",
            type=click.IntRange(1),
            metavar="N",
            help="Unseen rows that an emulated or distant target judges (default: what takes two minutes).",
        ),
        click.option("--no-cache", is_flag=True, help="Work everything out afresh."),
        click.option("--force", is_flag=True, help="Write into a folder that this tool did not write."),
        click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table."),
        quiet_option,
        debug_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@run_options
def run(**given: Any) -> int:
    """Compress MODEL for a device, within a budget; write model, report and manifest to a folder."""
    from edgepress.compressor.cli.run import run as work

    return work(**given)
