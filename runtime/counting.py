"""Executed instructions and heap of one inference, where an emulator counts for us.

A plugin in the emulator (`devices/plugin.c`) adds a line of running totals to a file whenever this process asks for
the process group of a process that cannot exist: the marker. What lies between two markers is one inference, so
start-up and loading are left out. A null model goes the same way, and its counts are subtracted: what is left belongs
to the model and not to Python, numpy and the engine's call.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepress.runtime.engines.choose import engine_for, is_onnx
from edgepress.runtime.memory import null_model
from edgepress.runtime.record import EngineError

COUNTER = "EDGEPRESS_COUNTER"
"""Environment variable that names the plugin's file."""
CLASSES = ("total", "fma", "dot", "load_store")
"""What the plugin's lines hold, in order; an instruction is in one of the last three at most."""

_MARKER = 0x4D41524B  # above every process number that Linux gives out
_SKIPPED = 8  # the first calls choose kernels, grow arenas and warm up the interpreter
_REPEATS = 5
_MANY = 10_000_000  # instructions of a call among which those some thousand do not show
_SKIPPED_OF_MANY, _REPEATS_OF_MANY = 2, 3


class _MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns, in bytes; see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def count(
    models: list[Path], feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]], threads: int = 1
) -> list[dict[str, Any]]:
    """Count what one inference of each model executes and holds; for a fresh process.

    Args:
        models: files.
        feeds: what each is run on, input name → array: the same for all, or one mapping a model.
        threads: threads that one operator may use; other threads' instructions are not told apart.

    Returns:
        One dict a model: `instructions_total`, `instructions_fma`, `instructions_dot`, `instructions_load_store`
        (the least of a few inferences, less a null model's) and `heap_bytes` (what loading and the first
        inferences left on the heap, or None where the C library does not tell).

    Raises:
        EngineError: nothing counts here, or the engine refused a model.
    """
    import numpy as np

    counter = os.environ.get(COUNTER)
    if not counter:
        raise EngineError(
            "instructions are counted on emulated devices only", "Choose one, such as cortex-a72."
        )
    results = []
    given = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    null = (0,) * len(CLASSES)
    if any(map(is_onnx, models)):
        null, _ = _model(null_model(), {"x": np.zeros(1, np.float32)}, threads, Path(counter))
    for model, own_feeds in zip(models, given):
        own, heap = _model(model, own_feeds, threads, Path(counter))
        row: dict[str, Any] = {
            # an engine of TFLite files is called in a few hundred instructions, and the sparse engine is Python itself
            f"instructions_{name}": max(0, a - b) if is_onnx(model) else a
            for name, a, b in zip(CLASSES, own, null)
        }
        results.append({**row, "heap_bytes": heap})
    return results


def heap_bytes() -> int | None:
    """Bytes in use on the heap, mapped blocks included; None where the C library does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # not glibc, or one before 2.33
        return None
    mallinfo2.restype = _MallInfo
    gc.collect()
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def differences(lines: list[str]) -> list[tuple[int, ...]]:
    """Counts between each marker and the next.

    Args:
        lines: running totals, one line a marker, numbers in the order of `CLASSES`.

    Raises:
        EngineError: the lines are not what the plugin writes.
    """
    try:
        totals = [tuple(int(word) for word in line.split()) for line in lines]
    except ValueError as error:
        raise EngineError("the instruction counter's file cannot be read") from error
    if any(len(row) != len(CLASSES) for row in totals):
        raise EngineError("the instruction counter's file cannot be read")
    pairs = zip(totals, totals[1:])
    return [tuple(b - a for a, b in zip(first, second)) for first, second in pairs]


def _model(
    model: bytes | Path, feeds: Mapping[str, Any], threads: int, counter: Path
) -> tuple[tuple[int, ...], int | None]:
    """Counts of one inference in the order of `CLASSES`, and heap."""
    engine = engine_for(model)
    before = heap_bytes()
    runner = engine.load(model, threads)
    runner(feeds)
    call = runner.bind(feeds)
    many = _counted(call, counter, 1)[0][0] > _MANY
    for _ in range(_SKIPPED_OF_MANY if many else _SKIPPED):
        call()
    after = heap_bytes()
    heap = None if before is None or after is None else max(0, after - before)
    # what disturbs a call adds to it
    return min(_counted(call, counter, _REPEATS_OF_MANY if many else _REPEATS)), heap


def _counted(call: Callable[[], object], counter: Path, repeats: int) -> list[tuple[int, ...]]:
    known = len(_lines(counter))
    mark = ctypes.CDLL(None).getpgid
    gc.disable()
    try:
        mark(_MARKER)
        for _ in range(repeats):
            call()
            mark(_MARKER)
    finally:
        gc.enable()
    rows = differences(_lines(counter)[known:])
    if len(rows) != repeats:
        raise EngineError("nothing counted the instructions", "Was the emulator started with its plugin?")
    return rows


def _lines(counter: Path) -> list[str]:
    try:
        return counter.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise EngineError(f"the instruction counter's file cannot be read: {error.strerror}") from error
