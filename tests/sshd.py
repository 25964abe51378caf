"""A real sshd on 127.0.0.1 on a high port, with throw-away keys, for tests.

`ssh` on PATH becomes one that reads the test's configuration, as a user's ~/.ssh/config would have it.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    python: Sequence[str] = ()
    """What starts Python where logins land."""
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
        # A connection proves nothing: a child of the last server, not yet at work, may hold the port, be what answers,
        # and let this server find no place. So it is asked what it says itself, and begun again where it ended.
        told = self.folder / "sshd.log"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                with told.open("wb") as log:
                    self.process = subprocess.Popen(
                        [SERVER, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                    )  # fmt: skip
            if b"Server listening" in told.read_bytes():
                return
            time.sleep(0.02)
        raise AssertionError(f"sshd does not start: {told.read_text()}")

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

    def land(self, python: Sequence[str], *first: str) -> None:
        """Have logins land where there is a shell, the tools that a device needs, a Python, and nothing else.

        Args:
            python: the command that starts Python.
            first: lines of shell that a login runs first.
        """
        self.python = python
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        for name in TOOLS:
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to(str(shutil.which(name)))
        script(tools / "python3", f'exec {shlex.join(python)} "$@"')
        login = self.folder / "login"
        script(login, *first, f"PATH={tools}; export PATH", 'exec sh -c "$SSH_ORIGINAL_COMMAND"')
        self.lines = (f"ForceCommand {login}",)
        self.start()

    def used_s(self) -> float:
        """Processor time of all logins that have ended, in seconds."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def left(self) -> list[str]:
        """Files and processes that are still on the other side once things had time to go."""
        return lasting(lambda: [*map(str, self.there.iterdir()), *running(f"{MARK}={self.port}")])


def lasting(find: Callable[[], list[str]], patience_s: float = 5.0) -> list[str]:
    """What is still found once it had time to go."""
    deadline = time.monotonic() + patience_s
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def script(path: Path, *lines: str) -> None:
    """A program in POSIX shell, in place of what is there."""
    path.unlink(missing_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)


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
    return list(processes(mark).values())


def processes(mark: str) -> dict[int, str]:
    """Number → command line of processes whose environment has this entry."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in each.read_bytes().split(b"\0"):
                line = (each.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(each.parent.name)] = line
    return {number: line for number, line in found.items() if line}


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
TOOLS = ("cat", "mktemp", "rm", "sh", "sleep", "wc")
SLEEP = ["sh", "-c", "sleep 60 & wait"]


def sleeping(line: str) -> bool:
    """Whether a command line is that of what `SLEEP` starts."""
    return line.startswith("sleep 60")


def working(line: str) -> bool:
    """Whether a command line is that of a worker's Python, and not of a shell that waits for it."""
    return "worker.pyz" in line and not line.split(maxsplit=1)[0].endswith("sh")


def soon(
    server: Server, what: Callable[[], object], seen: Callable[[str], bool] = sleeping
) -> threading.Thread:
    """Do something once a process runs on the other side that has such a command line."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(map(seen, running(f"{MARK}={server.port}"))):
                what()
                return
            time.sleep(0.02)
        raise AssertionError("nothing of that kind ran there within 60 s")  # pytest tells of it

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with our Python; afterwards nothing is left of what a test did, on either side."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path), prepend=":")
    found = make_server(tmp_path, path)
    found.start()
    made: list[str] = []

    def noted(*words: str, **named: str) -> str:
        made.append(make(*words, **named))
        return made[-1]

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    try:
        yield found
        assert found.left() == []
        assert [folder for folder in made if Path(folder).exists()] == []
        assert clients(found) == []
    finally:
        found.stop()


def clients(server: Server) -> list[str]:
    """Command lines of the `ssh` of tests that still run here."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = each.read_bytes().split(b"\0")
            if words[0].endswith(b"ssh") and str(server.folder / "config").encode() in words:
                found.append(b" ".join(words).decode())
    return found
