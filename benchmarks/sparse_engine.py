"""The sparse engine beside onnxruntime's dense products, one row at a time, timed in turns.

    python benchmarks/sparse_engine.py [--epsilon 20] [--rows 1 32]

Perceptrons with hidden layers of Chouliaras 2021, 784 inputs and 10 outputs, ReLU and softmax; between layers of
n and m units ε (n + m) connections at random places (eq. 3.1), all of them where that is more than there are. Weights
are random: times hang on how many there are alone. The table goes to stdout, the numbers with machine and versions to
`benchmarks/results/sparse_engine.json`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from common import write_json
from edgepress.compressor.export.sparse import from_model, to_bytes
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.engines.sparse import SparseEngine
from edgepress.runtime.environment import condition, describe
from edgepress.runtime.measure import measure, ratio_interval

NETS = ((1000, 1000, 1000), (4000, 1000, 4000), (4000, 4000, 4000))
INPUTS, OUTPUTS = 784, 10
RESULTS = Path(__file__).parent / "results" / "sparse_engine.json"


def perceptron(hidden: Sequence[int], epsilon: float) -> ir.Model:
    """A net of random connections, dense in its file."""
    rng = np.random.default_rng(0)
    widths = [INPUTS, *hidden, OUTPUTS]
    body, value, weights = "", "x", []
    for place, (n, m) in enumerate(pairwise(widths)):
        share = min(1.0, epsilon * (n + m) / (n * m))
        w = np.zeros(n * m, np.float32)
        at = rng.choice(n * m, round(share * n * m), replace=False)
        w[at] = rng.standard_normal(len(at)) * np.sqrt(2 / (share * n))
        weights += [(f"w{place}", w.reshape(n, m)), (f"b{place}", np.zeros(m, np.float32))]
        last = place == len(hidden)
        body += f" z{place} = Gemm({value}, w{place}, b{place})"
        body += f" {'y' if last else f'h{place}'} = {'Softmax' if last else 'Relu'}(z{place})"
        value = f"h{place}"
    header = f"(float[N, {INPUTS}] x) => (float[N, {OUTPUTS}] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {header} {{ {body} }}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights)
    return ir.from_proto(proto)


def measured(hidden: Sequence[int], epsilon: float, rows: int, seconds: float) -> dict[str, Any]:
    """Both files of one net."""
    model = perceptron(hidden, epsilon)
    dense, net = ir.to_proto(model).SerializeToString(), from_model(model)
    sparse = to_bytes(net)
    x = np.random.default_rng(1).random((rows, INPUTS)).astype(np.float32)
    (expected,), (got,) = (
        engine.load(file)({"x": x}).values()
        for engine, file in ((OrtEngine(), dense), (SparseEngine(), sparse))
    )
    first, second = measure([dense, sparse], {"x": x}, time_limit_s=seconds)
    low, high = ratio_interval(second, first)
    return {
        "net": "-".join(map(str, [INPUTS, *hidden, OUTPUTS])),
        "epsilon": epsilon,
        "rows": rows,
        "weights": net.weights,
        "density_percent": 100 * net.density,
        "onnx_bytes": len(dense),
        "sparse_bytes": len(sparse),
        "onnxruntime_ns": first.median_ns,
        "sparse_ns": second.median_ns,
        "ratio": second.median_ns / first.median_ns,
        "ratio_ci95": [low, high],
        "largest_difference": float(abs(expected - got).max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epsilon", type=float, default=20.0)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = asdict(condition())
    found = [
        measured(hidden, options.epsilon, rows, options.seconds) for hidden in NETS for rows in options.rows
    ]
    print("| net | rows | weights | onnxruntime, µs | sparse, µs | ratio (95 %) | MB, dense | MB, sparse |")
    print("|---|---|---|---|---|---|---|---|")
    for row in found:
        low, high = row["ratio_ci95"]
        print(
            f"| {row['net']} | {row['rows']} | {row['weights']} ({row['density_percent']:.2g} %) "
            f"| {row['onnxruntime_ns'] / 1e3:.0f} | {row['sparse_ns'] / 1e3:.0f} "
            f"| {row['ratio']:.3f} ({low:.3f}–{high:.3f}) "
            f"| {row['onnx_bytes'] / 1e6:.1f} | {row['sparse_bytes'] / 1e6:.1f} |"
        )
    write_json(
        {"environment": asdict(describe()), "before": before, "after": asdict(condition()), "results": found},
        options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
