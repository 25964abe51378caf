"""A phone by the system's adb: a folder in /data/local/tmp, files by push and pull, commands by its shell.

`adb connect` exits with 0 where it failed, and `adb wait-for-device` waits for ever: what adb says is read, and
everything has a time limit.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Self

from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.names import checked_name, put_in_place, shortened
from edgepress.devices.shell import ShellDevice

_ANSWER_S = 20.0
_LIST = "Plug it in, or turn wireless debugging on; `adb devices` lists what is there."

# What adb says → what it means, what to do. The first that is found counts.
_MEANINGS = (
    ("unauthorized", "does not trust this machine", "Unlock it and allow USB debugging."),
    ("offline", "is offline", "Unplug it and plug it in again, or `adb reconnect`."),
    ("more than one device", "is one of several", "Give its serial number as `address` in the profile."),
    ("not found", "is not there", _LIST),
    ("no devices", "is not there", _LIST),
    (
        "cannot connect to daemon",
        "is not reached: adb's own server does not start",
        "Try `adb start-server`.",
    ),
    ("failed to connect", "does not answer", "Is wireless debugging on? It changes its port each time."),
    ("unable to connect", "does not answer", "Is wireless debugging on? It changes its port each time."),
    ("mktemp", "cannot make a folder in /data/local/tmp", "Is its disk full?"),
    ("No space left", "has no room", "Free some there."),
)


class AdbDevice(ShellDevice):
    """An Android device; Python wheels do not run there, so programs of its own do the work (`native.py`)."""

    base = "/data/local/tmp"

    def __init__(self, address: str = "", python: tuple[str, ...] = (), name: str = "") -> None:
        """Nothing happens before `with`.

        Args:
            address: serial number, or `host:port` of wireless debugging; empty: the only device there is.
            python: the command that starts Python there, where there is one.
            name: for messages.

        Raises:
            ValueError: the address would be taken for an option.
        """
        if address.startswith("-") or any(letter.isspace() for letter in address):
            raise ValueError(f"{address!r} is no address for adb")
        super().__init__(name or address or "the Android device", python)
        self.address = address

    def __enter__(self) -> Self:
        """Connect and make the folder; raises `DeviceTroubleError`."""
        if ":" in self.address:
            said = self._adb("connect", self.address, aimed=False)
            if "connected to" not in said:
                raise self._explained(said)
        said = self._adb("get-state")
        if said.splitlines()[-1:] != ["device"]:
            raise self._explained(said)
        return super().__enter__()

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder; see `Device.put`."""
        self._transfer(
            "push", str(source.absolute()), f"{self._folder}/{checked_name(name)}", limit_s=limit_s
        )

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back; see `Device.get`."""
        try:
            with put_in_place(target) as beside:
                there = f"{self._folder}/{checked_name(name)}"
                self._transfer("pull", there, str(beside), limit_s=limit_s)
        except OSError as error:
            raise DeviceTroubleError(f"{target}: {error.strerror}", "Is the disk here full?") from error

    def _command(self, line: str, *, first: bool = False) -> list[str]:
        return [*self._aimed, "shell", line]

    def _explained(self, said: str) -> DeviceTroubleError:
        for sign, meaning, hint in _MEANINGS:
            if sign in said:
                return DeviceTroubleError(f"{self.name} {meaning}.", hint)
        last = (said.splitlines() or ["adb said nothing"])[-1]
        return DeviceTroubleError(f"{self.name} cannot be reached: {last}", _LIST)

    @property
    def _aimed(self) -> list[str]:
        return ["adb", *(["-s", self.address] if self.address else [])]

    def _adb(self, *words: str, aimed: bool = True) -> str:
        """All that adb says to a command."""
        return self._done([*(self._aimed if aimed else ["adb"]), *words], _ANSWER_S)[1]

    def _transfer(self, *words: str, limit_s: float) -> None:
        if self._keeper is None:
            raise RuntimeError("a device is used with `with`")
        code, said = self._done([*self._aimed, *words], limit_s)
        if code != 0:
            raise self._explained(said)

    def _done(self, command: list[str], limit_s: float) -> tuple[int, str]:
        """Exit code, and all that was said."""
        # Into a file: a server that adb starts outlives it with its output open, so that a pipe would have no end.
        with tempfile.TemporaryFile() as said:
            process = self._start(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired as error:
                message = f"{self.name}: adb did not answer within {limit_s:g} s"
                raise DeviceTroubleError(message, _LIST) from error
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            return code, shortened(said.read())
