"""Weights as indices into codebooks: the same kernels at run time, and a file of indices and little else."""

from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import oracles
import pytest
from formats import distance, kernels
from models import constants, text
from test_rounding_sites import correlated, dense, lost
from test_store import CASES, one

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import parameters, to_bytes
from edgepress.compressor.passes.base import Context, Outcome, Skipped
from edgepress.compressor.passes.cluster import Cluster, Layout
from edgepress.compressor.passes.constants import packed
from edgepress.compressor.passes.layout import Stored, scale_shape
from edgepress.compressor.passes.prune import Prune
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.predict import computed_at_load
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.report.sites import _weights_by_node, packed_away, scales


def clustered(
    model: ir.Model, step: Cluster, feeds: Feeds | None = None, context: Context | None = None
) -> tuple[ir.Model, Outcome]:
    changed = model.clone()
    if context is None:
        rows = len(next(iter(feeds.values()))) if feeds else 0
        context = oracles.context(model, rows, feeds=feeds) if feeds else Context()
    return changed, step.apply(changed, context)


def fed(name: str, model: ir.Model) -> Feeds:
    return {"x": np.arange(32)} if name == "gather" else models.feeds(model, 32)


@pytest.fixture
def packing_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else weights as few as these would never be packed."""
    monkeypatch.setattr("edgepress.compressor.numerics.packing.UNPACKING_BYTES", -(10**6))
    monkeypatch.setattr("edgepress.compressor.passes.cluster.OVERHEAD", -(10**6))


@pytest.mark.usefixtures("packing_that_costs_nothing")
@pytest.mark.parametrize("layout", [{}, {"books": 2}, {"scaled": True}])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_runtime_sees_the_same_kernels(
    name: str, bits: int, layout: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "_layout", lambda _, stored, array: forced(stored, array, **layout))
    model = CASES[name]()
    changed, outcome = clustered(model, Cluster(bits))
    assert outcome.modified
    assert not outcome.skipped
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    assert kernels(changed, tmp_path) == kernels(model, tmp_path)
    assert distance(model, changed, fed(name, model)) < 3.5 / 2**bits
    held = {n: v.const_value.nbytes for n, v in changed.graph.initializers.items() if n.endswith("_c")}
    for weight, value in model.graph.initializers.items():
        if weight in ("w", "r"):
            count, word = value.const_value.size, 1 if 8 % bits == 0 else 4
            expected = count if bits > 6 else word * -(-count // (8 * word // bits))
            assert held[f"{weight}_c"] == expected


def forced(stored: Stored, array: Array, books: int = 1, scaled: bool = False) -> Layout:
    """Codebooks or scales for the channels, whether they pay or not."""
    shape, count = scale_shape(stored, array)
    return Layout(shape if books > 1 or scaled else (1,) * array.ndim, count if books > 1 else 1, scaled)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_large_weight_takes_what_its_indices_and_codebooks_take(bits: int, per_channel: bool) -> None:
    model = one("y = MatMul (x, w)", "(float[N, 8192] x) => (float[N, 48] y)", w=(8192, 48))
    changed, outcome = clustered(model, Cluster(bits, per_channel=per_channel))
    assert outcome.modified
    width = 8 if bits == 7 else 32 / (32 // bits)  # of what an index takes in its word
    books = 48 if per_channel and bits < 8 else 1
    assert len(to_bytes(changed)) <= 1.05 * (8192 * 48 * width / 8 + books * 4 * 2**bits)
    largest = next(found for node in changed.graph if (found := packed(node)) is not None)
    assert largest[:2] == (8192 * 48, bits)


@pytest.mark.parametrize("name", sorted(models.ALL))
@pytest.mark.parametrize("samples", [True, False])
def test_every_tiny_model_stays_right(name: str, samples: bool) -> None:
    model = models.ALL[name]()
    before = to_bytes(model)
    changed, outcome = clustered(
        model, Cluster(8, min_elements=2), models.feeds(model, 32) if samples else None
    )
    assert outcome.modified == (to_bytes(changed) != before)
    assert len(to_bytes(changed)) <= len(before)
    assert distance(model, changed, models.feeds(model, 32)) < 0.02


@pytest.mark.parametrize("name", ["w", "weights_of_the_first_layer"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
def test_no_weight_is_stored_at_a_loss(name: str, half: bool, bits: int) -> None:
    kind = "float16" if half else "float"
    for width in (*range(1, 24, 3), 40, 60, 90):
        model = text(
            f"({kind}[N, 16] x) => ({kind}[N, K] y)",
            f"y = MatMul (x, {name})",
            constants(1, np.float16 if half else np.float32, **{name: (16, width)}),
        )
        changed, outcome = clustered(model, Cluster(bits, min_elements=1))
        assert len(to_bytes(changed)) < len(to_bytes(model)) or not outcome.modified


def test_few_different_weights_are_kept_exactly_and_in_few_bits() -> None:
    values = np.random.default_rng(0).choice(np.array([-0.3, 0, 0.7], np.float32), (256, 64))
    model = text("(float[N, 256] x) => (float[N, 64] y)", "y = MatMul (x, w)", {"w": values})
    changed, _ = clustered(model, Cluster(8))
    assert distance(model, changed, models.feeds(model, 8)) == 0
    assert len(to_bytes(changed)) < 256 * 64 / 4 + 700


@pytest.mark.usefixtures("packing_that_costs_nothing")
@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_stays_half_and_is_folded(bits: int, tmp_path: Path) -> None:
    model = text(
        "(float16[N, 16] x) => (float16[N, 64] y)", "y = MatMul (x, w)", constants(2, np.float16, w=(16, 64))
    )
    changed, outcome = clustered(model, Cluster(bits), models.feeds(model, 64))
    assert outcome.modified
    assert kernels(changed, tmp_path) == kernels(model, tmp_path)
    assert distance(model, changed, models.feeds(model, 8)) < 2 / 2**bits


def test_equal_weights_are_stored_once() -> None:
    weights = constants(3, w=(64, 64))
    model = text(
        "(float[N, 64] x) => (float[N, 64] y)",
        "t = MatMul (x, w) r = Relu (t) s = MatMul (r, w) y = MatMul (s, v)",
        weights | {"v": weights["w"].copy()},
    )
    for step in (Cluster(4), Cluster(8), StoreWeights(weight_bits=4)):
        changed = model.clone()
        outcome = step.apply(changed, Context())
        assert len(outcome.changed) == 3
        onnx.checker.check_model(ir.to_proto(changed), full_check=True)
        assert len(to_bytes(changed)) < 64 * 64 + 2000
        assert distance(model, changed, models.feeds(model, 8)) < 0.3


def test_words_come_with_an_opset_that_takes_them_apart() -> None:
    for bits in (4, 8):
        model = text(
            "(float[N, 64] x) => (float[N, 64] y)", "y = MatMul (x, w)", constants(3, w=(64, 64)), opset=9,
            ir_version=4,
        )  # fmt: skip
        changed, outcome = clustered(model, Cluster(bits))
        assert outcome.modified
        assert changed.opset_imports[""] == (11 if bits == 4 else 9)
        assert distance(model, changed, models.feeds(model, 8)) < 3 / 2**bits


def test_samples_tell_which_weights_matter() -> None:
    model = dense("y = Gemm <transB = 1> (x, w, b)", w=(32, 64), b=(32,))
    samples, unseen = correlated(500, mean=3), correlated(500, mean=3, seed=1)
    plain, nearest, refined = (
        lost(model, clustered(model, step, feeds)[0], unseen)
        for step, feeds in ((Cluster(3), None), (Cluster(3, refine=False), samples), (Cluster(3), samples))
    )
    assert refined < 0.5 * nearest < 0.5 * plain
    evenly = model.clone()
    StoreWeights(weight_bits=3).apply(evenly, oracles.context(model, 500, feeds=samples))
    assert plain > refined
    assert refined < 1.3 * lost(model, evenly, unseen)


def test_the_bias_takes_the_mean_error_up() -> None:
    model = CASES["conv"]()
    feeds = {"x": np.abs(models.feeds(model, 64)["x"]) + 3}
    reference = models.run(model, feeds)["y"].mean(axis=(0, 2, 3))
    moved = []
    for correction in (False, True):
        changed, _ = clustered(model, Cluster(4, refine=False, bias_correction=correction), feeds)
        moved.append(np.abs(models.run(changed, feeds)["y"].mean(axis=(0, 2, 3)) - reference).max())
    assert moved[1] < 0.05 * moved[0]


def test_channels_have_codebooks_where_that_pays() -> None:
    weights = constants(4, w=(2048, 16))
    weights["w"] *= np.geomspace(1, 100, 16, dtype=np.float32)
    model = text("(float[N, 2048] x) => (float[N, 16] y)", "y = MatMul (x, w)", weights)
    feeds = models.feeds(model, 16)
    errors = []
    for step in (Cluster(2, scales=False), Cluster(2), Cluster(2, per_channel=True)):
        changed, _ = clustered(model, step)
        a, b = models.run(model, feeds)["y"], models.run(changed, feeds)["y"]
        errors.append(np.linalg.norm(a - b, axis=0) / np.linalg.norm(a, axis=0))
    assert errors[1].max() < 0.5 * errors[0].max()
    assert errors[2].max() < 0.5 * errors[0].max()
    assert {node.op_type for node in changed.graph} >= {"Add", "Gather"}
    narrow, _ = clustered(CASES["gemm"](), Cluster(4, per_channel=True))
    assert "Add" not in {node.op_type for node in narrow.graph}


def test_bits_of_a_site_overrule_those_of_all() -> None:
    model = one("m = MatMul (x, w) y = MatMul (m, v)", w=(16, 512), v=(512, 4))
    step = Cluster(site_bits=(("m", 2), ("nothing", 3)))
    changed, outcome = clustered(model, step)
    found = [what[:2] for node in changed.graph if (what := packed(node)) is not None]
    assert sorted(found) == [(512 * 4, 4), (16 * 512, 2)]
    assert outcome.skipped == (Skipped("nothing", "no such site"),)


@pytest.mark.usefixtures("packing_that_costs_nothing")
@pytest.mark.parametrize("step", [Cluster(4), Cluster(8), Cluster(2, per_channel=True)])
def test_what_is_shared_is_not_stored_again(step: Cluster) -> None:
    model = one("y = MatMul (x, w)", "(float[N, 2048] x) => (float[N, 16] y)", w=(2048, 16))
    once, _ = clustered(model, step)
    for then in (Cluster(4, min_elements=1), StoreWeights(weight_bits=4, min_elements=1)):
        again = once.clone()
        assert not then.apply(again, Context()).modified
        assert to_bytes(again) == to_bytes(once)


@pytest.mark.parametrize("step", [Cluster(4), Cluster(8), Cluster(2, per_channel=True)])
def test_reports_count_weights_and_not_what_they_are_looked_up_in(step: Cluster) -> None:
    model = one("y = MatMul (x, w)", "(float[N, 2048] x) => (float[N, 16] y)", w=(2048, 16))
    changed, _ = clustered(model, step)
    at_load = computed_at_load(changed)
    assert parameters(changed) - scales(at_load) + packed_away(changed, at_load) == 2048 * 16
    held = _weights_by_node(changed)["y"]
    assert (held.parameters - scales(at_load), held.bits) == (2048 * 16, step.bits)
    assert 0 <= held.bytes - 2048 * 16 * step.bits / 8 < 2000


@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(
    "step", [Cluster(4), Cluster(2, per_channel=True), Cluster(8), Cluster(3, scales=False)]
)
def test_what_was_pruned_before_stays_zero_in_the_runtime(step: Cluster, samples: bool) -> None:
    """Seen from outside: one input at a time, so that outputs are weights."""
    model = one("y = MatMul (x, w)", "(float[N, 512] x) => (float[N, 24] y)", w=(512, 24))
    feeds = models.feeds(model, 64)
    pruned = model.clone()
    Prune(0.7).apply(pruned, oracles.context(model, 64, feeds=feeds))
    before = models.run(pruned, {"x": np.eye(512, dtype=np.float32)})["y"]
    changed, outcome = clustered(
        pruned, step, context=oracles.context(model, 64, feeds=feeds) if samples else None
    )
    after = models.run(changed, {"x": np.eye(512, dtype=np.float32)})["y"]
    assert outcome.changed == ("y",)
    assert (before == 0).mean() == pytest.approx(0.7, abs=1e-3)
    assert (after[before == 0] == 0).all()


def test_what_cannot_be_shared_says_why() -> None:
    model = CASES["gemm"]()
    for step in (Cluster(leave=("y",)), Cluster(sites=("^other$",))):
        changed, outcome = clustered(model, step)
        assert outcome.skipped == (Skipped("y", "the recipe leaves it as it is"),)
        assert to_bytes(changed) == to_bytes(model)
    outcome = clustered(model, Cluster(), context=Context(leave=("y",)))[1]
    assert outcome.skipped == (Skipped("y", "--leave names it"),)
    model.graph.initializers["w"].const_value = ir.tensor(np.full((32, 16), np.nan, np.float32), name="w")
    assert clustered(model, Cluster())[1].skipped == (Skipped("y", "its weights are not finite"),)
    small = one("y = MatMul (x, w)", w=(16, 3))
    assert clustered(small, Cluster())[1].skipped == (Skipped("y", "it has fewer than 64 weights"),)
    little = one("y = MatMul (x, w)", w=(16, 5))
    assert clustered(little, Cluster(8))[1].skipped == (Skipped("y", "the file would not get smaller"),)


@pytest.mark.parametrize("fields", [{"bits": 0}, {"bits": 9}, {"site_bits": (("y", 0),)}, {"sites": ("(",)}])
def test_impossible_parameters_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cluster"):
        Cluster(**fields)  # type: ignore[arg-type]
