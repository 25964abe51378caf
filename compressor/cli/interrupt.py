"""Ctrl-C while a search goes on: the first ends it with the best so far, the second ends the program."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from edgepress.compressor.protocols import Tell

INTERRUPTED = 130
"""Exit code."""

SEARCHING = frozenset(["precision", "options", "search"])
"""Stages after which there may be something to keep."""


@contextmanager
def first_interrupt() -> Iterator[tuple[Callable[[Tell], Tell], Callable[[], bool]]]:
    """Keep the first Ctrl-C of a search for when it asks.

    Yields:
        What makes a progress function that sees which stage it is, and whether there was a Ctrl-C.
    """
    asked = threading.Event()
    stage = ""

    def watch(tell: Tell) -> Tell:
        def told(name: str, share: float, detail: str) -> None:
            nonlocal stage
            stage = name
            tell(name, share, detail)

        return told

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set() or stage not in SEARCHING:
            raise KeyboardInterrupt
        asked.set()
        click.echo("Stopping with the best so far; Ctrl-C again to give it up.", err=True)

    if threading.current_thread() is not threading.main_thread():
        yield watch, asked.is_set
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield watch, asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
