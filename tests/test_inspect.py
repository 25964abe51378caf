"""`compress inspect --data`: the table, the JSON, the page, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from clicase import Case, files_below, rows

from edgepress.compressor.cli import inspect as command
from edgepress.compressor.model import to_proto

ZOO = Path(__file__).parents[1] / "benchmarks/zoo/digits_cnn"


def test_the_json_has_the_same_keys_with_and_without_samples(case: Case) -> None:
    plain = json.loads(case.run("inspect", case.model, "--json").out)
    known = json.loads(
        case.run("inspect", case.model, "--data", "calib.npz", "--json", "--target", "arm").out
    )
    assert list(plain) == list(known)
    assert [list(row) for row in plain["sites"]] == [list(row) for row in known["sites"]]
    assert plain["summary"] is plain["hurts_most"] is None
    assert known["rows"] == 80  # nothing is set aside: there is no verdict
    for row in known["sites"]:
        for knob in row["bears"]:
            count = len(knob["values"])
            assert all(len(knob[name]) == count for name in ("damage", "latency_ns_saved", "bytes_saved"))
            if knob["bears"] is not None:
                at = knob["values"].index(knob["bears"])
                assert knob["damage"][at] < known["little"]
                assert knob["size_share"] == pytest.approx(knob["bytes_saved"][at] / known["size_bytes"])
                whole = known["latency_ns_predicted"]
                assert knob["latency_share"] == pytest.approx(knob["latency_ns_saved"][at] / whole)
    kinds = {knob["kind"] for row in known["sites"] for knob in row["bears"]}
    assert kinds == {"width", "rank", "bits", "arithmetic"}


def test_the_page_of_the_docs_names_every_key(case: Case) -> None:
    text = (Path(__file__).parents[1] / "docs/inspect.md").read_text(encoding="utf-8")
    facts = json.loads(case.run("inspect", case.model, "--data", "calib.npz", "--json").out)
    row = next(row for row in facts["sites"] if row["bears"])
    keys = {*row, *row["bears"][0], *facts["hurts_most"], "summary", "hurts_most", "target", "little"}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_the_sentence_stands_above_the_table_and_sites_are_sorted(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["inspect", ZOO / "model.onnx", "--data", ZOO / "calib.npz", "--target", "arm"]
    said = case.run(*words, "--sort", "harm").out
    facts = json.loads(case.run(*words, "--sort", "harm", "--json").out)
    assert " ".join(said.split()).index(facts["summary"]) < " ".join(said.split()).index("saves latency")
    harms = [
        knob["damage"][0] for row in facts["sites"] for knob in row["bears"] if knob["kind"] == "arithmetic"
    ]
    assert harms == sorted(harms, reverse=True)
    lines = [line for line in said.splitlines() if line.startswith(facts["sites"][0]["site"])]
    assert len(lines[-1]) <= 100
    assert max(map(len, said.splitlines())) <= 100


def test_the_page_is_written_whole_and_alone(case: Case) -> None:
    before = files_below(case.folder)
    outcome = case.run("inspect", case.model, "--data", "calib.npz", "--html", "page.html")
    assert outcome.code == 0, outcome.err
    assert sorted([*before, "page.html"]) == files_below(case.folder)
    text = Path("page.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "page.html"], "nothing to draw"),
        (["--sort", "gain"], "nothing is measured"),
        (["--data", "calib.npz", "--html", "model.onnx"], "an input of this run"),
        (["--data", "calib.npz", "--html", "calib.npz"], "an input of this run"),
        (["--data", "calib.npz", "--html", "no/page.html"], "folder that exists"),
        (["--data", "calib.npz", "--html", "."], "folder that exists"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    case: Case, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(command, "look", None)
    before = files_below(case.folder)
    outcome = case.run("inspect", case.model, *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert files_below(case.folder) == before


def test_one_sample_without_labels_is_enough(case: Case) -> None:
    case.samples("one.npz", x=rows(1, 1)["x"])
    facts = json.loads(case.run("inspect", case.model, "--data", "one.npz", "--json").out)
    assert facts["rows"] == 1
    assert facts["hurts_most"] is not None


@pytest.mark.parametrize("build", [models.two_inputs, models.two_heads, models.control_flow])
def test_several_inputs_outputs_and_bodies(case: Case, build: object) -> None:
    model = build()  # type: ignore[operator]
    onnx.save(to_proto(model), case.model)
    case.samples("some.npz", **models.feeds(model, 12))
    outcome = case.run("inspect", case.model, "--data", "some.npz", "--html", "page.html")
    assert outcome.code == 0, outcome.err


def test_a_model_without_sites(case: Case) -> None:
    onnx.save(to_proto(models.text("(float[N, 6] x) => (float[N, 6] y)", "y = Relu(x)")), case.model)
    case.samples("some.npz", x=rows(1, 20)["x"])
    outcome = case.run("inspect", case.model, "--data", "some.npz", "--html", "page.html")
    assert outcome.code == 0, outcome.err
    assert "No site has weights" in outcome.out
    assert "no site that could be measured" in Path("page.html").read_text()


def test_a_name_cannot_steer_the_terminal(case: Case) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.name = f"\x1b[31m{node.output[0]}"

    case.change_model(rename)
    for words in ((), ("--data", "calib.npz")):
        said = case.run("inspect", case.model, *words).out
        assert "[31mh" in said
        assert "\x1b" not in said


def test_a_terminal_that_knows_ascii_only(case: Case) -> None:
    command = "from edgepress.compressor.cli import main; main()"
    words = ["inspect", "model.onnx", "--data", "calib.npz"]
    done = subprocess.run(
        [sys.executable, "-c", command, *words],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"onnxruntime >=" in done.stdout


def test_ctrl_c_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_below(case.folder)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    outcome = case.run("inspect", case.model, "--data", "calib.npz", "--html", "page.html")
    assert outcome.code == 130
    assert files_below(case.folder) == before


def test_rows_that_are_all_the_same_can_be_measured(case: Case) -> None:
    case.samples("same.npz", x=np.repeat(rows(1, 1)["x"], 9, axis=0))
    assert case.run("inspect", case.model, "--data", "same.npz", "--json").code == 0
