"""Which kernels train: compiled ones where numba is installed, else SciPy's."""

import os
from types import ModuleType
from typing import Literal

from edgepress.compressor.errors import UsageError
from edgepress.compressor.evolve import plain

Name = Literal["numba", "scipy"]


def choose(name: Name | None = None, threads: int | None = None) -> tuple[Name, ModuleType]:
    """The kernels: a module with `forward` and `backward`.

    Args:
        name: which; None: the fastest there is.
        threads: of compiled kernels; None: one a core.

    Raises:
        UsageError: numba is asked for and not installed.
    """
    if name == "scipy":
        return "scipy", plain
    try:
        import numba
    except ImportError as error:
        if name == "numba":
            raise UsageError("numba is not installed.", "pip install 'edgepress[evolve]'") from error
        return "scipy", plain
    # Threads that wait for each other at the end of every kernel spin for milliseconds, if libgomp has its way. Where
    # another program wants the core, that keeps the other thread from its work: kernels took thirty times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from edgepress.compressor.evolve import compiled

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(threads or most, most))
    return "numba", compiled
