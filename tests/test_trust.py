"""Code that only a file names is not run: a manifest, a front or a budget file may have come with a model.

`FUNCTIONS` leaves a file behind whenever one of its functions runs, and one when it is imported.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gating
import pytest
from clicase import Case

FUNCTIONS = """
import pathlib
import numpy as np
pathlib.Path("imported").touch()

def score(outputs, labels):
    pathlib.Path("ran").touch()
    return np.ones(len(labels))

def samples():
    pathlib.Path("ran").touch()
    return np.load("calib.npz")["x"], np.load("calib.npz")["y"]
"""


@pytest.fixture
def theirs(case: Case, functions: str) -> tuple[Case, str]:
    """Somebody else's run in `out`, made with `samples` and `score` of a module that lies there as well."""
    (case.folder / "recipe.toml").write_text('[[pass]]\nkind = "store"\n', encoding="utf-8")
    words = ("--recipe", "recipe.toml", "--metric", f"{functions}:score")
    assert case.compress(*words, data=f"{functions}:samples", cache=case.folder / "cache").code == 0
    forget(case.folder)
    return case, functions


def forget(folder: Path) -> None:
    for trace in (folder / "ran", folder / "imported"):
        trace.unlink(missing_ok=True)


def test_a_replay_runs_the_functions_of_a_run_only_where_the_user_names_them(
    theirs: tuple[Case, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, module = theirs
    metric, data = ("--metric", f"{module}:score"), ("--data", f"{module}:samples")
    loaded: list[str] = []
    watched(monkeypatch, loaded)
    for words, unnamed in (((), "metric"), (metric, "data"), (data, "metric")):
        found = case.run("replay", case.out, "--out", "again", *words)
        assert found.code == 2, found
        assert f"--{unnamed} {module}:" in found.err
        assert (loaded, (case.folder / "ran").exists()) == ([], False)
    found = case.run("replay", case.out, "--out", "again", *data, "--metric", f"{module}:other")
    assert (found.code, "that run had --metric" in found.err, loaded) == (2, True, [])
    found = case.run("replay", case.out, "--out", "again", *data, "--metric", "top1")
    assert (found.code, loaded) == (2, [])
    assert not Path("again").exists()
    found = case.run("replay", case.out, "--out", "again", *metric, *data)
    assert (found.code, "byte for byte" in found.out) == (0, True), found
    assert (case.folder / "ran").exists()


def watched(monkeypatch: pytest.MonkeyPatch, loaded: list[str]) -> None:
    """Note what is imported for a function: once a module is loaded, it leaves no trace of its own."""
    from edgepress.compressor import metrics, sources

    for place in (metrics, sources):
        load: Callable[..., Any] = place.load_function

        def noted(name: str, error: Any, load: Callable[..., Any] = load) -> Any:
            loaded.append(name)
            return load(name, error)

        monkeypatch.setattr(place, "load_function", noted)


def test_samples_in_a_file_stand_for_a_function_that_made_them(theirs: tuple[Case, str]) -> None:
    """So one may repeat a run without its code."""
    case, module = theirs
    words = ("--metric", f"{module}:score", "--data", "calib.npz")
    assert case.run("replay", case.out, "--out", "again", *words).code == 0


def test_a_picked_point_runs_a_function_only_where_the_user_names_it(
    case: Case, functions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder beside a model is looked into even where nobody named it."""
    assert case.compress("--metric", f"{functions}:score", "--budget", 5).code == 0
    forget(case.folder)
    loaded: list[str] = []
    watched(monkeypatch, loaded)
    pick = (case.model, "--pick", 0, "--out", case.out)
    found = case.run(*pick)
    assert (found.code, f"--metric {functions}:score" in found.err) == (2, True), found
    assert (loaded, (case.folder / "ran").exists()) == ([], False)
    assert case.run(*pick, "--metric", "top1").code == 2
    assert loaded == []
    assert case.run(*pick, "--metric", f"{functions}:score").code in (0, 1)
    assert (case.folder / "ran").exists()


def change_options(folder: Path, **changed: object) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["options"] |= changed
    path.write_text(json.dumps(document))


PROFILE = """
base = "x86"
cpu = ""
transport = "local"
python = "touch ran"
"""


def test_a_manifest_names_no_device_by_a_file(theirs: tuple[Case, str]) -> None:
    """A profile may name the command that starts Python there."""
    case, module = theirs
    (case.folder / "board.toml").write_text(PROFILE, encoding="utf-8")
    change_options(case.out, target="board.toml")
    words = ("--metric", f"{module}:score", "--data", f"{module}:samples")
    found = case.run("replay", case.out, "--out", "again", *words)
    assert (found.code, "target" in found.err, "board.toml" in found.err) == (2, True, True), found
    assert not (case.folder / "ran").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('metric = "{module}:score"', "Python code"),
        ('test = "{module}:samples"', "Python code"),
        ('test = "top1:samples"', "Python code"),
        ('target = "board.toml"', "may name commands"),
    ],
)
def test_a_found_budget_file_names_neither_code_nor_devices(
    case: Case, functions: str, line: str, says: str
) -> None:
    gating.classifier(case.folder / "base.onnx", turn=0)
    gating.classifier(case.folder / "ours.onnx")
    case.samples("rows.npz", **gating.rows(290, 5, 5, 0))
    (case.folder / "board.toml").write_text(PROFILE, encoding="utf-8")
    (case.folder / "top1.py").write_text(FUNCTIONS, encoding="utf-8")
    said = line.format(module=functions)
    more = "" if said.startswith("test") else '\ntest = "rows.npz"'
    text = f'[gate]\nbaseline = "base.onnx"\ncandidate = "ours.onnx"{more}\n{said}\n'
    (case.folder / "edgepress.toml").write_text(text, encoding="utf-8")
    found = case.run("gate")
    assert (found.code, says in found.err) == (2, True), found
    assert not [name for name in ("imported", "ran") if (case.folder / name).exists()]


@pytest.mark.parametrize("history", ["../outside.jsonl", "{above}/outside.jsonl", "linked/outside.jsonl"])
def test_a_found_budget_file_writes_nothing_outside_its_folder(case: Case, history: str) -> None:
    folder = case.folder / "theirs"
    folder.mkdir()
    (folder / "linked").symlink_to(case.folder)
    gating.classifier(folder / "base.onnx", turn=0)
    gating.classifier(folder / "ours.onnx")
    case.samples("rows.npz", **gating.rows(290, 5, 5, 0)).rename(folder / "rows.npz")
    file = folder / "edgepress.toml"
    text = '[gate]\nbaseline = "base.onnx"\ntest = "rows.npz"\nbudget = 50\nhistory = "{}"\n'
    file.write_text(text.format(history.format(above=case.folder)), encoding="utf-8")
    found = case.run("gate", "theirs/base.onnx", "theirs/ours.onnx")
    assert (found.code, "outside its folder" in found.err) == (2, True), found
    outside = case.folder / "outside.jsonl"
    assert not outside.exists()
    words = ("gate", "theirs/base.onnx", "theirs/ours.onnx", "--quiet")
    assert case.run(*words, "--config", file).code == 0
    assert outside.exists()
    outside.unlink()
    assert case.run(*words, "--history", outside).code == 0
    assert outside.exists()
    outside.unlink()
    file.write_text(text.format("past/history.jsonl"), encoding="utf-8")
    assert case.run(*words).code == 0
    assert (folder / "past" / "history.jsonl").exists()
    assert not outside.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": ["top1"]},
        {"budget": "two"},
        {"budget": -1},
        {"threads": 0},
        {"shapes": {"x": ["wide"]}},
        {"leave": [1]},
        {"format": ["exe"]},
        {"preprocess": "/etc/passwd"},
        {"objective": "fame"},
        {"target": None},
    ],
    ids=str,
)
def test_damaged_options_are_named(case: Case, changed: dict[str, object]) -> None:
    (case.folder / "recipe.toml").write_text('[[pass]]\nkind = "store"\n', encoding="utf-8")
    assert case.compress("--recipe", "recipe.toml").code == 0
    change_options(case.out, **changed)
    found = case.run("replay", case.out, "--out", "again")
    assert (found.code, found.err.count("\n") <= 2) == (2, True), found
    assert next(iter(changed)) in found.err
    assert not Path("again").exists()
