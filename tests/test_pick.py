"""The front in the output folder, `--pick`, and limits, as a user of the command line sees them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clicase import Case, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor import compress
from edgepress.compressor.errors import UsageError
from edgepress.compressor.report import manifest, pareto, plots
from edgepress.compressor.report.record import load_report


def front(folder: Path) -> list[dict[str, Any]]:
    points = json.loads((folder / "pareto.json").read_text())["points"]
    assert isinstance(points, list)
    return points


def test_the_front_is_written_and_holds_the_original_and_the_result(ran: Case) -> None:
    points, report = front(ran.out), load_report(ran.out / "report.json")
    assert [p["number"] for p in points] == list(range(len(points)))
    assert points[0]["recipe"] == []
    assert points[0]["size_bytes"] == ran.model.stat().st_size
    (chosen,) = [p for p in points if p["chosen"]]
    assert chosen["recipe"] == list(report.recipe)
    assert chosen["size_bytes"] == (ran.out / "model.onnx").stat().st_size
    assert chosen["sha256"] == manifest.sha256_file(ran.out / "model.onnx")
    assert json.loads((ran.out / "pareto.json").read_text())["cost_kind"] == "predicted"
    page = (ran.out / "report.html").read_text()
    assert "The front" in page
    assert page.count("<circle") == 2 * len(points)
    assert "pareto.json" in json.loads((ran.out / "manifest.json").read_text())["files"]


def test_another_point_is_built_and_judged_on_unseen_rows(ran: Case) -> None:
    points = front(ran.out)
    number = next(p["number"] for p in points if p["recipe"] and not p["chosen"])
    other = ran.folder / "other"
    outcome = ran.run(ran.model, "--pick", number, "--from", ran.out, "--out", other, "--budget", 90)
    assert outcome.code == 0
    assert "rebuilt" not in outcome.err
    report = load_report(other / "report.json")
    assert list(report.recipe) == points[number]["recipe"]
    assert report.compressed.score is not None
    assert report.n_test == 60
    assert manifest.sha256_file(other / "model.onnx") == points[number]["sha256"]
    assert [p["number"] for p in front(other) if p["chosen"]] == [number]
    assert all(p["within_budget"] for p in front(other))
    assert manifest.verify(other) == []
    assert [p["label"] for p in front(other)] == [p["label"] for p in points]


def test_one_may_pick_again_in_place_and_by_label(ran: Case) -> None:
    points = front(ran.out)
    labels = [p["label"] for p in points if not p["chosen"]]
    for label in labels[:2]:
        ran.run(ran.model, "--pick", label, "--out", ran.out, "--data", ran.folder / "calib.npz")
        assert [p["label"] for p in front(ran.out) if p["chosen"]] == [label]
    assert ran.run("replay", ran.out, "--out", ran.folder / "again").code in (0, 1)


def test_a_point_that_is_not_there_is_refused_with_those_that_are(ran: Case) -> None:
    outcome = ran.run(ran.model, "--pick", 99, "--from", ran.out, "--out", ran.folder / "other")
    assert outcome.code == 2
    assert all(p["label"] in outcome.err for p in front(ran.out))
    assert not (ran.folder / "other").exists()


def test_what_contradicts_the_earlier_run_is_refused(ran: Case) -> None:
    np.savez(ran.folder / "others.npz", **rows(9, 80))
    (ran.folder / "other.onnx").write_bytes(ran.model.read_bytes() + b"\x00")
    again = ("--pick", 0, "--from", ran.out, "--out", ran.folder / "other")
    for words, says in (
        ((ran.folder / "other.onnx",), "not the model of that run"),
        ((ran.model, "--data", ran.folder / "others.npz"), "not the data of that run"),
        ((ran.model, "--data", "module:function"), "had --data"),
        ((ran.model, "--metric", "mse"), "--metric"),
        ((ran.model, "--target", "x86"), "--target"),
        ((ran.model, "--recipe", "r.toml"), "--recipe"),
    ):
        outcome = ran.run(*words, *again)
        assert outcome.code == 2, says
        assert says in outcome.err


def test_no_earlier_run_and_from_alone_are_refused(case: Case) -> None:
    outcome = case.compress("--pick", 1, target=None)
    assert outcome.code == 2
    assert "pareto.json" in outcome.err
    outcome = case.compress("--from", case.folder)
    assert outcome.code == 2
    assert "--pick" in outcome.err


def test_a_damaged_front_is_refused(ran: Case) -> None:
    path = ran.out / "pareto.json"
    path.write_text(path.read_text().replace('"number"', '"nummer"'))
    outcome = ran.run(ran.model, "--pick", 0, "--from", ran.out, "--out", ran.folder / "other")
    assert outcome.code == 2
    assert "damaged at points.0" in outcome.err


def test_a_limit_that_is_kept_and_one_that_cannot_be(case: Case) -> None:
    size = case.model.stat().st_size
    outcome = case.compress("--budget", 5, "--max-size", f"{size}B", "--max-latency", "1s")
    assert outcome.code == 0
    assert "Limits   kept" in outcome.out
    outcome = case.compress("--budget", 5, "--max-size", "20", "--max-latency", "1ns")
    assert outcome.code == 1
    report = load_report(case.out / "report.json")
    assert report.exit_code == 1
    assert report.verdict == "kept"
    assert report.max_size_bytes == 20
    assert ["--max-size" in report.limits_missed[0], "--max-latency" in report.limits_missed[1]] == [True] * 2
    assert "predicted" in report.limits_missed[1]
    assert (case.out / "model.onnx").stat().st_size < size
    assert "Limits   missed" in outcome.out
    assert "--max-size" in (case.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-size", "0"), ("--max-size", "3 parsec"), ("--max-size", "1.2.3kB"), ("--max-size", "-1kB"),
     ("--max-latency", "3"), ("--max-latency", "inf ms"), ("--max-latency", "1e999s")],
)  # fmt: skip
def test_limits_that_make_no_sense(case: Case, option: str, value: str) -> None:
    outcome = case.compress(option, value)
    assert outcome.code == 2
    assert option in outcome.err


def test_units(case: Case) -> None:
    for size, bytes_ in (("1.5kB", 1500), ("2 MiB", 2 << 20), ("700", 700)):
        case.compress("--max-size", size, "--max-latency", "300us", data=None, test=None)
        report = load_report(case.out / "report.json")
        assert (report.max_size_bytes, report.max_latency_ns) == (bytes_, 300_000.0)


def test_limits_from_python(case: Case) -> None:
    result = compress(case.model, rows(1, 80), test=rows(2, 60), target="arm", max_size_bytes=10)
    assert result.report.limits_missed
    assert result.report.exit_code == 1
    with pytest.raises(UsageError, match="max-latency"):
        compress(case.model, rows(1, 80), target="arm", max_latency_ns=0)


def test_the_committed_schema_is_current() -> None:
    committed = Path(sys.modules[pareto.__name__].__file__ or "").with_name("pareto.schema.json")
    assert json.loads(committed.read_text(encoding="utf-8")) == json.loads(pareto.schema_text())


@given(st.lists(st.floats(1.0, 1e12), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_places_on_an_axis_by_ratio(values: list[float]) -> None:
    at, ticks = plots.ratio_axis(values)
    places = [at(value) for value in values]
    assert all(0 <= place <= 1 for place in places)
    assert np.argsort(places, kind="stable").tolist() == np.argsort(values, kind="stable").tolist()
    if max(values) > 10 * min(values):
        assert len(ticks) >= 2
        assert all(0 <= at(tick) <= 1 for tick in ticks)
