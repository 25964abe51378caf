"""The output folder is whole or absent: everything is written beside it and renamed into place at the end.

Beside DIR stands, while a run lasts, `.edgepress-DIR/` with `new-…/` (being written) and, for the moment of
the swap, `old/`. Files in an existing DIR that are not ours are carried over: nobody loses notes to a rerun.
What a killed run left there, the next one ends or undoes. Where a folder cannot be locked (`claim`), it has a name of
its own, which no later run knows: there it stays, `old/` included, until the user looks after it.
"""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from edgepress.compressor.claim import Claim, beside, claim, empty
from edgepress.compressor.errors import OutputError
from edgepress.compressor.report.manifest import files_of

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def staged(out: Path, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a fresh folder to write into; when the block ends well it becomes `out`, else nothing is left.

    An existing `out` that an earlier run wrote is swapped, an empty one filled; any other is refused without
    `force`, and with it only files of the same name are lost. Missing parents are made. SIGTERM ends the
    block like Ctrl-C, as KeyboardInterrupt; neither can come between the two renames of a swap.

    Args:
        out: the folder to be.
        force: write into a folder that is not ours.
        inputs: what the run reads; an `out` that is one of them or holds one is refused.

    Raises:
        OutputError: `out` cannot be used, another run writes it, or it cannot be written (no rights, full disk).
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  resolve() would follow a link, and links are refused
    inputs = tuple(inputs)
    made: tuple[Path, ...] = ()
    held: Claim | None = None
    work: Path | None = None
    fresh: Path | None = None
    within = done = False
    with _sigterm_as_interrupt():
        try:
            _check(out, force, inputs)
            made = _missing_parents(out)
            with _undisturbed():
                out.parent.mkdir(parents=True, exist_ok=True)
                held = claim(out)
                _recover(held.folder, out)
                work = held.folder
                fresh = held.fresh()
            within = True
            yield fresh
            within = False
            with _undisturbed():
                _check(out, force, inputs)
                _swap(fresh, out, work / "old")
                done = True
        except OSError as error:
            if within and not _about_output(error, out, work):
                raise
            raise _explained(error, out, taken=fresh is not None and not fresh.exists()) from error
        finally:
            with _undisturbed():
                _clean(held, fresh, () if done else made, done)


def write_file(path: Path, text: str, hint: str) -> None:
    """Write a text file, whole or not at all; to a device or a pipe, such as /dev/stdout, as it comes.

    Args:
        path: of the file; folders that are not there are made.
        text: UTF-8.
        hint: what the user can do where that fails.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        if _is_stream(path):
            path.write_text(text, encoding="utf-8")
            return
        with beside(path) as folder:
            (folder / path.name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.", hint) from error


def _is_stream(path: Path) -> bool:
    """Whether there is what no file may replace: a device, a pipe, or a link of the system to one."""
    given = Path("/dev") in path.absolute().parents and path.is_symlink()
    return given or (path.exists() and not path.is_file() and not path.is_dir())


def _check(out: Path, force: bool, inputs: Iterable[Path]) -> None:
    """Refuse what must not be replaced."""
    choose = "Choose another --out."
    if out.is_symlink():
        raise OutputError(
            f"The output folder {out} is a symbolic link; it cannot be swapped as a whole.",
            "Name the folder that the link points to as --out.",
        )
    real = out.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(real):
            raise OutputError(
                f"The output folder {out} holds the input {path.name}; it would be overwritten.", choose
            )
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"The output folder {out} is a file.", choose)
    if out.is_mount():
        raise OutputError(
            f"The output folder {out} is a mount point; it cannot be swapped as a whole.",
            f"Name a folder inside it, such as --out {out / 'compressed'}.",
        )
    if Path.cwd().is_relative_to(real):
        raise OutputError(f"The output folder {out} is, or holds, the folder that you are in.", choose)
    if not force and files_of(out) is None and any(out.iterdir()):
        raise OutputError(
            f"The output folder {out} exists and was not written by edgepress.",
            "Choose another --out, or add --force: files of the same name are then overwritten, others stay.",
        )


def _missing_parents(out: Path) -> tuple[Path, ...]:
    """Parents of `out` that do not exist yet, deepest first."""
    return tuple(parent for parent in out.parents if not parent.exists())


def _recover(work: Path, out: Path) -> None:
    """End or undo the swap that a killed run was amid, and remove all else that it left."""
    old = work / "old"
    if old.is_dir() and not (out.exists() and any(out.iterdir())):
        old.rename(out)
    elif old.is_dir():
        for entry in _others(old, out, swapped=files_of(out) is not None):
            entry.rename(out / entry.name)
    empty(work)


def _others(old: Path, out: Path, *, swapped: bool = True) -> list[Path]:
    """Entries of the old folder that are not of our making, and not in the new one.

    Args:
        old: the folder that was `out`.
        out: what stands in its place.
        swapped: whether we put that there; else all of the old folder is somebody's.
    """
    ours = {name.split("/")[0] for name in files_of(old) or ()} if swapped else set()
    return [e for e in sorted(old.iterdir()) if e.name not in ours and not (out / e.name).exists()]


def _swap(fresh: Path, out: Path, old: Path) -> None:
    """Put `fresh` in the place of `out`; when any of the renames fails, all before it are undone."""
    with contextlib.ExitStack() as undo:

        def move(source: Path, destination: Path) -> None:
            source.rename(destination)
            undo.callback(destination.rename, source)

        if out.exists():
            move(out, old)
        move(fresh, out)
        if old.exists():
            for entry in _others(old, out):
                move(entry, out / entry.name)
        undo.pop_all()


def _clean(held: Claim | None, fresh: Path | None, made: Iterable[Path], done: bool) -> None:
    """Remove the working folder, and the parents made for nothing (those that others use by now stay).

    An `old/` that could not be put back is the user's only copy, so it stays; and so does all where somebody took away
    what we wrote, since the folder is theirs by now.
    """
    if held is not None:
        taken = fresh is not None and not fresh.exists()
        held.release(keep=not done and (taken or (held.folder / "old").exists()))
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _about_output(error: OSError, out: Path, work: Path | None) -> bool:
    """Whether an error from within the block is about the output, and not, say, about reading the samples."""
    if error.errno in _FULL and error.filename is None:
        try:
            others = shutil.disk_usage(tempfile.gettempdir()).free
            return shutil.disk_usage(out.parent).free <= others
        except OSError:  # nowhere to put temporary files, say: which disk it was cannot be told
            return False
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    paths = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100
    return any(out.is_relative_to(path) or (work and path.is_relative_to(work)) for path in paths)


def _explained(error: OSError, out: Path, taken: bool) -> OutputError:
    """The error as the user's.

    Args:
        error: as it was raised.
        out: the folder to be.
        taken: whether what was written for it is gone.
    """
    if error.errno in _FULL:
        hint = "Free some space, or choose another --out."
        return OutputError(f"The disk is full: {out} was not written.", hint)
    hint = "Choose another --out, or mend its rights."
    if taken:
        hint = (
            "Choose another --out: is a run on another machine writing this one, or does something remove it?"
        )
    return OutputError(f"Cannot write the output folder {out}: {error.strerror}.", hint)


@contextlib.contextmanager
def _handlers(signals: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Another handler for some signals while the block lasts; only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, previous in before.items():
            # None is a handler that was not set from Python, which Python cannot put back.
            signal.signal(each, signal.SIG_DFL if previous is None else previous)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block by KeyboardInterrupt, unless someone else handles it already."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with _handlers([signal.SIGTERM] if free else [], interrupt):
        yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    with _handlers(_SIGNALS, note):
        yield
    if came:
        raise KeyboardInterrupt
