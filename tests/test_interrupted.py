"""Ctrl-C at any moment, and a crash of ours: an exit code of its own, and nothing written."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from clicase import Case, files_below

from edgepress.compressor.cli import host, run
from edgepress.compressor.job import Host


@pytest.mark.parametrize(
    "moment", ["samples", "normalise", "options", "search", "fit", "export", "measure", "judge"]
)
def test_interrupted(case: Case, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    plain = host.make_host

    def interrupted(*arguments: Any) -> Host:
        def tell(stage: str, share: float, detail: str) -> None:
            if stage == moment:
                raise KeyboardInterrupt

        return replace(plain(*arguments), progress=tell)

    monkeypatch.setattr(run, "make_host", interrupted)
    before = files_below(case.folder)
    outcome = case.compress()
    assert outcome.code == 130
    assert "Interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert files_below(case.folder) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_from_outside(case: Case, number: signal.Signals) -> None:
    before = files_below(case.folder)
    words = [case.model, "--data", case.folder / "calib.npz", "--out", case.out]
    command = [sys.executable, "-c", "from edgepress.compressor.cli import main; main()", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while files_below(case.folder) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert files_below(case.folder) == before


def test_interrupted_while_libraries_load(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgepress.compressor.cli.commands.execute", interrupted)
    assert case.compress().code == 130


def test_a_crash_is_no_broken_budget(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> Any:
        raise AssertionError("a bug")

    monkeypatch.setattr(run, "run_session", crash)
    before = files_below(case.folder)
    outcome = case.compress()
    assert outcome.code == 70
    assert "please report" in outcome.err
    assert files_below(case.folder) == before
