"""`model-sparse.npz` in the output folder: there where it is faster, and the report says why or why not."""

import json
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from clicase import Case

from edgepress.compressor import sparse as module
from edgepress.compressor.model import to_proto
from edgepress.runtime.engines.sparse import SparseEngine


def perceptron(width: int, density: float) -> ir.Model:
    """6-width-width-4 with that share of its weights in the middle."""
    weights = models.constants(1, w1=(6, width), w2=(width, width), w3=(width, 4), b=(width,))
    weights["w2"] *= np.random.default_rng(0).random((width, width)) < density
    return models.text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = MatMul(x, w1) r = Relu(h) g = Gemm(r, w2, b) s = Relu(g) y = MatMul(s, w3)",
        weights,
    )


def compressed(case: Case, model: ir.Model) -> tuple[dict[str, object] | None, str]:
    """The report's word on it, and what the command printed, for a recipe of nothing."""
    onnx.save(to_proto(model), case.model)
    for name, seed in (("calib.npz", 1), ("test.npz", 2)):
        case.samples(name, **models.feeds(model, 60, seed))
    (case.folder / "recipe.toml").write_text("pass = []", encoding="utf-8")
    done = case.compress("--recipe", case.folder / "recipe.toml", target="local")
    assert done.code == 0, done.err
    said = json.loads((case.out / "report.json").read_bytes())["sparse"]
    return said, done.out


def test_a_sparse_perceptron_gets_a_file_that_runs_faster(case: Case) -> None:
    said, out = compressed(case, perceptron(1500, 0.01))
    assert said is not None
    assert said["reason"] == ""
    assert said["latency_ns"] < 0.98 * said["onnx_latency_ns"]  # type: ignore[operator]
    file = case.out / "model-sparse.npz"
    assert said["size_bytes"] == file.stat().st_size < (case.out / "model.onnx").stat().st_size / 10
    assert "Sparse " in out
    assert "model-sparse.npz" in (case.out / "report.html").read_text(encoding="utf-8")
    assert file.name in json.loads((case.out / "manifest.json").read_bytes())["files"]
    feeds = models.feeds(perceptron(1500, 0.01))
    expected = models.run(case.out / "model.onnx", feeds)["y"]
    np.testing.assert_allclose(SparseEngine().load(file)(feeds)["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_small_one_is_not_worth_it_and_the_report_says_so(case: Case) -> None:
    said, out = compressed(case, perceptron(64, 0.02))
    assert said is not None
    assert said["reason"] == "it is not faster than model.onnx"
    assert "not faster" in out
    assert not (case.out / "model-sparse.npz").exists()


@pytest.mark.parametrize("model", [perceptron(64, 1.0), models.cnn()], ids=["dense", "cnn"])
def test_others_are_not_tried(case: Case, model: ir.Model) -> None:
    said, out = compressed(case, model)
    assert said is None
    assert "Sparse" not in out


def test_outputs_that_differ_are_not_handed_over(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "to_bytes", lambda net: Path("other.npz").read_bytes())
    from edgepress.compressor.export.sparse import from_model, write_sparse

    other = perceptron(1500, 0.01)
    other.graph.initializers["b"].const_value = ir.Tensor(np.ones(1500, np.float32))
    write_sparse(from_model(other), case.folder / "other.npz")
    said, _ = compressed(case, perceptron(1500, 0.01))
    assert said is not None
    assert "differ" in str(said["reason"])
    assert not (case.out / "model-sparse.npz").exists()
