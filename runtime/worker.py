"""A process of its own for one model: a JSON request on stdin, a JSON answer on stdout.

It needs numpy, onnxruntime and the standard library of Python 3.9. `bundle` packs it with the rest of the
runtime into one file that travels: `python3 worker.pyz < request.json`. Engine and timing loop are thus the
same code everywhere.

Request: {"task": "memory" | "time" | "count" | "run", "models": [path, …], "feeds": path of an .npz or null,
"inputs": [name, …], "threads": 1, and for "time" optionally "time_limit_s", for "run" "outputs": one .npz a model,
to be written}. The archive's arrays are called a0, a1, …, in the order of "inputs": a tensor may have a name that no
archive can hold. "run" answers the names of its outputs, in the order of the arrays that it wrote.
Answer: {"result": …} or {"error": message, "hint": …}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepress.runtime.record import EngineError

_MODULES = (
    *("__init__", "counting", "measure", "memory", "record", "stats", "worker"),
    *("engines/__init__", "engines/base", "engines/flatfile", "engines/litert", "engines/ort"),
)
_STARTER = "from edgepress.runtime.worker import main\nmain()\n"


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
    """Pack the runtime into one file that any Python ≥ 3.9 with numpy and onnxruntime runs.

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
    """Do what a request asks for, in this process."""
    import numpy as np

    feeds = {}
    if request["feeds"] is not None:
        with np.load(request["feeds"], allow_pickle=False) as archive:
            feeds = {name: archive[f"a{index}"] for index, name in enumerate(request["inputs"])}
    models = [Path(model) for model in request["models"]]
    threads = int(request.get("threads", 1))
    if request["task"] == "memory":
        from edgepress.runtime.memory import growth_bytes

        return [growth_bytes(model, feeds, threads) for model in models]
    if request["task"] == "time":
        from edgepress.runtime.measure import measure

        limit = float(request.get("time_limit_s", 10.0))
        return [asdict(m) for m in measure(models, feeds, threads=threads, time_limit_s=limit)]
    if request["task"] == "count":
        from edgepress.runtime.counting import count

        return count(models, feeds, threads)
    if request["task"] == "run":
        return [_run(model, feeds, Path(out), threads) for model, out in zip(models, request["outputs"])]  # noqa: B905
    raise EngineError(f"unknown task {request['task']!r}", "Known: memory, time, count, run.")


def _run(model: Path, feeds: Mapping[str, Any], out: Path, threads: int) -> list[str]:
    """Run a model once, write what it gives, and return the outputs' names."""
    from edgepress.runtime.counting import engine_of

    outputs = engine_of(model).load(model, threads)(feeds)
    save_feeds(outputs, out)
    return list(outputs)


def main() -> None:
    """Answer the one request on stdin; whatever libraries print to stdout goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = {"result": serve(json.load(sys.stdin))}
    except EngineError as error:
        answer = {"error": str(error), "hint": error.hint}
    with answers:
        json.dump(answer, answers)


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
