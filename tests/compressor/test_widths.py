"""Zero points, blocks, 16-bit activations and spared weights: in the file, and when it runs."""

from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import oracles
import pytest
from formats import kernels
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes, to_proto
from edgepress.compressor.passes.base import Context, Pass
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.rounding import spared
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine

ENGINE = OrtEngine()

MODELS = {
    "gemm": lambda: dense("y = Gemm <transB = 1> (x, w, b)", w=(48, 64), b=(48,)),
    "gemm, plain": lambda: dense("y = Gemm (x, w, b)", w=(64, 48), b=(48,)),
    "matmul": lambda: dense("y = MatMul (x, w)", w=(64, 48)),
    "conv": lambda: conv("y = Conv (x, w, b)", w=(32, 8, 3, 3), b=(32,)),
    "conv transpose": lambda: conv("y = ConvTranspose (x, w, b)", w=(8, 32, 3, 3), b=(32,)),
    "table": lambda: text(
        "(int64[N] x) => (float[N, 64] y)", "y = Gather <axis = 0> (w, x)", constants(3, w=(50, 64))
    ),
}


def dense(body: str, **shapes: tuple[int, ...]) -> ir.Model:
    return text("(float[N, 64] x) => (float[N, 48] y)", body, shifted(shapes))


def conv(body: str, **shapes: tuple[int, ...]) -> ir.Model:
    return text("(float[N, 8, 6, 6] x) => (float[N, 32, M, K] y)", body, shifted(shapes))


def shifted(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Weights that lie to one side of zero, as zero points are for."""
    weights = constants(3, **shapes)
    weights["w"] += np.float32(0.2)
    return weights


def feeds_of(model: ir.Model, rows: int, seed: int) -> Feeds:
    if model.graph.inputs[0].dtype == ir.DataType.INT64:
        return {"x": np.random.default_rng(seed).integers(0, 50, rows)}
    return models.feeds(model, rows, seed)


def applied(model: ir.Model, step: Pass, context: Context | None = None) -> ir.Model:
    infer_shapes(model)
    changed = model.clone()
    samples = oracles.context(model, 64, feeds=feeds_of(model, 64, 0))
    assert step.apply(changed, context or samples).modified
    onnx.checker.check_model(to_proto(changed), full_check=True)
    return changed


def lost(model: ir.Model, changed: ir.Model) -> float:
    feeds = feeds_of(model, 32, 1)
    wanted, found = models.run(model, feeds)["y"], ENGINE.load(to_bytes(changed))(feeds)["y"]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_folds_at_load_is_near_to_the_weights(
    name: str, symmetric: bool, granularity: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepress.compressor.numerics.packing.UNPACKING_BYTES", -(10**6))
    model = MODELS[name]()
    step = StoreWeights(
        weight_bits=bits, symmetric=symmetric, granularity=granularity, block=16, rounding="nearest", spare=0,  # type: ignore[arg-type]
        bias_correction=False,
    )  # fmt: skip
    assert lost(model, applied(model, step)) < {2: 0.8, 4: 0.2, 8: 0.02}[bits]


@pytest.mark.parametrize("name", ["gemm", "gemm, plain", "matmul", "conv"])
def test_zero_points_and_blocks_lose_less(name: str) -> None:
    model = MODELS[name]()
    one, two, three = (
        lost(model, applied(model, StoreWeights(weight_bits=4, spare=0, rounding="nearest", **fields)))  # type: ignore[arg-type]
        for fields in ({}, {"symmetric": False}, {"granularity": "block", "block": 8})
    )
    assert two < 0.9 * one
    assert three < 0.9 * one


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", ["gemm", "gemm, plain", "matmul", "conv"])
@pytest.mark.parametrize("bits", [3, 8])
def test_integer_kernels_take_zero_points(name: str, granularity: str, bits: int, tmp_path: Path) -> None:
    """And are fused all the same: the graph that onnxruntime runs has no float operator with weights."""
    model = MODELS[name]()
    step = Quantize(weight_bits=bits, symmetric=False, granularity=granularity, spare=0)  # type: ignore[arg-type]
    even = Quantize(weight_bits=bits, granularity=granularity, spare=0)  # type: ignore[arg-type]
    changed = applied(model, step)
    zeros = [v.const_value for v in changed.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert any(np.any(z.numpy()) for z in zeros if z is not None and z.size in (1, 32, 48))
    assert lost(model, changed) < lost(model, applied(model, even)) * (0.9 if bits < 8 else 1.2)
    assert {"Conv", "Gemm", "MatMul"}.isdisjoint(kernels(changed, tmp_path))


def test_older_kernels_of_conv_get_no_zero_points() -> None:
    model = MODELS["conv"]()
    infer_shapes(model)
    context = oracles.context(model, 64, target=oracles.Board(runtime_version="1.23"))
    changed = applied(model, Quantize(symmetric=False), context)
    assert to_bytes(changed) == to_bytes(applied(model, Quantize(), context))


@pytest.mark.parametrize("signed", ["uint8", "int8"])
@pytest.mark.parametrize("name", sorted(models.ALL))
def test_activations_of_16_bits_are_near_to_float(name: str, signed: str) -> None:
    model = models.ALL[name]()
    infer_shapes(model)
    context = oracles.context(model, 64, target=oracles.Board(activation_dtype=signed))
    changed, eight = model.clone(), model.clone()
    outcome = Quantize(activation_bits=16, bias_correction=False).apply(changed, context)
    Quantize(bias_correction=False).apply(eight, context)
    if not outcome.changed:
        return
    kinds = {n.inputs[2].dtype for n in changed.graph if n.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    assert kinds == {ir.DataType.UINT16 if signed == "uint8" else ir.DataType.INT16}
    assert changed.opset_imports[""] >= 21
    feeds = models.feeds(model, 64, 100)  # the samples, so that nothing is out of range
    wanted = models.run(model, feeds)
    found, other = (ENGINE.load(to_bytes(each))(feeds) for each in (changed, eight))
    for key, array in wanted.items():
        size = np.linalg.norm(array) + 1e-9
        errors = [float(np.linalg.norm(each[key] - array) / size) for each in (found, other)]
        assert errors[0] < max(0.02, 0.9 * errors[1])


def test_16_bits_of_weights_and_activations_differ_from_float_by_the_weights_alone() -> None:
    """With weights that 8 bits hold exactly only the activations err, by less than 2⁻¹⁴ of their range."""
    model = models.cnn()
    for name in ("k1", "k2", "w"):
        value = model.graph.initializers[name]
        array = np.rint(np.clip(value.const_value.numpy(), -1, 1) * 127)  # type: ignore[union-attr]
        array.reshape(len(array), -1)[:, 0] = 127
        value.const_value = ir.Tensor((array / 127).astype(np.float32), name=name)
    infer_shapes(model)
    changed, feeds = model.clone(), models.feeds(model, 64, 100)
    Quantize(activation_bits=16, bias_correction=False).apply(changed, oracles.context(model, 64))
    wanted, found = models.run(model, feeds)["y"], ENGINE.load(to_bytes(changed))(feeds)["y"]
    assert np.abs(found - wanted).max() < 2**-12 * np.abs(wanted).max()


def test_a_sigmoid_reaches_one_in_16_bits() -> None:
    """Kernels of 8 bits have a range built in that ends at 255/256."""
    eye = np.eye(4, dtype=np.float32)[:, :, None, None]
    model = text(
        "(float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y)",
        "a = Conv (x, w) s = Sigmoid (a) y = Conv (s, w)", {"w": eye},
    )  # fmt: skip
    infer_shapes(model)
    feeds = {"x": np.linspace(-20, 20, 36 * 8, dtype=np.float32).reshape(8, 4, 3, 3)}
    changed = model.clone()
    Quantize(activation_bits=16).apply(changed, oracles.context(model, 8, feeds=feeds))
    assert np.abs(ENGINE.load(to_bytes(changed))(feeds)["y"] - models.run(model, feeds)["y"]).max() < 1e-3


def test_few_bytes_are_spent_where_few_bytes_are() -> None:
    weights = {"small": (2000, 4), "middle": (10_000, 4), "large": (400_000, 4)}
    assert spared(weights, 0.05) == {"small", "middle"}
    assert spared(weights, 0.01) == {"small"}
    assert spared(weights, 0.0) == set()
    assert spared(weights, 10.0) == set(weights)
    assert spared({"alone": (10_000, 4)}, 0.05) == set()
    assert spared({"whole": (2000, 8), "half": (2000, 16)}, 10.0) == set()


def test_weights_that_take_few_bytes_keep_8_bits_unless_named() -> None:
    model = text(
        "(float[N, 64] x) => (float[N, 200] y)", "h = Gemm (x, v, c) r = Relu (h) y = Gemm (r, w, b)",
        constants(3, v=(64, 20), c=(20,), w=(20, 2000), b=(2000,)),
    )  # fmt: skip
    model.graph.outputs[0].shape = ir.Shape(["N", 2000])
    infer_shapes(model)
    sizes = {}
    for name, fields in {"default": {}, "all": {"spare": 0}, "named": {"bits": (("h", 4),)}}.items():
        for step in (StoreWeights(weight_bits=4, **fields), Quantize(weight_bits=4, **fields)):  # type: ignore[arg-type]
            changed = applied(model, step)
            packed = [n for n in changed.graph if n.op_type == "BitShift"]
            sizes[name, step.kind] = len(packed)
    for kind in ("store", "quantize"):
        assert [sizes[name, kind] for name in ("default", "all", "named")] == [1, 2, 2]


@pytest.mark.parametrize("spare", [-0.1, float("nan"), float("inf")])
def test_shares_that_are_none_are_refused(spare: float) -> None:
    for step in (StoreWeights, Quantize):
        with pytest.raises(UsageError, match="spare"):
            step(spare=spare)
    with pytest.raises(UsageError, match="block"):
        StoreWeights(block=0)
