"""Temporary files of a run lie in one folder, which goes with it; what killed runs left goes with the next one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgepress.compressor.claim import lock_folder

PREFIX = "edgepress-run-"


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Have all temporary files, those of libraries and of processes that are started included, lie in one folder.

    Where it cannot be made, they lie where they would: who needs one will say what is wrong.
    """
    try:
        place = Path(tempfile.gettempdir())
        folder, lock = _made(place)
    except OSError:
        yield
        return
    _sweep(place)
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR", None)  # a user's function may have taken it out
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _made(place: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            return folder, lock_folder(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another run took it for one that was left
        except OSError:
            folder.rmdir()
            raise


def _sweep(place: Path) -> None:
    """Remove folders whose runs have ended."""
    with contextlib.suppress(OSError):
        for folder in place.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                lock = lock_folder(folder)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
