"""Shrinking by what a recipe says: criteria, shares, thresholds, cycles."""

from typing import Any

import models
import models_flow
import numpy as np
import onnx_ir as ir
import oracles
import pytest
import scipy.linalg
import scipy.special
from models import text
from shrinking import deep, kept, shrunk_by, widths

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import Streamer, distance
from edgepress.compressor.passes import Shrink
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.saliency import group_curve
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.recipe import from_json, to_json
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_zero_rate_is_that_of_all_activations(rate: float) -> None:
    model, feeds = deep()
    found = oracles.values(model, feeds, ["a", "r"])
    changed = shrunk_by(Shrink(criterion="zeros", zero_rate=rate), model, feeds)
    for value, before in (("a", "h"), ("r", "g")):
        zero = (found[value] == 0).mean(0)
        assert kept(changed, before) == np.flatnonzero(zero < rate).tolist()


@pytest.mark.parametrize("sigmas", [0.5, 1.5])
def test_outliers_are_those_of_all_activations(sigmas: float) -> None:
    model, feeds = deep()
    found = oracles.values(model, feeds, ["a", "r"])
    changed = shrunk_by(Shrink(criterion="outliers", sigmas=sigmas), model, feeds)
    for value, before in (("a", "h"), ("r", "g")):
        mean = found[value].mean(0, dtype=np.float64)
        assert kept(changed, before) == np.flatnonzero(mean >= mean.mean() - sigmas * mean.std()).tolist()
    assert (widths(changed) == widths(model)) == (sigmas > 1)


def test_activations_are_looked_at_in_front_of_pools() -> None:
    """APoZ counts all positions of a feature map; a maximum of four is zero less often."""
    model = models.cnn()
    infer_shapes(model)
    feeds = models.feeds(model, 40)
    zero = (oracles.values(model, feeds, ["r1"])["r1"] == 0).mean((0, 2, 3))
    rate = float(np.sort(zero)[-1])
    changed = shrunk_by(Shrink(criterion="zeros", zero_rate=rate, sites=("^c1$",)), model, feeds)
    assert kept(changed, "c1") == np.flatnonzero(zero < rate).tolist()


def test_a_residual_stream_is_as_zero_as_after_all_its_adds() -> None:
    model = models.residual()
    infer_shapes(model)
    feeds = models.feeds(model, 40)
    found = oracles.values(model, feeds, ["r0", "r2"])
    zero = np.mean([(found[v] == 0).mean((0, 2, 3)) for v in ("r0", "r2")], axis=0)
    changed = shrunk_by(Shrink((("c0", 5),), criterion="zeros"), model, feeds)
    assert kept(changed, "c0") == sorted(np.argsort(zero)[:5].tolist())


def test_pivoted_qr_keeps_what_scipy_would() -> None:
    model, feeds = deep()
    a = oracles.values(model, feeds, ["a"])["a"].astype(np.float64)
    w = next(s for s in find_sites(model) if s.name == "g").matrix().astype(np.float64)
    _, _, order = scipy.linalg.qr((a - a.mean(0)) * np.linalg.norm(w, axis=0), pivoting=True, mode="economic")
    changed = shrunk_by(Shrink((("h", 8),), criterion="qr"), model, feeds)
    assert kept(changed, "h") == sorted(order[:8].tolist())


def test_fisher_removes_what_changes_the_readers_least_without_refit() -> None:
    model, feeds = deep()
    context = oracles.context(model, 300, feeds=feeds)
    channels = analyse(model)
    group = groups_of(model, channels)[0][0]
    curve = group_curve(model, channels, group, context, "fisher")
    a = oracles.values(model, feeds, ["a"])["a"].astype(np.float64)
    w = next(s for s in find_sites(model) if s.name == "g").matrix().astype(np.float64)
    moved = [float(np.sum(np.outer(c - c.mean(), row) ** 2)) for c, row in zip(a.T, w.T, strict=True)]
    assert curve.order.tolist() == group.units[np.argsort(moved)].tolist()
    total = float(np.sum(((a - a.mean(0)) @ w.T) ** 2))
    np.testing.assert_allclose(np.diff(curve.damage), np.sort(moved) / total, rtol=1e-4, atol=1e-9)


def falling() -> tuple[ir.Model, Feeds]:
    """Units 0 and 1 fire for one sample each, and unit 0 of the next two layers for both."""
    eye = np.eye(4, dtype=np.float32)
    join = eye.copy()
    join[0, 1], join[1] = 1, eye[2]
    weights = {"w0": eye, "w1": join, "w2": eye, "w3": np.ones((2, 4), np.float32)}
    weights |= {"b0": np.array([-2, -2, 0, 0], np.float32)}
    weights |= {name: np.array([-0.01, 0, 0, 0], np.float32) for name in ("b1", "b2")}
    layers = [
        f"h{i} = Gemm <transB = 1> ({x}, w{i}, b{i}) a{i} = Relu(h{i})"
        for i, x in enumerate(("x", "a0", "a1"))
    ]
    model = text(
        "(float[N, 4] x) => (float[N, 2] y)", f"{' '.join(layers)} y = Gemm <transB = 1> (a2, w3)", weights
    )
    x = np.random.default_rng(0).uniform(0.5, 1.5, size=(200, 4)).astype(np.float32)
    x[0, 0] = x[1, 1] = 2.3
    return model, {"x": x}


@pytest.mark.parametrize(("cycles", "expected"), [(1, [2, 4, 4]), (2, [2, 3, 3]), (9, [2, 3, 3])])
def test_cycles_go_on_until_nothing_more_is_dead(cycles: int, expected: list[int]) -> None:
    """What fires for two samples is dead once both that it listened to are gone."""
    model, feeds = falling()
    step = Shrink(criterion="zeros", zero_rate=0.992, cycles=cycles, compensate=False)
    assert list(widths(shrunk_by(step, model, feeds)).values()) == expected


def test_outliers_are_measured_again_in_each_cycle() -> None:
    model, feeds = deep(hidden=40)
    steps = [Shrink(criterion="outliers", sigmas=0.7, cycles=cycles) for cycles in (1, 2)]
    one, two = (sum(widths(shrunk_by(step, model, feeds)).values()) for step in steps)
    assert 80 > one > two
    once = shrunk_by(steps[0], model, feeds)
    context = Context(Streamer(OrtEngine(), model, lambda: oracles.batches(feeds)), rows=300)
    steps[0].apply(once, context)  # a cycle is one pass more on what the pass before left
    assert sum(widths(once).values()) == two


def test_where_no_unit_falls_below_the_threshold_that_is_said() -> None:
    model, feeds = deep()
    outcome = Shrink(criterion="outliers", cycles=5).apply(model, oracles.context(model, 300, feeds=feeds))
    assert not outcome.modified
    assert [s.site for s in outcome.skipped] == ["h", "g"]
    assert all("threshold" in s.reason for s in outcome.skipped)


@pytest.mark.parametrize("criterion", ["obs", "zeros", "outliers", "qr", "fisher"])
@pytest.mark.parametrize("cycles", [1, 3])
def test_a_share_of_every_group_goes(criterion: Any, cycles: int) -> None:
    model, feeds = deep()
    step = Shrink((("g", 7),), criterion=criterion, share=0.4, cycles=cycles)
    changed = shrunk_by(step, model, feeds)
    assert widths(changed) == {"h": 12, "g": 7}


def test_refitting_makes_up_for_every_criterion() -> None:
    model, feeds = deep(hidden=30)
    y = models.run(model, feeds)["y"]
    for criterion in ("obs", "zeros", "outliers", "qr", "fisher"):
        errors = [
            float(np.sum((models.run(shrunk_by(Shrink(compensate=put_back, criterion=criterion, share=0.5),  # type: ignore[arg-type]
                                               model, feeds), feeds)["y"] - y) ** 2))
            for put_back in (True, False)
        ]  # fmt: skip
        assert errors[0] < 0.7 * errors[1], criterion


def test_a_distance_is_the_mean_divergence_of_classes_or_the_error_over_the_spread() -> None:
    model, feeds = deep()
    changed = shrunk_by(Shrink(share=0.6, compensate=False), model, feeds)
    (p, q) = (
        scipy.special.softmax(models.run(m, feeds)["y"].astype(np.float64), 1) for m in (model, changed)
    )
    context = oracles.context(model, 300, feeds=feeds)
    assert distance(changed, context) == pytest.approx(float(np.mean(np.sum(p * np.log(p / q), 1))), rel=1e-4)
    model = models_flow.recurrent("GRU")
    feeds = models.feeds(model, 64)
    changed = shrunk_by(Shrink(share=0.5, compensate=False), model, feeds)
    a, b = (models.run(m, feeds)["y"].astype(np.float64) for m in (model, changed))
    expected = np.sum((a - b) ** 2) / np.sum((a - a.mean()) ** 2)
    assert distance(changed, oracles.context(model, feeds=feeds)) == pytest.approx(float(expected), rel=1e-4)
    assert distance(model, oracles.context(model, feeds=feeds)) == 0


def test_widths_that_the_pass_chooses_suit_the_target() -> None:
    model, feeds = deep()
    board = oracles.Board(channel_multiple=8)
    for step in (Shrink(share=0.5), Shrink(criterion="zeros", zero_rate=0.6)):
        changed = shrunk_by(step, model, feeds, target=board)
        assert all(width % 8 == 0 or width == 20 for width in widths(changed).values())
    assert widths(shrunk_by(Shrink((("h", 7),)), model, feeds, target=board))["h"] == 7
    outcome = Shrink(share=0.01).apply(model.clone(), oracles.context(model, target=board, feeds=feeds))
    assert not outcome.modified
    outcome = Shrink(share=0.06).apply(
        model.clone(), oracles.context(model, target=oracles.Board(channel_multiple=80))
    )
    assert {s.site for s in outcome.skipped} == {"h", "g"}
    assert all("rounded up" in s.reason for s in outcome.skipped)


def test_sites_and_leave_say_which_groups() -> None:
    model, feeds = deep()
    assert widths(shrunk_by(Shrink(share=0.5, sites=("^g$",)), model, feeds)) == {"h": 20, "g": 10}
    changed = model.clone()
    outcome = Shrink(share=0.5, leave=("g",)).apply(changed, oracles.context(model, 300, feeds=feeds))
    assert widths(changed) == {"h": 10, "g": 20}
    assert [(s.site, s.reason) for s in outcome.skipped] == [("g", "the recipe leaves it as it is")]


def test_a_share_without_samples_is_skipped_with_a_reason() -> None:
    outcome = Shrink(share=0.5).apply(deep()[0], Context())
    assert [(s.site, s.reason) for s in outcome.skipped] == [("h", "needs samples"), ("g", "needs samples")]


@pytest.mark.parametrize(
    "fields", [{"share": 1.0}, {"share": -0.1}, {"zero_rate": 0.0}, {"zero_rate": 1.1}, {"sigmas": -1.0},
               {"sigmas": float("nan")}, {"cycles": 0}, {"sites": ("(",)}],
)  # fmt: skip
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="shrink"):
        Shrink(**fields)


def test_a_recipe_comes_back_as_it_was() -> None:
    step = Shrink((("h", 3),), False, "zeros", 0.5, 0.9, 3.0, 2, ("a",), ("b",))
    assert from_json(to_json((step,))) == (step,)


def test_activations_of_many_groups_are_gathered_in_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = deep()
    step = Shrink(criterion="zeros", zero_rate=0.6)
    together = shrunk_by(step, model, feeds)
    monkeypatch.setattr("edgepress.compressor.passes.saliency.MOST_TOGETHER", 1)
    assert to_bytes(shrunk_by(step, model, feeds)) == to_bytes(together)


@pytest.mark.parametrize("criterion", ["zeros", "qr"])
def test_memory_does_not_grow_with_the_samples(criterion: Any) -> None:
    """What is kept between batches is as large for one batch as for many."""
    import tracemalloc

    model, feeds = deep()
    peaks = []
    for times in (1, 12):
        many = {"x": np.tile(feeds["x"], (times, 1))}
        context = oracles.context(model, len(many["x"]), feeds=many)
        Shrink(share=0.5, criterion=criterion).apply(model.clone(), context)
        tracemalloc.start()
        Shrink(share=0.5, criterion=criterion, compensate=False).apply(model.clone(), context)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000
