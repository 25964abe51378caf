"""The comparison with peers: what counts, which bars are held, and that a failing peer is a line in the table."""

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peers
import pytest
from hypothesis import given
from hypothesis import strategies as st

import peer_runs
from common import Run
from peer_bars import (
    FP32,
    OURS,
    OURS_FOR_SIZE,
    Entry,
    Result,
    best_peer,
    geometric_mean,
    hold,
    means,
    ratio,
    rows_allowed,
    smaller,
    within,
)

ROOT = Path(__file__).parent.parent
MODEL = "digits_cnn"


def result(kept: float = 100.0, size: int = 1000, latency: float = 1000.0, **more: Any) -> Result:
    return Result(
        size, 0.9 * kept, kept, 0, 100.0, latency, (latency, latency), (1.0, 1.0), False, 1.0, **more
    )


def entry(n_test: int = 1000, **results: Result) -> Entry:
    named = {name.replace("_", " "): one for name, one in results.items()}
    return Entry("m", "top1", n_test, {FP32: result(size=4000, latency=2000.0), **named})


def test_of_the_peers_the_best_within_the_budget_counts() -> None:
    made = entry(
        static=result(97.9, size=100, latency=100),
        dynamic=result(98.0, size=900, latency=3000),
        NNCF=result(99.0, size=1000, latency=1500),
        broken=result(size=1, latency=1.0, failure="invalid graph"),
        ours=result(size=90, latency=600),
        ours_for_size=result(size=10, latency=50),
    )
    assert best_peer(made, 2.0, "latency_ns") == ("NNCF", 1500)
    assert best_peer(made, 2.0, "size_bytes") == ("dynamic", 900)
    assert best_peer(made, 3.0, "size_bytes") == ("static", 100)
    assert ratio(made, 2.0, "latency_ns") == pytest.approx(0.4)
    assert ratio(made, 2.0, "size_bytes") == pytest.approx(0.1)
    assert smaller(made) == 400


def test_where_no_peer_keeps_the_budget_fp32_is_shipped() -> None:
    made = entry(static=result(90.0, size=1, latency=1.0), ours=result(latency=1000))
    assert best_peer(made, 2.0, "latency_ns") == (FP32, 2000)
    assert ratio(made, 2.0, "latency_ns") == pytest.approx(0.5)


def test_outputs_that_the_score_does_not_look_at_are_held_to_the_budget_too() -> None:
    made = entry(static=result(latency=300), ours=result())
    made.results["static"].others_kept_percent = 97.9
    assert best_peer(made, 2.0, "latency_ns") == (FP32, 2000)
    made.results["static"].others_kept_percent = 98.0
    assert best_peer(made, 2.0, "latency_ns") == ("static", 300)
    made.results[OURS].others_kept_percent = 97.5
    hold(made, 2.0)
    assert "ours: keeps 97.50 % of another output" in made.misses


def test_few_rows_are_judged_by_agreement_and_count_in_no_mean() -> None:
    few = entry(149, ours=result(50.0))
    few.results[OURS].agreement_percent = 95.0
    hold(few, 2.0)
    assert few.misses == []
    few.results[OURS].agreement_percent = 94.9
    hold(few, 2.0)
    assert few.misses == ["ours: agrees on 94.9 % of all rows, not ≥ 95"]
    assert means([few], 2.0) == []
    assert [bar.models for bar in means([few, entry(150, ours=result())], 2.0)] == [1, 1]


def test_some_rows_may_lose_whole_ones() -> None:
    made = entry(160, ours=result(97.99))
    made.results[FP32].score = 93.125  # 149 of 160: 2 % are 2.98 rows
    for lost, fine in ((3, True), (4, False)):
        made.results[OURS].rows_lost = lost
        assert within(made, made.results[OURS], 2.0) is fine
    assert not within(Entry("m", "top1", 200, made.results), made.results[OURS], 2.0)


@given(st.integers(1, 1000), st.integers(1, 20))
def test_rows_allowed_are_the_budget_rounded(right: int, percent: int) -> None:
    assert abs(100 * rows_allowed(right, percent) - percent * right) <= 50


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_the_geometric_mean_is_that_of_the_product(values: list[float]) -> None:
    assert geometric_mean(values) == pytest.approx(math.prod(values) ** (1 / len(values)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ours": result(97.9)}, "ours: keeps 97.90 % of the score"),
        ({"ours": result(latency=1031)}, "slower than static: 1.03×, not ≤ 1.03"),
        ({"ours": result(size=1001)}, "larger than static: 1.00×, not ≤ 1"),
        ({"ours": result(failure="exit 70: ?")}, "ours: exit 70: ?"),
        ({"ours_for_size": result(97.0)}, "ours for size: keeps 97.00 % of the score"),
    ],
)
def test_each_miss_is_named(changed: dict[str, Result], said: str) -> None:
    made = entry(static=result(), **{"ours": result(), **changed})
    hold(made, 2.0)
    assert made.misses == [said]


def test_for_size_slower_than_fp32_is_a_miss_beyond_the_noise() -> None:
    made = entry(ours_for_size=result(latency=2050))
    made.results[OURS_FOR_SIZE].ratio_ci95 = (0.99, 1.05)
    hold(made, 2.0)
    assert made.misses == []
    made.results[OURS_FOR_SIZE].ratio_ci95 = (1.01, 1.05)
    hold(made, 2.0)
    assert made.misses == ["ours for size: slower than fp32: 1.02×"]


def test_means_are_held_against_their_bars() -> None:
    fast, slow = entry(ours=result(latency=400)), entry(ours=result(latency=1600))  # 0.2 and 0.8 of fp32
    latency, size = means([fast, slow], 2.0)
    assert (latency.value, latency.met) == (pytest.approx(0.4), True)
    assert (size.value, size.met) == (pytest.approx(0.25), True)
    worse, _ = means([slow, slow], 2.0)
    assert not worse.met
    (small,) = means([entry(ours_for_size=result(size=300))], 2.0)
    assert small.met  # 13.3
    (large,) = means([entry(ours_for_size=result(size=310))], 2.0)
    assert not large.met  # 12.9


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one tiny model; the peers run in this environment, which has no NNCF."""
    shutil.copytree(ROOT / "benchmarks" / "zoo" / MODEL, tmp_path / "zoo" / MODEL)
    monkeypatch.setenv("EDGEPRESS_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setattr(peers, "environment", lambda wanted: (Path(sys.executable), {"onnxruntime": "here"}))
    return tmp_path / "zoo"


def test_a_peer_is_scored_and_timed_and_a_failing_one_is_a_line(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = zoo.parent / "stored.json"
    command = ["--tools", "onnxruntime static,NNCF", "--seconds", "0.2"]
    command += ["--out", str(out), "--work", str(zoo.parent / "work")]
    assert peers.main(command) == 0
    told = capsys.readouterr()
    assert "[1/4] digits_cnn, onnxruntime static:" in told.err
    text = out.read_text("utf-8")
    stored = json.loads(text)
    (row,) = stored["rows"]
    static, nncf = row["results"]["onnxruntime static"], row["results"]["NNCF"]
    assert static["size_bytes"] < row["results"][FP32]["size_bytes"]
    assert static["kept_percent"] > 95
    assert static["latency_ns"] > 0
    assert "nncf" in nncf["failure"]
    assert nncf["latency_ns"] is None
    assert "nncf" in told.out
    assert row["best_size"][0] == "onnxruntime static"
    assert stored["bars"] == []
    assert stored["command"] == "benchmarks/peers.py --tools onnxruntime static,NNCF --seconds 0.2"
    assert str(zoo.parent) not in text
    assert str(ROOT) not in text

    peers.main(command)  # goes on where it ended: what was made is kept, what failed is tried again
    again = capsys.readouterr().err
    assert "onnxruntime static: kept from before" in again
    assert "NNCF (ModuleNotFoundError: No module named 'nncf')" in again


def test_an_invalid_graph_is_a_reason_without_paths(zoo: Path) -> None:
    broken = zoo.parent / "broken.onnx"
    model = onnx.load(zoo / MODEL / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, broken)
    work = peer_runs.Work(zoo / MODEL, zoo.parent / "work", Path(sys.executable), {})
    found, failure = peer_runs.score(work, broken)
    assert found is None
    assert "NoSuchOperator" in failure
    assert str(zoo.parent) not in failure


def test_a_crash_and_a_time_out_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert peer_runs.call([sys.executable, "-c", crash]) == ("", "ended by signal 11")
    monkeypatch.setattr(peer_runs, "TIME_OUT", 0.5)
    assert peer_runs.call([sys.executable, "-c", "import time; time.sleep(60)"])[1] == "no result within 0 s"


def test_a_change_of_model_samples_or_versions_is_another_key(zoo: Path) -> None:
    def key(**peers: str) -> tuple[str, str]:
        work = peer_runs.Work(zoo / MODEL, zoo.parent / "work", Path(sys.executable), peers)
        return work.data, work.peers

    before = key(nncf="1")
    assert key(nncf="1") == before
    assert key(nncf="2") != before
    with np.load(zoo / MODEL / "calib.npz") as stored:
        arrays = dict(stored)
    arrays["x"][0, 0] = 3
    np.savez(zoo / MODEL / "calib.npz", **arrays)
    assert key(nncf="1") != before


def test_ours_are_asked_for_by_budget_and_metric_and_a_failing_run_is_a_miss(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compress(folder: Path, model: str, options: Sequence[str], out: Path) -> Run:
        asked.append((model, *options))
        if "size" in options:
            return Run("compress …", 70, 1.0, 1.0, 100.0, f"\nsomething broke in {folder}\n")
        out.mkdir()
        shutil.copy(folder / model / "model.onnx", out)
        return Run("compress …", 0, 1.0, 1.0, 100.0, "")

    monkeypatch.setattr(peer_runs, "compress", compress)
    out = zoo.parent / "stored.json"
    command = ["--tools", f"{OURS},{OURS_FOR_SIZE}", "--seconds", "0.2", "--out", str(out)]
    assert peers.main([*command, "--work", str(zoo.parent / "work")]) == 1
    given = (MODEL, "--data", f"{MODEL}/calib.npz", "--test", f"{MODEL}/test.npz", "--target", "x86")
    given += ("--budget", "2", "--metric", "top1")
    assert asked == [given, (*given, "--objective", "size")]
    stored = json.loads(out.read_text("utf-8"))
    (row,) = stored["rows"]
    assert row["results"][OURS]["kept_percent"] == 100
    assert row["size_ratio"] == 1
    assert "ours for size: exit 70: something broke in zoo" in row["misses"]
    assert [bar["value"] for bar in stored["bars"]][1] == 1  # nothing gained: both means are missed
    assert not any(bar["met"] for bar in stored["bars"])
