"""A temporary folder that goes, with what runs in it, however this process ends: even when it is killed.

A shell holds the other end of a pipe. When the pipe closes, because we closed it or because we are gone, it ends
the process group that it was last told of and removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_KEEPER = """
trap '' INT TERM HUP QUIT
while read -r line; do group=$line; done
if [ -n "$group" ]; then kill -9 "-$group" 2>/dev/null; fi
rm -rf -- "$1"
"""


class GuardedFolder:
    """Runs one command at a time in a folder of its own.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="edgepress-"))
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the whole group of the terminal
        )

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        given: bytes,
        limit_s: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command and end its whole process group afterwards, whatever happened.

        Raises:
            subprocess.TimeoutExpired: time was over.
            OSError: it cannot be started.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            with process:
                try:
                    self._tell(process.pid)
                    out, err = process.communicate(given, timeout=limit_s)
                finally:
                    _end(process.pid)
        finally:
            self._tell(None)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def close(self) -> None:
        """Remove the folder; raises nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._keeper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
        self._keeper.wait()

    def _tell(self, group: int | None) -> None:
        if self._keeper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # the keeper was ended; we still clean up ourselves
                self._keeper.stdin.write(f"{group or ''}\n".encode())
                self._keeper.stdin.flush()


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it may have ended
        os.killpg(group, signal.SIGKILL)
