"""Runs of the command line in which something goes wrong on purpose, and what is left afterwards.

A server process loads the libraries once and forks a child for each run: a run takes a second instead of three, and
what a child breaks in itself (limits, rights, the clock) is gone with it. Memory is not measured there: that takes nine
processes a run, which write nothing.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fault_kinds import FAULTS

MARK = "EDGEPRESS_FAULT_RUN"
"""Environment variable that tells processes of a run from others."""

LIMIT_SECONDS = 120.0
"""A run that takes longer hangs."""

PATIENCE_SECONDS = 30.0
"""Processes that were just started load their libraries before they look whether they are wanted."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a run.

    Attributes:
        kind: name in `FAULTS`; empty: nothing.
        value: what it takes: a number, or nothing.
        kill_s: seconds after which the run gets signal 9.
        strikes: who gets signal 9 as soon as a process that the run has hired works: `run`, `worker`, or nobody.
        strike_after_s: seconds from then on.
    """

    kind: str = ""
    value: float = 0.0
    kill_s: float | None = None
    strikes: str = ""
    strike_after_s: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: exit code; negative where a signal ended it.
        told: on stderr.
        seconds: that it took.
        alive: processes of the run that were still there half a minute later.
        struck: whether `Fault.strikes` was killed while a process that the run had hired worked.
    """

    code: int
    told: str
    seconds: float
    alive: int
    struck: bool = False


@dataclass(frozen=True)
class Child:
    """A run, as the server has it.

    Attributes:
        pid: of its process.
        heard: file descriptor of what it says on stderr.
        since: when it began, by the monotonic clock.
    """

    pid: int
    heard: int
    since: float


@dataclass
class Server:
    """Runs the command line in children of a process that has the libraries loaded.

    Attributes:
        process: the server.
    """

    process: "subprocess.Popen[str]"

    def run(self, words: Sequence[object], folder: Path, fault: Fault | None = None) -> Ended:
        """One run of `compress WORDS` in a folder; its temporary files go to `tmp/` there, its cache to `cache/`."""
        return self.together([words], folder, fault)[0]

    def together(
        self, runs: Sequence[Sequence[object]], folder: Path, fault: Fault | None = None
    ) -> list[Ended]:
        """Runs at the same time."""
        request = {
            "runs": [[str(word) for word in words] for words in runs],
            "folder": str(folder),
            "fault": asdict(fault or Fault()),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return [Ended(**each) for each in json.loads(self.process.stdout.readline())]


def run_fresh(words: Sequence[object], folder: Path, fault: Fault) -> Ended:
    """One run in a process of its own from the start: libraries that give up in a fork do so in other ways."""
    request = {"words": [str(word) for word in words], "folder": str(folder), "fault": asdict(fault)}
    since = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(request)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment, timeout=LIMIT_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended(-signal.SIGKILL, "it hung", LIMIT_SECONDS, 0)
    return Ended(done.returncode, done.stderr, time.monotonic() - since, 0)


@contextmanager
def server() -> Iterator[Server]:
    """A server, while the block lasts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Server(process)
    finally:
        process.communicate()


def serve() -> None:
    """Answer requests until standard input ends."""
    _load()
    importlib.import_module("edgepress.compressor.cli.host").memory_peak_bytes = lambda *_, **__: 1
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        folder, fault = Path(request["folder"]), Fault(**request["fault"])
        mark = f"{os.getpid()}-{number}"
        children = []
        for words in request["runs"]:
            heard, told = os.pipe()
            if (pid := os.fork()) == 0:
                answers.close()
                os.dup2(told, 2)
                os.close(told)
                _be(words, folder, fault, mark)  # never comes back
            os.close(told)
            children.append(Child(pid, heard, time.monotonic()))
        found = [_ended(child, fault, mark) for child in children]
        answers.write(json.dumps([asdict(each) for each in found]) + "\n")
        answers.flush()


def _load() -> None:
    """Have the libraries loaded before a run begins."""
    for name in ("bench", "commands", "evolve", "run", "scratch"):
        importlib.import_module(f"edgepress.compressor.cli.{name}")


def _ended(child: "Child", fault: Fault, mark: str) -> Ended:
    limit = LIMIT_SECONDS if fault.kill_s is None else fault.kill_s
    since = child.since
    killer = threading.Timer(max(0.0, since + limit - time.monotonic()), os.kill, (child.pid, signal.SIGKILL))
    over = threading.Event()
    with ThreadPoolExecutor(1) as watcher:
        struck = watcher.submit(_struck, child.pid, fault, over)
        killer.start()
        _, status = os.waitpid(child.pid, 0)
        over.set()
    killer.cancel()
    killer.join()
    seconds = time.monotonic() - since
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    with os.fdopen(child.heard, "rb") as heard:  # what is said is short enough for a pipe to hold
        told = heard.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    amid = struck.result() and (fault.strikes == "worker" or code == -signal.SIGKILL)
    return Ended(code, told, seconds, len(left), amid)


def _struck(pid: int, fault: Fault, over: threading.Event) -> bool:
    """Wait for a hired process that works, and kill whom the fault says; False where the run ended before."""
    while fault.strikes and not over.wait(0.01):
        for worker in working(pid):
            if over.wait(fault.strike_after_s):
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid if fault.strikes == "run" else worker, signal.SIGKILL)
                return True
    return False


def working(pid: int) -> list[int]:
    """Processes that a run has hired and that have loaded their libraries: then a thread looks after their owner."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = each.read_text().rpartition(")")[2].split()
            if int(fields[1]) != pid or int(fields[17]) < 2:  # parent, threads
                continue
            words = (each.parent / "cmdline").read_bytes()
            if b"loky" in words and b"tracker" not in words:
                found.append(int(each.parent.name))
    return found


def alive(mark: str) -> list[int]:
    """Processes of a run that were started anew by it."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in each.read_bytes().split(b"\0"):
                found.append(int(each.parent.name))
    return found


def _be(words: list[str], folder: Path, fault: Fault, mark: str) -> None:
    """Be a run, in the child."""
    from edgepress.compressor.cli import main

    os.chdir(folder)
    _prepare(folder, mark)
    code = 1  # as an interpreter has it for an exception that nobody took
    try:
        if fault.kind:
            FAULTS[fault.kind](fault.value)
        main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does at its end
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        # Destructors of libraries that were loaded before the fork stumble over threads that they had there.
        os._exit(code)


def _prepare(folder: Path, mark: str) -> None:
    """Have streams, signals and environment as a run from a terminal has them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(os.devnull).open("r+b") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 0)
    for name in ("tmp", "cache"):
        (folder / name).mkdir(exist_ok=True)
    os.environ |= {
        MARK: mark,
        "TMPDIR": str(folder / "tmp"),
        "EDGEPRESS_CACHE": str(folder / "cache"),
        "EDGEPRESS_NO_DEVICE": "1",
    }


def _be_fresh(request: dict[str, Any]) -> None:
    """Be a run in a process of its own."""
    from edgepress.compressor.cli import main

    _load()
    folder, fault = Path(request["folder"]), Fault(**request["fault"])
    os.chdir(folder)
    _prepare(folder, "fresh")
    FAULTS[fault.kind](fault.value)
    main(request["words"])


@dataclass
class Left:
    """What a run left: what may not be (half a result, a changed input, litter), and how much in `tmp/`."""

    wrong: list[str] = field(default_factory=list)
    temporary: int = 0


def left_in(folder: Path, inputs: Mapping[str, bytes], out: str = "out") -> Left:
    """Look at what there is after a run.

    Args:
        folder: that it ran in.
        inputs: files that were there before, by name, with what was in them.
        out: name of the output folder or file.
    """
    from edgepress.compressor.errors import EdgepressError
    from edgepress.compressor.report import manifest

    found = Left()
    for name, content in inputs.items():
        if (folder / name).read_bytes() != content:
            found.wrong.append(f"{name} was changed")
    place = folder / out
    if place.is_dir():
        try:
            found.wrong += [f"{name} is not as the manifest says" for name in manifest.verify(place)]
        except EdgepressError as error:
            found.wrong.append(str(error))
    elif place.exists():
        try:
            json.loads(place.read_bytes())
        except ValueError:
            found.wrong.append(f"{out} is half a file")
    known = {*inputs, "tmp", "cache", out, f".edgepress-{out}", f".edgepress.{out}"}
    known |= {f"{out}.checkpoint.npz", f".{out}.checkpoint.npz.part"}
    found.wrong += [f"{each.name} was left" for each in folder.iterdir() if each.name not in known]
    found.temporary = len(list((folder / "tmp").glob("*")))
    return found


if __name__ == "__main__":
    _be_fresh(json.loads(sys.argv[1])) if sys.argv[1:] else serve()
