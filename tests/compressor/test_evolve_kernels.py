"""Kernels against a dense net on the mask, and gradients against differences."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.evolve import compiled, plain
from edgepress.compressor.evolve.layers import (
    DenseLayer,
    Hidden,
    SparseLayer,
    Step,
    start_dense,
    start_sparse,
)
from edgepress.compressor.evolve.network import Network, softmax_gradient

Matrix = npt.NDArray[np.float32]
BOTH = pytest.mark.parametrize("kernels", [plain, compiled])
CASES = given(
    st.integers(0, 2**32),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 40),
    st.floats(0.1, 4),
    st.sampled_from([0.0, 0.25]),
)


def close(found: Matrix, expected: Matrix) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def twin(layer: SparseLayer | DenseLayer) -> SparseLayer | DenseLayer:
    names = ("weights", "velocity", "bias", "bias_velocity")
    return replace(layer, **{name: getattr(layer, name).copy() for name in names})


def dense_of(layer: SparseLayer) -> tuple[Matrix, npt.NDArray[np.bool_]]:
    mask = np.zeros(layer.shape, bool)
    mask[layer.topology.sources, layer.topology.targets] = True
    whole = np.zeros(layer.shape, np.float32)
    whole[layer.topology.sources, layer.topology.targets] = layer.weights
    return whole, mask


@BOTH
@settings(deadline=None)  # the first call compiles
@CASES
def test_forward_is_the_dense_net_on_the_mask(
    kernels: ModuleType, seed: int, inputs: int, outputs: int, batch: int, epsilon: float, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    layer = start_sparse(inputs, outputs, epsilon, random, kernels)
    layer.bias[:] = random.normal(size=outputs)
    whole, _ = dense_of(layer)
    x = random.normal(size=(inputs, batch)).astype(np.float32)
    out = np.full((outputs, batch), np.nan, np.float32)
    sums = whole.T @ x + layer.bias[:, None]
    layer.forward(x, out, None, None)
    close(out, sums)
    sure = np.abs(sums - threshold) > 1e-4  # what lies at the threshold may fall to either side
    layer.forward(x, out, Hidden(threshold), None)
    close(out[sure], np.where(sums > threshold, sums, 0)[sure])
    noise = random.integers(0, 65536, out.shape, np.uint16)
    layer.forward(x, out, Hidden(threshold, 16384), noise)
    close(out[sure], (np.where(sums > threshold, sums, 0) * (noise >= 16384) / 0.75)[sure])


@BOTH
@settings(deadline=None)
@CASES
def test_backward_is_the_dense_net_on_the_mask(
    kernels: ModuleType, seed: int, inputs: int, outputs: int, batch: int, epsilon: float, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    layer = start_sparse(inputs, outputs, epsilon, random, kernels)
    layer.velocity[:] = random.normal(size=layer.connections)
    whole, mask = dense_of(layer)
    moving = np.zeros_like(whole)
    moving[mask] = layer.velocity
    x = random.normal(size=(inputs, batch)).astype(np.float32)
    delta = random.normal(size=(outputs, batch)).astype(np.float32)
    out = np.full((inputs, batch), np.nan, np.float32)
    layer.backward(x, delta, out, Step(0.1, 0.9, 0.01), 1.25)
    moving = 0.9 * moving - 0.1 * ((x @ delta.T) * mask + 0.01 * whole)
    close(out, (whole @ delta) * (x > 0) * np.float32(1.25))
    close(layer.velocity, moving[mask])
    close(layer.weights, (whole + moving)[mask])
    close(layer.bias, -0.1 * delta.sum(axis=1))


@settings(deadline=None)
@CASES
def test_backward_without_a_layer_before_learns_the_same(
    seed: int, inputs: int, outputs: int, batch: int, epsilon: float, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    one = start_sparse(inputs, outputs, epsilon, random, compiled)
    two = twin(one)
    x = random.normal(size=(inputs, batch)).astype(np.float32)
    delta = random.normal(size=(outputs, batch)).astype(np.float32)
    one.backward(x, delta, None, Step(), 1.0)
    two.backward(x, delta, np.empty_like(x), Step(), 1.0)
    assert (one.weights == two.weights).all()


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_gradients_are_differences_of_the_loss(kind: str) -> None:
    random = np.random.default_rng(3)
    widths = ((7, 12), (12, 9), (9, 4))
    layers: list[SparseLayer | DenseLayer] = [
        start_dense(*pair, random) if kind == "dense" else start_sparse(*pair, 3, random, plain)
        for pair in widths
    ]
    for layer in layers:
        layer.bias[:] = random.normal(0, 0.1, layer.shape[1])
    x = random.normal(size=(7, 5)).astype(np.float32)
    labels = random.integers(0, 4, 5)

    def loss(of: list[SparseLayer | DenseLayer]) -> float:
        logits = Network(of, Hidden(), Step()).logits(x).astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=0))
        return float(-np.log(shifted / shifted.sum(axis=0))[labels, np.arange(5)].mean())

    learnt = [twin(layer) for layer in layers]
    said = Network(learnt, Hidden(), Step(1.0, 0.0, 0.0)).learn(x, labels, random)
    assert said / 5 == pytest.approx(loss(layers), rel=1e-5)
    for at, layer in enumerate(layers):
        for name in ("weights", "bias"):
            gradient = (getattr(layer, name) - getattr(learnt[at], name)).reshape(-1)
            for place in random.choice(gradient.size, min(6, gradient.size), replace=False):
                ends = []
                for shift in (1e-3, -1e-3):
                    moved = [twin(layer) for layer in layers]
                    getattr(moved[at], name).reshape(-1)[place] += shift
                    ends.append(loss(moved))
                assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=2e-3)


def test_the_dense_layer_is_the_sparse_one_with_all_connections() -> None:
    random = np.random.default_rng(0)
    sparse = start_sparse(20, 15, 1000, random, compiled)
    whole, mask = dense_of(sparse)
    assert mask.all()
    dense = DenseLayer(
        whole, np.zeros_like(whole), sparse.bias.copy(), sparse.bias_velocity.copy(), np.empty_like(whole)
    )
    x = random.normal(size=(20, 32)).astype(np.float32)
    outs = [np.empty((15, 32), np.float32) for _ in range(2)]
    backs = [np.empty((20, 32), np.float32) for _ in range(2)]
    delta = random.normal(size=(15, 32)).astype(np.float32)
    noise = random.integers(0, 65536, (15, 32), np.uint16)
    for _ in range(3):
        for layer, out, back in zip((sparse, dense), outs, backs, strict=True):
            layer.forward(x, out, Hidden(0.1, 20000), noise)
            layer.backward(x, delta, back, Step(0.01, 0.9, 0.1), 1.5)
        close(outs[0], outs[1])
        close(backs[0], backs[1])
    close(sparse.weights, dense.weights.ravel())


def test_softmax_survives_large_numbers() -> None:
    logits = np.array([[1000.0, -1000], [0, 0], [-1000, 5]], np.float32)
    out = np.empty_like(logits)
    loss = softmax_gradient(logits, np.array([0, 1]), out)
    assert loss == pytest.approx(np.log(1 + np.exp(5)), rel=1e-5)
    np.testing.assert_allclose(out.sum(axis=0), 0, atol=1e-6)
