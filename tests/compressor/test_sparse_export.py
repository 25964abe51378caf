"""Perceptrons as `.npz` files: what is taken, that it computes the same, and what is refused by name."""

import itertools
import math

import models
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.errors import ModelError, OutputError
from edgepress.compressor.export import sparse as module
from edgepress.compressor.export.sparse import SparseLayer, SparseNet, from_model, to_bytes, write_sparse
from edgepress.runtime.engines import sparse as engine
from edgepress.runtime.engines.sparse import SparseEngine

HIDDEN = ("Relu", "ThresholdedRelu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "")
LAST = ("Softmax", "LogSoftmax", "")


@st.composite
def pruned(draw):
    """A perceptron of a few layers whose weights are mostly zero, written in the ways of ONNX."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    density = draw(st.sampled_from([0.0, 0.1, 0.6]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    image = draw(st.sampled_from(["", "Flatten", "Reshape"]))
    header = f"(float[N, {'1, ' if image else ''}{widths[0]}] x) => (float[N, {widths[-1]}] y)"
    body = {"": "v = Identity(x)", "Flatten": "v = Flatten(x)", "Reshape": "v = Reshape(x, s)"}[image]
    weights = {"s": np.array([-1, widths[0]])} if image == "Reshape" else {}
    for place, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        w = rng.standard_normal((inputs, outputs)).astype(np.float32) * (
            rng.random((inputs, outputs)) < density
        )
        way = draw(st.sampled_from(["MatMul", "MatMul+Add", "Gemm", "Gemm^T"]))
        weights[f"w{place}"] = w.T.copy() if way == "Gemm^T" else w
        bias = f"b{place}"
        if way != "MatMul":
            weights[bias] = rng.standard_normal(outputs).astype(np.float32)
        body += {
            "MatMul": f" z{place} = MatMul(v, w{place})",
            "MatMul+Add": f" m{place} = MatMul(v, w{place}) z{place} = Add({bias}, m{place})",
            "Gemm": f" z{place} = Gemm(v, w{place}, {bias})",
            "Gemm^T": f" z{place} = Gemm <transB = 1> (v, w{place}, {bias})",
        }[way].replace("(v,", f"({'v' if not place else f'v{place}'},")
        last = place == len(widths) - 2
        kind = draw(st.sampled_from(LAST if last else HIDDEN))
        alpha = " <alpha = 0.25>" if kind in module.ALPHAS else ""
        body += f" {'y' if last else f'v{place + 1}'} = {kind or 'Identity'}{alpha} (z{place})"
    return models.text(header, body, weights)


@settings(max_examples=60, deadline=None)
@given(pruned(), st.sampled_from([1, 3]))
def test_it_computes_what_onnxruntime_does(model, rows):
    feeds = models.feeds(model, rows)
    expected = models.run(model, feeds)["y"]
    run = SparseEngine().load(to_bytes(from_model(model)))
    found = run(feeds)["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert run.inputs[0].shape == (None, *feeds["x"].shape[1:])


def test_zeros_are_not_written_and_the_same_net_gives_the_same_bytes():
    weights = np.zeros((50, 40), np.float32)
    stored = scipy.sparse.csr_matrix(([2, 0], ([3, 4], [7, 4])), (50, 40), dtype=np.float32)
    net = SparseNet((SparseLayer(stored, np.zeros(40, np.float32)),))
    assert net.density == 1 / 2000
    content = to_bytes(net)
    assert content == to_bytes(net)
    full = SparseNet((SparseLayer(scipy.sparse.csr_matrix(weights + 1), np.zeros(40, np.float32)),))
    assert len(to_bytes(full)) - len(content) == 1999 * (4 + 2)  # a weight and its input


def test_an_input_of_many_numbers_has_wide_indices(tmp_path):
    wide = 70_000
    row = scipy.sparse.csr_matrix(([2.0], ([wide - 1], [0])), (wide, 1), dtype=np.float32)
    write_sparse(SparseNet((SparseLayer(row, np.zeros(1, np.float32)),)), tmp_path / "net.npz")
    x = np.zeros((1, wide), np.float32)
    x[0, -1] = 3
    assert SparseEngine().load(tmp_path / "net.npz")({"input": x})["output"].tolist() == [[6]]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (models.cnn(), "Conv"),
        (models.residual(), "Conv"),
        (models.two_inputs(), "2 inputs"),
        (models.two_heads(), "2 outputs"),
        (models.matmul(), "does not read rows"),
        (models.half(), "FLOAT16"),
        (models.text("(float[N, 3] x) => (float[N, 3] y)", "y = Relu(x)"), "Relu"),
        (
            models.text("(float[N, 3] x) => (float[N, N] y)", "t = Transpose(x) y = MatMul(x, t)"),
            "nodes read",
        ),
        (
            models.text(
                "(float[N, 3] x) => (float[N, 2] y)",
                "h = MatMul(x, w) y = Softmax <axis = 0> (h)",
                models.constants(0, w=(3, 2)),
            ),
            "over the rows",
        ),
        (
            models.text(
                "(float[N, 3] x) => (float[N, 2] y)",
                "h = MatMul(x, w) s = Sigmoid(h) y = Mul(s, s)",
                models.constants(0, w=(3, 2)),
            ),
            "nodes read",
        ),
    ],
)
def test_what_is_no_perceptron_is_refused_by_name(model, says):
    with pytest.raises(ModelError, match=says):
        from_model(model)


def test_layers_that_do_not_follow_each_other_make_no_file(tmp_path):
    def layer(inputs, outputs, bias=None):
        return SparseLayer(
            scipy.sparse.csr_matrix((inputs, outputs)), np.zeros(outputs if bias is None else bias)
        )

    for wrong in (
        SparseNet((layer(3, 4), layer(5, 2))),
        SparseNet((layer(3, 4),), input_shape=(2, 2)),
        SparseNet((layer(3, 4, bias=3),)),
    ):
        with pytest.raises(ValueError, match=r"shape|for"):
            write_sparse(wrong, tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="Cannot write"):
        write_sparse(SparseNet((layer(3, 4),)), tmp_path / "missing" / "net.npz")


def test_writer_and_engine_know_the_same():
    assert set(module.ACTIVATIONS) == set(engine.ACTIVATIONS)
    assert module.VERSION == engine.VERSION
    assert math.isclose(module.NO_ALPHA, 0)
