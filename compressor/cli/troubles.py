"""Errors of the runtime, of devices and of the system, told as ours; and lines about what takes long at a device."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from edgepress.compressor.errors import DeviceError, EdgepressError, OutputError
from edgepress.runtime.record import HintedError

_HINTS = {
    errno.ENOSPC: "Free some space. TMPDIR names another folder for temporary files, --out one for results.",
    errno.EFBIG: "The size of files is limited here: `ulimit -f unlimited`.",
    errno.EMFILE: "Raise the limit: `ulimit -n 4096`.",
    errno.ENFILE: "Close other programs, or have the limit of the system raised.",
    errno.EACCES: "Mend the rights, or name another folder. TMPDIR names one for temporary files.",
    errno.ELOOP: "Links lead to each other: name the file itself.",
    errno.EAGAIN: "Close other programs, or raise the limit on processes: `ulimit -u`.",
}
_HINTS |= {
    errno.EDQUOT: _HINTS[errno.ENOSPC],
    errno.EROFS: _HINTS[errno.EACCES],
    errno.EPERM: _HINTS[errno.EACCES],
}


def system_error(error: OSError) -> EdgepressError:
    """What the system refused, where nobody else knew what it meant.

    Args:
        error: as it was raised.
    """
    if error.errno == errno.ENOMEM:
        return memory_error()
    if str(error.strerror).startswith("No usable temporary directory"):
        return OutputError(
            "No folder for temporary files can be written to.",
            "Free some space, or name another with TMPDIR.",
        )
    where = error.filename
    if where is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = _fullest()
    said = error.strerror or str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "--debug shows where that was.")
    return OutputError(said if where is None else f"{os.fsdecode(where)}: {said}", hint)


def _fullest() -> Path | None:
    """The one of the two folders mostly written to that has less room; None where they cannot be looked at."""
    try:
        return min((Path.cwd(), Path(tempfile.gettempdir())), key=lambda path: shutil.disk_usage(path).free)
    except OSError:  # such as a folder that is gone, or none for temporary files
        return None


def memory_error() -> EdgepressError:
    """Memory has run out here."""
    return DeviceError(
        "Memory ran out.", "Close other programs, raise the limit (`ulimit -v`), or go on with --workers 1."
    )


@contextmanager
def errors_told() -> Iterator[None]:
    """The runtime's and the devices' errors as the compressor's."""
    try:
        yield
    except HintedError as error:
        raise DeviceError(str(error), error.hint) from error


@contextmanager
def line_told(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Takes lines about what a device waits for; on stderr, with a spinner where that is a terminal.

    Args:
        quiet: say nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda line: None
    elif not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        with console.status("") as status:
            status.stop()

            def tell(line: str) -> None:
                status.update(line)
                status.start()

            try:
                yield tell
            finally:
                status.stop()
