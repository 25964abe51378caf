"""Who does the work of a search: threads of this process, processes of this machine, or a Dask cluster.

All of them are a `concurrent.futures.Executor`. Model and samples travel to each process once; what comes back is
small. A result is the same wherever it was made, so what was stored before is taken from the cache instead.
"""

import hashlib
import inspect
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir
from loky import ProcessPoolExecutor

from edgepress.compressor import cluster
from edgepress.compressor.cache import Cache, tool_digest
from edgepress.compressor.columns import ArrayColumn, FileColumn
from edgepress.compressor.errors import UsageError
from edgepress.compressor.images import ImageColumn
from edgepress.compressor.parallel import at_most, one_thread_each
from edgepress.compressor.scoring import UserMetric
from edgepress.compressor.serialize import parse, serialize
from edgepress.compressor.trials import Setup, Stopped, Task, Trials, make_trials

WORTH_PROCESSES = 4.0
"""Seconds of work after which processes are started: it takes about two until they are of use."""

POLL_SECONDS = 0.2
"""How often it is looked whether the work should end."""

MOST_BYTES = 1 << 30
"""Model and samples above this size stay where they are."""

LOST_POOLS = 3
"""So often are processes started again; then the work stays in this one."""

Measured = TypeVar("Measured")

_open: dict[str, Trials] = {}
"""In a process that works for another: the trials that it works on."""


@dataclass(frozen=True)
class Package:
    """What another process needs to know.

    Attributes:
        identity: as `identity` gives it.
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
    with one_thread_each():
        return task.pack(task.do(_open[package.identity]))


def _begin(package: Package) -> None:
    """Be ready to work; Ctrl-C is for the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _open[""] = make_trials(parse(package.model), package.setup)


def _perform_begun(task: Task) -> Any:
    with one_thread_each():
        return task.pack(task.do(_open[""]))


def identity(original: ir.Model, setup: Setup) -> str:
    """SHA-256 (hexadecimal) of all that results hang on: tool, model, samples, metric, target, settings.

    Args:
        original: normalised.
        setup: all else.
    """
    found = hashlib.sha256(tool_digest().encode())
    data = serialize(original)
    if isinstance(data, bytes):
        found.update(data)
    else:
        for path in sorted(data.path.parent.iterdir()):
            with path.open("rb") as file:
                while block := file.read(1 << 24):
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
class Crew:
    """Does the tasks of a search; stands in for `Trials.perform`.

    Attributes:
        trials: of this process.
        count: pieces of work side by side.
        identity: of model, samples and settings, where results are kept or sent.
        cache: keeps results; None: nothing is kept.
        stopped: whether the user wants what there is so far.
        late: whether the time limit is over.
        progress: told the stage, the share done and what was done.
        scheduler: address of a Dask scheduler, or empty.
        over: the end has been told; from now on nothing is interrupted.
        hired: processes of this machine that were started.
    """

    trials: Trials
    count: int
    identity: str = ""
    cache: Cache | None = None
    stopped: Callable[[], bool] = lambda: False
    late: Callable[[], bool] = lambda: False
    progress: Callable[[str, float, str], None] = lambda *_: None
    scheduler: str = ""
    over: bool = False
    hired: int = field(init=False, default=0)
    _threads: ThreadPoolExecutor = field(init=False)
    _others: Executor | None = field(init=False, default=None)
    _submit: Callable[[Task], Future[Any]] = field(init=False)
    _running: set[Future[Any]] = field(init=False, default_factory=set)
    _spent: float = field(init=False, default=0.0)
    _lost: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.count = max(1, min(self.count, at_most()))
        self._threads = ThreadPoolExecutor(self.count)
        self._submit = self._here

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
        started = time.monotonic()
        while missing := [place for place in range(len(tasks)) if place not in results]:
            self._hire()
            try:
                self._do(tasks, missing, results)
            except BrokenExecutor:
                self._dismiss()
                self._lost += 1
        self._spent += time.monotonic() - started
        return [results[place] for place in range(len(tasks))]

    def alone(self, measure: Callable[..., Measured]) -> Callable[..., Measured]:
        """The same function, run while nothing else does: only then can anything be timed."""

        def quiet(*arguments: Any) -> Measured:
            wait(self._running)
            self._running.clear()
            return measure(*arguments)

        return quiet

    @contextmanager
    def at_work(self) -> Iterator["Crew"]:
        """Do what these trials need, and let all others go at the end."""
        self.trials.perform = self
        try:
            with one_thread_each():
                yield self
        finally:
            self._dismiss()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _do(self, tasks: Sequence[Task], places: Sequence[int], results: dict[int, Any]) -> None:
        """Fill in the results of some tasks."""
        futures = {self._submit(tasks[place]): place for place in places}
        self._running |= set(futures)
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                task, place = tasks[futures[future]], futures[future]
                if future.cancelled():
                    results[place] = None
                    continue
                packed = future.result()
                self._running.discard(future)
                if self.cache is not None and task.key:
                    self.cache.put({task.key: [packed]})
                results[place] = task.unpack(packed)
                if task.stage:
                    self.progress(task.stage, 1 - len(pending) / len(futures), task.label)
            if self.stopped() and not self.over:
                self.over = True
                for future in pending:
                    future.cancel()
                self._dismiss()
                raise Stopped
            if self.late():
                for future in pending:
                    if tasks[futures[future]].optional:
                        future.cancel()

    def _hire(self) -> None:
        """Have others do the work, where there is enough of it."""
        if self._others is not None:
            return
        if self.scheduler:
            package = self._package()
            if package is None or not all(isinstance(c, ArrayColumn) for c in package.setup.data.columns):
                raise UsageError(
                    "Model and samples are too large to be sent to other machines.",
                    "Give fewer samples, or leave --scheduler out.",
                )
            self._others, self._submit = cluster.connect(self.scheduler, package, perform)
        elif self.count > 1 and self._spent > WORTH_PROCESSES and self._lost < LOST_POOLS:
            package = self._package()
            if package is None:
                self._lost = LOST_POOLS  # what cannot travel is worked on here
                return
            limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            pool = ProcessPoolExecutor(self.count, initializer=_begin, initargs=(package,), env=limits)
            self._others, self.hired = pool, self.count
            self._submit = lambda task: pool.submit(_perform_begun, task)

    def _dismiss(self) -> None:
        """Let others go, whatever they are at; tasks go on in threads."""
        others, self._others, self._submit = self._others, None, self._here
        if isinstance(others, ProcessPoolExecutor):
            others.shutdown(wait=True, kill_workers=True)
            self._running.clear()
        elif others is not None:
            others.shutdown(wait=False)

    def _here(self, task: Task) -> Future[Any]:
        return self._threads.submit(lambda: task.pack(task.do(self.trials)))

    def _package(self) -> Package | None:
        """What others need to know, where that can travel."""
        model, setup = serialize(self.trials.original), self.trials.setup
        columns = [c for c in (*setup.data.columns, setup.data.label_column) if c is not None]
        size = len(model) + sum(c.values.nbytes for c in columns if isinstance(c, ArrayColumn))
        known = all(isinstance(column, ArrayColumn | FileColumn | ImageColumn) for column in columns)
        if not isinstance(model, bytes) or not known or size > MOST_BYTES:
            return None
        return Package(self.identity, model, setup)
