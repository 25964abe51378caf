"""Folders that one run holds: nobody mixes what two of them write, and what a killed one left is taken over."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import resultfolders
from resultfolders import fill
from test_outdir import names, run_once, tree

from edgepress.compressor import claim as claims
from edgepress.compressor.claim import FILE_PREFIX, beside, claim
from edgepress.compressor.errors import OutputError
from edgepress.compressor.outdir import staged, write_file
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.history import Past, append_history, read_history

CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from resultfolders import fill
from edgepress.compressor.outdir import staged

rename, left = Path.rename, int(sys.argv[2])

def deadly(source, destination):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(source, destination)

Path.rename = deadly
with staged(Path(sys.argv[1])) as folder:
    fill(folder, "two")
"""


def killed_at(out: Path, rename: int) -> None:
    """A run that is killed before one of the renames of its swap."""
    words = [sys.executable, "-c", CHILD, str(out), str(rename), str(Path(resultfolders.__file__).parent)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("rename", range(4))
def test_a_run_killed_amid_the_swap_loses_nothing_and_the_next_one_mends_it(
    tmp_path: Path, rename: int
) -> None:
    out = tmp_path / "out"
    run_once(out, "one")
    for name in ("a.txt", "b.txt"):
        (out / name).write_text(name)
    killed_at(out, rename)
    assert set(names(tmp_path)) <= {"out", ".edgepress-out"}, "one folder beside it, however often"
    with staged(out) as folder:
        assert out.exists(), "the last result is back before the work begins"
        fill(folder, "three")
    assert names(tmp_path) == ["out"]
    assert manifests.verify(out) == []
    found = tree(out)
    assert (found["model.onnx"], found["a.txt"], found["b.txt"]) == ("three", "a.txt", "b.txt")


def test_killed_runs_leave_one_folder(tmp_path: Path) -> None:
    for _ in range(3):
        killed_at(tmp_path / "out", 0)
    assert names(tmp_path) == [".edgepress-out"]
    run_once(tmp_path / "out", "one")
    assert names(tmp_path) == ["out"]


def test_what_somebody_put_in_the_place_since_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_once(out, "one")
    killed_at(out, 1)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("new")
    with staged(out, force=True) as folder:
        assert (out / "model.onnx").read_text() == "one"
        fill(folder, "three")
    assert (out / "notes.txt").read_text() == "new"


def test_a_file_of_the_same_name_leaves_what_a_killed_run_holds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_once(out, "one")
    (out / "notes.txt").write_text("mine")
    killed_at(out, 1)
    assert not out.exists()
    write_file(out, "a report", "")
    assert out.read_text() == "a report"
    out.unlink()
    run_once(out, "two")
    assert (out / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["out"]


def test_a_second_run_into_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as folder:
        with pytest.raises(OutputError, match="Another run is writing"), staged(out):
            pytest.fail("both began")
        fill(folder, "one")
    assert names(tmp_path) == ["out"]
    assert manifests.verify(out) == []


def test_many_at_once_leave_one_whole_result(tmp_path: Path) -> None:
    ended: list[str] = []

    def work(text: str) -> None:
        with suppress(OutputError):
            run_once(tmp_path / "out", text)
            ended.append(text)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["out"]
    assert manifests.verify(tmp_path / "out") == []
    assert (tmp_path / "out" / "model.onnx").read_text() in ended


def test_who_writes_a_file_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "page.html"
    held = claim(place, FILE_PREFIX)
    threading.Timer(0.1, held.release).start()
    write_file(place, "one", "")
    assert tree(tmp_path) == {"page.html": "one"}
    held = claim(place, FILE_PREFIX)
    monkeypatch.setattr(claims, "WAIT_SECONDS", 0.05)
    with pytest.raises(OutputError, match="Another run is writing"):
        write_file(place, "two", "")
    held.release()
    (tmp_path / ".edgepress.page.html").mkdir()
    (tmp_path / ".edgepress.page.html" / "page.html").write_text("ha")  # of one that was killed
    write_file(place, "three", "")
    assert tree(tmp_path) == {"page.html": "three"}


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_names_may_be_as_long_as_the_file_system_lets_them(tmp_path: Path, letter: str) -> None:
    name = letter * (255 // len(letter.encode()))
    write_file(tmp_path / name, "one", "")
    assert tree(tmp_path) == {name: "one"}
    other = tmp_path / name[:-1]
    with staged(other) as folder, pytest.raises(OutputError, match="Another run"), staged(other):
        pytest.fail(f"both began in {folder}")
    run_once(other, "two")
    assert sorted(names(tmp_path)) == sorted([name, other.name])


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_a_folder_is_no_file_to_write(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="Is a directory"):
        write_file(Path(place), "text", "Name a file.")
    assert tree(tmp_path) == {"here": None}


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_each_run_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with staged(tmp_path / "out") as first, staged(tmp_path / "out") as second:
        assert first != second
        fill(first, "one")
        fill(second, "two")
    assert (tmp_path / "out" / "model.onnx").read_text() == "one"
    assert manifests.verify(tmp_path / "out") == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("outlived", [True, False])
def test_of_machines_that_do_not_see_each_other_s_locks_the_later_one_writes_and_the_other_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool, outlived: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    out, later = tmp_path / "out", ExitStack()

    def earlier() -> None:
        with staged(out) as folder:
            if written:
                fill(folder, "one")
            fill(later.enter_context(staged(out)), "two")
            if outlived:
                later.close()
            if not written:
                fill(folder, "one")

    with pytest.raises(OutputError, match="Cannot write the output folder") as told:
        earlier()
    later.close()
    assert "another machine" in told.value.hint
    assert names(tmp_path) == ["out"]
    assert manifests.verify(out) == []
    assert (out / "model.onnx").read_text() == "two"


def test_of_such_machines_none_puts_the_other_s_half_file_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    place, later = tmp_path / "page.html", ExitStack()

    def earlier() -> None:
        with beside(place) as folder:
            (folder / place.name).write_text("one")
            (later.enter_context(beside(place)) / place.name).write_text("not all")

    with pytest.raises(FileNotFoundError):
        earlier()
    assert not place.exists()
    later.close()
    assert tree(tmp_path) == {"page.html": "not all"}


def test_a_folder_of_another_user_does_not_block_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / ".edgepress-out"
    theirs.mkdir()
    (theirs / "half").write_text("theirs")
    opened = os.open

    def refuse(path: Any, *more: Any, **rest: Any) -> int:
        if path == theirs:  # of rights 0700, which root would pass
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *more, **rest)

    monkeypatch.setattr(os, "open", refuse)
    run_once(tmp_path / "out", "one")
    assert sorted(names(tmp_path)) == [".edgepress-out", "out"]
    assert (tmp_path / "out" / "model.onnx").read_text() == "one"
    assert (theirs / "half").read_text() == "theirs"


def a_file(place: Path) -> None:
    place.write_text("somebody's")


def a_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


@pytest.mark.parametrize("plant", [a_file, a_link])
def test_what_has_our_name_and_is_no_folder_stays(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / ".edgepress-out")
    before = tree(tmp_path)
    run_once(tmp_path / "out", "one")
    assert tree(tmp_path).items() >= before.items()
    assert (tmp_path / "out" / "model.onnx").read_text() == "one"


def test_a_full_disk_leaves_no_part_of_a_line_in_the_history(tmp_path: Path) -> None:
    line = Past(
        when="2026-01-01T00:00:00+00:00", verdict="kept", accepted=True, baseline_sha256="a" * 64,
        candidate_sha256="b" * 64, metric="top1", rows=10, test_sha256="c" * 64, score=1.0, drop_percent=0.0,
        size_bytes=1, latency_ratio=None, right=None,
    )  # fmt: skip
    file = tmp_path / "history.jsonl"
    append_history(file, line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OutputError, match="Cannot write"):
            append_history(file, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_history(file, line)
    assert read_history(file) == [line, line]
