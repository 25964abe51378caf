"""The comparison of both files: which bars a model has, and that each miss is named."""

import importlib.util
import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import models
import numpy as np
import pytest
import readme_table

import tflite_judge
from edgepress.compressor.export.tflite import convert

ROOT = Path(__file__).parent.parent
MODEL = "digits_cnn"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """By its file: `tflite` is the tests' own module."""
    spec = importlib.util.spec_from_file_location("tflite_script", ROOT / "benchmarks" / "tflite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tflite_script"] = module
    spec.loader.exec_module(module)
    return module


OUTPUT = {"name": "y", "identical_percent": 99.95, "largest_steps": 1.0, "same_class_percent": 100.0}
ROW = {
    "model": "m",
    "metric": "top1",
    "n_test": 4000,
    "original_score": 91.0,
    "tflite": {
        "transposes": 1,
        "certificate": {
            "outputs": [OUTPUT],
            "differing": [],
            "partitions": 1,
            "outside": {},
            "onnx_score": 90.0,
            "score": 90.1,
        },
    },
    "judged": {
        "failure": "",
        "transposes": 1,
        "other_transposes": 0,
        "convert_seconds": 0.5,
        "latency_ns": [2000.0, 1800.0],
        "ratio": 0.9,
    },
}


def row(script: ModuleType, *keys: str, value: Any = None) -> Any:
    """A good row, with one of its values changed."""
    fields: dict[str, Any] = deepcopy(ROW)
    if keys:
        place = fields
        for key in keys[:-1]:
            place = place[int(key)] if key.isdigit() else place[key]
        place[keys[-1]] = value
    return script.Row(**fields)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("tflite", "certificate", "score"), 89.89, "score 89.89 instead of 90"),
        (("tflite", "certificate", "score"), None, "no score"),
        (("tflite", "certificate", "differing"), [{}], "other scales"),
        (("tflite",), {"reason": "x: form"}, "x: form"),
        (("tflite",), {"unproven": "nothing runs"}, "nothing runs"),
        (("judged", "failure"), "exit code -11: ", "exit code -11: "),
    ],
)
def test_what_every_model_must_reach(script: ModuleType, keys: tuple[str], value: Any, said: str) -> None:
    assert list(script.missed(row(script), None)) == []
    assert list(script.missed(row(script, *keys, value=value), None)) == [said]


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("tflite", "certificate", "outputs", "0", "identical_percent"), 99.8, "bit-identical < 99.9 %"),
        (("tflite", "certificate", "outputs", "0", "largest_steps"), 2.0, "y over a step apart"),
        (("tflite", "certificate", "outputs", "0", "largest_steps"), None, "y over a step apart"),
        (("tflite", "certificate", "partitions"), 2, "2 pieces"),
        (("judged", "other_transposes"), 1, "1 TRANSPOSE"),
        (("judged", "ratio"), 1.06, "latency > 1.05 ×"),
        (("judged", "convert_seconds"), 1.0, "conversion ≥ 1 s"),
    ],
)
def test_what_some_must_reach(script: ModuleType, keys: tuple[str], value: Any, said: str) -> None:
    bar = script.Bar(99.9, 1.05, 1.0)
    assert list(script.missed(row(script), bar)) == []
    assert list(script.missed(row(script, *keys, value=value), bar)) == [said]


@pytest.mark.parametrize(
    ("metric", "rows", "units"),
    [("top1", 4000, 0.1), ("agreement", 152, 100 / 152), ("psnr:255", 10, 0.1), ("fidelity", 10, 0.001)],
)
def test_scores_may_differ_by_a_tenth_of_a_point_or_one_row(
    script: ModuleType, metric: str, rows: int, units: float
) -> None:
    fields = {**ROW, "metric": metric, "n_test": rows}
    assert script.allowed(script.Row(**fields)) == pytest.approx(units)


def test_a_transpose_before_a_flatten_is_told_from_others() -> None:
    shapes = {"k": (4, 3, 3, 3), "w": (4 * 36, 5)}
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    body = "c = Conv <pads = [1, 1, 1, 1]> (x, k) f = Flatten(c) y = MatMul(f, w)"
    flat = models.text("(float[1, 3, 6, 6] x) => (float[1, 5] y)", body, weights)
    assert tflite_judge.transposes(convert(flat).data) == [True]
    turned = models.text(
        "(float[1, 6, 7] x) => (float[1, 7, 6] y)", "t = Transpose <perm = [0, 2, 1]> (x) y = Relu(t)", {}
    )
    assert tflite_judge.transposes(convert(turned).data) == [False]


def test_a_model_is_quantized_written_compared_and_timed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "benchmarks" / "zoo" / MODEL, tmp_path / "zoo" / MODEL)
    (tmp_path / "zoo" / "broken").mkdir()
    (tmp_path / "zoo" / "broken" / "model.onnx").write_bytes(b"no model")
    monkeypatch.setenv("EDGEPRESS_ZOO", str(tmp_path / "zoo"))
    out = tmp_path / "figures.json"
    assert script.main(["--seconds", "0.2", "--out", str(out)]) == 1
    document = json.loads(out.read_text("utf-8"))
    broken, made = document["rows"]
    assert "not an ONNX file" in broken["misses"][0]
    assert made["misses"] == []
    assert made["judged"]["convert_seconds"] > 0
    assert str(tmp_path) not in document["command"]
    text = readme_table.render(document)
    assert f"| {MODEL} | " in text
    assert "| broken | – |" in text
