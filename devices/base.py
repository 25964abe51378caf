"""What a device is to those who measure on it: a folder of its own there, and commands that run in it.

A device is opened with `with`; whatever happens inside, the folder and every process started in it are gone afterwards,
on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgepress.runtime.record import HintedError


class DeviceTroubleError(HintedError):
    """A device does not answer, refuses, or failed amid its work; the command line ends with exit code 3."""


@dataclass(frozen=True)
class Completed:
    """How a command on a device ended.

    Attributes:
        code: its exit status; negative where a signal ended it.
        out: its standard output.
        err: its standard error, as text, shortened to what a message can hold.
    """

    code: int
    out: bytes
    err: str


class Device(Protocol):
    """Something that runs commands on files, near or far.

    Attributes:
        name: as users know it.
        timed: whether time there is time; under emulation it is not, and is never reported as latency.
        python: the command that starts Python there, such as ("python3",); empty where there is none.
    """

    name: str
    timed: bool
    python: tuple[str, ...]

    def __enter__(self) -> Device:
        """Connect and make the folder; raises `DeviceTroubleError`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the folder away, end what still runs, disconnect; raises nothing."""

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder under a plain name; raises `DeviceTroubleError`."""

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a command in the folder, `given` on its standard input, no shell in between.

        Raises:
            DeviceTroubleError: the connection was lost, or the time is over (the command is ended then).
        """

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back; `target` is whole or absent. Raises `DeviceTroubleError`."""
