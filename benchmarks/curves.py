"""What each technique alone does to real nets: score against size, multiply-accumulates and measured latency.

    python benchmarks/curves.py [MODEL …] [--only TECHNIQUE …] [--fresh] [--draw]

MODEL is a folder with `model.onnx`, `calib.npz` and `test.npz` (default: those of `benchmarks/zoo`). Each
point is one run of the main job with a recipe of one pass: fitted to the calibration samples without their
labels, judged on unseen rows, timed interleaved with the original on one thread. Points are stored in
`benchmarks/results/curves.json` as they come, so that a second run goes on where the first one ended
(`--fresh` measures again); the pictures go to `docs/techniques/pictures`, and the best points within the usual
budget to the table of `docs/techniques/README.md`. `--draw` only draws.
"""

import argparse
import json
import re
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import JsonValue
from rich.progress import Progress

from common import write_json
from edgepress.compressor import compress
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.recipe import Recipe, digest, from_json
from edgepress.compressor.report.record import Report
from edgepress.runtime.environment import describe

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "curves.json"
PICTURES = HERE.parent / "docs" / "techniques" / "pictures"
INDEX = PICTURES.parent / "README.md"
TABLE = re.compile(r"(<!-- curves -->\n).*?(<!-- end -->)", re.DOTALL)
KEPT_PERCENT = 98.0
"""Of the score: what the usual budget leaves."""
OWN = [HERE / "zoo" / name for name in ("fmnist_resnet", "mnist_mlp")]

Entry = Mapping[str, JsonValue]
"""A pass as a recipe has it; a list is what its strength runs through."""

ENERGY: JsonValue = [0.99, 0.97, 0.93, 0.85, 0.7]
SHARE: JsonValue = [0.125, 0.25, 0.375, 0.5, 0.7]
ZEROS: JsonValue = [0.3, 0.5, 0.7, 0.8, 0.9]
QUANTILE: JsonValue = [0.01, 0.02, 0.05, 0.1, 0.2]
BITS: JsonValue = [8, 6, 5, 4, 3, 2]
PLAIN: Entry = {"rounding": "nearest", "bias_correction": False, "weight_ranges": "minmax", "spare": 0.0}
"""Rounding as every tool does it."""


@dataclass(frozen=True)
class Technique:
    """A figure of the documentation.

    Attributes:
        axes: what is drawn, fields of `Point`.
        variants: name of a curve → a recipe, of which one entry has a list.
    """

    axes: tuple[str, ...]
    variants: Mapping[str, Sequence[Entry]]


TECHNIQUES: Mapping[str, Technique] = {
    "shrink": Technique(
        ("smaller", "faster"),
        {
            "obs": [{"kind": "shrink", "share": SHARE}],
            "qr": [{"kind": "shrink", "share": SHARE, "criterion": "qr"}],
            "fisher": [{"kind": "shrink", "share": SHARE, "criterion": "fisher"}],
            "zeros, not fitted": [
                {"kind": "shrink", "share": SHARE, "criterion": "zeros", "compensate": False}
            ],
        },
    ),
    "low_rank": Technique(
        ("smaller", "fewer_macs", "faster"),
        {
            form: [{"kind": "low_rank", "energy": ENERGY, "form": form}]
            for form in ("channels", "space", "tucker")
        },
    ),
    "separable": Technique(
        ("smaller", "fewer_macs", "faster"), {"by energy": [{"kind": "separable", "energy": ENERGY}]}
    ),
    "prune": Technique(
        ("smaller_deflated",),
        {
            "obs": [{"kind": "prune", "sparsity": ZEROS}],
            "obs, global": [{"kind": "prune", "sparsity": ZEROS, "scope": "global"}],
            "obs, n of 8": [{"kind": "prune", "pattern": "n_m", "n": [6, 4, 2, 1], "m": 8}],
            "magnitude, not fitted": [
                {"kind": "prune", "sparsity": ZEROS, "criterion": "magnitude", "compensate": False}
            ],
        },
    ),
    "threshold_relu": Technique(
        ("zeros_percent",),
        {
            "fitted": [{"kind": "threshold_relu", "quantile": QUANTILE}],
            "per channel, fitted": [{"kind": "threshold_relu", "quantile": QUANTILE, "per_channel": True}],
            "not fitted": [{"kind": "threshold_relu", "quantile": QUANTILE, "compensate": False}],
        },
    ),
    "equalize": Technique(
        ("smaller",),
        {
            "a scale a tensor": [
                {"kind": "quantize", "weight_bits": [8, 6, 5, 4], **PLAIN, "granularity": "tensor"}
            ],
            "equalized": [
                {"kind": "equalize"},
                {"kind": "quantize", "weight_bits": [8, 6, 5, 4], **PLAIN, "granularity": "tensor"},
            ],
            "a scale a channel": [{"kind": "quantize", "weight_bits": [8, 6, 5, 4], **PLAIN}],
        },
    ),
    "quantize": Technique(
        ("smaller", "faster"),
        {
            "fitted": [{"kind": "quantize", "weight_bits": BITS}],
            "plain": [{"kind": "quantize", "weight_bits": BITS, **PLAIN}],
        },
    ),
    "dynamic": Technique(
        ("smaller", "faster"),
        {"fitted": [{"kind": "dynamic", "weight_bits": BITS, "min_elements": 64}]},
    ),
    "weight_only": Technique(
        ("smaller", "faster"),
        {
            "fitted": [{"kind": "weight_only", "bits": [8, 4, 2]}],
            "plain": [{"kind": "weight_only", "bits": [8, 4, 2], "compensate": False}],
        },
    ),
    "half": Technique(("smaller", "faster"), {"16 bits": [{"kind": "half", "min_elements": [256]}]}),
    "store": Technique(
        ("smaller",),
        {
            "fitted": [{"kind": "store", "weight_bits": BITS}],
            "plain": [{"kind": "store", "weight_bits": BITS, **PLAIN}],
        },
    ),
    "cluster": Technique(
        ("smaller",),
        {
            "fitted": [{"kind": "cluster", "bits": [6, 4, 3, 2, 1]}],
            "plain k-means": [
                {"kind": "cluster", "bits": [6, 4, 3, 2, 1], "refine": False, "bias_correction": False}
            ],
        },
    ),
}

AXES = {
    "smaller": "file, times smaller",
    "smaller_deflated": "file after zlib, times smaller",
    "fewer_macs": "multiply-accumulates, times fewer",
    "faster": "measured latency, times faster",
    "zeros_percent": "zeros among what ReLUs give, %",
}


SHORT = {
    "smaller": "× smaller",
    "smaller_deflated": "× smaller",
    "faster": "× speed",
    "zeros_percent": " % zeros",
}
"""The axes of the table, and what stands behind their numbers."""


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        key: of the model and the recipe; a stored point with the same one is not measured again.
        score_kept_percent: score on unseen rows over that of the original.
        smaller: bytes of the file before over after, likewise the others.
        zeros_percent: of activations, where the report has them.
        seconds: that the pass took, fitting included.
    """

    key: str
    model: str
    technique: str
    variant: str
    strength: float
    metric: str
    score_kept_percent: float
    smaller: float
    smaller_deflated: float
    fewer_macs: float
    faster: float
    zeros_percent: float | None
    seconds: float


def plan(folders: Sequence[Path], only: Sequence[str]) -> Iterator[tuple[Path, str, str, float, Recipe]]:
    """All that is to be run."""
    for folder in folders:
        for name, technique in TECHNIQUES.items():
            for variant, entries in technique.variants.items():
                if not only or name in only:
                    for strength, recipe in sweep(entries):
                        yield folder, name, variant, strength, recipe


def sweep(entries: Sequence[Entry]) -> Iterator[tuple[float, Recipe]]:
    """The recipes that a variant stands for, by strength."""
    (strengths,) = (values for entry in entries for values in entry.values() if isinstance(values, list))
    for index, strength in enumerate(strengths):
        at = [{n: v[index] if isinstance(v, list) else v for n, v in entry.items()} for entry in entries]
        yield float(str(strength)), from_json(at)


def measure(folder: Path, technique: str, variant: str, strength: float, recipe: Recipe) -> Point:
    """Run the main job with one recipe.

    Raises:
        EdgepressError: the model or its samples cannot be used.
    """
    model = folder / "model.onnx"
    result = compress(model, folder / "calib.npz", test=folder / "test.npz", recipe=recipe)
    before, after = result.report.baseline, result.report.compressed
    if not isinstance(result.model, bytes) or before.score is None or after.score is None:
        raise SystemExit(f"{folder.name}: over 2 GB, or without a score: no model for curves")
    deflated = [len(zlib.compress(data, 9)) for data in (model.read_bytes(), result.model)]
    return Point(
        key(folder, technique, variant, recipe),
        folder.name,
        technique,
        variant,
        strength,
        result.report.metric,
        round(100 * after.score / before.score, 3),
        round(before.size_bytes / after.size_bytes, 3),
        round(deflated[0] / deflated[1], 3),
        round((before.macs or 0) / (after.macs or 1), 3),
        round((before.latency_ns_median or 0.0) / (after.latency_ns_median or 1.0), 3),
        zeros_percent(result.report),
        round(result.report.seconds["rewrite"], 2),
    )


def zeros_percent(report: Report) -> float | None:
    """Of all activations of the original together, where the recipe makes some zero."""
    counted = [row for row in report.zeros if row.of == "activations" and row.after is not None]
    values = sum(row.values for row in counted)
    return round(sum((row.after or 0.0) * row.values for row in counted) / values, 2) if values else None


def key(folder: Path, technique: str, variant: str, recipe: Recipe) -> str:
    """What a point is known by."""
    return f"{folder.name}, {technique}, {variant}, {digest(recipe)[:16]}"


def measure_all(folders: Sequence[Path], only: Sequence[str], fresh: bool) -> None:
    """Measure what is not stored yet, and store each point as it comes."""
    document: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    names = {folder.name for folder in folders}
    known: dict[str, dict[str, Any]] = {
        point["key"]: point
        for point in document.get("points", ())
        if not (fresh and point["model"] in names and (not only or point["technique"] in only))
    }
    document = {"command": "benchmarks/curves.py", "machine": asdict(describe()), "points": []}
    steps = list(plan(folders, only))
    wanted = {(name, variant, strength) for _, name, variant, strength, _ in plan([HERE], ())}
    with Progress(transient=True) as bar:
        for folder, name, variant, strength, recipe in bar.track(steps, description="points"):
            if key(folder, name, variant, recipe) in known:
                continue
            bar.console.print(f"{folder.name}: {name}, {variant}, {strength:g}")
            started = time.monotonic()
            try:
                point = measure(folder, name, variant, strength, recipe)
            except EdgepressError as error:
                bar.console.print(f"  left out: {error}")
                continue
            known[point.key] = asdict(point)
            bar.console.print(
                f"  kept {point.score_kept_percent:.2f} %, {point.smaller:.2f}× smaller, "
                f"{point.faster:.2f}× faster ({time.monotonic() - started:.0f} s)"
            )
            document["points"] = [
                each
                for each in known.values()
                if (each["technique"], each["variant"], each["strength"]) in wanted
            ]
            write_json(document, RESULTS)


def draw() -> None:
    """All pictures, from the stored points."""
    points = json.loads(RESULTS.read_text("utf-8"))["points"]
    PICTURES.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "edgepress", "svg.fonttype": "none", "font.size": 8})
    for name, technique in TECHNIQUES.items():
        mine = [point for point in points if point["technique"] == name]
        if mine:
            picture(name, technique, mine)
    INDEX.write_text(
        TABLE.sub(lambda found: found[1] + table(points) + found[2], INDEX.read_text("utf-8")), "utf-8"
    )


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """For each technique and model the most that it gave at enough of the score, by each axis."""
    models = sorted({point["model"] for point in points})
    lines = [
        "| technique | " + " | ".join(f"`{model}`" for model in models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    for name, technique in TECHNIQUES.items():
        cells = []
        for model in models:
            mine = [p for p in points if (p["technique"], p["model"]) == (name, model)]
            fair = [p for p in mine if p["score_kept_percent"] >= KEPT_PERCENT]
            best = {axis: max((p[axis] or 0.0 for p in fair), default=0.0) for axis in technique.axes}
            cells.append(", ".join(f"{best[axis]:.1f}{SHORT[axis]}" for axis in SHORT if best.get(axis)))
        lines.append(f"| [{name}]({name}.md) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(name: str, technique: Technique, points: Sequence[Mapping[str, Any]]) -> None:
    """One file: a column for each model, a row for each axis, a line for each variant.

    Args:
        name: of the file.
        technique: what to draw against what.
        points: of this technique, as stored.
    """
    models = sorted({point["model"] for point in points})
    figure = Figure(figsize=(2.6 * len(models), 2.1 * len(technique.axes) + 0.4), layout="constrained")
    grid = figure.subplots(len(technique.axes), len(models), sharey=True, squeeze=False)
    for row, axis in zip(grid, technique.axes, strict=True):
        for column, (model, panel) in enumerate(zip(models, row, strict=True)):
            curves(panel, technique, axis, [point for point in points if point["model"] == model])
            panel.set_xlabel(AXES[axis])
            if not column:
                panel.set_ylabel("score kept, %")
    for model, panel in zip(models, grid[0], strict=True):
        panel.set_title(model)
    if len(technique.variants) > 1:
        grid[0][0].legend(frameon=False)
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None, "Creator": None})


def curves(panel: Axes, technique: Technique, axis: str, points: Sequence[Mapping[str, Any]]) -> None:
    """The lines of one panel, and one at the usual budget."""
    for variant in technique.variants:
        line = sorted(
            (p["strength"], p[axis], p["score_kept_percent"]) for p in points if p["variant"] == variant
        )
        shown = [(x, y) for _, x, y in line if x is not None]
        if shown:
            panel.plot(*zip(*shown, strict=True), marker="o", markersize=3, linewidth=1, label=variant)
    panel.axhline(KEPT_PERCENT, color="0.6", linewidth=0.8, linestyle=":")
    panel.set_ylim(88, 101)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    if axis == "smaller":
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure and draw what each technique alone does.")
    parser.add_argument(
        "models", nargs="*", type=Path, metavar="MODEL", help="folders (default: our own nets)"
    )
    parser.add_argument("--only", nargs="+", choices=sorted(TECHNIQUES), default=(), help="these techniques")
    parser.add_argument("--fresh", action="store_true", help="measure again what is stored")
    parser.add_argument("--draw", action="store_true", help="only draw the stored points")
    given = parser.parse_args(argv)
    if not given.draw:
        folders = [path.resolve() for path in given.models or OWN]
        if missing := [path.name for path in folders if not (path / "model.onnx").exists()]:
            raise SystemExit(f"no model.onnx in {', '.join(missing)}")
        measure_all(folders, given.only, given.fresh)
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
