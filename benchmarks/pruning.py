"""Pruning by what outputs mind beside pruning by magnitude, at the same zeros, on rows that neither has seen.

    python benchmarks/pruning.py FOLDER … [--settings "50 %" "70 %" 2:4] [--methods obs magnitude …]

A FOLDER holds `model.onnx` with `calib.npz` and `test.npz`, or `images/calib` and `images/test`. Three methods:
`obs` (second order, what stays is fitted to the outputs), `magnitude` (the plain method: the least weights become
zero, and nothing else changes) and `magnitude, fitted` (the same zeros, then fitted like `obs`). All calibration rows
are used, without labels; figures are of the test rows:

    error     mean squared change of an output over its variance, mean over outputs
    score     the metric of `info.json`, else the one that labels suggest

Nets with at most 50 000 parameters or under 200 calibration rows are measured where they are named, and not counted.
The table goes to stdout, the numbers with machine, versions and command to `benchmarks/results/pruning.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from common import write_json
from edgepress.compressor.budget import Budget
from edgepress.compressor.data import Batch, Dataset, open_data
from edgepress.compressor.metrics import Metric, resolve_metric
from edgepress.compressor.model import input_specs, load, parameters, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.prune import Prune
from edgepress.compressor.protocols import Array, Runner
from edgepress.compressor.scoring import cut
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe

SETTINGS = {
    "50 %": Prune(0.5),
    "70 %": Prune(0.7),
    "2:4": Prune(pattern="n_m"),
}
METHODS: dict[str, dict[str, Any]] = {
    "obs": {},
    "magnitude": {"criterion": "magnitude", "compensate": False},
    "magnitude, fitted": {"criterion": "magnitude"},
}
BATCH = 32
LEAST_PARAMETERS = 50_000
LEAST_ROWS = 200
RESULTS = Path(__file__).parent / "results" / "pruning.json"


class Spread:
    """Mean squared change of an output over its variance, batch by batch."""

    def __init__(self) -> None:
        self.rows = 0
        self.change = 0.0
        self.total: Array | float = 0.0
        self.square = 0.0

    def add(self, ours: Array, original: Array) -> None:
        """Add a batch [rows, …] of both models."""
        a, b = ours.astype(np.float64), original.astype(np.float64)
        self.rows += len(b)
        self.change += float(np.square(a - b).sum())
        self.total = self.total + b.sum(axis=0)
        self.square += float(np.square(b).sum())

    def value(self) -> float:
        """Of all batches."""
        variance = self.square - float(np.square(self.total).sum()) / self.rows
        return self.change / variance


class Judge:
    """Holds a changed model against the original on unseen rows."""

    def __init__(self, folder: Path, model: ir.Model, test: Dataset) -> None:
        self.test = test
        self.original = OrtEngine().load(to_bytes(model), 1)
        info = folder / "info.json"
        name = json.loads(info.read_text(encoding="utf-8")).get("metric") if info.exists() else None
        first = next(self.batches())
        self.metric: Metric = resolve_metric(name, self.original(first.feeds), first)
        self.score, _ = self.of(self.original)

    def batches(self) -> Iterator[Batch]:
        """The test rows."""
        return self.test.batches(BATCH)

    def of(self, run: Runner) -> tuple[float, float]:
        """Score and error."""
        values: list[Array] = []
        spreads: dict[str, Spread] = {}
        for batch in self.batches():
            outputs, original = (cut(each(batch.feeds), batch) for each in (run, self.original))
            source = self.metric.target_input
            labels = batch.labels if source is None else batch.feeds[source][: len(batch.rows)]
            values.append(self.metric.per_row(outputs, labels, original))
            for key, value in outputs.items():
                if value.dtype.kind == "f":
                    spreads.setdefault(key, Spread()).add(value, original[key])
        return self.metric.finish(np.concatenate(values)), float(
            np.mean([spread.value() for spread in spreads.values()])
        )

    def kept(self, score: float) -> bool:
        """Whether a score is within a budget of 2 %."""
        bound = Budget().allowed(self.score, self.metric.higher_is_better)
        return score >= bound if self.metric.higher_is_better else score <= bound


def opened(folder: Path, model: ir.Model, part: str) -> Dataset:
    """The samples of one part, `calib` or `test`."""
    images, preprocess = folder / "images" / part, folder / "preprocess.toml"
    return open_data(
        images if images.is_dir() else folder / f"{part}.npz",
        input_specs(model),
        preprocess if preprocess.exists() else None,
    )


def measured(folder: Path, settings: list[str], methods: list[str]) -> dict[str, Any]:
    """All figures of one net."""
    model = normalize(load(folder / "model.onnx")).model
    calibration, judge = opened(folder, model, "calib"), Judge(folder, model, opened(folder, model, "test"))

    def batches() -> Iterator[Any]:
        return (dict(batch.feeds) for batch in calibration.batches(BATCH, with_labels=False))

    found = []
    for setting in settings:
        for method in methods:
            changed = model.clone()
            stream = Streamer(OrtEngine(), model, batches)
            start = time.process_time()
            outcome = replace(SETTINGS[setting], **METHODS[method]).apply(
                changed, Context(stream=stream, rows=calibration.rows)
            )
            seconds = time.process_time() - start
            score, error = judge.of(OrtEngine().load(to_bytes(changed), 1))
            weights = [site.weight for site in find_sites(changed) if site.name in set(outcome.changed)]
            row = {
                "setting": setting,
                "method": method,
                "error": error,
                "score": score,
                "kept": judge.kept(score),
                "zeros": sum(int((w == 0).sum()) for w in weights) / max(sum(w.size for w in weights), 1),
                "cpu_seconds": round(seconds, 1),
            }
            found.append(row)
            print(
                f"{folder.name:<20} {setting:>5} {method:<18} error {error:9.5f}  {judge.metric.name} "
                f"{score:6.2f} of {judge.score:6.2f} {'kept' if row['kept'] else 'lost'}"
                f"  zeros {row['zeros']:.3f}  {seconds:6.1f} s",
                flush=True,
            )
    return {
        "model": folder.name,
        "parameters": parameters(model),
        "calibration_rows": calibration.rows,
        "test_rows": judge.test.rows,
        "metric": judge.metric.name,
        "score": judge.score,
        "counts": parameters(model) > LEAST_PARAMETERS and calibration.rows >= LEAST_ROWS,
        "results": found,
    }


def shortfalls(nets: list[dict[str, Any]]) -> list[str]:
    """Where `obs` did not have the lower error, by net and setting; and too few nets where only it kept."""
    missed, only_ours = [], 0
    for net in (net for net in nets if net["counts"]):
        by = {(row["setting"], row["method"]): row for row in net["results"]}
        for setting in dict.fromkeys(row["setting"] for row in net["results"]):
            ours, plain = (by.get((setting, method)) for method in ("obs", "magnitude"))
            if ours is None or plain is None:
                continue
            if ours["error"] >= plain["error"]:
                missed.append(f"{net['model']} at {setting}: obs {ours['error']:.4g}, {plain['error']:.4g}")
            only_ours += setting == "70 %" and ours["kept"] and not plain["kept"]
    print(f"nets that only obs kept within 2 % at 70 %: {only_ours}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    nets = [measured(folder, options.settings, options.methods) for folder in options.folders]
    record = {
        "command": " ".join(["python benchmarks/pruning.py", *(folder.name for folder in options.folders)]),
        "batch": BATCH,
        "threads": 1,
        "environment": asdict(describe()),
        "results": nets,
    }
    write_json(record, options.out)
    missed = shortfalls(nets)
    for line in missed:
        print(f"not below magnitude: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
