"""Folds a scale and a shift per output channel into the layer before.

    y = s ⊙ (W x + b) + t  =  (s ⊙ W) x + (s ⊙ b + t)

BatchNormalization has s = γ / √(σ² + ε) and t = β − s μ (Ioffe & Szegedy 2015, §3.1); Mul, Div, Add and Sub
by a constant are the same with s or t alone. Exact but for rounding: computed in float64, rounded once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import constant, taken, unique

Vector = npt.NDArray[np.float64]
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_AFFINE = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})


class _RefusalError(Exception):
    """Why a node stays; never leaves this file."""


@dataclass(frozen=True)
class Folded:
    """What was folded and what stayed.

    Attributes:
        count: nodes folded, by operator.
        refused: BatchNormalization node → why it stayed.
    """

    count: dict[str, int]
    refused: dict[str, str]


def scaled_weight(
    weight: Array, scale: Vector, op_type: str, group: int = 1, transposed: bool = False
) -> Vector:
    """Multiply each output channel of a weight.

    Args:
        weight: Conv [o, i/g, *k]; ConvTranspose [i, o/g, *k]; Gemm [i, o], transposed [o, i]; MatMul [i, o].
        scale: [o].
        op_type: whose weight it is.
        group: groups of a ConvTranspose.
        transposed: Gemm's transB.

    Returns:
        float64, shaped like `weight`.
    """
    wide = np.asarray(weight, dtype=np.float64)
    if op_type == "Conv" or (op_type == "Gemm" and transposed):
        return wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
    if op_type == "ConvTranspose":
        i, per_group, *kernel = wide.shape
        grouped = wide.reshape(group, i // group, per_group, *kernel)
        return (grouped * scale.reshape(group, 1, per_group, *[1] * len(kernel))).reshape(wide.shape)
    return wide * scale


def batchnorm_affine(
    gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[Vector, Vector]:
    """Scale and shift [c] of a BatchNormalization at inference, from its four vectors [c]."""
    g, b, m, v = (np.asarray(part, dtype=np.float64) for part in (gamma, beta, mean, variance))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = g / np.sqrt(v + epsilon)
    return scale, b - scale * m


def per_channel(array: Array, rank: int, axis: int, channels: int) -> Vector | None:
    """A constant as one number per channel, or None where it varies along another axis.

    Args:
        array: what a Mul or Add broadcasts against.
        rank: of the value on the other side.
        axis: its channel axis.
        channels: its length there.

    Returns:
        [channels], or None where the constant is no scale per channel or would widen the result.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for at, size in enumerate(shape) if at != axis) or shape[axis] not in {1, channels}:
        return None
    return np.broadcast_to(np.asarray(array, dtype=np.float64).reshape(-1), (channels,)).copy()


def fold_affine(model: ir.Model) -> Folded:
    """Fold every scale and shift of the main graph that can be folded, in place.

    A layer stays as it is where its weight is shared, computed or an output, or its result is read elsewhere.
    """
    count: dict[str, int] = {}
    refused: dict[str, str] = {}
    for node in list(
        model.graph
    ):  # in order, so a chain Conv → Mul → BatchNormalization collapses link by link
        if node.op_type not in _AFFINE or node.domain not in {"", "ai.onnx"}:
            continue
        try:
            for source in _sources(node):
                _fold_one(model, node, source)
                count[node.op_type] = count.get(node.op_type, 0) + 1
                break
            else:
                if node.op_type == "BatchNormalization":
                    raise _RefusalError("no Conv, ConvTranspose, Gemm or MatMul right before it")
        except _RefusalError as why:
            if node.op_type == "BatchNormalization":
                refused[node.name or node.outputs[0].name or ""] = str(why)
    return Folded(count, refused)


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Operands of a node that a layer, or a MatMul with its bias, computes."""
    operands = node.inputs[:1] if node.op_type == "BatchNormalization" else node.inputs
    for value in operands:
        producer = value.producer() if value is not None else None
        if value is not None and producer is not None and producer.domain in {"", "ai.onnx"}:
            biased = producer.op_type == "Add" and _bias_of_matmul(producer) is not None
            if (producer.op_type in _LAYERS or biased) and producer.graph is node.graph:
                yield value


def _bias_of_matmul(add: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The MatMul below an Add and the constant added, or None."""
    for one, other in ((0, 1), (1, 0)):
        below, bias = add.inputs[one], add.inputs[other]
        producer = below.producer() if below is not None else None
        if (
            producer is not None
            and producer.op_type == "MatMul"
            and bias is not None
            and constant(bias) is not None
        ):
            return producer, bias
    return None


def _own(value: ir.Value | None, what: str) -> ir.Value:
    """A float constant that only one node reads, so that it may be replaced."""
    if value is None or constant(value) is None:
        raise _RefusalError(f"{what} is not a constant")
    if value.is_graph_output() or len(value.uses()) != 1:
        raise _RefusalError(f"{what} {value.name!r} is shared")
    if value.const_value is None or not value.const_value.dtype.is_floating_point():
        raise _RefusalError(f"{what} is not a float")
    return value


def _fold_one(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    """Fold one node into the layer that computes `source`; raises before anything is changed."""
    producer = source.producer()
    if producer is None or source.is_graph_output() or len(source.uses()) != 1:
        raise _RefusalError("the layer's own result is read elsewhere")
    added = _bias_of_matmul(producer) if producer.op_type == "Add" else None
    layer = added[0] if added else producer
    if added and (layer.outputs[0].is_graph_output() or len(layer.outputs[0].uses()) != 1):
        raise _RefusalError("the layer's own result is read elsewhere")
    weight = _own(layer.inputs[1], "the weight")
    array = weight.const_value.numpy() if weight.const_value is not None else np.empty(0)
    channels, rank, axis = _geometry(layer, array)
    scale, shift = _affine(node, source, channels, rank, axis)
    if added:
        new_bias = _new_bias(added[1], scale, shift, channels)
    elif layer.op_type == "MatMul":
        if np.any(shift):
            raise _RefusalError("a MatMul has no bias to take the shift")
        new_bias = None
    else:
        new_bias = _layer_bias(layer, scale, shift, channels)
    group = layer.attributes.get_int("group", 1)
    transposed = bool(layer.attributes.get_int("transB", 0))
    new_weight = _rounded(scaled_weight(array, scale, layer.op_type, group, transposed), array.dtype)
    if np.any(scale != 1):
        _replace(weight, new_weight)
    if new_bias is not None:
        rounded = _rounded(new_bias, array.dtype)
        _set_bias(model, producer, added[1] if added else None, rounded)
    _absorb(node, producer)


def _geometry(layer: ir.Node, weight: Array) -> tuple[int, int, int]:
    """Channels, rank and channel axis of a layer's result."""
    if layer.op_type == "Conv":
        return weight.shape[0], weight.ndim, 1
    if layer.op_type == "ConvTranspose":
        return weight.shape[1] * layer.attributes.get_int("group", 1), weight.ndim, 1
    if layer.op_type == "Gemm":
        return weight.shape[0 if layer.attributes.get_int("transB", 0) else 1], 2, 1
    shape = layer.outputs[0].shape
    if weight.ndim != 2 or shape is None:
        raise _RefusalError("the rank of the MatMul's result is not known")
    return weight.shape[1], len(shape), len(shape) - 1


def _affine(node: ir.Node, source: ir.Value, channels: int, rank: int, axis: int) -> tuple[Vector, Vector]:
    """Scale and shift [channels] that a node applies to `source`."""
    if node.op_type == "BatchNormalization":
        if node.attributes.get_int("training_mode", 0) or not node.attributes.get_int("spatial", 1):
            raise _RefusalError("it is in training mode or not per channel")
        if axis != 1 or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise _RefusalError("its channels are not the layer's, or its statistics are read")
        parts = [part for value in node.inputs[1:5] if (part := constant(value)) is not None]
        if len(parts) != 4 or any(part.shape != (channels,) for part in parts):
            raise _RefusalError("its parameters are not constant")
        gamma, beta, mean, variance = parts
        return batchnorm_affine(gamma, beta, mean, variance, node.attributes.get_float("epsilon", 1e-5))
    first = node.inputs[0] is source
    array = constant(node.inputs[1] if first else node.inputs[0])
    numbers = None if array is None else per_channel(array, rank, axis, channels)
    if numbers is None or array is None or array.dtype.kind not in "fV":
        raise _RefusalError("the other operand is not a constant per channel")
    ones, none = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return numbers, none
    if node.op_type == "Add":
        return ones, numbers
    if node.op_type == "Sub":
        return (ones, -numbers) if first else (-ones, numbers)
    if not first or not numbers.all():
        raise _RefusalError("it divides by the layer's result or by zero")
    return 1 / numbers, none


def _new_bias(bias: ir.Value, scale: Vector, shift: Vector, channels: int) -> Vector:
    """Bias [channels] after scale and shift, for a MatMul's Add."""
    array = constant(bias)
    numbers = None if array is None else per_channel(array, 1, 0, channels)
    if numbers is None:
        raise _RefusalError("the bias is not one number per channel")
    return numbers * scale + shift


def _layer_bias(layer: ir.Node, scale: Vector, shift: Vector, channels: int) -> Vector | None:
    """Bias [channels] after scale and shift, or None where there was none and none is needed."""
    beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if bias is None:
        if layer.op_type == "Gemm" and beta != 1.0:
            raise _RefusalError("the Gemm has a beta without a bias")
        return shift if np.any(shift) else None
    array = constant(bias)
    numbers = None if array is None else per_channel(array, 2, 1, channels)
    if numbers is None or beta == 0:
        raise _RefusalError("the bias is not a constant per channel")
    return numbers * scale + shift / beta


def _rounded(array: Vector, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = array.astype(dtype)
    if not np.isfinite(result).all():
        raise _RefusalError("the folded numbers do not fit the type")
    return result


def _replace(value: ir.Value, array: Array) -> None:
    """Give an initializer new numbers; the old tensor may be shared with other models and is not touched."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def _set_bias(model: ir.Model, layer: ir.Node, own: ir.Value | None, bias: Array) -> None:
    """Write a bias: in place where only this layer reads the old one, else as a new initializer.

    Args:
        model: owns the layer.
        layer: Conv, ConvTranspose or Gemm; or the Add after a MatMul.
        own: the constant of that Add.
        bias: [channels].
    """
    old = own if own is not None else (layer.inputs[2] if len(layer.inputs) > 2 else None)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        _replace(old, bias)
        return
    base = layer.inputs[1].name if own is None and layer.inputs[1] is not None else layer.name
    name = unique(f"{base or 'layer'}_bias", taken(model))
    kind = ir.TensorType(ir.DataType.from_numpy(bias.dtype))
    value = ir.Value(name=name, shape=ir.Shape(bias.shape), type=kind)
    value.const_value = ir.tensor(bias, name=name)
    model.graph.register_initializer(value)
    if own is None and len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2 if own is None else list(layer.inputs).index(own), value)


def _absorb(node: ir.Node, producer: ir.Node) -> None:
    """Remove a node; what computed its operand now computes its result, under the result's name."""
    result, source = node.outputs[0], producer.outputs[0]
    name, shape, kind = result.name, result.shape, result.type
    ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    source.name = name
    source.shape = shape if shape is not None else source.shape
    source.type = kind if kind is not None else source.type
