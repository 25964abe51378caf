"""The folder of a run's temporary files: it goes with the run, whatever the run does to its surroundings."""

import os
import tempfile
from pathlib import Path

import pytest

from edgepress.compressor.cli.scratch import PREFIX, scratch


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("changed", [None, "/elsewhere"])
def test_it_goes_though_the_run_changed_where_temporary_files_lie(place: Path, changed: str | None) -> None:
    before = open_files()
    with scratch():
        Path(tempfile.mkdtemp(), "half").write_text("half")
        assert [folder.name.startswith(PREFIX) for folder in place.iterdir()] == [True]
        if changed is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = changed
    assert not list(place.iterdir())
    assert open_files() == before, "the lock is let go"
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(place)


def test_no_setting_is_left_where_there_was_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with scratch():
        assert Path(os.environ["TMPDIR"]).parent == place
    assert "TMPDIR" not in os.environ
    assert not list(place.iterdir())
