"""The finished net says what the trained one says, without what does nothing."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from edgepress.compressor.evolve import plain
from edgepress.compressor.evolve.layers import Hidden, SparseLayer, Step, start_dense, start_sparse
from edgepress.compressor.evolve.network import Network
from edgepress.compressor.evolve.result import Finished, Part, finish, shrunk, to_onnx, to_sparse
from edgepress.compressor.evolve.samples import Scaling
from edgepress.compressor.evolve.start import read_start
from edgepress.compressor.evolve.topology import Floats
from edgepress.compressor.export.onnx import save
from edgepress.compressor.export.sparse import write_sparse
from edgepress.compressor.model import to_bytes
from edgepress.compressor.serialize import write
from edgepress.runtime.engines.sparse import SparseEngine


def run(net: Finished, x: Floats) -> Floats:
    """[rows, features] → [rows, classes], layer by layer, in double precision."""
    values = x[:, net.used].astype(np.float64)
    for at, part in enumerate(net.parts):
        values = values @ part.weights.toarray() + part.bias
        if at < len(net.parts) - 1:
            values = np.where(values > net.threshold, values, 0)
    return values


def random_net(seed: int, widths: tuple[int, ...], density: float, threshold: float) -> Finished:
    random = np.random.default_rng(seed)
    parts = []
    for a, b in pairwise(widths):
        weights = random.normal(size=(a, b)) * (random.random((a, b)) < density)
        parts.append(Part(csr_matrix(weights.astype(np.float32)), random.normal(size=b).astype(np.float32)))
    return Finished(tuple(parts), np.arange(widths[0]), widths[0], threshold)


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3]),
)
def test_what_does_nothing_goes_and_nothing_changes(
    seed: int, widths: tuple[int, ...], density: float, threshold: float
) -> None:
    net = random_net(seed, widths, density, threshold)
    small = shrunk(net)
    x = np.random.default_rng(seed).normal(size=(9, widths[0])).astype(np.float32)
    np.testing.assert_allclose(run(small, x), run(net, x), rtol=1e-3, atol=1e-4)
    assert len(small.parts[-1].bias) == widths[-1]
    assert (np.diff(small.parts[0].weights.indptr) > 0).all()  # every input is read
    for part, behind in zip(small.parts, small.parts[1:], strict=False):
        assert (np.diff(part.weights.tocsc().indptr) > 0).all()  # every neuron reads
        assert (np.diff(behind.weights.indptr) > 0).all()  # and is read


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(40,), (1, 5, 8)])
@pytest.mark.parametrize("sparse", [True, False])
def test_all_forms_of_a_net_agree(
    threshold: float, shape: tuple[int, ...], sparse: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    widths = ((40, 30), (30, 25), (25, 4))
    layers = [start_sparse(*w, 0.8, random, plain) if sparse else start_dense(*w, random) for w in widths]
    for layer in layers:
        layer.bias[:] = random.normal(size=layer.shape[1])
    rows = random.normal(3, np.linspace(0.1, 5, 40), (50, 40)).astype(np.float32)
    scaling = Scaling.of(rows)
    x = scaling.apply(rows, np.empty((40, 50), np.float32))
    expected = Network(layers, Hidden(threshold), Step()).logits(x).T.copy()
    net = finish(layers, scaling, threshold)
    if sparse:
        assert len(net.used) < 40  # else this test would not test it
        assert net.widths[1] < 30
    write(save(to_onnx(net, shape)), tmp_path / "model.onnx")
    write_sparse(to_sparse(net, shape), tmp_path / "model-sparse.npz")
    feed = {"input": rows.reshape(-1, *shape)}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = (
        session.run(None, feed)[0],
        SparseEngine().load(tmp_path / "model-sparse.npz")(feed)["logits"],
        run(net, rows),
    )
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-3, atol=1e-3)


def test_a_finished_net_can_be_started_from(tmp_path: Path) -> None:
    net = random_net(1, (12, 20, 15, 3), 1.0, 0.0)
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(to_onnx(net, (3, 4))))
    start = read_start(path)
    assert start.widths == (12, 20, 15, 3)
    assert start.shape == (3, 4)
    rows = np.random.default_rng(0).normal(2, np.linspace(0.5, 3, 12), (60, 12)).astype(np.float32)
    scaling = Scaling.of(rows)
    values = scaling.apply(rows, np.empty((12, 60), np.float32)).T
    layers = start.scaled(scaling)
    for at, (weights, bias) in enumerate(layers):
        values = values @ weights + bias
        if at < len(layers) - 1:
            values = np.maximum(values, 0)
    np.testing.assert_allclose(values, run(net, rows), rtol=1e-3, atol=1e-3)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_the_model_is_the_same_for_the_same_net(seed: int) -> None:
    net = random_net(seed, (6, 5, 2), 0.6, 0.0)
    assert to_bytes(to_onnx(net, (6,))) == to_bytes(to_onnx(net, (6,)))


def test_unused_inputs_are_gathered_once() -> None:
    net = shrunk(random_net(0, (30, 3, 2), 0.2, 0.0))
    assert len(net.used) < 30
    kinds = [node.op_type for node in to_onnx(net, (30,)).graph]
    assert kinds == ["Gather", "Gemm", "Relu", "Gemm"]
    first = next(v for v in to_onnx(net, (30,)).graph.initializers.values() if v.name == "W1")
    assert isinstance(first, ir.Value)
    assert first.shape == (len(net.used), net.widths[1])


def test_sparse_layers_count_only_what_is_there() -> None:
    layer = start_sparse(10, 5, 1, np.random.default_rng(0), plain)
    assert isinstance(layer, SparseLayer)
    layer.weights[0] = 0
    net = finish([layer], Scaling(np.zeros(10, np.float32), np.ones(10, np.float32)), 0.0)
    assert net.weights == layer.connections - 1 + 5
