"""Scores or times models; a process of its own, so that a model that crashes the engine ends nothing else.

    python benchmarks/peer_judge.py score FOLDER METRIC CANDIDATE.onnx
    python benchmarks/peer_judge.py time FOLDER SECONDS MODEL.onnx …

FOLDER is a model of the zoo. `score` runs its `model.onnx` and the candidate on the same unseen rows; `time` runs
all models interleaved on one row, with one thread. The result goes to stdout as one line of JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import samples
from edgepress.compressor.budget import Budget, Scores, judge
from edgepress.compressor.data import Batch, Dataset, open_data
from edgepress.compressor.metrics import BUILT_IN, Metric, resolve_metric, score_all, unread
from edgepress.compressor.model import input_specs, load
from edgepress.compressor.protocols import Array, Matrix, Runner
from edgepress.compressor.scoring import cut
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.measure import measure, ratio_interval

BLOCK = 64
"""Rows that are read at once."""


def open_samples(folder: Path) -> tuple[Dataset, Dataset]:
    """Calibration rows and unseen ones of a model of the zoo."""
    specs = input_specs(load(folder / "model.onnx"))
    settings = folder / "preprocess.toml"
    preprocess = settings if settings.exists() else None
    calib, test = (open_data(folder.parent / place, specs, preprocess) for place in samples(folder))
    return calib, test


def _outputs(runner: Runner, batch: Batch, rows: int) -> dict[str, Array]:
    """Outputs of a batch, run as it is timed: so many rows at once (what is quantized as it comes depends on them)."""
    fed = len(next(iter(batch.feeds.values())))
    parts = [
        runner({name: array[start : start + rows] for name, array in batch.feeds.items()})
        for start in range(0, fed, rows)
    ]
    return cut({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, batch)


def _values(
    metrics: Sequence[Metric], original: Runner, candidate: Runner, data: Dataset
) -> tuple[list[Matrix], list[Matrix]]:
    """For each metric one value a row, of the original and of the candidate."""
    found: tuple[list[list[Matrix]], list[list[Matrix]]] = ([], [])
    rows = data.batch_size or 1
    for batch in data.batches(BLOCK):
        before, after = (_outputs(runner, batch, rows) for runner in (original, candidate))
        whole = replace(batch, feeds={name: array[: len(batch.rows)] for name, array in batch.feeds.items()})
        for side, outputs in zip(found, (before, after), strict=True):
            side.append(score_all(metrics, partial(_same, outputs), [whole], partial(_same, before)))
    base, ours = ([np.concatenate(column) for column in zip(*side, strict=True)] for side in found)
    return base, ours


def _same(outputs: dict[str, Array], _: object) -> dict[str, Array]:
    return outputs


def score(folder: Path, name: str, candidate: Path) -> dict[str, Any]:
    """Quality on unseen rows beside the original's.

    Args:
        folder: of the original and its samples.
        name: of the metric.
        candidate: the model to be judged.

    Returns:
        score, original_score, kept_percent (of the score; None where that is not finite), n_test, rows_lost
        (right rows of the original on balance, None where rows are not right or wrong), agreement_percent
        (same first choice as the original, over calibration and unseen rows; None where there are no classes) and
        others_kept_percent (fidelity of the worst output that the metric does not read; None where it reads all).
    """
    if name not in BUILT_IN:
        raise ValueError(f"info.json names a metric {name!r}")
    engine = OrtEngine()
    original, other = (engine.load(path) for path in (folder / "model.onnx", candidate))
    calib, test = open_samples(folder)
    batch = next(iter(test.batches(BLOCK)))
    outputs = _outputs(original, batch, test.batch_size or 1)
    metrics = [resolve_metric(name, outputs, batch)]
    if next(iter(outputs.values())).ndim == 2:
        metrics.append(resolve_metric("agreement", outputs, batch))
    agreements, others = metrics[1:], unread(metrics[0], outputs)
    before, after = _values([*metrics, *others], original, other, test)
    agreement = None
    if agreements:
        known = _values(agreements, original, other, calib)[1][0]
        agreement = 100 * float(np.mean([*known, *after[1]]))
    kept = [100 * other.finish(after[len(metrics) + at]) for at, other in enumerate(others)]
    judged = judge(Budget(), metrics[0], Scores(before[0], after[0]))
    counted = name in ("top1", "top5", "agreement")
    return {
        "score": judged.compressed_score,
        "original_score": judged.baseline_score,
        "kept_percent": None if judged.drop_percent is None else 100 - judged.drop_percent,
        "n_test": test.rows,
        "rows_lost": round(float(before[0].sum() - after[0].sum())) if counted else None,
        "agreement_percent": agreement,
        "others_kept_percent": min(kept, default=None),
    }


def latencies(folder: Path, seconds: float, models: Sequence[Path]) -> list[dict[str, Any]]:
    """Interleaved medians on one unseen row, one thread.

    Args:
        folder: of the samples.
        seconds: time limit.
        models: files; the first is what the others' intervals are relative to.

    Returns:
        For each model latency_ns, ci95_ns, too_noisy and ratio_ci95 (95 % interval of its median over the first's).
    """
    feeds = next(iter(open_samples(folder)[1].batches(1, with_labels=False))).feeds
    found = measure(models, feeds, threads=1, time_limit_s=seconds)
    return [
        {
            "latency_ns": one.median_ns,
            "ci95_ns": one.ci95_ns,
            "too_noisy": one.too_noisy,
            "ratio_ci95": ratio_interval(one, found[0]),
        }
        for one in found
    ]


def main(argv: Sequence[str]) -> None:
    task, folder, option, *models = argv
    paths = [Path(model) for model in models]
    answer = (
        score(Path(folder), option, paths[0])
        if task == "score"
        else latencies(Path(folder), float(option), paths)
    )
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
