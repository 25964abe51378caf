"""Tiny models that tests share, each for one thing that passes get wrong; and a way to run them."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from edgepress.compressor.model import input_specs, load
from edgepress.compressor.serialize import serialize

OPSET = 18


Weights = dict[str, npt.NDArray[Any]]


def constants(seed: int, dtype: type = np.float32, **shapes: tuple[int, ...]) -> Weights:
    """Weights by name, from a normal distribution scaled by the fan-in."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * max(1, int(np.prod(shape[1:]))) ** -0.5).astype(dtype)
        for name, shape in shapes.items()
    }


def array(*values: float, dtype: type = np.float32) -> npt.NDArray[Any]:
    """One row of given values."""
    return np.array(values, dtype=dtype)


def text(
    header: str, body: str, weights: Weights | None = None, opset: int = OPSET, ir_version: int = 10
) -> ir.Model:
    """A model from ONNX text; `header` is `(inputs) => (outputs)`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> tiny {header} {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(w, name) for name, w in (weights or {}).items()
    )
    return ir.from_proto(proto)


def mlp(hidden: int = 8, classes: int = 4) -> ir.Model:
    """Gemm, Relu, Gemm; dynamic batch."""
    return text(
        f"(float[N, 6] x) => (float[N, {classes}] y)",
        "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2, b2)",
        constants(1, w1=(hidden, 6), b1=(hidden,), w2=(classes, hidden), b2=(classes,)),
    )


def matmul() -> ir.Model:
    """MatMul + Add twice over three axes, as transformers write dense layers."""
    return text(
        "(float[N, 3, 6] x) => (float[N, 3, 4] y)",
        "h = MatMul(x, w1) hb = Add(h, b1) a = Relu(hb) g = MatMul(a, w2) y = Add(b2, g)",
        constants(2, w1=(6, 8), b1=(8,), w2=(8, 4), b2=(4,)),
    )


def cnn() -> ir.Model:
    """Conv, Relu, MaxPool, Conv, Relu, pool, Flatten, Gemm."""
    return text(
        "(float[N, 2, 8, 8] x) => (float[N, 3] y)",
        """
        c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1) r1 = Relu(c1)
        p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
        c2 = Conv <pads = [1, 1, 1, 1]> (p1, k2, b2) r2 = Relu(c2)
        g = GlobalAveragePool(r2) f = Flatten(g) y = Gemm <transB = 1> (f, w, b)
        """,
        constants(3, k1=(4, 2, 3, 3), b1=(4,), k2=(8, 4, 3, 3), b2=(8,), w=(3, 8), b=(3,)),
    )


def batchnorm() -> ir.Model:
    """Conv without bias, BatchNormalization kept, Relu; then a scale and a shift as separate nodes."""
    weights = constants(
        4, k=(4, 2, 3, 3), gamma=(4,), beta=(4,), mean=(4,), k2=(4, 4, 1, 1), s=(1, 4, 1, 1), t=(4, 1, 1)
    )
    return text(
        "(float[N, 2, 6, 6] x) => (float[N, 4, 4, 4] y)",
        "c = Conv(x, k) n = BatchNormalization(c, gamma, beta, mean, var) r = Relu(n) "
        "d = Conv(r, k2) m = Mul(d, s) y = Add(t, m)",
        weights | {"var": array(0.5, 1.0, 2.0, 0.25)},
    )


def residual() -> ir.Model:
    """Two convolutions and an Add with the input of the block."""
    return text(
        "(float[N, 4, 6, 6] x) => (float[N, 3] y)",
        """
        c0 = Conv <pads = [1, 1, 1, 1]> (x, k0, b0) r0 = Relu(c0)
        c1 = Conv <pads = [1, 1, 1, 1]> (r0, k1, b1) r1 = Relu(c1)
        c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, b2) s = Add(c2, r0) r2 = Relu(s)
        g = GlobalAveragePool(r2) f = Flatten(g) y = Gemm <transB = 1> (f, w, b)
        """,
        constants(
            5, k0=(8, 4, 3, 3), b0=(8,), k1=(8, 8, 3, 3), b1=(8,), k2=(8, 8, 3, 3), b2=(8,), w=(3, 8), b=(3,)
        ),
    )


def concat() -> ir.Model:
    """Two branches joined on the channel axis."""
    return text(
        "(float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y)",
        """
        c1 = Conv(x, k1, b1) r1 = Relu(c1)
        c2 = Conv <pads = [1, 1, 1, 1]> (x, k2, b2) r2 = Relu(c2)
        j = Concat <axis = 1> (r1, r2) y = Conv(j, k3, b3)
        """,
        constants(6, k1=(4, 2, 1, 1), b1=(4,), k2=(4, 2, 3, 3), b2=(4,), k3=(3, 8, 1, 1), b3=(3,)),
    )


def depthwise() -> ir.Model:
    """1×1, depthwise 3×3, 1×1, with Clip to six."""
    return text(
        "(float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y)",
        """
        c1 = Conv(x, k1, b1) r1 = Clip(c1, zero, six)
        c2 = Conv <pads = [1, 1, 1, 1], group = 8> (r1, k2, b2) r2 = Clip(c2, zero, six) y = Conv(r2, k3, b3)
        """,
        constants(7, k1=(8, 4, 1, 1), b1=(8,), k2=(8, 1, 3, 3), b2=(8,), k3=(4, 8, 1, 1), b3=(4,))
        | {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)},
    )


def conv_transpose() -> ir.Model:
    """Conv and ConvTranspose, a tiny autoencoder."""
    return text(
        "(float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y)",
        """
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1], kernel_shape = [4, 4]> (x, k1, b1) r = Relu(c)
        d = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], kernel_shape = [4, 4]> (r, k2, b2)
        y = Sigmoid(d)
        """,
        constants(8, k1=(4, 1, 4, 4), b1=(4,), k2=(4, 1, 4, 4), b2=(1,)),
    )


def conv1d() -> ir.Model:
    """One-dimensional convolutions."""
    return text(
        "(float[N, 2, 12] x) => (float[N, 3] y)",
        "c = Conv(x, k, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) "
        "y = Gemm <transB = 1> (f, w, v)",
        constants(9, k=(6, 2, 3), b=(6,), w=(3, 6), v=(3,)),
    )


def gru() -> ir.Model:
    """A recurrent layer and a dense one on its last state."""
    return text(
        "(float[5, N, 3] x) => (float[N, 2] y)",
        "s, h = GRU <hidden_size = 4> (x, w, r, b) q = Squeeze(h, axes) y = Gemm <transB = 1> (q, v, c)",
        constants(10, w=(1, 12, 3), r=(1, 12, 4), b=(1, 24), v=(2, 4), c=(2,))
        | {"axes": array(0, dtype=np.int64)},
    )


def shared_weight() -> ir.Model:
    """One weight used by two layers."""
    return text(
        "(float[N, 6] x) => (float[N, 6] y)",
        "h = MatMul(x, w) a = Relu(h) g = MatMul(a, w) y = Add(g, b)",
        constants(11, w=(6, 6), b=(6,)),
    )


def weight_as_output() -> ir.Model:
    """A weight that is also an output of the graph."""
    return text(
        "(float[N, 6] x) => (float[N, 4] y, float[6, 4] w)", "y = MatMul(x, w)", constants(12, w=(6, 4))
    )


def control_flow() -> ir.Model:
    """An If whose bodies read a value and a weight of the outer graph."""
    return text(
        "(float[N, 4] x) => (float[N, 4] y)",
        """
        h = MatMul(x, w)
        total = ReduceSum <keepdims = 0> (h)
        positive = Greater(total, zero)
        z = If <
            then_branch = up () => (t) { t = MatMul(h, w) }, else_branch = down () => (e) { e = Neg(h) }
        > (positive)
        y = Relu(z)
        """,
        constants(13, w=(4, 4)) | {"zero": np.array(0, np.float32)},
    )


def half() -> ir.Model:
    """float16 throughout."""
    return text(
        "(float16[N, 6] x) => (float16[N, 4] y)",
        "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2, b2)",
        constants(14, np.float16, w1=(8, 6), b1=(8,), w2=(4, 8), b2=(4,)),
    )


def zeros() -> ir.Model:
    """All weights zero: no range, no rank, no scale."""
    return text(
        "(float[N, 3] x) => (float[N, 2] y)",
        "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2, b2)",
        {name: weight * 0 for name, weight in constants(0, w1=(4, 3), b1=(4,), w2=(2, 4), b2=(2,)).items()},
    )


def two_inputs() -> ir.Model:
    """Two inputs and two outputs, one of which feeds the other."""
    return text(
        "(float[N, 4] left, float[N, 4] right) => (float[N, 3] y, float[N, 5] middle)",
        "s = Add(left, right) middle = Gemm <transB = 1> (s, w1, b1) "
        "a = Relu(middle) y = Gemm <transB = 1> (a, w2)",
        constants(15, w1=(5, 4), b1=(5,), w2=(3, 5)),
    )


def two_heads() -> ir.Model:
    """Classes from a quarter of the hidden units, and a second output from all of them."""
    weights = constants(17, w1=(64, 6), b1=(64,), w2=(4, 64), w3=(8, 64))
    weights["w2"][:, 16:] = 0
    return text(
        "(float[N, 6] x) => (float[N, 4] y, float[N, 8] z)",
        "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) y = Gemm <transB = 1> (a, w2) z = Gemm <transB = 1> (a, w3)",
        weights,
    )


ALL: Mapping[str, Callable[[], ir.Model]] = {
    build.__name__: build
    for build in (
        mlp, matmul, cnn, batchnorm, residual, concat, depthwise, conv_transpose, conv1d, gru,
        shared_weight, weight_as_output, control_flow, half, zeros, two_inputs,
    )
}  # fmt: skip


def external(model: ir.Model, folder: Path) -> ir.Model:
    """The same model with every weight in a file of its own beside it, loaded again."""
    path = folder / "external.onnx"
    ir.save(model, path, external_data="external.data", size_threshold_bytes=0)
    return load(path)


def feeds(model: ir.Model, rows: int = 4, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """Random samples that fit the inputs; dynamic dimensions become `rows`."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal([d if isinstance(d, int) else rows for d in spec.shape or ()]).astype(
            spec.dtype
        )
        for spec in input_specs(model)
    }


def run(
    model: ir.Model | bytes | PathLike[str], inputs: Mapping[str, npt.NDArray[np.generic]]
) -> dict[str, npt.NDArray[np.generic]]:
    """Outputs by name, from onnxruntime on one thread without its own graph optimizations."""
    if isinstance(model, ir.Model):
        return run(serialize(model), inputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else fspath(model), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
