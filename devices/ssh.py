"""A board by the system's own ssh: the user's configuration, agent, jump hosts and known hosts hold.

All goes through one connection (ControlMaster), so that a command costs a few milliseconds. Nothing is ever asked:
a host whose key is not known, or a login that wants a password, is refused with what to do.
"""

import os
import shutil
import tempfile
from types import TracebackType
from typing import Self

from edgepress.devices.base import DeviceTroubleError
from edgepress.devices.shell import ShellDevice

_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "INFO",  # what went wrong is told by what ssh says
    # What a user has set for logins of their own:
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ControlPersist": "no",
}

# What ssh says (its messages are not translated) → what it means, what to do. The first that is found counts.
_MEANINGS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "has another host key than the one known",
        "If it was set up anew: `ssh-keygen -R HOST`, then `ssh {0}` once. If not, another machine answers there.",
    ),
    ("Host key verification failed", "has a host key that is not known", "`ssh {0}` once, and accept its key."),
    (
        "Permission denied",
        "refuses the login",
        "`ssh-copy-id {0}`, or `ssh-add` the right key: no password is asked for here.",
    ),
    ("Too many authentication failures", "refuses the login: too many keys were offered",
     "Set IdentityFile and IdentitiesOnly for it in ~/.ssh/config."),
    ("Could not resolve hostname", "is not a name that leads anywhere", "Check the address in its profile."),
    ("Connection refused", "is there, but no ssh server answers", "Is sshd running there, and on that port?"),
    ("No route to host", "cannot be reached", "Is it on, and in the same network?"),
    ("Network is unreachable", "cannot be reached", "Is there a network here?"),
    ("timed out", "does not answer", "Is it on, and in the same network?"),
    ("no answer within", "does not answer", "Is it on, and in the same network?"),
    ("Bad configuration option", "is not reached: ssh's configuration is wrong", "Mend ~/.ssh/config."),
    ("Bad owner or permissions", "is not reached: ssh refuses its configuration", "chmod 600 ~/.ssh/config"),
    ("mktemp", "cannot make a folder", "Is its disk full? TMPDIR there may name another."),
)  # fmt: skip

_SHORT = 60
"""Bytes of a folder's path in which there is room for a socket's, with what ssh adds to its name."""


class SshDevice(ShellDevice):
    """A board that runs sshd and a POSIX shell; Python there only where the worker is to run."""

    def __init__(self, address: str, python: tuple[str, ...] = (), name: str = "") -> None:
        """Nothing happens before `with`.

        Args:
            address: `user@host`, a name from ssh's configuration, or `ssh://user@host:port`.
            python: the command that starts Python there; `python3` where it is not given.
            name: for messages; the address where it is not given.

        Raises:
            ValueError: the address would be taken for an option.
        """
        if not address or address.startswith("-") or any(letter.isspace() for letter in address):
            raise ValueError(f"{address!r} is no address for ssh")
        super().__init__(name or address, python or ("python3",))
        self.address = address
        self._control = ""

    def __enter__(self) -> Self:
        """Connect and make the folder; raises `DeviceTroubleError`."""
        # A socket's path is short, at most 104 bytes, so not in just any temporary folder; the folder is ours alone.
        usual = tempfile.gettempdir()
        place = usual if len(os.fsencode(usual)) <= _SHORT else "/tmp"  # noqa: S108
        self._control = tempfile.mkdtemp(prefix="edgepress-", dir=place)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; see `ShellDevice`."""
        try:
            super().__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._control, ignore_errors=True)

    def _command(self, line: str, *, first: bool = False) -> list[str]:
        options = {**_OPTIONS, "ControlMaster": "yes" if first else "no", "ControlPath": f"{self._control}/c"}
        said = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-T", *said, "--", self.address, line]

    def _explained(self, said: str) -> DeviceTroubleError:
        for sign, meaning, hint in _MEANINGS:
            if sign in said:
                return DeviceTroubleError(f"{self._who} {meaning}.", hint.format(self.address))
        last = (said.splitlines() or ["ssh said nothing"])[-1]
        return DeviceTroubleError(f"{self._who} cannot be reached: {last}", f"Try `ssh {self.address}`.")

    @property
    def _who(self) -> str:
        return self.name if self.name == self.address else f"{self.name} ({self.address})"
