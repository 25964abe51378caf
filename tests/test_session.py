"""The job from Python, and what the session decides by itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from clicase import rows
from threadpoolctl import threadpool_info, threadpool_limits

from edgepress.compressor import compress, session
from edgepress.compressor.cli import host
from edgepress.compressor.errors import DataError, UsageError
from edgepress.compressor.finish import make_timer, settled, take_back_if_slower
from edgepress.compressor.job import Findings, Host, Job
from edgepress.compressor.model import to_proto
from edgepress.compressor.passes import StoreWeights
from edgepress.compressor.protocols import Feeds, Latency
from edgepress.compressor.session import run


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory_peak_bytes", lambda *_, **__: 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(to_proto(models.mlp(32)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def silent(stage: str, share: float, detail: str) -> None:
    """Nobody listens."""


def test_arrays_in_model_out(model: Path) -> None:
    calib, test = rows(1, 80), rows(2, 60)
    result = compress(model, calib, test=test, target="arm")
    assert result.verdict == "kept"
    assert result.folder is None
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    saved = result.save(model.parent / "small.onnx")
    assert saved.stat().st_size == result.report.compressed.size_bytes < model.stat().st_size
    session = ort.InferenceSession(saved, providers=["CPUExecutionProvider"])
    assert np.asarray(session.run(None, {"x": test["x"]})[0]).shape == (60, 4)


def test_one_array_with_labels_is_the_same_as_named_arrays(model: Path) -> None:
    calib, test = rows(1, 80), rows(2, 60)
    named = compress(model, calib, test=test, target="arm")
    plain = compress(
        model, calib["x"], labels=calib["y"], test={"x": test["x"]}, test_labels=test["y"], target="arm"
    )
    assert plain.model == named.model
    assert plain.report.metric == named.report.metric == "top1"


@pytest.mark.parametrize(("count", "searched"), [(7, False), (60, True)])
def test_few_samples_are_no_ground_for_another_structure(model: Path, count: int, searched: bool) -> None:
    report = compress(model, rows(1, count), test=rows(2, 60), target="arm").report
    tried = {step["kind"] for candidate in report.candidates for step in candidate.recipe}
    assert bool(tried - {"quantize", "store", "dynamic"}) == searched
    assert any("too little" in warning for warning in report.warnings) != searched


def test_function_as_data(model: Path) -> None:
    result = compress(model, lambda: rows(1, 80), test=lambda: rows(2, 60), target="arm")
    assert result.report.n_test == 60


def test_results_go_to_a_folder_when_asked(model: Path) -> None:
    out = model.parent / "out"
    result = compress(model, rows(1, 80), test=rows(2, 60), target="arm", out=out)
    assert result.folder == out
    assert (out / "model.onnx").read_bytes() == result.model


def test_labels_of_calibration_that_are_all_wrong_do_not_end_the_search(model: Path) -> None:
    calib = rows(1, 80)
    wrong = {"x": calib["x"], "y": (calib["y"] + 1) % 4}
    assert compress(model, wrong, test=rows(2, 60), target="arm").report.exit_code in (0, 1)


def test_recipe_from_python(model: Path) -> None:
    result = compress(
        model, rows(1, 80), test=rows(2, 60), target="arm", recipe=(StoreWeights(min_elements=1),)
    )
    assert [step.kind for step in result.recipe] == ["store"]


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (UsageError, {"objective": "speed"}),
        (UsageError, {"target": "toaster"}),
        (UsageError, {"budget": 100.0}),
        (DataError, {"data": np.ones((80, 7), np.float32)}),
        (UsageError, {"data": "calib.npz", "labels": np.zeros(80)}),
    ],
)
def test_mistakes_are_errors_with_a_hint(
    model: Path, error: type[Exception], changed: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"data": rows(1, 80), "test": rows(2, 60), **changed}
    data = arguments.pop("data")
    with pytest.raises(error) as raised:
        compress(model, data, **arguments)
    assert getattr(raised.value, "hint", "")


def test_importing_the_package_loads_no_runtime() -> None:
    code = (
        "import sys, edgepress.compressor\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "from edgepress.compressor import compress\n"
        "assert callable(compress)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def with_clock(times: dict[str, float], given: Host) -> Host:
    """A host whose stopwatch reads the model's size class from a table."""

    def stopwatch(datas: Any, feeds: Feeds) -> list[Latency]:
        found = [times["small"] if len(data) < times["limit"] else times["large"] for data in datas]
        return [Latency(ns, (ns, ns), (int(ns),)) for ns in found]

    return replace(given, stopwatch=stopwatch, memory=None)


def test_what_is_slower_is_not_handed_over(model: Path) -> None:
    onnx.save(to_proto(models.mlp(400)), model)
    plain = host.make_host("arm", 1, 0, 1.0, silent)
    job = Job(model, data=rows(1, 80)["x"], test=rows(2, 60)["x"])
    slow = with_clock({"small": 2000.0, "large": 1000.0, "limit": 10_000}, plain)
    found = run(job, slow)
    assert found.exported == model.read_bytes() or len(found.exported) >= 10_000
    assert found.best is not None
    assert not found.best.recipe
    fast = with_clock({"small": 500.0, "large": 1000.0, "limit": 10_000}, plain)
    assert len(run(job, fast).exported) < 10_000


def test_a_result_slower_than_the_very_file_is_taken_back(model: Path) -> None:
    onnx.save(to_proto(models.mlp(400)), model)
    job = Job(model, data=rows(1, 80)["x"], test=rows(2, 60)["x"])
    found = run(job, host.make_host("arm", 1, 0, 1.0, silent))
    assert found.best is not None
    assert found.best.recipe
    take_back_if_slower(found, lambda named: [100.0, 103.0])
    assert found.exported == model.read_bytes()
    assert not found.best.recipe
    assert [c.kept for c in found.candidates].count(True) == 1
    assert "taken back" in found.warnings[-1]


def test_what_comes_in_and_goes_out_is_timed_once(model: Path) -> None:
    calls = []

    def stopwatch(datas: Any, feeds: Feeds) -> list[Latency]:
        calls.append(tuple(map(len, datas)))
        return [Latency(ns := float(len(data)), (ns, ns), (int(ns),)) for data in datas]

    job = Job(model, data=rows(1, 80)["x"], test=rows(2, 60)["x"])
    found = run(job, replace(host.make_host("arm", 1, 0, 1.0, silent), stopwatch=stopwatch, memory=None))
    pair = (len(model.read_bytes()), len(found.exported))
    assert sum(len(call) == 2 and call[1] == pair[1] for call in calls) == 1
    assert [each.median_ns for each in found.latencies if each] == [calls[-1][0], pair[1]]
    given = replace(job, timings=found.timings)  # nothing is timed for choices, but what is reported is
    calls.clear()
    again = run(given, replace(found.host))
    assert again.exported == found.exported
    assert len(calls) == 1


def test_times_once_used_stay_and_new_ones_are_put_on_their_scale(model: Path) -> None:
    readings = iter([[100.0, 50.0], [220.0, 60.0]])

    def stopwatch(datas: Any, feeds: Feeds) -> list[Latency]:
        return [Latency(ns, (ns, ns), (int(ns),)) for ns in next(readings)]

    given = replace(host.make_host("arm", 1, 0, 1.0, silent), stopwatch=stopwatch)
    found = run_findings(model, given)
    timer = make_timer(found)
    assert timer([("a", b""), ("b", b"")]) == [100.0, 50.0]
    assert timer([("a", b""), ("c", b"")]) == [100.0, pytest.approx(60 * 100 / 220)]
    assert timer([("c", b""), ("b", b"")])[1] == 50.0


@pytest.mark.parametrize(
    ("rounds", "ratio"),
    [
        ([1.03, 0.99, 0.98], 0.99),  # badly loaded once
        ([1.03, 0.99, 1.04], 1.03),
        ([1.005], 1.005),
        ([1.2], 1.2),
        ([0.5], 0.5),
    ],
)
def test_what_is_slower_by_little_is_loaded_and_timed_again(rounds: list[float], ratio: float) -> None:
    bases = iter([100.0, 130.0, 90.0])
    left = iter(rounds)

    def take() -> list[Latency]:
        pair = (base := next(bases), base * next(left))
        return [Latency(ns, (ns, ns), (int(ns),)) for ns in pair]

    times, latencies = settled(take)
    assert times == [100.0, pytest.approx(100 * ratio)]
    assert latencies[1].median_ns / latencies[0].median_ns == pytest.approx(ratio)
    assert next(left, None) is None


def run_findings(model: Path, given: Host) -> Findings:
    """Findings with a row to run on, before anything was timed."""
    from edgepress.compressor.session import look

    found, _ = look(Job(model, data=rows(1, 80), test=rows(2, 60)), given)
    return found


def test_unpacking_weights_at_load_is_not_predicted_to_take_time(model: Path) -> None:
    onnx.save(to_proto(models.mlp(400)), model)
    stored = compress(model, target="arm")
    assert stored.report.exit_code == 4
    assert [step.kind for step in stored.recipe] == ["store"]
    assert 3 * stored.report.compressed.size_bytes < stored.report.baseline.size_bytes
    before, after = (side.latency_ns_median for side in (stored.report.baseline, stored.report.compressed))
    assert before is not None
    assert after == pytest.approx(before, rel=0.01)
    assert stored.report.compressed.activation_bytes == stored.report.baseline.activation_bytes
    assert stored.report.compressed.parameters == stored.report.baseline.parameters


def test_shapes_behind_an_unknown_operator_are_seen_and_reported(model: Path) -> None:
    net = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[N, 3, 6] x) => (float[N, 3, 4] y)'
        "{ q = com.microsoft.QuickGelu (x) h = MatMul(q, w1) a = Relu(h) y = MatMul(a, w2) }",
        initializers=[
            ir.tensor(w, name=name) for name, w in models.constants(1, w1=(6, 64), w2=(64, 4)).items()
        ],
    )
    onnx.save(to_proto(net), model)
    x = np.random.default_rng(0).normal(size=(80, 3, 6)).astype(np.float32)
    report = compress(model, x, target="arm").report
    assert {"step": "observe"} in [step.parameters for step in report.steps if step.kept]
    assert not [left for left in report.left_alone if "rank" in left.reason]


def test_linear_algebra_keeps_to_one_thread_in_the_whole_job(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    chosen = session._chosen

    def watched(*given: Any) -> Findings:
        seen.extend(library["num_threads"] for library in threadpool_info())
        return chosen(*given)

    monkeypatch.setattr(session, "_chosen", watched)
    with threadpool_limits(2):
        compress(model, rows(1, 80), target="arm")
    assert seen
    assert set(seen) == {1}


@pytest.mark.parametrize("belong", [True, False])
def test_labels_of_other_samples_are_told(model: Path, belong: bool) -> None:
    test = rows(2, 60)
    labels = test["y"] if belong else np.random.default_rng(5).permutation(test["y"])
    result = compress(model, rows(1, 80), test={"x": test["x"]}, test_labels=labels, target="arm")
    assert any("do these labels" in said for said in result.report.warnings) is not belong
