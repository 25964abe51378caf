"""An engine in a process of its own: a file that makes it crash is an error, and not the end of this process.

TFLite's kernels trust a file's contents in places; a graph that nobody thought of may end them by a signal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from os import PathLike, fspath
from typing import Any

from loky.backend import get_context

from edgepress.runtime.engines.base import Array, Engine, Feeds, InPlace, Port
from edgepress.runtime.record import EngineError

_POLL_S = 0.2

FACTS = ("delegate", "partitions", "outside", "operators", "inputs")
"""What is told of a loaded model, where its runner has it."""


def alone(name: str, task: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own; raises what it raises, or `EngineError` where the process dies.

    Args:
        name: of the engine that the function uses, for the error.
        task: found in the other process by its name.
        arguments: of the function.
    """
    executor = ProcessPoolExecutor(1, get_context("loky"), _begin, (os.getpid(),))
    try:
        return executor.submit(task, *arguments).result()
    except BrokenProcessPool as error:
        raise _died(name) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


class ApartEngine:
    """Another engine, whose models run in a process each.

    Attributes:
        name: of the other.
        version: of the other.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Make the other engine here as well, so that it is known whether it can be had.

        Args:
            make: makes the engine, in any process; found there by its name.
        """
        self._make = make
        self.name, self.version = (engine := make()).name, engine.version

    def load(self, model: bytes | PathLike[str] | InPlace, threads: int = 1) -> ApartRunner:
        """Load a model in a new process; raises `EngineError` as the engine does, or where the process dies."""
        content = model if isinstance(model, (bytes, InPlace)) else fspath(model)
        return ApartRunner(self.name, self._make, content, threads)


class ApartRunner:
    """A model in another process, which ends with this object.

    Attributes:
        delegate: see `LiteRTRunner`; so are the others.
    """

    delegate: str
    partitions: int | None
    outside: Mapping[str, int] | None
    operators: Mapping[str, int]
    inputs: Sequence[Port]

    def __init__(
        self, name: str, make: Callable[[], Engine], model: bytes | str | InPlace, threads: int
    ) -> None:
        # loky's way to start a process needs no `if __name__ == "__main__"` in a user's script.
        executor = ProcessPoolExecutor(1, get_context("loky"), _begin, (os.getpid(),))
        self._name, self._executor = name, executor
        self._dismiss = weakref.finalize(self, executor.shutdown, wait=False, cancel_futures=True)
        for fact, value in self._ask(_load, make, model, threads).items():
            setattr(self, fact, value)

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; see `Runner`."""
        found: dict[str, Array] = self._ask(_run, dict(feeds), outputs)
        return found

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """A run with these feeds, the way to the other process included: not for timing."""
        return lambda: self(feeds)

    def close(self) -> None:
        """End the process."""
        self._dismiss()

    def _ask(self, task: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._executor.submit(task, *arguments).result()
        except BrokenProcessPool as error:
            raise _died(self._name) from error


def _died(name: str) -> EngineError:
    return EngineError(
        f"the process of {name} died over the model", "It is a fault of the file or of the engine."
    )


def _begin(owner: int) -> None:
    """Ctrl-C goes to all processes of a terminal; this one ends with its owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()


def _end_with(owner: int) -> None:
    """Where the owner is killed, the pipe to it stays open: this process holds both ends."""
    # Like `compressor.workers._end_with`, which cannot be used here: boards get the runtime alone.
    while os.getppid() == owner:
        time.sleep(_POLL_S)
    os._exit(1)


_loaded: list[Any] = []


def _load(make: Callable[[], Engine], model: bytes | str | InPlace, threads: int) -> dict[str, Any]:
    from pathlib import Path

    given: Any = Path(model) if isinstance(model, str) else model  # only some engines take `InPlace`
    runner = make().load(given, threads)
    _loaded[:] = [runner]
    return {name: getattr(runner, name) for name in FACTS if hasattr(runner, name)}


def _run(feeds: Feeds, outputs: Sequence[str] | None) -> dict[str, Array]:
    found: dict[str, Array] = _loaded[0](feeds, outputs=outputs)
    return found
