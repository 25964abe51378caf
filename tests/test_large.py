"""The whole job on a model over 2 GB: a small one, with the limit of one file lowered to nothing."""

import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from clicase import Case, make_case, rows

from edgepress.compressor import compress, guard
from edgepress.compressor.cli import host
from edgepress.compressor.model import load
from edgepress.compressor.report import manifest
from edgepress.compressor.report.record import load_report

FILES = {"model.onnx", "model.onnx.data", "report.json", "report.html", "manifest.json"}


@pytest.fixture
def case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "work").mkdir()
    made = make_case(tmp_path / "work", capsys)
    monkeypatch.setattr(host, "memory_peak_bytes", lambda *_, **__: 1)
    monkeypatch.setattr(guard, "PROTO_LIMIT", 16 << 20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "work")
    yield made
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())


def scores(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_outputs()] == ["y"]
    return np.asarray(session.run(None, {"x": rows(2, 60)["x"]})[0])


def test_search_verdict_report_and_files(case: Case) -> None:
    outcome = case.compress("--budget", 5, "--objective", "size")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in case.out.iterdir()} == FILES | {"pareto.json"}
    assert manifest.verify(case.out) == []
    report = load_report(case.out / "report.json")
    sizes = {name: (case.out / name).stat().st_size for name in ("model.onnx", "model.onnx.data")}
    assert report.compressed.files == sizes
    assert report.compressed.size_bytes == sum(sizes.values()) < report.baseline.size_bytes
    assert len(report.candidates) > 4
    assert report.sites[0].after is not None
    right = 100 * float((scores(case.out / "model.onnx").argmax(1) == rows(2, 60)["y"]).mean())
    assert report.compressed.score == pytest.approx(right)


def test_it_is_what_the_same_model_gives_in_one_file(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = case.folder / "recipe.toml"
    recipe.write_text("[[pass]]\nkind = 'store'\nmin_elements = 1\n")
    case.compress(recipe=recipe)
    parts = scores(case.out / "model.onnx")
    monkeypatch.setattr(guard, "PROTO_LIMIT", 1 << 31)
    case.compress(recipe=recipe, out=case.folder / "whole")
    assert np.array_equal(scores(case.folder / "whole" / "model.onnx"), parts)
    assert load(case.out / "model.onnx").graph.num_nodes() == 7


def test_without_samples(case: Case) -> None:
    outcome = case.compress(data=None, test=None)
    assert outcome.code == 4
    assert {path.name for path in case.out.iterdir()} == FILES
    assert scores(case.out / "model.onnx").shape == (60, 4)


def test_the_result_goes_in_again_and_replays(case: Case) -> None:
    case.compress("--budget", 5)
    again = case.run("replay", case.out, "--out", "again")
    assert again.code == 0, again.err
    for name in ("model.onnx", "model.onnx.data"):
        assert Path("again", name).read_bytes() == (case.out / name).read_bytes()
    twice = case.run(case.out / "model.onnx", "--data", "calib.npz", "--target", "arm", "--out", "twice")
    assert twice.code in (0, 1), twice.err


def test_a_replay_with_other_weights_writes_nothing(case: Case) -> None:
    case.compress("--budget", 5)
    path = case.out / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["model.onnx.data"] = "0" * 64
    path.write_text(json.dumps(document))
    assert case.run("replay", path, "--out", "again").code == 2
    assert not Path("again").exists()


def test_inspect(case: Case) -> None:
    outcome = case.run("inspect", case.model, "--data", "calib.npz", "--json")
    assert outcome.code == 0, outcome.err
    assert any(site["bears"] for site in json.loads(outcome.out)["sites"])


def test_from_python(case: Case) -> None:
    result = compress(case.model, rows(1, 80), test=rows(2, 60), target="arm")
    saved = result.save(case.folder / "small.onnx")
    assert scores(saved).shape == (60, 4)
    assert len(result.model) == result.report.compressed.size_bytes
    assert saved.with_name("small.onnx.data").exists()
