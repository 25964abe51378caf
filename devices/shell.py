"""A folder and commands on a machine that is reached by a program which runs a shell there, such as ssh or adb.

One such shell, the keeper, lives as long as the connection: it makes the folder, waits for the end of its input, ends
what still runs, and takes the folder away. So nothing stays behind there, even where the connection is cut or this
process is killed. Every command has a wrapper that notes process ids, as the name of an empty file, since that needs no
room on a full disk, and says at the end how the command ended, so that what it said is told from a lost connection.

Commands have TMPDIR in the folder: onnxruntime, for one, leaves a file `.ses` there.

All scripts are POSIX shell; what varies is passed as arguments. Files go through `cat`, which all boards have, where
sftp, scp and tar may be missing.
"""

import contextlib
import re
import secrets
import selectors
import shlex
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgepress.devices.base import Completed, DeviceTroubleError
from edgepress.devices.names import checked_name, put_in_place, shortened

# $1: where to make the folder. The beat makes the other side notice that a cable was pulled, and end the input.
_KEEP = r"""umask 077
d=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/edgepress-XXXXXX") || exit 1
trap "" HUP PIPE
(trap "kill \$s; exit" TERM; while :; do sleep 20 & s=$!; wait $s; echo; done) 2>/dev/null & b=$!
echo "edgepress-folder:$d"
cat >/dev/null
kill $b
cd "$d" && IFS=- && for f in .run-*; do
  [ -e "$f" ] || break
  set -- $f
  kill -9 "-$3" "-$4" "$3" "$4"
done 2>/dev/null
cd / && rm -rf "$d"
"""
# $1: folder, $2: token, then the command: in the background, so that its id is known; its input is given anew.
_RUN = r"""d=$1; t=$2; shift 2; cd "$d" || exit 1
TMPDIR=$d; export TMPDIR
exec 3<&0
"$@" <&3 3<&- & c=$!
exec 3<&- </dev/null
f=".run-$t-$$-$c"; : >"$f"
wait $c; r=$?
rm -f "$f"
printf "\nedgepress-ended:%s:%s\n" "$t" "$r" >&2
"""
# $1: folder, $2: token
_END = r"""cd "$1" && IFS=- && for f in .run-"$2"-*; do
  [ -e "$f" ] || break
  set -- $f
  rm -f ".run-$2-$3-$4"
  kill -9 "-$3" "-$4" "$3" "$4"
done
"""
_PUT = 'cat >"$1" && wc -c <"$1"'

_CONNECT_S = 30.0
_END_S = 10.0
_LONGEST_NOTE = 1 << 16


class ShellDevice(ABC):
    """What ssh and adb have in common.

    Attributes:
        name: as users know it.
        timed: always: what is reached so is real.
        python: the command that starts Python there.
    """

    timed = True
    base = ""
    """Where folders are made there; empty: where the system has it."""

    def __init__(self, name: str, python: tuple[str, ...]) -> None:
        self.name = name
        self.python = python
        self._folder = ""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    @abstractmethod
    def _command(self, line: str, *, first: bool = False) -> list[str]:
        """The command here that has a shell there run a line.

        Args:
            line: POSIX shell.
            first: whether it is the keeper's, which makes the connection.
        """

    @abstractmethod
    def _explained(self, said: str) -> DeviceTroubleError:
        """What the program here said when the connection failed, with its remedy."""

    def __enter__(self) -> Self:
        """Connect and make the folder; raises `DeviceTroubleError`."""
        try:
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the keeper's input, which takes folder and processes away there."""
        keeper = self._keeper
        try:
            if keeper is not None:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    keeper.communicate(timeout=_END_S)
        finally:  # a second Ctrl-C does not spare the keeper
            if keeper is not None:
                _finish(keeper)
            if self._said is not None:
                self._said.close()
            self._keeper, self._said, self._folder = None, None, ""

    def put(self, source: Path, name: str, *, limit_s: float = 120.0) -> None:
        """Copy a file into the folder; see `Device.put`."""
        size = source.stat().st_size
        with source.open("rb") as content:
            done = self._run(["sh", "-c", _PUT, "sh", checked_name(name)], stdin=content, limit_s=limit_s)
        if done.code != 0:
            raise DeviceTroubleError(f"{self.name} cannot take {source.name}: {done.err}", _disk(done.err))
        if done.out.split()[-1:] != [str(size).encode()]:
            message = f"{self.name} has {source.name} only in part: {shortened(done.out)} of {size} bytes"
            raise DeviceTroubleError(message, "Try again.")

    def run(self, command: Sequence[str], *, given: bytes = b"", limit_s: float = 120.0) -> Completed:
        """Run a command in the folder; see `Device.run`."""
        return self._run(list(command), given=given, limit_s=limit_s)

    def get(self, name: str, target: Path, *, limit_s: float = 120.0) -> None:
        """Copy a file of the folder back; see `Device.get`."""
        try:
            with put_in_place(target) as beside:
                with beside.open("wb") as content:
                    done = self._run(["cat", checked_name(name)], stdout=content, limit_s=limit_s)
                if done.code != 0:
                    raise DeviceTroubleError(f"{self.name} does not give {name}: {done.err}")
        except OSError as error:
            raise DeviceTroubleError(f"{target}: {error.strerror}", "Is the disk here full?") from error

    def _connect(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        line = _line(_KEEP, self.base)
        self._keeper = self._start(
            self._command(line, first=True), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        found, told = self._folder_told(self._keeper)
        if not found:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(1)
            # A login without a shell says so on standard output.
            said = self._complaint() or shortened(told)
            raise self._explained(said or f"no answer within {_CONNECT_S:g} s")
        self._folder = found

    def _folder_told(self, keeper: subprocess.Popen[bytes]) -> tuple[str, bytes]:
        """The folder that the keeper made, empty where there is none in time; and all that the login printed."""
        assert keeper.stdout is not None  # noqa: S101  for mypy: it is a pipe
        deadline = time.monotonic() + _CONNECT_S
        told = b""
        with selectors.DefaultSelector() as selector:
            selector.register(keeper.stdout, selectors.EVENT_READ)
            while len(told) < _LONGEST_NOTE and selector.select(max(0.0, deadline - time.monotonic())):
                more = keeper.stdout.read1(4096)  # type: ignore[attr-defined]  # a BufferedReader
                told += more
                found = re.search(rb"^edgepress-folder:(/[^\r\n]*)\r?\n", told, re.MULTILINE)
                if found:
                    return found[1].decode("utf-8", "replace"), told
                if not more:
                    break
        return "", told

    def _run(
        self,
        words: list[str],
        *,
        given: bytes = b"",
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        limit_s: float,
    ) -> Completed:
        """Run words in the folder, with bytes or a file on standard input, and standard output to a file or back."""
        if self._keeper is None:
            raise RuntimeError("a device is used with `with`")
        if self._keeper.poll() is not None:
            raise self._lost(self._complaint())
        token = secrets.token_hex(6)
        process = self._start(
            self._command(_line(_RUN, self._folder, token, *words)),
            stdin=stdin or subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(None if stdin else given, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            self._end(token)
            raise DeviceTroubleError(
                f"{self.name}: {words[0]} took longer than {limit_s:g} s",
                "Raise the time limit, or use a smaller model.",
            ) from error
        finally:
            _finish(process)
        ended = re.search(rb"\nedgepress-ended:" + token.encode() + rb":(\d+)\r?\n", err)
        if ended is None:
            raise self._lost(shortened(err))
        code = int(ended[1])
        # A shell says 128 and the signal's number for a command that a signal ended.
        return Completed(
            128 - code if 128 < code < 193 else code, out or b"", shortened(err[: ended.start()])
        )

    def _start(self, command: list[str], **pipes: Any) -> subprocess.Popen[bytes]:
        """A process of its own session: Ctrl-C is for us, who then end things in order."""
        try:
            return subprocess.Popen(command, start_new_session=True, **pipes)
        except FileNotFoundError as error:
            raise DeviceTroubleError(
                f"there is no {command[0]} on this machine", f"Install it; {self.name} is reached by it."
            ) from error

    def _end(self, token: str) -> None:
        """End a command there; where that fails, the keeper ends it."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            line = _line(_END, self._folder, token)
            subprocess.run(
                self._command(line), stdin=subprocess.DEVNULL, capture_output=True, timeout=_END_S,
                check=False, start_new_session=True,
            )  # fmt: skip

    def _lost(self, said: str) -> DeviceTroubleError:
        last = (said.splitlines() or ["the other side ended it"])[-1]
        return DeviceTroubleError(
            f"the connection to {self.name} was lost: {last}", "Is it still on, and in reach? Then try again."
        )

    def _complaint(self) -> str:
        """What the keeper's program said here."""
        if self._said is None:
            return ""
        self._said.seek(0)
        return shortened(self._said.read(_LONGEST_NOTE))


def _finish(process: subprocess.Popen[bytes]) -> None:
    """End a process here and close its pipes; not by reading to their end, for ssh's master may hold them, too."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _line(script: str, *arguments: str) -> str:
    """A script with arguments as one line for whatever shell a login has there."""
    return "exec " + shlex.join(["sh", "-c", script, "sh", *arguments])


def _disk(said: str) -> str:
    full = "No space left" in said or "too large" in said
    return "Free some room there, or let TMPDIR there name a larger disk." if full else ""
