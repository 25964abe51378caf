"""`module:function` names: the user's own code for data and metrics."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepress.compressor.errors import EdgepressError, nearest

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function_name(text: str) -> bool:
    """Whether `text` is written as `module:function` (and is not a path that exists)."""
    return _NAME.fullmatch(text) is not None and not exists(Path(text))


def exists(path: Path) -> bool:
    """Whether a path exists; no name from a file is an error, however long."""
    try:
        return path.exists()
    except OSError:
        return False


def load_function(name: str, error_type: type[EdgepressError]) -> Callable[..., Any]:
    """Import the function that `module:function` names; the current folder is searched first.

    Args:
        name: as the user wrote it.
        error_type: what to raise.

    Raises:
        EdgepressError: an `error_type`, where the module does not import or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        # A module written since the interpreter last looked would otherwise not be seen.
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:
        raise error_type(
            f"{name}: module {module_name!r} does not import: {type(error).__name__}: {error}",
            f"It is looked for in {folder} first, then on PYTHONPATH.",
        ) from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error_type(
            f"{name}: module {module_name!r} has no function {function_name!r}", nearest(function_name, known)
        )
    return function  # type: ignore[no-any-return]
