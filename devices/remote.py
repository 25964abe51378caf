"""The worker on a device: bundle, models and feeds go there, the answer comes back."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress.devices.base import Completed, Device, DeviceTroubleError
from edgepress.runtime import worker
from edgepress.runtime.engines.base import Kernel
from edgepress.runtime.engines.choose import suffix_of
from edgepress.runtime.environment import Condition, Environment
from edgepress.runtime.record import EngineDiedError, EngineError, Measurement

Feeds = Mapping[str, npt.NDArray[Any]]

_WORKER = "worker.pyz"
_MARGIN_S = 60.0
"""Beyond the time that timing may take: to start Python, and to load and warm up models."""
_NOT_FOUND, _NOT_ALLOWED = 127, 126
_KILLED = -9


@dataclass(frozen=True)
class Answer:
    """What the worker said.

    Attributes:
        result: of the task, as JSON has it.
        before: the device's condition when it began.
        after: and when it ended.
    """

    result: Any
    before: Condition
    after: Condition


@dataclass(frozen=True)
class Look:
    """A model as the device's engine sees it.

    Attributes:
        engine: its name.
        version: its release.
        delegate: what runs the graph, or most of it.
        inputs: name, the engine's name of the type, and sizes, None or a name for a dynamic one.
        load_ns: from file to ready, once.
    """

    engine: str
    version: str
    delegate: str
    inputs: tuple[tuple[str, str, tuple[int | str | None, ...]], ...]
    load_ns: int


@dataclass(frozen=True)
class Ran:
    """What came of a model.

    Attributes:
        outputs: name → array.
        kernels: that ran; None where the engine there does not tell.
    """

    outputs: dict[str, npt.NDArray[Any]]
    kernels: tuple[Kernel, ...] | None


class RemoteWorker:
    """The worker on one open device; every file is put there once."""

    def __init__(self, device: Device) -> None:
        """Nothing goes anywhere yet.

        Args:
            device: opened with `with`; it must stay so.
        """
        self.device = device
        self._there: dict[Path, str] = {}

    def environment(self, *, limit_s: float = 60.0) -> tuple[Environment, Condition]:
        """The device's processor, system and engines, and what it is like now; raises as `ask` does."""
        answer = self.ask("environment", (), limit_s=limit_s)
        try:
            facts = {**answer.result, "features": tuple(map(str, answer.result["features"]))}
            return Environment(**facts), answer.after
        except (TypeError, KeyError) as error:
            raise self._unreadable() from error

    def look(self, models: Sequence[Path], *, threads: int = 1) -> list[Look]:
        """What the engines there make of models; raises as `ask` does."""
        answer = self.ask("look", models, threads=threads)
        try:
            found = [
                Look(
                    str(each["engine"]),
                    str(each["version"]),
                    str(each["delegate"]),
                    tuple((str(name), str(kind), tuple(sizes)) for name, kind, sizes in each["inputs"]),
                    int(each["load_ns"]),
                )
                for each in answer.result
            ]
            self._one_each(found, models)
            return found
        except (TypeError, KeyError, ValueError) as error:
            raise self._unreadable() from error

    def time(
        self,
        models: Sequence[Path],
        feeds: Sequence[Feeds],
        *,
        threads: int = 1,
        time_limit_s: float = 10.0,
        precision: float = 0.01,
    ) -> tuple[list[Measurement], Answer]:
        """Times of models, interleaved, one mapping of feeds a model; see `measure`. Raises as `ask` does."""
        limit = 2 * time_limit_s + _MARGIN_S
        how = {"time_limit_s": time_limit_s, "precision": precision}
        answer = self.ask("time", models, feeds, threads=threads, limit_s=limit, **how)
        try:
            found = [_measurement(each) for each in answer.result]
            self._one_each(found, models)
            return found, answer
        except (TypeError, KeyError, ValueError) as error:
            raise self._unreadable() from error

    def run(
        self, models: Sequence[Path], feeds: Sequence[Feeds], *, threads: int = 1, limit_s: float = 120.0
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """Outputs of models, each on its feeds; raises as `ask` does."""
        files = _result_files(models)
        answer = self.ask("run", models, feeds, threads=threads, limit_s=limit_s, outputs=files)
        self._one_each(answer.result, models)
        with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
            return [
                self._fetched(file, names, Path(folder))
                for file, names in zip(files, answer.result, strict=True)
            ]

    def attempt(
        self, models: Sequence[Path], feeds: Sequence[Feeds], *, threads: int = 1, limit_s: float = 120.0
    ) -> list[Ran | EngineError]:
        """Outputs of models and the kernels that ran, or why an engine refused one; raises as `ask` for all else."""
        files = _result_files(models)
        answer = self.ask("try", models, feeds, threads=threads, limit_s=limit_s, outputs=files)
        self._one_each(answer.result, models)
        found: list[Ran | EngineError] = []
        with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
            for file, said in zip(files, answer.result, strict=True):
                try:
                    if "error" in said:
                        found.append(EngineError(str(said["error"]), str(said.get("hint", ""))))
                        continue
                    names, kernels = said["outputs"], _kernels(said["kernels"])
                except (TypeError, KeyError, ValueError) as error:
                    raise self._unreadable() from error
                found.append(Ran(self._fetched(file, names, Path(folder)), kernels))
        return found

    def _fetched(self, file: str, names: object, folder: Path) -> dict[str, npt.NDArray[Any]]:
        """Arrays of a file there, by the names of outputs that the worker told."""
        if not isinstance(names, list):
            raise self._unreadable()
        self.device.get(file, folder / file)
        try:
            with np.load(folder / file, allow_pickle=False) as arrays:
                return {str(output): arrays[f"a{place}"] for place, output in enumerate(names)}
        except (ValueError, KeyError, OSError) as error:
            raise self._unreadable() from error

    def ask(
        self,
        task: str,
        models: Sequence[Path],
        feeds: Feeds | Sequence[Feeds] | None = None,
        *,
        threads: int = 1,
        limit_s: float = 120.0,
        **rest: Any,
    ) -> Answer:
        """Put a task to a fresh process there.

        Args:
            task: see `edgepress.runtime.worker`.
            models: files here; each is one file, with its weights in it.
            feeds: input name → array, for all models or one mapping a model.
            threads: threads that one operator may use.
            limit_s: the worker is ended after this many seconds.
            rest: what the task takes beyond.

        Raises:
            EngineError: the engine there is missing or refused, or the worker died.
            DeviceTroubleError: the device does not answer, or has no Python.
        """
        if not self.device.python:
            raise DeviceTroubleError(
                f"{self.device.name} has no Python for the worker",
                "Give its profile `python`, or `benchmark`.",
            )
        with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
            self._put_worker(Path(folder), limit_s)
            request = {
                "task": task,
                "models": [self._put(model, limit_s) for model in models],
                **self._put_feeds(feeds, Path(folder), limit_s),
                "threads": threads,
                **rest,
            }
        done = self.device.run(
            [*self.device.python, _WORKER], given=json.dumps(request).encode(), limit_s=limit_s
        )
        return self._answer(done, models)

    def _put_worker(self, folder: Path, limit_s: float) -> None:
        if Path(_WORKER) not in self._there:
            self.device.put(worker.bundle(folder / _WORKER), _WORKER, limit_s=limit_s)
            self._there[Path(_WORKER)] = _WORKER

    def _put(self, model: Path, limit_s: float) -> str:
        """The model's name there: of ours, since names of users may be anything; the suffix tells the engine."""
        key = model.resolve()
        if key not in self._there:
            name = f"model{len(self._there)}{suffix_of(model)}"
            self.device.put(key, name, limit_s=limit_s)
            self._there[key] = name
        return self._there[key]

    def _put_feeds(
        self, feeds: Feeds | Sequence[Feeds] | None, folder: Path, limit_s: float
    ) -> dict[str, Any]:
        """Entries of the request; equal feeds go once."""
        if feeds is None:
            return {"feeds": None, "inputs": []}
        each = [feeds] if isinstance(feeds, Mapping) else list(feeds)
        names: list[str] = []
        for number, arrays in enumerate(each):
            same = next((place for place in range(number) if each[place] is arrays), None)
            if same is not None:
                names.append(names[same])
                continue
            name = f"feeds{number}.npz"
            worker.save_feeds(arrays, folder / name)
            self.device.put(folder / name, name, limit_s=limit_s)
            names.append(name)
        if isinstance(feeds, Mapping):
            return {"feeds": names[0], "inputs": list(feeds)}
        return {"feeds": names, "inputs": [list(arrays) for arrays in each]}

    def _answer(self, done: Completed, models: Sequence[Path]) -> Answer:
        name = self.device.name
        files = ", ".join(map(str, models)) or "the task"
        if done.code in (_NOT_FOUND, _NOT_ALLOWED):
            raise DeviceTroubleError(
                f"{name} has no {self.device.python[0]}",
                "Install Python 3.9 or newer there, or name it with `python` in the device's profile.",
            )
        if done.code < 0:
            hint = "Signal 9 mostly means that memory ran out there." if done.code == _KILLED else ""
            raise EngineDiedError(f"{name}: the worker for {files} was ended by signal {-done.code}", hint)
        if done.code > 0:
            last = (done.err.splitlines() or ["it said nothing"])[-1]
            raise EngineError(f"{name}: the worker for {files} failed with code {done.code}: {last}")
        try:
            answer = json.loads((done.out.splitlines() or [b""])[-1])
            if "error" in answer:
                raise EngineError(f"{name}: {answer['error']}", answer["hint"])
            return Answer(answer["result"], Condition(**answer["before"]), Condition(**answer["after"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable() from error

    def _one_each(self, found: Any, models: Sequence[Path]) -> None:
        if not isinstance(found, list) or len(found) != len(models):
            raise self._unreadable()

    def _unreadable(self) -> DeviceTroubleError:
        return DeviceTroubleError(f"{self.device.name}: the worker gave no readable answer", "Try again.")


def _result_files(models: Sequence[Path]) -> list[str]:
    return [f"outputs{number}.npz" for number in range(len(models))]


def _kernels(said: Any) -> tuple[Kernel, ...] | None:
    """Kernels out of JSON; raises `TypeError` or `ValueError` where they are none."""
    if said is None:
        return None
    return tuple(Kernel(str(op), tuple(map(str, reads))) for op, reads in said)


def _measurement(said: Mapping[str, Any]) -> Measurement:
    """A measurement out of JSON; raises `TypeError`, `KeyError` or `ValueError` where it is none."""
    low, high = said["ci95_ns"]
    return Measurement(
        median_ns=float(said["median_ns"]),
        ci95_ns=(float(low), float(high)),
        samples_ns=tuple(int(sample) for sample in said["samples_ns"]),
        p90_ns=float(said["p90_ns"]),
        too_noisy=bool(said["too_noisy"]),
        outliers=int(said["outliers"]),
        calls_per_sample=int(said["calls_per_sample"]),
    )
