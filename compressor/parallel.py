"""Work that is independent runs side by side, each piece on one thread.

The libraries' own thread pools are kept to one thread meanwhile: theirs wait by spinning, and on a machine with other
work that made the same search ten times slower; whole pieces side by side lose little there and nothing elsewhere.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep the linear algebra libraries to one thread."""
    with threadpool_limits(limits=1):
        yield


def side_by_side(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """Do the same with each item, as many at a time as there are cores; results in order.

    Args:
        work: must not depend on the order in which items are done; NumPy, SciPy and engines free the interpreter.
        items: what to work on.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
