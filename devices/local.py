"""This machine as a device: a temporary folder, and processes in groups of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.names import checked_name, put_in_place, shortened


class LocalDevice:
    """This machine.

    Attributes:
        name: as users know it.
        timed: always.
        python: the interpreter that runs this.
    """

    timed = True

    def __init__(self, name: str = "local", python: tuple[str, ...] = ()) -> None:
        """Nothing happens before `with`.

        Args:
            name: for messages.
            python: another interpreter; without it, the one that runs this.
        """
        self.name = name
        self.python = python or (sys.executable,)
        self._folder: Path | None = None

    def __enter__(self) -> "LocalDevice":
        """Make the folder; raises `DeviceTroubleError`."""
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="edgepress-"))
        except OSError as error:
            raise self._trouble(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the folder away."""
        shutil.rmtree(self._inside, ignore_errors=True)

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder; see `Device.put`."""
        try:
            shutil.copyfile(source, self._inside / checked_name(name))
        except OSError as error:
            raise self._trouble(error) from error

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a command in the folder; see `Device.run`."""
        try:
            process = subprocess.Popen(
                list(command), cwd=self._inside, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "TMPDIR": str(self._inside)},  # onnxruntime leaves a file there
            )  # fmt: skip
        except OSError as error:
            return Completed(127, b"", f"{command[0]}: {error.strerror}")
        try:
            out, err = process.communicate(given, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            message = f"{self.name}: {command[0]} took longer than {limit_s:g} s"
            raise DeviceTroubleError(message, "Raise the time limit, or use a smaller model.") from error
        finally:
            # The group, so that what the command started ends as well; by now there may be none.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        return Completed(process.returncode, out, shortened(err))

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back; see `Device.get`."""
        try:
            with put_in_place(target) as beside:
                shutil.copyfile(self._inside / checked_name(name), beside)
        except OSError as error:
            raise self._trouble(error) from error

    @property
    def _inside(self) -> Path:
        if self._folder is None:
            raise RuntimeError("a device is used with `with`")
        return self._folder

    def _trouble(self, error: OSError) -> DeviceTroubleError:
        return DeviceTroubleError(
            f"{self.name}: {error.filename or 'a file'}: {error.strerror}", "Is the disk full?"
        )
