"""Peak memory of a model: what loading and running it once adds to a process of its own.

The process reads its resident memory when Python, numpy and the engine are loaded, then the highest it got to
by the end of one run. A null model (one Identity on one number) goes the same way, and its growth is
subtracted: what is left belongs to the model. Differences below some 100 kB are noise of the allocator.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from edgepress.runtime import worker
from edgepress.runtime.engines.choose import engine_for
from edgepress.runtime.record import EngineError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def memory_peak_bytes(
    model: bytes | PathLike[str],
    feeds: Mapping[str, Any],
    *,
    threads: int = 1,
    repeats: int = 3,
    time_limit_s: float = 120.0,
) -> int:
    """Peak resident memory of load and one run, less a null model's.

    Args:
        model: serialized, or a file.
        feeds: what it is run on: input name → array.
        threads: threads that one operator may use.
        repeats: processes to start; the median of them counts.
        time_limit_s: limit of each process.

    Returns:
        Bytes; 0 where the model cannot be told from the null model.

    Raises:
        EngineError: the engine refused the model, or its process died or took too long.
    """
    null = _null_growth_bytes(threads, repeats)
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        path = _as_file(model, Path(folder))
        return max(0, _median_growth(path, feeds, threads, repeats, time_limit_s) - null)


def growth_bytes(model: Path, feeds: Mapping[str, Any], threads: int = 1) -> int:
    """What loading and running a model once adds to this process's peak, in bytes; for a fresh process."""
    engine = engine_for(model)
    _forget_peak()
    before = _peak_bytes()
    engine.load(model, threads)(feeds)
    return _peak_bytes() - before


def null_model() -> bytes:
    """A model that copies one float32, `x` [1] to `y` [1]: the smallest that an engine loads.

    Written as protobuf fields (onnx.proto3, IR version 8, opset 13), since boards have no `onnx` package.
    """
    dimension = _field(1, _number(1, 1))
    tensor = _number(1, 1) + _field(2, dimension)  # elem_type FLOAT, shape
    ports = [_field(1, name) + _field(2, _field(1, tensor)) for name in (b"x", b"y")]
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    graph = _field(1, node) + _field(2, b"null") + _field(11, ports[0]) + _field(12, ports[1])
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))


@cache
def _null_growth_bytes(threads: int, repeats: int) -> int:
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        path = _as_file(null_model(), Path(folder))
        return _median_growth(path, {"x": np.zeros(1, np.float32)}, threads, repeats, 120.0)


def _median_growth(path: Path, feeds: Mapping[str, Any], threads: int, repeats: int, limit_s: float) -> int:
    return int(
        statistics.median(
            worker.ask("memory", [path], feeds, threads=threads, time_limit_s=limit_s)[0]
            for _ in range(repeats)
        )
    )


def _as_file(model: bytes | PathLike[str], folder: Path) -> Path:
    if not isinstance(model, bytes):
        return Path(model)
    path = folder / "model.onnx"
    path.write_bytes(model)
    return path


def _forget_peak() -> None:
    """Make the peak start from what is resident now, where the kernel lets us."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return  # no such file outside Linux; without it the peak of start-up counts, which both models share


def _peak_bytes() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError as error:
        raise EngineError("peak memory cannot be read on this system", "Linux and macOS can.") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def _number(number: int, value: int) -> bytes:
    """A protobuf field with a number below 128."""
    return bytes([number << 3, value])
