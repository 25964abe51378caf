"""The acceptance script: a missed bar is said and ends with exit 1; what is stored names no path."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parent.parent
MODEL = "digits_cnn"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("acceptance", ROOT / "benchmarks" / "acceptance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["acceptance"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "benchmarks" / "zoo" / MODEL, tmp_path / "zoo" / MODEL)
    return tmp_path / "zoo"


def result(zoo: Path, **changed: Any) -> Path:
    """A folder as `compress` leaves it: half the size by report and file, scores as they are."""
    out = zoo.parent / "out"
    out.mkdir()
    onnx.save(onnx.load(zoo / MODEL / "model.onnx"), out / "model.onnx")
    with np.load(zoo / MODEL / "test.npz") as test:
        rows = len(test["y"])
    score = json.loads((zoo / MODEL / "info.json").read_text())["score"]
    side = {"score": score, "latency_ns_median": 100.0, "latency_ns_ci95": [99.0, 101.0]}
    report = {"verdict": "kept", "exit_code": 0, "cost_kind": "measured", "metric": "top1", "n_test": rows}
    report |= {"seconds": {"total": 5.0}, "tool_peak_rss_bytes": 2**28, "baseline": side, "compressed": side}
    report |= {
        name: {**side, **value} if isinstance(value, dict) else value for name, value in changed.items()
    }
    (out / "report.json").write_text(json.dumps(report))
    return out


def misses(
    script: ModuleType, zoo: Path, out: Path, run: str = "latency", code: int = 0, **bar: Any
) -> list[str]:
    row = script.Row(MODEL, run, "compress …", code, 5.0, 4.0, 200.0)
    script.check(row, script.Bar(**bar), zoo, out)
    found: list[str] = row.misses
    return found


def test_an_honest_result_meets_the_bars_of_any_model(script: ModuleType, zoo: Path) -> None:
    assert misses(script, zoo, result(zoo)) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"compressed": {"latency_ns_median": 110.0, "latency_ns_ci95": [108.0, 112.0]}}, "slower"),
        ({"compressed": {"score": 90.0}}, "onnxruntime"),
        ({"seconds": {"total": 61.0}}, "over 60 s"),
        ({"tool_peak_rss_bytes": 3 << 30}, "over 2048 MB"),
        ({"verdict": "broken"}, "verdict broken"),
        ({"exit_code": 1}, "the report says 1"),
    ],
)
def test_each_miss_is_named(script: ModuleType, zoo: Path, changed: dict[str, Any], said: str) -> None:
    assert any(said in miss for miss in misses(script, zoo, result(zoo, **changed)))


def test_a_slower_median_within_the_noise_is_no_miss(script: ModuleType, zoo: Path) -> None:
    noisy = {"latency_ns_median": 110.0, "latency_ns_ci95": [95.0, 125.0]}
    assert misses(script, zoo, result(zoo, compressed=noisy)) == []


def test_the_bars_of_a_model_are_held(script: ModuleType, zoo: Path) -> None:
    found = misses(script, zoo, result(zoo), smaller=25, faster=4)
    assert found == ["smaller < 25×", "faster < 4×"]


def test_another_interface_is_a_miss(script: ModuleType, zoo: Path) -> None:
    out = result(zoo)
    model = onnx.load(out / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, out / "model.onnx")
    assert any("interface" in miss or "onnxruntime" in miss for miss in misses(script, zoo, out))


def test_a_larger_file_and_a_broken_one_are_misses(script: ModuleType, zoo: Path) -> None:
    out = result(zoo)
    model = onnx.load(out / "model.onnx")
    model.doc_string = "x" * 10_000
    onnx.save(model, out / "model.onnx")
    assert "larger" in misses(script, zoo, out)
    (out / "model.onnx").write_bytes(b"nothing")
    assert any("does not run" in miss for miss in misses(script, zoo, out))


def test_without_data_arm_must_end_with_4_and_predicted_costs(script: ModuleType, zoo: Path) -> None:
    out = result(zoo, exit_code=4, verdict="unverified", cost_kind="predicted")
    assert misses(script, zoo, out, run="arm, no data", code=4) == []
    assert misses(script, zoo, out, run="arm, no data", code=0) != []


def test_a_crash_is_a_miss(script: ModuleType, zoo: Path) -> None:
    found = misses(script, zoo, zoo.parent / "none", code=70)
    assert found == ["exit 70, not 0 or 1", "no model was written"]


def test_it_runs_compress_and_stores_no_path(
    script: ModuleType, zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPRESS_ZOO", str(zoo))
    out = zoo.parent / "stored.json"
    code = script.main(["--objective", "latency", "--out", str(out), "--quick", "--no-arm"])
    text = out.read_text("utf-8")
    stored = json.loads(text)
    assert [row["run"] for row in stored["rows"]] == ["latency"]
    assert code == int(any(row["misses"] for row in stored["rows"]))
    assert stored["machine"]["cores"] > 0
    assert "onnxruntime" in stored["versions"]
    assert stored["command"] == "benchmarks/acceptance.py --objective latency --quick --no-arm"
    assert str(zoo.parent) not in text
    assert str(ROOT) not in text
    assert MODEL in capsys.readouterr().out


def test_every_model_is_tried_on_arm_with_and_without_data(script: ModuleType, zoo: Path) -> None:
    planned = {run: options for _, run, options in script.plan([MODEL], zoo, "both", arm=True)}
    assert list(planned) == ["latency", "arm", "arm, no data"]
    assert "--data" in planned["arm"]
    assert planned["arm, no data"] == ["--target", "arm", "--no-device"]


def test_without_an_npz_file_of_test_rows_the_other_bars_are_still_held(
    script: ModuleType, zoo: Path
) -> None:
    out = result(zoo, tool_peak_rss_bytes=3 << 30)
    (zoo / MODEL / "test.npz").unlink()
    assert misses(script, zoo, out, faster=1.9) == ["over 2048 MB", "faster < 1.9×"]


def test_a_model_that_does_not_run_does_not_hide_the_other_misses(script: ModuleType, zoo: Path) -> None:
    out = result(zoo, tool_peak_rss_bytes=3 << 30)
    (out / "model.onnx").write_bytes(b"nothing")
    assert "over 2048 MB" in misses(script, zoo, out)
