"""A net to shrink, and what is left of it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import oracles
from models import constants, text

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.observe import KEPT
from edgepress.compressor.passes import Shrink
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.shapes import infer_shapes


def deep(seed: int = 50, hidden: int = 20) -> tuple[ir.Model, Feeds]:
    """Two hidden layers whose units fire more or less often; and samples."""
    weights = constants(
        seed, w1=(hidden, 6), b1=(hidden,), w2=(hidden, hidden), b2=(hidden,), w3=(3, hidden), b3=(3,)
    )
    weights["b1"] = np.linspace(-3, 2, hidden, dtype=np.float32)
    body = """
        h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) g = Gemm <transB = 1> (a, w2, b2) r = Relu(g)
        y = Gemm <transB = 1> (r, w3, b3)
    """
    model = text("(float[N, 6] x) => (float[N, 3] y)", body, weights)
    infer_shapes(model)
    return model, {"x": np.random.default_rng(seed).normal(size=(300, 6)).astype(np.float32)}


def widths(model: ir.Model) -> dict[str, int]:
    return {g.name: len(g.units) for g in groups_of(model, analyse(model))[0]}


def kept(model: ir.Model, value: str) -> list[int]:
    """Which of the original's channels a value still has."""
    found = next(v for node in model.graph for v in node.outputs if v.name == value)
    return [int(i) for i in found.meta.get(KEPT, range(found.shape[-1] if found.shape else 0))]


def shrunk_by(step: Shrink, model: ir.Model, feeds: Feeds | None = None, **more: Any) -> ir.Model:
    changed = model.clone()
    rows = 64 if feeds is None else len(next(iter(feeds.values())))
    step.apply(changed, oracles.context(model, rows, feeds=feeds, **more))
    return changed
