"""Which kernels an engine ran a model by, and what types they read.

A file's precision is not always that of the arithmetic: where a runtime has no kernels for a type it computes in a
wider one, and says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from edgepress.runtime.engines.base import Array, Feeds, Kernel

_SUFFIX = "_kernel_time"
_NUMPY = {"float": "float32", "double": "float64"}
"""Types that onnxruntime calls otherwise than numpy."""


def run_seen(
    engine: Any, model: bytes | PathLike[str], feeds: Feeds, prefix: Path, threads: int = 1
) -> tuple[dict[str, Array], tuple[Kernel, ...] | None]:
    """Run a model once, and tell its kernels: from the engine's trace of that very run, where it has a profiler.

    Args:
        engine: loads it.
        model: a file, or its content.
        feeds: one array per input, by name.
        prefix: of the path of a trace, which is left there.
        threads: threads that one operator may use.

    Returns:
        Output name → array; and the kernels, each kind once, None where the engine does not tell.

    Raises:
        EngineError: the engine refuses the model, or fails.
    """
    if not hasattr(engine, "profiled"):
        runner = engine.load(model, threads)
        return runner(feeds), getattr(runner, "kernels", None)
    session = engine.profiled(model, str(prefix), threads)
    try:
        outputs = session(feeds)
    finally:
        trace = Path(session.end())
    try:
        return outputs, traced(json.loads(trace.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # a full disk, or a release that writes it otherwise
        return outputs, None


def traced(events: Sequence[Mapping[str, Any]]) -> tuple[Kernel, ...]:
    """Kernels of one inference, from a trace.

    Args:
        events: as onnxruntime writes them (Chrome's trace format): `…_kernel_time` of each node, with the type of each
            input that is not a weight in the kernel's own order.
    """
    seen = {
        Kernel(
            str(each["args"]["op_name"]),
            tuple(_type(given) for given in each["args"].get("input_type_shape", ())),
        )
        for each in events
        if each.get("cat") == "Node" and str(each.get("name", "")).endswith(_SUFFIX)
    }
    return tuple(sorted(seen))


def _type(given: Mapping[str, Any]) -> str:
    name = next(iter(given), "")
    return _NUMPY.get(name, name)
