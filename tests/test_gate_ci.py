"""The gate in other people's CI: the Action's script as GitHub runs it, and the fixture for pytest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gating
import pytest
from clicase import Case

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def run_step(case: Case, **inputs: str) -> tuple[int, dict[str, str], str, str]:
    """The step `gate` with these inputs: exit code, outputs, summary, and what was printed."""
    step = next(each for each in ACTION["runs"]["steps"] if each.get("id") == "gate")
    values = {name: str(said.get("default", "")) for name, said in ACTION["inputs"].items()} | inputs

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values[found[1]], text)

    files = {name: case.folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("", encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "RUNNER_TEMP": str(case.folder),
        **{name: str(file) for name, file in files.items()},
        **{name: filled(value) for name, value in step["env"].items()},
    }
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=case.folder
    )
    lines = files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return (
        done.returncode,
        outputs,
        files["GITHUB_STEP_SUMMARY"].read_text("utf-8"),
        done.stdout + done.stderr,
    )


@pytest.fixture
def models(case: Case) -> dict[str, str]:
    gating.classifier(case.folder / "base.onnx", turn=0)
    gating.classifier(case.folder / "$(touch owned).onnx")
    case.samples("rows.npz", **gating.rows(400, 50, 0, 50))
    return {"baseline": "base.onnx", "candidate": "$(touch owned).onnx", "test": "rows.npz"}


def test_the_action_gates_annotates_and_sums_up(case: Case, models: dict[str, str]) -> None:
    code, outputs, summary, said = run_step(case, **models, junit="gate.xml")
    assert (code, outputs["verdict"], outputs["exit-code"]) == (1, "broken", "1"), said
    assert json.loads(Path(outputs["json"]).read_text(encoding="utf-8"))["verdict"] == "broken"
    assert "::error title=edgepress gate" in said
    assert summary.startswith("### ❌ FAIL")
    assert (case.folder / "gate.xml").is_file()
    assert not (case.folder / "owned").exists()
    options = {"budget": "30", "max-size": "1.0", "max-latency-ratio": "90", "inconclusive": "fail"}
    code, outputs, summary, said = run_step(case, **models, **options)
    assert (code, outputs["verdict"]) == (0, "kept"), said
    assert "::error" not in said
    assert "latency" in summary


def test_the_action_says_what_is_wrong_with_its_inputs(case: Case, models: dict[str, str]) -> None:
    code, outputs, summary, said = run_step(case, **{**models, "test": "missing.npz"})
    assert (code, outputs["verdict"], outputs["exit-code"], summary) == (2, "", "2", "")
    assert "missing.npz" in said
    assert run_step(case, candidate="base.onnx")[0] == 2


def test_every_input_of_the_action_reaches_the_script() -> None:
    step = next(each for each in ACTION["runs"]["steps"] if each.get("id") == "gate")
    script = (ROOT / "action" / "gate.sh").read_text(encoding="utf-8")
    for name in set(ACTION["inputs"]) - {"install"}:
        variable = f"GATE_{name.upper().replace('-', '_')}"
        assert step["env"][variable] == f"${{{{ inputs.{name} }}}}"
        assert variable in script or f" {name} " in script or f" {name};" in script
    assert "${{" not in step["run"]


TESTS = """
def test_good(edgepress_gate):
    record = edgepress_gate("base.onnx", "base.onnx", test="rows.npz")
    assert record.verdict == "kept"

def test_bad(edgepress_gate):
    edgepress_gate("base.onnx", "ours.onnx", test="rows.npz", budget=2)

def test_open(edgepress_gate):
    edgepress_gate("base.onnx", "ours.onnx", test="few.npz", budget=11)

def test_open_but_passed(edgepress_gate):
    assert edgepress_gate("base.onnx", "ours.onnx", test="few.npz", budget=11, inconclusive="pass").exit_code == 0

def test_wrong(edgepress_gate):
    edgepress_gate("base.onnx", "ours.onnx", test="rows.npz", budgt=2)
"""


def test_the_fixture_fails_tests_with_the_reason(case: Case) -> None:
    gating.classifier(case.folder / "base.onnx", turn=0)
    gating.classifier(case.folder / "ours.onnx")
    case.samples("rows.npz", **gating.rows(400, 50, 0, 50))
    case.samples("few.npz", **gating.rows(80, 10, 0, 10))
    (case.folder / "test_models.py").write_text(TESTS, encoding="utf-8")
    plugin = "edgepress.compressor.cli.pytest_plugin"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin, "--rootdir", ".", "test_models.py"]
    environment: dict[str, Any] = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=case.folder,
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "top1: FAIL: 90.00 % → 80.00 %" in done.stdout
    assert "INCONCLUSIVE" in done.stdout
    assert "Did you mean 'budget'" in done.stdout
    assert "compress gate base.onnx ours.onnx --test rows.npz --budget 2" in done.stdout
