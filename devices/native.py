"""Times where there is no Python: TensorFlow's `benchmark_model` and `onnxruntime_perf_test`, and what they print.

Each run of the program makes one round of one model; models take turns, so that what slows the device slows all. A
program tells a median at best: rounds are fewer than the worker's, and intervals wider.

Formats: tensorflow/lite/tools/benchmark (`count=50 first=… avg=… std=…`, with `median=` in newer ones, in microseconds)
and onnxruntime/test/perftest (`P50 Latency: … s` or `is … sec`, `Average inference time cost: … ms`).
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepress.devices.base import Device, DeviceTroubleError
from edgepress.runtime import stats
from edgepress.runtime.record import EngineError, Measurement

_FEWEST, _MOST = 5, 30
_RUNS = 50
_MARGIN_S = 120.0
_PRECISION = 0.01
_FLOAT = r"([0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)"
_THERE = "benchmark-tool"


@dataclass(frozen=True)
class Round:
    """What a program told of one run.

    Attributes:
        ns: median, or the mean where it tells no median.
        count: inferences.
    """

    ns: float
    count: int


def parse_benchmark_model(said: str) -> Round:
    """The last line of counts in what benchmark_model prints: the one before is the warm-up.

    Raises:
        ValueError: there is none.
    """
    lines = [line for line in said.splitlines() if re.search(r"\bcount=\d+", line)]
    if not lines:
        raise ValueError("no counts")
    count = _number(r"\bcount=(\d+)", lines[-1])
    found = _number(rf"\bmedian={_FLOAT}", lines[-1]) or _number(rf"\bavg={_FLOAT}", lines[-1])
    # Of a single run it says `curr=` alone.
    found = found or _number(rf"\bcurr={_FLOAT}", lines[-1])
    if not count or not found:
        raise ValueError("no times")
    return Round(found * 1e3, int(count))


def parse_perf_test(said: str) -> Round:
    """Median, else mean, of what onnxruntime_perf_test prints.

    Raises:
        ValueError: it tells neither.
    """
    count = _number(r"Total inference requests:\s*(\d+)", said) or _number(r"Total iterations:\s*(\d+)", said)
    median = _number(rf"P50 Latency(?: is|:)\s*{_FLOAT}\s*s", said)
    mean = _number(rf"Average (?:inference )?time cost(?: total)?:\s*{_FLOAT} ms", said)
    if not median and not mean:
        raise ValueError("no times")
    return Round(median * 1e9 if median else (mean or 0.0) * 1e6, int(count or 1))


def time_native(
    device: Device, tool: str, models: Sequence[Path], *, threads: int = 1, time_limit_s: float = 10.0
) -> list[Measurement]:
    """Time models by a program of the device, in turns.

    Args:
        device: opened with `with`.
        tool: the program: a file here, which is taken along, else its path there. Its name tells which it is.
        models: files here; they go with all that they need.
        threads: threads that one operator may use.
        time_limit_s: no round starts after this many seconds, but five always run.

    Raises:
        EngineError: the program is unknown, does not take the files, or failed.
        DeviceTroubleError: the device does not answer.
    """
    parse, suffix, words = _kind(tool, threads)
    for model in models:
        if model.suffix.lower() != suffix:
            raise EngineError(f"{Path(tool).name} runs {suffix} files only, not {model}", "Export it first.")
    command = _taken_along(device, tool)
    names = []
    for number, model in enumerate(models):
        names.append(f"model{number}{suffix}")
        device.put(model, names[-1])
    rounds: list[list[Round]] = []
    start = time.monotonic()
    while len(rounds) < _MOST:
        if len(rounds) >= _FEWEST and time.monotonic() - start > time_limit_s:
            break
        limit = time_limit_s + _MARGIN_S
        rounds.append([_once(device, [command, *words(name)], parse, limit) for name in names])
    return [_summary([turn[place] for turn in rounds]) for place in range(len(models))]


def _kind(tool: str, threads: int) -> tuple[Callable[[str], Round], str, Callable[[str], list[str]]]:
    """Parser, suffix of files, and arguments for a file."""
    name = Path(tool).name
    if "benchmark_model" in name:
        options = [
            f"--num_threads={threads}",
            f"--num_runs={_RUNS}",
            "--min_secs=0.1",
            "--warmup_min_secs=0.1",
        ]
        return parse_benchmark_model, ".tflite", lambda file: [f"--graph={file}", *options]
    if "perf_test" in name:
        options = ["-I", "-m", "times", "-r", str(_RUNS), "-x", str(threads), "-y", "1", "-e", "cpu"]
        return parse_perf_test, ".onnx", lambda file: [*options, file]
    raise EngineError(
        f"{name} is no program for times that is known", "Known: benchmark_model, onnxruntime_perf_test."
    )


def _taken_along(device: Device, tool: str) -> str:
    """The command there."""
    here = Path(tool).expanduser()
    if not here.is_file():
        return tool
    device.put(here, _THERE)
    done = device.run(["chmod", "755", _THERE])
    if done.code != 0:
        raise DeviceTroubleError(f"{device.name}: chmod failed: {done.err}")
    return f"./{_THERE}"


def _once(device: Device, command: list[str], parse: Callable[[str], Round], limit_s: float) -> Round:
    done = device.run(command, limit_s=limit_s)
    said = done.out.decode("utf-8", "replace") + "\n" + done.err
    if done.code in (126, 127):
        raise DeviceTroubleError(
            f"{device.name} cannot start {command[0]}: {done.err or 'not found'}",
            "Set `benchmark` in its profile to a program for that system and processor.",
        )
    try:
        if done.code == 0:
            return parse(said)
    except ValueError:
        pass
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    ended = f"was ended by signal {-done.code}" if done.code < 0 else f"failed with code {done.code}"
    what = "told no times" if done.code == 0 else ended
    raise EngineError(f"{device.name}: {command[0]} {what}: {last}")


def _summary(rounds: list[Round]) -> Measurement:
    samples = [round(turn.ns) for turn in rounds]
    median = float(np.median(samples))
    low, high = stats.median_interval(samples, np.random.default_rng(0))
    return Measurement(
        median_ns=median,
        ci95_ns=(low, high),
        samples_ns=tuple(samples),
        p90_ns=float(np.quantile(samples, 0.9)),
        too_noisy=(high - low) / 2 > _PRECISION * median,
        outliers=stats.outliers(samples),
        calls_per_sample=rounds[0].count,
    )


def _number(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text, re.IGNORECASE)
    return float(found[1]) if found else None
