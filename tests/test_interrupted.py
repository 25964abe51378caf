"""Ctrl-C at any moment, and a crash of ours: an exit code of its own, and nothing written."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from clicase import Case, files_below

from edgepress.compressor.cli import host, interrupt, run
from edgepress.compressor.job import Host


@pytest.mark.parametrize(
    "moment", ["samples", "normalise", "options", "search", "fit", "export", "measure", "judge"]
)
def test_interrupted(case: Case, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    plain = host.make_host

    def interrupted(*arguments: Any, **more: Any) -> Host:
        def tell(stage: str, share: float, detail: str) -> None:
            if stage == moment:
                raise KeyboardInterrupt

        return replace(plain(*arguments, **more), progress=tell)

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
        process.send_signal(number)  # at once: what follows takes less than a second
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in said
    assert "Traceback" not in said
    written = set(files_below(case.folder)) - set(before)
    whole = number == signal.SIGINT and {
        f"out/{name}" for name in ("model.onnx", "report.json", "manifest.json")
    }
    assert not written or (whole and whole <= written)


def test_the_first_ctrl_c_of_a_search_keeps_the_best_so_far(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 8 bits by then, and is asked in the middle of the search."""
    plain, asked = interrupt.first_interrupt, []

    @contextmanager
    def pressed() -> Iterator[Any]:
        with plain() as (watch, stopped):

            def watched(tell: interrupt.Tell) -> interrupt.Tell:
                def told(stage: str, share: float, detail: str) -> None:
                    inner(stage, share, detail)
                    if stage == "search" and detail and not asked:
                        asked.append(detail)
                        os.kill(os.getpid(), signal.SIGINT)

                inner = watch(tell)
                return told

            yield watched, stopped

    monkeypatch.setattr(run, "first_interrupt", pressed)
    outcome = case.compress("--objective", "size")
    assert asked
    assert outcome.code == 130
    assert "best so far" in outcome.err
    assert "best that was found until then" in outcome.err
    report = json.loads((case.out / "report.json").read_text())
    assert report["verdict"] == "kept"
    assert report["compressed"]["size_bytes"] < report["baseline"]["size_bytes"]


def test_a_killed_run_goes_on_to_what_it_would_have_been(case: Case) -> None:
    times, stores = case.folder / "times.json", [case.folder / "one", case.folder / "two"]
    fixed = ["--data", case.folder / "calib.npz", "--objective", "size", "--workers", 1, "--timings", times]

    def command(place: int) -> list[str]:
        words = [case.model, *fixed, "--cache", stores[place], "--out", case.folder / f"out{place}"]
        return [sys.executable, "-c", "from edgepress.compressor.cli import main; main()", *map(str, words)]

    def stored(place: int) -> set[str]:
        with closing(sqlite3.connect(stores[place] / "results.sqlite")) as connection:
            try:
                found = connection.execute("SELECT key FROM results").fetchall()
            except sqlite3.OperationalError:  # not made yet
                return set()
        return {key.split(" ", 1)[1] for (key,) in found}

    subprocess.run(command(0), check=False, capture_output=True)
    with subprocess.Popen(command(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if (stores[1] / "results.sqlite").exists() and len(stored(1)) >= 5:
                break
            time.sleep(0.01)
        process.kill()
    done = stored(1)
    assert 5 <= len(done) < len(stored(0))
    subprocess.run(command(1), check=False, capture_output=True)
    assert stored(1) == stored(0)
    first, second = (case.folder / f"out{place}" / "model.onnx" for place in (0, 1))
    assert first.read_bytes() == second.read_bytes()


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
