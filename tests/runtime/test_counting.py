"""Counting instructions: what lies between marks, and what is said where nothing counts."""

import numpy as np
import pytest

from edgepress.runtime import counting, worker
from edgepress.runtime.counting import CLASSES, COUNTER, differences
from edgepress.runtime.memory import null_model
from edgepress.runtime.record import EngineError

FEEDS = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def null(tmp_path):
    path = tmp_path / "null.onnx"
    path.write_bytes(null_model())
    return path


def test_counts_lie_between_a_mark_and_the_next():
    assert differences(["1 2 3 4", "11 2 4 4", "31 3 4 9"]) == [(10, 0, 1, 0), (20, 1, 0, 5)]
    assert differences(["1 2 3 4"]) == []


@pytest.mark.parametrize("lines", [["1 2 3"], ["1 2 3 4", "a b c d"], [""]])
def test_a_file_of_another_form_is_refused(lines):
    with pytest.raises(EngineError, match="cannot be read"):
        differences(lines)


def test_where_nothing_counts_that_is_said(null, monkeypatch):
    monkeypatch.delenv(COUNTER, raising=False)
    with pytest.raises(EngineError, match="emulated devices only"):
        counting.count([null], FEEDS)


def test_where_the_plugin_is_missing_that_is_said(null, monkeypatch, tmp_path):
    (tmp_path / "counts").touch()
    monkeypatch.setenv(COUNTER, str(tmp_path / "counts"))
    with pytest.raises(EngineError, match="nothing counted"):
        counting.count([null], FEEDS)


@pytest.mark.parametrize(
    ("own", "least"),
    [
        ([0, 300, 0, 150, 170, 160, 900, 155], 60),
        ([0, 20_000_000, 0, 15_000_120, 15_000_090, 15_000_100], 15_000_000),  # of many, few calls are enough
    ],
)
def test_the_null_model_is_subtracted_and_the_least_told(null, monkeypatch, tmp_path, own, least):
    """A counter that writes what the plugin would: for one call of the null model, then five, then for the model."""
    monkeypatch.setenv(COUNTER, str(tmp_path / "counts"))
    (tmp_path / "counts").touch()
    steps = iter([0, 400, 0, 100, 100, 110, 90, 190, *own])
    total = [7]

    class Library:
        def getpgid(self, number):
            total[0] += next(steps)
            with (tmp_path / "counts").open("a") as lines:
                lines.write(f"{total[0]} 0 {total[0]} 1\n")

    monkeypatch.setattr(counting.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(counting, "heap_bytes", lambda: None)
    (row,) = counting.count([null], FEEDS)
    names = [f"instructions_{name}" for name in CLASSES]
    assert next(steps, None) is None
    assert row == {**dict(zip(names, (least, 0, least, 0), strict=True)), "heap_bytes": None}


def test_the_heap_grows_by_what_is_allocated():
    before = counting.heap_bytes()
    block = np.ones(1_000_000)
    after = counting.heap_bytes()
    if before is None or after is None:
        pytest.skip("this C library has no mallinfo2")
    assert after - before == pytest.approx(block.nbytes, rel=0.01)


def test_the_worker_writes_outputs_by_place(null, tmp_path):
    feeds = {"x": np.array([3.5], np.float32)}
    request = {
        "task": "run",
        "models": [str(null)],
        "feeds": worker.save_feeds(feeds, tmp_path / "feeds.npz"),
        "inputs": ["x"],
        "outputs": [str(tmp_path / "out.npz")],
    }
    assert worker.serve(request) == [["y"]]
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["a0"].tolist() == [3.5]
