"""Errors that a user can act on.

    EdgepressError            base; `exit_code` and a message that says what is wrong, where, what to do
    ├── UsageError        2   an option, name or combination that cannot be served
    ├── ModelError        2   the model file cannot be read, checked or represented
    ├── DataError         2   samples or labels do not fit the model, or are damaged
    ├── MetricError       2   a metric is unknown, does not fit, or raised
    ├── OutputError       2   the result cannot be written
    └── DeviceError       3   a named device does not answer, or an engine failed there

`cli` turns each into one message on stderr and its exit code; anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class EdgepressError(Exception):
    """Base of all errors with a remedy.

    Args:
        message: what is wrong and where.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(EdgepressError):
    """An option, name or combination that cannot be served."""


class ModelError(EdgepressError):
    """The model file cannot be read, checked or represented."""


class DataError(EdgepressError):
    """Samples or labels do not fit the model, or are damaged."""


class MetricError(EdgepressError):
    """A metric is unknown, does not fit the outputs, or raised."""


class OutputError(EdgepressError):
    """The result cannot be written."""


class DeviceError(EdgepressError):
    """A named device does not answer, or an engine failed there."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint for a misspelt name: the closest known one, and all of them.

    Args:
        name: what the user wrote.
        known: what would have been accepted.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + "Known: " + ", ".join(names) + "."
