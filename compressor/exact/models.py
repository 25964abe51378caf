"""An exact network as a model file: by kind of operator and by precision, so that every value is exact in it.

Whatever goes in and whatever comes out of a layer is a whole multiple of 1/n, weights are 0 and 1, and n is chosen so
that sums of such numbers are exact in the precision: a right kernel gives exactly what is expected, in any order of
adding up. In integers 1 is the code n of activations, and the largest code of weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepress.compressor.exact.networks import ExactNet, Vector
from edgepress.compressor.export.sparse import SparseLayer, SparseNet, to_bytes
from edgepress.compressor.numerics.blocks import Blocks, packed_blocks, packed_zeros

Form = Literal["gemm", "matmul", "conv", "sparse"]
"""Kinds of operators: Gemm; MatMul and Add; a 3×3 convolution, then those of one pixel; the sparse engine's."""

FORMS: tuple[Form, ...] = ("gemm", "matmul", "conv")
"""Those that ONNX has."""

INPUT = "x"
TAPS = 9
"""Of the first convolution: as many features share a channel."""

BLOCK, ONE = 32, 4
"""Inputs that share a scale, of weights in blocks; steps of their grid that are 1: a power of two."""

FLOAT32_BITS, CODE_BITS = 24, 5
"""Of the significand; left of it for codes that are multiplied before their zero point is taken off."""

LARGEST = 250
"""Code of the largest number that comes out: what is too large by a step shows in the codes above."""

OPSET, IR_VERSION = 21, 10
"""Of files with 4 bits, and of what is converted; others are of opset 17, as old as any runtime that runs results."""


@dataclass(frozen=True)
class Precision:
    """A number format that kernels compute in.

    Attributes:
        name: as users know it.
        float_bits: of the significand, the leading one included; 0 for integers.
        tiny: exponent of two to which 1 is scaled down, so that all numbers are subnormal; 0: not at all.
        weight_codes: largest code of weights; 0 for floats.
        activation: `uint8` or `int8`, of integers.
        block_bits: of weights in blocks, which kernels unpack as they go and multiply as floats; 0: not in blocks.
    """

    name: str
    float_bits: int = 0
    tiny: int = 0
    weight_codes: int = 0
    activation: str = ""
    block_bits: int = 0

    @property
    def integer(self) -> bool:
        """Whether kernels compute in integers."""
        return self.float_bits == 0

    def steps(self, top: float, largest_sum: float) -> int:
        """How many steps of the grid 1 has.

        Args:
            top: the largest number that goes in or comes out.
            largest_sum: the largest that kernels add up on the way.
        """
        if self.integer:
            return int(LARGEST // top)
        # a sum below 2^k has steps of 2^(k − bits)
        return int(2 ** min(20, self.float_bits - 1 - int(np.floor(np.log2(max(largest_sum, 1.0))))))

    @property
    def codes(self) -> tuple[int, int, int]:
        """Code of 0, smallest code, largest code, of activations."""
        return (0, 0, 255) if self.activation == "uint8" else (-128, -128, 127)


def precisions(activation: str, weight_bits: int) -> dict[str, Precision]:
    """All that are tested, by name.

    Args:
        activation: type of 8-bit activations whose kernels the target is given, `uint8` or `int8`.
        weight_bits: that 8-bit weights use there: 8, or 7.
    """
    return {
        "fp32": Precision("fp32", FLOAT32_BITS),
        "fp32 subnormal": Precision("fp32 subnormal", 24, tiny=-140),
        "fp16": Precision("fp16", 11),
        "fp16 subnormal": Precision("fp16 subnormal", 11, tiny=-20),
        "int8": Precision("int8", weight_codes=2 ** (weight_bits - 1) - 1, activation=activation),
        "int4": Precision("int4", weight_codes=7, activation=activation),
        "int4 blocks": Precision("int4 blocks", FLOAT32_BITS - CODE_BITS, block_bits=4),
    }


@dataclass(frozen=True)
class ExactModel:
    """A model file, and how its numbers are to be read.

    Attributes:
        data: the ONNX file, or that of the sparse engine.
        form: kind of its operators.
        precision: of its kernels.
        steps: n: 1 is so many steps.
        unit: the number that stands for 1.
    """

    data: bytes
    form: Form
    precision: Precision
    steps: int
    unit: float

    def feeds(self, rows: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[Any]]:
        """Inputs, [rows, features], as the model takes them."""
        kind = np.float16 if self.precision.name.startswith("fp16") else np.float32
        x = (rows * self.unit).astype(kind)
        if self.form != "conv":
            return {INPUT: x}
        channels = -(-x.shape[1] // TAPS)
        padded = np.zeros((len(x), channels * TAPS), kind)
        padded[:, : x.shape[1]] = x
        return {INPUT: padded.reshape(len(x), channels, 3, 3)}

    def layers(self, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[int, npt.NDArray[np.float64]]:
        """What layers gave, number from 1 → [rows, neurons] in steps: whole numbers, where kernels are right."""
        return {
            int(name[1:]): each.reshape(len(each), -1).astype(np.float64) / self.unit * self.steps
            for name, each in outputs.items()
        }


def build_sparse(net: ExactNet, precision: Precision, biases: Sequence[Vector], steps: int) -> ExactModel:
    """Write a network for the sparse engine, whose only output is the last layer's; arguments as of `build`."""
    unit = 2.0**precision.tiny
    layers = tuple(
        SparseLayer(weight.T, (bias / steps * unit).astype(np.float32), "Relu")
        for weight, bias in zip(net.weights, biases, strict=True)
    )
    data = to_bytes(SparseNet(layers, INPUT, f"y{len(layers)}"))
    return ExactModel(data, "sparse", precision, steps, unit)


def build(
    net: ExactNet,
    form: Form,
    precision: Precision,
    biases: Sequence[Vector],
    steps: int,
    *,
    newest: bool = False,
) -> ExactModel:
    """Write a network as ONNX; every layer is an output, y1 … yL.

    Args:
        net: the network.
        form: kind of operators.
        precision: of kernels.
        biases: a layer each, in whole steps.
        steps: n: 1 is so many.
        newest: of the opset that 4 bits take in any case, which a conversion need not raise first.
    """
    graph = _Graph(form, precision, steps)
    sizes: tuple[int | str, ...] = ("rows", net.weights[0].shape[1])
    if form == "conv":
        sizes = ("rows", -(-net.weights[0].shape[1] // TAPS), 3, 3)
    value = graph.start(INPUT)
    outputs = []
    for place, (weight, bias) in enumerate(zip(net.weights, biases, strict=True)):
        value = graph.layer(value, weight.toarray(), bias, place)
        outputs.append((f"y{place + 1}", weight.shape[0]))
    kind = graph.kind
    tail = [1, 1] if form == "conv" else []
    ports = [
        helper.make_tensor_value_info(INPUT, kind, sizes),
        *(helper.make_tensor_value_info(name, kind, ["rows", size, *tail]) for name, size in outputs),
    ]
    made = helper.make_graph(graph.nodes, "exact", ports[:1], ports[1:], graph.constants)
    newest = newest or precision.weight_codes == 7
    model = helper.make_model(
        made,
        opset_imports=[
            helper.make_opsetid("", OPSET if newest else 17),
            *([helper.make_opsetid("com.microsoft", 1)] if precision.block_bits else []),
        ],
        ir_version=IR_VERSION if newest else 8,
    )
    unit = 2.0**precision.tiny
    return ExactModel(model.SerializeToString(), form, precision, steps, unit)


class _Graph:
    """A graph under construction."""

    def __init__(self, form: Form, precision: Precision, steps: int) -> None:
        self.form, self.precision, self.steps = form, precision, steps
        self.half = precision.name.startswith("fp16")
        self.kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def start(self, value: str) -> str:
        """The input, on the grid."""
        return self._pair(value, "q0", "x0") if self.precision.integer else value

    def layer(self, value: str, weight: npt.NDArray[np.float64], bias: Vector, place: int) -> str:
        """max(W x + b, 0), and Q/DQ behind it where kernels compute in integers; returns the output's name."""
        name, result = f"layer{place + 1}", f"y{place + 1}"
        rectified = f"r{place + 1}" if self.precision.integer else result
        matrix = self._shaped(weight, place)
        blocks = bool(self.precision.block_bits)
        w = "" if blocks else self._weights(matrix, name, axis=1 if self.form == "matmul" else 0)
        if self.form == "matmul":
            if blocks:
                self._blocks(value, weight, f"{name}_product", name)
            else:
                self._node("MatMul", [value, w], f"{name}_product", f"{name}")
            b = self._floats(bias / self.steps, f"{name}_bias")
            self._node("Add", [f"{name}_product", b], f"{name}_sum", f"{name}_add")
        else:
            b = self._bias(bias, name)
            more: dict[str, Any] = (
                {"transB": 1} if self.form == "gemm" else {"kernel_shape": matrix.shape[2:]}
            )
            self._node("Gemm" if self.form == "gemm" else "Conv", [value, w, b], f"{name}_sum", name, **more)
        self._node("Relu", [f"{name}_sum"], rectified, f"{name}_relu")
        return self._pair(rectified, f"q{place + 1}", result) if self.precision.integer else result

    def _shaped(self, weight: npt.NDArray[np.float64], place: int) -> npt.NDArray[np.float64]:
        """Weights as the operator takes them."""
        if self.form == "matmul":
            return weight.T
        if self.form == "gemm":
            return weight
        if place:
            return weight[:, :, None, None]
        channels = -(-weight.shape[1] // TAPS)
        padded = np.zeros((len(weight), channels * TAPS))
        padded[:, : weight.shape[1]] = weight
        return padded.reshape(len(weight), channels, 3, 3)

    def _weights(self, matrix: npt.NDArray[np.float64], name: str, axis: int) -> str:
        codes = self.precision.weight_codes
        if not codes:
            return self._floats(matrix, f"{name}_weight", scaled=False)
        count = matrix.shape[axis]
        scale = self._constant(np.full(count, 1 / codes, np.float32), f"{name}_weight_scale")
        zero = self._constant(np.zeros(count, np.int8), f"{name}_weight_zero")
        stored = (matrix * codes).astype(np.int8)
        if codes == 7:  # unfolds at load to 8 bits, so that integer kernels take it
            self.constants.append(
                helper.make_tensor(f"{name}_packed", TensorProto.INT4, matrix.shape, stored.ravel().tolist())
            )
            self._node("Cast", [f"{name}_packed"], f"{name}_codes", f"{name}_unpack", to=TensorProto.INT8)
            source = f"{name}_codes"
        else:
            source = self._constant(stored, f"{name}_codes")
        return self._node(
            "DequantizeLinear", [source, scale, zero], f"{name}_weight", f"{name}_weight_dq", axis=axis
        )

    def _blocks(self, value: str, weight: npt.NDArray[np.float64], result: str, name: str) -> None:
        """A product with weights [out, in] in blocks: 1 is `ONE` steps of 1 / `ONE` above the zero point, exactly."""
        bits, (outputs, inputs) = self.precision.block_bits, weight.shape
        codes = (weight * ONE + (1 << bits - 1)).astype(np.uint8)
        count = -(-inputs // BLOCK)
        zeros = np.full((outputs, count), 1 << bits - 1)
        levels = Blocks(
            np.full((count, outputs), 1 / ONE, np.float32), zeros.T, (1 << bits) - 1, np.arange(0)
        )
        stored = [
            self._constant(packed_blocks(codes, bits, BLOCK), f"{name}_codes"),
            self._constant(levels.scales.T.copy(), f"{name}_scale"),
            self._constant(packed_zeros(levels, bits), f"{name}_zero"),
        ]
        numbers = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": 0}
        self._node("MatMulNBits", [value, *stored], result, name, domain="com.microsoft", **numbers)

    def _bias(self, bias: Vector, name: str) -> str:
        """In steps: an integer's grid is that of the products."""
        if not self.precision.integer:
            return self._floats(bias / self.steps, f"{name}_bias")
        codes = self.precision.weight_codes
        scale = np.full(len(bias), np.float32(1 / self.steps) * np.float32(1 / codes), np.float32)
        stored = self._constant(np.rint(bias * codes).astype(np.int32), f"{name}_bias_codes")
        inputs = [stored, self._constant(scale, f"{name}_bias_scale")]
        inputs.append(self._constant(np.zeros(len(bias), np.int32), f"{name}_bias_zero"))
        return self._node("DequantizeLinear", inputs, f"{name}_bias", f"{name}_bias_dq", axis=0)

    def _pair(self, value: str, between: str, result: str) -> str:
        zero, _, _ = self.precision.codes
        grid = [
            self._constant(np.array(1 / self.steps, np.float32), f"{between}_scale"),
            self._constant(np.array(zero, self.precision.activation), f"{between}_zero"),
        ]
        self._node("QuantizeLinear", [value, *grid], between, f"{between}_q")
        return self._node("DequantizeLinear", [between, *grid], result, f"{between}_dq")

    def _floats(self, values: npt.NDArray[np.float64], name: str, *, scaled: bool = True) -> str:
        """A constant in the precision's floats; those that are added are scaled as the input is."""
        values = values * 2.0**self.precision.tiny if scaled else values
        return self._constant(values.astype(np.float16 if self.half else np.float32), name)

    def _constant(self, array: npt.NDArray[Any], name: str) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, op: str, inputs: Sequence[str], result: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=name, **attributes))
        return result
