"""Nets and boxes that certificates are tried on, and the two claims that hold for each."""

from itertools import product
from typing import Any

import models
import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from edgepress.compressor.certify.backward import bounded, tightened
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.program import read
from edgepress.compressor.normalize import normalize
from edgepress.compressor.sites import find_sites, replace_constant

HEAD = "(float[N, 2, 4, 4] x) => (float[N, M] y)"
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, k, b)"
TAIL = "f = Flatten(r) y = Gemm <transB = 1> (f, w, v)"
BODIES = {
    "relu, max pool": "a = Relu(c) r = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
    "max pool over the edge": "r = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c)",
    "max pool, size rounded up": "r = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (c)",
    "average pool": "a = Relu(c) r = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (a)",
    "leaky": "r = LeakyRelu <alpha = 0.2> (c)",
    "prelu": "r = PRelu(c, slope)",
    "prelu of any slope": "r = PRelu(c, steep)",
    "clip": "lo = Constant <value_float = -0.3> () hi = Constant <value_float = 0.4> () r = Clip(c, lo, hi)",
    "sigmoid": "r = Sigmoid(c)",
    "tanh": "r = Tanh(c)",
    "norm": "r = LRN <size = 3, alpha = 0.9, beta = 0.75, bias = 0.5> (c)",
    "residual": "a = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (a, k2, b) s = Add(d, c) r = Relu(s)",
    "a difference": "a = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (a, k2, b) s = Sub(a, d) r = Relu(s)",
    "depthwise": "a = Relu(c) r = Conv <group = 3, strides = [2, 1], pads = [1, 0, 0, 1]> (a, kd)",
    "joined": "a = Relu(c) t = Tanh(c) r = Concat <axis = 1> (a, t)",
    "joined by relu": "a = Relu(c) t = LeakyRelu <alpha = 0.5> (c) r = Concat <axis = -3> (a, t)",
    "moved": "t = Transpose <perm = [0, 2, 3, 1]> (c) r = Relu(t)",
    "scaled": "n = BatchNormalization(c, g, g2, g3, g4) m = Mul(n, scale) r = Relu(m)",
    "scaled behind a rectifier": "a = Relu(c) n = BatchNormalization(a, g, g2, g3, g4) r = Relu(n)",
    "means of rows": "a = Relu(c) r = ReduceMean <keepdims = 0> (a, axes)",
    "mean with axes": "a = Relu(c) r = ReduceMean(a, places)",
    "mean without axes": "a = Relu(c) r = ReduceMean <keepdims = 0> (a, places)",
    "mean": "a = Relu(c) r = GlobalAveragePool(a)",
    "pool between": "a = Relu(c) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) "
    "d = Conv <pads = [1, 1, 1, 1]> (p, k2, b) r = Relu(d)",
    "pool first": "p = MaxPool <kernel_shape = [2, 2]> (c) a = Relu(p) d = Conv (a, k2) r = Relu(d)",
    "no pool": "a = Relu(c) d = Conv (a, k2, b) r = Relu(d)",
    "no rectifier": "p = MaxPool <kernel_shape = [2, 2]> (c) d = Conv (p, k2, b) r = Relu(d)",
    "padding on padding": "p = Conv <pads = [0, 3, 0, 3]> (x, k1, b) a = Relu(p) "
    "d = Conv <dilations = [1, 2], pads = [0, 2, 0, 2]> (a, kw, b) r = Relu(d)",
    "softmax inside": "r = Softmax <axis = 1> (c)",
    "gated": "m = GlobalAveragePool(c) e = Conv(m, kg) s = HardSigmoid <alpha = 0.3> (e) r = Mul(c, s)",
    "gated by a sigmoid": "s = Sigmoid(c) r = Mul(s, c)",
    "squared": "r = Mul(c, c)",
    "hard swish": "r = HardSwish(c)",
    "less its mean": "m = GlobalAveragePool(c) r = Sub(m, c)",
    "transposed": "a = Relu(c) r = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]> "
    "(a, kt, bt)",
    "transposed in groups": "a = Relu(c) r = ConvTranspose <group = 3, dilations = [1, 2], strides = [2, 2]> (a, kd2)",
}  # fmt: skip


def weights(seed: int, inputs: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = models.constants(
        seed,
        k=(3, 2, 3, 3),
        b=(3,),
        k2=(3, 3, 3, 3),
        kd=(3, 1, 3, 2),
        w=(3, inputs),
        v=(3,),
        g=(3,),
        g2=(3,),
        g3=(3,),
        k1=(3, 2, 1, 1),
        kw=(3, 3, 1, 3),
        kg=(3, 3, 1, 1),
        kt=(3, 2, 3, 2),
        bt=(2,),
        kd2=(3, 1, 2, 2),
    )
    return found | {
        "places": models.array(2, 3, dtype=np.int64),
        "axes": models.array(-2, dtype=np.int64),
        "g4": rng.uniform(0.5, 2, 3).astype(np.float32),
        "slope": rng.uniform(0, 1, (3, 1, 1)).astype(np.float32),
        "steep": np.array([-0.4, 1.7, 0.5], np.float32).reshape(3, 1, 1),
        "scale": rng.normal(size=(1, 3, 1, 1)).astype(np.float32),
    }


def net(name: str, seed: int = 0) -> ir.Model:
    """One of `BODIES`, in canonical form but for constants that fold away."""
    width = {
        "relu, max pool": 12,
        "max pool over the edge": 12,
        "max pool, size rounded up": 12,
        "average pool": 12,
    }
    width |= {
        "pool between": 12,
        "pool first": 3,
        "no pool": 12,
        "no rectifier": 3,
        "padding on padding": 120,
        "transposed": 72,
        "means of rows": 12,
        "mean without axes": 3,
        "mean with axes": 3,
        "transposed in groups": 216,
    }
    width |= {"joined": 96, "joined by relu": 96, "mean": 3, "depthwise": 24}
    kept = weights(seed, width.get(name, 48))
    body = f"{CONV} {BODIES[name]} {TAIL}"
    used = {
        key: value
        for key, value in kept.items()
        if f" {key}" in body.replace(",", " ").replace(")", " ").replace("(", " ")
    }
    return normalize(models.text(HEAD.replace("M]", "3]"), body, used)).model


def points(box: Interval, seed: int = 0) -> np.ndarray[Any, Any]:
    """Corners and points of a box: all corners of a small one, some of a large one."""
    rng, row = np.random.default_rng(seed), box.shape[1:]
    count = int(np.prod(row))
    corners = (
        np.array(list(product((0.0, 0.5, 1.0), repeat=count)))
        if count <= 4
        else rng.integers(0, 2, (300, count)).astype(float)
    )
    share = np.concatenate([corners, rng.random((100, count))]).reshape(-1, *row)
    return (box.lo + share * (box.hi - box.lo)).astype(np.float32)


def box_of(model: ir.Model, low: float = -1.0, high: float = 1.0) -> Interval:
    row = read(model).row
    return Interval(np.full((1, *row), low), np.full((1, *row), high))


def output(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = next(iter(models.run(model, {"x": x}).values())).astype(np.float64)
    return found.reshape(len(found), -1)


def nudged(model: ir.Model, seed: int = 1, share: float = 0.3) -> ir.Model:
    """Some weights zero, the others off by a little."""
    changed, rng = model.clone(), np.random.default_rng(seed)
    for site in find_sites(changed):
        weight = site.weight * (1 + 0.05 * rng.normal(size=site.weight.shape))
        replace_constant(
            site.node, 1, np.where(rng.random(weight.shape) < share, 0, weight).astype(np.float32)
        )
    return changed


def assert_range_holds(model: ir.Model, box: Interval) -> None:
    """Intervals and linear bounds, for what onnxruntime computes in float32."""
    program, y = read(model), output(model, points(box))
    ranges = program.ranges(box, UNIT32)
    name = program.outputs[0]
    for known in (ranges, tightened(program, box, UNIT32)):
        for found in (known[name], bounded(program, name, known, UNIT32)):
            assert (found.lo.reshape(1, -1) <= y).all()
            assert (y <= found.hi.reshape(1, -1)).all()


def assert_change_holds(model: ir.Model, other: ir.Model, box: Interval, together: bool = True) -> None:
    """Bounds of the difference, plain and tight."""
    x = points(box)
    moved = output(other, x) - output(model, x)
    widths = []
    for tight in (False, True):
        found = bound(read(model), read(other), box, float32=True, tight=tight)
        assert found.together == together
        part = found.changes[0]
        assert (part.lo.reshape(1, -1) <= moved).all()
        assert (moved <= part.hi.reshape(1, -1)).all()
        widths.append(part.width.sum())
    assert widths[1] <= widths[0] * (1 + 1e-9)


def tiny(data: st.DataObject, kinds: tuple[str, ...] = ("Relu", "Tanh", "Sigmoid", "LeakyRelu")) -> ir.Model:
    """Two to four inputs, two or three layers: small enough to try every corner."""
    inputs, hidden, depth = (
        data.draw(st.integers(2, 4)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 2)),
    )
    kind = data.draw(st.sampled_from(kinds))
    seed = data.draw(st.integers(0, 10**6))
    shapes: dict[str, tuple[int, ...]] = {"w0": (hidden, inputs), "b0": (hidden,)}
    lines = [f"h0 = Gemm <transB = 1> (x, w0, b0) a0 = {kind}(h0)"]
    for i in range(1, depth):
        shapes |= {f"w{i}": (hidden, hidden), f"b{i}": (hidden,)}
        lines.append(f"h{i} = Gemm <transB = 1> (a{i - 1}, w{i}, b{i}) a{i} = {kind}(h{i})")
    shapes |= {"w": (2, hidden), "b": (2,)}
    lines.append(f"y = Gemm <transB = 1> (a{depth - 1}, w, b)")
    body = " ".join(lines)
    return normalize(
        models.text(f"(float[N, {inputs}] x) => (float[N, 2] y)", body, models.constants(seed, **shapes))
    ).model


def one_layer(*, quantized: bool = False, shift: float = 0.0) -> ir.Model:
    """Two inputs, one layer: bounds are exact there, so that any that is too narrow shows."""
    first = "q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z)" if quantized else "u = Identity(x)"
    kept: dict[str, Any] = {"w": models.array(1, -1, 0.5, 1).reshape(2, 2), "b": models.array(shift, shift)}
    if quantized:
        kept |= {"s": np.float32(0.3), "z": np.uint8(128)}
    body = f"{first} h = Gemm(u, w, b) y = Relu(h)"
    return normalize(models.text("(float[N, 2] x) => (float[N, 2] y)", body, kept)).model


def with_erf() -> ir.Model:
    """A net with an operator that no bounds are known for."""
    header = "(float[N, 6] x) => (float[N, 4] y)"
    return models.text(header, "r = Erf(x) y = MatMul(r, w)", models.constants(1, w=(6, 4)))
