"""Operators of onnxruntime's own, and those of ONNX that carry scales with them, said with Q/DQ pairs.

    QLinearConv, QLinearMatMul, QLinearAdd, …  →  DequantizeLinear → Conv, MatMul, Add, … → QuantizeLinear
    MatMulNBits                                →  DequantizeLinear of rows, MatMul (and Add)
    DynamicQuantizeLSTM                        →  DequantizeLinear of rows, LSTM

What kernels round at run time (activations of MatMulNBits and DynamicQuantizeLSTM) stays as it was before.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.constants import Constants
from edgepress.compressor.export.tflite.tensors import Array, Factors
from edgepress.compressor.export.tflite.weights import from_integers
from edgepress.compressor.sites import int_attribute, new_constant, site_name

MICROSOFT = "com.microsoft"


class Rewriter:
    """Puts nodes in the place of one."""

    def __init__(self, graph: ir.Graph, node: ir.Node, constants: Constants) -> None:
        self.graph, self.node, self.constants = graph, node, constants

    def input(self, index: int) -> ir.Value | None:
        """An input of the node, or None."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def array(self, index: int) -> Array | None:
        """A constant input, or None."""
        return self.constants.array(self.input(index))

    def put(self, kind: str, inputs: Sequence[ir.Value | None], *attributes: ir.Attr) -> ir.Value:
        """A new node before the old one; gives its output."""
        new = ir.Node("", kind, inputs, attributes, name=f"{site_name(self.node)}_{kind}")
        self.graph.insert_before(self.node, new)
        new.outputs[0].name = f"{self.node.outputs[0].name}_{kind}_{len(self.graph)}"
        return new.outputs[0]

    def constant(self, array: Array) -> ir.Value:
        """A new constant."""
        return new_constant(self.graph, f"{self.node.outputs[0].name}_c", array)

    def weights(self, factors: Factors) -> ir.Value:
        """What factors stand for: from int8 where that saves, else in float32."""
        name = f"{self.node.outputs[0].name}_w{len(self.graph)}"
        found = from_integers(self.graph, self.node, name, factors)
        if found is not None:
            return found
        floats = (factors.integers - factors.zero_point.astype(np.float32)) * factors.scale
        return self.constant(floats.astype(np.float32))

    def reals(self, at: int, axis: int) -> ir.Value:
        """DequantizeLinear of the three inputs from `at` on."""
        return self.put("DequantizeLinear", self.node.inputs[at : at + 3], ir.AttrInt64("axis", axis))

    def replace(self, value: ir.Value) -> None:
        """Let all who read the node's first output read this."""
        old = self.node.outputs[0]
        name = old.name
        value.type = old.type
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name, value.name = f"{name}_old", name


def said_with_pairs(model: ir.Model) -> bool:
    """Rewrite all that are known, in place; whether there was any."""
    changed, constants = False, Constants()
    for node in list(model.graph):
        rule = _RULES.get(node.op_type)
        if rule is not None and rule(Rewriter(model.graph, node, constants)):
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def _conv(to: Rewriter) -> bool:
    x, w = to.reals(0, 1), to.reals(3, 0)
    inputs: list[ir.Value | None] = [x, w]
    bias, scales = to.input(8), (to.array(1), to.array(4))
    if bias is not None:
        if scales[0] is not None and scales[1] is not None:
            product = to.constant((scales[0] * scales[1]).astype(np.float32))
        else:
            product = to.put("Mul", [to.input(1), to.input(4)])
        inputs.append(to.put("DequantizeLinear", [bias, product], ir.AttrInt64("axis", 0)))
    return _ended(to, to.put("Conv", inputs, *to.node.attributes.values()), 6)


def _matmul(to: Rewriter) -> bool:
    return _ended(to, to.put("MatMul", [to.reals(0, -2), to.reals(3, -1)]), 6)


def _ended(to: Rewriter, value: ir.Value, at: int) -> bool:
    """QuantizeLinear with the scale and the zero point at two inputs."""
    to.replace(to.put("QuantizeLinear", [value, to.input(at), to.input(at + 1)]))
    return True


def _two(kind: str) -> Callable[[Rewriter], bool]:
    return lambda to: _ended(to, to.put(kind, [to.reals(0, 1), to.reals(3, 1)]), 6)


def _one(kind: str) -> Callable[[Rewriter], bool]:
    return lambda to: _ended(to, to.put(kind, [to.reals(0, 1)], *to.node.attributes.values()), 3)


def _pool(kind: str) -> Callable[[Rewriter], bool]:
    def rule(to: Rewriter) -> bool:
        if int_attribute(to.node, "channels_last", 0):
            return False
        kept = [a for a in to.node.attributes.values() if a.name != "channels_last"]
        return _ended(to, to.put(kind, [to.reals(0, 1)], *kept), 3)

    return rule


def _concat(to: Rewriter) -> bool:
    parts = [to.reals(at, 1) for at in range(2, len(to.node.inputs), 3)]
    return _ended(to, to.put("Concat", parts, *to.node.attributes.values()), 0)


def _few_bits(to: Rewriter) -> bool:
    """MatMulNBits: codes [N, blocks, bytes], the first in the lowest bits, become rows of int8."""
    k, n, bits, size = (int_attribute(to.node, name, 0) for name in ("K", "N", "bits", "block_size"))
    bits = bits or 4
    packed, scale, zero, x = to.array(1), to.array(2), to.array(3), to.input(0)
    given = to.input(3)
    if packed is None or scale is None or x is None or to.input(4) is not None or bits not in {2, 4, 8}:
        return False
    if (given is not None and zero is None) or packed.dtype != np.uint8 or size < 1:
        return False
    blocks, half = -(-k // size), 1 << bits - 1
    codes = _unpacked(packed.reshape(n, -1), bits)[:, :k].astype(np.int16)
    zeros = np.full((n, blocks), half, np.int16)
    if zero is not None and zero.dtype != np.uint8:
        return False
    if zero is not None:
        zeros = _unpacked(zero.reshape(n, -1), bits)[:, :blocks].astype(np.int16)
    scales, offsets = (np.repeat(part.reshape(n, blocks), size, axis=1)[:, :k] for part in (scale, zeros))
    factors = Factors(
        (codes - half).astype(np.int8), scales.astype(np.float32), (offsets - half).astype(np.int8)
    )
    turned = to.put("Transpose", [to.weights(factors)], ir.AttrInt64s("perm", [1, 0]))
    y = to.put("MatMul", [x, turned])
    bias = to.input(5)
    to.replace(y if bias is None else to.put("Add", [y, bias]))
    return True


def _unpacked(packed: Array, bits: int) -> Array:
    """Codes of each row [rows, codes] out of bytes [rows, bytes]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: Array = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), -1)


def _lstm(to: Rewriter) -> bool:
    """DynamicQuantizeLSTM: W and R [directions, columns, rows] with one scale for each row, or each direction."""
    inputs = list(to.node.inputs)
    for index, at in ((1, 8), (2, 10)):
        q, scale, zero = (to.array(each) for each in (index, at, at + 1))
        if q is None or scale is None:
            return False
        middle = 128 if q.dtype == np.uint8 else 0
        zero = np.zeros(scale.shape, q.dtype) if zero is None else zero
        wide = (scale.shape[0], -1, 1)
        integers = (q.astype(np.int16) - middle).astype(np.int8).transpose(0, 2, 1)
        offset = (zero.astype(np.int16) - middle).astype(np.int8)
        factors = Factors(
            np.ascontiguousarray(integers),
            np.broadcast_to(scale.reshape(wide).astype(np.float32), integers.shape),
            np.broadcast_to(offset.reshape(wide), integers.shape),
        )
        inputs[index] = to.weights(factors)
    new = ir.Node(
        "",
        "LSTM",
        inputs[:8],
        to.node.attributes.values(),
        num_outputs=len(to.node.outputs),
        name=site_name(to.node),
    )
    to.graph.insert_before(to.node, new)
    for old, value in zip(to.node.outputs, new.outputs, strict=True):
        name = old.name
        value.type = old.type
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name, value.name = f"{name}_old" if name else name, name
    return True


_RULES: dict[str, Callable[[Rewriter], bool]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QLinearAdd": _two("Add"),
    "QLinearMul": _two("Mul"),
    "QLinearSigmoid": _one("Sigmoid"),
    "QLinearLeakyRelu": _one("LeakyRelu"),
    "QLinearAveragePool": _pool("AveragePool"),
    "QLinearGlobalAveragePool": _pool("GlobalAveragePool"),
    "QLinearConcat": _concat,
    "MatMulNBits": _few_bits,
    "DynamicQuantizeLSTM": _lstm,
}
