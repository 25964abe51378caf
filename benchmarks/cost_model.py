"""Predicted latency beside measured latency, by the table of a profile made here and by rates alone.

    compress devices profile --name here
    python benchmarks/cost_model.py ZOO --target here [--rows 64] [--only NAME …]

ZOO (or EDGEPRESS_ZOO) holds folders with `model.onnx` and samples in `calib.npz` or `images/calib`. Of each net: as it
came (normalised), split (low rank, 95 % of the energy), both in 8 bits by our pass, and in 8 bits by onnxruntime. All
forms of a net are timed interleaved, one thread, one row. `table` is the profile; `rates` the same profile's rates, as
the sweep found them; `shipped` the rates that this machine has without a sweep. The clock is the sweep's: that of the
thread, so that other programs on the machine matter less; figures are medians of rounds.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from quantize_speed import Batches, read, theirs
from scipy import stats

from common import write_json
from edgepress.compressor.cli.host import CheckedEngine
from edgepress.compressor.cli.targets import find_target
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.model import load, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.low_rank import LowRank
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.predict import predicted_ns
from edgepress.compressor.protocols import Feeds, Target
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.serialize import parse
from edgepress.devices.profile import local_profile
from edgepress.devices.sweep import clock_of
from edgepress.runtime.environment import describe
from edgepress.runtime.measure import measure

RESULTS = Path(__file__).parent / "results" / "cost_model.json"
LARGE = 10_000_000
"""Bytes of a file from which a net is not split: that takes minutes."""
BASES = ("table", "rates", "shipped")


def forms(path: Path, batches: Batches) -> Iterator[tuple[str, bytes]]:
    """The forms of one net, serialized; what a pass cannot treat is left out."""
    original = normalize(load(path)).model
    yield "fp32", to_bytes(original)
    rows = sum(len(next(iter(b.values()))) for b in batches)
    context = Context(stream=Streamer(CheckedEngine(), original, lambda: iter(batches)), rows=rows)
    recipes: dict[str, tuple[Pass, ...]] = {"int8": (Quantize(),)}
    if path.stat().st_size < LARGE:
        recipes["low rank"] = (LowRank(energy=0.95),)
        recipes["low rank int8"] = (*recipes["low rank"], Quantize())
    for name, recipe in recipes.items():
        model = original.clone()
        if all(each.apply(model, context).changed for each in recipe):
            yield name, to_bytes(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        try:
            theirs(path, batches, out)
        except Exception as error:  # a peer that cannot quantize a net is no reason to stop
            print(
                f"{path.parent.name}: onnxruntime cannot quantize it ({type(error).__name__})",
                file=sys.stderr,
            )
        else:
            yield "onnxruntime int8", out.read_bytes()


def rows_of(folder: Path, count: int, targets: dict[str, Target], seconds: float) -> list[dict[str, Any]]:
    """Measured and predicted latency of each form of a net."""
    batches = read(folder, count)
    one: Feeds = {name: array[:1] for name, array in batches[0].items()}
    named = dict(forms(folder / "model.onnx", batches))
    found = measure(list(named.values()), one, time_limit_s=seconds, precision=0.005, clock=clock_of(1))
    rows = []
    for (form, data), timing in zip(named.items(), found, strict=True):
        model = parse(data)
        shapes = shapes_in_one_run(model, CheckedEngine(), one)
        predicted = {base: round(predicted_ns(model, shapes, target)) for base, target in targets.items()}
        rows.append({"model": folder.name, "form": form, "ns": timing.median_ns, **predicted})
    return rows


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By basis: rank correlation, median relative error, and that of how much faster each form is than fp32."""
    whole = {row["model"]: row for row in rows if row["form"] == "fp32"}
    found = {}
    for base in BASES:
        measured, predicted = (np.array([row[key] for row in rows], float) for key in ("ns", base))
        gains = np.array(
            [
                (row[base] / whole[row["model"]][base]) / (row["ns"] / whole[row["model"]]["ns"])
                for row in rows
                if row["form"] != "fp32"
            ]
        )
        found[base] = {
            "spearman": round(float(stats.spearmanr(measured, predicted).statistic), 4),
            "median_relative_error": round(float(np.median(np.abs(predicted / measured - 1))), 4),
            "p90_relative_error": round(float(np.quantile(np.abs(predicted / measured - 1), 0.9)), 4),
            "median_error_of_gain": round(float(np.median(np.abs(gains - 1))), 4),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("zoo", nargs="?", default=os.environ.get("EDGEPRESS_ZOO"))
    parser.add_argument("--target", required=True, help="profile with a table, made on this machine")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="for timing one net")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.zoo is None:
        parser.error("name the zoo folder, or set EDGEPRESS_ZOO")
    logging.disable(logging.WARNING)
    here = find_target(options.target)
    if here.table is None:
        parser.error("the profile has no table: make one with `compress devices profile`")
    targets: dict[str, Target] = {
        "table": here, "rates": replace(here, table=None), "shipped": local_profile(describe()),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    print(f"{'model':<22}{'form':<18}{'measured, µs':>13}" + "".join(f"{base:>10}" for base in BASES))
    for folder in sorted(path.parent for path in Path(options.zoo).glob("*/model.onnx")):
        if options.only and folder.name not in options.only:
            continue
        try:
            found = rows_of(folder, options.rows, targets, options.seconds)
        except EdgepressError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
            continue
        rows += found
        for row in found:
            shares = "".join(f"{row[base] / row['ns']:>9.2f}×" for base in BASES)
            print(f"{row['model']:<22}{row['form']:<18}{row['ns'] / 1000:>13.1f}{shares}", flush=True)
    summary = figures(rows)
    print(json.dumps(summary, indent=1))
    record = {
        "command": f"python benchmarks/cost_model.py ZOO --target here --rows {options.rows} "
        f"--seconds {options.seconds:g}",
        "rows": options.rows, "threads": 1, "environment": asdict(describe()), "summary": summary, "results": rows,
    }  # fmt: skip
    write_json(record, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
