"""An emulated 64-bit ARM machine: QEMU's user mode runs the real ARM kernels and counts their instructions.

What it computes is what a board computes. How long it takes says nothing of a board (floating point is done in
software, there is neither cache nor pipeline), so `timed` is False and no latency is ever told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgepress.devices.armboard import CORES, write_board
from edgepress.devices.armroot import Tell, cache_folder, emulator, guest_environment, python_in, userland
from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.guard import GuardedFolder
from edgepress.devices.plugin import plugin
from edgepress.devices.profile import DeviceSpec
from edgepress.runtime.counting import COUNTER

_MESSAGE_LIMIT = 2000


class QemuDevice:
    """A device of a profile, emulated; see `devices/base.py` for what devices do.

    Attributes:
        name: of the profile.
        timed: False: time under emulation is no time of a board.
        python: what starts Python there.
    """

    def __init__(self, spec: DeviceSpec, *, counts: bool = True, tell: Tell = lambda line: None) -> None:
        """Nothing is started or downloaded before `with`.

        Args:
            spec: of an ARM core; its `cpu` chooses the instructions and thereby the kernels.
            counts: whether instructions can be counted; without, no compiler is needed.
            tell: takes lines about what takes long.

        Raises:
            DeviceTroubleError: no such core can be emulated.
        """
        if spec.arch != "aarch64" or spec.cpu not in CORES:
            raise DeviceTroubleError(
                f"{spec.name} cannot be emulated: its core is {spec.cpu or 'not named'}",
                f"Profiles with these cores can: {', '.join(CORES)}.",
            )
        self.name = spec.name
        self.timed = False
        self.python: tuple[str, ...] = ("python3",)
        self._core = spec.cpu
        self._counts = counts
        self._tell = tell
        self._folder: GuardedFolder | None = None
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._root = Path()

    def __enter__(self) -> QemuDevice:
        """Make what is missing and a folder; raises `DeviceTroubleError`."""
        if sys.platform != "linux":
            raise DeviceTroubleError(
                f"{self.name} is emulated on Linux only", "Give a board's address instead."
            )
        starter = emulator(self._tell)
        self._root = userland(starter, self._tell)
        counter = plugin(starter, cache_folder() / "plugins") if self._counts else None
        self._folder = folder = GuardedFolder()
        try:
            write_board(folder.path / "board", self._root, self._core, 1)
            self._work.mkdir()
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise DeviceTroubleError(f"{folder.path} cannot be written: {error.strerror}") from error
            raise
        self._environment = {
            **guest_environment(self._root),
            "HOME": str(self._work),
            "TMPDIR": str(self._work),
            "PYTHONDONTWRITEBYTECODE": "1",  # the userland is shared, and stays as it was made
        }
        self._command = [*starter, "-L", str(folder.path / "board"), "-cpu", self._core]
        if counter is not None:
            counts = folder.path / "counts"
            self._environment[COUNTER] = str(counts)
            self._command += ["-plugin", f"{counter},out={counts}"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the folder away; raises nothing."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder; raises `DeviceTroubleError`."""
        _copy(source, self._work / self._plain(name), f"{self.name}: {source} cannot be copied there")

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a program: `python3`, or an ARM program of the folder (`./tool`).

        Raises:
            DeviceTroubleError: it cannot be started, or the time is over.
        """
        if self._folder is None:
            raise DeviceTroubleError(f"{self.name} is not open")
        program, *arguments = command
        if program == "python3":
            program = str(python_in(self._root))
        words = [*self._command, program, *arguments]
        try:
            done = self._folder.run(words, self._work, self._environment, given, limit_s)
        except subprocess.TimeoutExpired as error:
            raise DeviceTroubleError(
                f"{self.name}: {command[0]} was ended after {limit_s:g} s",
                "Emulation is some 30 times slower than this machine: use fewer samples or a smaller model.",
            ) from error
        except OSError as error:
            raise DeviceTroubleError(
                f"{self.name}: {command[0]} cannot be started: {error.strerror}"
            ) from error
        text = done.stderr.decode("utf-8", "replace").strip()
        return Completed(done.returncode, done.stdout, text[-_MESSAGE_LIMIT:])

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back, whole or not at all; raises `DeviceTroubleError`."""
        beside = target.with_name(f".{target.name}.part")
        try:
            _copy(self._work / self._plain(name), beside, f"{self.name}: {name} cannot be fetched")
            os.replace(beside, target)  # noqa: PTH105 `Path.replace` says the same
        finally:
            beside.unlink(missing_ok=True)

    @property
    def _work(self) -> Path:
        if self._folder is None:
            raise DeviceTroubleError(f"{self.name} is not open")
        return self._folder.path / "work"

    def _plain(self, name: str) -> str:
        if Path(name).name != name or name in ("", ".", ".."):
            raise DeviceTroubleError(f"{self.name}: {name!r} is no plain file name")
        return name


def _copy(source: Path, target: Path, trouble: str) -> None:
    try:
        shutil.copyfile(source, target, follow_symlinks=True)
    except OSError as error:
        raise DeviceTroubleError(f"{trouble}: {error.strerror or error}") from error
