"""Values that are known before the model runs: initializers, and what follows from them."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgepress.compressor.export.tflite.tensors import Array, Codes, Factors
from edgepress.compressor.sites import constant

UNSIGNED = {ir.DataType.UINT8: 128, ir.DataType.UINT4: 8, ir.DataType.UINT2: 2}
"""Types of unsigned integers → what moves them, and their zero points, to signed ones."""
_SMALL = 64
"""Numbers below which no DEQUANTIZE pays."""
_DEPTH = 64
"""Nodes in a row that are worked out here; weights in odd widths take about six."""

_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators that leave numbers as they are."""


class Constants:
    """Works out what depends on constants alone, each value once; quantized ones stay integers beside it."""

    def __init__(self) -> None:
        self._arrays: dict[ir.Value, Array | None] = {}
        self._codes: dict[ir.Value, Codes | None] = {}
        self._factors: dict[ir.Value, Factors | None] = {}

    def known(self, value: ir.Value | None, depth: int = 0) -> bool:
        """Whether a value hangs on constants alone; nothing is worked out."""
        if value is None or depth > _DEPTH:
            return False
        if value in self._arrays:
            return self._arrays[value] is not None
        if constant(value) is not None:
            return True
        node = value.producer()
        if node is None or not any(node.inputs):
            return False
        return all(each is None or self.known(each, depth + 1) for each in node.inputs)

    def array(self, value: ir.Value | None, depth: int = 0) -> Array | None:
        """A constant's numbers, or None where the value is fed or worked out from what is."""
        if value is None or depth > _DEPTH:
            return None
        if value not in self._arrays:
            self._arrays[value] = self._worked_out(value, depth)
        return self._arrays[value]

    def codes(self, value: ir.Value | None) -> Codes | None:
        """A constant's integers, where a DequantizeLinear of constants makes it."""
        if value is None:
            return None
        if value not in self._codes:
            self._codes[value] = self._integers(value)
        return self._codes[value]

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """Let a value be another constant."""
        self._arrays[value], self._codes[value] = self.array(source), self.codes(source)

    def half(self, value: ir.Value) -> bool:
        """Whether a float32 constant has no more digits than half precision keeps, and is worth a DEQUANTIZE."""
        array = self.array(value)
        if array is None or array.dtype != np.float32 or array.size < _SMALL:
            return False
        with np.errstate(over="ignore"):
            return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))

    def _worked_out(self, value: ir.Value, depth: int) -> Array | None:
        known = constant(value)
        if known is not None:
            return _plain(known)
        node = value.producer()
        if (
            node is None
            or not node.inputs
            or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
        ):
            return None
        inputs = [None if each is None else self.array(each, depth + 1) for each in node.inputs]
        if any(array is None and each is not None for array, each in zip(inputs, node.inputs, strict=True)):
            return None
        if node.op_type == "DequantizeLinear":
            codes = self.codes(value)
            return None if codes is None else codes.floats()
        return _evaluated(node, value, inputs)

    def factors(self, value: ir.Value | None) -> Factors | None:
        """A constant as integers of 8 bits, scales and zero points, where the graph works it out of such."""
        if value is None:
            return None
        if value not in self._factors:
            self._factors[value] = self._factored(value)
        return self._factors[value]

    def _factored(self, value: ir.Value, depth: int = 0) -> Factors | None:
        node = value.producer()
        if node is None or depth > _DEPTH or not self.known(value):
            return None
        if node.op_type == "DequantizeLinear":
            codes = self.codes(value)
            return None if codes is None or codes.bits > 8 else codes.factors()
        if node.op_type in _MOVING and node.inputs[0] is not None:
            inner = self._factored(node.inputs[0], depth + 1)
            shape, order = self.array(value, depth), node.attributes.get("perm")
            if inner is None or shape is None:
                return None
            if node.op_type == "Transpose":
                perm = None if order is None else [int(axis) for axis in order.as_ints()]
                return inner.moved(lambda array: array.transpose(perm))
            return inner.moved(lambda array: array.reshape(shape.shape))
        return None

    def _integers(self, value: ir.Value) -> Codes | None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            found = self.factors(value)
            return None if found is None else found.codes()
        integers, scale = self.array(node.inputs[0]), self.array(node.inputs[1])
        if integers is None or scale is None or integers.dtype.kind not in "iu":
            return None
        given = node.inputs[2] if len(node.inputs) > 2 else None
        zero = self.array(given) if given is not None else np.zeros(scale.shape, np.int32)
        if zero is None:
            return None
        middle = UNSIGNED.get(node.inputs[0].dtype or ir.DataType.INT8, 0)
        axis = node.attributes.get_int("axis", 1)
        wide = integers.astype(np.int64) - middle
        kind = np.int8 if wide.size == 0 or (wide.min() >= -128 and wide.max() < 128) else np.int32
        return Codes(
            wide.astype(kind),
            scale.astype(np.float32),
            zero.astype(np.int64) - middle,
            axis % max(integers.ndim, 1),
            node.attributes.get_int("block_size", 0),
        )


def _plain(array: Array) -> Array:
    """Narrow types of ml_dtypes as the next one that numpy has; values stay."""
    wider = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8, "bfloat16": np.float32}
    name = array.dtype.name
    kind = np.float32 if name.startswith(("float8", "float4")) else wider.get(name)
    return array if kind is None else array.astype(kind)


def _evaluated(node: ir.Node, value: ir.Value, inputs: list[Array | None]) -> Array | None:
    """One node by onnx's own reference; None where it has none."""
    names = [f"i{at}" if array is not None else "" for at, array in enumerate(inputs)]
    outputs = [f"o{at}" for at in range(len(node.outputs))]
    proto = ir.to_proto(node)
    proto.input[:], proto.output[:] = names, outputs
    opset = node.graph.opset_imports.get(node.domain, 21) if node.graph is not None else 21
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    typed = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    at = list(node.outputs).index(value)
    graph = onnx.helper.make_graph([proto], "node", typed, [onnx.ValueInfoProto(name=outputs[at])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
    try:
        results = list(ReferenceEvaluator(model).run(None, feeds))
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        return None
    return _plain(np.asarray(results[0]))
