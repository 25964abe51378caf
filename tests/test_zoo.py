"""The models and samples in benchmarks/zoo: whole, small, licensed, and as good as their info.json says."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

ZOO = Path(__file__).parent.parent / "benchmarks" / "zoo"
NAMES = ("digits_cnn", "fmnist_cnn", "fmnist_resnet", "mnist_mlp")
SCORE_AT_LEAST = {"digits_cnn": 97.0, "fmnist_cnn": 90.5, "fmnist_resnet": 88.0, "mnist_mlp": 96.0}
TEST_ROWS_AT_LEAST = {"digits_cnn": 400, "fmnist_cnn": 1000, "fmnist_resnet": 1000, "mnist_mlp": 1000}

each_model = pytest.mark.parametrize("name", NAMES)


def samples(name: str, part: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    with np.load(ZOO / name / f"{part}.npz", allow_pickle=False) as stored:
        assert set(stored) == {"x", "y"}
        return stored["x"], stored["y"]


def info(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ZOO / name / "info.json").read_text("utf-8"))
    return read


def test_every_folder_is_a_known_model() -> None:
    assert sorted(path.parent.name for path in ZOO.glob("*/model.onnx")) == sorted(NAMES)


def test_models_and_samples_stay_under_three_megabytes() -> None:
    files = [path for name in NAMES for path in (ZOO / name).iterdir()]
    assert sum(path.stat().st_size for path in [*files, ZOO / "LICENSES.md"]) < 3_000_000


@each_model
def test_the_folder_is_complete_and_its_source_is_licensed(name: str) -> None:
    found = {path.name for path in (ZOO / name).iterdir()}
    assert found == {"model.onnx", "calib.npz", "test.npz", "info.json"}
    told = info(name)
    assert {"task", "metric", "score", "unit", "rows", "params", "source", "licence", "seed"} <= set(told)
    assert re.search(r"\((MIT|BSD-3-Clause)\)", told["source"])
    assert f"`{name}`" in (ZOO / "LICENSES.md").read_text("utf-8")


@each_model
def test_the_model_scores_what_its_info_says(name: str) -> None:
    session = onnxruntime.InferenceSession(ZOO / name / "model.onnx", providers=["CPUExecutionProvider"])
    x, y = samples(name, "test")
    (logits,) = session.run(["logits"], {"x": x.astype(np.float32)})
    score = 100 * float((np.asarray(logits).argmax(axis=1) == y).mean())
    assert score == pytest.approx(info(name)["score"], abs=0.1)
    assert score >= SCORE_AT_LEAST[name]


@each_model
def test_the_interface_is_the_same_everywhere(name: str) -> None:
    model = onnx.load(ZOO / name / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    x, _ = samples(name, "test")
    assert shapes == {"x": ["batch", *x.shape[1:]], "logits": ["batch", 10]}


@each_model
def test_calibration_and_test_share_no_row(name: str) -> None:
    x_calib, y_calib = samples(name, "calib")
    x_test, y_test = samples(name, "test")
    assert x_calib.dtype == x_test.dtype == np.uint8
    assert 400 <= len(x_calib) == len(y_calib) <= 500
    assert len(x_test) == len(y_test) >= TEST_ROWS_AT_LEAST[name]
    assert set(np.unique(y_calib)) == set(np.unique(y_test)) == set(range(10))
    assert not {row.tobytes() for row in x_calib} & {row.tobytes() for row in x_test}


@each_model
def test_the_model_names_no_folder_of_the_machine_that_made_it(name: str) -> None:
    model = onnx.load(ZOO / name / "model.onnx", load_external_data=False)
    graph = model.graph
    parts = (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    notes = [note.value for part in parts for note in part.metadata_props]
    notes += [part.doc_string for part in parts]
    assert not [note for note in notes if re.search(r'File "[^"]*/', note)]
    assert any(notes) == (name == "digits_cnn")  # one keeps the exporter's notes, for the tool to remove


def test_one_model_keeps_its_batchnorm_and_one_has_residual_adds() -> None:
    ops = {name: {node.op_type for node in onnx.load(ZOO / name / "model.onnx").graph.node} for name in NAMES}
    assert {"BatchNormalization", "Add"} <= ops["fmnist_resnet"]
    assert "BatchNormalization" not in ops["fmnist_cnn"]
