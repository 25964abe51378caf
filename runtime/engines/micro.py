"""TFLite files by TensorFlow Lite for Microcontrollers (tflite-micro): the kernels that firmware is linked with.

Its Python package runs the reference kernels on this machine, in an arena of a given size, as a microcontroller does.
What the arena must hold is thus known to the byte: activations at their peak, and what the interpreter keeps of
tensors and nodes. The latter has 64-bit pointers here and 32-bit ones there, so a device takes somewhat less; kernels
made for one processor (CMSIS-NN) take buffers of their own on top.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.metadata
import os
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.runtime.engines import microfile
from edgepress.runtime.engines.base import Array, Feeds, Port
from edgepress.runtime.engines.border import Border, said_by
from edgepress.runtime.record import EngineError

NAME = "tflite_micro"
INSTALL = (
    'Install it with: pip install "edgepress[micro]" (there are wheels for Linux on x86-64 with Python 3.11).'
)

_LARGEST_ARENA = 256 << 20
_TOTAL = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_MESSAGE_LIMIT = 300
_STDERR = 2
_redirected = threading.Lock()


@dataclass(frozen=True)
class Missing:
    """An operator that the runtime has no kernel for.

    Attributes:
        kind: as TFLite calls it.
        output: name of its first result, which is the ONNX model's where edgepress wrote the file.
    """

    kind: str
    output: str


@dataclass(frozen=True)
class Footprint:
    """What a file takes of a microcontroller.

    Attributes:
        flash_bytes: of the file; the program around it, kernels included, is not in it.
        arena_bytes: least arena in which it runs; None where it does not run.
        activation_bytes: of those, what the memory planner lays out over each other; the rest is there all the time.
        missing: operators without a kernel.
        floats: operators that compute in floats, kind → count.
        refusal: why it does not run where no operator is missing; else empty.
    """

    flash_bytes: int
    arena_bytes: int | None = None
    activation_bytes: int | None = None
    missing: tuple[Missing, ...] = ()
    floats: Mapping[str, int] | None = None
    refusal: str = ""


class MicroEngine:
    """The interpreter for microcontrollers.

    Attributes:
        name: of the engine.
        version: its release.
        as_onnx: see `LiteRTEngine`.
    """

    name = NAME

    def __init__(self, *, as_onnx: bool = False) -> None:
        """Find the interpreter.

        Raises:
            EngineError: it is not installed.
        """
        _runtime()
        self.version = importlib.metadata.version("tflite-micro")
        self.as_onnx = as_onnx

    def load(self, model: bytes | PathLike[str], threads: int = 1) -> MicroRunner:
        """Load a model, in an arena that is large enough.

        Args:
            model: the content of a .tflite file, or its path.
            threads: there is one.

        Raises:
            EngineError: the file cannot be read, operators are missing, or the interpreter refuses it.
        """
        where = "the model" if isinstance(model, bytes) else fspath(model)
        content = _content(model, where)
        file = _parsed(content, where)
        if missing := _missing(file):
            kinds = ", ".join(sorted({each.kind for each in missing}))
            raise EngineError(f"{NAME} cannot run {where}: it has no {kinds}")
        try:
            interpreter, _ = _loaded(content)
        except _RefusedError as error:
            raise EngineError(f"{NAME} cannot load {where}: {error}") from error
        return MicroRunner(interpreter, file, f"{NAME} cannot run {where}", content, self.as_onnx)


class MicroRunner:
    """A loaded file; any number of rows are run one by one.

    Attributes:
        delegate: there is none.
        partitions: likewise.
        outside: likewise.
        operators: kind → count.
    """

    delegate = "none"
    partitions = 0

    def __init__(self, interpreter: Any, file: Any, failing: str, content: bytes, as_onnx: bool) -> None:
        self._interpreter, self._failing = interpreter, failing
        said = said_by(content) if as_onnx else {}
        ins, outs = microfile.border_names(file)
        self._ins = Border(_ports(ins, interpreter.get_input_details), said, "inputs")
        self._outs = Border(_ports(outs, interpreter.get_output_details), said, "outputs")
        self.operators = dict(sorted(Counter(kind for kind, _ in microfile.operators(file)).items()))
        self.outside: dict[str, int] = {}

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs, in the file's order."""
        return self._ins.described

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs, in the file's order."""
        return self._outs.described

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once a row; see `LiteRTRunner`.

        Raises:
            EngineError: the feeds do not fit, or the interpreter fails.
        """
        names = list(self._outs.ports if outputs is None else outputs)
        if unknown := [name for name in names if name not in self._outs.ports]:
            raise EngineError(f"{self._failing}: no output {unknown[0]!r}")
        if wrong := set(feeds) ^ set(self._ins.ports):
            raise EngineError(f"{self._failing}: inputs are {list(self._ins.ports)}, not {sorted(wrong)}")
        rows = {np.shape(array)[:1] for array in feeds.values()}
        one = {port.shape[:1] for port in self.inputs}
        if one != {(1,)} or len(rows) != 1 or rows == {(1,)}:
            return self._run(feeds, names)
        count = len(next(iter(feeds.values())))
        parts = [self._run({k: v[row : row + 1] for k, v in feeds.items()}, names) for row in range(count)]
        if not parts:
            raise EngineError(f"{self._failing}: there are no rows")
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these feeds; its time says nothing about a microcontroller."""
        return lambda: self(feeds)

    def _run(self, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        arrays = {name: self._ins.taken(name, np.asarray(array)) for name, array in feeds.items()}
        for name, array in arrays.items():
            self._ins.check(name, array, self._failing)
        try:
            for name, array in arrays.items():
                self._interpreter.set_input(array, self._ins.ports[name]["index"])
            self._interpreter.invoke()
            found = {
                name: np.array(self._interpreter.get_output(self._outs.ports[name]["index"]))
                for name in names
            }
        except Exception as error:
            raise EngineError(f"{self._failing}: {_shorten(str(error))}") from error
        return {name: self._outs.given_back(name, found[name]) for name in names}


def footprint(model: bytes | PathLike[str]) -> Footprint:
    """What a file takes; a damaged one may end the process, so ask in one of its own (`apart.alone`).

    Args:
        model: the content of a .tflite file, or its path.

    Raises:
        EngineError: the package is missing, or the file cannot be read.
    """
    where = "the model" if isinstance(model, bytes) else fspath(model)
    content = _content(model, where)
    file = _parsed(content, where)
    floats = dict(sorted(microfile.floats(file).items()))
    if missing := _missing(file):
        return Footprint(len(content), missing=missing, floats=floats)
    try:
        _, said = _loaded(content)
        parts = {name: int(size) for name, size in _TOTAL.findall(said)}
        total = _least(content, parts["total"])
    except _RefusedError as error:
        return Footprint(len(content), floats=floats, refusal=str(error))
    return Footprint(len(content), total, parts["head"], floats=floats)


class _RefusedError(Exception):
    """The interpreter does not take a file."""


def _runtime() -> Any:
    """The package's module with the interpreter."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise EngineError(
            f"There is nothing here that runs files as microcontrollers do ({error}).", INSTALL
        ) from error
    return runtime


def _content(model: bytes | PathLike[str], where: str) -> bytes:
    try:
        return model if isinstance(model, bytes) else Path(model).read_bytes()
    except OSError as error:
        raise EngineError(f"{where}: {error.strerror}", "Give the path of a .tflite file.") from error


def _parsed(content: bytes, where: str) -> Any:
    """The file as the schema's objects."""
    _runtime()
    if content[4:8] != b"TFL3":
        raise EngineError(
            f"{where} is no TFLite file.", "Write one with: compress export MODEL --format tflite"
        )
    try:
        schema = microfile.schema()
        return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    except Exception as error:  # whatever a damaged file makes of offsets
        raise EngineError(f"{where} is damaged: {_shorten(str(error))}") from error


def _loaded(content: bytes, arena: int = _LARGEST_ARENA) -> tuple[Any, str]:
    """An interpreter that has run once on zeros, and what it said of its allocations.

    Args:
        content: of the file.
        arena: bytes; those that are not used are never touched.

    Raises:
        _RefusedError: with what it said.
    """
    with _told() as told:
        try:
            interpreter = _runtime().Interpreter.from_bytes(content, arena_size=arena)
            interpreter.invoke()
            interpreter.print_allocations()
            why = ""
        except Exception as error:
            why = str(error)
    if not why:
        interpreter.reset()
        return interpreter, told[0]
    lines = [line for line in told[0].splitlines() if line.strip()]
    raise _RefusedError(_shorten("; ".join(lines) or why))


def _least(content: bytes, recorded: int) -> int:
    """The smallest arena that is taken: what was recorded, or more where loading needs more than running."""

    def fits(arena: int) -> bool:
        # An interpreter that found its arena too small leaves a heap behind that ends the process sooner or later.
        child = os.fork()
        if not child:
            faulthandler.disable()
            code = 1
            try:
                _loaded(content, arena)
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    low, high = recorded - 1, recorded
    while not fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _missing(file: Any) -> tuple[Missing, ...]:
    """Operators that the interpreter has no kernel for, in the file's order."""
    found = microfile.operators(file)
    custom = microfile.schema().BuiltinOperator.CUSTOM
    codes = dict(zip((kind for kind, _ in found), microfile.codes(file)))
    lacking = {
        kind
        for kind, code in codes.items()
        if not _known("CUSTOM" if code.builtinCode == custom else kind, code)
    }
    return tuple(Missing(kind, output) for kind, output in found if kind in lacking)


def _known(kind: str, code: Any) -> bool:
    """Whether there is a kernel for an operator.

    The interpreter looks for all kernels in the file's order before it prepares the first, and names the one that it
    does not find: an operator that nobody has, behind the one in question, keeps anything from being run.

    Args:
        kind: of the operator, `CUSTOM` for all that are none of TFLite's own.
        code: as the file has it.
    """
    import flatbuffers

    schema = microfile.schema()
    nobodys = schema.OperatorCodeT()
    nobodys.builtinCode = nobodys.deprecatedBuiltinCode = (
        schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
    )
    nobodys.version = 1
    steps = []
    for index in range(2):
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs, step.outputs = index, [], []
        steps.append(step)
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], steps
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code, nobodys], [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    try:
        _loaded(bytes(builder.Output()), 1 << 16)
    except _RefusedError as error:
        return f"op code {kind}" not in str(error)
    return True


def _ports(names: Sequence[str], details: Callable[[int], Mapping[str, Any]]) -> dict[str, Any]:
    """Descriptions as `Border` takes them."""
    found = {}
    for index, name in enumerate(names):
        said = details(index)
        grid = said["quantization_parameters"]
        scale = (float(grid["scales"][0]), int(grid["zero_points"][0])) if len(grid["scales"]) else (0.0, 0)
        found[name] = {
            "index": index,
            "dtype": said["dtype"],
            "shape": [int(size) for size in said["shape"]],
            "quantization": scale,
        }
    return found


@contextlib.contextmanager
def _told() -> Iterator[list[str]]:
    """What the library prints to the process's stderr meanwhile, past Python; kept from the terminal."""
    told = [""]
    with _redirected, tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        saved = os.dup(_STDERR)
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield told
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            kept.seek(0)
            told[0] = kept.read().decode("utf-8", "replace")


def _shorten(message: str) -> str:
    text = " ".join(message.split()) or "it said nothing"
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"
