"""This machine as a device: a temporary folder, and processes in groups of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Self

from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.names import shortened
from edgepress.devices.near import NearDevice


class LocalDevice(NearDevice):
    """This machine.

    Attributes:
        timed: always.
    """

    timed = True

    def __init__(self, name: str = "local", python: tuple[str, ...] = ()) -> None:
        """Nothing happens before `with`.

        Args:
            name: for messages.
            python: another interpreter; without it, the one that runs this.
        """
        super().__init__(name, python or (sys.executable,))

    def __enter__(self) -> Self:
        """Make the folder; raises `DeviceTroubleError`."""
        self._open()
        return self

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a command in the folder; see `Device.run`."""
        environment = {**os.environ, "TMPDIR": str(self._work)}  # onnxruntime leaves a file there
        try:
            done = self._folder.run(command, self._work, environment, given, limit_s)
        except subprocess.TimeoutExpired as error:
            message = f"{self.name}: {command[0]} took longer than {limit_s:g} s"
            raise DeviceTroubleError(message, "Raise the time limit, or use a smaller model.") from error
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            return Completed(127, b"", f"{command[0]}: {error.strerror}")
        except OSError as error:
            raise DeviceTroubleError(
                f"{self.name}: {command[0]} cannot be started: {error.strerror}", "Close other programs."
            ) from error
        return Completed(done.returncode, done.stdout, shortened(done.stderr))
