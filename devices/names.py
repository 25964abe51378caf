"""What all devices do alike with names, files and words."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_WORDS = 2000


def checked_name(name: str) -> str:
    """The name, where it is one of a file in a folder, and no path or option.

    Raises:
        ValueError: it is not.
    """
    if not _PLAIN.fullmatch(name):
        raise ValueError(f"{name!r} is no plain file name")
    return name


@contextmanager
def put_in_place(target: Path) -> Iterator[Path]:
    """A file beside the target to write to; it takes the target's place where all goes well, and else goes."""
    # A file, not a folder with one in it: outputs come back by the hundred, and folders are slow to remove.
    handle, name = tempfile.mkstemp(prefix=".edgepress-", dir=target.absolute().parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def shortened(said: bytes) -> str:
    """What a program said, as text; of much, the end, where errors stand."""
    text = said.decode("utf-8", "replace").strip()
    return text if len(text) <= _WORDS else "…" + text[-_WORDS:]
