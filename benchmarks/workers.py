"""What more processes bring to a search, and whether they find the same.

    EDGEPRESS_ZOO=DIR python benchmarks/workers.py [--models a,b] [--workers 1,2] [--objective size] [--out FILE]

Each model is compressed once for every number of processes, with nothing kept from run to run but the timings of the
first (`--timings`), so that the same choices are open to all. Exit code 1 where the model that comes out is another.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    chosen_models,
    compress,
    machine,
    samples,
    shown_command,
    versions,
    write_json,
    zoo_folder,
)


def arguments() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="comma-separated; default: all of the zoo")
    parser.add_argument("--workers", default="1,2", help="numbers of processes, comma-separated")
    parser.add_argument("--objective", default="size", help="as of compress")
    parser.add_argument("--out", type=Path, default=RESULTS / "workers.json", help="where the figures go")
    return parser


def run_once(zoo: Path, model: str, workers: int, objective: str, timings: Path) -> dict[str, Any]:
    """Seconds of one search, and the digest of what came out."""
    data, test = samples(zoo / model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        options = ["--data", data, "--test", test, "--target", "x86", "--objective", objective]
        run = compress(zoo, model, [*options, "--workers", str(workers), "--timings", str(timings)], out)
        if not (out / "report.json").is_file():
            raise SystemExit(f"{model}: compress ended with exit code {run.exit_code}: {run.told}")
        report = json.loads((out / "report.json").read_text("utf-8"))
        digest = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    stages = report["seconds"]
    searched = sum(stages.get(name, 0.0) for name in ("precision", "options", "search", "front"))
    return {
        "workers": workers,
        "search_seconds": round(searched, 1),
        "total_seconds": round(stages["total"], 1),
        "cpu_seconds": round(run.cpu_seconds, 1),
        "tool_peak_rss_mb": report["tool_peak_rss_bytes"] >> 20,
        "candidates": len(report["candidates"]),
        "sha256": digest,
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run all, print and store the figures; 1 where the same search gave another model."""
    given = arguments().parse_args(words)
    zoo, rows, same = zoo_folder(), {}, True
    for model in chosen_models(zoo, given.models):
        with tempfile.TemporaryDirectory() as folder:
            timings = Path(folder) / "timings.json"
            runs = [
                run_once(zoo, model, count, given.objective, timings)
                for count in map(int, given.workers.split(","))
            ]
        rows[model] = runs
        same &= len({run["sha256"] for run in runs}) == 1
        first = runs[0]["total_seconds"]
        told = (f"{r['workers']}: {r['total_seconds']} s ({first / r['total_seconds']:.2f}×)" for r in runs)
        print(f"{model}: {', '.join(told)}; {'same' if same else 'ANOTHER'} model", flush=True)
    command = shown_command("benchmarks/workers.py", sys.argv[1:] if words is None else words)
    write_json({"command": command, "machine": machine(), "versions": versions(), "models": rows}, given.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
