"""Small models of one kind of kernel each, for timing: n equal layers, so that a difference of two is the layers alone.

Layers with weights hang side by side on one input, since a row of them could only be square. What each gives is cut
down to one position at once (by a MaxPool that reads no more, or a Slice), so that nothing but the layers grows with n.
Operators without weights form a row. All read one number and spread it themselves: models of any sizes can be timed on
the same feeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "x"
"""The input's name: one number, [1]."""

OPSET, IR_VERSION = 17, 8
"""As old as any runtime that runs the results."""

TAPS = 9
"""Of every kernel that has some."""

_SCALE, _WEIGHT_SCALE = 0.05, 0.01


@dataclass
class _Graph:
    """A graph under construction."""

    activation: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def grid(self) -> tuple[str, str]:
        """Scale and zero point of activations (values do not matter here)."""
        zero = np.array(128, np.uint8) if self.activation == "uint8" else np.array(0, np.int8)
        return self.constant(np.array(_SCALE, np.float32)), self.constant(zero)

    def quantized(self, value: str) -> str:
        return self.node("QuantizeLinear", [value, *self.grid()])

    def restored(self, value: str) -> str:
        return self.node("DequantizeLinear", [value, *self.grid()])

    def weights(self, shape: Sequence[int], *, integer: bool) -> list[str]:
        """A weight [outputs, …] and a bias, as they stand in the file."""
        if not integer:
            values = self.rng.standard_normal(shape, np.float32)
            return [self.constant(values), self.constant(values.reshape(shape[0], -1)[:, 0].copy())]
        codes = self.rng.integers(-127, 128, shape, np.int8)
        scale = self.constant(np.full(shape[0], _WEIGHT_SCALE, np.float32))
        zero = self.constant(np.zeros(shape[0], np.int8))
        weight = self.node("DequantizeLinear", [self.constant(codes), scale, zero], axis=0)
        bias_scale = self.constant(np.full(shape[0], _WEIGHT_SCALE * _SCALE, np.float32))
        bias_zero = self.constant(np.zeros(shape[0], np.int32))
        bias = self.constant(np.ones(shape[0], np.int32))
        return [weight, self.node("DequantizeLinear", [bias, bias_scale, bias_zero], axis=0)]

    def spread(self, shape: Sequence[int]) -> str:
        """The input, repeated to this shape."""
        return self.node("Expand", [INPUT, self.constant(np.array(shape, np.int64))])

    def model(self, output: str, kind: int) -> bytes:
        x = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1])
        y = helper.make_tensor_value_info(output, kind, None)
        graph = helper.make_graph(self.nodes, "kernel", [x], [y], self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        text: bytes = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
        return text


def layers(
    kind: str, activation: str, inputs: int, outputs: int, positions: int, count: int, *, integer: bool
) -> bytes:
    """Equal layers with weights of their own, side by side on one input.

    Args:
        kind: `conv` (3×3), `pointwise`, `depthwise` (3×3; outputs are inputs) or `product`.
        activation: `uint8` or `int8`, of 8-bit activations.
        inputs: channels or features that go in.
        outputs: that come out.
        positions: a square number, of a `product` any.
        count: how many.
        integer: in 8 bits.

    """
    graph = _Graph(activation, np.random.default_rng([inputs, outputs, positions]))
    side = round(positions**0.5)
    shape = (positions, inputs) if kind == "product" else (1, inputs, side, side)
    start = graph.spread(shape)
    start = graph.quantized(start) if integer else start
    cut = [_cut(graph, kind, start, shape, outputs, integer=integer) for _ in range(count)]
    output = graph.node("Concat", cut, axis=1)
    return graph.model(output, _type_of(activation) if integer else TensorProto.FLOAT)


def _cut(graph: _Graph, kind: str, start: str, shape: Sequence[int], outputs: int, *, integer: bool) -> str:
    """One layer, and of what it gives one position."""
    x = graph.restored(start) if integer else start
    if kind == "product":
        y = graph.node("Gemm", [x, *graph.weights((outputs, shape[1]), integer=integer)], transB=1)
        y = graph.quantized(y) if integer else y
        ends = [graph.constant(np.array(values, np.int64)) for values in ([0], [1], [0])]
        return graph.node("Slice", [y, *ends])
    side = 1 if kind == "pointwise" else 3
    groups = shape[1] if kind == "depthwise" else 1
    weights = graph.weights((outputs, shape[1] // groups, side, side), integer=integer)
    pads = [side // 2] * 4
    y = graph.node("Conv", [x, *weights], kernel_shape=[side, side], pads=pads, group=groups)
    y = graph.quantized(y) if integer else y
    return graph.node("MaxPool", [y], kernel_shape=[1, 1], strides=list(shape[2:]))


def row(kind: str, activation: str, values: int, count: int, *, integer: bool) -> bytes:
    """Operators without weights, one behind the other.

    Args:
        kind: `add`, `sigmoid`, `pool` (3×3), `quantize` (pairs among as many float operators whatever `count` is) or
            `node` (an operator that does next to nothing).
        activation: `uint8` or `int8`, of 8-bit activations.
        values: how many each reads: a square, or 16 times one.
        count: how many.
        integer: in 8 bits.
    """
    graph = _Graph(activation, np.random.default_rng(0))
    channels = 16 if values >= 16 else 1
    side = round((values / channels) ** 0.5)
    value = graph.spread((1, channels, side, side))
    value = graph.restored(graph.quantized(value)) if integer else value
    if kind == "pool":  # runtimes lay values out for convolutions, and pools read them so
        weights = graph.weights((channels, channels, 1, 1), integer=integer)
        value = graph.node("Conv", [value, *weights], kernel_shape=[1, 1])
        value = graph.restored(graph.quantized(value)) if integer else value
    first = value
    for index in range(LONG if kind == "quantize" else count):
        if kind == "add":
            value = graph.node("Add", [value, first])
        elif kind == "sigmoid":
            value = graph.node("Sigmoid", [value])
        elif kind == "pool":
            value = graph.node("MaxPool", [value], kernel_shape=[3, 3], pads=[1] * 4)
        else:
            value = graph.node("Neg", [value])
        if integer or (kind == "quantize" and index < count):
            value = graph.restored(graph.quantized(value))
    return graph.model(value, TensorProto.FLOAT)


LONG, SHORT = 6, 2
"""Lengths of the two rows whose difference counts."""


def _type_of(activation: str) -> int:
    return int(TensorProto.UINT8 if activation == "uint8" else TensorProto.INT8)
