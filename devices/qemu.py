"""An emulated 64-bit ARM machine: QEMU's user mode runs the real ARM kernels and counts their instructions.

What it computes is what a board computes. How long it takes says nothing of a board (floating point is done in
software, there is neither cache nor pipeline), so `timed` is False and no latency is ever told.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from edgepress.devices.armboard import CORES, write_board
from edgepress.devices.armroot import Tell, cache_folder, emulator, guest_environment, python_in, userland
from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.guard import GuardedFolder
from edgepress.devices.names import shortened
from edgepress.devices.near import NearDevice
from edgepress.devices.plugin import plugin
from edgepress.devices.profile import DeviceSpec
from edgepress.runtime.counting import COUNTER


class QemuDevice(NearDevice):
    """A device of a profile, emulated; see `devices/base.py` for what devices do.

    Attributes:
        timed: False: time under emulation is no time of a board.
    """

    timed = False

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
        super().__init__(spec.name, ("python3",))
        self._core = spec.cpu
        self._counts = counts
        self._tell = tell
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._root = Path()
        self._counter = ""

    @property
    def identity(self) -> str:
        """All that counts of a model hang on, once it is open: core, userland, emulator and counter."""
        return f"{self._core} {self._root.name} {self._counter}"

    def __enter__(self) -> Self:
        """Make what is missing and a folder; raises `DeviceTroubleError`."""
        if sys.platform != "linux":
            raise DeviceTroubleError(
                f"{self.name} is emulated on Linux only", "Give a board's address instead."
            )
        starter = emulator(self._tell)
        self._root = userland(starter, self._tell)
        counter = plugin(starter, cache_folder() / "plugins") if self._counts else None
        folder = self._open()
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
            self._counter = counter.name
            counts = folder.path / "counts"
            self._environment[COUNTER] = str(counts)
            self._command += ["-plugin", f"{counter},out={counts}"]
        return self

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a program: `python3`, or an ARM program of the folder (`./tool`).

        Raises:
            DeviceTroubleError: it cannot be started, or the time is over.
        """
        folder, (program, *arguments) = self._folder, command
        if program == "python3":
            program = str(python_in(self._root))
        words = [*self._command, program, *arguments]
        try:
            done = folder.run(words, self._work, self._environment, given, limit_s)
        except subprocess.TimeoutExpired as error:
            raise DeviceTroubleError(
                f"{self.name}: {command[0]} was ended after {limit_s:g} s",
                "Emulation is some 30 times slower than this machine: use fewer samples or a smaller model.",
            ) from error
        except OSError as error:
            raise DeviceTroubleError(
                f"{self.name}: {command[0]} cannot be started: {error.strerror}"
            ) from error
        return Completed(done.returncode, done.stdout, shortened(done.stderr))

    @property
    def _folder(self) -> GuardedFolder:
        if self._opened is None:
            raise DeviceTroubleError(f"{self.name} is not open")
        return self._opened

    @property
    def _work(self) -> Path:
        return self._folder.path / "work"
