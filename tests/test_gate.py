"""`compress gate`: known cases with the exit codes that users script against."""

import json
import os
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import gating
import numpy as np
import onnx
import pytest
import sshd
from clicase import Case
from gating import judged, pair
from onnx import TensorProto, helper

from edgepress.compressor.cli import targets
from edgepress.compressor.report import gate as record
from edgepress.compressor.report.gate import Gate

__all__ = ["pair"]


@pytest.mark.parametrize("n", [1, 7, 300])
def test_the_same_outputs_pass_whatever_the_number_of_rows(pair: Case, n: int) -> None:
    pair.samples("rows.npz", **gating.rows(n, 0, 0, 0))
    found, gate = judged(pair)
    assert (found.code, gate.verdict, gate.rows) == (0, "kept", n)
    assert gate.criteria[0].interval == (0, 0)
    assert "bit by bit" in found.out


def test_a_budget_of_nothing_is_kept_by_the_same_outputs_even_of_a_useless_model(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(0, 0, 0, 5))
    assert judged(pair, "--budget", 0)[0].code == 0


def test_ten_points_worse_fails(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(400, 50, 0, 50))
    found, gate = judged(pair)
    assert (found.code, gate.verdict) == (1, "broken")
    (top1,) = gate.criteria
    assert (top1.name, top1.baseline, top1.candidate, top1.rows) == ("top1", 90, 80, 500)
    assert top1.found == pytest.approx(100 / 9)
    assert top1.interval is not None
    assert 2 < top1.interval[0] < 100 / 9 < top1.interval[1]
    assert "FAIL" in found.out


def test_a_point_worse_on_a_hundred_rows_cannot_be_told_and_the_rows_asked_for_decide(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(49, 1, 0, 50))
    found, gate = judged(pair, "--budget", 1)
    assert (found.code, gate.verdict) == (4, "inconclusive")
    asked = gate.criteria[0].rows_to_decide
    assert asked is not None
    assert f"About {asked} rows would decide it" in found.out
    part = asked // 100
    pair.samples("rows.npz", **gating.rows(49 * part, part, 0, 50 * part + asked % 100))
    found, gate = judged(pair, "--budget", 1)
    assert (found.code, gate.verdict) == (1, "broken")
    many = gate.criteria[0]
    assert many.rows == asked


def test_a_drop_that_is_the_budget_is_decided_by_no_number_of_rows(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(99, 1, 0, 0))
    found, gate = judged(pair, "--budget", 1)
    assert (found.code, gate.criteria[0].rows_to_decide) == (4, None)
    assert "No number of rows" in found.out
    assert f"pass with about {gate.criteria[0].rows_to_pass}" in found.out


def test_who_must_have_a_yes_or_no_gets_one(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(49, 1, 0, 50))
    for said, code in (("pass", 0), ("fail", 1), ("report", 4)):
        found, gate = judged(pair, "--budget", 1, "--inconclusive", said)
        assert (found.code, gate.exit_code, gate.verdict) == (code, code, "inconclusive")


def crash(folder: Path) -> None:
    """A reshape that no number of rows fits."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [7919, 4])
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "s"], ["y"])], "g", [x], [y], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "bad.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: (folder / "bad.onnx").write_bytes(b"no model"), "does not load"),
        (lambda folder: (folder / "bad.onnx").write_bytes(b""), "does not load"),
        (crash, "does not run"),
        (
            lambda folder: gating.classifier(folder / "bad.onnx", output="z"),
            "no output 'y'; its outputs are 'z'",
        ),
        (lambda folder: gating.classifier(folder / "bad.onnx", scale=np.nan), "NaN on row 0"),
    ],
)
def test_a_broken_candidate_fails_with_the_reason(pair: Case, make: object, says: str) -> None:
    assert callable(make)
    make(pair.folder)
    pair.samples("rows.npz", **gating.rows(40, 0, 0, 0))
    found, gate = judged(pair, "--max-size", "10x", candidate="bad.onnx")
    assert (found.code, gate.verdict) == (1, "broken")
    assert says in gate.criteria[0].reason
    assert "candidate is broken" in found.out
    assert [each.kind for each in gate.criteria] == ["quality", "size"]


def test_a_candidate_that_kills_its_process_fails(pair: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    gating.classifier(pair.folder / "ours.onnx", turn=1)
    monkeypatch.setattr("edgepress.compressor.cli.gate_run.engine_for", Deadly)
    pair.samples("rows.npz", **gating.rows(40, 0, 0, 0))
    found, gate = judged(pair)
    assert found.code == 1
    assert "died over the model" in gate.criteria[0].reason


class Deadly:
    """An engine that a candidate ends by a signal, in its own process."""

    name, version = "deadly", "1"

    def __init__(self, model: object) -> None:
        """For any model."""

    def load(self, model: object, threads: int = 1) -> object:
        from edgepress.runtime.engines.ort import OrtEngine

        runner = OrtEngine().load(Path(str(model)), threads)
        if "ours" not in str(model):
            return runner

        class Killed:
            inputs = runner.inputs

            def __call__(self, feeds: object, **_: object) -> object:
                os.kill(os.getpid(), signal.SIGKILL)

        return Killed()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("base.onnx", "ours.onnx", "--test", "damaged.npz"), "damaged.npz"),
        (("base.onnx", "ours.onnx", "--test", "missing.npz"), "missing.npz"),
        (("base.onnx", "ours.onnx", "--test", "nan.npz"), "row 0"),
        (("base.onnx", "ours.onnx", "--test", "wide.npz"), "wide.npz"),
        (("base.onnx", "ours.onnx"), "No test"),
        (("base.onnx",), "No candidate"),
        (("base.onnx", "missing.onnx", "--test", "rows.npz"), "no such file"),
        (("damaged.npz", "ours.onnx", "--test", "rows.npz"), "damaged.npz"),
        (("base.onnx", "ours.onnx", "--test", "rows.npz", "--metric", "top6"), "unknown metric"),
        (("base.onnx", "ours.onnx", "--test", "rows.npz", "--budget", "100"), "100"),
        (("base.onnx", "ours.onnx", "--test", "rows.npz", "--max-size", "small"), "write bytes"),
        (("base.onnx", "ours.onnx", "--test", "rows.npz", "--confidence", "1"), "--confidence"),
        (("base.onnx", "ours.onnx", "--test", "rows.npz", "--target", "no-such"), "unknown device profile"),
        (("base.onnx", "ours.onnx", "--test", "wrong.npz"), "the original scores 0"),
    ],
)
def test_what_is_wrong_with_the_question_is_exit_code_2(
    pair: Case, words: tuple[str, ...], says: str
) -> None:
    good = gating.rows(40, 1, 0, 0)
    pair.samples("rows.npz", **good)
    pair.samples("nan.npz", x=np.where(good["x"] == 1, np.nan, good["x"]), y=good["y"])
    pair.samples("wide.npz", x=np.zeros((4, 9), np.float32), y=np.zeros(4, int))
    pair.samples("wrong.npz", x=good["x"], y=np.zeros(41, int))
    Path("damaged.npz").write_bytes(b"PK nonsense")
    gating.classifier(pair.folder / "ours.onnx", turn=-1)
    found = pair.run("gate", *words)
    assert found.code == 2, found
    assert says in found.err
    assert "Traceback" not in found.err


@sshd.needs_sshd
def test_a_device_that_is_gone_is_exit_code_3(pair: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.samples("rows.npz", **gating.rows(40, 0, 0, 0))
    monkeypatch.setattr(targets, "user_profiles", lambda: [pair.folder])
    Path("gone.toml").write_text(
        'base = "arm"\naddress = "127.0.0.1:9"\ntransport = "adb"\n', encoding="utf-8"
    )
    found = pair.run("gate", "base.onnx", "ours.onnx", "--test", "rows.npz", "--target", "gone")
    assert found.code == 3, found
    assert "gone" in found.err


def test_limits_have_verdicts_of_their_own(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(300, 0, 0, 0))
    size = (pair.folder / "base.onnx").stat().st_size
    found, gate = judged(
        pair, "--max-size", "0.5x", "--max-latency-ratio", 50, "--max-memory", "5GB", "--seconds", 0.3
    )
    assert (found.code, gate.transport) == (1, "local")
    said = {each.kind: each.verdict for each in gate.criteria}
    assert said == {"quality": "kept", "latency": "kept", "size": "broken", "memory": "kept"}
    assert len(gate.latency) == 1
    assert len(gate.latency[0].baseline_ns) == len(gate.latency[0].candidate_ns) > 2
    for limit, code in ((str(size), 0), (str(size - 1), 1), ("100%", 0), ("1.0", 0)):
        assert judged(pair, "--max-size", limit)[0].code == code


def test_a_candidate_that_is_much_slower_fails_after_the_longer_run(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(300, 0, 0, 0))
    found, gate = judged(pair, "--max-latency-ratio", 0.1, "--seconds", 0.2)
    assert (found.code, len(gate.latency)) == (1, 4)
    assert next(each for each in gate.criteria if each.kind == "latency").verdict == "broken"


FILE = """
[gate]
baseline = "base.onnx"
candidate = "../ours.onnx"
test = "rows.npz"
budget = 50
max_size = 1.5
"""


def test_a_budget_file_beside_the_model_holds_it_all(pair: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pair.folder / "models"
    folder.mkdir()
    (pair.folder / "base.onnx").rename(folder / "base.onnx")
    pair.samples("rows.npz", **gating.rows(280, 20, 0, 0)).rename(folder / "rows.npz")
    (folder / "edgepress.toml").write_text(FILE, encoding="utf-8")
    found = pair.run("gate", "--config", "models/edgepress.toml", "--json", "-")
    assert found.code == 0, found.err
    gate = Gate.model_validate_json(found.out)
    assert (gate.budget_percent, [each.kind for each in gate.criteria]) == (50, ["quality", "size"])
    assert pair.run("gate", "models/base.onnx", "ours.onnx", "--quiet").code == 0
    assert pair.run("gate", "--config", "models/edgepress.toml", "--budget", 2, "--quiet").code == 1
    monkeypatch.chdir(folder)
    assert pair.run("gate", "--quiet").code == 0
    for text, says in (
        ("[gate]\nbudgt = 3\n", "Did you mean 'budget'"),
        ("[gate]\nbudget = 'much'\n", "budget"),
        ("budget = 3\n", "no table [gate]"),
        ("[gate\n", "edgepress.toml"),
    ):
        (folder / "edgepress.toml").write_text(text, encoding="utf-8")
        found = pair.run("gate")
        assert (found.code, says in found.err) == (2, True), found.err


def test_code_that_only_a_found_file_names_is_not_run(pair: Case) -> None:
    """The file may have come with a model of somebody else's."""
    pair.samples("rows.npz", **gating.rows(290, 5, 5, 0))
    (pair.folder / "theirs.py").write_text(
        "open('ran', 'w').close()\ndef score(outputs, labels): return [1.0] * len(labels)\n", encoding="utf-8"
    )
    said = '[gate]\nbaseline = "base.onnx"\ncandidate = "ours.onnx"\ntest = "rows.npz"\nmetric = "theirs:score"\n'
    (pair.folder / "edgepress.toml").write_text(said, encoding="utf-8")
    found = pair.run("gate")
    assert (found.code, "metric = 'theirs:score' names Python code" in found.err) == (2, True), found.err
    assert not (pair.folder / "ran").exists()
    assert pair.run("gate", "--metric", "top1", "--quiet").code in (0, 4)
    assert not (pair.folder / "ran").exists()
    assert pair.run("gate", "--config", "edgepress.toml", "--quiet").code == 0
    assert (pair.folder / "ran").exists()


def test_junit_markdown_and_github_say_the_same_and_escape_names(
    pair: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'a<b>&|`"%0A::error::x\x1b[31m.onnx'
    (pair.folder / "ours.onnx").rename(pair.folder / name)
    pair.samples("rows.npz", **gating.rows(400, 50, 0, 50))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pair.folder / "summary.md"))
    found, _ = judged(
        pair, "--junit", "gate.xml", "--markdown", "gate.md", "--max-size", "9x", candidate=name
    )
    assert found.code == 1
    suite = ET.parse("gate.xml").getroot()[0]  # noqa: S314
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2", "failures": "1", "errors": "0", "skipped": "0",
    }  # fmt: skip
    cases = suite.findall("testcase")
    assert [each.get("name") for each in cases] == ["top1", "size"]
    assert "11.1 %" in str(cases[0].find("failure").get("message"))  # type: ignore[union-attr]
    said = Path("gate.md").read_text(encoding="utf-8")
    assert Path("summary.md").read_text(encoding="utf-8").strip() == said.strip()
    assert "<b>" not in said.split("Reproduce")[0]
    assert "\x1b" not in said + Path("gate.xml").read_text(encoding="utf-8")
    commands = [line for line in found.out.splitlines() if line.startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith("::error title=edgepress gate%3A top1::FAIL: 90.00 %25 → 80.00 %25")
    pair.samples("rows.npz", **gating.rows(49, 1, 0, 50))
    for policy, tag, level in (
        ("report", "error", "warning"),
        ("fail", "failure", "warning"),
        ("pass", "skipped", "notice"),
    ):
        found, _ = judged(
            pair, "--budget", 1, "--inconclusive", policy, "--junit", "gate.xml", candidate=name
        )
        root = ET.parse("gate.xml").getroot()  # noqa: S314
        assert root.find(f".//testcase/{tag}") is not None
        assert f"::{level} title" in found.out


def test_other_outputs_are_criteria_of_their_own(case: Case) -> None:
    def two(path: str, scale: float) -> None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("y", "map")]
        factor = helper.make_tensor("k", TensorProto.FLOAT, [1], [scale])
        nodes = [helper.make_node("Softmax", ["x"], ["y"]), helper.make_node("Mul", ["x", "k"], ["map"])]
        graph = helper.make_graph(nodes, "g", [x], outputs, [factor])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

    two("base.onnx", 1.0)
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    case.samples("rows.npz", x=x, y=x.argmax(1))
    for scale, code in ((1.01, 0), (1.1, 1)):
        two("ours.onnx", scale)
        found, gate = judged(case)
        assert [each.name for each in gate.criteria] == ["top1", "output map"]
        assert found.code == code, gate.criteria


def test_a_history_shows_the_trend_and_stops_a_slow_slide(pair: Case) -> None:
    """Each candidate is within the budget of its own baseline, which the last accepted one has become."""
    pair.samples("rows.npz", **gating.rows(2900, 90, 0, 10))
    for _ in range(2):
        found, gate = judged(pair, "--history", "log/past.jsonl", candidate="base.onnx")
        assert found.code == 0
    assert [each.kind for each in gate.criteria] == ["quality", "drift"]
    assert "accepted before" in gate.criteria[1].reason
    assert len(gate.history) == 2
    found, gate = judged(pair, "--history", "log/past.jsonl", baseline="ours.onnx")
    assert [each.verdict for each in gate.criteria] == ["kept", "broken"]
    assert (found.code, gate.history[-1].accepted) == (1, False)
    assert gate.criteria[1].found == pytest.approx(100 * 90 / 2990)
    assert "99.67 → 99.67 → 96.67 ✗" in found.out
    found, gate = judged(pair, "--history", "log/past.jsonl", candidate="base.onnx")
    assert (found.code, len(gate.history)) == (0, 4)
    lines = Path("log/past.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["accepted"] for line in lines] == [True, True, False, True]
    pair.samples("rows.npz", **gating.rows(2900, 91, 0, 9))
    _, gate = judged(pair, "--history", "log/past.jsonl", candidate="base.onnx")
    assert [each.kind for each in gate.criteria] == ["quality"]  # other rows cannot be paired
    with Path("log/past.jsonl").open("a") as stream:
        stream.write("{}\n")
    found = pair.run("gate", "base.onnx", "ours.onnx", "--test", "rows.npz", "--history", "log/past.jsonl")
    assert (found.code, "line 6" in found.err) == (2, True)


def test_a_drift_that_cannot_be_told_stops_nobody(pair: Case) -> None:
    pair.samples("rows.npz", **gating.rows(96, 1, 0, 3))
    assert judged(pair, "--history", "past.jsonl", candidate="base.onnx")[0].code == 0
    found, gate = judged(pair, "--history", "past.jsonl", "--inconclusive", "report", baseline="ours.onnx")
    assert [each.verdict for each in gate.criteria] == ["kept", "inconclusive"]
    assert found.code == 0


def test_the_committed_schema_is_current() -> None:
    committed = Path(sys.modules[record.__name__].__file__ or "").with_name("gate.schema.json")
    assert json.loads(committed.read_text(encoding="utf-8")) == json.loads(record.schema_text())
