"""`compress evolve` from samples to files, as a user meets it."""

import json
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from clicase import Case
from scipy.sparse import csr_matrix

from edgepress.compressor.evolve import session, training
from edgepress.compressor.evolve.result import Finished, Part, to_onnx
from edgepress.compressor.model import to_bytes
from edgepress.compressor.report import evolve as record
from edgepress.compressor.report import manifest as manifests
from edgepress.runtime.engines.sparse import SparseEngine

Arrays = dict[str, npt.NDArray[Any]]


def images(rows: int, seed: int) -> Arrays:
    """4×5 pictures of a bar that stands in one of four columns, with noise."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 4, rows)
    x = random.integers(0, 60, (rows, 1, 4, 5))
    x[np.arange(rows), 0, :, y] += 150
    return {"x": x.astype(np.uint8), "y": y}


@pytest.fixture
def bars(case: Case) -> Case:
    np.savez(case.folder / "train.npz", **images(300, 0))
    np.savez(case.folder / "unseen.npz", **images(120, 1))
    return case


def evolve(case: Case, *words: object, **changed: object) -> Any:
    options = {"data": case.folder / "train.npz", "test": case.folder / "unseen.npz", "layers": "20,30,25,4"}
    options |= {"epsilon": 3, "epochs": 6, "batch": 20, "kernels": "scipy", "out": case.out, **changed}
    named = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return case.run("evolve", *named, *words)


def report(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case.out / "report.json").read_text("utf-8"))
    return found


def test_layers_larger_than_memory_are_refused(bars: Case) -> None:
    for layers in ("20,30,1000000000000,4", "20,50000000,50000000,4"):
        done = evolve(bars, layers=layers)
        assert (done.code, done.err.count("\n")) == (2, 2)
        assert "GB as a dense model.onnx" in done.err
        assert not bars.out.exists()


def test_samples_become_files_that_agree(bars: Case) -> None:
    done = evolve(bars)
    assert done.code == 0, done.err
    assert "fewer" in done.out
    found = report(bars)
    assert record.Evolved.model_validate(found).test_accuracy > 90
    assert set(found["size_bytes"]) == {"model.onnx", "model-sparse.npz"}
    assert {path.name for path in bars.out.iterdir()} == {
        *found["size_bytes"], "report.json", "report.html", "manifest.json",
    }  # fmt: skip
    assert manifests.verify(bars.out) == []
    unseen = images(120, 1)
    feed = {"input": unseen["x"].astype(np.float32)}
    run = onnxruntime.InferenceSession(bars.out / "model.onnx", providers=["CPUExecutionProvider"])
    logits = run.run(None, feed)[0]
    assert 100 * (logits.argmax(axis=1) == unseen["y"]).mean() == pytest.approx(found["test_accuracy"])
    sparse = SparseEngine().load(bars.out / "model-sparse.npz")(feed)["logits"]
    np.testing.assert_allclose(sparse, logits, rtol=1e-3, atol=1e-3)
    weights = [v.const_value for v in ir.load(bars.out / "model.onnx").graph.initializers.values()]
    floats = [w.numpy() for w in weights if w is not None and w.dtype == ir.DataType.FLOAT]
    biases = sum(w.size for w in floats if w.ndim == 1)
    assert found["weights"] == biases + sum(np.count_nonzero(w) for w in floats if w.ndim == 2)
    assert found["compression"] == pytest.approx(found["dense_weights"] / found["weights"])
    assert found["dense_weights"] == 21 * 30 + 31 * 25 + 26 * 4
    assert [row["number"] for row in found["epochs"]] == [1, 2, 3, 4, 5, 6]


def test_the_page_shows_curves_and_degrees(bars: Case) -> None:
    assert evolve(bars).code == 0
    page = (bars.out / "report.html").read_text("utf-8")
    assert page.count("<polyline") == 4
    assert "Is it scale-free?" in page
    assert f"{report(bars)['test_accuracy']:.2f} % of the test rows right" in page


def test_equal_seeds_give_equal_models(bars: Case) -> None:
    files = []
    for seed in (3, 3, 4):
        assert evolve(bars, seed=seed).code == 0
        files.append([(bars.out / name).read_bytes() for name in ("model.onnx", "model-sparse.npz")])
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_an_interrupted_run_goes_on_to_the_same_model(bars: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evolve(bars, out=bars.folder / "whole").code == 0
    real, calls = training.Training.epoch, []

    def interrupted(self: training.Training, tell: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, tell)

    monkeypatch.setattr(training.Training, "epoch", interrupted)
    stopped = evolve(bars)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert not bars.out.exists()
    assert (bars.folder / "out.checkpoint.npz").exists()
    again = evolve(bars)
    assert again.code == 2
    assert "--resume" in again.err
    other = evolve(bars, "--resume", epsilon=4)
    assert other.code == 2
    assert "epsilon" in other.err
    assert evolve(bars, "--resume").code == 0
    assert len(calls) == 4 + 3
    assert (bars.out / "model.onnx").read_bytes() == (bars.folder / "whole/model.onnx").read_bytes()
    assert not (bars.folder / "out.checkpoint.npz").exists()


def test_a_trained_model_is_a_start(bars: Case) -> None:
    assert evolve(bars, "--method", "dense", epochs=12, out=bars.folder / "dense").code == 0
    done = evolve(
        bars, "--from", bars.folder / "dense/model.onnx", layers=None, epochs=1, zeta=0, **{"zeta-min": 0}
    )
    assert done.code == 0, done.err
    found = report(bars)
    assert found["layers"][0] == 20
    assert found["test_accuracy"] > 60  # one epoch from scratch knows a quarter to a half
    assert found["weights"] < found["dense_weights"]


def test_a_model_of_weights_stored_narrow_is_a_start(bars: Case) -> None:
    assert evolve(bars, "--method", "dense", epochs=12, out=bars.folder / "dense").code == 0
    recipe = bars.folder / "recipe.toml"
    recipe.write_text("[[pass]]\nkind = 'store'\nweight_bits = 6\nmin_elements = 1\n")
    words = ("--recipe", recipe, "--data", bars.folder / "train.npz", "--out", bars.folder / "narrow")
    assert bars.run("run", bars.folder / "dense/model.onnx", *words).code in (0, 1, 4)
    done = evolve(
        bars, "--from", bars.folder / "narrow/model.onnx", layers=None, epochs=1, zeta=0, **{"zeta-min": 0}
    )
    assert done.code == 0, done.err
    assert report(bars)["test_accuracy"] > 60  # one epoch from scratch knows a quarter to a half


def test_augmentation_threshold_and_schedules_are_taken(bars: Case) -> None:
    done = evolve(bars, "--flip", method="osv", shift=1, threshold=0.05, **{"last-epoch": "keep"})
    assert done.code == 0, done.err
    found = report(bars)
    kinds = [node.op_type for node in ir.load(bars.out / "model.onnx").graph]
    assert kinds.count("ThresholdedRelu") == 2
    assert [round(row["zeta"], 4) for row in found["epochs"]][-1] == 0
    assert len({row["connections"] for row in found["epochs"]}) == 1


def test_without_a_test_a_tenth_is_set_aside(bars: Case) -> None:
    done = evolve(bars, test=None)
    assert done.code == 0
    assert "set aside" in done.err
    assert (report(bars)["train_rows"], report(bars)["test_rows"]) == (270, 30)


def test_json_is_the_report(bars: Case) -> None:
    done = evolve(bars, "--json", epochs=2)
    assert json.loads(done.out) == report(bars)


def test_an_npz_of_ours_is_swapped_and_a_strange_folder_is_not(bars: Case) -> None:
    assert evolve(bars, epochs=1).code == 0
    assert evolve(bars, epochs=1).code == 0
    strange = bars.folder / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    refused = evolve(bars, epochs=1, out=strange)
    assert refused.code == 2
    assert [path.name for path in strange.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": None}, "--layers"),
        ({"layers": "20"}, "784,1000,10"),
        ({"layers": "20,x,4"}, "784,1000,10"),
        ({"layers": "21,30,4"}, "samples of 20 numbers"),
        ({"layers": "20,30,3"}, "Class 3 occurs"),
        ({"zeta": 0.3, "zeta-min": 0.4}, "--zeta-min"),
        ({"from": "model.onnx"}, "Exactly one"),
        ({"data": "missing.npz"}, "does not exist"),
        ({"learning-rate": 1e30}, "diverged"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(bars: Case, changed: dict[str, object], said: str) -> None:
    done = evolve(bars, **changed)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not bars.out.exists()
    assert not list(bars.folder.glob("*.checkpoint.npz"))


def test_samples_without_classes_and_plain_rows_to_flip_are_refused(bars: Case) -> None:
    content = images(50, 0)
    np.savez(bars.folder / "bare.npz", x=content["x"])
    assert "no classes" in evolve(bars, data=bars.folder / "bare.npz").err
    np.savez(bars.folder / "half.npz", x=content["x"], y=content["y"] + 0.5)
    assert "classes" in evolve(bars, data=bars.folder / "half.npz").err
    for name, seed in (("rows", 0), ("others", 1)):
        content = images(50, seed)
        np.savez(bars.folder / f"{name}.npz", x=content["x"].reshape(50, -1), y=content["y"])
    plain = {"data": bars.folder / "rows.npz", "test": bars.folder / "others.npz"}
    assert "images" in evolve(bars, "--flip", **plain).err


def test_only_a_perceptron_can_be_started_from(bars: Case) -> None:
    path = bars.folder / "conv.onnx"
    path.write_bytes(to_bytes(models.cnn()))
    done = evolve(bars, "--from", path, layers=None)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_a_result_that_says_something_else_is_not_written(
    bars: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: Finished, shape: tuple[int, ...]) -> ir.Model:
        last = net.parts[-1]
        parts = (*net.parts[:-1], Part(csr_matrix(last.weights * 1.5), last.bias))
        return to_onnx(Finished(parts, net.used, net.features, net.threshold), shape)

    monkeypatch.setattr(session, "to_onnx", wrong)
    done = evolve(bars)
    assert done.code == 2
    assert "does not say" in done.err
    assert not bars.out.exists()


def test_the_committed_schema_is_current() -> None:
    committed = Path(sys.modules[record.__name__].__file__ or "").with_name("evolve.schema.json")
    assert json.loads(committed.read_text(encoding="utf-8")) == json.loads(record.schema_text())


def test_other_commands_say_that_this_is_no_compression(bars: Case) -> None:
    assert evolve(bars, epochs=1).code == 0
    for words in (("report", bars.out), ("replay", bars.out, "--out", bars.folder / "again")):
        done = bars.run(*words)
        assert done.code == 2
        assert "evolve" in done.err


def test_without_numba_scipy_trains(bars: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert evolve(bars, kernels=None, epochs=1).code == 0
    assert report(bars)["kernels"] == "scipy"
    refused = evolve(bars, kernels="numba", epochs=1)
    assert refused.code == 2
    assert "edgepress[evolve]" in refused.err
