"""Every model of a zoo in 8 bits, as ONNX and as TFLite: whether both say the same, and how fast each is.

    EDGEPRESS_ZOO=DIR python benchmarks/tflite.py [--models a,b] [--seconds 10] [--out FILE]

The 8-bit pass alone (`compress --recipe`), fitted on the calibration rows, with sizes fixed to those of the samples;
the certificate of the TFLite file on the unseen ones. Then, in a process of its own, conversion by the clock and both
files timed in turns on one row with one thread. The table goes to stdout, the figures to
`benchmarks/results/tflite.json`. Every model must become a TFLite file that scores as its ONNX file does; those in
`BARS` must also be as alike and as fast as it says. The bars hold on a CPU with VNNI: without it onnxruntime's 8-bit
products saturate. Exit code 1 when a bar is missed. Names of models may stand here, but not in the tool.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common import (
    GIVE_UP,
    HERE,
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
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.model import input_specs, load
from peer_judge import open_samples

RECIPE = '[[pass]]\nkind = "quantize"\n'
POINTS = 0.1
"""Of the score may differ, or one row: percent, dB, or hundredths of a score between 0 and 1."""


@dataclass(frozen=True)
class Bar:
    """What a model must reach.

    Attributes:
        identical_percent: numbers that are the same in both files.
        ratio: latency of the TFLite file to that of the ONNX file, at most.
        seconds: of conversion, at most.
    """

    identical_percent: float
    ratio: float = float("inf")
    seconds: float = float("inf")


BARS = {
    "efficientnet_lite0": Bar(99.9, 1.05, 1.0),
    "fmnist_vgg": Bar(99.9, 1.05),
    "fmnist_resnet8": Bar(98),
    "fmnist_dscnn": Bar(98),
    "voice_lang_dscnn": Bar(98),
}
"""These also have one delegate's piece, no TRANSPOSE but before a flatten, and no number over a step apart."""
OPTIONS = {"efficientnet_lite0": ("--metric", "agreement")}
"""Options other than the default metric."""


@dataclass
class Row:
    """One model; `misses` is empty where all bars are met.

    Attributes:
        model: its name.
        tflite: of the report: what the file holds, its certificate, or why there is none.
        judged: as `tflite_judge.py` gives it.
        metric: of the scores.
        n_test: unseen rows.
        size_bytes: of the ONNX file, and of the TFLite file.
        original_score: of the model before the pass.
        misses: of its bars.
    """

    model: str
    tflite: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    n_test: int = 0
    size_bytes: tuple[int, int] = (0, 0)
    original_score: float | None = None
    misses: list[str] = field(default_factory=list)

    @property
    def certificate(self) -> dict[str, Any]:
        """Of the report; empty where there is none."""
        return self.tflite.get("certificate") or {}

    @property
    def identical_percent(self) -> float | None:
        """Of the output that has the fewest."""
        return min((one["identical_percent"] for one in self.certificate.get("outputs", ())), default=None)

    @property
    def same_class_percent(self) -> float | None:
        """Likewise; None where no output is a vector of scores."""
        found = (one["same_class_percent"] for one in self.certificate.get("outputs", ()))
        return min((share for share in found if share is not None), default=None)

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """Of the ONNX file, and of the TFLite file."""
        return self.certificate.get("onnx_score"), self.certificate.get("score")


def run(zoo: Path, model: str, seconds: float) -> Row:
    """Quantize, convert, compare and time one model."""
    row, (data, test) = Row(model), samples(zoo / model)
    with tempfile.TemporaryDirectory() as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "out"
        recipe.write_text(RECIPE, "utf-8")
        given = ["--recipe", str(recipe), "--data", data, "--test", test, "--target", "x86"]
        try:
            sizes = fixed_sizes(zoo / model)
        except EdgepressError as error:
            row.misses.append(str(error))
            return row
        ran = compress(zoo, model, [*given, *sizes, *OPTIONS.get(model, ())], out)
        if ran.exit_code not in {0, 1}:
            row.misses.append(f"compress ended with exit code {ran.exit_code}: {ran.told.strip()[-300:]}")
            return row
        report = json.loads((out / "report.json").read_text("utf-8"))
        row.tflite, row.metric, row.n_test = report["tflite"] or {}, report["metric"], report["n_test"]
        row.original_score = report["baseline"]["score"]
        row.size_bytes = ((out / "model.onnx").stat().st_size, row.tflite.get("size_bytes") or 0)
        script = [sys.executable, str(HERE / "tflite_judge.py"), str(zoo / model), str(out / "model.onnx")]
        done = subprocess.run(
            [*script, str(seconds)], check=False, capture_output=True, text=True, timeout=GIVE_UP
        )
    if done.returncode:
        row.judged = {"failure": f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"}
    else:
        row.judged = json.loads(done.stdout)
    row.misses += missed(row, BARS.get(model))
    return row


def fixed_sizes(folder: Path) -> list[str]:
    """`--shape` with the samples' sizes for inputs that have free ones beyond the batch: TFLite wants them fixed.

    Args:
        folder: of the model and its samples.
    """
    feeds = next(iter(open_samples(folder)[0].batches(1, with_labels=False))).feeds
    found = []
    for spec in input_specs(load(folder / "model.onnx")):
        if not all(isinstance(size, int) for size in (spec.shape or (None, None))[1:]):
            found += ["--shape", f"{spec.name}={','.join(map(str, feeds[spec.name].shape))}"]
    return found


def missed(row: Row, bar: Bar | None) -> Iterator[str]:
    """Names of the bars that a model misses.

    Args:
        row: the model.
        bar: of its own; None for the ones that all models have.
    """
    if reason := row.tflite.get("reason") or row.tflite.get("unproven") or row.judged["failure"]:
        yield reason
        return
    before, after = row.scores
    if before is None or after is None:
        yield "no score"
    elif abs(after - before) > allowed(row) + 1e-9:
        yield f"score {after:.4g} instead of {before:.4g}"
    if row.certificate["differing"]:
        yield "other scales"
    if bar is not None:
        yield from _missed(row, bar)


def _missed(row: Row, bar: Bar) -> Iterator[str]:
    identical = row.identical_percent or 0.0
    if identical < bar.identical_percent:
        yield f"bit-identical < {bar.identical_percent:g} %"
    for output in row.certificate["outputs"]:
        steps = output["largest_steps"]
        if output["identical_percent"] < 100 and (steps is None or steps > 1.001):
            yield f"{output['name']} over a step apart"
    if row.judged["other_transposes"]:
        yield f"{row.judged['other_transposes']} TRANSPOSE"
    if row.certificate["partitions"] != 1:
        yield f"{row.certificate['partitions']} pieces"
    if row.judged["ratio"] > bar.ratio:
        yield f"latency > {bar.ratio:g} ×"
    if row.judged["convert_seconds"] >= bar.seconds:
        yield f"conversion ≥ {bar.seconds:g} s"


def allowed(row: Row) -> float:
    """By how much the scores of the two files may differ, in units of the metric."""
    if row.metric.partition(":")[0] in {"top1", "top5", "agreement"}:
        return max(POINTS, 100 / row.n_test)
    return POINTS if row.metric.startswith("psnr") else POINTS / 100


def table(rows: Sequence[Row]) -> Table:
    """All rows for the terminal."""
    names = (
        "model",
        "same bits %",
        "steps",
        "same class %",
        "ONNX",
        "TFLite",
        "TRANSPOSE",
        "pieces",
        "outside",
    )
    made = Table(box=None, pad_edge=False)
    for name in (*names, "convert ms", "ONNX µs", "TFLite µs", "ratio", ""):
        made.add_column(name, justify="left" if name in {"model", ""} else "right")
    for row in rows:
        text = Text("; ".join(row.misses) or "pass", style="red" if row.misses else "green")
        made.add_row(row.model, *(cells(row) or [""] * 12), text)
    return made


def cells(row: Row) -> list[str]:
    """What stands in a line of the table; nothing where there is no certificate."""
    found, timed = row.certificate, row.judged
    if not found or timed.get("failure", "?"):
        return []
    steps = [one["largest_steps"] for one in found["outputs"] if one["largest_steps"] is not None]
    outside = sum((found["outside"] or {}).values())
    before, after = timed["latency_ns"]
    shares = [
        None if value is None else round(value, 3)
        for value in (row.identical_percent, row.same_class_percent)
    ]
    return [
        *(
            "–" if value is None else f"{value:g}"
            for value in (shares[0], max(steps, default=None), shares[1])
        ),
        *("–" if score is None else f"{score:.4g}" for score in row.scores),
        *(str(value) for value in (row.tflite["transposes"], found["partitions"], outside)),
        f"{1000 * timed['convert_seconds']:.0f}",
        *(f"{value / 1000:.1f}" for value in (before, after)),
        f"{timed['ratio']:.2f}",
    ]


def arguments() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="comma-separated; default: all of the zoo")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time limit of the timing of a pair of files"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "tflite.json", help="where the figures go")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run all, print and store the figures; 1 where a bar is missed."""
    given = arguments().parse_args(words)
    zoo, rows = zoo_folder(), []
    about = {
        "command": shown_command("benchmarks/tflite.py", sys.argv[1:] if words is None else words),
        "machine": machine(),
        "versions": versions() | {"ai-edge-litert": metadata.version("ai-edge-litert")},
    }
    for model in chosen_models(zoo, given.models):
        rows.append(run(zoo, model, given.seconds))
        said = "; ".join(rows[-1].misses) or "pass"
        sys.stderr.write(f"{model}: {said}\n")
    console = Console(width=max(160, Console().width))
    console.print(table(rows))
    derived = [
        asdict(row)
        | {"identical_percent": row.identical_percent, "same_class_percent": row.same_class_percent}
        for row in rows
    ]
    write_json(about | {"recipe": RECIPE, "rows": derived}, given.out)
    return 1 if any(row.misses for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
