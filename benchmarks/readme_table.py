"""The measured tables of README.md, drawn from the JSON files that the benchmarks stored.

    python benchmarks/readme_table.py [--check]

Between `<!-- results: NAME -->` and `<!-- end -->` is the table of `benchmarks/results/NAME.json`, written
by acceptance.py, peers.py or tflite.py. With `--check` nothing is written; the exit code is 1 where a table differs
from its file.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
SECTION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(document: dict[str, Any]) -> str:
    """A Markdown table of one results file, and a line on where its numbers come from.

    Args:
        document: as acceptance.py, peers.py or tflite.py stores it.
    """
    if "bars" in document:
        return render_peers(document)
    if "recipe" in document:
        return render_tflite(document)
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in document["rows"]:
        runs.setdefault(row["model"], {})[row["run"]] = row
    lines = [
        "| model | score before → after | size before → after | smaller | faster "
        "| budget | smaller with `--objective size` |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, by_run in runs.items():
        row = by_run.get("latency")
        if row is None or not row["size_bytes"][1]:
            continue
        size = by_run.get("size")
        before, after = row["size_bytes"]
        only_small = f"{size['smaller']:.1f}×, {size['verdict']}" if size and size["size_bytes"][1] else ""
        lines.append(
            f"| {model} | {_score(row)} | {_kilobytes(before)} → {_kilobytes(after)} kB "
            f"| {row['smaller']:.1f}× | {row['faster']:.1f}× | {row['verdict']} | {only_small} |"
        )
    return "\n".join([*lines, "", _origin(document, {}, "Scores are on unseen rows.")])


def _origin(document: dict[str, Any], others: dict[str, str], how: str) -> str:
    """Where numbers come from.

    Args:
        document: has the machine, its versions and the command.
        others: versions of other tools, by name.
        how: the scores came about.
    """
    versions, machine = document["versions"], document["machine"]
    tools = {"onnxruntime": versions["onnxruntime"], **others, "edgepress": versions["edgepress"]}
    return (
        f"{machine['cpu']}, {machine['cores']} cores, one thread, batch of one; "
        f"{', '.join(f'{name} {version}' for name, version in tools.items())}. "
        f"{how} Made by `python {document['command']}`."
    )


def _score(row: dict[str, Any]) -> str:
    before, after = row["score"]
    unit = {"top1": " %", "agreement": " %", "psnr": " dB"}.get(row["metric"].partition(":")[0], "")
    if before is None or after is None:
        return "–"
    return f"{before:.2f} → {after:.2f}{unit} {row['metric']}"


def render_peers(document: dict[str, Any]) -> str:
    """Ours beside the best that the others made, the means with their bars, and where the numbers come from.

    Args:
        document: as peers.py stores it.
    """
    lines = [
        "| model | score fp32 → ours | smaller, faster than fp32 | latency in µs, best other → ours | ratio "
        "| size in kB, smallest other → ours | ratio | `--objective size`: smaller than fp32 "
        "| of the others over the budget, or failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_beside(row) for row in document["rows"]]
    for bar in document["bars"]:
        sign = "≤" if bar["at_most"] else "≥"
        met = "met" if bar["met"] else "missed"
        name = bar["name"][0].upper() + bar["name"][1:]
        mean = f"geometric mean {bar['value']:.3g} over {bar['models']} models"
        lines += ["", f"{name}: {mean} (bar {sign} {bar['bound']:g}, {met})."]
    how = f"Budget {document['budget']:g} %, scores are on unseen rows."
    return "\n".join([*lines, "", _origin(document, {"NNCF": document["peers"].get("nncf", "–")}, how)])


def _beside(row: dict[str, Any]) -> str:
    results = row["results"]
    ours, original = results.get("ours"), results["fp32"]
    pairs = []
    for key, best, ratio in (
        ("latency_ns", row["best_latency"], row["latency_ratio"]),
        ("size_bytes", row["best_size"], row["size_ratio"]),
    ):
        name, value = best
        made = ours[key] if ours else None
        after = "–" if made is None else f"{made / 1000:,.1f}"
        pairs += [f"{value / 1000:,.1f} ({name}) → {after}", "–" if ratio is None else f"{ratio:.2f}"]
    scores = [original["score"], ours["score"] if ours else None]
    score = " → ".join("–" if value is None else f"{value:.2f}" for value in scores)
    gains = "–"
    if ours and ours["size_bytes"] and ours["latency_ns"]:
        smaller, faster = (original[key] / ours[key] for key in ("size_bytes", "latency_ns"))
        gains = f"{smaller:.1f}×, {faster:.1f}×"
    small = "–" if row["smaller_for_size"] is None else f"{row['smaller_for_size']:.1f}×"
    others = []
    for name, result in results.items():
        if name.startswith("ours") or row["within_budget"][name]:
            continue
        others.append(f"{name} ({'failed' if result['failure'] else format(result['score'], '.2f')})")
    cells = [row["model"], f"{score} {row['metric']}", gains, *pairs, small, ", ".join(others)]
    return f"| {' | '.join(cells)} |"


def render_tflite(document: dict[str, Any]) -> str:
    """Both files of each model side by side, and where the numbers come from.

    Args:
        document: as tflite.py stores it.
    """
    lines = [
        "| model | score fp32 → ONNX, TFLite | same bits | same class | TRANSPOSE | pieces | written in "
        "| latency in µs, ONNX → TFLite | ratio | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_both_files(row) for row in document["rows"]]
    how = "8 bits by the pass `quantize` alone, fitted on the calibration rows; all else is of unseen rows."
    others = {"LiteRT": document["versions"]["ai-edge-litert"]}
    return "\n".join([*lines, "", _origin(document, others, how)])


def _both_files(row: dict[str, Any]) -> str:
    certificate, judged = row["tflite"].get("certificate"), row["judged"]
    missed = "; ".join(row["misses"]) or "pass"
    if not certificate or judged.get("failure", "?"):
        return f"| {row['model']} | – | – | – | – | – | – | – | – | {missed} |"
    scores = [row["original_score"], certificate["onnx_score"], certificate["score"]]
    told = ["–" if score is None else f"{score:.2f}" for score in scores]
    shares = [row["identical_percent"], row["same_class_percent"]]
    before, after = judged["latency_ns"]
    cells = [
        row["model"],
        f"{told[0]} → {told[1]}, {told[2]} {row['metric']}",
        *("–" if share is None else f"{share:.4g} %" for share in shares),
        str(judged["transposes"]),
        str(certificate["partitions"]),
        f"{1000 * judged['convert_seconds']:.0f} ms",
        f"{before / 1000:,.1f} → {after / 1000:,.1f}",
        f"{judged['ratio']:.2f}",
        missed,
    ]
    return f"| {' | '.join(cells)} |"


def _kilobytes(count: int) -> str:
    return f"{count / 1000:,.1f}" if count < 100_000 else f"{count / 1000:,.0f}"


def drawn(text: str, results: Path) -> str:
    """README's text with every table drawn anew; a section whose file is missing says so.

    Args:
        text: of the README.
        results: folder of the JSON files.
    """

    def section(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        table = render(json.loads(path.read_text("utf-8"))) if path.exists() else "Not measured yet."
        return f"{match[1]}{table}\n{match[3]}"

    return SECTION.sub(section, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the measured tables of README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is old")
    given = parser.parse_args(argv)
    text = README.read_text("utf-8")
    new = drawn(text, RESULTS)
    if given.check:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
