"""Modified ReLU: its formula, how much energy it takes, and where it cannot be."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.numerics.thresholds import EDGES, Energies, bins_of, just_below, swallowed
from edgepress.compressor.passes import Quantize, ThresholdReLU
from edgepress.compressor.passes import threshold_relu as module
from edgepress.compressor.passes.activations import activations, sparsity
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.shapes import infer_shapes
from edgepress.runtime.engines.ort import OrtEngine

FLOATS = st.floats(-3, 1e6, width=32)


def apply(model: ir.Model, step: ThresholdReLU, context: Context | None = None) -> tuple[ir.Model, Outcome]:
    infer_shapes(model)
    changed = model.clone()
    return changed, step.apply(changed, oracles.context(model) if context is None else context)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def modified(x: np.ndarray, threshold: object) -> np.ndarray:
    """Eq. 7."""
    return np.where(x > np.asarray(threshold, x.dtype), x, np.zeros((), x.dtype))


def bend(body: str, dtype: str = "float", opset: int = 18, rank: int = 4) -> ir.Model:
    """Identity weights around an activation from `h` to `a`: what it gives is the output."""
    kind = np.float16 if dtype == "float16" else np.float32
    shape, dims = ((4, 4, 1, 1), "N, 4, 5, 5") if rank == 4 else ((4, 4), "N, 4")
    layer = "Conv" if rank == 4 else "Gemm"
    return text(
        f"({dtype}[{dims}] x) => ({dtype}[{dims}] y)",
        f"h = {layer}(x, w) {body} y = {layer}(a, w)",
        {"w": np.eye(4, dtype=kind).reshape(shape), "zero": np.array(0, kind), "two": np.array(2, kind)},
        opset=opset,
    )


BODIES = {
    "relu": ("a = Relu(h)", lambda x: np.maximum(x, 0)),
    "clip": ("a = Clip(h, zero, two)", lambda x: np.clip(x, 0, 2)),
    "sigmoid": ("a = Sigmoid(h)", lambda x: 1 / (1 + np.exp(-x))),
    "hard": ("a = HardSwish(h)", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "gated": ("s = Sigmoid(h) a = Mul(h, s)", lambda x: x / (1 + np.exp(-x))),
    "gated, turned": ("s = HardSigmoid(h) a = Mul(s, h)", lambda x: x * np.clip(0.2 * x + 0.5, 0, 1)),
}


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize("rank", [2, 4])
def test_it_is_its_formula_with_one_threshold(name: str, rank: int) -> None:
    body, function = BODIES[name]
    model = bend(body, rank=rank)
    changed, outcome = apply(model, ThresholdReLU((("a", 0.3),), compensate=False))
    assert outcome == Outcome(True, ("a",), ())
    assert ops(changed).count("ThresholdedRelu") == 1
    assert ("Relu" in ops(changed)) == ("Relu" in ops(model)) is False or name == "relu"
    x = models.feeds(model, 7)
    found = OrtEngine().load(to_bytes(changed))(x)["y"]
    np.testing.assert_allclose(found, modified(function(x["x"]), 0.3), atol=1e-6)
    assert 0 < np.mean(found == 0) < 1


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize("rank", [2, 4])
def test_it_is_its_formula_with_a_threshold_for_each_channel(name: str, rank: int) -> None:
    """Each of them is found from its channel alone."""
    body, function = BODIES[name]
    model = bend(body, rank=rank)
    infer_shapes(model)
    scale = np.array([0.1, 1, 3, 0.5]).reshape(-1, *[1] * (rank - 2))
    feeds = {"x": (np.abs(models.feeds(model, 64)["x"]) * scale).astype(np.float32)}
    step = ThresholdReLU(quantile=0.05, per_channel=True, compensate=False)
    changed, outcome = apply(model, step, oracles.context(model, feeds=feeds))
    assert outcome.changed == ("a",)
    assert "Where" in ops(changed)
    y = np.moveaxis(function(feeds["x"]), 1, 0).reshape(4, -1)
    found = np.moveaxis(OrtEngine().load(to_bytes(changed))(feeds)["y"], 1, 0).reshape(4, -1)
    for before, after in zip(y, found, strict=True):
        threshold = np.max(before[after == 0], initial=0)
        np.testing.assert_allclose(after, modified(before, threshold), atol=1e-6)
        lost = np.sum(before[after == 0] ** 2) / np.sum(before**2)
        assert lost <= 0.05
        next_ones = np.sort(before[after > 0])[: max(1, before.size // 10)]
        assert lost + np.sum(next_ones**2) / np.sum(before**2) > 0.05


def test_what_comes_out_is_the_documents_cut_of_what_goes_in() -> None:
    """σ(x) where x > ε, and x · σ(x)."""
    x = np.linspace(-4, 4, 101, dtype=np.float32)
    for name in ("sigmoid", "gated"):
        function = BODIES[name][1]
        for threshold in (0.0, 0.5, 1.0):
            wanted = np.where(x > threshold, function(x), 0)
            kept = modified(function(x), function(np.float32(threshold)))
            np.testing.assert_array_equal(kept, wanted.astype(np.float32))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 50)), elements=FLOATS),
    st.floats(1e-4, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_thresholds_meet_their_share_and_no_larger_edge_does(x: np.ndarray, share: float) -> None:
    energies = Energies(len(x))
    for part in np.array_split(x, 3, axis=1):
        energies.update(part)
    for row, edge in zip(x.astype(np.float64), energies.thresholds(share), strict=True):
        total = np.sum(row**2)
        lost = np.sum(row[row < max(edge, 0)] ** 2)
        if edge >= 0:
            assert lost <= share * total * (1 + 1e-9)
        if edge > 0:
            larger = EDGES[np.searchsorted(EDGES, edge) + 1]
            assert np.sum(row[row < larger] ** 2) >= share * total * (1 - 1e-9)
            below = just_below(np.array(edge), np.dtype(np.float32))
            np.testing.assert_array_equal(row > below, row >= edge)
        if edge < 0:
            assert np.sum(row[row < EDGES[0]] ** 2) >= share * total * (1 - 1e-9)


@given(hnp.arrays(np.float64, 20, elements=st.floats(0, 1e12)))
def test_bins_hold_what_lies_between_their_edges(x: np.ndarray) -> None:
    found = bins_of(x)
    np.testing.assert_array_equal(found, np.searchsorted(EDGES, x, side="right").clip(max=len(EDGES)))


@given(st.floats(1e-9, 6e4))
def test_just_below_is_below_and_next(edge: float) -> None:
    for dtype in (np.float16, np.float32):
        found = just_below(np.array(edge), np.dtype(dtype))
        assert 0 <= float(found) < edge
        above = float(np.nextafter(found, dtype(np.inf)))
        assert above >= edge


def test_energies_do_not_hang_on_batches_and_tell_what_is_no_number() -> None:
    x = np.random.default_rng(0).exponential(size=(3, 500_000)).astype(np.float32)
    one, other = Energies(3), Energies(3)
    one.update(x)
    for part in np.array_split(x, 7, axis=1):
        other.update(part)
    np.testing.assert_allclose(one.sums, other.sums, rtol=1e-12)
    assert one.finite
    one.update(np.array([[1, np.nan], [0, 0], [0, 0]], np.float32))
    assert not one.finite


@given(st.floats(1e-3, 10), st.floats(0, 10))
def test_what_a_quantizer_swallows_becomes_zero_in_it(scale: float, share: float) -> None:
    threshold = share * scale / 2
    assert swallowed(threshold, scale) == (share <= 1 or threshold <= scale / 2)
    if swallowed(threshold, scale):
        assert np.rint(threshold / scale) == 0


@pytest.mark.parametrize("compensate", [False, True])
def test_activations_get_sparser_and_lose_no_more_than_the_share(compensate: bool) -> None:
    model = models.cnn()
    infer_shapes(model)
    feeds = models.feeds(model, 64, 5)
    context = oracles.context(model, feeds=feeds)
    assert context.stream is not None
    changed, _ = apply(model, ThresholdReLU(quantile=0.05, compensate=compensate), context)
    before, after = (sparsity(each, context.stream) for each in (model, changed))
    assert set(before) == set(after) == {"r1", "r2"}
    assert all(after[n].share > before[n].share + 0.05 for n in before)
    whole, cut = oracles.values(model, feeds, ["r1"])["r1"], oracles.values(changed, feeds, ["r1"])["r1"]
    lost = np.sum(whole[cut == 0] ** 2) / np.sum(whole**2)
    assert 0.03 < lost <= 0.05
    assert before["r1"].zeros == np.sum(whole == 0)
    assert after["r1"].values == whole.size


def test_refitting_makes_the_outputs_better() -> None:
    model = models.cnn()
    infer_shapes(model)
    errors = []
    fresh = models.feeds(model, 200, 77)
    for compensate in (False, True):
        step = ThresholdReLU(quantile=0.2, compensate=compensate)
        changed, _ = apply(model, step, oracles.context(model, 256))
        y, other = models.run(model, fresh)["y"], models.run(changed, fresh)["y"]
        errors.append(float(np.mean((y - other) ** 2)))
    assert errors[1] < 0.5 * errors[0]


def test_without_samples_what_the_recipe_names_is_cut_all_the_same() -> None:
    model = models.cnn()
    changed, outcome = apply(model, ThresholdReLU((("r1", 0.2),), quantile=0.1), Context())
    assert outcome.changed == ("r1",)
    assert [(s.site, s.reason) for s in outcome.skipped] == [("r2", "needs samples")]
    weights = [
        {k: v.const_value.numpy().tobytes() for k, v in m.graph.initializers.items()}
        for m in (model, changed)
    ]
    assert weights[0] == weights[1]


def test_names_of_nodes_and_of_values_will_do() -> None:
    model = models.mlp()
    next(n for n in model.graph if n.op_type == "Relu").name = "act"
    for name in ("act", "a"):
        assert apply(model, ThresholdReLU(((name, 0.2),)))[1].changed == ("act",)
    _, outcome = apply(model, ThresholdReLU((("b", 0.2),)))
    assert not outcome.modified
    assert [(s.site, s.reason) for s in outcome.skipped] == [("b", "no such activation")]


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_relu_that_the_model_gives_stays_whole_and_its_readers_see_it_cut(per_channel: bool) -> None:
    model = text(
        "(float[N, 6] x) => (float[N, 8] a, float[N, 4] y)",
        "h = Gemm(x, w1) a = Relu(h) y = Gemm(a, w2)",
        constants(1, w1=(6, 8), w2=(8, 4)),
    )
    infer_shapes(model)
    feeds = models.feeds(model, 64)
    context = oracles.context(model, feeds=feeds)
    step = ThresholdReLU(quantile=0.2, per_channel=per_channel, compensate=False)
    changed, outcome = apply(model, step, context)
    assert outcome.changed == ("a",)
    before, after = models.run(model, feeds), models.run(changed, feeds)
    np.testing.assert_array_equal(before["a"], after["a"])
    assert np.abs(before["y"] - after["y"]).max() > 0.05
    assert context.stream is not None
    assert sparsity(changed, context.stream)["a"].share > sparsity(model, context.stream)["a"].share + 0.1


def test_a_relu_that_only_the_user_reads_is_left() -> None:
    model = text("(float[N, 4] x) => (float[N, 4] y)", "h = MatMul(x, w) y = Relu(h)", constants(1, w=(4, 4)))
    _, outcome = apply(model, ThresholdReLU((("y", 0.2),)))
    assert not outcome.modified
    assert [s.reason for s in outcome.skipped] == ["nothing in the model reads it"]


def test_all_readers_of_a_shared_relu_see_it_cut_and_are_refitted() -> None:
    model = models.two_heads()
    changed, _ = apply(model, ThresholdReLU((("a", 0.5),), compensate=False))
    feeds = models.feeds(model, 5)
    a = modified(np.maximum(oracles.values(model, feeds, ["h"])["h"], 0), 0.5)
    weights = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}
    for name, weight in (("y", "w2"), ("z", "w3")):
        np.testing.assert_allclose(models.run(changed, feeds)[name], a @ weights[weight].T, atol=1e-5)
    refitted, _ = apply(model, ThresholdReLU((("a", 0.5),)))
    for weight in ("w2", "w3"):
        assert not np.array_equal(refitted.graph.initializers[weight].const_value.numpy(), weights[weight])


def test_a_relu_read_inside_a_body_is_cut_there_too() -> None:
    model = text(
        "(float[N, 4] x) => (float[N, 4] y)",
        """
        h = MatMul(x, w) s = Sigmoid(h) total = ReduceSum <keepdims = 0> (h) positive = Greater(total, zero)
        y = If <then_branch = up () => (t) { t = MatMul(s, w) }, else_branch = down () => (e) { e = MatMul(s, w) }>
            (positive)
        """,
        {"w": np.eye(4, dtype=np.float32), "zero": np.array(0, np.float32)},
    )
    changed, _ = apply(model, ThresholdReLU((("s", 0.5),)))
    feeds = models.feeds(model, 5)
    wanted = modified(1 / (1 + np.exp(-feeds["x"])), 0.5)
    np.testing.assert_allclose(models.run(changed, feeds)["y"], wanted, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_half_precision(per_channel: bool) -> None:
    model = bend("a = Relu(h)", "float16")
    step = ThresholdReLU(quantile=0.1, per_channel=per_channel, compensate=False)
    changed, outcome = apply(model, step)
    assert outcome.changed == ("a",)
    feeds = models.feeds(model, 20)
    found = OrtEngine().load(to_bytes(changed))(feeds)["y"]
    assert found.dtype == np.float16
    before = np.maximum(feeds["x"], 0)
    assert ((found == 0) | (found == before)).all()
    assert np.mean(found == 0) > np.mean(before == 0) + 0.05


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_old_opset_is_raised_only_where_something_changes(per_channel: bool) -> None:
    model = bend("a = Relu(h)", opset=8)
    step = ThresholdReLU(quantile=0.1, per_channel=per_channel)
    changed, outcome = apply(model, step)
    assert outcome.changed == ("a",)
    assert changed.opset_imports[""] == 10
    OrtEngine().load(to_bytes(changed))(models.feeds(model))
    left, outcome = apply(model, ThresholdReLU((("a", 0.0),)))
    assert not outcome.modified
    assert left.opset_imports[""] == 8
    assert [s.reason for s in outcome.skipped] == ["nothing is small enough to go"]


def test_what_has_a_threshold_keeps_it() -> None:
    for step in (ThresholdReLU(quantile=0.1), ThresholdReLU(quantile=0.1, per_channel=True)):
        for body, _ in BODIES.values():
            once, _ = apply(bend(body), step)
            twice, outcome = apply(once, ThresholdReLU((("a", 1.0),)))
            assert not outcome.modified
            assert [(s.site, s.reason) for s in outcome.skipped] == [("a", "it has a threshold already")]
            assert to_bytes(twice) == to_bytes(once)


def test_integers_are_left_to_their_kernels() -> None:
    model = models.cnn()
    infer_shapes(model)
    quantized = model.clone()
    Quantize().apply(quantized, oracles.context(model))
    names = [a.name for a in activations(quantized)]
    for threshold, reason in ((1e-6, "its quantizer takes such values"), (0.5, "it flows in integers")):
        step = ThresholdReLU(tuple((n, threshold) for n in names))
        outcome = step.apply(quantized.clone(), oracles.context(model))
        assert names
        assert not outcome.modified
        assert all(s.reason.startswith(reason) for s in outcome.skipped)


def test_negative_values_are_part_of_what_is_lost() -> None:
    model = bend(BODIES["gated"][0])
    _, outcome = apply(model, ThresholdReLU(quantile=1e-3))
    assert [s.reason for s in outcome.skipped] == [
        "its negative values alone have more of the energy than may go"
    ]
    assert apply(model, ThresholdReLU(quantile=0.2))[1].changed == ("a",)


def test_values_that_are_no_numbers_and_dead_units() -> None:
    model = bend("a = Relu(h)")
    infer_shapes(model)
    feeds = models.feeds(model, 32)
    feeds["x"][0, 0, 0, 0] = np.inf
    _, outcome = apply(model, ThresholdReLU(quantile=0.1), oracles.context(model, 32, feeds=feeds))
    assert [s.reason for s in outcome.skipped] == ["its activations are not finite on the samples"]
    feeds = {"x": -np.abs(models.feeds(model, 32)["x"])}
    for per_channel in (False, True):
        step = ThresholdReLU(quantile=0.1, per_channel=per_channel)
        _, outcome = apply(model, step, oracles.context(model, 32, feeds=feeds))
        assert [s.reason for s in outcome.skipped] == ["nothing is small enough to go"]


def test_energies_of_many_channels_are_gathered_in_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ThresholdReLU(quantile=0.1, per_channel=True)
    one, _ = apply(models.cnn(), step)
    monkeypatch.setattr(module, "ENERGY_BYTES", 1)
    other, _ = apply(models.cnn(), step)
    assert to_bytes(one) == to_bytes(other)
    monkeypatch.setattr(module, "MOST_CHANNELS", 3)
    wide, _ = apply(models.cnn(), step)
    assert "Where" not in ops(wide)
    assert ops(wide).count("ThresholdedRelu") == 2


@pytest.mark.parametrize(
    "fields",
    [{"thresholds": (("a", -0.1),)}, {"thresholds": (("a", float("nan")),)}, {"quantile": 0.0}, {"quantile": 1.0},
     {"sites": ("(",)}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(fields: dict) -> None:
    with pytest.raises(UsageError, match="threshold_relu"):
        ThresholdReLU(**fields)
