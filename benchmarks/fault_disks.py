"""Real disks of a few pages for `faults.py`: tmpfs, mounted where nobody else sees it and gone with this process."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

AMPLE_BYTES = 64 << 20
"""Room for all that a run writes."""

INSIDE = "EDGEPRESS_FAULT_DISKS"
"""Environment variable of a process that may mount."""

_NAMESPACES = (("unshare", "--map-root-user", "--mount"), ("unshare", "--mount"))
"""Of any user, where the system lets them; of root."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Disk:
    """A mounted one.

    Attributes:
        at: its folder.
        most_bytes: that were on it at any time that was looked at.
    """

    at: Path
    most_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """What is on it now."""
        return shutil.disk_usage(self.at).used

    def leave(self, room_bytes: int) -> None:
        """Have so many bytes left beside what is on it, at least a page in all."""
        size = max(_PAGE, self.used_bytes + room_bytes)  # 0 would be no limit
        _run("mount", "-o", f"remount,size={size}", str(self.at))

    def step_bytes(self, count: int) -> int:
        """Whole pages, so many of which, but one, reach from none to the most that was on it."""
        return (-(-self.most_bytes // _PAGE // (count - 1)) or 1) * _PAGE


def enter() -> bool:
    """Begin this script anew where it may mount, if there is such a place; False where there is none."""
    if INSIDE in os.environ:
        return True
    for words in _NAMESPACES:
        with tempfile.TemporaryDirectory() as folder:
            mount = ("mount", "-t", "tmpfs", "-o", f"size={_PAGE}", "none", folder)
            try:
                tried = subprocess.run([*words, *mount], capture_output=True, check=False)
            except FileNotFoundError:
                return False
        if tried.returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp(words[0], [*words, sys.executable, *sys.argv])  # noqa: S606  no shell is wanted
    return False


@contextmanager
def disks(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Disk]]:
    """Disks with ample room, each over a folder within one that they may lie in, too; empty, for the block.

    Args:
        folder: that has them.
        names: of the folders in it, outer ones first; they are made.
    """
    with ExitStack() as stack:
        mounted = {}
        for name in names:
            at = folder / name
            at.mkdir(exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", f"size={AMPLE_BYTES}", "none", str(at))
            stack.callback(_run, "umount", "-l", str(at))
            mounted[name] = Disk(at)
        yield mounted


@contextmanager
def watched(mounted: Sequence[Disk]) -> Iterator[None]:
    """Note the most that is on each disk beside what is there now, every few milliseconds while the block lasts."""
    over, before = threading.Event(), [disk.used_bytes for disk in mounted]

    def look() -> None:
        while not over.wait(0.003):
            for disk, used in zip(mounted, before, strict=True):
                disk.most_bytes = max(disk.most_bytes, disk.used_bytes - used)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
