"""The command line: `compress MODEL …` and its sub-commands; the only package that sees all others.

Nothing heavy is imported before `main` is ready for Ctrl-C: loading the libraries takes seconds.
"""

import contextlib
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130
INTERNAL = 70
"""As EX_SOFTWARE of sysexits.h: a crash must not look like a broken budget, which is 1."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every error that a user can mend is one message and an exit code.

    Args:
        arguments: instead of the process's own.

    Raises:
        SystemExit: always.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        from edgepress.compressor.cli.scratch import scratch

        with scratch():
            from edgepress.compressor.cli.commands import execute

            code = execute(words)
    except KeyboardInterrupt:
        code = INTERRUPTED
        _say("compress: Interrupted; the output folder is absent, or whole.\n")
    except Exception:  # not the user's mistake: the traceback is what a report of it needs
        code = INTERNAL
        _say(traceback.format_exc() + "compress: This is an error of the tool itself; please report it.\n")
    sys.exit(code)


def _say(text: str) -> None:
    """On stderr, where that can be written to; the exit code counts all the same."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
