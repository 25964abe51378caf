"""A training from samples to files: what `compress evolve` does, without its options and its runtime."""

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgepress.compressor.data import Source, split, without_overlap
from edgepress.compressor.errors import DataError, OutputError, UsageError
from edgepress.compressor.evolve import checkpoint
from edgepress.compressor.evolve.degrees import degrees, shape_of
from edgepress.compressor.evolve.kernels import Name
from edgepress.compressor.evolve.layers import SparseLayer
from edgepress.compressor.evolve.result import Finished, finish, to_onnx, to_sparse
from edgepress.compressor.evolve.samples import Samples, Scaling, open_samples, read
from edgepress.compressor.evolve.start import Start
from edgepress.compressor.evolve.training import Settings, Training
from edgepress.compressor.export.onnx import save, verify
from edgepress.compressor.export.sparse import write_sparse
from edgepress.compressor.protocols import Engine, Tell
from edgepress.compressor.report.build import MODEL_FILE, peak_rss_bytes, versions
from edgepress.compressor.report.evolve import Degrees, EpochRow, Evolved
from edgepress.compressor.report.words import quantity
from edgepress.compressor.serialize import write
from edgepress.compressor.sizes import memory_bytes

SPARSE_FILE = "model-sparse.npz"
HELD_OUT = 0.1
"""Share of the samples to judge by, where none are given for that."""

TOLERANCE = 1e-3
"""By which the file's logits may differ from the net's, as a share of the largest."""

CHECK_ROWS = 256
SIDES: tuple[Literal["inputs", "outputs"], ...] = ("inputs", "outputs")


@dataclass(frozen=True)
class Rows:
    """What a training learns from and is judged by.

    Attributes:
        train: rows to learn from.
        test: rows that it never learns from.
        data: name of their source.
        test_name: of the test's own; None where it was set aside.
        warnings: what became of them.
    """

    train: Samples
    test: Samples
    data: str
    test_name: str | None
    warnings: tuple[str, ...]


def read_rows(
    data: Source,
    test: Source | None,
    seed: int,
    shape: tuple[int | None, ...] | None,
    preprocess: Path | None = None,
) -> Rows:
    """Read samples; rows of the test that are among those to learn from are taken out there.

    Args:
        data: rows to learn from.
        test: rows to judge by; None: a tenth of `data` is set aside.
        seed: which ones.
        shape: of a sample, where a model says so.
        preprocess: TOML file for images; None: the one beside them.

    Raises:
        DataError: they are missing, damaged, without classes, or unlike each other.
    """
    learn, warnings = open_samples(data, shape, preprocess), []
    if test is None:
        learn, judge = split(learn, 1 - HELD_OUT, seed)
        warnings.append(f"No --test: {judge.rows} rows of --data were set aside to judge by.")
    else:
        judge = open_samples(test, shape, preprocess)
        if judge.columns[0].shape[1:] != learn.columns[0].shape[1:]:
            raise DataError(
                f"Samples of {judge.name} have shape {list(judge.columns[0].shape[1:])}, "
                f"those of {learn.name} {list(learn.columns[0].shape[1:])}.",
                "Give both in the same form.",
            )
        learn, dropped = without_overlap(learn, judge)
        if dropped:
            warnings.append(f"{dropped} rows of --data are also in --test; they were not learnt from.")
    return Rows(
        read(learn),
        read(judge),
        Path(learn.name).name,
        None if test is None else Path(judge.name).name,
        tuple(warnings),
    )


def check(settings: Settings, rows: Rows) -> None:
    """Refuse layers that do not fit the samples.

    Raises:
        DataError: too many or too few inputs, or more classes than outputs.
        UsageError: augmentation of what are no images, or a net that is larger than memory.
    """
    dense, most = 4 * sum(one * other for one, other in pairwise(settings.layers)), memory_bytes()
    if dense > most:
        raise UsageError(
            f"Layers {', '.join(map(str, settings.layers))} take {dense / 1e9:.1f} GB as a dense model.onnx; "
            f"there are {most / 1e9:.1f} GB.",
            "Choose fewer neurons.",
        )
    inputs, classes = settings.layers[0], settings.layers[-1]
    if rows.train.features != inputs:
        raise DataError(
            f"{rows.data} has samples of {rows.train.features} numbers, the net {inputs} inputs.",
            f"Begin --layers with {rows.train.features}.",
        )
    most = int(max(rows.train.labels.max(), rows.test.labels.max()))
    if most >= classes:
        raise DataError(
            f"Class {most} occurs, the net has {classes} outputs.", f"End --layers with {most + 1} or more."
        )
    if settings.augmentation and len(rows.train.shape) < 2:
        raise UsageError(
            "--shift and --flip move images; these samples are plain rows of numbers.",
            "Save them as [rows, channels, height, width].",
        )


def prepare(settings: Settings, rows: Rows, kernels: ModuleType, start: Start | None) -> Training:
    """A training that can begin; `start` is a net to begin from."""
    given = None if start is None else start.scaled(Scaling.of(rows.train.rows))
    return Training(settings, rows.train, rows.test, kernels, given)


def fingerprint(settings: Settings, rows: Rows, start: Start | None) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from."""
    digest = hashlib.sha256()
    for array in (rows.train.rows, rows.train.labels, rows.test.rows, rows.test.labels):
        digest.update(np.ascontiguousarray(array).data)
    for weights, bias in () if start is None else start.layers:
        digest.update(np.ascontiguousarray(weights).data)
        digest.update(np.ascontiguousarray(bias).data)
    return {"settings": settings.as_json(), "data": digest.hexdigest()}


def resume(training: Training, path: Path, wanted: dict[str, Any]) -> None:
    """Take up a checkpoint.

    Raises:
        UsageError: there is none, it is damaged, or of another training.
    """
    facts = checkpoint.facts_of(path)
    then, now = facts.get("settings"), wanted["settings"]
    if then != now or facts.get("data") != wanted["data"]:
        changed = sorted(k for k in now if not isinstance(then, dict) or then.get(k) != now[k]) or ["samples"]
        raise UsageError(
            f"The checkpoint {path} is of another training: {', '.join(changed)} changed.",
            "Give the same options and samples, or leave out --resume.",
        )
    checkpoint.restore(path, training.layers)
    try:
        training.go_on(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"The checkpoint {path} is damaged: {error}.", "Leave out --resume.") from error


def train(training: Training, path: Path, wanted: dict[str, Any], tell: Tell) -> None:
    """Train all epochs that are left, with a checkpoint after each.

    Args:
        training: as prepared or resumed.
        path: of the checkpoint.
        wanted: its fingerprint.
        tell: hears how far it is.
    """
    epochs = training.settings.epochs
    while len(training.history) < epochs:
        done, before = len(training.history), training.history[-1:]
        last = "".join(f", {e.accuracy:.1f} %, {quantity(e.connections, 'count')}" for e in before)

        def told(share: float, loss: str, done: int = done, last: str = last) -> None:
            tell("train", (done + share) / epochs, f"{done + 1}/{epochs}, {loss}{last}")

        training.epoch(told)
        checkpoint.save(path, training.layers, {**wanted, **training.state()})
        tell("train", (done + 1) / epochs, f"{done + 1}/{epochs}")


def write_models(training: Training, folder: Path, engine: Engine) -> tuple[Finished, float]:
    """Write `model.onnx` and `model-sparse.npz`, and judge the former on the test rows.

    Args:
        training: that is over.
        folder: to write into.
        engine: runs the file.

    Returns:
        The finished net, and the share of the test rows that the file gets right, in percent.

    Raises:
        OutputError: a file cannot be written, or says something else than the net.
    """
    net = finish(training.layers, training.scaling, training.settings.threshold)
    shape = training.train.shape
    _write_dense(net, shape, folder / MODEL_FILE)
    write_sparse(to_sparse(net, shape), folder / SPARSE_FILE)
    run = engine.load(folder / MODEL_FILE)
    right, test = 0, training.test
    for start in range(0, len(test), CHECK_ROWS):
        rows = test.rows[start : start + CHECK_ROWS]
        found = run({"input": np.ascontiguousarray(rows, np.float32)})["logits"]
        x = training.scaling.apply(rows, np.empty((test.features, len(rows)), np.float32))
        expected = training.network.logits(x).T
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE * max(float(np.abs(expected).max()), 1.0)):
            raise OutputError(
                f"{MODEL_FILE} does not say what the trained net says; it was not written.",
                "Weights may have grown beyond all measure: lower --learning-rate.",
            )
        right += int((found.argmax(axis=1) == test.labels[start : start + CHECK_ROWS]).sum())
    return net, 100 * right / len(test)


def _write_dense(net: Finished, shape: tuple[int, ...], path: Path) -> None:
    """As ONNX: dense weights are held no longer than it takes to write them."""
    model = to_onnx(net, shape)
    saved = save(model)
    verify(model, saved)
    write(saved, path)


def record(
    training: Training,
    rows: Rows,
    net: Finished,
    accuracy: float,
    peak: int,
    kernels: Name,
    threads: int,
    folder: Path,
) -> Evolved:
    """What was found, for the report.

    Args:
        training: that is over.
        rows: that it was given.
        net: what became of it.
        accuracy: of the written file, in percent.
        peak: bytes of memory until training was over.
        kernels: which were used.
        threads: how many they were allowed.
        folder: with the files.
    """
    settings, history = training.settings, training.history
    sizes, dense = settings.layers, settings.schedule.method == "dense"
    full = sum((a + 1) * b for a, b in pairwise(sizes))
    evolving = [each.evolution_seconds for each in history if each.zeta > 0]
    return Evolved(
        data=rows.data,
        test=rows.test_name,
        train_rows=len(rows.train),
        test_rows=len(rows.test),
        test_accuracy=accuracy,
        method=settings.schedule.method,
        settings=settings.as_json(),
        layers=sizes,
        widths=net.widths,
        weights=net.weights,
        trained_weights=training.started_with,
        dense_weights=full,
        compression=full / net.weights,
        seconds_per_epoch=statistics.median(each.seconds for each in history),
        evolution_seconds=statistics.median(evolving) if evolving else 0.0,
        memory_peak_bytes=peak,
        process_peak_bytes=peak_rss_bytes(0),
        kernels="numpy" if dense else kernels,
        threads=threads,
        size_bytes={file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
        epochs=tuple(EpochRow(**vars(each)) for each in history),
        degrees=tuple(_degrees(training.layers)),
        versions=versions(),
        warnings=rows.warnings,
    )


def _degrees(layers: Sequence[Any]) -> list[Degrees]:
    found = []
    for number, layer in enumerate(layers, 1):
        if not isinstance(layer, SparseLayer):
            continue
        for side, counts in zip(SIDES, degrees(layer.topology), strict=True):
            values, neurons = np.unique(counts, return_counts=True)
            shape = shape_of(counts)
            fit = {} if shape is None else {k: v for k, v in vars(shape).items() if k != "distance"}
            found.append(
                Degrees(layer=number, side=side, degree=values.tolist(), neurons=neurons.tolist(), **fit)
            )
    return found
