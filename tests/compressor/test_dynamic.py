"""Dynamic quantization against numpy, and as onnxruntime fuses it."""

from collections import Counter
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import Dynamic
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.protocols import Array
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine


def applied(model: ir.Model, step: Dynamic, context: Context | None = None) -> tuple[ir.Model, Outcome]:
    infer_shapes(model)
    changed = model.clone()
    return changed, step.apply(changed, context or Context())


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    return OrtEngine().load(to_bytes(model))(feeds)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def as_loaded(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators of what onnxruntime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def by_hand(x: Array, w: Array, axis: int | None = 0) -> Array:
    """X W [in, out] with weights in 8 bits and x in 8 bits over its own range, as ONNX defines it, in float64."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((np.float32(high) - np.float32(low)) / np.float32(255)) or np.float32(1)
    zero = np.clip(np.rint(-np.float32(low) / step), 0, 255)
    qx = np.clip(np.rint(x.astype(np.float32) / step) + zero, 0, 255) - zero
    peaks = np.abs(w).max(axis=axis)
    scale = (np.where(peaks > 0, peaks, peaks.max() or 127) / 127).astype(np.float32)
    qw = np.clip(np.rint(w / scale), -127, 127)
    product: Array = (qx.astype(np.float64) @ qw.astype(np.float64)) * (scale.astype(np.float64) * step)
    return product


@st.composite
def gemms(draw: st.DrawFn) -> tuple[str, tuple[int, ...], bool, float, float, str, int]:
    rank = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["MatMul", "Gemm"])) if rank == 2 else "MatMul"
    plain = kind == "MatMul"
    return (
        kind,
        tuple(draw(st.integers(1, 5)) for _ in range(rank - 1)),
        not plain and draw(st.booleans()),
        1.0 if plain else draw(st.sampled_from([1.0, 0.5, -2.0])),
        1.0 if plain else draw(st.sampled_from([1.0, 0.5, 0.0])),
        "" if plain else draw(st.sampled_from(["", "row", "one", "column"])),
        draw(st.integers(0, 99)),
    )


@settings(deadline=None, max_examples=60)
@given(gemms(), st.booleans())
def test_products_are_those_of_integers(case: tuple, per_channel: bool) -> None:
    kind, lead, flipped, alpha, beta, bias, seed = case
    rng = np.random.default_rng(seed)
    inputs, outputs = rng.integers(1, 40, 2)
    w = rng.standard_normal((inputs, outputs)).astype(np.float32)
    x = (rng.standard_normal((*lead, inputs)) + rng.integers(-2, 3)).astype(np.float32)
    c = {"row": (outputs,), "one": (), "column": (*lead, 1)}.get(bias)
    weights = {"w": np.ascontiguousarray(w.T) if flipped else w}
    if c is not None:
        weights["c"] = rng.standard_normal(c).astype(np.float32)
    attributes = f"<alpha = {alpha}, beta = {beta}, transB = {int(flipped)}>" if kind == "Gemm" else ""
    shape = ", ".join(map(str, x.shape))
    made = ", ".join(map(str, (*lead, outputs)))
    model = models.text(
        f"(float[{shape}] x) => (float[{made}] y)",
        f"y = {kind} {attributes} (x, w{', c' if bias else ''})",
        weights,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgepress.compressor.passes.dynamic.OVERHEAD", -(10**6))
        changed, outcome = applied(
            model, Dynamic(min_elements=1, granularity="channel" if per_channel else "tensor")
        )
    assert outcome.changed == ("y",)
    expected = by_hand(x, np.float32(alpha) * w, 0 if per_channel else None)
    expected = expected + (beta * weights["c"] if bias else 0)
    np.testing.assert_allclose(
        run(changed, {"x": x})["y"], expected, rtol=0, atol=2e-5 * (np.abs(expected).max() + 1)
    )


def test_onnxruntime_fuses_every_product_into_one_kernel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = models.text(
        "(float[N, 5, 64] x) => (float[N, 5, 32] y)",
        """q = MatMul(x, wq) k = MatMul(x, wk) s = Add(q, k) h = MatMul(s, w1) hb = Add(h, b1) r = Relu(hb)
        y = MatMul(r, w2)""",
        {
            name: rng.standard_normal((64, n)).astype(np.float32)
            for name, n in (("wq", 64), ("wk", 64), ("w1", 64), ("w2", 32))
        }
        | {"b1": rng.standard_normal(64).astype(np.float32)},
    )
    changed, outcome = applied(model, Dynamic())
    assert outcome.changed == ("q", "k", "h", "y")
    assert operators(changed)["DynamicQuantizeLinear"] == 3
    loaded = as_loaded(changed, tmp_path)
    assert loaded["MatMulIntegerToFloat"] == 2
    assert loaded["DynamicQuantizeMatMul"] == 2
    assert loaded.total() == 1 + 4 + 2


def test_gemm_with_its_bias_is_one_kernel_of_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    model = models.mlp(hidden=512, classes=512)
    changed, outcome = applied(model, Dynamic())
    assert outcome.changed == ("h", "y")
    assert as_loaded(changed, tmp_path) == {"DynamicQuantizeMatMul": 2, "Relu": 1}
    assert len(to_bytes(changed)) < len(to_bytes(model)) / 3.5


def test_few_bits_are_packed_and_rounded_so_that_outputs_keep() -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((64, 48)).astype(np.float32)
    model = models.text("(float[N, 64] x) => (float[N, 48] y)", "y = MatMul(x, w)", {"w": w})
    x = (rng.standard_normal((500, 8)) @ rng.standard_normal((8, 64))).astype(np.float32)
    data = oracles.context(model, 500, feeds={"x": x})
    seen, _ = applied(model, Dynamic(weight_bits=3), data)
    blind, _ = applied(model, Dynamic(weight_bits=3))
    lost = [float(np.square(run(m, {"x": x})["y"] - x @ w).sum()) for m in (seen, blind)]
    assert lost[0] < lost[1] / 2
    assert len(to_bytes(seen)) < w.nbytes / 2


def lstm(seed: int = 0, extra: str = "", directions: int = 1, rest: str = "") -> ir.Model:
    rng = np.random.default_rng(seed)
    d, hidden, width = directions, 24, 16
    return models.text(
        f"(float[7, N, {width}] x) => "
        f"(float[7, {d}, N, {hidden}] y, float[{d}, N, {hidden}] h, float[{d}, N, {hidden}] c)",
        f"y, h, c = LSTM <hidden_size = {hidden}{extra}> (x, w, r{rest})",
        {
            "w": rng.standard_normal((d, 4 * hidden, width)).astype(np.float32) / 4,
            "r": rng.standard_normal((d, 4 * hidden, hidden)).astype(np.float32) / 4,
            **({"b": rng.standard_normal((d, 8 * hidden)).astype(np.float32)} if rest else {}),
        },
    )


@pytest.mark.parametrize(
    ("directions", "rest", "extra"),
    [(1, ", b", ""), (1, "", ""), (2, ", b", ', direction = "bidirectional"'), (1, ", b", ", layout = 0")],
)
def test_lstm_is_the_quantized_operator_and_gives_nearly_the_same(
    directions: int, rest: str, extra: str
) -> None:
    model = lstm(directions=directions, rest=rest, extra=extra)
    changed, outcome = applied(model, Dynamic())
    assert operators(changed) == {"DynamicQuantizeLSTM": 1}
    assert len(outcome.changed) == 1
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    assert len(to_bytes(changed)) < len(to_bytes(model)) / 2.5
    for rows in (1, 4):
        x = np.random.default_rng(1).standard_normal((7, rows, 16)).astype(np.float32)
        before, after = run(model, {"x": x}), run(changed, {"x": x})
        for name, array in before.items():
            assert np.abs(after[name] - array).max() < 0.03
            assert not np.array_equal(after[name], array)


def test_lstm_keeps_lengths_first_states_and_peepholes() -> None:
    model = lstm(
        rest=", b, lengths, h0, c0, p", extra=', activations = ["Sigmoid", "Tanh", "Tanh"], clip = 2.0'
    )
    rng = np.random.default_rng(2)
    more = {"h0": (1, 2, 24), "c0": (1, 2, 24), "p": (1, 72)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in more.items()}
    for name, array in (arrays | {"lengths": np.array([3, 7], np.int32)}).items():
        tensor = ir.tensor(array, name=name)
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value, value.shape, value.dtype = tensor, ir.Shape(array.shape), tensor.dtype
        model.graph.register_initializer(value)
    changed, outcome = applied(model, Dynamic())
    assert len(outcome.changed) == 1
    x = rng.standard_normal((7, 2, 16)).astype(np.float32)
    before, after = run(model, {"x": x}), run(changed, {"x": x})
    assert not before["y"][3:, :, 0].any()
    for name, array in before.items():
        assert np.abs(after[name] - array).max() < 0.05
    batch_first = lstm(rest=", b", extra=", layout = 1")
    assert "time axis" in reason(batch_first)[next(iter(batch_first.graph)).outputs[0].name or ""]


def test_old_opsets_are_raised_to_one_that_has_the_operators() -> None:
    model = models.text(
        "(float[N, 64] x) => (float[N, 64] y)",
        "y = MatMul(x, w)",
        models.constants(1, w=(64, 64)),
        opset=8,
        ir_version=4,
    )
    changed, outcome = applied(model, Dynamic())
    assert outcome.changed == ("y",)
    assert changed.opset_imports[""] >= 11
    x = {"x": np.ones((2, 64), np.float32)}
    assert oracles.close(run(model, x), run(changed, x), 0.02)


def reason(model: ir.Model, step: Dynamic | None = None) -> dict[str, str]:
    changed, outcome = applied(model, step or Dynamic(min_elements=2))
    assert outcome.modified == (to_bytes(changed) != to_bytes(model))
    return {skipped.site: skipped.reason for skipped in outcome.skipped}


def test_what_stays_as_it_is_says_why() -> None:
    big = models.constants(1, w=(64, 64), v=(64, 64), k=(8, 8, 3, 3))
    header = "(float[N, 64] x) => (float[N, 64] y)"
    assert "GRU" in reason(models.gru())["s"]
    assert "store" in reason(models.gru())["s"]
    assert "slower" in reason(models.cnn())["c1"]
    assert "ConvTranspose" in reason(models.conv_transpose())["d"]
    assert "float16" in reason(models.half())["h"]
    assert "output of the model" in reason(models.weight_as_output())["y"]
    assert "control flow" in reason(models.control_flow())["t"]
    assert (
        "an activation"
        in reason(models.text(header, "t = Transpose(x) z = MatMul(x, t) y = MatMul(z, x)"))["z"]
    )
    tied = models.text(header, "h = MatMul(x, w) g = Relu(w) y = MatMul(h, g)", big)
    assert "read by" in reason(tied)["h"]
    both = models.text(header, "h = MatMul(x, w) y = MatMul(h, w)", big)
    assert "read by" in reason(both, Dynamic(leave=("h",)))["y"]
    turned = models.text(header, "y = Gemm <transA = 1> (x, w)", big)
    assert "transposed" in reason(turned)["y"]
    plain = models.text(header, "y = MatMul(x, w)", big)
    assert "fewer than 5000" in reason(plain, Dynamic(min_elements=5000))["y"]


def test_batches_of_zeros_and_of_nothing_run() -> None:
    model = models.text(
        "(float[N, 64] x) => (float[N, 64] y)", "y = MatMul(x, w)", models.constants(1, w=(64, 64))
    )
    changed, _ = applied(model, Dynamic())
    assert not run(changed, {"x": np.zeros((3, 64), np.float32)})["y"].any()
    assert run(changed, {"x": np.zeros((0, 64), np.float32)})["y"].shape == (0, 64)


def test_weights_that_two_sites_share_are_stored_once() -> None:
    weights = models.constants(1, w=(64, 64))
    model = models.text(
        "(float[N, 64] x) => (float[N, 64] y)", "h = MatMul(x, w) a = Relu(h) y = MatMul(a, w)", weights
    )
    changed, outcome = applied(model, Dynamic())
    assert outcome.changed == ("h", "y")
    assert (
        sum(v.const_value.nbytes == 64 * 64 for v in changed.graph.initializers.values() if v.const_value)
        == 1
    )


def test_bias_takes_up_the_mean_of_what_rounding_does() -> None:
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((32, 64)).astype(np.float32), "b": np.zeros(32, np.float32)}
    model = models.text("(float[N, 64] x) => (float[N, 32] y)", "y = Gemm <transB = 1> (x, w, b)", weights)
    x = (rng.standard_normal((300, 64)) * 0.1 + 3).astype(np.float32)
    data = oracles.context(model, 300, feeds={"x": x})
    expected = x @ weights["w"].T
    means = []
    for corrects in (True, False):
        changed, _ = applied(model, Dynamic(4, weight_ranges="mse", bias_correction=corrects), data)
        means.append(np.abs((run(changed, {"x": x})["y"] - expected).mean(axis=0)).max())
    assert means[0] < means[1] / 3


def test_result_is_a_model_for_a_further_run() -> None:
    model = lstm(rest=", b")
    once, _ = applied(model, Dynamic())
    again = normalize(once).model
    changed, outcome = applied(again, Dynamic())
    assert not outcome.modified
    assert operators(changed) == {"DynamicQuantizeLSTM": 1}


def test_target_without_dot_products_gets_seven_bits() -> None:
    model = models.text(
        "(float[N, 64] x) => (float[N, 64] y)", "y = MatMul(x, w)", models.constants(1, w=(64, 64))
    )
    changed, _ = applied(model, Dynamic(), Context(target=oracles.Board(weight_bits=7)))
    levels = [
        v.const_value.numpy()
        for v in changed.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value
    ]
    assert [int(np.abs(q.astype(int)).max()) for q in levels] == [63]


@pytest.mark.parametrize("field", [{"weight_bits": 9}, {"bits": (("a", 1),)}, {"sites": ("(",)}])
def test_fields_that_make_no_sense_are_refused(field: dict) -> None:
    with pytest.raises(UsageError):
        Dynamic(**field)
