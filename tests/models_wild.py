"""Tiny models in the forms that people really bring, each with an ugliness of its own; those of exporters included."""

from collections.abc import Callable, Mapping
from functools import partial

import ml_dtypes
import numpy as np
import onnx
from models import constants
from models_control import branches, joined_gates, loop, scan, two_nets
from models_exports import (
    CNN,
    CONVS,
    DENSE,
    IN,
    MLP,
    OUT,
    PICTURE,
    cnn,
    computing_in,
    constant_nodes,
    dense,
    dynamic_everything,
    functions,
    half_weights,
    listed_inputs,
    maps_out,
    proto,
    sequence_in,
    sequence_out,
    sequences,
    shape_soup,
    states,
    tied,
    transposed_soup,
)
from onnx import TensorProto, helper, numpy_helper


def custom() -> onnx.ModelProto:
    """An operator that nobody knows, between two dense layers."""
    return dense(MLP.replace("a = Relu(hb)", "a = acme.Swoosh <beta = 2.0> (hb)"), domains=', "acme": 1')


def qdq() -> onnx.ModelProto:
    """8 bits already, with pairs of QuantizeLinear and DequantizeLinear."""
    body = """
        xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx) wd = DequantizeLinear <axis = 1> (w8, sw, zw)
        h = MatMul(xd, wd) hb = Add(h, b) a = Relu(hb) aq = QuantizeLinear(a, sa, zx) ad = DequantizeLinear(aq, sa, zx)
        g = MatMul(ad, v) y = Add(g, c)
    """
    rng = np.random.default_rng(67)
    more = {
        "w8": rng.integers(-127, 128, (16, 24)).astype(np.int8), "zw": np.zeros(24, np.int8),
        "sw": rng.uniform(0.001, 0.003, 24).astype(np.float32), "sx": np.array(0.03, np.float32),
        "sa": np.array(0.02, np.float32), "zx": np.array(128, np.uint8),
    }  # fmt: skip
    return dense(body, more)


def qoperator() -> onnx.ModelProto:
    """8 bits already, with operators that compute on integers."""
    body = """
        xq = QuantizeLinear(x, sx, zx) c = QLinearConv <pads = [1, 1, 1, 1]> (xq, sx, zx, k8, sk, zk, sy, zy)
        f = GlobalAveragePool(d) d = DequantizeLinear(c, sy, zy) e = Flatten(f) y = Gemm <transB = 1> (e, w, b)
    """.replace("f = GlobalAveragePool(d) d = DequantizeLinear(c, sy, zy)",
                "d = DequantizeLinear(c, sy, zy) f = GlobalAveragePool(d)")  # fmt: skip
    rng = np.random.default_rng(68)
    more = {
        "k8": rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8), "zk": np.array(0, np.int8),
        "sk": np.array(0.002, np.float32), "sx": np.array(0.03, np.float32), "zx": np.array(128, np.uint8),
        "sy": np.array(0.05, np.float32), "zy": np.array(120, np.uint8),
    }  # fmt: skip
    return proto(f"({PICTURE}) => (float[N, 5] y)", body, {k: CONVS[k] for k in "wb"} | more)


def dynamic_integers() -> onnx.ModelProto:
    """Quantized at run time already."""
    body = """
        q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w8, z, zw) f = Cast <to = 1> (i)
        t = Mul(s, sw) h = Mul(f, t)
        hb = Add(h, b) a = Relu(hb) g = MatMul(a, v) y = Add(g, c)
    """
    rng = np.random.default_rng(69)
    more = {"w8": rng.integers(-127, 128, (16, 24)).astype(np.int8), "zw": np.array(0, np.int8)}
    return dense(body, more | {"sw": np.array(0.002, np.float32)})


def many_ends() -> onnx.ModelProto:
    """Inputs that nothing reads, and outputs that are an input, a weight, a constant, or read by others."""
    body = f"{MLP} same = Identity(x) one = Constant <value = float[2] {{1.0, 2.0}}> () p = Sigmoid(hb) q = Add(p, hb)"
    return proto(
        f"({IN}, float[N, 3] unread) => ({OUT}, float[N, 16] same, float[2] one, float[N, 24] p, float[N, 24] q, "
        "float[N, 24] hb, float[16, 24] w)",
        body,
        DENSE,
    )


def streaming() -> onnx.ModelProto:
    """A recurrent net whose states go in and come out, so that it runs frame by frame."""
    body = """
        xt = Transpose <perm = [1, 0, 2]> (x)
        s, hn, cn = LSTM <hidden_size = 8> (xt, wi, wr, bi, , h0, c0) q = Squeeze(s, axes)
        t = Transpose <perm = [1, 0, 2]> (q) y = MatMul(t, p)
    """
    weights = constants(70, wi=(1, 32, 6), wr=(1, 32, 8), bi=(1, 64), p=(8, 3))
    return proto(
        "(float[N, T, 6] x, float[1, N, 8] h0, float[1, N, 8] c0) => "
        "(float[N, T, 3] y, float[1, N, 8] hn, float[1, N, 8] cn)",
        body,
        weights | {"axes": np.array([1], np.int64)},
    )


def signal_and_state() -> onnx.ModelProto:
    """A signal of free length beside a state whose second size is the batch."""
    body = """
        s = Unsqueeze (x, one) c = Conv(s, f) m = ReduceMean <axes = [2], keepdims = 0> (c) r = Tanh(m)
        u = Unsqueeze (r, zero) y = Concat <axis = 0> (h, u)
    """
    more = constants(69, f=(16, 1, 25)) | {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)}
    return proto("(float[N, T] x, float[2, M, 16] h) => (float[3, M, 16] y)", body, more, opset=17)


def strings() -> onnx.ModelProto:
    """Text in, through a table."""
    body = """
        t = StringNormalizer <case_change_action = "LOWER", stopwords = ["the"]> (x)
        i = ai.onnx.ml.LabelEncoder <keys_strings = ["a", "b", "c"], values_int64s = [0, 1, 2], default_int64 = 3> (t)
        e = Gather(table, i) y = MatMul(e, w)
    """
    weights = constants(71, table=(4, 32), w=(32, 3))
    return proto("(string[N] x) => (float[M, 3] y)", body, weights, domains=', "ai.onnx.ml": 3')


def hypernetwork() -> onnx.ModelProto:
    """Weights that are computed from another input."""
    body = "f = MatMul(z, w) k = Reshape(f, shape) c = Conv(x, k) y = Relu(c)"
    weights = constants(72, w=(4, 108)) | {"shape": np.array([4, 3, 3, 3], np.int64)}
    return proto(f"({PICTURE}, float[1, 4] z) => (float[N, 4, 6, 6] y)", body, weights)


def odd_names() -> onnx.ModelProto:
    """Names with markup, spaces, quotes, letters of other scripts; nodes without any, or with the same."""
    model = dense()
    names = {
        "w": "<script>alert(1)</script>",
        "h": "a b\tc",
        "hb": "π/層.1",
        "a": "\"quoted'",
        "g": "{{ g }}",
        "b": "0",
    }
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = "<b>twice</b>" if node.op_type == "MatMul" else ""
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return model


def explicit_domain() -> onnx.ModelProto:
    """The default domain under its long name."""
    model = dense()
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    return model


def training_left_in() -> onnx.ModelProto:
    """Dropout with its mask, one in training mode behind a constant, and what nothing reads."""
    body = """
        h = MatMul(x, w) hb = Add(h, b) d, mask = Dropout(hb, ratio, no) a = Relu(d) idle = MatMul(a, unread)
        g = MatMul(a, v) y = Add(g, c)
    """
    more = {"ratio": np.array(0.5, np.float32), "no": np.array(False), "spare": np.ones(9, np.float32)}
    return dense(body, more | constants(73, unread=(24, 7)))


def shadowed() -> onnx.ModelProto:
    """A body whose own weights bear the names of others' bodies."""
    body = """
        s = ReduceSum <keepdims = 0> (x) yes = Greater(s, zero)
        h = If (yes) <
            then_branch = one () => (float[N, 24] t) <float[16, 24] m> { t = MatMul(x, m) },
            else_branch = two () => (float[N, 24] e) <float[16, 24] m> { e = MatMul(x, m) }
        >
        a = Relu(h) g = MatMul(a, v) y = Add(g, c)
    """.replace(" <float[16, 24] m>", "")
    model = dense(body, {"zero": np.array(0, np.float32)})
    node = next(node for node in model.graph.node if node.op_type == "If")
    for seed, attribute in enumerate(node.attribute):
        weight = constants(74 + seed, m=(16, 24))["m"]
        attribute.g.initializer.append(numpy_helper.from_array(weight, "m"))
    return model


def random_numbers() -> onnx.ModelProto:
    """Noise on the input: no two runs agree."""
    return dense("n = RandomNormalLike(x) x2 = Add(x, n) " + MLP.replace("MatMul(x, w)", "MatMul(x2, w)"))


def not_a_number() -> onnx.ModelProto:
    """Gives NaN for half of all inputs."""
    return dense(MLP.replace("y = Add(g, c)", "gc = Add(g, c) y = Log(gc)"))


def quantized_twice_over() -> onnx.ModelProto:
    """One pair behind another."""
    body = """
        xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx) xr = QuantizeLinear(xd, sx, zx)
        xe = DequantizeLinear(xr, sx, zx) h = MatMul(xe, w) a = Relu(h) g = MatMul(a, v) y = Add(g, c)
    """
    return dense(body, {"sx": np.array(0.03, np.float32), "zx": np.array(128, np.uint8)})


def einsum() -> onnx.ModelProto:
    """Products as Einsum, and with weights of three axes."""
    body = """
        h = Einsum <equation = "nti,io->nto"> (x, w) a = Relu(h) u = Unsqueeze(a, one) m = MatMul(u, heads)
        y = ReduceSum(m, axes)
    """
    weights = constants(75, w=(16, 24), heads=(4, 24, 8))
    ints = {"one": np.array([1], np.int64), "axes": np.array([1, 2], np.int64)}
    return proto("(float[N, 5, 16] x) => (float[N, 1, 1, 8] y)", body, weights | ints)


def upsampled() -> onnx.ModelProto:
    """Down, up again, and joined with what was before: the form of a U-Net."""
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, k, kb) ra = Relu(a)
        d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (ra)
        b1 = Conv <pads = [1, 1, 1, 1]> (d, k2, b2) rb = Relu(b1) u = Resize <mode = "linear"> (rb, , scales)
        j = Concat <axis = 1> (ra, u) y = Conv(j, k3)
    """
    more = constants(76, k3=(2, 32, 1, 1)) | {"scales": np.array([1, 1, 2, 2], np.float32)}
    kept = {name: CONVS[name] for name in ("k", "kb", "k2", "b2")}
    return proto(f"({PICTURE}) => (float[N, 2, 8, 8] y)", body, kept | more)


def chain(layers: int) -> onnx.ModelProto:
    """Many small layers in a row."""
    weights = {f"w{i}": w for i, w in enumerate(np.random.default_rng(77).normal(size=(layers, 16, 16)) / 4)}
    steps = [f"m{i} = MatMul({f't{i - 1}' if i else 'x'}, w{i}) t{i} = Tanh(m{i})" for i in range(layers)]
    text = " ".join(steps) + f" y = Identity(t{layers - 1})"
    return proto(f"({IN}) => (float[N, 16] y)", text, {n: w.astype(np.float32) for n, w in weights.items()})


def scalar_input() -> onnx.ModelProto:
    """A single number beside the rows."""
    body = MLP.replace("hb = Add(h, b)", "hs = Mul(h, gain) hb = Add(hs, b)")
    return proto(f"({IN}, float gain) => ({OUT})", body, DENSE)


def bytes_in() -> onnx.ModelProto:
    """Pictures as bytes, scaled inside the model."""
    body = CNN.replace("Conv <pads = [1, 1, 1, 1]> (x, k, kb)", "Conv <pads = [1, 1, 1, 1]> (z, k, kb)")
    return proto(
        "(uint8[N, 3, 8, 8] x) => (float[N, 5] y)", f"f0 = Cast <to = 1> (x) z = Mul(f0, s) {body}",
        CONVS | {"s": np.array(1 / 255, np.float32)},
    )  # fmt: skip


def float8() -> onnx.ModelProto:
    """Weights in 8-bit floats."""
    body = "wf = DequantizeLinear(w8, s) h = MatMul(x, wf) hb = Add(h, b) a = Relu(hb) g = MatMul(a, v) y = Add(g, c)"
    model = dense(body, {"s": np.array(1, np.float32)}, opset=19)
    weight = numpy_helper.from_array(DENSE["w"].astype(ml_dtypes.float8_e4m3fn), "w8")
    model.graph.initializer.append(weight)
    return model


def boxes(batch: str = "1") -> onnx.ModelProto:
    """A detector as torchvision writes it: how many boxes come out hangs on the picture."""
    body = """
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, kb) r = Relu(c) h = Conv(r, k1, b1)
        t = Transpose <perm = [0, 2, 3, 1]> (h) all = Reshape(t, to) s0 = Slice(all, zero, one, one)
        places = Slice(all, one, five, one) s1 = Squeeze(s0, one) sure = Greater(s1, least) at = NonZero(sure)
        i = Squeeze(at, zero) found = Gather(places, i) scores = Gather(s1, i)
    """
    weights = constants(80, k=(16, 3, 3, 3), kb=(16,), k1=(5, 16, 1, 1), b1=(5,))
    ints = {"to": [-1, 5], "zero": [0], "one": [1], "five": [5]}
    more = {name: np.array(value, np.int64) for name, value in ints.items()} | {
        "least": np.array(0, np.float32)
    }
    header = f"(float[{batch}, 3, 8, 8] x) => (float[M, 4] found, float[M] scores)"
    return proto(header, body, weights | more)


def alone() -> onnx.ModelProto:
    """Says that it takes any number of rows, and was traced with one."""
    body = CNN.replace("f = Flatten(p)", "f = Reshape(p, to)")
    return proto(f"({PICTURE}) => (float[N, 5] y)", body, CONVS | {"to": np.array([1, 16], np.int64)})


def tied_turned() -> onnx.ModelProto:
    """One table of words is the last layer, too, behind a Transpose: as torch's newer exporter writes it."""
    body = """
        e = Gather(words, x) h = MatMul(e, w) a = Relu(h) g = MatMul(a, v) t = Transpose <perm = [1, 0]> (words)
        y = MatMul(g, t)
    """
    weights = constants(81, words=(300, 16), w=(16, 24), v=(24, 16))
    return proto("(int64[N, 6] x) => (float[N, 6, 300] y)", body, weights)


def noise_inside() -> onnx.ModelProto:
    """A node without inputs, beside a transposed convolution of channels that can go."""
    body = """
        c1 = Conv <pads = [1, 1, 1, 1]> (x, k, kb) r1 = Relu(c1) u = ConvTranspose <strides = [2, 2]> (r1, k2)
        n = RandomUniform <shape = [1], low = 0.0, high = 0.000001> () y = Add(u, n)
    """
    weights = {name: CONVS[name] for name in ("k", "kb")} | constants(82, k2=(16, 2, 2, 2))
    return proto(f"({PICTURE}) => (float[N, 2, 16, 16] y)", body, weights)


def unnamed_outputs() -> onnx.ModelProto:
    """A recurrent layer of which the last state alone is wanted."""
    weights = constants(78, wi=(2, 24, 6), wr=(2, 24, 8), bi=(2, 48), p=(16, 3))
    body = """
        , h = GRU <hidden_size = 8, direction = "bidirectional"> (x, wi, wr, bi) t = Transpose <perm = [1, 0, 2]> (h)
        f = Flatten(t) y = MatMul(f, p)
    """
    model = proto("(float[5, N, 6] x) => (float[N, 3] y)", body.replace(", h = GRU", "all, h = GRU"), weights)
    model.graph.node[0].output[0] = ""
    return model


def nothing() -> onnx.ModelProto:
    """The input is the output."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([], "nothing", [value], [value])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def no_input() -> onnx.ModelProto:
    """Constants alone."""
    return proto("() => (float[16, 12] y)", "h = MatMul(w, v) y = Add(h, c)", DENSE)


ALL: Mapping[str, Callable[[], onnx.ModelProto]] = {
    **{
        build.__name__: build
        for build in (
            constant_nodes, listed_inputs, transposed_soup, shape_soup, dynamic_everything, tied, functions,
            sequences, sequence_out, sequence_in, branches, loop, two_nets, joined_gates, scan, custom, qdq, qoperator,
            dynamic_integers, many_ends, streaming, signal_and_state, strings, hypernetwork, maps_out, states,
            odd_names, explicit_domain, training_left_in, shadowed, random_numbers, not_a_number, quantized_twice_over,
            einsum, upsampled, scalar_input, bytes_in, float8, unnamed_outputs, nothing, no_input, boxes,
            alone, tied_turned, noise_inside,
        )
    },
    **{f"opset_{n}": partial(cnn, n) for n in (7, 9, 11, 13, 15, 17, 19, 21, 23)},
    "boxes_of_many": partial(boxes, "N"),
    "listed_inputs_new": partial(listed_inputs, 10, 18),
    "half_weights": partial(half_weights, np.float16),
    "bfloat_weights": partial(half_weights, ml_dtypes.bfloat16),
    "half": partial(computing_in, "float16", np.float16),
    "double": partial(computing_in, "double", np.float64),
    "identity": lambda: proto("(float[N, 4] x) => (float[N, 4] y)", "y = Identity(x)"),
    "no_weights": lambda: proto("(float[N, 4] x) => (float[N, 4] y)", "a = Relu(x) y = Softmax(a)"),
    "chain": partial(chain, 40),
}  # fmt: skip
"""Each with what its docstring says."""
