"""Sparse evolutionary training beside dense training: the tables of Chouliaras 2021, chapter 5.

    python benchmarks/evolve.py --samples FOLDER [--sets orl,…] [--methods set,…] [--repeats 3] [--epochs N]

FOLDER holds `NAME.npz` with x_train, y_train, x_test and y_test for each set. Every training is a run of
`compress evolve` in a process of its own, with the settings of appendix B but for what `SETS` says, and is stored as
soon as it is over: a second call goes on where the first was stopped, with `--work DIR` in the middle of a run, too, by
its checkpoint there. A run with another number of epochs is another run. Per set and method the table has

    accuracy    of model.onnx on the test rows, in percent; mean over the seeds with its 95 % interval (Student's t)
    weights     of the result, with biases; compression: dense / those
    epoch       seconds, median over epochs and seeds, training and evolution
    inference   one row, model.onnx of the dense net by onnxruntime beside model-sparse.npz, timed in turns, one thread

and goes to stdout; all figures, curves included, to `benchmarks/results/evolve.json`. LUNG is not among the sets.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from common import RESULTS, machine, shown_command, versions, write_json
from edgepress.compressor.evolve.schedules import METHODS
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.engines.sparse import SparseEngine
from edgepress.runtime.measure import measure, ratio_interval

MAIN = "from edgepress.compressor.cli import main; main()"


@dataclass(frozen=True)
class Set:
    """A data set with its net.

    Attributes:
        file: of the samples, without `.npz`.
        layers: the net.
        options: where it is trained differently from the defaults.
    """

    file: str
    layers: str
    options: tuple[str, ...] = ()


# With two samples a step, the thesis's rate of 0.01 diverges on sets of standardised, correlated features.
SMALL = ("--batch", "2", "--learning-rate", "0.001")
# Sparse nets underfit at the thesis's rate of dropout and step.
IMAGES = ("--dropout", "0.1", "--learning-rate", "0.05", "--flip")
SETS = {
    "fmnist": Set("fmnist", "784,1000,1000,1000,10", IMAGES),
    "orl": Set("orl", "1024,1000,1000,1000,40", SMALL),
    "prostate_ge": Set("prostate_ge", "5966,1000,1000,1000,2", SMALL),
    "glioma": Set("glioma", "4434,1000,1000,1000,4", SMALL),
    "fmnist-4000-1000-4000": Set("fmnist", "784,4000,1000,4000,10", ("--shift", "2", "--flip")),
    "fmnist-4000x4": Set("fmnist", "784,4000,4000,4000,4000,10"),
}


def arguments() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=3, help="seeds, from 0")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every training")
    parser.add_argument("--epochs", type=int, default=500, help="of every training")
    parser.add_argument(
        "--work", type=Path, help="folder for models and checkpoints (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "evolve.json", help="where the figures go")
    return parser


def named(given: str, known: Sequence[str]) -> list[str]:
    """The names of a comma-separated list; ends the script where one is unknown."""
    names = given.split(",")
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def unpack(samples: Path, name: str, work: Path) -> tuple[Path, Path]:
    """A set as the two files that `compress evolve` takes."""
    paths = work / f"{name}-train.npz", work / f"{name}-test.npz"
    if not all(path.exists() for path in paths):
        with np.load(samples / f"{name}.npz", allow_pickle=False) as file:
            for path, part in zip(paths, ("train", "test"), strict=True):
                np.savez(path, x=file[f"x_{part}"], y=file[f"y_{part}"])
    return paths


def train(
    name: str, method: str, seed: int, epochs: int, threads: int, samples: Path, work: Path
) -> dict[str, Any]:
    """One training; its models stay in `work`."""
    of = SETS[name]
    data, test = unpack(samples, of.file, work)
    out = work / f"{name}-{method}-{epochs}-{seed}"
    words = ["evolve", "--data", str(data), "--test", str(test), "--layers", of.layers, *of.options]
    words += [
        "--method",
        method,
        "--epochs",
        str(epochs),
        "--seed",
        str(seed),
        "--threads",
        str(threads),
        "--out",
        str(out),
    ]
    if out.with_name(f"{out.name}.checkpoint.npz").exists():
        words.append("--resume")
    load = round(os.getloadavg()[0], 2)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words, "--json"], capture_output=True, text=True, check=False
    )
    row: dict[str, Any] = {"set": name, "method": method, "seed": seed, "epochs": epochs, "load_1min": load}
    if done.returncode == 2 and "diverged" in done.stderr:
        return row | {"diverged": done.stderr.splitlines()[0]}
    if done.returncode:
        raise SystemExit(f"{name} {method} {seed}: exit code {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout)
    kept = (
        "test_accuracy weights trained_weights dense_weights compression seconds_per_epoch evolution_seconds "
        "memory_peak_bytes process_peak_bytes widths kernels threads size_bytes settings"
    )
    return row | {
        **{key: found[key] for key in kept.split()},
        "accuracy": [round(each["accuracy"], 2) for each in found["epochs"]],
        "loss": [None if each["loss"] is None else round(each["loss"], 4) for each in found["epochs"]],
        "zeta": [round(each["zeta"], 4) for each in found["epochs"]],
        "degrees": [
            {k: each[k] for k in ("layer", "side", "exponent", "minimum", "p", "verdict")}
            for each in found["degrees"]
        ],
    }


def inference(name: str, method: str, seed: int, epochs: int, work: Path) -> dict[str, Any] | None:
    """Nanoseconds of one row by the dense net's ONNX file and by a sparse file, in turns; None without both."""
    dense = work / f"{name}-dense-{epochs}-{seed}" / "model.onnx"
    sparse = work / f"{name}-{method}-{epochs}-{seed}" / "model-sparse.npz"
    if method == "dense" or not dense.exists() or not sparse.exists():
        return None
    with np.load(unpack(work, SETS[name].file, work)[1], allow_pickle=False) as file:
        feeds = {"input": file["x"][:1].astype(np.float32)}
    one, two = measure([dense, sparse], feeds, engine=[OrtEngine(), SparseEngine()], time_limit_s=10)
    return {
        "dense_ns": one.median_ns,
        "sparse_ns": two.median_ns,
        "ratio": two.median_ns / one.median_ns,
        "ratio_ci95": list(ratio_interval(two, one)),
    }


def interval(values: Sequence[float]) -> str:
    """Mean ± half the 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {half:.2f}"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, one a set, method and number of epochs."""
    heads = (
        "set, method, epochs, seeds, accuracy in %, weights, compression, s / epoch, inference sparse / dense"
    )
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * 9 + "|"]
    for key in dict.fromkeys((row["set"], row["method"], row["epochs"]) for row in rows):
        group = [row for row in rows if (row["set"], row["method"], row["epochs"]) == key]
        good = [row for row in group if "test_accuracy" in row]
        start = f"| {key[0]} | {key[1]} | {key[2]} | {len(good)} |"
        if not good:
            lines.append(f"{start} diverged | | | | |")
            continue
        timed = [row["inference"]["ratio"] for row in good if row.get("inference")]
        lines.append(
            f"{start} {interval([row['test_accuracy'] for row in good])} | "
            f"{statistics.fmean(row['weights'] for row in good):,.0f} | "
            f"{statistics.fmean(row['compression'] for row in good):.1f}× | "
            f"{statistics.median(row['seconds_per_epoch'] for row in good):.2f} | "
            f"{f'{statistics.median(timed):.2f}' if timed else '–'} |"
        )
    return lines


def main(words: Sequence[str]) -> None:
    """Run what is not stored yet, and print the table."""
    given = arguments().parse_args(words)
    sets, methods = named(given.sets, list(SETS)), named(given.methods, METHODS)
    stored: dict[str, Any] = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {"runs": []}
    runs: list[dict[str, Any]] = stored["runs"]
    known = {(row["set"], row["method"], row["seed"], row["epochs"]) for row in runs}
    stored |= {"machine": machine(), "versions": versions()}
    command = shown_command("python benchmarks/evolve.py", words, ("--samples", "--work", "--out"))
    stored["commands"] = list(dict.fromkeys([*stored.get("commands", []), command]))
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for seed in range(given.repeats):
            for name in sets:
                for method in sorted(
                    methods, key=lambda each: each != "dense"
                ):  # dense first: it is timed beside
                    if (name, method, seed, given.epochs) in known:
                        continue
                    row = train(name, method, seed, given.epochs, given.threads, given.samples, work)
                    if timed := inference(name, method, seed, given.epochs, work):
                        row["inference"] = timed
                    runs.append(row)
                    write_json(stored, given.out)
                    sys.stderr.write(f"{name} {method} {seed}: {row.get('test_accuracy', 'diverged')}\n")
    sys.stdout.write("\n".join(table(runs)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
