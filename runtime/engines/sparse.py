"""Sparse multi-layer perceptrons on the CPU: `.npz` files, run by SciPy's product of a sparse matrix.

A layer computes y = f(W x + b). W [outputs, inputs] is kept compressed by rows (CSR), so that each output gathers its
own inputs, and nothing is done for a weight that is zero. A dense engine reads all of them: 784-4000-1000-4000-10 with
3 % of its weights took 230 µs a row here, and 1770 µs in onnxruntime (one thread of an x86 server).

A layer that is full enough is run as the matrix that it is. Zeros in x are not looked for: to pick the columns of the
other half took longer than to multiply by them (567 µs).

The file is what `numpy.savez` writes, nothing compressed (what it takes in memory is then what it takes on disk):

| array | type, shape | what |
|---|---|---|
| version | int64 [] | 1 |
| input, output | text [] | their names |
| input_shape | int64 [rank − 1] | of one row; flattened it is the first layer's input |
| shapes | int64 [layers, 2] | outputs, inputs |
| activations | text [layers] | of `ACTIVATIONS`: ONNX operators, or empty |
| alphas | float32 [layers] | ε of ThresholdedRelu, slope of LeakyRelu, α of Elu; else 0 |
| data*k* | float32 [n] | weights of layer *k* = 0, 1, …, row after row |
| indices*k* | uint16 or int32 [n] | their inputs |
| indptr*k* | int32 [outputs + 1] | where each row begins in them |
| bias*k* | float32 [outputs] | |
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepress.runtime.engines.base import Array, Feeds, Kernel, Port
from edgepress.runtime.record import EngineError

VERSION = 1
FULL = 0.2
"""Share of weights that are not zero from which on a layer is run dense."""

_MOST_INPUTS = 2**31 - 1
_TYPES = {
    "version": ("<i8",),
    "input": ("<U",),
    "output": ("<U",),
    "input_shape": ("<i8",),
    "shapes": ("<i8",),
    "activations": ("<U",),
    "alphas": ("<f4",),
    "data": ("<f4",),
    "indices": ("<u2", "<i4"),
    "indptr": ("<i4",),
    "bias": ("<f4",),
}
"""Types that each array may have; text of any length."""


def _relu(z: Array, alpha: float) -> Array:
    return np.maximum(z, 0, out=z)


def _thresholded_relu(z: Array, alpha: float) -> Array:
    np.copyto(z, 0, where=~(z > alpha))
    return z


def _leaky_relu(z: Array, alpha: float) -> Array:
    np.multiply(z, np.float32(alpha), out=z, where=z < 0)
    return z


def _elu(z: Array, alpha: float) -> Array:
    return np.where(z < 0, np.float32(alpha) * np.expm1(np.minimum(z, 0)), z)


def _sigmoid(z: Array, alpha: float) -> Array:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * z) + np.float32(1))  # exp(−z) would overflow


def _softmax(z: Array, alpha: float) -> Array:
    z = np.exp(z - z.max(axis=0))
    z /= z.sum(axis=0)
    return z


def _log_softmax(z: Array, alpha: float) -> Array:
    z = z - z.max(axis=0)
    z -= np.log(np.exp(z).sum(axis=0))
    return z


ACTIVATIONS: dict[str, Callable[[Array, float], Array]] = {
    "": lambda z, alpha: z,
    "Relu": _relu,
    "ThresholdedRelu": _thresholded_relu,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Sigmoid": _sigmoid,
    "Tanh": lambda z, alpha: np.tanh(z, out=z),
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
}
"""Name → function of z [outputs] or [outputs, rows], which may be overwritten, and α."""


class Layer(NamedTuple):
    """One layer, ready to run.

    Attributes:
        weights: [outputs, inputs], sparse (`scipy.sparse.csr_matrix`) or dense.
        bias: [outputs].
        activation: of `ACTIVATIONS`.
        alpha: its parameter.
    """

    weights: Any
    bias: Array
    activation: Callable[[Array, float], Array]
    alpha: float


class SparseEngine:
    """What runs sparse perceptrons, on one thread.

    Attributes:
        name: `sparse`.
        version: SciPy's release.
    """

    def __init__(self) -> None:
        """Find SciPy.

        Raises:
            EngineError: it is not installed.
        """
        try:
            import scipy.sparse
        except ImportError as error:
            raise EngineError(
                f"There is nothing here that runs sparse .npz files: SciPy does not load ({error}).",
                "Install it with: python3 -m pip install scipy",
            ) from error
        self.name = "sparse"
        self.version = f"scipy {scipy.__version__}"

    def load(self, model: bytes | PathLike[str], threads: int = 1) -> SparseRunner:
        """Load a model.

        Args:
            model: the content of a file, or its path.
            threads: is not used: there is one.

        Raises:
            EngineError: the file cannot be read, or is damaged.
        """
        where = "the model" if isinstance(model, bytes) else fspath(model)
        try:
            if isinstance(model, bytes):
                arrays = _arrays(io.BytesIO(model), len(model))
            else:
                with Path(model).open("rb") as file:
                    arrays = _arrays(file, file.seek(0, io.SEEK_END))
            return SparseRunner(arrays, where)
        except OSError as error:
            hint = "Give the path of an .npz file that edgepress wrote."
            raise EngineError(f"{where}: {error.strerror or error}", hint) from error
        except _DamagedError as error:
            hint = "Write it again: it is made with model.onnx by compress."
            raise EngineError(f"{where} is no sparse model, or damaged: {error}.", hint) from error


class SparseRunner:
    """A loaded perceptron. It keeps nothing between runs, so threads may share it.

    Attributes:
        inputs: the one input; any number of rows.
        outputs: the one output, [rows, outputs].
        layers: first to last.
    """

    def __init__(self, arrays: dict[str, Array], where: str) -> None:
        """From a file's arrays; raises `_DamagedError` where they do not fit together."""
        self._where = where
        self._row, self.layers = _checked(arrays)
        outputs = int(arrays["shapes"][-1, 0])
        self.inputs = (Port(str(arrays["input"]), "float32", (None, *self._row)),)
        self.outputs = (Port(str(arrays["output"]), "float32", (None, outputs)),)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Products of weights with what comes in: all of it is float32, in files and on the way."""
        dense = {isinstance(each.weights, np.ndarray) for each in self.layers}
        return tuple(
            Kernel("product" if each else "sparse product", ("float32", "float32")) for each in dense
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of the input."""
        return (self.inputs[0].name,)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The name of the output."""
        return (self.outputs[0].name,)

    def __call__(self, feeds: Feeds, *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: input name → float32 [rows, …].
            outputs: names of the outputs wanted; None means all.

        Returns:
            Output name → float32 [rows, outputs].

        Raises:
            EngineError: the feeds do not fit.
        """
        names = list(self.output_names if outputs is None else outputs)
        for name in names:
            if name not in self.output_names:
                raise EngineError(f"the sparse engine cannot run {self._where}: no output {name!r}")
        return dict.fromkeys(names, self._run(self._fed(feeds))) if names else {}

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these feeds, for timing."""
        return partial(self._run, self._fed(feeds))

    def _fed(self, feeds: Feeds) -> Array:
        """The input; raises `EngineError` where it does not fit."""
        failing = f"the sparse engine cannot run {self._where}"
        if set(feeds) != set(self.input_names):
            raise EngineError(f"{failing}: the input is {self.input_names[0]!r}, not {list(feeds)}")
        x = np.asarray(feeds[self.input_names[0]])
        if x.dtype != np.float32 or x.shape[1:] != self._row or not x.ndim:
            wanted = ["rows", *self._row]
            raise EngineError(f"{failing}: it takes float32 {wanted}, not {x.dtype} {list(x.shape)}")
        return x

    def _run(self, x: Array) -> Array:
        """Rows in, rows out; between layers features come first, as SciPy's product wants them: [features, rows]."""
        rows = len(x)
        if rows == 1:
            y = x.reshape(-1)
            for layer in self.layers:
                y = layer.weights @ y
                y += layer.bias
                y = layer.activation(y, layer.alpha)
            return y[None]
        y = np.ascontiguousarray(x.reshape(rows, math.prod(self._row)).T)
        for layer in self.layers:
            y = layer.weights @ y
            y += layer.bias[:, None]
            y = layer.activation(y, layer.alpha)
        return np.ascontiguousarray(y.T)


class _DamagedError(Exception):
    """Why a file is refused."""


_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError)


def _arrays(file: Any, size: int) -> dict[str, Array]:
    """The arrays of an archive of `size` bytes; nothing is allocated that the file does not hold."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:
                raise _DamagedError("its arrays are compressed, or larger than the file")
            return {
                member.filename[: -len(".npy")]: _array(member.filename, archive.read(member))
                for member in members
                if member.filename.endswith(".npy")
            }
    except (*_UNREADABLE, tokenize.TokenError, MemoryError) as error:  # the last two by numpy, of headers
        raise _DamagedError(str(error)) from error


def _array(name: str, content: bytes) -> Array:
    """One array of a type that is known for its name."""
    stream = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(stream)
    if major not in (1, 2):
        raise _DamagedError(f"{name} is of version {major} of the format")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    stem = name[: -len(".npy")].rstrip("0123456789")
    if not any(dtype.str == kind or (kind == "<U" and dtype.kind == "U") for kind in _TYPES.get(stem, ())):
        raise _DamagedError(f"{name} is not expected, or not as {dtype}")
    at = stream.tell()
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(content) - at:
        raise _DamagedError(f"{name} says {list(shape)} and holds {len(content) - at} bytes")
    if not dtype.itemsize:
        return np.zeros(shape if math.prod(shape) < _MOST_INPUTS else 0, dtype)
    return np.frombuffer(content, dtype, offset=at).reshape(shape, order="F" if by_columns else "C")


def _checked(arrays: dict[str, Array]) -> tuple[tuple[int, ...], tuple[Layer, ...]]:
    """Shape of a row, and the layers, from arrays that fit together."""
    for name in ("version", "input", "output", "input_shape", "shapes", "activations", "alphas"):
        if name not in arrays:
            raise _DamagedError(f"there is no {name!r}")
    if arrays["version"].shape or int(arrays["version"]) != VERSION:
        raise _DamagedError(f"this is not version {VERSION} of the format")
    shapes = arrays["shapes"]
    if shapes.ndim != 2 or shapes.shape[1] != 2 or not len(shapes):
        raise _DamagedError("shapes is not [layers, 2]")
    count = len(shapes)
    if arrays["input"].shape or arrays["output"].shape:
        raise _DamagedError("there is more than one input or output")
    if arrays["activations"].shape != (count,) or arrays["alphas"].shape != (count,):
        raise _DamagedError("there is not one activation a layer")
    if shapes.min() < 1 or shapes.max() > _MOST_INPUTS or (shapes[1:, 1] != shapes[:-1, 0]).any():
        raise _DamagedError("the shapes of its layers do not follow from each other")
    row = tuple(int(length) for length in arrays["input_shape"].reshape(-1))
    if any(length < 1 for length in row) or math.prod(row) != int(shapes[0, 1]):
        raise _DamagedError(f"a row is {list(row)}, the first layer takes {int(shapes[0, 1])}")
    return row, tuple(_layer(arrays, place) for place in range(count))


def _layer(arrays: dict[str, Array], place: int) -> Layer:
    """Layer number `place`, its indices within its shape."""
    from scipy.sparse import csr_matrix

    try:
        data, indices, indptr, bias = (arrays[f"{n}{place}"] for n in ("data", "indices", "indptr", "bias"))
    except KeyError as error:
        raise _DamagedError(f"there is no {error}") from error
    outputs, inputs = (int(length) for length in arrays["shapes"][place])
    name, alpha = str(arrays["activations"][place]), float(arrays["alphas"][place])
    if name not in ACTIVATIONS or not math.isfinite(alpha):
        raise _DamagedError(f"layer {place} has the unknown activation {name[:40]!r} with {alpha}")
    if data.ndim != 1 or indices.shape != data.shape:
        raise _DamagedError(f"layer {place} has {data.shape} weights and {indices.shape} indices")
    if indptr.shape != (outputs + 1,) or bias.shape != (outputs,):
        raise _DamagedError(
            f"layer {place} has {bias.shape} biases and {indptr.shape} rows for {outputs} outputs"
        )
    if indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise _DamagedError(f"rows of layer {place} do not follow each other")
    if len(data) and (int(indices.min()) < 0 or int(indices.max()) >= inputs):
        raise _DamagedError(f"indices of layer {place} lie outside its {inputs} inputs")
    weights = csr_matrix((data, indices.astype(np.int32), indptr), shape=(outputs, inputs))
    full = len(data) >= FULL * outputs * inputs
    return Layer(weights.toarray() if full else weights, bias, ACTIVATIONS[name], alpha)
