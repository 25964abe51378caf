"""Nets that nobody would draw: random branches, shared weights, odd shapes, groups and broadcasting."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Drawn:
    """A net in the making.

    Attributes:
        values: name → shape without the batch, of all that can be read.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        """Begin with one input, a picture or a row of features."""
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        sizes = st.integers(1, 6), st.integers(3, 7), st.integers(3, 7)
        self.input: Shape = draw(st.one_of(st.tuples(*sizes), st.tuples(st.integers(2, 9))))
        self.values: dict[str, Shape] = {"x": self.input}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.shared: dict[Shape, str] = {}

    def pick(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return self.draw(st.integers(low, high))

    def constant(self, array: npt.ArrayLike, kind: Any = np.float32) -> str:
        """A constant's name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, kind), name))
        return name

    def weight(self, *shape: int, fan: int) -> str:
        """A weight, at times one that another node of that shape reads already."""
        if shape in self.shared and self.draw(st.booleans()):
            return self.shared[shape]
        self.shared[shape] = self.constant(self.rng.standard_normal(shape) / np.sqrt(max(fan, 1)))
        return self.shared[shape]

    def add(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> None:
        """A node with one output of a known shape."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.values[name] = shape

    def step(self) -> None:
        """One more layer on a value drawn at random."""
        name = self.draw(st.sampled_from(sorted(self.values)))
        shape = self.values[name]
        kinds = [self.pointwise, self.joined, self.scaled]
        kinds += (
            [self.conv, self.conv, self.pooled, self.transposed]
            if len(shape) == 3
            else [self.dense, self.dense]
        )
        self.draw(st.sampled_from(kinds))(name, shape)

    def pointwise(self, x: str, shape: Shape) -> None:
        """An activation."""
        kinds = ["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Identity", "Neg", "Abs"]
        self.add(self.draw(st.sampled_from(kinds)), [x], shape)

    def joined(self, x: str, shape: Shape) -> None:
        """Two values of one shape, added, multiplied, or side by side."""
        alike = [name for name, other in self.values.items() if other == shape]
        other, kind = (
            self.draw(st.sampled_from(alike)),
            self.draw(st.sampled_from(["Add", "Mul", "Sub", "Concat"])),
        )
        if kind == "Concat":
            if shape[0] < 20:
                self.add(kind, [x, other], (2 * shape[0], *shape[1:]), axis=1)
        else:
            self.add(kind, [x, other], shape)

    def scaled(self, x: str, shape: Shape) -> None:
        """A constant that is broadcast, or BatchNormalization."""
        wide = (1, shape[0], *[1] * (len(shape) - 1))
        if self.draw(st.booleans()):
            own = self.draw(st.sampled_from([wide, wide[1:], (), (1, *shape)]))
            given = [x, self.constant(self.rng.uniform(0.5, 2, own))]
            kind = self.draw(st.sampled_from(["Mul", "Add", "Div", "Sub"]))
            turned = kind in ("Mul", "Add", "Sub") and self.draw(st.booleans())
            self.add(kind, given[::-1] if turned else given, shape)
        else:
            rows = [self.constant(self.rng.uniform(0.5, 2, shape[0])) for _ in range(4)]
            self.add("BatchNormalization", [x, *rows], shape)

    def conv(self, x: str, shape: Shape) -> None:
        """A convolution of any kind that fits."""
        ins, high, wide = shape
        groups = self.draw(st.sampled_from([g for g in (1, 1, ins, 2, 3) if ins % g == 0]))
        outs, size, stride = groups * self.pick(1, max(1, 8 // groups)), self.pick(1, 3), self.pick(1, 2)
        pad = self.pick(0, size - 1)
        out = [(length + 2 * pad - size) // stride + 1 for length in (high, wide)]
        if min(out) < 1:
            return
        given = [x, self.weight(outs, ins // groups, size, size, fan=ins * size * size // groups)]
        given += [self.constant(self.rng.standard_normal(outs))] if self.draw(st.booleans()) else []
        self.add("Conv", given, (outs, *out), group=groups, strides=[stride] * 2, pads=[pad] * 4)

    def transposed(self, x: str, shape: Shape) -> None:
        """A transposed convolution."""
        ins, high, wide = shape
        if max(high, wide) < 12:
            outs, stride = self.pick(1, 5), self.pick(1, 2)
            out = [(length - 1) * stride + 2 for length in (high, wide)]
            self.add(
                "ConvTranspose",
                [x, self.weight(ins, outs, 2, 2, fan=4 * ins)],
                (outs, *out),
                strides=[stride] * 2,
            )

    def pooled(self, x: str, shape: Shape) -> None:
        """Smaller: by pooling, or down to a row of features."""
        ins, high, wide = shape
        kind = self.draw(st.sampled_from(["MaxPool", "AveragePool", "Flatten", "ReduceMean"]))
        if kind == "Flatten":
            self.add(kind, [x], (ins * high * wide,))
        elif kind == "ReduceMean":
            self.add(kind, [x, self.constant([2, 3], np.int64)], (ins,), keepdims=0)
        elif min(high, wide) >= 2:
            self.add(kind, [x], (ins, high // 2, wide // 2), kernel_shape=[2, 2], strides=[2, 2])

    def dense(self, x: str, shape: Shape) -> None:
        """A product, with a bias in one of three ways."""
        (ins,), outs = shape, self.pick(1, 9)
        bias = self.constant(self.rng.standard_normal(outs))
        if self.draw(st.booleans()):
            self.add("Gemm", [x, self.weight(outs, ins, fan=ins), bias], (outs,), transB=1)
        else:
            self.add("MatMul", [x, self.weight(ins, outs, fan=ins)], (outs,))

    def model(self) -> ir.Model:
        """What has been drawn; the outputs are the last value and perhaps another."""
        names = [name for name in self.values if name != "x"]
        outputs = sorted({names[-1], self.draw(st.sampled_from(names))})
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *self.values[name]])
            for name in ("x", *outputs)
        ]
        graph = helper.make_graph(self.nodes, "drawn", ports[:1], ports[1:], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return ir.from_proto(proto)


@st.composite
def nets(draw: st.DrawFn, layers: int = 9) -> ir.Model:
    """A random net of so many layers at most."""
    net = Drawn(draw)
    for _ in range(draw(st.integers(2, layers))):
        net.step()
    if not net.nodes:
        net.pointwise("x", net.input)
    return net.model()
