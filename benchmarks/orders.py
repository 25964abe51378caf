"""In which order a net should be cut, split and rounded: what is lost at about equal size.

    EDGEPRESS_ZOO=DIR python benchmarks/orders.py [--models a,b] [--out FILE]

The same three passes, each with its own refit, in the orders that are possible (integers can be neither cut nor
split). Fitted on calibration samples, judged on unseen ones.
"""

import argparse
import itertools
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

PARTS = {
    "cut": 'kind = "shrink"\nshare = {cut}',
    "split": 'kind = "low_rank"\nenergy = {split}',
    "round": 'kind = "quantize"',
}
ORDERS = tuple(order for order in itertools.permutations(PARTS) if order[-1] == "round")
STRENGTHS = ((0.2, 0.98), (0.4, 0.95))
"""Share of units that go, energy that a split keeps."""


def run_once(zoo: Path, model: str, order: Sequence[str], strength: tuple[float, float]) -> dict[str, Any]:
    """Size and score of one order."""
    data, test = samples(zoo / model)
    cut, split = strength
    recipe = "\n".join("[[pass]]\n" + PARTS[name].format(cut=cut, split=split) for name in order)
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "recipe.toml", Path(folder) / "out"
        file.write_text(recipe, "utf-8")
        options = ["--data", data, "--test", test, "--target", "x86", "--recipe", str(file)]
        run = compress(zoo, model, options, out)
        if not (out / "report.json").is_file():
            raise SystemExit(f"{model}: compress ended with exit code {run.exit_code}: {run.told}")
        report = json.loads((out / "report.json").read_text("utf-8"))
    return {
        "order": list(order),
        "cut": cut,
        "split": split,
        "size_bytes": report["compressed"]["size_bytes"],
        "score": round(report["compressed"]["score"], 2),
        "baseline": round(report["baseline"]["score"], 2),
        "rows": report["n_test"],
    }


def main(given: Sequence[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="comma-separated; default: all of the zoo")
    parser.add_argument("--out", type=Path, default=RESULTS / "orders.json", help="where the figures go")
    options = parser.parse_args(given)
    zoo = zoo_folder()
    found: dict[str, list[dict[str, Any]]] = {}
    for model in chosen_models(zoo, options.models):
        found[model] = []
        for strength, order in itertools.product(STRENGTHS, ORDERS):
            row = run_once(zoo, model, order, strength)
            found[model].append(row)
            print(model, " → ".join(order), strength, row["size_bytes"], row["score"], flush=True)
    command = shown_command("benchmarks/orders.py", given)
    write_json(
        {"command": command, "machine": machine(), "versions": versions(), "models": found}, options.out
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
