import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from resultfolders import fill

from edgepress.compressor.cli.troubles import system_error
from edgepress.compressor.errors import OutputError
from edgepress.compressor.outdir import staged, write_file


def run_once(out: Path, text: str, **options: Any) -> None:
    with staged(out, **options) as folder:
        fill(folder, text)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def run_and_fail(out: Path, error: BaseException) -> None:
    with staged(out) as folder:
        fill(folder, "two")
        raise error


def tree(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_folder_is_absent_until_the_block_ends_and_whole_after_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as folder:
        fill(folder, "one")
        assert not out.exists()
        assert folder.parent.parent == tmp_path  # beside it: a rename within one file system
    assert names(tmp_path) == ["out"]
    assert set(tree(out)) == {"model.onnx", "manifest.json"}


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    run_once(tmp_path / "out", "one")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_of_ours_is_swapped_and_strange_files_in_it_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_once(out, "one")
    (out / "notes.txt").write_text("mine")
    (out / "pictures").mkdir()
    (out / "pictures" / "a.png").write_text("a")
    run_once(out, "two")
    assert {name: text for name, text in tree(out).items() if name != "manifest.json"} == {
        "model.onnx": "two",
        "notes.txt": "mine",
        "pictures": None,
        "pictures/a.png": "a",
    }
    assert names(tmp_path) == ["out"]


def test_files_of_an_earlier_run_that_the_new_one_lacks_are_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as folder:
        (folder / "model.tflite").write_text("t")
        fill(folder, "one")
    run_once(out, "two")
    assert set(tree(out)) == {"model.onnx", "manifest.json"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run_once(tmp_path / "out", "one")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"tool": "another"}', "{" * 9])
def test_a_strange_folder_is_refused_before_any_work_unless_forced(
    tmp_path: Path, manifest: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    (out / "model.onnx").write_text("another's")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = tree(out)
    with pytest.raises(OutputError, match="not written by edgepress") as caught, staged(out):
        pytest.fail("the block must not begin")
    assert "--force" in caught.value.hint
    assert tree(out) == before
    run_once(out, "one", force=True)
    assert (out / "model.onnx").read_text() == "one"
    assert (out / "thesis.tex").read_text() == "years"


def test_a_folder_that_became_a_strangers_meanwhile_is_refused_too(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def slow_run() -> None:
        with staged(out) as folder:
            fill(folder, "one")
            out.mkdir()
            (out / "mine").write_text("mine")

    with pytest.raises(OutputError, match="not written by edgepress"):
        slow_run()
    assert tree(tmp_path) == {"out": None, "out/mine": "mine"}


def test_a_file_a_link_and_a_parent_that_is_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = tree(tmp_path)
    for name, says in [
        ("file", "is a file"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("file/out", "Cannot write"),
    ]:
        with pytest.raises(OutputError, match=says), staged(tmp_path / name, force=True):
            pytest.fail("the block must not begin")
    assert tree(tmp_path) == before


def test_the_root_and_the_folder_one_is_in_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for out, says in [(Path("/"), "mount point"), (Path(), "you are in"), (Path(".."), "you are in")]:
        with pytest.raises(OutputError, match=says), staged(out, force=True):
            pytest.fail("the block must not begin")


def test_an_output_that_would_overwrite_an_input_is_refused(tmp_path: Path) -> None:
    run_once(tmp_path / "out", "one")
    for given in ("out/model.onnx", "out"):
        with (
            pytest.raises(OutputError, match="holds the input"),
            staged(tmp_path / "out", inputs=[tmp_path / given]),
        ):
            pytest.fail("the block must not begin")
    assert (tmp_path / "out" / "model.onnx").read_text() == "one"


def test_missing_parents_are_made_and_taken_back_when_the_run_fails(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with pytest.raises(ZeroDivisionError), staged(out):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    run_once(out, "one")
    assert set(tree(out)) == {"model.onnx", "manifest.json"}


@pytest.mark.parametrize(
    "error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(3), FileNotFoundError(2, "no", "/x")]
)
def test_whatever_ends_the_block_early_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    run_once(tmp_path / "out", "one")
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        run_and_fail(tmp_path / "out", error)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError, match="disk is full") as caught:
        run_and_fail(tmp_path / "new" / "out", OSError(number, os.strerror(number)))
    assert "--out" in caught.value.hint
    assert tree(tmp_path) == {}


def test_a_place_where_nobody_can_write_is_said() -> None:
    with pytest.raises(OutputError, match="Cannot write"), staged(Path("/proc/edgepress/out")):
        pytest.fail("the block must not begin")


def test_a_parent_without_rights_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rights do not stop root, who runs many a test: the system's answer is played.
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied"), staged(tmp_path / "out"):
        pytest.fail("the block must not begin")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_swap_that_fails_at_any_rename_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    run_once(tmp_path / "out", "one")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "out" / name).write_text(name)
    before = tree(tmp_path)
    rename, count = os.rename, 0

    def flaky(source: Any, destination: Any, **rest: Any) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source), None, str(destination))
        rename(source, destination, **rest)

    monkeypatch.setattr(os, "rename", flaky)
    with pytest.raises(OutputError, match="Input/output error"):
        run_once(tmp_path / "out", "two")
    assert count >= failing
    assert tree(tmp_path) == before


def test_an_old_folder_that_cannot_be_put_back_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_once(tmp_path / "out", "one")
    rename, count = os.rename, 0

    def broken(source: Any, destination: Any, **rest: Any) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source), None, str(destination))
        rename(source, destination, **rest)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OutputError):
        run_once(tmp_path / "out", "two")
    assert [path.read_text() for path in tmp_path.glob(".edgepress-*/old/model.onnx")] == ["one"]


CHILD = """
import sys, time
from pathlib import Path
from edgepress.compressor.outdir import staged, write_file
with staged(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "new" / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, errors = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert child.returncode != 0
    assert tree(tmp_path) == {}


def test_a_signal_during_the_swap_waits_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_once(tmp_path / "out", "one")
    rename = os.rename

    def interrupted(source: Any, destination: Any, **rest: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        rename(source, destination, **rest)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "out", "two")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.onnx").read_text() == "two"


def test_handlers_are_put_back_and_other_threads_may_stage(tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run_once(tmp_path / "out", "one")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    thread = threading.Thread(target=run_once, args=(tmp_path / "other", "one"))
    thread.start()
    thread.join()
    assert (tmp_path / "other" / "model.onnx").read_text() == "one"


def no_folder() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_a_full_disk_is_told_where_temporary_files_have_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        run_and_fail(tmp_path / "out", full)
    assert caught.value is full
    assert names(tmp_path) == []
    assert str(system_error(full)) == os.strerror(errno.ENOSPC)
    assert "Free some space" in system_error(full).hint


def test_a_full_disk_is_told_where_the_folder_of_the_user_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    full = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert str(system_error(full)) == os.strerror(errno.EDQUOT)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "page.html"
    write_file(place, "one", "")
    write_file(place, "größer", "")
    assert tree(tmp_path / "new") == {"page.html": "größer"}

    def half(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text.encode()[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OutputError, match="Cannot write") as caught:
        write_file(place, "three", "Name another file.")
    assert caught.value.hint == "Name another file."
    assert tree(tmp_path / "new") == {"page.html": "größer"}
