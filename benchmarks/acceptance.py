"""Run `compress` on every model of a zoo and hold the results against bars.

    EDGEPRESS_ZOO=DIR python benchmarks/acceptance.py [--models a,b] [--objective latency|size|both] [--quick]

DIR holds folders with `model.onnx` and samples (`calib.npz`, `test.npz` or `images/calib`, `images/test`);
without EDGEPRESS_ZOO it is the repository's own `benchmarks/zoo`. Every model must exit 0 or 1 and come out
loadable, with the same interface, not larger and not slower; those in `BARS` must also be as small and as
fast as it says. Sizes, interfaces and (where samples have labels) scores are taken from the written files,
latencies and memory from `report.json`. Exit code 1 when a bar is missed. Names of models may stand here, but
not in the tool.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common import (
    HERE,
    OWN_ZOO,
    RESULTS,
    chosen_models,
    compress,
    known_models,
    machine,
    samples,
    shown_command,
    size_on_disk,
    versions,
    write_json,
    zoo_folder,
)

SLACK = 1.02
"""A model counts as slower when its median is above the original's times this and the intervals are apart."""
SECONDS = 60.0
"""A run of a small net may take so long."""
PEAK_MB = 2048.0


@dataclass(frozen=True)
class Bar:
    """What a model must reach: × smaller, × faster, % of the score kept (or rows lost), × smaller by size."""

    smaller: float = 1.0
    faster: float = 0.0
    smaller_for_size: float = 1.0
    kept_percent: float = 98.0
    rows_lost: int | None = None
    seconds: float = SECONDS


BARS = {
    "mnist_mlp1000": Bar(25, 10, 80),
    "mnist_lenet5": Bar(25, 4.5, 70),
    "orl_cnn": Bar(25, 4, 70, rows_lost=3),
    "fmnist_vgg": Bar(18, 3.6, 22),
    "fmnist_resnet8": Bar(5, 1.5, 6.5),
    "fmnist_dscnn": Bar(2, 1.15, 5.5),
    "efficientnet_lite0": Bar(3.6, 1.9, 3.8, kept_percent=91, seconds=360),
}
OPTIONS = {"efficientnet_lite0": ("--metric", "agreement", "--budget", "9")}
"""Options other than `--budget 2` and the default metric."""
AGAIN = {"fmnist_convae": ("psnr", ("--metric", "psnr"))}
"""A further run with other options."""
SHORTFALLS = ("smaller <", "faster <", "over ", "kept <")
"""Misses of degree: `--quick`, which CI runs on whatever machine there is, shows them and fails for others alone."""

QUICK = (
    "digits_cnn", "fmnist_cnn", "fmnist_resnet", "mnist_mlp", "italypower_cnn1d", "mtcnn_rnet", "mnist_lenet5",
)  # fmt: skip


@dataclass
class Row:
    """One run of `compress` and what came of it; `misses` is empty where all bars are met."""

    model: str
    run: str
    command: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    verdict: str = ""
    cost_kind: str = ""
    size_bytes: tuple[int, int] = (0, 0)
    latency_ns: tuple[float, float] = (0.0, 0.0)
    latency_ci95_ns: tuple[tuple[float, float], ...] = ()
    score: tuple[float | None, float | None] = (None, None)
    metric: str = ""
    n_test: int = 0
    misses: list[str] = field(default_factory=list)

    @property
    def smaller(self) -> float:
        """Bytes before over bytes after."""
        return self.size_bytes[0] / self.size_bytes[1] if self.size_bytes[1] else 0.0

    @property
    def faster(self) -> float:
        """Latency before over latency after."""
        return self.latency_ns[0] / self.latency_ns[1] if self.latency_ns[1] else 0.0

    @property
    def kept(self) -> float | None:
        """Score after in percent of the score before."""
        before, after = self.score
        return 100 * after / before if before and after is not None else None


def read_report(row: Row, out: Path) -> None:
    """Fill in what `report.json` says."""
    report = json.loads((out / "report.json").read_text("utf-8"))
    before, after = report["baseline"], report["compressed"]
    row.verdict, row.cost_kind, row.metric = report["verdict"], report["cost_kind"], report["metric"]
    row.seconds = report["seconds"]["total"]
    row.peak_mb = max(row.peak_mb, report["tool_peak_rss_bytes"] / 2**20)
    row.score, row.n_test = (before["score"], after["score"]), report["n_test"]
    row.latency_ns = (before["latency_ns_median"] or 0.0, after["latency_ns_median"] or 0.0)
    if before["latency_ns_ci95"] and after["latency_ns_ci95"]:
        row.latency_ci95_ns = (tuple(before["latency_ns_ci95"]), tuple(after["latency_ns_ci95"]))
    if report["exit_code"] != row.exit_code:
        row.misses.append(f"exit code {row.exit_code}, the report says {report['exit_code']}")


def interface(path: Path) -> list[tuple[str, str, int, tuple[int | str, ...]]]:
    """Names, types and dimensions of inputs and outputs; unnamed (or negative) dynamic dimensions as `?`."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = []
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            dims = tuple(max(d.dim_value, 0) or d.dim_param or "?" for d in tensor.shape.dim)
            if value.name not in weights:
                found.append((kind, value.name, tensor.elem_type, dims))
    return found


def right_rows(path: Path, data: Path) -> tuple[int, int] | None:
    """Rows whose largest score is at the label, and all rows; None without labels for each row.

    The model is loaded in either case: what onnxruntime refuses is an error, with samples or without.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if not data.exists():  # images: the report's own score stands
        return None
    with np.load(data, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    labels = arrays.pop("y", None)
    (entry, *others), (x, *_) = session.get_inputs(), arrays.values()
    if labels is None or labels.ndim != 1 or others:
        return None
    kind = np.uint8 if entry.type == "tensor(uint8)" else np.float32
    right = 0
    for start in range(0, len(x), 64):
        scores = np.asarray(session.run(None, {entry.name: x[start : start + 64].astype(kind)})[0])
        if scores.ndim != 2:
            return None
        right += int((scores.argmax(1) == labels[start : start + 64]).sum())
    return right, len(x)


def check(row: Row, bar: Bar, zoo: Path, out: Path) -> None:
    """Note every bar that is missed.

    Args:
        row: what ran; `misses` is added to.
        bar: of the model.
        zoo: with the original.
        out: with the result.
    """
    wanted = (4,) if row.run == "arm, no data" else (0, 1)
    if row.exit_code not in wanted:
        row.misses.append(f"exit {row.exit_code}, not {' or '.join(map(str, wanted))}")
    if not (out / "model.onnx").exists():
        row.misses.append("no model was written")
        return
    read_report(row, out)
    before, after = zoo / row.model / "model.onnx", out / "model.onnx"
    row.size_bytes = (size_on_disk(before), size_on_disk(after))
    right: list[tuple[int, int] | None] = [None, None]
    try:
        right = [right_rows(path, zoo / row.model / "test.npz") for path in (before, after)]
        if interface(before) != interface(after):
            row.misses.append("another interface")
    except Exception as error:  # whatever onnxruntime throws is a miss of this model, not of this script
        row.misses.append(f"onnxruntime does not run the result: {str(error)[:120]}")
    row.misses += _missed(row, bar, right)


def _missed(row: Row, bar: Bar, right: Sequence[tuple[int, int] | None]) -> Iterator[str]:
    if row.size_bytes[1] > row.size_bytes[0]:
        yield "larger"
    intervals = row.latency_ci95_ns
    apart = len(intervals) == 2 and intervals[1][0] > intervals[0][1]
    if apart and row.latency_ns[1] > SLACK * row.latency_ns[0]:
        yield "slower"
    if row.peak_mb > PEAK_MB:
        yield f"over {PEAK_MB:.0f} MB"
    if row.seconds > bar.seconds:
        yield f"over {bar.seconds:.0f} s"
    if row.run.startswith("arm"):
        if row.cost_kind != "predicted":
            yield f"costs are {row.cost_kind}, not predicted"
        return
    smaller = bar.smaller_for_size if row.run == "size" else bar.smaller
    if row.smaller < smaller:
        yield f"smaller < {smaller:g}×"
    if row.run == "latency" and row.faster < bar.faster:
        yield f"faster < {bar.faster:g}×"
    if row.model in BARS and bar.rows_lost is None and (row.kept or 0.0) < bar.kept_percent:
        yield f"kept < {bar.kept_percent:g} %"
    if row.verdict != ("kept" if row.exit_code == 0 else "broken"):
        yield f"verdict {row.verdict} with exit {row.exit_code}"
    if row.metric == "top1" and right[0] is not None and right[1] is not None:
        ours = [100 * count / rows for count, rows in (right[0], right[1])]
        if max(abs(a - (b or 0.0)) for a, b in zip(ours, row.score, strict=True)) > 100 / right[0][1] + 1e-6:
            yield f"report says {row.score[1]:.2f} %, onnxruntime {ours[1]:.2f} %"
        if bar.rows_lost is not None and right[0][0] - right[1][0] > bar.rows_lost:
            yield f"{right[0][0] - right[1][0]} rows lost, not at most {bar.rows_lost}"


def plan(models: Sequence[str], zoo: Path, objective: str, arm: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Model, name of the run, options: all that is to be run."""
    for model in models:
        data, test = samples(zoo / model)
        given = ["--data", data, "--test", test]
        usual = ["--target", "x86", *given, *OPTIONS.get(model, ("--budget", "2"))]
        if objective != "size":
            yield model, "latency", usual
            if model in AGAIN:
                name, more = AGAIN[model]
                yield model, name, [*usual, *more]
        if objective != "latency" and (model in BARS or zoo == OWN_ZOO):
            yield model, "size", [*usual, "--objective", "size"]
        if arm:
            there = ["--target", "arm", "--no-device"]  # on the emulated core: emulated.py
            yield model, "arm", [*there, *given, *OPTIONS.get(model, ())]
            yield model, "arm, no data", there


def table(rows: Sequence[Row]) -> Table:
    """All rows for the terminal."""
    made = Table(box=None, pad_edge=False)
    for name in ("model", "run", "smaller ×", "faster ×", "score kept %", "s", "peak MB", "bars", ""):
        made.add_column(name, justify="left" if name in ("model", "run", "bars", "") else "right")
    for row in rows:
        bar = BARS.get(row.model)
        bars = {"latency": "{0.smaller:g}× {0.faster:g}×", "size": "{0.smaller_for_size:g}×"}.get(row.run, "")
        made.add_row(
            row.model,
            row.run,
            f"{row.smaller:.2f}",
            f"{row.faster:.2f}",
            "" if row.kept is None else f"{row.kept:.2f}",
            f"{row.seconds:.0f}",
            f"{row.peak_mb:.0f}",
            bars.format(bar) if bar else "",
            Text("; ".join(row.misses) or f"pass, {row.verdict}", style="red" if row.misses else "green"),
        )
    return made


def quantize_speed(zoo: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    """Our plain 8-bit run beside onnxruntime's, by `quantize_speed.py`; its rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        script = [
            sys.executable,
            str(HERE / "quantize_speed.py"),
            str(zoo),
            "--out",
            str(out),
            "--only",
            *models,
        ]
        done = subprocess.run(script, check=False, stdout=subprocess.DEVNULL)
        if done.returncode or not out.exists():
            raise SystemExit("quantize_speed.py failed; see above")
        found: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))["results"]
        return found


def store(rows: Sequence[Row], speed: Sequence[dict[str, Any]], path: Path, about: dict[str, Any]) -> None:
    """Write everything as JSON."""
    derived = [
        asdict(r) | {"smaller": round(r.smaller, 3), "faster": round(r.faster, 3), "kept_percent": r.kept}
        for r in rows
    ]
    document = {**about, "versions": versions(), "rows": derived, "quantize_speed": list(speed)}
    write_json(document, path)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hold compress against the bars, model by model.")
    parser.add_argument("--models", help="comma-separated names (default: all of the zoo)")
    parser.add_argument("--objective", choices=("latency", "size", "both"), default="both")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/…)")
    parser.add_argument("--quick", action="store_true", help="the small nets, without the speed comparison")
    parser.add_argument("--no-arm", action="store_true", help="leave out the runs with --target arm")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    zoo = zoo_folder()
    models = chosen_models(zoo, given.models)
    if given.quick and not given.models:
        models = [model for model in known_models(zoo) if model in QUICK]
    command = shown_command("benchmarks/acceptance.py", list(sys.argv[1:] if argv is None else argv))
    about = {"command": command, "machine": machine()}
    console = Console(width=max(120, Console().width))
    rows = []
    for model, run, options in plan(models, zoo, given.objective, not given.no_arm):
        with tempfile.TemporaryDirectory() as folder:
            ran = compress(zoo, model, options, Path(folder) / "out")
            row = Row(model, run, ran.command, ran.exit_code, ran.seconds, ran.cpu_seconds, ran.peak_mb)
            check(row, BARS.get(model, Bar()), zoo, Path(folder) / "out")
        rows.append(row)
        Console(stderr=True).print(
            Text(f"{model}, {run}: {'; '.join(row.misses) or 'pass'} ({row.seconds:.0f} s)")
        )
        if row.misses:
            sys.stderr.write(ran.told)
    plain = [model for model in models if model in BARS or zoo == OWN_ZOO]
    speed = quantize_speed(zoo, plain) if plain and not given.quick else []
    console.print(table(rows))
    for one in speed:
        console.print(Text(f"8 bits, {one['model']}: {one['ratio']:.2f} of onnxruntime's time"))
    slow = [one["model"] for one in speed if one["ratio"] > 1]
    if given.out or not given.quick:
        out = given.out or RESULTS / ("own_models.json" if zoo == OWN_ZOO else "acceptance.json")
        store(rows, speed, out, about)
    missed = [m for row in rows for m in row.misses if not (given.quick and m.startswith(SHORTFALLS))]
    return 1 if slow or missed else 0


if __name__ == "__main__":
    sys.exit(main())
