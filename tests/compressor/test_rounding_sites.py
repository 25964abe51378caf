"""Weights of few bits at the sites of a model: what their inputs may be asked about, and what they may not."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from models import constants, text

from edgepress.compressor.passes.base import Pass, Skipped
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.shapes import infer_shapes


def lost(model: ir.Model, changed: ir.Model, feeds: Feeds, name: str = "y") -> float:
    before, after = (models.run(m, feeds)[name].astype(np.float64) for m in (model, changed))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def applied(model: ir.Model, step: Pass, feeds: Feeds | None) -> ir.Model:
    """The step with these samples, or with none."""
    changed = model.clone()
    rows = len(next(iter(feeds.values()))) if feeds else 0
    context = oracles.context(model, rows, feeds=feeds) if feeds else oracles.Context()
    step.apply(changed, context)
    return changed


def dense(body: str, **shapes: tuple[int, ...]) -> ir.Model:
    model = text("(float[N, 64] x) => (float[N, K] y)", body, constants(3, **shapes))
    infer_shapes(model)
    return model


def correlated(rows: int, width: int = 64, mean: float = 0.0, seed: int = 0) -> dict[str, Array]:
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((6, width))
    values = rng.standard_normal((rows, 6)) @ mixing + 0.1 * rng.standard_normal((rows, width)) + mean
    return {"x": values.astype(np.float32)}


@pytest.mark.parametrize("step", [StoreWeights(weight_bits=4), Quantize(weight_bits=4)])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("rows", [9, 64, 500])
def test_inputs_that_hardly_vary_are_no_trouble(step: Pass, spread: float, rows: int) -> None:
    model = dense("y = Gemm <transB = 1> (x, w, b)", w=(32, 64), b=(32,))
    noise = np.random.default_rng(1).standard_normal((rows, 64))
    x = (255 + spread * noise).astype(np.float32)
    x[:, 0] = 1e4 + spread
    assert lost(model, applied(model, step, {"x": x}), {"x": x}) < 0.2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_mean_that_no_bias_takes_up_counts(bias: bool, bits: int) -> None:
    """Of inputs far from zero the mean is what matters, unless a bias makes it good."""
    body = "y = Gemm <transB = 1> (x, w, b)" if bias else "y = Gemm <transB = 1> (x, w)"
    model = dense(body, w=(32, 64), **({"b": (32,)} if bias else {}))
    samples, unseen = correlated(500, mean=3), correlated(500, mean=3, seed=1)
    ours = lost(model, applied(model, StoreWeights(weight_bits=bits), samples), unseen)
    plain = lost(model, applied(model, StoreWeights(weight_bits=bits), None), unseen)
    assert ours < 0.5 * plain


def test_one_output_is_rounded_by_outputs_too() -> None:
    model = text(
        "(float[N, 2048] x) => (float[N, 1] y)", "y = Gemm <transB = 1> (x, w, b)",
        constants(3, w=(1, 2048), b=(1,)),
    )  # fmt: skip
    samples, unseen = correlated(300, 2048), correlated(300, 2048, seed=1)
    ours = lost(model, applied(model, StoreWeights(weight_bits=4), samples), unseen)
    assert ours < 0.3 * lost(model, applied(model, StoreWeights(weight_bits=4), None), unseen)


def test_a_shared_weight_is_rounded_for_nobody_in_particular() -> None:
    model = dense("t = MatMul (x, w) r = Relu (t) y = MatMul (r, w)", w=(64, 64))
    samples = correlated(300)
    ours = applied(model, StoreWeights(weight_bits=4), samples)
    plain = applied(model, StoreWeights(weight_bits=4), None)
    np.testing.assert_array_equal(*(models.run(each, samples)["y"] for each in (ours, plain)))


def test_words_that_several_sites_read_are_taken_apart_once() -> None:
    model = dense("t = MatMul (x, w) r = Relu (t) y = MatMul (r, w)", w=(64, 64))
    for step in (Quantize(weight_bits=4), StoreWeights(weight_bits=4)):
        changed = applied(model, step, correlated(64))
        assert [node.op_type for node in changed.graph].count("BitShift") == 1


def test_weights_read_in_a_body_are_rounded_without_its_inputs() -> None:
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = text(
        "(float[N, 64] x, bool c) => (float[N, 64] y)",
        """y = If (c) <
             then_branch = one () => (float[N, 64] a) { a = MatMul (x, w) },
             else_branch = two () => (float[N, 64] e) { e = Gemm (x, w, b) }
           >""",
        {"w": big, "b": np.ones(64, np.float32)},
    )
    feeds = {"x": correlated(16)["x"], "c": np.array(True)}
    changed = model.clone()
    StoreWeights(weight_bits=4).apply(changed, oracles.context(model, 16, feeds=feeds))
    assert lost(model, changed, feeds) < 0.2


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_scale_of_inputs_does_not_matter(scale: float) -> None:
    model = dense("y = Gemm <transB = 1> (x, w, b)", w=(32, 64), b=(32,))
    x = {"x": correlated(64)["x"] * np.float32(scale)}
    assert lost(model, applied(model, StoreWeights(weight_bits=4), x), x) < 0.2


def test_a_vector_times_a_matrix_is_rounded() -> None:
    model = text("(float[64] x) => (float[64] y)", "y = MatMul (x, w)", constants(3, w=(64, 64)))
    x = {"x": correlated(1)["x"][0]}
    assert lost(model, applied(model, StoreWeights(weight_bits=4), x), x) < 0.3


def test_unknown_sites_are_named() -> None:
    model = dense("y = Gemm <transB = 1> (x, w, b)", w=(32, 64), b=(32,))
    outcome = StoreWeights(bits=(("nothing", 4),)).apply(model, oracles.Context())
    assert Skipped("nothing", "no such site") in outcome.skipped
