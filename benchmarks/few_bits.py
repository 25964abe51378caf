"""Weights of few bits on one model: size, agreement with the float model, time and memory, beside plain rounding.

    python benchmarks/few_bits.py FOLDER [--bits 8 5 4] [--out FILE]

FOLDER has `model.onnx`, samples to fit to in `calib.npz` or `images/calib`, and others to judge by in `test.npz` or
`images/test`. "Plain" is rounding to the nearest integer in the range of the weights, without samples for anything but
the ranges of activations. Each row is a recipe, applied in a process of its own: seconds are those of the passes alone,
the peak of memory is that of the process, beside what it was before them. The table goes to stdout, the numbers with
versions and command to `benchmarks/results/few_bits.json`, where other models stay.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common import write_json
from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.model import input_specs, load, to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.recipe import parse
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe

BATCH = 8
RESULTS = Path(__file__).parent / "results" / "few_bits.json"
PLAIN = 'rounding = "nearest"\nbias_correction = false\nweight_ranges = "minmax"\nspare = 0.0\n'


def recipes(bits: list[int]) -> dict[str, str]:
    """Recipes by name."""
    found = {}
    for kind, what in (("quantize", "weights {} and activations 8"), ("store", "weights {}")):
        for width in bits:
            text = f'[[pass]]\nkind = "{kind}"\nweight_bits = {width}\n'
            found[what.format(width) + ", plain"] = text + PLAIN
            found[what.format(width)] = text
    return found


def samples(folder: Path, name: str) -> Dataset:
    """The samples in a folder of images or an npz."""
    preprocess, images = folder / "preprocess.toml", folder / "images" / name
    specs = input_specs(load(folder / "model.onnx"))
    source = images if images.is_dir() else folder / f"{name}.npz"
    return open_data(source, specs, preprocess if preprocess.exists() else None)


def feeds(data: Dataset) -> Iterator[Feeds]:
    """All rows, some at a time."""
    for batch in data.batches(BATCH, np.arange(data.rows), with_labels=False):
        yield dict(batch.feeds)


def scores(model: bytes, data: Dataset) -> Array:
    """The first output on all rows [rows, classes]."""
    run = OrtEngine().load(model, 1)
    return np.concatenate([next(iter(run(batch).values())) for batch in feeds(data)])


def one(folder: Path, recipe: str, rows: int) -> dict[str, Any]:
    """Apply a recipe and look at what comes out."""
    original = normalize(load(folder / "model.onnx")).model
    calib, test = samples(folder, "calib"), samples(folder, "test")
    kept = np.arange(min(rows, calib.rows))

    def batches() -> Iterator[Feeds]:
        return (dict(b.feeds) for b in calib.batches(BATCH, kept, with_labels=False))

    context = Context(stream=Streamer(OrtEngine(), original, batches), rows=len(kept))
    wanted = scores(to_bytes(original), test)
    model = original.clone()
    loaded, started, busy = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), time.process_time()
    for step in parse(recipe):
        assert step.apply(model, context).changed, "the recipe changed nothing"
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = to_bytes(model)
    found = scores(data, test)
    top, five = wanted.argmax(1), np.argsort(-found, axis=1, kind="stable")[:, :5]
    return {
        "size_bytes": len(data),
        "agreement_percent": round(100 * float((found.argmax(1) == top).mean()), 2),
        "within_five_percent": round(100 * float((five == top[:, None]).any(1).mean()), 2),
        "relative_error": round(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)), 4),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_bytes": peak * 1024,
        "peak_before_bytes": loaded.ru_maxrss * 1024,
        "calibration_rows": len(kept),
        "test_rows": test.rows,
    }


def record(out: Path, folder: Path, rows: list[dict[str, Any]], command: str) -> None:
    """Put the rows of a model beside those of others."""
    kept = json.loads(out.read_text(encoding="utf-8"))["models"] if out.exists() else []
    kept = [model for model in kept if model["model"] != folder.name]
    size = (folder / "model.onnx").stat().st_size
    entry = {"model": folder.name, "size_bytes": size, "command": command, "recipes": rows}
    whole = {"environment": asdict(describe()), "models": sorted([*kept, entry], key=lambda m: m["model"])}
    write_json(whole, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 5, 4])
    parser.add_argument("--rows", type=int, default=500, help="most calibration rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.folder, options.one, options.rows)))
        return 0
    print(f"{'recipe':<36}{'MB':>8}{'agree':>8}{'in five':>8}{'error':>8}{'s':>8}{'cpu s':>8}{'peak MB':>9}")
    rows = []
    for name, recipe in recipes(options.bits).items():
        command = [
            sys.executable,
            __file__,
            str(options.folder),
            "--rows",
            str(options.rows),
            "--one",
            recipe,
        ]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = {"name": name, "recipe": recipe, **json.loads(answer.splitlines()[-1])}
        rows.append(row)
        print(
            f"{name:<36}{row['size_bytes'] / 1e6:>8.3f}{row['agreement_percent']:>8.1f}"
            f"{row['within_five_percent']:>8.1f}{row['relative_error']:>8.3f}{row['seconds']:>8.1f}"
            f"{row['cpu_seconds']:>8.1f}{row['peak_bytes'] / 1e6:>9.0f}",
            flush=True,
        )
    bits = " ".join(map(str, options.bits))
    shown = f"python benchmarks/few_bits.py {options.folder.name} --bits {bits} --rows {options.rows}"
    record(options.out, options.folder, rows, shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
