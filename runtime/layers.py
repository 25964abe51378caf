"""What each layer takes, by the engine's own profiler."""

from __future__ import annotations

import bisect
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from edgepress.runtime.engines.base import Feeds
from edgepress.runtime.engines.choose import engine_for, is_tflite
from edgepress.runtime.record import EngineError

WARM_UP = 3
"""Inferences that are left out."""
_LEAST, _MOST = 5, 1000
"""Inferences that count; onnxruntime keeps the first million events of a trace."""
_SUFFIX = "_kernel_time"
_NUMBERED = re.compile(r"_token_\d+$")
"""What onnxruntime appends to nodes that it made of several."""


def layer_times(
    model: bytes | PathLike[str], feeds: Feeds, threads: int = 1, time_limit_s: float = 2.0
) -> dict[str, Any]:
    """Time the layers of a model, as the engine's profiler tells them: mean nanoseconds of an inference.

    The profiler counts whole microseconds, and takes time itself; so shares are better known than times.

    Args:
        model: a file, or its content.
        feeds: one array per input, by name.
        threads: threads that one operator may use.
        time_limit_s: no inference begins after that, but for the first few.

    Returns:
        `layers`, rows with `name`, `op`, `ns` and `calls` of one inference, the dearest first; `runs`, how many they
        are the mean of; `run_ns`, the mean of those as a whole. Where the engine has no profiler, `layers` is None
        and `reason` says so.

    Raises:
        EngineError: the engine is missing, or refuses the model.
    """
    engine: Any = engine_for(model)
    if not hasattr(engine, "profiled"):
        return {
            "layers": None,
            "reason": f"{engine.name} has no profiler that Python reaches"
            + (
                "; TensorFlow's benchmark_model --enable_op_profiling=true has one"
                if is_tflite(model)
                else ""
            ),
        }
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        session = engine.profiled(model, str(Path(folder) / "profile"), threads)
        try:
            call, end, runs = session.bind(feeds), time.monotonic() + time_limit_s, 0
            while runs < WARM_UP + _LEAST or (runs < WARM_UP + _MOST and time.monotonic() < end):
                call()
                runs += 1
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{engine.name} cannot run the model: {error}") from error
        finally:
            path = Path(session.end())
        events = json.loads(path.read_text(encoding="utf-8"))
    return summed(events)


def summed(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows by layer, from a trace: means of the quicker half of inferences, since other programs only ever add.

    Args:
        events: as onnxruntime writes them (Chrome's trace format): `model_run` of each inference, and within it
            `…_kernel_time` of each node; those of a Loop's or If's body lie within that node's, whose time is what is
            left.
    """
    whole = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: int(e["ts"]))[WARM_UP:]
    if not whole:
        raise EngineError("the engine's profile has no inferences in it")
    quick = sorted(whole, key=lambda e: int(e["dur"]))[: (len(whole) + 1) // 2]
    starts = [int(each["ts"]) for each in whole]
    chosen = {int(each["ts"]) for each in quick}
    kernels = [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_SUFFIX)]
    rows: dict[tuple[str, str], list[int]] = {}
    for each, took in _alone(kernels):
        run = bisect.bisect_right(starts, int(each["ts"])) - 1
        if run < 0 or starts[run] not in chosen:
            continue
        name = _NUMBERED.sub("", str(each["name"])[: -len(_SUFFIX)])
        row = rows.setdefault((name, str(each.get("args", {}).get("op_name", ""))), [0, 0])
        row[0] += took
        row[1] += 1
    layers = [
        {"name": name, "op": op, "ns": 1000.0 * took / len(quick), "calls": calls / len(quick)}
        for (name, op), (took, calls) in rows.items()
    ]
    layers.sort(key=lambda row: -float(str(row["ns"])))
    run_ns = 1000.0 * sum(int(each["dur"]) for each in quick) / len(quick)
    return {"layers": layers, "runs": len(quick), "run_ns": run_ns, "reason": ""}


def _alone(kernels: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Each event with its microseconds, less those of events within it."""
    ordered = sorted(kernels, key=lambda e: (int(e["ts"]), -int(e["dur"])))
    ends = [int(e["ts"]) + int(e["dur"]) for e in ordered]
    alone = [int(e["dur"]) for e in ordered]
    around: list[int] = []
    for place, each in enumerate(ordered):
        while around and ends[around[-1]] < ends[place]:
            around.pop()
        if around:
            alone[around[-1]] -= int(each["dur"])
        around.append(place)
    return list(zip(ordered, alone))
