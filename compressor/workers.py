"""Who does the work of a search: threads of this process, processes of this machine, or a Dask cluster.

All of them are a `concurrent.futures.Executor`. Model and samples travel to each process once; what comes back is
small. A result is the same wherever it was made, so what was stored before is taken from the cache instead.
Processes have an executor each: a fold's candidates are built where moments of its samples are at hand, and a process
that is lost takes nothing with it but its task.
"""

import hashlib
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir
from loky.backend import get_context
from threadpoolctl import threadpool_limits

from edgepress.compressor import cluster
from edgepress.compressor.cache import Cache, tool_digest
from edgepress.compressor.columns import ArrayColumn, FileColumn
from edgepress.compressor.errors import UsageError
from edgepress.compressor.folds import Setup
from edgepress.compressor.images import ImageColumn
from edgepress.compressor.parallel import at_most, one_thread_each, seldom_collecting
from edgepress.compressor.protocols import Tell
from edgepress.compressor.scoring import UserMetric
from edgepress.compressor.serialize import contents, parse, serialize
from edgepress.compressor.trials import Stopped, Task, Trials, make_trials

WORTH_PROCESSES = 4.0
"""Seconds of work after which processes are started: it takes about two until they are of use."""

POLL_SECONDS = 0.2
"""How often it is looked whether the work should end."""

MOST_BYTES = 1 << 30
"""Model and samples above this size stay where they are."""

MOST_LOST = 3
"""So many processes are replaced; then the work stays in this one."""

Measured = TypeVar("Measured")

LEFT_OUT = object()
"""In the place of a result, where time was over."""

_open: dict[str, Trials] = {}
"""In a process that works for another: the trials that it works on."""


@dataclass(frozen=True)
class Package:
    """What another process needs to know.

    Attributes:
        identity: as `identity` gives it; empty where each process sees one package alone.
        model: the normalised original.
        setup: all else.
    """

    identity: str
    model: bytes
    setup: Setup


def perform(package: Package, task: Task) -> Any:
    """Do a task in a process that may not have seen the package before.

    Args:
        package: what it is about.
        task: what to do.

    Returns:
        The result, packed.
    """
    if package.identity not in _open:
        _open.clear()
        _open[package.identity] = make_trials(parse(package.model), package.setup)
    with one_thread_each(), seldom_collecting():
        return task.pack(task.do(_open[package.identity]))


def _begin(package: Package, owner: int) -> None:
    """Be ready to work; Ctrl-C is for the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    threadpool_limits(1)
    _open[""] = make_trials(parse(package.model), package.setup)


def _end_with(owner: int) -> None:
    """End this process soon after its owner, which may have been killed: the pipe between them would not tell."""
    # Like `runtime.engines.apart._end_with`: the runtime imports nothing from here, and boards get it alone.
    while os.getppid() == owner:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _perform_begun(task: Task) -> Any:
    with seldom_collecting():
        return task.pack(task.do(_open[""]))


def identity(original: ir.Model, setup: Setup) -> str:
    """SHA-256 (hexadecimal) of all that results hang on: tool, model, samples, metric, target, settings.

    Args:
        original: normalised.
        setup: all else.
    """
    found = hashlib.sha256(tool_digest().encode())
    for block in contents(serialize(original)):
        found.update(block)
    for batch in setup.data.batches(64):
        for name, feed in batch.feeds.items():
            found.update(f"{name} {feed.dtype} {feed.shape}".encode() + feed.tobytes())
        if batch.labels is not None:
            found.update(batch.labels.tobytes())
    if isinstance(setup.metric, UserMetric):
        with suppress(OSError, TypeError):
            found.update(Path(inspect.getsourcefile(setup.metric.function) or "").read_bytes())
    rest = replace(setup, data=replace(setup.data, columns=(), label_column=None))
    settings = {name: value for name, value in vars(rest).items() if name not in ("data", "engine")}
    found.update(f"{setup.engine.name} {setup.engine.version} {settings!r}".encode())
    return found.hexdigest()


@dataclass
class Hand:
    """One that works.

    Attributes:
        submit: hands it a task, whose result comes packed.
        dismiss: lets it go, whatever it is at; a thread ends what it does.
        room: how many tasks it may have at a time.
        ready: done once it does nothing but tasks.
    """

    submit: Callable[[Task], Future[Any]]
    dismiss: Callable[[], None]
    room: float = 1
    ready: Future[Any] | None = None


@dataclass
class Crew:
    """Does the tasks of a search; stands in for `Trials.perform`.

    Attributes:
        trials: of this process.
        count: pieces of work side by side.
        identity: of model, samples and settings, where results are kept or a cluster does the work.
        cache: keeps results; None: nothing is kept.
        stopped: whether the user wants what there is so far.
        late: whether the time limit is over.
        progress: told the stage, the share done and what was done.
        scheduler: address of a Dask scheduler, or empty.
        over: the end has been told; from now on nothing is interrupted.
        hired: processes of this machine that work.
    """

    trials: Trials
    count: int
    identity: str = ""
    cache: Cache | None = None
    stopped: Callable[[], bool] = lambda: False
    late: Callable[[], bool] = lambda: False
    progress: Tell = lambda *_: None
    scheduler: str = ""
    over: bool = False
    hired: int = field(init=False, default=0)
    _hands: list[Hand] = field(init=False)
    _running: set[Future[Any]] = field(init=False, default_factory=set)
    _spent: float = field(init=False, default=0.0)
    _lost: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.count = max(1, min(self.count, at_most()))
        self._hands = [self._thread() for _ in range(self.count)]

    def __call__(self, tasks: Sequence[Task]) -> list[Any]:
        """Results in order; None for what may be left out and was, since time was over.

        Raises:
            Stopped: the user wants what there is so far.
        """
        results: dict[int, Any] = {}
        for place, task in enumerate(tasks):
            stored = self.cache.get(task.key) if self.cache is not None and task.key else None
            if stored is not None:
                results[place] = task.unpack(stored[0])
        missing = [place for place in range(len(tasks)) if place not in results]
        if missing:
            for place, packed in self._done(tasks, missing):
                if self.cache is not None and tasks[place].key and packed is not LEFT_OUT:
                    self.cache.put({tasks[place].key: [packed]})
                results[place] = None if packed is LEFT_OUT else tasks[place].unpack(packed)
        return [results[place] for place in range(len(tasks))]

    def alone(self, measure: Callable[..., Measured]) -> Callable[..., Measured]:
        """The same function, run while nothing else does: only then can anything be timed."""

        def quiet(*arguments: Any) -> Measured:
            wait([*self._running, *(hand.ready for hand in self._hands if hand.ready is not None)])
            self._running.clear()
            return measure(*arguments)

        return quiet

    @contextmanager
    def at_work(self) -> Iterator["Crew"]:
        """Do what these trials need, and let all others go at the end."""
        before, self.trials.perform = self.trials.perform, self
        try:
            with one_thread_each(), seldom_collecting():
                yield self
        finally:
            self.trials.perform = before
            for hand in self._hands:
                hand.dismiss()

    def _done(self, tasks: Sequence[Task], places: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Places of tasks and their packed results, as they come."""
        queue, busy = list(places), dict[Future[Any], tuple[int, int]]()
        last = [places[number * len(places) // len(self._hands)] for number in range(len(self._hands))]
        since = time.monotonic()
        while queue or busy:
            if queue:
                self._hire()
            for number, hand in enumerate(self._hands):
                while sum(of == number for _, of in busy.values()) < hand.room:
                    place = self._next(tasks, queue, number, last[number])
                    if place is None:
                        break
                    queue.remove(place)
                    busy[hand.submit(tasks[place])], last[number] = (place, number), place
            self._running = set(busy)
            ended = wait(busy, POLL_SECONDS, FIRST_COMPLETED).done
            self._spent, since = self._spent + time.monotonic() - since, time.monotonic()
            for future in ended:
                place, number = busy.pop(future)
                try:
                    packed = future.result()
                except BrokenExecutor:
                    queue.append(place)
                    self._replace(number)
                    continue
                yield place, packed
                if tasks[place].stage:
                    share = 1 - (len(queue) + len(busy)) / len(places)
                    self.progress(tasks[place].stage, share, tasks[place].label)
            if self.stopped() and not self.over:
                self._stop()
            left = [place for place in queue if tasks[place].optional]
            if left and self.late():
                queue = [place for place in queue if place not in left]
                yield from ((place, LEFT_OUT) for place in left)

    def _next(self, tasks: Sequence[Task], queue: Sequence[int], number: int, last: int) -> int | None:
        """What a hand should do next: what is at home there, and near to what it did last, for they share moments."""
        homes = {place: tasks[place].home for place in queue}
        fit = [p for p, home in homes.items() if home is None or home % len(self._hands) == number]
        return min(fit, key=lambda place: (abs(place - last), -place), default=None)

    def _stop(self) -> None:
        """Raise `Stopped`; processes are let go, threads end what they are at."""
        self.over = True
        if self.hired:
            for hand in self._hands:
                hand.dismiss()
            self._here()
        raise Stopped

    def _hire(self) -> None:
        """Have others do the work, where there is enough of it."""
        if self.scheduler and self._hands[0].room == 1:
            package = self._package()
            if package is None or not all(isinstance(c, ArrayColumn) for c in package.setup.data.columns):
                raise UsageError(
                    "Model and samples are too large to be sent to other machines.",
                    "Give fewer samples, or leave --scheduler out.",
                )
            self._hands = [Hand(*cluster.connect(self.scheduler, package, perform), room=math.inf)]
        worth = self.count > 1 and self._spent > WORTH_PROCESSES and self._lost < MOST_LOST
        if worth and not self.scheduler and not self.hired:
            package = self._package()
            if package is None:
                self._lost = MOST_LOST  # what cannot travel is worked on here
                return
            for hand in self._hands:
                hand.dismiss()
            self._hands = [_process(package) for _ in self._hands]
            self.hired = self.count

    def _replace(self, number: int) -> None:
        """Have another one in the place of a process that is gone; in the end all work is done here."""
        self._hands[number].dismiss()
        self._lost += 1
        package = self._package() if self._lost < MOST_LOST else None
        self._hands[number] = self._thread() if package is None else _process(package)

    def _here(self) -> None:
        """Have all work done in this process."""
        self.hired, self._hands = 0, [self._thread() for _ in range(self.count)]

    def _thread(self) -> Hand:
        executor = ThreadPoolExecutor(1)
        return Hand(
            lambda task: executor.submit(lambda: task.pack(task.do(self.trials))),
            lambda: executor.shutdown(wait=False, cancel_futures=True),
        )

    def _package(self) -> Package | None:
        """What others need to know, where that can travel."""
        model, setup = serialize(self.trials.original), self.trials.setup
        columns = [c for c in (*setup.data.columns, setup.data.label_column) if c is not None]
        size = len(model) + sum(c.values.nbytes for c in columns if isinstance(c, ArrayColumn))
        known = all(isinstance(column, ArrayColumn | FileColumn | ImageColumn) for column in columns)
        if not isinstance(model, bytes) or not known or size > MOST_BYTES:
            return None
        return Package(self.identity, model, setup)


def _process(package: Package) -> Hand:
    """A process; loky's way to start one needs no `if __name__ == "__main__"` in a user's script."""
    executor = ProcessPoolExecutor(1, get_context("loky"), _begin, (package, os.getpid()))
    pid = executor.submit(os.getpid)

    def dismiss() -> None:
        executor.shutdown(wait=False, cancel_futures=True)
        if pid.done() and not pid.cancelled() and not pid.exception():
            with suppress(ProcessLookupError):
                os.kill(pid.result(), signal.SIGKILL)

    return Hand(lambda task: executor.submit(_perform_begun, task), dismiss, ready=pid)
