"""A real sshd on 127.0.0.1 on a high port, with throw-away keys, for tests.

`ssh` on PATH becomes one that reads the test's configuration, as a user's ~/.ssh/config would have it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

MARK = "EDGEPRESS_TEST_LOGIN"
SERVER = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if Path(p).exists()), None)
needs_sshd = pytest.mark.skipif(
    SERVER is None or shutil.which("ssh") is None,
    reason="no OpenSSH server here (apt install openssh-server)",
)


@dataclass
class Server:
    """A running sshd, and what users of it have."""

    folder: Path
    port: int
    login: dict[str, str] = field(default_factory=dict)
    """Environment of logins."""
    lines: tuple[str, ...] = ()
    """Further lines of sshd_config."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def there(self) -> Path:
        """Where folders are made on the other side."""
        return self.folder / "there"

    def start(self) -> None:
        """(Re)start with the present settings; it answers when this returns."""
        self.stop()
        login = {"TMPDIR": str(self.there), MARK: str(self.port), **self.login}
        words = " ".join(f'"{key}={value}"' for key, value in login.items())
        (self.folder / "sshd_config").write_text(
            "\n".join(
                [
                    f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder / 'host'}",
                    f"AuthorizedKeysFile {self.folder / 'user.pub'}", "StrictModes no", "UsePAM no",
                    "PasswordAuthentication no", "KbdInteractiveAuthentication no",
                    "PermitRootLogin prohibit-password", f"PidFile {self.folder / 'pid'}",
                    f"SetEnv {words}", *self.lines, "",
                ]
            ),
            encoding="utf-8",
        )  # fmt: skip
        assert SERVER is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [SERVER, "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError("sshd does not start")

    def stop(self) -> None:
        """End the listener, and with it nothing that is connected."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """End every connection's server process, as a failing network would."""
        assert self.process is not None
        for pid in children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self, patience_s: float = 5.0) -> list[str]:
        """Files and processes that are still on the other side once things had time to go."""
        deadline = time.monotonic() + patience_s
        while True:
            found = [str(path) for path in self.there.iterdir()] + running(f"{MARK}={self.port}")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(each.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(each.parent.name))
    return found


def running(mark: str) -> list[str]:
    """Command lines of processes whose environment has this entry."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in each.read_bytes().split(b"\0"):
                found.append((each.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if line]


def make_server(folder: Path, path: Path) -> Server:
    """Keys, configuration and the `ssh` of tests; the server is not started yet.

    Args:
        folder: for all that.
        path: a folder that the test puts first on PATH.
    """
    for name in ("host", "user", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(folder, port)
    server.there.mkdir()
    known(server, "host")
    ssh = shutil.which("ssh")
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder / 'user'}\n"
        f"  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {folder / 'known'}\n"
        "  GlobalKnownHostsFile /dev/null\n",
        encoding="utf-8",
    )
    (folder / "config").chmod(0o600)
    (path / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder / "config"} "$@"\n', encoding="utf-8")
    (path / "ssh").chmod(0o755)
    return server


def known(server: Server, key: str) -> None:
    """Have the server known by this key; none for an empty name."""
    line = ""
    if key:
        kind, code = (server.folder / f"{key}.pub").read_text().split()[:2]
        line = f"[127.0.0.1]:{server.port} {kind} {code}\n"
    (server.folder / "known").write_text(line, encoding="utf-8")


PYTHON = (sys.executable,)
