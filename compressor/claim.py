"""A folder to write in, beside what is to be written, that one run at a time holds.

It has one name for each target and a lock that ends with its process. So two runs never mix what they write, a killed
run leaves one folder at most, and the next run takes that over. Where the file system knows no locks, or somebody else
has that name, each run has a folder of a name of its own; what a killed one leaves in it stays there.

The lock is one machine's. Linux passes locks on files to a server of NFS or SMB, and keeps those on folders to itself
(`nfs_dir_operations` and `cifs_dir_ops` have no `flock`), so machines that share a folder do not see each other's: the
later one takes the earlier one's folder for that of a killed run, and empties it. What each writes has a name of its
own there, so the earlier one finds that it is gone, and what they wrote is never mixed. A lock on a file within would
have to go before the folder can, and whoever gets it at that moment loses what it writes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepress.compressor.errors import OutputError

PREFIX = ".edgepress-"
FILE_PREFIX = ".edgepress."
"""Who writes a file empties what it holds; a killed run's folder may hold the only copy of a user's."""
WAIT_SECONDS = 5.0
"""A single file is written in less."""
_POLL_SECONDS = 0.02
_NAME_BYTES = 255
"""Of a name in all usual file systems."""
_NO_LOCK = (
    *(errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP),
)
"""The file system knows no locks on folders, or somebody else has put something of that name there."""


@dataclass(frozen=True)
class Claim:
    """A folder that is ours.

    Attributes:
        folder: `.edgepress-NAME` beside the target, `.edgepress.NAME` for a file; where NAME is too long for that, its
            SHA-256; where file systems know no locks, of a name of its own.
        lock: file descriptor that holds it; None without a lock.
    """

    folder: Path
    lock: int | None

    def fresh(self) -> Path:
        """Make a folder in it that no other run knows; its rights follow the umask.

        Raises:
            OSError: it cannot be made.
        """
        folder = self.folder / f"new-{secrets.token_hex(8)}"
        folder.mkdir()
        return folder

    def release(self, *, keep: bool = False) -> None:
        """Let it go; raises nothing.

        Args:
            keep: leave what is in it to the next run.
        """
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


def claim(target: Path, prefix: str = PREFIX) -> Claim:
    """Hold the folder beside a target; what a killed run left there is still in it.

    Args:
        target: file or folder to be; the folder that holds it exists.
        prefix: of the held folder's name; `FILE_PREFIX` for a file.

    Raises:
        OutputError: another run holds it.
        OSError: it cannot be made, or the target is a folder without a name (`EISDIR`), such as `.` or `/`.
    """
    folder = _place(target, prefix)
    while True:
        made = False
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            made = True
        try:
            return Claim(folder, lock_folder(folder))
        except FileNotFoundError:
            continue  # whoever had it has just ended
        except BlockingIOError as error:
            raise OutputError(
                f"Another run is writing {target}.", "Wait until it has ended, or name another place."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            return Claim(Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent)), None)


def _place(target: Path, prefix: str) -> Path:
    """The folder that all runs with this target try to hold."""
    if not target.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    name = prefix + target.name
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = prefix + hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return target.with_name(name)


def lock_folder(folder: Path) -> int:
    """Lock a folder of our own until what is returned is closed, or this process ends.

    Returns:
        A file descriptor.

    Raises:
        BlockingIOError: somebody has it.
        FileNotFoundError: it is gone.
        OSError: it is not ours, or no folder (`EPERM`, `ENOTDIR`, `ELOOP`), or cannot be locked.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.geteuid():  # others could change what we write
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(folder))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(folder.stat(follow_symlinks=False), os.fstat(lock)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except OSError:
        os.close(lock)
        raise
    return lock


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty folder beside a file, to write it in; at the end all that is there is renamed into place, the file last.

    Args:
        path: of the file; folders that are not there are made.

    Raises:
        OutputError: another run writes it, for seconds on end.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _patient(path)
    folder = held.folder
    try:
        empty(held.folder)
        folder = held.fresh()
        yield folder
        for made in sorted(folder.iterdir(), key=lambda each: each.name == path.name):
            made.replace(path.with_name(made.name))
    finally:
        held.release(keep=not folder.exists())


def empty(folder: Path) -> None:
    """Remove all that is in a folder; raises `OSError`."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _patient(path: Path) -> Claim:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return claim(path, FILE_PREFIX)
        except OutputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
