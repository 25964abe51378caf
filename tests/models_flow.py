"""Tiny models in which channels take the ways that exporters write: recurrent layers, Split, Reshape, Gather …"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from models import Weights, constants, text

from edgepress.compressor.shapes import infer_shapes

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def integers(**values: list[int]) -> Weights:
    """Constants of integers; a list of one element in a list is a scalar's."""
    return {name: np.array(value, np.int64) for name, value in values.items()}


def recurrent(
    op: str, *, both: bool = False, attributes: str = "", last: bool = False, bias: bool = True, given: bool = False,
    hidden: int = 6, seed: int = 40,
) -> ir.Model:  # fmt: skip
    """A recurrent layer, its directions side by side, and a dense layer.

    Args:
        op: RNN, GRU or LSTM.
        both: forward and backward.
        attributes: more of the layer's.
        last: the dense layer reads the last state, else all of them.
        bias: whether there is B.
        given: lengths, first states and, of an LSTM, peepholes are given as constants; for 4 rows.
        hidden: units of each direction.
        seed: of the weights.
    """
    d, rows = 1 + both, GATES[op] * hidden
    weights = constants(
        seed, w=(d, rows, 3), r=(d, rows, hidden), v=(2, d * hidden), c=(2,), m=(d * hidden, 2)
    )
    inputs = "x, w, r"
    if bias:
        weights |= constants(seed + 1, b=(d, 2 * rows))
        inputs += ", b"
    n = "N"
    if given:
        n = "4"
        weights |= {"lengths": np.array([5, 3, 1, 4], np.int32)}
        weights |= constants(seed + 2, h0=(d, 4, hidden), c0=(d, 4, hidden), p=(d, 3 * hidden))
        inputs += ", lengths, h0" + (", c0, p" if op == "LSTM" else "")
    said = f'hidden_size = {hidden}, direction = "{"bidirectional" if both else "forward"}"'
    said += f", {attributes}" if attributes else ""
    if last:
        tail = "t = Transpose <perm = [1, 0, 2]> (h) f = Flatten(t) y = Gemm <transB = 1> (f, v, c)"
        result = "N, 2" if not given else "4, 2"
    else:
        tail = "t = Transpose <perm = [0, 2, 1, 3]> (s) q = Reshape(t, shape) y = MatMul(q, m)"
        result = f"5, {n}, 2"
    body = f"s, h = {op} <{said}> ({inputs}) {tail}"
    return made(f"(float[5, {n}, 3] x) => (float[{result}] y)", body, weights | integers(shape=[0, 0, -1]))


def made(header: str, body: str, weights: Weights, opset: int = 18) -> ir.Model:
    """A model with inferred shapes."""
    model = text(header, body, weights, opset)
    infer_shapes(model)
    return model


def exported_gru() -> ir.Model:
    """A first state and a target shape that the graph works out, as exporters of dynamic batches write it."""
    return made(
        "(float[N, 5, 3] x) => (float[N, 2] y)",
        """
        n = Shape <start = 0, end = 1> (x) size = Concat <axis = 0> (one, n, width) many = Expand(zero, size)
        h0 = Slice(many, first, one, first) xt = Transpose <perm = [1, 0, 2]> (x)
        s = GRU <hidden_size = 6, linear_before_reset = 1> (xt, w, r, b, , h0)
        t = Transpose <perm = [0, 2, 1, 3]> (s) of = Shape(t)
        d0 = Slice(of, first, one) d1 = Slice(of, one, two) d2 = Slice(of, two, three) d3 = Slice(of, three, four)
        both = Mul(d2, d3) flat = Reshape(both, minus) target = Concat <axis = 0> (d0, d1, flat)
        q = Reshape(t, target) back = Transpose <perm = [1, 0, 2]> (q) last = Gather <axis = 1> (back, end)
        y = Gemm <transB = 1> (last, v, c)
        """,
        constants(41, w=(1, 18, 3), r=(1, 18, 6), b=(1, 36), v=(2, 6), c=(2,))
        | integers(one=[1], width=[6], first=[0], two=[2], three=[3], four=[4], minus=[-1])
        | {"zero": np.array(0, np.float32), "end": np.array(-1, np.int64)},
    )


def encoder_decoder() -> ir.Model:
    """A state that another layer starts from."""
    return made(
        "(float[5, N, 3] x) => (float[5, N, 2] y)",
        """
        s, h = GRU <hidden_size = 4> (x, w1, r1, b1) u = GRU <hidden_size = 4> (x, w2, r2, b2, , h)
        q = Squeeze(u, axes) y = MatMul(q, m)
        """,
        constants(
            42, w1=(1, 12, 3), r1=(1, 12, 4), b1=(1, 24), w2=(1, 12, 3), r2=(1, 12, 4), b2=(1, 24), m=(4, 2)
        )
        | integers(axes=[1]),
    )


def stacked() -> ir.Model:
    """A dense layer, two recurrent ones and a dense one."""
    return made(
        "(float[5, N, 3] x) => (float[N, 2] y)",
        """
        e = MatMul(x, k) a = Relu(e) s, h, c = LSTM <hidden_size = 4, direction = "bidirectional"> (a, w1, r1, b1)
        t = Transpose <perm = [0, 2, 1, 3]> (s) q = Reshape(t, shape) u, g = RNN <hidden_size = 6> (q, w2, r2)
        f = Squeeze(g, axes) y = Gemm <transB = 1> (f, v)
        """,
        constants(
            43, k=(3, 6), w1=(2, 16, 6), r1=(2, 16, 4), b1=(2, 32), w2=(1, 6, 8), r2=(1, 6, 6), v=(2, 6)
        )
        | integers(axes=[0], shape=[0, 0, 8]),
    )  # fmt: skip


def conv_head(body: str, weights: Weights, channels: int = 8, opset: int = 18) -> ir.Model:
    """A convolution to 8 channels `a` of 4 × 4, some nodes that make `b`, and a convolution to `y`."""
    return made(
        "(float[N, 2, 4, 4] x) => (float[N, 3, p, q] y)",
        f"k = Conv(x, k1, b1) a = Relu(k) {body} y = Conv(b, k2, b2)",
        constants(44, k1=(8, 2, 1, 1), b1=(8,), k2=(3, channels, 1, 1), b2=(3,)) | weights,
        opset,
    )


def view() -> ir.Model:
    """The first axis by name, the rest as it comes: what `x.view(x.size(0), -1)` becomes."""
    return made(
        "(float[N, 2, 4, 4] x) => (float[N, 3] y)",
        """
        k = Conv(x, k1, b1) a = Relu(k) of = Shape(a) n = Gather(of, zero) n1 = Unsqueeze(n, axes)
        target = Concat <axis = 0> (n1, rest) f = Reshape(a, target) y = Gemm <transB = 1> (f, w)
        """,
        constants(45, k1=(8, 2, 1, 1), b1=(8,), w=(3, 128)) | integers(axes=[0], rest=[-1])
        | {"zero": np.array(0, np.int64)},
    )  # fmt: skip


def decoder() -> ir.Model:
    """A dense layer whose outputs become channels of pictures, and transposed convolutions."""
    return made(
        "(float[N, 5] x) => (float[N, 1, p, q] y)",
        """
        h = Gemm <transB = 1> (x, w, v) r = Relu(h) p = Reshape(r, shape)
        c = ConvTranspose <strides = [2, 2]> (p, k1, b1) a = Relu(c) y = ConvTranspose(a, k2)
        """,
        constants(46, w=(24, 5), v=(24,), k1=(6, 4, 2, 2), b1=(4,), k2=(4, 1, 3, 3)) | integers(shape=[-1, 6, 2, 2]),
    )  # fmt: skip


def flat_norm() -> ir.Model:
    """BatchNormalization and a threshold for each feature behind a dense layer."""
    weights = constants(47, w1=(8, 6), s=(8,), t=(8,), mean=(8,), w2=(4, 8)) | {
        "var": np.linspace(0.5, 2, 8, dtype=np.float32),
        "least": np.linspace(0.1, 0.4, 8, dtype=np.float32),
        "nothing": np.array(0, np.float32),
    }
    return made(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = Gemm <transB = 1> (x, w1) n = BatchNormalization(h, s, t, mean, var) g = Greater(n, least) "
        "a = Where(g, n, nothing) y = Gemm <transB = 1> (a, w2)",
        weights,
    )


FLOWS: Mapping[str, Callable[[], ir.Model]] = {
    "exported_gru": exported_gru,
    "encoder_decoder": encoder_decoder,
    "stacked": stacked,
    "view": view,
    "decoder": decoder,
    "flat_norm": flat_norm,
    "rnn": partial(recurrent, "RNN"),
    "rnn_both": partial(recurrent, "RNN", both=True, bias=False),
    "gru_before": partial(recurrent, "GRU", attributes="linear_before_reset = 1"),
    "gru_both": partial(recurrent, "GRU", both=True),
    "gru_last": partial(recurrent, "GRU", both=True, last=True, bias=False),
    "gru_given": partial(recurrent, "GRU", both=True, given=True),
    "lstm": partial(recurrent, "LSTM"),
    "lstm_both": partial(recurrent, "LSTM", both=True, attributes="clip = 3.0"),
    "lstm_last": partial(recurrent, "LSTM", last=True),
    "lstm_given": partial(recurrent, "LSTM", both=True, given=True, last=True),
    "split": partial(
        conv_head, "l, m, n = Split <axis = 1> (a, parts) s = Mul(l, m) b = Concat <axis = 1> (s, n)",
        integers(parts=[3, 3, 2]), 5,
    ),
    "split_old": partial(
        conv_head, "l, m = Split <axis = 1, split = [3, 5]> (a) b = Concat <axis = 1> (m, l, m)", {}, 13, 11
    ),
    "split_rows": partial(
        conv_head, "l, m = Split <axis = 2, num_outputs = 2> (a) b = Add(l, m)", {}
    ),
    "slice_old": partial(conv_head, "b = Slice <axes = [1, 2], starts = [-5, 1], ends = [100, 4]> (a)", {}, 5, 9),
    "slice_rows": partial(conv_head, "b = Slice(a, at, to, axes)", integers(at=[1, 1], to=[3, -1], axes=[3, 1]), 6),
    "gather": partial(conv_head, "b = Gather <axis = 1> (a, at)", integers(at=[7, 0, -2, 3, 3, 1]), 6),
    "resize": partial(
        conv_head, 'b = Resize <mode = "nearest"> (a, , factors)',
        {"factors": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize_sizes": partial(conv_head, "b = Resize(a, , , sizes)", integers(sizes=[4, 8, 6, 6])),
    "pad": partial(conv_head, "b = Pad(a, pads, , axes)", integers(pads=[1, 0, 1, 2], axes=[2, 3])),
    "reshape_keep": partial(
        conv_head, "f = Reshape(a, flat) s = Mul(f, g) b = Reshape(s, back)",
        integers(flat=[0, 8, 16], back=[-1, 8, 4, 4]) | constants(48, g=(8, 1)),
    ),
    "unsqueeze": partial(
        conv_head, "f = Unsqueeze(a, axes) g = Neg(f) b = Squeeze(g, axes)", integers(axes=[-3])
    ),
    "parts_share_sizes": partial(
        conv_head,
        "l, m = Split <axis = 1> (a, parts) n, o = Split <axis = 2> (a, parts2) b = Concat <axis = 1> (l, a, m)",
        integers(parts=[4, 4], parts2=[2, 2]), 16,
    ),
}  # fmt: skip
"""By name; in each all of the hidden channels can shrink."""
