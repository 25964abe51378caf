"""What devices have in common whose folder is on this machine: files are copied, and the folder goes with us."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.guard import GuardedFolder
from edgepress.devices.names import checked_name, put_in_place


class NearDevice:
    """The half of a device that has to do with its folder; see `devices/base.py`.

    Attributes:
        name: as users know it.
        python: the command that starts Python there.
    """

    def __init__(self, name: str, python: tuple[str, ...]) -> None:
        self.name = name
        self.python = python
        self._opened: GuardedFolder | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the folder away; raises nothing."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder; see `Device.put`."""
        try:
            shutil.copyfile(source, self._work / checked_name(name))
        except OSError as error:
            raise self._trouble(error) from error

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back; see `Device.get`."""
        try:
            with put_in_place(target) as beside:
                shutil.copyfile(self._work / checked_name(name), beside)
        except OSError as error:
            raise self._trouble(error) from error

    def _open(self) -> GuardedFolder:
        """Make the folder; raises `DeviceTroubleError`."""
        try:
            self._opened = GuardedFolder()
        except OSError as error:
            raise self._trouble(error) from error
        return self._opened

    @property
    def _folder(self) -> GuardedFolder:
        if self._opened is None:
            raise RuntimeError("a device is used with `with`")
        return self._opened

    @property
    def _work(self) -> Path:
        """Where files go and commands run."""
        return self._folder.path

    def _trouble(self, error: OSError) -> DeviceTroubleError:
        return DeviceTroubleError(
            f"{self.name}: {error.filename or 'a file'}: {error.strerror}", "Is the disk full?"
        )
