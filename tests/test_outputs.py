"""Models with more than one output: the metric reads one, the others are held to fidelity."""

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from clicase import Case, make_case

from edgepress.compressor import session
from edgepress.compressor.cli import host
from edgepress.compressor.model import to_proto
from edgepress.compressor.report.record import load_report


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(host, "memory_peak_bytes", lambda *_, **__: 1)
    made = make_case(tmp_path, capsys)
    two_heads(made)
    return made


def two_heads(case: Case) -> None:
    """The model with two outputs in place of the other, and samples labelled by its own classes."""
    model = models.two_heads()
    onnx.save(to_proto(model), case.model)
    for name, seed, count in (("calib.npz", 1, 200), ("test.npz", 2, 100)):
        x = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
        case.samples(name, x=x, y=models.run(model, {"x": x})["y"].argmax(1))


def fidelity_of_z(case: Case) -> float:
    x = case.load_samples("test.npz")["x"]
    before, after = (models.run(path, {"x": x})["z"] for path in (case.model, case.out / "model.onnx"))
    lost = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    return 100 * (1 - float(lost.mean()))


def test_the_search_holds_outputs_that_the_metric_does_not_read(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case.compress("--budget", 5).code == 0
    report = load_report(case.out / "report.json")
    (other,) = report.others
    assert (report.metric, other.output) == ("top1", "z")
    assert other.kept_percent == pytest.approx(fidelity_of_z(case), abs=1e-3)
    assert 95 <= other.kept_percent < 100
    assert "fidelity (z)" in (case.out / "report.html").read_text()
    assert any("'z'" in warning and "held to fidelity" in warning for warning in report.warnings)
    assert any(c.why.startswith("output 'z' outside the budget") for c in report.candidates)
    monkeypatch.setattr(session, "unread", lambda *_: ())
    case.compress("--budget", 5)
    assert fidelity_of_z(case) < 95
    assert not any("held to fidelity" in w for w in load_report(case.out / "report.json").warnings)


def test_a_broken_output_is_named(case: Case) -> None:
    recipe = case.folder / "recipe.toml"
    recipe.write_text("[[pass]]\nkind = 'low_rank'\nranks = [['z', 1]]\n")
    outcome = case.compress(recipe=recipe)
    assert outcome.code == 1
    report = load_report(case.out / "report.json")
    assert (report.verdict, report.drop_percent) == ("broken", 0)
    assert "'z'" in report.verdict_reason
    assert "fidelity (z)" in outcome.out
    assert case.compress("--output", "z", "--metric", "fidelity", recipe=recipe).code == 1
    assert [each.output for each in load_report(case.out / "report.json").others] == ["y"]
