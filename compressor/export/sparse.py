"""A multi-layer perceptron as the `.npz` file that the sparse engine runs; the format stands in its module.

    x → [Flatten | Reshape] → (Gemm | MatMul [+ Add] → activation) … → y

Weights that are zero are not written, so the file and its runs shrink with every pruned connection. Anything else than
such a chain is refused by the name of the node where it stops.
"""

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import scipy.sparse

from edgepress.compressor.errors import ModelError, OutputError
from edgepress.compressor.normalize import normalize
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import attribute, constant, site_name, site_of
from edgepress.compressor.specs import dims

VERSION = 1
NO_ALPHA = 0.0
ALPHAS = {"ThresholdedRelu": 1.0, "LeakyRelu": 0.01, "Elu": 1.0}
"""Activations with a parameter, and what it is where a model does not tell (ONNX)."""
ACTIVATIONS = ("", "Relu", *ALPHAS, "Sigmoid", "Tanh", "Softmax", "LogSoftmax")
"""Those that the engine has, named as ONNX's operators; empty: none."""
_SHAPING = ("Flatten", "Reshape")
_REMEDY = "Only a chain of Gemm or MatMul and activations can be run sparse: {}."


@dataclass(frozen=True)
class SparseLayer:
    """One layer: y = f(x W + b).

    Attributes:
        weights: W [inputs, outputs], any format of `scipy.sparse`; zeros that it stores are left out.
        bias: b [outputs].
        activation: f, of `ACTIVATIONS`.
        alpha: ε of ThresholdedRelu, slope of LeakyRelu, α of Elu.
    """

    weights: scipy.sparse.spmatrix | scipy.sparse.sparray
    bias: Array
    activation: str = ""
    alpha: float = NO_ALPHA


@dataclass(frozen=True)
class SparseNet:
    """A perceptron.

    Attributes:
        layers: first to last.
        input_name: of its input.
        output_name: of its output.
        input_shape: of one row of the input; empty: as many numbers as the first layer takes.
    """

    layers: tuple[SparseLayer, ...]
    input_name: str = "input"
    output_name: str = "output"
    input_shape: tuple[int, ...] = field(default=())

    @property
    def weights(self) -> int:
        """How many weights are not zero."""
        return sum(int(layer.weights.count_nonzero()) for layer in self.layers)

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return float(self.weights / sum(math.prod(layer.weights.shape) for layer in self.layers))


def write_sparse(net: SparseNet, path: Path) -> None:
    """Write a perceptron to a file.

    Args:
        net: at least one layer, each with as many inputs as the one before has outputs.
        path: an .npz file, overwritten.

    Raises:
        ValueError: the layers do not fit each other.
        OutputError: the file cannot be written.
    """
    content = to_bytes(net)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.", "Name another file.") from error


def to_bytes(net: SparseNet) -> bytes:
    """The file's content; same perceptron, same bytes. Raises `ValueError` as `write_sparse` does."""
    matrices = [_by_outputs(layer) for layer in net.layers]
    shapes = np.array([matrix.shape for matrix in matrices], np.int64)  # [layers, (outputs, inputs)]
    row = net.input_shape or (int(shapes[0, 1]),)
    if (shapes[1:, 1] != shapes[:-1, 0]).any() or math.prod(row) != shapes[0, 1]:
        raise ValueError(f"layers of shapes {shapes.tolist()} (outputs, inputs) for rows {row} make no net")
    arrays: dict[str, Array] = {
        "version": np.array(VERSION, np.int64),
        "input": np.array(net.input_name),
        "output": np.array(net.output_name),
        "input_shape": np.array(row, np.int64),
        "shapes": shapes,
        "activations": np.array([layer.activation for layer in net.layers]),
        "alphas": np.array([layer.alpha for layer in net.layers], np.float32),
    }
    for place, (layer, matrix) in enumerate(zip(net.layers, matrices, strict=True)):
        narrow = np.uint16 if matrix.shape[1] <= np.iinfo(np.uint16).max + 1 else np.int32
        arrays[f"data{place}"] = matrix.data
        arrays[f"indices{place}"] = matrix.indices.astype(narrow)
        arrays[f"indptr{place}"] = matrix.indptr.astype(np.int32)
        arrays[f"bias{place}"] = np.asarray(layer.bias, np.float32)
    held = {
        name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()
    }  # as the engine reads it
    buffer = io.BytesIO()
    np.savez(buffer, **held)  # type: ignore[arg-type]  # no name is `allow_pickle`
    return buffer.getvalue()


def _by_outputs(layer: SparseLayer) -> scipy.sparse.csr_matrix:
    """W transposed, [outputs, inputs], by rows, its indices in order and no zeros stored."""
    matrix = scipy.sparse.csr_matrix(layer.weights.T, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if layer.activation not in ACTIVATIONS or np.shape(layer.bias) != (matrix.shape[0],):
        raise ValueError(f"bias {np.shape(layer.bias)}, activation {layer.activation!r} for {matrix.shape}")
    return matrix


def from_model(model: ir.Model) -> SparseNet:
    """The perceptron that a model is.

    Args:
        model: any; it is not changed.

    Raises:
        ModelError: it is none; names the node where it stops to be one.
    """
    graph = normalize(model).model.graph
    fed = [value for value in graph.inputs if not value.is_initializer()]
    if len(fed) != 1 or len(graph.outputs) != 1:
        raise _refusal(f"this model has {len(fed)} inputs and {len(graph.outputs)} outputs")
    if fed[0].dtype != ir.DataType.FLOAT:
        raise _refusal(f"input {fed[0].name!r} is of type {fed[0].dtype}")
    layers: list[SparseLayer] = []
    value = fed[0]
    while value is not graph.outputs[0]:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            raise _refusal(f"{len(uses)} nodes read {value.name!r}")
        _take(uses[0].node, value, layers)
        value = uses[0].node.outputs[0]
    if not layers:
        raise _refusal("this model has no layer")
    return SparseNet(tuple(layers), fed[0].name or "", value.name or "", _row(fed[0], layers[0]))


def _take(node: ir.Node, value: ir.Value, layers: list[SparseLayer]) -> None:
    """Add what a node does to `value` to the layers; raises `ModelError` where that is nothing for a perceptron."""
    name, kind = site_name(node), node.op_type
    last = layers[-1] if layers else None
    known = node.domain in ("", "ai.onnx")
    if known and kind in _SHAPING and last is None and _flattens(node, value):
        return
    if known and kind in ("Gemm", "MatMul"):
        layers.append(_layer(node, value))
    elif known and kind == "Add" and last is not None and not last.activation:
        other = constant(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
        outputs = last.weights.shape[1]
        if other is None or other.size not in (1, outputs) or other.size != math.prod(other.shape[-1:]):
            raise _refusal(f"Add {name!r} adds no constant to each output")
        layers[-1] = replace(last, bias=last.bias + np.float32(other.reshape(-1)))
    elif known and kind in ACTIVATIONS and last is not None and not last.activation:
        if kind in ("Softmax", "LogSoftmax") and attribute(node, "axis", -1) not in (-1, 1):
            raise _refusal(f"{kind} {name!r} is over the rows")
        alpha = attribute(node, "alpha", ALPHAS.get(kind, NO_ALPHA))
        layers[-1] = replace(last, activation=kind, alpha=float(alpha) if isinstance(alpha, float) else 0.0)
    else:
        raise _refusal(f"{kind} {name!r} is none of these, or not where it could be")


def _layer(node: ir.Node, value: ir.Value) -> SparseLayer:
    """A layer without its activation."""
    name = site_name(node)
    site = site_of(node)
    if site is None or site.x is not value or site.weight.dtype != np.float32:
        raise _refusal(f"{node.op_type} {name!r} has no constant weights in single precision")
    if len(dims(value) or ()) != 2:
        raise _refusal(f"{node.op_type} {name!r} does not read rows of numbers")
    bias = np.zeros(site.outputs, np.float32) if site.bias_index is None else site.bias()
    if bias is None:
        raise _refusal(f"{node.op_type} {name!r} has no constant bias")
    return SparseLayer(scipy.sparse.csr_matrix(site.matrix().T), bias)


def _row(value: ir.Value, first: SparseLayer) -> tuple[int, ...]:
    """Shape of one row of the input."""
    said = dims(value) or ()
    row = tuple(size for size in said[1:] if isinstance(size, int))
    return row if len(row) == len(said) - 1 else (int(first.weights.shape[0]),)


def _flattens(node: ir.Node, value: ir.Value) -> bool:
    """Whether all that a node does is to make one dimension of those behind the rows."""
    before, after = dims(value) or (), dims(node.outputs[0]) or ()
    fixed = [size for size in before[1:] if isinstance(size, int)]
    return len(after) == 2 and len(fixed) == len(before) - 1 and after[1] == math.prod(fixed)


def _refusal(why: str) -> ModelError:
    return ModelError(_REMEDY.format(why), "Use model.onnx, which runs everywhere.")
