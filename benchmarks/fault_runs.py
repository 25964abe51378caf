"""Runs of the command line in which something goes wrong on purpose, and what is left afterwards.

A server process loads the libraries once and forks a child for each run: a run takes a second instead of three, and
what a child breaks in itself (limits, rights, the clock) is gone with it. Memory is not measured there: that takes nine
processes a run, which write nothing.
"""

import atexit
import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MARK = "EDGEPRESS_FAULT_RUN"
"""Environment variable that tells processes of a run from others."""

LIMIT_SECONDS = 120.0
"""A run that takes longer hangs."""

PATIENCE_SECONDS = 30.0
"""Processes that were just started load their libraries before they look whether they are wanted."""

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a run.

    Attributes:
        kind: name in `FAULTS`; empty: nothing.
        value: what it takes: a number, or nothing.
        kill_s: seconds after which the run gets signal 9.
    """

    kind: str = ""
    value: float = 0.0
    kill_s: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: exit code; negative where a signal ended it.
        told: on stderr.
        seconds: that it took.
        alive: processes of the run that were still there half a minute later.
    """

    code: int
    told: str
    seconds: float
    alive: int


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
    killer.start()
    _, status = os.waitpid(child.pid, 0)
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
    return Ended(os.waitstatus_to_exitcode(status), told, seconds, len(left))


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


def full_disk_from(number: float) -> None:
    """From the so many-th on, nothing can be opened for writing or made."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event == "os.mkdir"
        path = arguments[0] if arguments else None
        if writes and isinstance(path, str | bytes) and not os.fsdecode(path).startswith(("/dev/", "/proc/")):
            count += 1
            if count >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)


def file_limit(size: float) -> None:
    """No file grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def memory_limit(more: float) -> None:
    """So many bytes of address space beyond what there is now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def open_files(number: float) -> None:
    """No more than so many files at a time."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(number), int(number)))


def jumping_clock(days: float) -> None:
    """The system's clock jumps by up to so many days at every look; how long things take is not told by it."""
    plain, chance = time.time, np.random.default_rng(0)
    time.time = lambda: plain() + 86400 * days * chance.uniform(-1, 1)


def obey_rights(_: float) -> None:
    """Have no right to pass over those of files, as root otherwise does."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: for programs that are started
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the upper halves
    if libc.capget(header, sets) == 0:
        mask = ~sum(1 << each for each in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER)) & 0xFFFFFFFF
        for place in range(3):
            sets[place] &= mask
        libc.capset(header, sets)


def dying_workers(_: float) -> None:
    """A search hires processes at once, and the first one that works is killed."""
    from edgepress.compressor import workers

    workers.WORTH_PROCESSES = -1.0

    def watch() -> None:
        mine = os.getpid()
        while True:
            for each in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    fields = each.read_text().rpartition(")")[2].split()
                    words = (each.parent / "cmdline").read_bytes()
                    if int(fields[1]) == mine and b"loky" in words and b"tracker" not in words:
                        time.sleep(0.5)
                        os.kill(int(each.parent.name), signal.SIGKILL)
                        return
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()


def hired_at_once(_: float) -> None:
    """A search has its work done by processes from the start."""
    from edgepress.compressor import workers

    workers.WORTH_PROCESSES = -1.0


FAULTS: Mapping[str, Callable[[float], None]] = {
    "clock": jumping_clock,
    "disk": full_disk_from,
    "file size": file_limit,
    "files": open_files,
    "hired": hired_at_once,
    "memory": memory_limit,
    "rights": obey_rights,
    "worker": dying_workers,
}


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
    known = {*inputs, "tmp", "cache", out, f".edgepress-{out}"}
    known |= {f"{out}.checkpoint.npz", f".{out}.checkpoint.npz.part"}
    found.wrong += [f"{each.name} was left" for each in folder.iterdir() if each.name not in known]
    found.temporary = len(list((folder / "tmp").glob("*")))
    return found


if __name__ == "__main__":
    _be_fresh(json.loads(sys.argv[1])) if sys.argv[1:] else serve()
