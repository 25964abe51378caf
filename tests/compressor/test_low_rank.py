"""Low rank: the best split for the inputs that come, and one that keeps what a site computes."""

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.model import parameters, to_bytes
from edgepress.compressor.numerics.low_rank import Projection
from edgepress.compressor.observe import KEPT
from edgepress.compressor.passes.low_rank import MOST_OUTPUTS, LowRank
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites

seeds = st.integers(0, 10_000)


def matrices(seed: int, out: int = 6, inputs: int = 8):
    """W [out, in], and a covariance of its inputs with some strong and some weak directions."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(inputs, inputs)) * rng.choice([0.05, 1.0, 3.0], size=inputs)
    return rng.normal(size=(out, inputs)), a @ a.T


def loss(weights: np.ndarray, other: np.ndarray, covariance: np.ndarray) -> float:
    """E|Wx − Ŵx|²."""
    d = weights - other
    return float(np.trace(d @ covariance @ d.T))


@given(seeds, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_white_inputs_give_the_truncated_svd(seed: int, rank: int) -> None:
    w, _ = matrices(seed)
    u, v = Projection.by_outputs(w, w @ w.T).factorise(rank)
    assert (u.shape, v.shape) == ((6, rank), (rank, 8))
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-10)
    singular = np.linalg.svd(w, compute_uv=False)
    assert loss(w, u @ v, np.eye(8)) == pytest.approx(np.sum(singular[rank:] ** 2), abs=1e-9)


@given(seeds, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_no_split_of_the_same_rank_is_better_on_outputs(seed: int, rank: int) -> None:
    w, covariance = matrices(seed)
    u, v = Projection.by_outputs(w, w @ covariance @ w.T).factorise(rank)
    best = oracles.rank_error(w, covariance, rank)
    share = 1e-3 * np.trace(w @ covariance @ w.T) / np.trace(w @ w.T)  # of what no sample excites
    slack = share * np.sum(np.linalg.svd(w, compute_uv=False) ** 2)
    ours = loss(w, u @ v, covariance)
    assert best - 1e-8 <= ours <= best + slack
    p, s, q = np.linalg.svd(w)
    plain = (p[:, :rank] * s[:rank]) @ q[:rank]
    assert ours <= loss(w, plain, covariance) + slack


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_what_is_discarded_falls_from_all_to_nothing(seed: int) -> None:
    w, covariance = matrices(seed)
    lost = Projection.by_outputs(w, w @ covariance @ w.T).lost()
    assert lost[0] == pytest.approx(1)
    assert lost[-1] == pytest.approx(0, abs=1e-9)
    assert (np.diff(lost) <= 1e-12).all()
    white = Projection.by_outputs(w, w @ w.T).lost()
    for rank in range(7):
        u, v = Projection.by_outputs(w, w @ w.T).factorise(rank)
        assert white[rank] == pytest.approx(loss(w, u @ v, np.eye(8)) / np.trace(w @ w.T), abs=1e-9)


def test_nothing_is_discarded_of_zeros() -> None:
    zeros = np.zeros((3, 3))
    for of in (Projection.by_outputs, Projection.by_inputs):
        assert np.isfinite(of(zeros, zeros).lost()).all()


def thin(model: ir.Model, name: str, rank: int) -> ir.Model:
    """The model with a weight of exactly this rank."""
    value = model.graph.initializers[name]
    weight = value.const_value.numpy()
    shape = weight.shape
    u, s, v = np.linalg.svd(weight.reshape(shape[0], -1), full_matrices=False)
    value.const_value = ir.tensor(
        ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(shape).astype(np.float32), name=name
    )
    return model


CONVS = {
    "strides": ("float[N, 4, 9, 8]", "strides = [2, 1], pads = [1, 0, 1, 2]", (12, 4, 3, 3)),
    "dilations": ("float[N, 4, 9, 9]", "dilations = [2, 1], pads = [2, 1, 2, 1]", (12, 4, 3, 3)),
    "same": ("float[N, 4, 9, 8]", 'strides = [2, 2], auto_pad = "SAME_LOWER"', (12, 4, 3, 2)),
    "one_dimension": ("float[N, 4, 12]", "strides = [2], pads = [1, 0]", (12, 4, 3)),
    "kernel_shape": ("float[N, 4, 9, 8]", "kernel_shape = [3, 3]", (12, 4, 3, 3)),
    "three_dimensions": ("float[N, 4, 5, 4, 4]", "pads = [1, 1, 1, 1, 1, 1]", (12, 4, 3, 3, 3)),
    "pointwise": ("float[N, 12, 5, 4]", "strides = [1, 2]", (12, 12, 1, 1)),
}


@pytest.mark.parametrize("name", sorted(CONVS))
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_low_rank_is_split_without_loss(name: str, bias: bool) -> None:
    x, attributes, shape = CONVS[name]
    out = ", ".join(["N", "M", *"hwd"[: len(shape) - 2]])
    weights = constants(1, w=shape, b=shape[:1])
    model = thin(
        text(f"({x} x) => (float[{out}] y)", f"y = Conv <{attributes}> (x, w{', b' * bias})", weights), "w", 3
    )
    split = model.clone()
    outcome = LowRank((("y", 3),)).apply(split, oracles.context(model))
    assert outcome.changed == ("y",)
    assert [tuple(s.weight.shape) for s in find_sites(split)] == [
        (3, *shape[1:]), (12, 3, *[1] * (len(shape) - 2)),
    ]  # fmt: skip
    feeds = models.feeds(model, 3)
    assert oracles.close(models.run(model, feeds), models.run(split, feeds), 1e-4)
    assert parameters(split) < parameters(model)


@pytest.mark.parametrize("transposed", [0, 1])
def test_dense_layers_of_low_rank_are_split_without_loss(transposed: int) -> None:
    body = f"h = Gemm <transB = {transposed}> (x, w, b) r = Relu(h) g = MatMul(r, v) y = Add(g, c)"
    weights = constants(2, w=(12, 9) if transposed else (9, 12), b=(12,), v=(12, 10), c=(10,))
    model = text("(float[N, 9] x) => (float[N, 10] y)", body, weights)
    thin(thin(model, "w", 3), "v", 4)
    split = model.clone()
    outcome = LowRank((("h", 3), ("g", 4))).apply(split, oracles.context(model))
    assert outcome.changed == ("h", "g")
    feeds = models.feeds(model, 5)
    assert oracles.close(models.run(model, feeds), models.run(split, feeds), 1e-3)


def test_splitting_with_samples_beats_the_plain_svd() -> None:
    """Inputs that vary along few directions: the split keeps those."""
    model = text("(float[N, 16] x) => (float[N, 12] y)", "y = Gemm <transB = 1> (x, w, b)",
                 constants(5, w=(12, 16), b=(12,)))  # fmt: skip
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(3, 16))
    feeds = {"x": (rng.normal(size=(64, 3)) @ basis + 0.01 * rng.normal(size=(64, 16))).astype(np.float32)}
    split = model.clone()
    LowRank((("y", 3),)).apply(split, oracles.context(model, feeds=feeds))
    before, after = models.run(model, feeds)["y"], models.run(split, feeds)["y"]
    w = model.graph.initializers["w"].const_value.numpy()
    p, s, q = np.linalg.svd(w)
    plain = feeds["x"] @ ((p[:, :3] * s[:3]) @ q[:3]).T + model.graph.initializers["b"].const_value.numpy()
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(plain - before)


def test_sites_can_be_split_again_and_names_stay_apart() -> None:
    model = models.mlp(32, 24)
    split = model.clone()
    context = oracles.context(model)
    LowRank((("y", 10),)).apply(split, context)
    LowRank((("y", 4), ("y_v", 5))).apply(split, context)
    names = [v.name for node in split.graph for v in node.outputs]
    assert len(set(names)) == len(names)
    assert len({s.name for s in find_sites(split)}) == len(find_sites(split)) == 5
    assert models.run(split, models.feeds(model))["y"].shape == (4, 24)


@pytest.mark.parametrize(
    ("site", "rank", "leave", "word"),
    [
        ("c2", 8, (), "smaller"),
        ("c2", 0, (), "smaller"),
        ("nobody", 2, (), "no such"),
        ("c2", 2, ("^c",), "--leave"),
    ],
)
def test_what_cannot_be_split_is_left_alone_with_a_reason(
    site: str, rank: int, leave: tuple[str, ...], word: str
) -> None:
    model = models.cnn()
    changed = model.clone()
    outcome = LowRank(((site, rank),)).apply(changed, oracles.context(model, leave=leave))
    assert not outcome.modified
    assert [s.site for s in outcome.skipped] == [site]
    assert word in outcome.skipped[0].reason
    assert to_bytes(changed) == to_bytes(model)


def test_what_would_take_minutes_and_gigabytes_is_left_alone() -> None:
    model = models.mlp(8, MOST_OUTPUTS + 1)
    outcome = LowRank((("y", 2),)).apply(model.clone(), oracles.context(model))
    assert [s.reason for s in outcome.skipped] == ["it has over 4096 outputs"]


def test_sites_that_follow_are_refitted_but_for_those_that_the_user_leaves() -> None:
    model = models_core.random_net(["relu", "conv", "relu"], "gap", 4)
    infer_shapes(model)
    first, second, third = find_sites(model)
    rank = max(1, min(first.matrix().shape) // 3)
    for leave in ((), (f"^{second.name}$",)):
        split = model.clone()
        LowRank(((first.name, rank),)).apply(split, oracles.context(model, leave=leave))
        after = {s.name: s.weight for s in find_sites(split)}
        assert np.array_equal(after[second.name], second.weight) == bool(leave)
        assert not np.array_equal(after[third.name], third.weight)


@pytest.mark.parametrize("paired", [False, True])
def test_the_bias_takes_up_the_mean_of_what_is_lost(paired: bool) -> None:
    model = models.text(
        "(float[N, 64] x) => (float[N, 32] y)",
        "h = Identity (x) y = Gemm <transB = 1> (h, w, b)",
        models.constants(3, w=(32, 64), b=(32,)),
    )
    infer_shapes(model)
    rng = np.random.default_rng(0)
    x = {"x": (rng.standard_normal((300, 64)) + 3).astype(np.float32)}
    changed, site = model.clone(), find_sites(model)[0]
    if paired:
        changed.graph[0].outputs[0].meta[KEPT] = np.arange(64)
    LowRank(((site.name, 6),)).apply(changed, oracles.context(model, 300, feeds=x))
    error = models.run(changed, x)["y"] - models.run(model, x)["y"]
    assert error.std() > 0.5
    assert np.abs(error.mean(0)).max() < 1e-2 * error.std()


@pytest.mark.parametrize("opset", [7, 9, 11, 18])
def test_a_gemm_is_split_into_what_its_opset_knows(opset: int) -> None:
    """Before opset 11 a Gemm had to have three inputs."""
    model = text(
        "(float[N, 12] x) => (float[N, 10] y)",
        "y = Gemm <transB = 1> (x, w, b)",
        constants(5, w=(10, 12), b=(10,)),
        opset=opset,
    )
    changed = model.clone()
    assert LowRank((("y", 3),)).apply(changed, oracles.context(model, 32)).changed == ("y",)
    assert [node.op_type for node in changed.graph] == ["Gemm", "Gemm"]
    feeds = models.feeds(model)
    assert models.run(changed, feeds)["y"].shape == models.run(model, feeds)["y"].shape
