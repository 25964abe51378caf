"""`benchmarks/platforms.py` without an index, and with steps that fail or never end."""

import sys
from pathlib import Path

import platforms
import pytest


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which does what its file says."""
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(platforms.shutil, "which", lambda _: str(program))
    return program


def test_without_an_index_one_line_is_told_and_nothing_stored(
    uv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uv.write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    out = tmp_path / "platforms.json"
    with pytest.raises(SystemExit) as ended:
        platforms.main(["--steps", "resolve", "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not out.exists()


def test_an_index_that_never_answers_is_none(
    uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    monkeypatch.setattr(platforms, "PROBE_S", 0.2)
    with pytest.raises(SystemExit) as ended:
        platforms.Workshop(tmp_path)
    assert ended.value.code == 0


def test_what_never_ends_or_fails_is_a_result(
    uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = platforms.Workshop(tmp_path)
    monkeypatch.setattr(platforms, "LIMIT_S", 0.2)
    late = shop.run("test", "sleeps", "3.11", ["sleep", "60"])
    assert (late.fine, late.found) == (False, "took over 0.2 s")
    monkeypatch.setattr(platforms, "LIMIT_S", 60)
    uv.write_text("#!/bin/sh\necho no such thing >&2\nexit 2\n", encoding="utf-8")
    monkeypatch.setattr(platforms, "interpreters", lambda _: iter([sys.executable]))
    found = list(platforms.tested(shop))
    assert [(each.fine, each.found) for each in found] == [(False, "no such thing")] * 2
