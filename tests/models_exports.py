"""Tiny models as exporters really write them: old forms, types of all kinds, functions, sequences, maps, states."""

from typing import Any

import numpy as np
import onnx
import onnx.parser
from models import Weights, constants
from onnx import helper, numpy_helper

IN, OUT = "float[N, 16] x", "float[N, 12] y"
DENSE = constants(60, w=(16, 24), b=(24,), v=(24, 12), c=(12,))
MLP = "h = MatMul(x, w) hb = Add(h, b) a = Relu(hb) g = MatMul(a, v) y = Add(g, c)"
PICTURE = "float[N, 3, 8, 8] x"
CONVS = constants(61, k=(16, 3, 3, 3), kb=(16,), k2=(16, 16, 3, 3), b2=(16,), w=(5, 16), b=(5,))
CNN = """
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k, kb) r1 = Relu(c1) c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, b2) r2 = Relu(c2)
    p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm <transB = 1> (f, w, b)
"""


def proto(
    header: str, body: str, weights: Weights | None = None, *, opset: int = 18, domains: str = "",
    functions: str = "", ir_version: int = 10,
) -> onnx.ModelProto:  # fmt: skip
    """A model from ONNX text.

    Args:
        header: `(inputs) => (outputs)`.
        body: its nodes.
        weights: initializers by name.
        opset: of the default domain.
        domains: further ones, as in `, "custom": 1`.
        functions: text behind the graph.
        ir_version: of the file.
    """
    said = f'<ir_version: {ir_version}, opset_import: ["": {opset}{domains}]>'
    model = onnx.parser.parse_model(f"{said} net {header} {{ {body} }} {functions}")
    model.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    return model


def dense(body: str = MLP, more: Weights | None = None, *, out: str = OUT, **how: Any) -> onnx.ModelProto:
    """Two dense layers, written one way or another."""
    return proto(f"({IN}) => ({out})", body, DENSE | (more or {}), **how)


def constant_nodes() -> onnx.ModelProto:
    """Every weight in a Constant node, as old exporters of PyTorch write them."""
    model = dense()
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def listed_inputs(ir_version: int = 3, opset: int = 7) -> onnx.ModelProto:
    """Weights listed among the inputs, as the format once demanded."""
    model = dense(opset=opset, ir_version=ir_version)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    return model


def cnn(opset: int = 18) -> onnx.ModelProto:
    """Two convolutions and a dense layer."""
    return proto(f"({PICTURE}) => (float[N, 5] y)", CNN, CONVS, opset=opset)


def transposed_soup() -> onnx.ModelProto:
    """Channels last outside, first inside, a Transpose between any two layers: as tf2onnx does."""
    body = """
        t = Transpose <perm = [0, 3, 1, 2]> (x) c1 = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (t, k)
        u = Transpose <perm = [0, 2, 3, 1]> (c1) ub = Add(u, kb) r = Relu(ub)
        t2 = Transpose <perm = [0, 3, 1, 2]> (r) c2 = Conv <auto_pad = "SAME_UPPER"> (t2, k2)
        n = BatchNormalization <epsilon = 0.001> (c2, s, b2, m, va) v = Transpose <perm = [0, 2, 3, 1]> (n)
        q = Reshape(v, shape) f = ReduceMean <keepdims = 0> (q, axes) wt = Transpose <perm = [1, 0]> (w)
        g = MatMul(f, wt) y = Add(g, b)
    """
    more = constants(62, s=(16,), m=(16,)) | {"va": np.linspace(0.5, 2, 16).astype(np.float32)}
    more |= {"shape": np.array([-1, 16, 16], np.int64), "axes": np.array([1], np.int64)}
    return proto("(float[N, 8, 8, 3] x) => (float[N, 5] y)", body, CONVS | more)


def shape_soup() -> onnx.ModelProto:
    """A flatten worked out from the input's shape, as paddle2onnx and old torch write it."""
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, k, kb) r = Relu(c) s = Shape(r) z = Constant <value_ints = [0]> ()
        o = Constant <value_ints = [1]> () n = Slice(s, z, o) minus = Constant <value_ints = [-1]> ()
        n32 = Cast <to = 6> (n) n64 = Cast <to = 7> (n32) to = Concat <axis = 0> (n64, minus)
        f = Reshape(r, to) y = MatMul(f, w)
    """
    return proto(f"({PICTURE}) => (float[N, 5] y)", body, constants(63, k=(4, 3, 3, 3), kb=(4,), w=(256, 5)))


def dynamic_everything() -> onnx.ModelProto:
    """No dimension is known but by name."""
    return proto(f"(float[{'a, b, c, d'}] x) => (float[e, f] y)", CNN, CONVS)


def half_weights(kind: Any) -> onnx.ModelProto:
    """Weights in half precision, computed in float behind a Cast."""
    weights = {name: array.astype(kind) for name, array in DENSE.items()}
    casts = " ".join(f"{name}f = Cast <to = 1> ({name})" for name in weights)
    body = "h = MatMul(x, wf) hb = Add(h, bf) a = Relu(hb) g = MatMul(a, vf) y = Add(g, cf)"
    return proto(f"({IN}) => ({OUT})", f"{casts} {body}", weights, opset=19)


def computing_in(kind: str, dtype: Any) -> onnx.ModelProto:
    """All of it in another type of float."""
    weights = {name: array.astype(dtype) for name, array in DENSE.items()}
    return proto(f"({kind}[N, 16] x) => ({kind}[N, 12] y)", MLP, weights)


def tied() -> onnx.ModelProto:
    """A table of words that is read forwards for the input and transposed for the output."""
    body = """
        e = Gather(table, ids) h = MatMul(e, w) a = Relu(h) back = MatMul(a, v)
        tt = Transpose <perm = [1, 0]> (table) y = MatMul(back, tt)
    """
    weights = constants(64, table=(50, 16), w=(16, 32), v=(32, 16))
    return proto("(int64[N, T] ids) => (float[N, T, 50] y)", body, weights)


def functions() -> onnx.ModelProto:
    """Layers as functions of the model's own, with attributes and a function within a function."""
    text = """
        <domain: "own", opset_import: ["": 18, "own": 1]> layer <alpha> (x, w, b) => (y)
            { h = MatMul(x, w) hb = Add(h, b) y = own.act <alpha: float = @alpha> (hb) }
        <domain: "own", opset_import: ["": 18]> act <alpha> (x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }
    """
    body = "a = own.layer <alpha = 0.1> (x, w, b) y = own.layer <alpha = 0.2> (a, v, c)"
    return dense(body, domains=', "own": 1', functions=text)


def sequences() -> onnx.ModelProto:
    """Features go through a sequence of tensors."""
    body = f"parts = SplitToSequence <axis = 1> (x, eight) x2 = ConcatFromSequence <axis = 1> (parts) {MLP}"
    return dense(body.replace("MatMul(x, w)", "MatMul(x2, w)"), {"eight": np.array(8, np.int64)})


def sequence_out() -> onnx.ModelProto:
    """An output that is a sequence."""
    return dense(
        MLP + " parts = SplitToSequence <axis = 1> (y, four)", {"four": np.array(4, np.int64)},
        out=f"{OUT}, seq(float[N, 4]) parts",
    )  # fmt: skip


def sequence_in() -> onnx.ModelProto:
    """An input that is a sequence."""
    body = MLP.replace("MatMul(x, w)", "MatMul(x2, w)")
    return proto(f"(seq(float[N, 16]) x) => ({OUT})", f"x2 = ConcatFromSequence <axis = 0> (x) {body}", DENSE)


def maps_out() -> onnx.ModelProto:
    """Probabilities as a map for each row, as converters of scikit-learn write classifiers."""
    body = MLP.replace("y = Add(g, c)", "gc = Add(g, c)")
    body += " p = Softmax <axis = 1> (gc) label = ArgMax <axis = 1, keepdims = 0> (p)"
    body += f" probabilities = ai.onnx.ml.ZipMap <classlabels_int64s = {list(range(12))}> (p)"
    return dense(
        body, out="int64[N] label, seq(map(int64, float)) probabilities", domains=', "ai.onnx.ml": 3'
    )


def states() -> onnx.ModelProto:
    """States without an axis of rows in front, and a single number: one run is one sample."""
    body = """
        f = Cast <to = 1> (rate) g = Div(f, hertz) xs = Mul(x, g) flat = Reshape(state, shape)
        j = Concat <axis = 1> (xs, flat)
        h = MatMul(j, w) t = Tanh(h) y = MatMul(t, v) u = Reshape(t, back) next = Slice(u, zero, two, zero)
    """
    ints = {"shape": [1, -1], "back": [3, 1, 8], "zero": [0], "two": [2]}
    weights = constants(79, w=(24, 24), v=(24, 3)) | {"hertz": np.array(16000, np.float32)}
    weights |= {name: np.array(value, np.int64) for name, value in ints.items()}
    return proto(
        "(float[1, 8] x, float[2, 1, 8] state, int64 rate) => (float[1, 3] y, float[2, 1, 8] next)",
        body,
        weights,
    )
