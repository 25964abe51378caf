"""A process of its own for some models: a JSON request on stdin, a JSON answer on stdout.

It needs numpy, one engine (onnxruntime for .onnx files, LiteRT or tflite_runtime for .tflite files, SciPy for sparse
.npz files) and the standard library of Python 3.9. `bundle` packs it with the rest of the runtime into one file that
travels: `python3 worker.pyz < request.json`. Engine and timing loop are thus the same code everywhere.

Request: {"task": …, "models": [path, …], "feeds": path of an .npz or null, "inputs": [name, …], "threads": 1}
and what the task takes beyond. The archive's arrays are called a0, a1, …, in the order of "inputs": a tensor may have a
name that no archive can hold. Where models take different feeds, "feeds" and "inputs" are lists of those, one a model.

| task | takes | gives |
|---|---|---|
| time | "time_limit_s", "precision" | a `Measurement` a model, all interleaved |
| memory | | growth of the peak memory in bytes, a model |
| run | "outputs": [path of an .npz to write, a model] | names of its arrays a0, a1, …, a model |
| try | the same | {"outputs": those names, "kernels": what ran (`kernels`) or null}, or {"error": …, "hint": …} |
| layers | "time_limit_s" | times of its layers a model (`layers`) |
| count | | instructions and heap a model, where an emulator counts (`counting`) |
| look | | engine, version, delegate, inputs, outputs and load time, a model |
| environment | | an `Environment` |

Answer: {"result": …, "before": a `Condition`, "after": another} or {"error": message, "hint": …}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepress.runtime.environment import condition, describe
from edgepress.runtime.record import EngineError

_MODULES = (
    *(
        "__init__",
        "counting",
        "environment",
        "kernels",
        "layers",
        "measure",
        "memory",
        "record",
        "stats",
        "worker",
    ),
    *(
        f"engines/{name}"
        for name in ("__init__", "base", "border", "choose", "flatfile", "litert", "ort", "sparse")
    ),
)
_STARTER = """import sys
if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed; this one is %d.%d" % sys.version_info[:2])
from edgepress.runtime.worker import main
main()
"""


def ask(
    task: str,
    models: list[Path],
    feeds: Mapping[str, Any],
    *,
    threads: int = 1,
    time_limit_s: float = 120.0,
    python: str = sys.executable,
) -> Any:
    """Put a task to a fresh process on this machine and wait for its answer.

    Args:
        task: `memory` or `time`.
        models: model files.
        feeds: input name → array.
        threads: threads that one operator may use.
        time_limit_s: the process is ended after this many seconds.
        python: the interpreter to use.

    Returns:
        What the task returned, as JSON has it.

    Raises:
        EngineError: the engine refused, the process died, or it took too long.
    """
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        request = {
            "task": task,
            "models": [str(model.resolve()) for model in models],
            "feeds": save_feeds(feeds, Path(folder) / "feeds.npz"),
            "inputs": list(feeds),
            "threads": threads,
        }
        try:
            done = subprocess.run(
                [python, "-m", "edgepress.runtime.worker"],
                input=json.dumps(request),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=time_limit_s,
                cwd=folder,  # a user's own numpy.py must not shadow the real one
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"the process for {_names(models)} did not answer within {time_limit_s:g} s"
            raise EngineError(message, "Raise the time limit, or use a smaller batch.") from error
    return _answer(done, models)


def save_feeds(feeds: Mapping[str, Any], path: Path) -> str:
    """Write the arrays as a0, a1, … and return the path as text."""
    import numpy as np

    arrays = [np.asarray(array) for array in feeds.values()]
    arrays = [
        array.astype(str) if array.dtype == object else array for array in arrays
    ]  # text, without pickle
    named: dict[str, Any] = {f"a{index}": array for index, array in enumerate(arrays)}
    np.savez(str(path), **named)
    return str(path)


def bundle(path: Path) -> Path:
    """Pack the runtime into one file that any Python ≥ 3.9 with numpy and an engine runs.

    Args:
        path: where to write it, such as `worker.pyz`; overwritten.

    Returns:
        The same path.
    """
    here = Path(__file__).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _STARTER)
        # before Python 3.13 a package in an archive must not be a namespace
        archive.writestr(zipfile.ZipInfo("edgepress/__init__.py"), "")
        for module in _MODULES:
            name = zipfile.ZipInfo(
                f"edgepress/runtime/{module}.py"
            )  # without the clock: same code, same bytes
            archive.writestr(name, (here / f"{module}.py").read_bytes())
    return path


def serve(request: Mapping[str, Any]) -> Any:
    """Do what a request asks for, in this process.

    Raises:
        EngineError: the task is unknown, the engine is missing, or it refused.
    """
    task = _TASKS.get(request["task"])
    if task is None:
        raise EngineError(f"unknown task {request['task']!r}", f"Known: {', '.join(sorted(_TASKS))}.")
    return task(request)


def main() -> None:
    """Answer the one request on stdin; whatever libraries print to stdout goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        request = json.load(sys.stdin)
        before = asdict(condition())
        answer = {"result": serve(request), "before": before, "after": asdict(condition())}
    except EngineError as error:
        answer = {"error": str(error), "hint": error.hint}
    except ImportError as error:
        hint = f"Install what is missing there: {sys.executable} -m pip install numpy onnxruntime"
        answer = {"error": f"a library does not load: {error}", "hint": hint}
    except OSError as error:
        answer = {"error": f"{error.filename or 'a file'}: {error.strerror}", "hint": "Is the disk full?"}
    except MemoryError:
        answer = {"error": "memory ran out", "hint": "Use a smaller model or batch."}
    with answers:
        json.dump(answer, answers)


def _time(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.measure import measure

    limit = float(request.get("time_limit_s", 10.0))
    precision = float(request.get("precision", 0.01))
    found = measure(
        _models(request), _feeds(request), threads=_threads(request), time_limit_s=limit, precision=precision
    )
    return [asdict(measurement) for measurement in found]


def _memory(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.memory import growth_bytes

    pairs = zip(_models(request), _feeds(request))
    return [growth_bytes(model, feeds, _threads(request)) for model, feeds in pairs]


def _run(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.engines.choose import engine_for  # needs numpy, which `environment` does not

    names = []
    for model, feeds, path in zip(_models(request), _feeds(request), request["outputs"]):
        outputs = engine_for(model).load(model, _threads(request))(feeds)
        save_feeds(outputs, Path(path))
        names.append(list(outputs))
    return names


def _try(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.engines.choose import engine_for  # needs numpy, which `environment` does not
    from edgepress.runtime.kernels import run_seen

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        for place, (model, path) in enumerate(zip(_models(request), request["outputs"])):
            one = {name: request[name][place : place + 1] for name in ("models", "feeds", "inputs")}
            try:
                prefix = Path(folder) / str(place)
                outputs, seen = run_seen(engine_for(model), model, _feeds(one)[0], prefix, _threads(request))
            except EngineError as error:
                found.append({"error": str(error), "hint": error.hint})
                continue
            save_feeds(outputs, Path(path))
            found.append({"outputs": list(outputs), "kernels": seen})
    return found


def _look(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.engines.choose import engine_for  # needs numpy, which `environment` does not

    found = []
    for model in _models(request):
        engine = engine_for(model)
        start = time.perf_counter_ns()
        runner: Any = engine.load(model, _threads(request))
        found.append(
            {
                "engine": engine.name,
                "version": engine.version,
                "delegate": getattr(runner, "delegate", "none"),
                "inputs": runner.inputs,
                "outputs": runner.outputs,
                "load_ns": time.perf_counter_ns() - start,
            }
        )
    return found


def _environment(request: Mapping[str, Any]) -> Any:
    return asdict(describe())


def _count(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.counting import count

    return count(_models(request), _feeds(request), _threads(request))


def _layers(request: Mapping[str, Any]) -> Any:
    from edgepress.runtime.layers import layer_times

    limit = float(request.get("time_limit_s", 2.0))
    pairs = zip(_models(request), _feeds(request))
    return [layer_times(model, feeds, _threads(request), limit) for model, feeds in pairs]


_TASKS = {
    "count": _count,
    "environment": _environment,
    "layers": _layers,
    "look": _look,
    "memory": _memory,
    "run": _run,
    "time": _time,
    "try": _try,
}


def _models(request: Mapping[str, Any]) -> list[Path]:
    return [Path(model) for model in request["models"]]


def _threads(request: Mapping[str, Any]) -> int:
    return int(request.get("threads", 1))


def _feeds(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each model is run on."""
    paths, inputs = request["feeds"], request["inputs"]
    if not isinstance(paths, list):
        return [_arrays(paths, inputs)] * len(request["models"])
    return [_arrays(path, names) for path, names in zip(paths, inputs)]


def _arrays(path: str | None, names: list[str]) -> dict[str, Any]:
    import numpy as np

    if path is None:
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[f"a{index}"] for index, name in enumerate(names)}


def _answer(done: subprocess.CompletedProcess[str], models: list[Path]) -> Any:
    if done.returncode < 0:
        hint = "Signal 9 mostly means that memory ran out." if done.returncode == -9 else ""
        raise EngineError(f"the process for {_names(models)} was ended by signal {-done.returncode}", hint)
    if done.returncode > 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the process for {_names(models)} failed with code {done.returncode}: {last}")
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise EngineError(f"the process for {_names(models)} gave no readable answer") from error
    if "error" in answer:
        raise EngineError(answer["error"], answer["hint"])
    return answer["result"]


def _names(models: list[Path]) -> str:
    return ", ".join(str(model) for model in models)


if __name__ == "__main__":
    main()
