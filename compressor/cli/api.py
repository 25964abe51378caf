"""The main job from Python: `edgepress.compressor.compress`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepress.compressor.choice import Objective
from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.run import TIMING_SECONDS, input_paths
from edgepress.compressor.data import Source
from edgepress.compressor.errors import UsageError, nearest
from edgepress.compressor.job import FORMATS, Job
from edgepress.compressor.outdir import staged
from edgepress.compressor.protocols import Array, Tell
from edgepress.compressor.recipe import Recipe
from edgepress.compressor.report.build import build_report, write_result
from edgepress.compressor.report.record import Report
from edgepress.compressor.serialize import Serialized, write
from edgepress.compressor.session import run

OBJECTIVES: dict[str, Objective] = {"latency": "latency", "size": "size", "memory": "memory"}


@dataclass(frozen=True)
class Result:
    """What `compress` hands back.

    Attributes:
        model: the compressed model, an ONNX file's bytes; over 2 GB the path of a file that goes with this object.
        report: what was found out, as in report.json; units stand in the field names.
        recipe: the passes that made the model.
        folder: where the files are, or None where none were asked for.
        tflite: the same model as a TFLite file's bytes, or None: `report.tflite.reason` says why.
    """

    model: Serialized
    report: Report
    recipe: Recipe
    folder: Path | None = None
    tflite: bytes | None = None

    @property
    def verdict(self) -> str:
        """`kept`, `broken`, `inconclusive` or `unverified`."""
        return self.report.verdict

    def save(self, path: str | Path) -> Path:
        """Write the model alone to a file, and return its path; over 2 GB its weights go beside it."""
        path = Path(path)
        write(self.model, path)
        return path


def compress(
    model: str | Path,
    data: Source | None = None,
    *,
    labels: Array | None = None,
    test: Source | None = None,
    test_labels: Array | None = None,
    target: str | Path = "local",
    budget: float = 2.0,
    objective: str = "latency",
    metric: str | None = None,
    output: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    recipe: Recipe | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    leave: Sequence[str] = (),
    preprocess: str | Path | None = None,
    time_limit_minutes: float | None = None,
    max_size_bytes: int | None = None,
    max_latency_ns: float | None = None,
    formats: Sequence[str] = FORMATS,
    seed: int = 0,
    threads: int = 1,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: str | Path | None = None,
    device: bool = True,
    device_rows: int | None = None,
    progress: Tell | None = None,
) -> Result:
    """Compress a trained ONNX model for a device, within a budget: `compress MODEL` from Python.

        result = compress("model.onnx", {"x": x_calib, "y": y_calib}, test={"x": x_test, "y": y_test})
        result.verdict, result.report.compressed.latency_ns_median
        result.save("small.onnx")

    Args:
        model: an .onnx file, its external data beside it.
        data: samples for calibration and search: a dict of arrays by input name, rows first (labels under `y`
            or `labels`), one array for a model with one input, a function that gives such, the path of an npz
            file or a folder of images, or `module:function`. None: only what needs no samples is done.
        labels: [rows] classes or [rows, ...] targets of `data`, where it does not hold them itself.
        test: unseen samples for the verdict, likewise; None: half of `data` is set aside.
        test_labels: of `test`.
        target: device profile, a name or a TOML file.
        budget: percent of the score that may be lost, from 0 to below 100.
        objective: `latency`, `size` or `memory`.
        metric: name or `module:function`; None: by what there is.
        output: the output that the metric reads; None: the first.
        out: folder to write model, report and manifest to; None: nothing is written.
        force: write into a folder that is not ours.
        recipe: passes to apply instead of a search.
        shapes: input name → full shape, which fixes dynamic dimensions.
        leave: regular expressions of sites not to touch.
        preprocess: TOML file for images; None: the one beside them.
        time_limit_minutes: after which the search begins nothing new.
        max_size_bytes: of the result; where that cannot be had within the budget, `report.limits_missed` says why.
        max_latency_ns: of one inference of the result, likewise.
        formats: `onnx` is always made, `tflite` too where it can be; `("tflite",)`: it must be.
        seed: of every random choice.
        threads: of the runtime.
        workers: processes that work side by side; None: one a core.
        scheduler: address of a Dask scheduler whose workers do it instead.
        cache: folder for what was worked out, from where an interrupted run goes on; None: nothing is kept.
        device: whether the target is emulated or reached where it is not this machine and there is a way; else costs
            are predicted, and the verdict is this machine's.
        device_rows: unseen rows that are judged there; None: what takes two minutes.
        progress: told (stage, share done, detail).

    Returns:
        The model and all that is known of it. A broken budget is no exception: look at `verdict`.

    Raises:
        EdgepressError: with what is wrong, where, and (`.hint`) what to do.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"unknown objective {objective!r}", nearest(objective, OBJECTIVES))
    job = Job(
        Path(model),
        data=_labelled(data, labels),
        test=_labelled(test, test_labels),
        metric=metric,
        output=output,
        budget=budget,
        objective=OBJECTIVES[objective],
        recipe=recipe,
        shapes={name: tuple(dims) for name, dims in (shapes or {}).items()},
        leave=tuple(leave),
        preprocess=None if preprocess is None else Path(preprocess),
        time_limit_minutes=time_limit_minutes,
        max_size_bytes=max_size_bytes,
        max_latency_ns=max_latency_ns,
        formats=tuple(formats),
        device_rows=device_rows,
        seed=seed,
        threads=threads,
    )
    host = make_host(
        str(target),
        threads,
        seed,
        TIMING_SECONDS,
        progress or _silent,
        workers=workers,
        scheduler=scheduler,
        cache=None if cache is None else Path(cache),
        device=device,
    )
    if out is None:
        found = run(job, host)
        report = build_report(found)
    else:
        with staged(Path(out), force, input_paths(job)) as folder:
            found = run(job, host)
            report = build_report(found)
            write_result(found, report, folder, Path(out))
    return Result(
        found.exported,
        report,
        found.best.recipe if found.best else (),
        None if out is None else Path(out),
        found.tflite_file,
    )


def _labelled(source: Source | None, labels: Array | None) -> Source | None:
    """Arrays with their labels beside them."""
    if labels is None or source is None:
        return source
    if isinstance(source, np.ndarray):
        return lambda: (source, np.asarray(labels))
    if isinstance(source, Mapping):
        return {
            **{name: array for name, array in source.items() if name not in ("y", "labels")},
            "labels": labels,
        }
    raise UsageError(
        "Labels of their own go with arrays only.", "Put them beside the samples, under 'y', in the npz file."
    )


def _silent(stage: str, share: float, detail: str) -> None:
    """Nobody asked."""
