from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from formats import Samples, distance, kernels
from models import constants, text
from oracles import Board
from test_walk import ready

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.numerics.grids import dequantize
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.passes.calibrate import Mean, mean_shift
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.sites import find_sites, replace_constant, windows


def quantized(
    model: ir.Model, recipe: Quantize | None = None, target: Board | None = None
) -> tuple[ir.Model, Outcome]:
    changed = model.clone()
    context = Context(stream=Samples(models.feeds(model, 32)), target=target)
    return changed, (recipe or Quantize()).apply(changed, context)


def net(
    body: str, out: str = "float[N, M]", x: str = "float[N, 4, 8, 8]", **shapes: tuple[int, ...]
) -> ir.Model:
    return text(f"({x} x) => ({out} y)", body, constants(3, **shapes))


CHAIN = net(
    """
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu(c1)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    c2 = Conv (p1, w2, b2)
    r2 = Relu(c2)
    g = GlobalAveragePool(r2)
    f = Flatten(g)
    y = Gemm <transB = 1> (f, w3, b3)
    """,
    w1=(8, 4, 3, 3), b1=(8,), w2=(8, 8, 3, 3), b2=(8,), w3=(5, 8), b3=(5,),
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(models.ALL))
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_every_tiny_model_stays_right(name: str, dtype: str) -> None:
    model = models.ALL[name]()
    before = to_bytes(model)
    changed, outcome = quantized(model, target=Board(activation_dtype=dtype))
    assert to_bytes(model) == before
    assert outcome.modified == (to_bytes(changed) != before)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    for one, other in zip(
        (*model.graph.inputs, *model.graph.outputs),
        (*changed.graph.inputs, *changed.graph.outputs),
        strict=True,
    ):
        assert (one.name, one.type, one.shape) == (other.name, other.type, other.shape)
    assert distance(model, changed, models.feeds(model, 32)) < 0.05
    again, _ = quantized(model, target=Board(activation_dtype=dtype))
    assert to_bytes(again) == to_bytes(changed)


def test_a_plain_net_runs_in_integers_alone(tmp_path: Path) -> None:
    changed, outcome = quantized(CHAIN)
    assert outcome.changed == ("c1", "c2", "y")
    found = kernels(changed, tmp_path)
    assert found["QLinearConv"] == 2
    assert found["QGemm"] == found["QLinearGlobalAveragePool"] == 1
    assert found["QuantizeLinear"] == 1  # of the input; the last Gemm gives floats itself
    assert not {"Conv", "Gemm", "Relu", "DequantizeLinear", "GlobalAveragePool"} & set(found)


@pytest.mark.parametrize("version", ["1.20", "1.22", "1.23", "1.31"])
def test_biases_are_integers_for_old_runtimes(version: str) -> None:
    changed, _ = quantized(CHAIN, target=Board(runtime_version=version))
    stored = [v.const_value.dtype for v in changed.graph.initializers.values() if v.const_value is not None]
    # the last Gemm gives floats, and does so only with an integer bias
    assert stored.count(ir.DataType.INT32) == (1 if version in ("1.23", "1.31") else 3)
    assert distance(CHAIN, changed, models.feeds(CHAIN, 32)) < 0.05


@pytest.mark.parametrize(
    ("clip", "fused"),
    [
        ("Relu(c)", True),
        ("Clip(c, zero, six)", True),
        ("Clip(c, minus, one)", True),
        ("Clip(c, zero)", True),
        ("Clip(c, one, six)", False),  # zero lies outside: the integers cannot imply it
        ("LeakyRelu(c)", True),
        ("Sigmoid(c)", True),
        ("Tanh(c)", False),
    ],
)
def test_what_stands_behind_a_conv(clip: str, fused: bool, tmp_path: Path) -> None:
    model = net(
        f"c = Conv(x, w, b) a = {clip} y = Conv(a, v)",
        "float[N, 4, h, k]",
        w=(8, 4, 3, 3),
        b=(8,),
        v=(4, 8, 1, 1),
    )
    for name, value in (("zero", 0.0), ("six", 6.0), ("minus", -1.0), ("one", 1.0)):
        tensor = ir.tensor(np.array(value, np.float32), name=name)
        if f" {name}" in clip:
            used = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
            used.const_value, used.type, used.shape = tensor, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            model.graph.register_initializer(used)
    changed, _ = quantized(model)
    found = kernels(changed, tmp_path)
    assert found["QLinearConv"] == 2
    assert found["DequantizeLinear"] == (1 if fused else 2)
    assert distance(model, changed, models.feeds(model, 32)) < 0.05


def test_residuals_and_concats_stay_in_integers(tmp_path: Path) -> None:
    model = net(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) ra = Relu(a) b = Conv <pads = [1, 1, 1, 1]> (ra, w2, b2)"
        " s = Add(b, ra) r = Relu(s) k = Concat <axis = 1> (r, b) m = ReduceMean <keepdims = 0> (k, axes)"
        " y = Gemm <transB = 1> (m, w3, b3)",
        w1=(8, 4, 3, 3), b1=(8,), w2=(8, 8, 3, 3), b2=(8,), w3=(5, 16), b3=(5,),
    )  # fmt: skip
    axes = next(v for n in model.graph for v in n.inputs if v is not None and v.name == "axes")
    axes.const_value, axes.type, axes.shape = (
        ir.tensor(np.array([2, 3]), name="axes"),
        ir.TensorType(ir.DataType.INT64),
        ir.Shape([2]),
    )
    model.graph.register_initializer(axes)
    for name in ("k",):
        value = next(v for n in model.graph for v in n.outputs if v.name == name)
        value.shape = ir.Shape(["N", 16, 8, 8])
    changed, _ = quantized(model)
    found = kernels(changed, tmp_path)
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm"} <= set(found)
    assert not {"DequantizeLinear", "Relu", "Add", "Concat", "ReduceMean"} & set(found)
    assert distance(model, changed, models.feeds(model, 32)) < 0.05


def test_values_keep_their_names() -> None:
    changed, _ = quantized(CHAIN)
    names = {v.name for n in changed.graph for v in n.outputs}
    assert {v.name for n in CHAIN.graph for v in n.outputs} <= names


@pytest.mark.parametrize("recipe", [Quantize(sites=("^c2$",)), Quantize(leave=("c1", "y"))])
def test_sites_left_alone_stay_float_without_pairs_between_them(recipe: Quantize, tmp_path: Path) -> None:
    changed, outcome = quantized(CHAIN, recipe)
    assert outcome.changed == ("c2",)
    assert {(s.site, s.reason) for s in outcome.skipped} == {
        ("c1", "the recipe leaves it in float"),
        ("y", "the recipe leaves it in float"),
    }
    found = kernels(changed, tmp_path)
    assert found["QLinearConv"] == found["QuantizeLinear"] == found["DequantizeLinear"] == 1


def test_the_user_can_leave_sites_out() -> None:
    context = Context(stream=Samples(models.feeds(CHAIN, 8)), leave=("^c",))
    outcome = Quantize().apply(CHAIN.clone(), context)
    assert outcome.changed == ("y",)
    assert {s.reason for s in outcome.skipped} == {"--leave names it"}


def test_without_samples_nothing_happens() -> None:
    model = CHAIN.clone()
    outcome = Quantize().apply(model, Context())
    assert not outcome.modified
    assert {s.reason for s in outcome.skipped} == {"needs samples"}
    assert to_bytes(model) == to_bytes(CHAIN)


def test_nothing_is_quantized_twice() -> None:
    once, _ = quantized(CHAIN)
    twice, outcome = quantized(once)
    assert not outcome.modified
    assert {s.reason for s in outcome.skipped} == {"already quantized"}
    assert to_bytes(once) == to_bytes(twice)


def test_a_value_that_is_not_finite_leaves_its_sites_in_float() -> None:
    model = net(
        "l = Log(x) c = Conv(l, w, b) d = Conv(x, v) y = Add(c, d)",
        "float[N, 4, h, k]", w=(4, 4, 1, 1), b=(4,), v=(4, 4, 1, 1),
    )  # fmt: skip
    changed, outcome = quantized(model)
    assert outcome.changed == ("d",)
    assert [(s.site, s.reason) for s in outcome.skipped] == [
        ("c", "its activations are not finite on the samples")
    ]
    assert sum(n.op_type == "QuantizeLinear" for n in changed.graph) == 2


def test_dead_channels_keep_their_bias() -> None:
    model = CHAIN.clone()
    w = model.graph.initializers["w1"]
    array = w.const_value.numpy().copy()
    array[3] = 0
    w.const_value = ir.tensor(array, name="w1")
    for version in ("1.20", "1.31"):
        changed, _ = quantized(model, target=Board(runtime_version=version))
        assert distance(model, changed, models.feeds(model, 32)) < 0.05


def test_seven_bits_where_the_target_asks_for_it() -> None:
    changed, _ = quantized(CHAIN, target=Board(weight_bits=7))
    for name in ("w1_q", "w2_q", "w3_q"):
        assert np.abs(changed.graph.initializers[name].const_value.numpy()).max() == 63


@pytest.mark.parametrize("channels", [True, False])
def test_scales_are_per_channel_or_not(channels: bool) -> None:
    changed, _ = quantized(CHAIN, Quantize(granularity="channel" if channels else "tensor"))
    node = next(n for n in changed.graph if n.outputs[0].name == "w1_dq")
    assert node.inputs[1].const_value.shape == ([8] if channels else [])
    assert distance(CHAIN, changed, models.feeds(CHAIN, 32)) < 0.06


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_every_choice_of_ranges_works(ranges: str) -> None:
    changed, _ = quantized(CHAIN, Quantize(ranges=ranges))  # type: ignore[arg-type]
    assert distance(CHAIN, changed, models.feeds(CHAIN, 32)) < 0.1


def test_bias_correction_takes_the_mean_error_out() -> None:
    model = net(
        "y = Conv <pads = [1, 1, 0, 0], strides = [2, 1]> (x, w, b)",
        "float[N, 6, h, k]",
        w=(6, 4, 3, 3),
        b=(6,),
    )
    feeds = {"x": np.abs(models.feeds(model, 64)["x"]) + 1}
    reference = models.run(model, feeds)["y"].mean(axis=(0, 2, 3))
    errors = {}
    for corrected in (True, False):
        changed = model.clone()
        Quantize(weight_bits=4, bias_correction=corrected).apply(changed, Context(stream=Samples(feeds)))
        errors[corrected] = np.abs(models.run(changed, feeds)["y"].mean(axis=(0, 2, 3)) - reference).max()
    assert errors[True] < 0.1 * errors[False]


@pytest.mark.parametrize(
    "body",
    [
        "y = Conv <pads = [2, 0, 1, 1], strides = [2, 1], dilations = [1, 2]> (x, w)",
        'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)',
        "y = Conv <group = 2> (x, h)",
    ],
)
def test_the_mean_shift_is_that_of_all_patches(body: str) -> None:
    model = net(body, "float[N, 4, h, k]", w=(4, 4, 3, 2), h=(4, 2, 2, 2))
    site = find_sites(model)[0]
    rng = np.random.default_rng(5)
    mean, batches = (
        Mean(site),
        [rng.standard_normal((n, 4, s, 9)).astype(np.float32) for n, s in ((3, 8), (2, 8), (1, 6))],
    )
    total, count = 0.0, 0
    error = rng.standard_normal(site.weight.shape).astype(np.float32)
    for x in batches:
        mean.add(x)
        view = windows(site, x)  # [n, C, *positions, *kernel]
        groups = error.reshape(site.groups, -1, *error.shape[1:])
        patches = view.reshape(len(x), site.groups, -1, *view.shape[2:])
        y = np.einsum("ngchwij,gocij->ngohw", patches, groups).reshape(len(x), 4, *view.shape[2:4])
        total, count = total + y.sum(axis=(0, 2, 3)), count + len(x) * y.shape[2] * y.shape[3]
    np.testing.assert_allclose(mean_shift(site, error, mean.value()), total / count, atol=1e-5)


def test_shared_weights_are_stored_once() -> None:
    model = text(
        "(float[N, 6] x) => (float[N, 6] y)",
        "a = Gemm <transB = 1> (x, w, b) r = Relu(a) c = Gemm <transB = 1> (r, w, b) y = Add(c, w)",
        constants(9, w=(6, 6), b=(6,)),
    )
    model.graph.outputs[0].shape = ir.Shape([6, 6])
    changed = model.clone()
    feeds = {"x": np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)}
    Quantize().apply(changed, Context(stream=Samples(feeds)))
    assert "w" in changed.graph.initializers  # the Add still reads it
    eights = [v for v in changed.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT8]
    assert sorted(tuple(v.const_value.shape) for v in eights) == [(6,), (6, 6)]
    assert distance(model, changed, feeds) < 0.05


def test_old_opsets_are_raised_and_nothing_else_changes() -> None:
    model = text(
        "(float[N, 4, 8, 8] x) => (float[N, 5] y)",
        "c = Conv(x, w, b) r = Relu(c) p = ReduceMean <axes = [2, 3], keepdims = 0> (r) y = MatMul(p, v)",
        constants(3, w=(8, 4, 3, 3), b=(8,), v=(8, 5)),
        opset=11,
    )
    before = to_bytes(model)
    changed, outcome = quantized(model)
    assert outcome.changed == ("c", "y")
    assert changed.opset_imports[""] == 13
    assert to_bytes(model) == before
    assert [d.value if isinstance(d, ir.SymbolicDim) else d for d in changed.graph.inputs[0].shape] == [
        "N",
        4,
        8,
        8,
    ]
    assert distance(model, changed, models.feeds(model, 32)) < 0.05
    assert not raise_opset(changed)


def test_a_matmul_with_bias_is_one_kernel(tmp_path: Path) -> None:
    model = text(
        "(float[N, 6] x) => (float[N, 5] y)",
        "m = MatMul(x, w) y = Add(m, b)",
        constants(4, w=(6, 5), b=(5,)),
    )
    changed, _ = quantized(model)
    assert kernels(changed, tmp_path) == {"QuantizeLinear": 1, "QGemm": 1}
    assert distance(model, changed, models.feeds(model, 32)) < 0.05


def test_weights_round_to_the_nearest_integer() -> None:
    changed, _ = quantized(CHAIN)
    node = next(n for n in changed.graph if n.outputs[0].name == "w2_dq")
    q, scale = (v.const_value.numpy() for v in node.inputs[:2])
    w = CHAIN.graph.initializers["w2"].const_value.numpy()
    error = np.abs(dequantize(q, scale, axis=0) - w)
    assert (error <= scale[:, None, None, None] * 0.5001).all()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"weight_bits": 9}, "weight_bits"),
        ({"activation_bits": 12}, "activation_bits"),
        ({"spare": -0.1}, "spare"),
        ({"sites": ("(",)}, "regular"),
    ],
)
def test_impossible_parameters_are_refused(fields: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Quantize(**fields)  # type: ignore[arg-type]


def test_samples_are_watched_once_for_all_bits_of_the_weights() -> None:
    model, context, engine = ready(models.cnn())
    _, fresh, _ = ready(models.cnn())
    steps = [Quantize(bits=(("c1", 7),)), Quantize(), Quantize(ranges="mse"), Quantize()]
    loaded = []
    for step in steps:
        before, ours, theirs = len(engine.nodes), model.clone(), model.clone()
        step.apply(ours, context)
        step.apply(theirs, fresh.apart())
        assert to_bytes(ours) == to_bytes(theirs)
        loaded.append(len(engine.nodes) - before)
    assert loaded == [1, 0, 1, 1]
    site = find_sites(model)[0]
    replace_constant(site.node, 1, 2 * site.weight)
    other = model.clone()
    Quantize().apply(other, context)
    apart = model.clone()
    Quantize().apply(apart, fresh.apart())
    assert to_bytes(other) == to_bytes(apart)
