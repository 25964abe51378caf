"""TFLite files on the CPU: by LiteRT, else tflite_runtime, else TensorFlow, whichever is there.

The default kernels, which hand what they can to XNNPACK: what is judged here is what users get.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.runtime.engines.base import Array, Feeds, Kernel, Port
from edgepress.runtime.engines.border import Border, said_by
from edgepress.runtime.record import EngineError

PACKAGES = (
    ("ai_edge_litert.interpreter", "ai-edge-litert", "litert"),
    ("tflite_runtime.interpreter", "tflite-runtime", "tflite_runtime"),
    ("tensorflow", "tensorflow", "tensorflow.lite"),
)
"""Module, name of the distribution, name of the engine; the first that can be imported is used."""

_MESSAGE_LIMIT = 300
_STDERR = 2
_redirected = threading.Lock()
_release = functools.lru_cache(maxsize=None)(importlib.metadata.version)  # files are read for it each time


class LiteRTEngine:
    """An interpreter of TFLite files.

    Attributes:
        name: of what was found, as in `PACKAGES`.
        version: its release.
        as_onnx: whether runners take and give what the ONNX model does that the file was made from: its order of
            dimensions, reals where the file has integers at its border, and any number of rows where it has one.
    """

    def __init__(self, *, as_onnx: bool = False) -> None:
        """Find an interpreter.

        Raises:
            EngineError: none is installed.
        """
        self._interpreter, self.name, self.version = _find()
        self.as_onnx = as_onnx

    def load(self, model: bytes | PathLike[str], threads: int = 1) -> LiteRTRunner:
        """Load a model.

        Args:
            model: the content of a .tflite file, or its path.
            threads: threads that one operator may use.

        Raises:
            EngineError: the file cannot be read, or the interpreter refuses it.
        """
        where = "the model" if isinstance(model, bytes) else fspath(model)
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise EngineError(f"{where}: {error.strerror}", "Give the path of a .tflite file.") from error
        if not content:
            raise EngineError(f"{self.name} cannot load {where}: it is empty.")
        try:
            with _without_info():
                interpreter = self._interpreter(model_content=content, num_threads=threads)
                interpreter.allocate_tensors()
            return LiteRTRunner(interpreter, f"{self.name} cannot run {where}", content, self.as_onnx)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name} cannot load {where}: {_shorten(str(error))}") from error


class LiteRTRunner:
    """A loaded TFLite file; its first signature, or its first graph where it has none.

    Attributes:
        inputs: what must be fed; the shape has None for a dimension that may change.
        outputs: what comes out.
        operators: kind → count.
        partitions: pieces of the graph that a delegate runs; None where the interpreter does not tell.
        outside: operators that no delegate took, kind → count; None likewise.
    """

    def __init__(self, interpreter: Any, failing: str, content: bytes, as_onnx: bool) -> None:
        self._interpreter, self._failing = interpreter, failing
        self._lock = threading.Lock()
        said = said_by(content) if as_onnx else {}
        self._rows = as_onnx
        ins, outs = _ports(interpreter)
        self._ins = Border(ins, said, "inputs")
        self._outs = Border(outs, said, "outputs")
        self._shapes = {name: tuple(map(int, port["shape"])) for name, port in ins.items()}
        self.operators, self.partitions, self.outside = _told(interpreter)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs, in the signature's order."""
        return self._ins.described

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs, in the signature's order."""
        return self._outs.described

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of `inputs`."""
        return tuple(port.name for port in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of `outputs`."""
        return tuple(port.name for port in self.outputs)

    @property
    def kernels(self) -> tuple[Kernel, ...] | None:
        """Operators of the file by the types of their tensors, delegated or not; None where it is not told."""
        listed = getattr(self._interpreter, "_get_ops_details", None)
        if listed is None:
            return None
        types = {
            each["index"]: np.dtype(each["dtype"]).name for each in self._interpreter.get_tensor_details()
        }
        seen = {
            Kernel(
                each["op_name"], tuple(types.get(int(place), "") for place in each["inputs"] if place >= 0)
            )
            for each in listed()
            if not _is_delegate(each)
        }
        return tuple(sorted(seen))

    @property
    def delegate(self) -> str:
        """What runs the graph, or most of it: `XNNPACK`, the only one that comes by itself, or `none`."""
        return "XNNPACK" if self.partitions else "none"

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: one array per input, by name; dtypes and fixed dimensions must fit.
            outputs: names of the outputs wanted; None means all.

        Returns:
            Output name → array, in the order asked for.

        Raises:
            EngineError: the feeds do not fit, or the interpreter fails.
        """
        names = list(self.output_names if outputs is None else outputs)
        unknown = [name for name in names if name not in self._outs.ports]
        if unknown:
            raise EngineError(f"{self._failing}: no output {unknown[0]!r}")
        if not names:
            return {}
        with self._lock:
            if self._rows and self._one_row_only(feeds):
                return self._row_by_row(feeds, names)
            return self._run(feeds, names)

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these feeds, and all outputs, for timing; the feeds stay until the next other run.

        They are not copied in again: onnxruntime's call reads them where they lie, too.
        """
        with self._lock:
            self._feed(feeds)
        interpreter = self._interpreter
        places = [port["index"] for port in self._outs.ports.values()]

        def call() -> object:
            interpreter.invoke()
            return [interpreter.get_tensor(place) for place in places]

        return call

    def _run(self, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        self._feed(feeds)
        try:
            self._interpreter.invoke()
            found = {
                name: self._interpreter.get_tensor(self._outs.ports[name]["index"]) for name in set(names)
            }
        except Exception as error:
            raise EngineError(f"{self._failing}: {_shorten(str(error))}") from error
        return {name: self._outs.given_back(name, found[name]) for name in names}

    def _feed(self, feeds: Feeds) -> None:
        """Copy the feeds in; other sizes than last time are told to the interpreter first."""
        wrong = set(feeds) ^ set(self._ins.ports)
        if wrong:
            raise EngineError(f"{self._failing}: inputs are {list(self._ins.ports)}, not {list(feeds)}")
        arrays = {name: self._ins.taken(name, np.asarray(array)) for name, array in feeds.items()}
        for name, array in arrays.items():
            self._ins.check(name, array, self._failing)
        try:
            shapes = {name: arrays[name].shape for name in self._ins.ports}
            if shapes != self._shapes:
                self._shapes = {}  # where it fails half-way, the next run tells all sizes again
                for name, port in self._ins.ports.items():
                    self._interpreter.resize_tensor_input(port["index"], shapes[name])
                with _without_info():
                    self._interpreter.allocate_tensors()
                self._shapes = shapes
            for name, port in self._ins.ports.items():
                self._interpreter.set_tensor(port["index"], arrays[name])
        except Exception as error:
            raise EngineError(f"{self._failing}: {_shorten(str(error))}") from error

    def _one_row_only(self, feeds: Feeds) -> bool:
        """Whether there are several rows in every feed, and the file takes one."""
        rows = {np.shape(array)[:1] for array in feeds.values()}
        firsts = {port.shape[:1] for port in self.inputs}
        return firsts == {(1,)} and len(rows) == 1 and rows.pop() > (1,)

    def _row_by_row(self, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        count = len(next(iter(feeds.values())))
        parts = [self._run({k: v[row : row + 1] for k, v in feeds.items()}, names) for row in range(count)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _find() -> tuple[Any, str, str]:
    """The interpreter's class, the engine's name and release."""
    broken = []
    for module, distribution, name in PACKAGES:
        try:
            with _without_info():
                found = importlib.import_module(module)
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError) or error.name not in {module, module.split(".")[0]}:
                broken.append(f"{module}: {_shorten(str(error))}")
            continue
        source = found.lite if module == "tensorflow" else found
        try:
            release = _release(distribution)
        except importlib.metadata.PackageNotFoundError:
            release = str(getattr(found, "__version__", "of unknown release"))
        return source.Interpreter, name, release
    said = f" ({'; '.join(broken)})" if broken else ""
    raise EngineError(
        f"There is nothing here that runs TFLite files{said}.",
        'Install it with: pip install "edgepress[tflite]"',
    )


def _ports(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Descriptions of inputs and outputs by name, the signature's names where there is one."""
    signatures = interpreter.get_signature_list()
    if not signatures:
        ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
        return {each["name"]: each for each in ins}, {each["name"]: each for each in outs}
    key = next(iter(signatures))
    runner = interpreter.get_signature_runner(key)
    # The runner's descriptions come in the order of their names; the file's own order is that of the graph.
    places = [each["index"] for each in (*interpreter.get_input_details(), *interpreter.get_output_details())]
    order = {index: place for place, index in reversed(list(enumerate(places)))}
    ins, outs = (
        dict(sorted(found.items(), key=lambda pair: order.get(pair[1]["index"], 0)))
        for found in (runner.get_input_details(), runner.get_output_details())
    )
    return ins, outs


def _told(interpreter: Any) -> tuple[dict[str, int], int | None, dict[str, int] | None]:
    """Operators, partitions of a delegate, and operators outside of it, by kind.

    The interpreter lists the operators of the file and, behind them, one for each piece that a delegate took; what
    lies between that one's inputs and outputs is in it.
    """
    listed = getattr(interpreter, "_get_ops_details", None)
    if listed is None:
        return {}, None, None
    operators = listed()
    taken = [each for each in operators if _is_delegate(each)]
    own = {each["index"]: each for each in operators if not _is_delegate(each)}
    maker = {int(value): index for index, each in own.items() for value in each["outputs"]}
    inside: set[int] = set()
    for each in taken:
        seen = {int(value) for value in each["inputs"]}
        waiting = [int(value) for value in each["outputs"]]
        while waiting:
            value = waiting.pop()
            if value in seen or value not in maker:
                continue
            seen.add(value)
            inside.add(maker[value])
            waiting += [int(source) for source in own[maker[value]]["inputs"]]
    outside = Counter(each["op_name"] for index, each in own.items() if index not in inside)
    counts = Counter(each["op_name"] for each in own.values())
    return dict(sorted(counts.items())), len(taken), dict(sorted(outside.items()))


def _is_delegate(operator: Any) -> bool:
    return "DELEGATE" in operator["op_name"].upper()


@contextlib.contextmanager
def _without_info() -> Iterator[None]:
    """The libraries print lines that begin with INFO past Python, to the process's own stderr; all others pass."""
    with _redirected:
        try:
            sys.stderr.flush()
            saved = os.dup(_STDERR)
        except (OSError, ValueError, AttributeError):  # a process without stderr
            yield
            return
        with tempfile.TemporaryFile() as kept:
            os.dup2(kept.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(saved, _STDERR)
                os.close(saved)
                kept.seek(0)
                os.write(_STDERR, b"".join(line for line in kept if not line.startswith(b"INFO:")))


def _shorten(message: str) -> str:
    text = " ".join(message.split()) or "it said nothing"
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"
