"""Tiny models with If, Loop and Scan, whose bodies hold or read weights."""

import numpy as np
import onnx
from models import constants
from models_exports import IN, OUT, dense, proto
from onnx import numpy_helper


def branches() -> onnx.ModelProto:
    """If, with layers inside whose weights are its own or the outer graph's."""
    body = """
        s = ReduceSum <keepdims = 0> (x) yes = Greater(s, zero)
        h = If (yes) <
            then_branch = one () => (float[N, 24] t) { t1 = MatMul(x, w) t = Add(t1, b) },
            else_branch = two () => (float[N, 24] e)
                { k = Constant <value = float[1] {0.5}> () e1 = MatMul(x, w) e2 = Mul(e1, k) e = Neg(e2) }
        >
        a = Relu(h) g = MatMul(a, v) y = Add(g, c)
    """
    return dense(body, {"zero": np.array(0, np.float32)})


def loop() -> onnx.ModelProto:
    """Loop, with a dense layer inside that runs three times."""
    body = """
        h = Loop (three, go, x) <body = step (int64 i, bool on, float[N, 16] s) => (bool keep, float[N, 16] t)
            { keep = Identity(on) m = MatMul(s, q) t = Tanh(m) }>
        y = MatMul(h, p)
    """
    more = {"three": np.array(3, np.int64), "go": np.array(True)} | constants(65, q=(16, 16), p=(16, 12))
    return proto(f"({IN}) => ({OUT})", body, more)


def two_nets() -> onnx.ModelProto:
    """A whole net in each branch of an If, weights inside; what one calls a weight is the other's result of a node."""
    body = """
        n = Cast <to = 7> (r) w = Equal(n, one)
        y = If (w) <
            then_branch = high () => (float[N, 12] t) { t1 = MatMul(x, p) t2 = Relu(t1) t = MatMul(t2, q) },
            else_branch = low () => (float[N, 12] e) { e1 = MatMul(x, p) q = Tanh(e1) e = MatMul(q, v) }
        >
    """
    model = proto(
        "(float[N, 16] x, int64[1] r) => (float[N, 12] y)", body, {"one": np.array([1], np.int64)}, opset=18
    )
    then, other = (attribute.g for attribute in model.graph.node[-1].attribute)
    for seed, branch, names in ((67, then, "pq"), (68, other, "pv")):
        weights = constants(seed, **{names[0]: (16, 48), names[1]: (48, 12)})
        branch.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    return model


def joined_gates() -> onnx.ModelProto:
    """An LSTM whose gates are put in order from another framework's weights, once in each branch of an If."""

    def branch(name: str) -> str:
        return f"""
            {name}i = Slice(w, at0, at1, rows) {name}f = Slice(w, at1, at2, rows) {name}o = Slice(w, at2, at3, rows)
            {name}w = Concat <axis = 0> ({name}i, {name}o, {name}f) {name}u = Unsqueeze({name}w, rows)
            {name}y, {name}h = LSTM <hidden_size = 64> (x, {name}u, r) {name} = Squeeze({name}h, rows)
        """

    body = f"""
        s = ReduceSum <keepdims = 0> (x) yes = Greater(s, zero)
        y = If (yes) <
            then_branch = one () => (float[1, 64] t) {{ {branch("t")} }},
            else_branch = two () => (float[1, 64] e) {{ {branch("e")} }}
        >
    """
    at = {f"at{i}": np.array([n], np.int64) for i, n in enumerate((0, 64, 128, 256))}
    more = constants(71, w=(256, 48), r=(1, 256, 64)) | at | {"rows": np.array([0], np.int64)}
    model = proto("(float[5, 1, 48] x) => (float[1, 64] y)", body, more | {"zero": np.array(0, np.float32)})
    for attribute in model.graph.node[-1].attribute:  # each knows its own bounds
        attribute.g.initializer.extend(t for t in model.graph.initializer if t.name in {"rows", *at})
    kept = [t for t in model.graph.initializer if t.name not in {"rows", *at}]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def scan() -> onnx.ModelProto:
    """Scan: a recurrent layer written out, its weights inside of it."""
    body = """
        xt = Transpose <perm = [1, 0, 2]> (x)
        last, all = Scan <num_scan_inputs = 1,
            body = step (float[2, 16] s, float[2, 8] now) => (float[2, 16] n, float[2, 16] o)
            { i = MatMul(now, wi) r = MatMul(s, wr) u = Add(i, r) n = Tanh(u) o = Identity(n) }> (zero, xt)
        y = MatMul(last, p)
    """
    weights = constants(66, wi=(8, 16), wr=(16, 16), p=(16, 12)) | {"zero": np.zeros((2, 16), np.float32)}
    return proto("(float[2, 6, 8] x) => (float[2, 12] y)", body, weights)


def one_name_twice() -> onnx.ModelProto:
    """Branches that know one name as a float and as an integer."""
    body = """
        s = ReduceSum <keepdims = 0> (x) yes = Greater(s, zero)
        y = If (yes) <
            then_branch = one () => (float[N, 64] t) { t = Mul(x, k) },
            else_branch = two () => (float[N, 64] e) { e = Reshape(x, k) }
        >
    """
    model = proto("(float[N, 64] x) => (float[N, 64] y)", body, {"zero": np.array(0, np.float32)})
    then, other = (attribute.g for attribute in model.graph.node[-1].attribute)
    for branch, value in ((then, np.array(0.5, np.float32)), (other, np.array([-1, 64]))):
        branch.initializer.append(numpy_helper.from_array(value, "k"))
    return model
