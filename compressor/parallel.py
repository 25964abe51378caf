"""Work that is independent runs side by side, each piece on one thread.

The libraries' own thread pools are kept to one thread meanwhile: theirs wait by spinning, and on a machine with other
work that made the same search ten times slower; whole pieces side by side lose little there and nothing elsewhere.
"""

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

COPIES = 4
"""A piece of work holds a model about so often: what it builds, and what an engine makes of that while it loads."""

OBJECTS = 20_000
"""New objects after which garbage is looked for; some copies of a graph of a few hundred nodes."""

_most = ContextVar("most", default=sys.maxsize)

Item = TypeVar("Item")
Made = TypeVar("Made")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep the linear algebra libraries to one thread."""
    with threadpool_limits(limits=1):
        yield


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Look for garbage after so many new objects only.

    Graphs are full of cycles, and each copy of one has thousands of objects: by default a third of the time that
    copying takes is search for garbage.
    """
    before = gc.get_threshold()
    if before[0]:  # else the caller has switched it off
        gc.set_threshold(max(before[0], OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def side_by_side(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """Do the same with each item, as many at a time as there are cores; results in order.

    Args:
        work: must not depend on the order in which items are done; NumPy, SciPy and engines free the interpreter.
        items: what to work on.
    """
    workers = min(len(items), os.cpu_count() or 1, _most.get())
    if workers < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


@contextmanager
def within_memory(model_bytes: int) -> Iterator[None]:
    """Have no more pieces of work side by side than memory bears, each with some copies of the model.

    Args:
        model_bytes: of the model's weights.
    """
    token = _most.set(max(1, physical_bytes() // 2 // max(COPIES * model_bytes, 1)))
    try:
        yield
    finally:
        _most.reset(token)


def at_most() -> int:
    """How many pieces of work memory bears side by side."""
    return _most.get()


def address_space_left() -> int | None:
    """Bytes of address space that this process may still take; None where that is not limited, or not known."""
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return None
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - taken * os.sysconf("SC_PAGE_SIZE"))


def physical_bytes() -> int:
    """Memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
