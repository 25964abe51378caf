"""How fast exact networks are made and answered for: `compress selftest`'s oracle against scipy's own product.

    python benchmarks/exact.py [--out benchmarks/results/exact.json]

A million neurons in a hundred layers are made; then two networks are answered for, of 10⁶ connections in all (collapsed
to one array over all neurons, iterated a hundred times) and of 10⁶ in each of a hundred layers. Product and oracle take
turns, layer by layer, on the same operands; the ratio is that of their sums.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from edgepress.compressor.exact.constructions import deep
from edgepress.compressor.exact.networks import ExactNet, step

LAYERS = 100
CONNECTIONS = 1_000_000
SAMPLES, STRETCH = 64, 8_000
"""Inputs of the wide network, and how many of its features each has."""
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the oracle of `compress selftest`.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "exact.json")
    out = parser.parse_args().out
    started = time.perf_counter()
    million = deep(198, LAYERS)
    seconds = time.perf_counter() - started
    net = deep(99, LAYERS)
    found = {
        "command": "python benchmarks/exact.py",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy")},
        "made": {"neurons": million.neurons, "connections": million.connections, "layers": LAYERS, "seconds": seconds},
        "collapsed": compare(*collapsed(net)) | {"connections": net.connections, "layers": LAYERS},
        "wide": compare(*wide()) | {"connections_each": CONNECTIONS, "layers": LAYERS},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    json.dump(found, sys.stdout, indent=2)


def collapsed(net: ExactNet) -> tuple[sp.csr_array, np.ndarray, sp.csr_array]:
    """One square array over all neurons, its biases, and every category's features."""
    weights, biases = net.collapsed(named=False)
    keys = np.union1d(weights.rows, weights.columns)
    bias = np.zeros(len(keys))
    bias[np.searchsorted(keys, biases.rows)] = biases.dense()[:, 0]
    own = net.supports().T.tocoo()
    y = sp.csr_array((own.data, (own.row, own.col)), shape=(len(keys), own.shape[1]))
    return weights.placed(keys, keys), bias, y


def wide() -> tuple[sp.csr_array, np.ndarray, sp.csr_array]:
    """A ring: each neuron reads its own place and the next. A stretch of ones loses one a layer, exactly."""
    size = CONNECTIONS // 2
    indices = np.stack([np.arange(size), (np.arange(size) + 1) % size], axis=1)
    ring = sp.csr_array(
        (np.ones(2 * size), np.sort(indices, axis=1).ravel(), 2 * np.arange(size + 1)), shape=(size, size)
    )
    starts = np.random.default_rng(0).integers(size - STRETCH, size=SAMPLES)
    rows = (starts[:, None] + np.arange(STRETCH)).ravel()
    columns = np.repeat(np.arange(SAMPLES), STRETCH)
    y = sp.csr_array((np.ones(len(rows)), (rows, columns)), shape=(size, SAMPLES))
    last = forward_ones(ring, y)
    assert last == SAMPLES * (STRETCH - LAYERS), "the oracle is wrong"
    return ring, np.full(size, -1.0), y


def forward_ones(weight: sp.csr_array, y: sp.csr_array) -> int:
    """Ones that are left after all layers."""
    bias = np.full(weight.shape[0], -1.0)
    for _ in range(LAYERS):
        y = step(weight, bias, y)
    assert (y.data == 1).all()
    return int(y.nnz)


def compare(weight: sp.csr_array, bias: np.ndarray, y: sp.csr_array) -> dict[str, object]:
    """Seconds of the product alone and of the oracle's step, over all layers; the median round."""
    rounds = sorted(timed(weight, bias, y) for _ in range(ROUNDS))
    ratio, product, oracle = rounds[len(rounds) // 2]
    return {
        "scipy_product_s": product,
        "oracle_s": oracle,
        "speed_of_scipy": ratio,
        "all_rounds": [each[0] for each in rounds],
    }


def timed(weight: sp.csr_array, bias: np.ndarray, y: sp.csr_array) -> tuple[float, float, float]:
    product = oracle = 0.0
    for first in turns():
        if first:
            product += clock(lambda y=y: weight @ y)[0]
        seconds, result = clock(lambda y=y: step(weight, bias, y))
        oracle += seconds
        if not first:
            product += clock(lambda y=y: weight @ y)[0]
        y = result
    return product / oracle, product, oracle


def turns() -> Iterator[bool]:
    """Whether the product goes first: every other layer."""
    for layer in range(LAYERS):
        yield layer % 2 == 0


def clock(work: object) -> tuple[float, object]:
    started = time.perf_counter()
    found = work()  # type: ignore[operator]
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main()
