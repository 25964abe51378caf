"""Past gates as JSON lines: one a run, appended, so that the file can be committed or kept by CI."""

import base64
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.report.fields import MaybeFloat
from edgepress.compressor.report.gate import Past
from edgepress.compressor.report.words import number

SHOWN = 10
"""Latest results in a trend."""


def read_history(path: Path) -> list[Past]:
    """All results, oldest first; none where there is no file yet.

    Raises:
        UsageError: the file cannot be read, or a line is no result.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {path}: {error}.", "Name another with --history.") from error
    found = []
    for number_, line in enumerate(lines, start=1):
        try:
            found.append(Past.model_validate_json(line))
        except ValidationError as error:
            raise UsageError(
                f"{path}, line {number_}: this is no result of a gate.",
                "Remove the line, or name another file.",
            ) from error
    return found


def append_history(path: Path, past: Past) -> None:
    """Add a result; raises `OutputError` where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = past.model_dump_json().encode() + b"\n"
        with path.open("ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            if stream.write(line) < len(line):  # part of a line would spoil the file for all runs to come
                stream.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror}.", "Name another with --history."
        ) from error


def packed(values: Matrix) -> str | None:
    """Rows of 0 and 1, eight in a byte, as text; None for others."""
    if not np.isin(values, (0.0, 1.0)).all():
        return None
    return base64.b64encode(np.packbits(values.astype(bool)).tobytes()).decode()


def unpacked(text: str, rows: int) -> Matrix | None:
    """The rows again; None where the text does not hold as many."""
    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except ValueError:
        return None
    return np.unpackbits(raw)[:rows].astype(np.float64) if 0 <= 8 * len(raw) - rows < 8 else None


def last_accepted(history: Sequence[Past], metric: str, test_sha256: str) -> Past | None:
    """The latest accepted candidate that was scored alike, on the same samples."""
    alike = (each for each in reversed(history) if (each.metric, each.test_sha256) == (metric, test_sha256))
    return next((each for each in alike if each.accepted), None)


def trend(history: Sequence[Past]) -> str:
    """Scores of the latest results in one line: `97.1 → 97.0 → 96.8 ✗`; a cross follows what was not accepted."""
    return " → ".join(_score(each.score) + ("" if each.accepted else " ✗") for each in history[-SHOWN:])


def _score(value: MaybeFloat) -> str:
    return "–" if value is None else number(value, 4)
