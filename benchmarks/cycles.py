"""Pruning cycles (Çallı 2017 §2.2): train, see which units never fire, take them out, train on, until none is dead.

    python benchmarks/cycles.py --mnist FILE.npz --torch PYTHON [--nets sum convae] [--seeds 0 1 2] [--variants …]

Two nets that are far wider than they need be: the fully connected summation (2-1000-1, §2.1.1; ideal: 1) trained here
in NumPy, and the convolutional auto-encoder (§2.1.2; from 32, 64, 32 channels, ideal: 4, 16, 4) trained by
`cycles_torch.py` in an environment of its own, whose interpreter is `--torch`. FILE.npz has x_train and x_test
[n, 1, 28, 28] of 8 bits. Between trainings the net is an ONNX model, and the tool's own `shrink` takes the units out.

    vanilla       what is zero on all training rows goes
    regularised   with an L1 penalty in every cycle
    distorted     with random numbers on all weights before every cycle, as the document has it
    outliers      what is weaker than the mean by two standard deviations goes as well
    threshold     with the modified ReLU instead, f(x) = x if x > ε else 0 (Im & Dasari §8, eq. 7)

and their combinations. In the end each net is trained as long as it was at first, with neither penalty nor distortion.
The loss is the mean squared error on rows that no training saw. The table goes to stdout, the numbers, cycle by
cycle, to `benchmarks/results/cycles.json` as they come: a second run goes on where the first one ended.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from common import write_json
from cycle_nets import AutoEncoder, Floats, Summation, Weights, weights_of, widths_of
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import Streamer
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.shrink import Shrink
from edgepress.compressor.protocols import Feeds
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.environment import describe

RESULTS = Path(__file__).parent / "results" / "cycles.json"
BATCH = 2000
MOST_CYCLES = 30


@dataclass(frozen=True)
class Variant:
    """A way to go about it.

    Attributes:
        distorted: random numbers are added to all weights before every cycle.
        regularised: an L1 penalty is part of the loss in every cycle.
        outliers: units far weaker than the others go, too.
        threshold: ε of the modified ReLU; 0 is the plain one.
    """

    distorted: bool = False
    regularised: bool = False
    outliers: bool = False
    threshold: float = 0.0


VARIANTS = {
    "vanilla": Variant(),
    "regularised": Variant(regularised=True),
    "distorted": Variant(distorted=True),
    "outliers": Variant(outliers=True),
    "threshold": Variant(threshold=0.1),
    "distorted, regularised": Variant(distorted=True, regularised=True),
    "distorted, regularised, outliers": Variant(distorted=True, regularised=True, outliers=True),
}


class Net(Protocol):
    """A net that can be trained, and written as ONNX.

    Attributes:
        name: of it.
        ideal: units of each hidden layer that would do.
        start_epochs: of the first training, and of the last.
        cycle_epochs: of the training in each cycle.
        quiet: cycles in a row without a dead unit that end it, where a penalty or distortion may still kill some.
        train_rows: [n, …], what it is trained on.
        test_rows: [n, …], what it is judged on.
        test_targets: what should come out for them.
    """

    name: str
    ideal: tuple[int, ...]
    start_epochs: int
    cycle_epochs: int
    quiet: int
    train_rows: Floats
    test_rows: Floats
    test_targets: Floats

    def start(self, seed: int) -> Weights:
        """Weights that are not trained yet."""

    def train(
        self, weights: Weights, epochs: int, seed: int, *, regularised: bool = False, threshold: float = 0.0
    ) -> Weights:
        """Weights after some epochs."""

    def distorted(self, weights: Weights, rng: np.random.Generator) -> Weights:
        """Weights with random numbers on them."""

    def model(self, weights: Weights, threshold: float = 0.0) -> ir.Model:
        """As ONNX, initializers named as the weights are."""


def loss(net: Net, weights: Weights, threshold: float) -> float:
    """Mean squared error on the unseen rows, by onnxruntime."""
    run = OrtEngine().load(to_bytes(net.model(weights, threshold)))
    total = 0.0
    for at in range(0, len(net.test_rows), BATCH):
        (y,) = run({"x": net.test_rows[at : at + BATCH]}).values()
        total += float(np.square(y.astype(np.float64) - net.test_targets[at : at + BATCH]).sum())
    return total / net.test_targets.size


def zeros_percent(net: Net, weights: Weights, threshold: float) -> float:
    """Share of hidden activations that are zero on the unseen rows, in percent."""
    model = net.model(weights, threshold)
    hidden = [n.outputs[0].name or "" for n in model.graph if n.op_type.endswith("Relu")]
    names = [name for name in hidden if name != "y"]
    zeros = count = 0
    for values, _ in Streamer(OrtEngine(), model, lambda: in_batches(net.test_rows))(model, names):
        zeros += sum(int((values[name] == 0).sum()) for name in names)
        count += sum(values[name].size for name in names)
    return 100 * zeros / count


def in_batches(rows: Floats) -> Iterator[Feeds]:
    """Rows as feeds."""
    return ({"x": rows[at : at + BATCH]} for at in range(0, len(rows), BATCH))


def pruned(net: Net, weights: Weights, variant: Variant) -> Weights:
    """Without the units that are zero on all training rows, and without outliers where they go, too."""
    model = net.model(weights, variant.threshold)
    stream = Streamer(OrtEngine(), model.clone(), lambda: in_batches(net.train_rows))
    context = Context(stream=stream, rows=len(net.train_rows))
    Shrink(criterion="zeros", compensate=False).apply(model, context)
    if variant.outliers:
        Shrink(criterion="outliers", compensate=False).apply(model, context)
    return weights_of(model)


def run_cycles(net: Net, variant: Variant, first: Weights, seed: int) -> dict[str, Any]:
    """All cycles of one variant, and the last training.

    Args:
        net: to be trained.
        variant: how.
        first: weights after the first training.
        seed: of all that is random.

    Returns:
        What became of it: widths and loss at the start, after each cycle and in the end.
    """
    rng = np.random.default_rng(seed)
    began, quiet = time.monotonic(), 0
    weights = pruned(net, first, variant)
    trail: list[dict[str, Any]] = []
    patience = net.quiet if variant.distorted or variant.regularised else 1
    while quiet < patience and len(trail) < MOST_CYCLES:
        widths = widths_of(weights)
        if variant.distorted:
            weights = net.distorted(weights, rng)
        weights = net.train(
            weights,
            net.cycle_epochs,
            seed + len(trail) + 1,
            regularised=variant.regularised,
            threshold=variant.threshold,
        )
        weights = pruned(net, weights, variant)
        quiet = 0 if widths_of(weights) != widths else quiet + 1
        trail.append({"widths": widths_of(weights), "loss": loss(net, weights, variant.threshold)})
        print(f"  {len(trail):2} {trail[-1]['widths']} {trail[-1]['loss']:.6f}", file=sys.stderr, flush=True)
    weights = net.train(weights, net.start_epochs, seed, threshold=variant.threshold)
    weights = pruned(net, weights, variant)
    return {
        "cycles": trail,
        "widths": widths_of(weights),
        "loss": loss(net, weights, variant.threshold),
        "zeros_percent": round(zeros_percent(net, weights, variant.threshold), 1),
        "weights": {name: np.round(w, 4).tolist() for name, w in weights.items() if w.size < 8},
        "seconds": round(time.monotonic() - began, 1),
    }


def measured(net: Net, variants: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """One row a variant; all of them go on from the same first training, with the activation that they have."""
    firsts: dict[float, tuple[Weights, float]] = {}
    for name in variants:
        variant = VARIANTS[name]
        if variant.threshold not in firsts:
            weights = net.train(net.start(seed), net.start_epochs, seed, threshold=variant.threshold)
            firsts[variant.threshold] = weights, loss(net, weights, variant.threshold)
        weights, start_loss = firsts[variant.threshold]
        print(f"{net.name}, {name}, seed {seed}: {start_loss:.6f}", file=sys.stderr, flush=True)
        found = run_cycles(net, variant, weights, seed)
        yield {
            "net": net.name,
            "variant": name,
            **asdict(variant),
            "seed": seed,
            "start_widths": widths_of(weights),
            "start_loss": start_loss,
            "start_zeros_percent": round(zeros_percent(net, weights, variant.threshold), 1),
            "ideal": net.ideal,
            "no_worse": found["loss"] <= start_loss,
            **found,
        }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Widths and losses, as Markdown."""
    titles = ("net", "variant", "seed", "units left", "loss at the start", "in the end", "cycles")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        left = ", ".join(map(str, row["widths"]))
        lines.append(
            f"| {row['net']} | {row['variant']} | {row['seed']} | {left} | {row['start_loss']:.3g} "
            f"| {row['loss']:.3g} | {len(row['cycles'])} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=("sum", "convae"), default=["sum", "convae"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--mnist", type=Path, help="npz file with x_train and x_test, for convae")
    parser.add_argument("--torch", type=Path, help="Python with PyTorch, for convae")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if "convae" in options.nets and (options.mnist is None or options.torch is None):
        parser.error("convae needs --mnist and --torch")
    rows: list[dict[str, Any]] = (
        json.loads(options.out.read_bytes())["results"] if options.out.exists() else []
    )
    for name in options.nets:
        for seed in options.seeds:
            done = {row["variant"] for row in rows if (row["net"], row["seed"]) == (name, seed)}
            left = [variant for variant in options.variants if variant not in done]
            if not left:
                continue
            net: Net = Summation(seed) if name == "sum" else AutoEncoder(options.mnist, options.torch)
            for row in measured(net, left, seed):
                rows.append(row)
                write_json({"environment": asdict(describe()), "results": rows}, options.out)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
