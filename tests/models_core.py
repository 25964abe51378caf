"""Random convolutional nets for tests of channels and shrinking, and models that those must leave alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import models
import numpy as np
import onnx_ir as ir
from models import Weights, constants, text

from edgepress.compressor.shapes import infer_shapes

BLOCKS = (
    "conv", "strided", "relu", "leaky", "prelu", "prelu_one", "sigmoid", "clip", "batchnorm", "instancenorm",
    "residual", "residual_conv", "concat", "dense_concat", "depthwise", "multiplier", "grouped", "excite",
    "scale", "shift", "shift_one", "maxpool", "avgpool", "transpose", "twice", "split", "slice", "transposed",
    "pad",
)  # fmt: skip
HEADS = ("gap", "flatten", "reshape", "reshape_fixed", "mean", "mean_keep", "conv", "squeeze")


class Growing:
    """A net that grows block by block: text of its nodes, its weights, and the channels of the last value."""

    def __init__(self, seed: int, channels: int = 3, size: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: Weights = {}
        self.value, self.channels, self.size = "x", channels, size
        self.count = 0

    def weight(self, *shape: int, low: float | None = None) -> str:
        """A new constant: normal over the fan-in, or uniform from `low` to one above."""
        name = f"w{len(self.weights)}"
        draw = self.rng.standard_normal(shape) * max(1, int(np.prod(shape[1:]))) ** -0.5
        if low is not None:
            draw = low + self.rng.random(shape)
        self.weights[name] = draw.astype(np.float32)
        return name

    def integers(self, *values: int) -> str:
        """A new constant of indices."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def put(self, op: str, *inputs: str, attributes: str = "") -> str:
        """One more node; gives the name of its output."""
        self.count += 1
        out = f"v{self.count}"
        self.lines.append(f"{out} = {op} {f'<{attributes}>' if attributes else ''} ({', '.join(inputs)})")
        return out

    def conv(
        self, source: str, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = True,
        group: int = 1,
    ) -> str:  # fmt: skip
        """A Conv that keeps the size, but for its stride."""
        pad = kernel // 2
        tensors = [self.weight(outputs, inputs // group, kernel, kernel)]
        tensors += [self.weight(outputs)] if bias else []
        said = f"pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}], group = {group}"
        return self.put("Conv", source, *tensors, attributes=said)

    def block(self, kind: str) -> None:
        """Grow by one block."""
        getattr(self, f"_{kind}")()

    def _wide(self) -> int:
        return int(self.rng.integers(4, 9))

    def _conv(self) -> None:
        wide, kernel = self._wide(), int(self.rng.choice([1, 3]))
        bias = bool(self.rng.random() < 0.7)
        self.value, self.channels = self.conv(self.value, self.channels, wide, kernel=kernel, bias=bias), wide

    def _strided(self) -> None:
        if self.size < 4:
            return self._conv()
        wide = self._wide()
        self.value = self.conv(self.value, self.channels, wide, stride=2)
        self.channels, self.size = wide, (self.size + 1) // 2
        return None

    def _relu(self) -> None:
        self.value = self.put("Relu", self.value)

    def _leaky(self) -> None:
        self.value = self.put("LeakyRelu", self.value, attributes="alpha = 0.2")

    def _prelu(self) -> None:
        self.value = self.put("PRelu", self.value, self.weight(self.channels, 1, 1))

    def _prelu_one(self) -> None:
        """One slope for each column of the picture: nothing of it belongs to a channel."""
        self.value = self.put("PRelu", self.value, self.weight(self.size))

    def _sigmoid(self) -> None:
        self.value = self.put("Sigmoid", self.value)

    def _clip(self) -> None:
        low, high = self.weight(low=-1.0), self.weight(low=0.5)
        self.value = self.put("Clip", self.value, low, high)

    def _batchnorm(self) -> None:
        c = self.channels
        tensors = [self.weight(c, low=0.5), self.weight(c), self.weight(c), self.weight(c, low=0.5)]
        self.value = self.put("BatchNormalization", self.value, *tensors)

    def _instancenorm(self) -> None:
        c = self.channels
        self.value = self.put("InstanceNormalization", self.value, self.weight(c, low=0.5), self.weight(c))

    def _residual(self) -> None:
        """An Add with the input of the block."""
        inner = self.put("Relu", self.conv(self.value, self.channels, self._wide()))
        wide = self.weights[self.lines[-2].split("(")[1].split(",")[1].strip()].shape[0]
        self.value = self.put("Add", self.conv(inner, wide, self.channels), self.value)

    def _residual_conv(self) -> None:
        """An Add of two convolutions of one input."""
        wide = self._wide()
        left = self.put("Relu", self.conv(self.value, self.channels, wide))
        right = self.conv(self.value, self.channels, wide, kernel=1)
        self.value, self.channels = self.put("Add", left, right), wide

    def _concat(self) -> None:
        a, b = self._wide(), self._wide()
        left = self.put("Relu", self.conv(self.value, self.channels, a))
        right = self.conv(self.value, self.channels, b, kernel=1)
        self.value, self.channels = self.put("Concat", left, right, attributes="axis = 1"), a + b

    def _dense_concat(self) -> None:
        """A Concat with the input of the block."""
        if self.value == "x":
            return self._concat()
        a = self._wide()
        left = self.conv(self.value, self.channels, a)
        self.value = self.put("Concat", self.value, left, attributes="axis = 1")
        self.channels += a
        return None

    def _depthwise(self) -> None:
        self.value = self.conv(self.value, self.channels, self.channels, group=self.channels)

    def _multiplier(self) -> None:
        self.value = self.conv(self.value, self.channels, 2 * self.channels, group=self.channels)
        self.channels *= 2

    def _grouped(self) -> None:
        if self.channels % 2:
            return self._conv()
        self.value, self.channels = self.conv(self.value, self.channels, 8, group=2), 8
        return None

    def _excite(self) -> None:
        """Squeeze and excitation: a factor for each channel, from their means."""
        pooled = self.put("GlobalAveragePool", self.value)
        inner = self.put("Relu", self.conv(pooled, self.channels, 4, kernel=1))
        gate = self.put("Sigmoid", self.conv(inner, 4, self.channels, kernel=1))
        self.value = self.put("Mul", self.value, gate)

    def _scale(self) -> None:
        self.value = self.put("Mul", self.value, self.weight(1, self.channels, 1, 1))

    def _shift(self) -> None:
        self.value = self.put("Add", self.weight(self.channels, 1, 1), self.value)

    def _shift_one(self) -> None:
        self.value = self.put("Sub", self.value, self.weight(self.size, 1))

    def _maxpool(self) -> None:
        if self.size < 4:
            return self._relu()
        self.value = self.put("MaxPool", self.value, attributes="kernel_shape = [2, 2], strides = [2, 2]")
        self.size //= 2
        return None

    def _avgpool(self) -> None:
        if self.size < 4:
            return self._relu()
        self.value = self.put("AveragePool", self.value, attributes="kernel_shape = [2, 2], strides = [2, 2]")
        self.size //= 2
        return None

    def _transpose(self) -> None:
        """To channels-last and back, with something per channel between."""
        there = self.put("Transpose", self.value, attributes="perm = [0, 2, 3, 1]")
        there = self.put("Mul", there, self.weight(self.channels))
        self.value = self.put("Transpose", there, attributes="perm = [0, 3, 1, 2]")

    def _twice(self) -> None:
        """A value that meets itself."""
        self.value = self.put("Add", self.value, self.put("Mul", self.value, self.value))

    def _split(self) -> None:
        if self.channels % 2 or self.channels < 4:
            return self._conv()
        self.count += 2
        a, b = f"v{self.count - 1}", f"v{self.count}"
        self.lines.append(f"{a}, {b} = Split <axis = 1, num_outputs = 2> ({self.value})")
        self.value, self.channels = self.put("Mul", a, b), self.channels // 2
        return None

    def _slice(self) -> None:
        if self.channels < 3:
            return self._conv()
        bounds = (self.integers(1), self.integers(self.channels), self.integers(1))
        self.value, self.channels = self.put("Slice", self.value, *bounds), self.channels - 1
        return None

    def _transposed(self) -> None:
        wide = self._wide()
        self.value = self.put(
            "ConvTranspose", self.value, self.weight(self.channels, wide, 3, 3), self.weight(wide),
            attributes="pads = [1, 1, 1, 1]",
        )  # fmt: skip
        self.channels = wide

    def _pad(self) -> None:
        self.value = self.put("Pad", self.value, self.integers(0, 0, 1, 1, 0, 0, 1, 1))
        self.size += 2

    def head(self, kind: str) -> None:
        """The end of the net: from a picture to four scores."""
        c, s = self.channels, self.size
        gemm = "transB = 1"
        if kind == "conv":
            self.value = self.conv(self.value, c, 4, kernel=1)
            return
        if kind in ("gap", "squeeze"):
            pooled = self.put("GlobalAveragePool", self.value)
            flat = (
                self.put("Flatten", pooled)
                if kind == "gap"
                else self.put("Squeeze", pooled, self.integers(-1, 2))
            )
        elif kind == "flatten":
            flat, c = self.put("Flatten", self.value), c * s * s
        elif kind == "reshape":
            flat, c = self.put("Reshape", self.value, self.integers(0, -1)), c * s * s
        elif kind == "reshape_fixed":
            flat, c = self.put("Reshape", self.value, self.integers(-1, c * s * s)), c * s * s
        else:
            keep = int(kind == "mean_keep")
            flat = self.put("ReduceMean", self.value, self.integers(2, 3), attributes=f"keepdims = {keep}")
            flat = self.put("Flatten", flat) if keep else flat
        if kind == "mean":
            product = self.put("MatMul", flat, self.weight(c, 4))
            self.value = self.put("Add", product, self.weight(4))
        else:
            self.value = self.put("Gemm", flat, self.weight(4, c), self.weight(4), attributes=gemm)

    def model(self) -> ir.Model:
        """The net so far, with inferred shapes."""
        body = " ".join([*self.lines, f"y = Identity({self.value})"])
        rank = "N, 4" if "Gemm" in self.lines[-1] or "Add" in self.lines[-1] else "N, c, h, w"
        made = text(f"(float[N, 3, 8, 8] x) => (float[{rank}] y)", body, self.weights)
        infer_shapes(made)
        return made


def random_net(blocks: Sequence[str], head: str, seed: int) -> ir.Model:
    """A convolution, these blocks, and a head."""
    net = Growing(seed)
    net.block("conv")
    for kind in blocks:
        net.block(kind)
    net.head(head)
    return net.model()


def shared_bias() -> ir.Model:
    """Two layers with one bias."""
    return text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = Gemm <transB = 1> (x, w1, b) a = Relu(h) g = Gemm <transB = 1> (a, w2, b) r = Relu(g) "
        "y = Gemm <transB = 1> (r, w3)",
        constants(21, w1=(8, 6), b=(8,), w2=(8, 8), w3=(4, 8)),
    )


def tokens() -> ir.Model:
    """Rows of as many features as there are tokens: axes that look alike."""
    made = text(
        "(float[N, 8, 6] x) => (float[N, 8, 4] y)",
        "h = MatMul(x, w1) hb = Add(h, b1) a = Relu(hb) g = MatMul(a, w2) y = Add(b2, g)",
        constants(22, w1=(6, 8), b1=(8,), w2=(8, 4), b2=(4,)),
    )
    infer_shapes(made)
    return made


def attention() -> ir.Model:
    """A product of two activations, a softmax, and a dense layer behind."""
    return text(
        "(float[N, 3, 6] x) => (float[N, 3, 4] y)",
        """
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul(q, t) p = Softmax <axis = -1> (s) m = MatMul(p, v) y = MatMul(m, wo)
        """,
        constants(23, wq=(6, 8), wk=(6, 8), wv=(6, 8), wo=(8, 4)),
    )


def one_channel() -> ir.Model:
    """A single channel that a constant spreads over many."""
    return text(
        "(float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)",
        "a = Conv(x, k1) s = Mul(a, many) c = Conv(x, k2) j = Concat <axis = 1> (s, c) r = Relu(j) "
        "y = Conv(r, k3)",
        constants(24, k1=(1, 3, 1, 1), many=(5, 1, 1), k2=(6, 3, 1, 1), k3=(4, 11, 1, 1)),
    )


def folded_rows() -> ir.Model:
    """A Reshape that makes two rows of one."""
    made = text(
        "(float[N, 3, 2, 2] x) => (float[M, 3] y)",
        "c = Conv(x, k, b) r = Relu(c) f = Reshape(r, shape) y = Gemm <transB = 1> (f, w)",
        constants(25, k=(8, 3, 1, 1), b=(8,), w=(3, 16)) | {"shape": np.array([-1, 16], np.int64)},
    )
    infer_shapes(made)
    return made


def column_bias() -> ir.Model:
    """A Gemm whose C has one value a row, as many as there are outputs."""
    return text(
        "(float[6, 5] x) => (float[6, 3] y)",
        "h = Gemm <transB = 1> (x, w1, c) a = Relu(h) y = Gemm <transB = 1> (a, w2, b)",
        constants(26, w1=(6, 5), c=(6, 1), w2=(3, 6), b=(3,)),
    )


def captured() -> ir.Model:
    """A value that a dense layer reads, and the bodies of an If."""
    return text(
        "(float[N, 4] x) => (float[N, 3] y)",
        """
        h = Gemm <transB = 1> (x, w1, b1) a = Relu(h)
        total = ReduceSum <keepdims = 0> (x) positive = Greater(total, zero)
        z = If <
            then_branch = up () => (t) { t = Mul(a, s) }, else_branch = down () => (e) { e = Neg(a) }
        > (positive)
        direct = Gemm <transB = 1> (a, w2, b2) other = Gemm <transB = 1> (z, w3) y = Add(direct, other)
        """,
        constants(27, w1=(6, 4), b1=(6,), s=(6,), w2=(3, 6), b2=(3,), w3=(3, 6))
        | {"zero": np.array(0, np.float32)},
    )


CORE: Mapping[str, Callable[[], ir.Model]] = {
    build.__name__: build
    for build in (shared_bias, tokens, attention, one_channel, folded_rows, column_bias, captured)
} | {
    f"net_{kind}": partial(random_net, ("relu", kind, "conv", "relu"), "gap", number)
    for number, kind in enumerate(BLOCKS)
}  # fmt: skip
"""Models that are about channels, by name."""

ALL: Mapping[str, Callable[[], ir.Model]] = {**models.ALL, **CORE}
