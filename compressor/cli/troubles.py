"""Errors of the runtime and of devices, told as the compressor's; and lines about what takes long on the way there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from edgepress.compressor.errors import DeviceError
from edgepress.runtime.record import HintedError


@contextmanager
def errors_told() -> Iterator[None]:
    """The runtime's and the devices' errors as the compressor's."""
    try:
        yield
    except HintedError as error:
        raise DeviceError(str(error), error.hint) from error


@contextmanager
def line_told(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Takes lines about what a device waits for; on stderr, with a spinner where that is a terminal.

    Args:
        quiet: say nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda line: None
    elif not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        with console.status("") as status:
            status.stop()

            def tell(line: str) -> None:
                status.update(line)
                status.start()

            try:
                yield tell
            finally:
                status.stop()
