"""Pruning the weights of a model: exact counts, what takes up the loss, and what is left alone."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import WIDEST
from edgepress.compressor.passes.base import Context, Outcome, Skipped
from edgepress.compressor.passes.prune import Prune
from edgepress.compressor.protocols import Array, Feeds
from edgepress.compressor.recipe import dump, parse
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites


def applied(model: ir.Model, step: Prune, feeds: Feeds | None = None) -> tuple[ir.Model, Outcome]:
    changed = model.clone()
    rows = len(next(iter(feeds.values()))) if feeds else 0
    context = oracles.context(model, rows, feeds=feeds) if feeds else Context()
    return changed, step.apply(changed, context)


def zeros(model: ir.Model) -> dict[str, int]:
    return {site.name: int((site.weight == 0).sum()) for site in find_sites(model)}


def lost(model: ir.Model, changed: ir.Model, feeds: Feeds) -> float:
    before, after = (models.run(m, feeds)["y"].astype(np.float64) for m in (model, changed))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before - before.mean(0)))


def dense(body: str, header: str = "float[N, 64] x", **shapes: tuple[int, ...]) -> ir.Model:
    model = text(f"({header}) => (float[N, K] y)", body, constants(3, **shapes))
    infer_shapes(model)
    return model


def correlated(rows: int, width: int = 64, mean: float = 0.0, seed: int = 0) -> dict[str, Array]:
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((12, width))
    values = rng.standard_normal((rows, 12)) @ mixing + 0.3 * rng.standard_normal((rows, width)) + mean
    return {"x": values.astype(np.float32)}


TWO = "h = Gemm <transB = 1> (x, w, b) r = Relu (h) y = Gemm (r, v, c)"
SHAPES = {"w": (48, 64), "b": (48,), "v": (48, 32), "c": (32,)}


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.87])
def test_each_site_has_just_the_zeros_that_were_asked_for(
    criterion: str, compensate: bool, samples: bool, share: float
) -> None:
    model = dense(TWO, **SHAPES)
    step = Prune(share, (("y", 0.25),), criterion=criterion, compensate=compensate)
    changed, outcome = applied(model, step, correlated(100) if samples else None)
    assert zeros(changed) == {"h": round(share * 48 * 64), "y": 48 * 8}
    assert outcome.changed == (("h", "y") if share else ("y",))


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
@pytest.mark.parametrize("pattern", ["free", "block"])
def test_one_threshold_for_all_meets_the_total(criterion: str, pattern: str) -> None:
    model = dense(TWO, **SHAPES)
    step = Prune(0.6, scope="global", criterion=criterion, pattern=pattern)
    found = zeros(applied(model, step, correlated(100))[0])
    unit = 1 if pattern == "free" else 4
    assert sum(found.values()) == unit * round(0.6 * (48 * 64 + 48 * 32) / unit)
    assert found["h"] != round(0.6 * 48 * 64)
    named = Prune(0.6, (("h", 0.5),), scope="global", criterion=criterion, pattern=pattern)
    assert zeros(applied(model, named, correlated(100))[0])["h"] == 48 * 32


def test_one_threshold_leaves_something_of_every_site() -> None:
    model = dense(TWO, **SHAPES)
    value = model.graph.initializers["v"]
    value.const_value = ir.tensor(value.const_value.numpy() * 1e-6, name="v")
    found = zeros(applied(model, Prune(0.5, scope="global", criterion="magnitude"))[0])
    assert found["y"] == 48 * 32 - int(0.05 * 48 * 32)
    assert sum(found.values()) == (48 * 64 + 48 * 32) // 2


def test_what_hardly_reaches_the_outputs_goes_first() -> None:
    """By what it does to outputs a site with small weights is worth no less than others."""
    model = dense(TWO, **SHAPES)
    small = model.clone()
    value = small.graph.initializers["v"]
    value.const_value = ir.tensor(value.const_value.numpy() * 2.0**-9, name="v")
    step = Prune(0.6, scope="global")
    assert zeros(applied(small, step, correlated(100))[0]) == zeros(applied(model, step, correlated(100))[0])


CONVS = {
    "conv": ("Conv <pads = [1, 1, 1, 1]> (x, w, b)", (8, 6, 3, 3), 1),
    "grouped": ("Conv <group = 2> (x, w, b)", (8, 3, 3, 3), 1),
    "depthwise": ("Conv <group = 6> (x, w, b)", (12, 1, 3, 3), 1),
    "transposed": ("ConvTranspose <group = 2> (x, w)", (6, 5, 2, 2), 0),
}


@pytest.mark.parametrize("name", sorted(CONVS))
@pytest.mark.parametrize("samples", [True, False])
def test_of_every_m_channels_at_a_tap_n_stay(name: str, samples: bool) -> None:
    body, shape, axis = CONVS[name]
    model = text(
        "(float[N, 6, 5, 5] x) => (float[N, M, h, k] y)", f"y = {body}", constants(1, w=shape, b=shape[:1])
    )
    infer_shapes(model)
    before, feeds = find_sites(model)[0], models.feeds(model, 40)
    changed, _ = applied(model, Prune(pattern="n_m", min_elements=1), feeds if samples else None)
    (site,) = find_sites(changed)
    moved = np.moveaxis(site.weight, axis, -1)
    old = np.moveaxis(before.weight, axis, -1)
    if name == "transposed":  # inputs of two groups lie on one axis
        moved, old = (np.moveaxis(a.reshape(*a.shape[:-1], 2, 3), -2, 0) for a in (moved, old))
    for first in range(0, moved.shape[-1], 4):
        kept = moved[..., first : first + 4] != 0
        assert (kept.sum(-1) == min(2, kept.shape[-1])).all()
        if not (name in ("conv", "grouped") and samples):
            part = np.abs(old[..., first : first + 4])
            assert (np.sort(part * kept, -1)[..., -2:] == np.sort(part, -1)[..., -2:]).all()


@pytest.mark.parametrize(("block", "count"), [(4, 16), (16, 4)])
def test_blocks_along_the_inputs_are_whole_in_either_layout(block: int, count: int) -> None:
    model = dense(TWO, **SHAPES)
    changed, _ = applied(model, Prune(0.5, pattern="block", block=block), correlated(100))
    h, y = (site.weight for site in find_sites(changed))
    for rows in (h, y.T):
        empty = (rows.reshape(len(rows), -1, block) == 0).all(axis=2)
        assert empty.sum() == (rows == 0).sum() / block == rows.size / block / 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (Prune(0.5), 0.2),
        (Prune(0.7), 0.3),
        (Prune(pattern="n_m"), 0.2),
        (Prune(0.5, pattern="block"), 0.3),
        (Prune(0.5, criterion="magnitude"), 0.3),
    ],
)
def test_unseen_rows_lose_much_less_than_by_magnitude(step: Prune, factor: float, bias: bool) -> None:
    gemm = dense("y = Gemm <transB = 1> (x, w, b)", w=(32, 64), b=(32,))
    model = gemm if bias else dense("y = MatMul (x, v)", v=(64, 32))
    samples, unseen = correlated(500, mean=2), correlated(500, mean=2, seed=1)
    ours = lost(model, applied(model, step, samples)[0], unseen)
    assert ours < factor * lost(model, applied(model, step)[0], unseen)


def test_a_convolution_is_pruned_by_its_outputs() -> None:
    """Columns of the moments and of the weights are in different orders: taps and channels."""
    body = "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
    model = text("(float[N, 6, 8, 8] x) => (float[N, 8, 8, 8] y)", body, constants(2, w=(8, 6, 3, 3), b=(8,)))
    infer_shapes(model)
    mixing = np.random.default_rng(5).standard_normal((6, 3, 1, 1))

    def images(seed: int) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((40, 3, 8, 8)).cumsum(axis=2).cumsum(axis=3)
        mixed = np.einsum("nchw,dcij->ndhw", noise, mixing) + 0.1 * rng.standard_normal((40, 6, 8, 8))
        return {"x": mixed.astype(np.float32)}

    for step in (Prune(0.5), Prune(pattern="n_m")):
        ours, plain = (lost(model, applied(model, step, feeds)[0], images(1)) for feeds in (images(0), None))
        assert ours < 0.3 * plain


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [2, 8])
def test_a_grouped_convolution_is_pruned_by_its_outputs(groups: int, bias: bool, scope: str) -> None:
    body = f"y = Conv <group = {groups}, pads = [1, 1, 1, 1], strides = [2, 1]> (x, w{', b' * bias})"
    weights = constants(2, w=(16, 8 // groups, 3, 3), **({"b": (16,)} if bias else {}))
    model = text("(float[N, 8, 9, 8] x) => (float[N, 16, 5, 8] y)", body, weights)
    infer_shapes(model)

    def images(seed: int) -> dict[str, Array]:
        noise = np.random.default_rng(seed).standard_normal((60, 8, 9, 8))
        return {"x": (noise.cumsum(axis=2).cumsum(axis=3) + 2).astype(np.float32)}

    steps = [Prune(0.6, scope=scope), Prune(0.6, criterion="magnitude", scope=scope)]
    steps += [Prune(pattern="n_m", m=2, n=1)] if groups == 2 else []
    for step in steps:
        changed, outcome = applied(model, step, images(0))
        assert outcome.changed == ("y",)
        size = weights["w"].size
        assert zeros(changed)["y"] == (round(0.6 * size) if step.pattern == "free" else size // 2)
        ours, plain = (lost(model, m, images(1)) for m in (changed, applied(model, step)[0]))
        assert ours < (0.6 if step.pattern == "free" else 0.8) * plain


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
@pytest.mark.parametrize("gemm", [True, False])
def test_later_sites_put_right_what_earlier_ones_lost(
    gemm: bool, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ("Gemm (x, w, b)", "Gemm (r, v, c)") if gemm else ("MatMul (x, w)", "MatMul (r, v)")
    shapes: dict[str, tuple[int, ...]] = {"w": (64, 48), "v": (48, 32)}
    model = dense(
        f"h = {one} r = Relu (h) y = {other}", **shapes, **({"b": (48,), "c": (32,)} if gemm else {})
    )
    step = Prune(0.8, (("y", 0.2),), criterion=criterion)
    samples, unseen = correlated(1500), correlated(800, seed=1)
    ours, outcome = applied(model, step, samples)
    assert zeros(ours) == {"h": round(0.8 * 48 * 64), "y": round(0.2 * 48 * 32)}
    monkeypatch.setattr("edgepress.compressor.passes.prune.towards_original", lambda *_: None)
    bare, _ = applied(model, step, samples)
    assert outcome.changed == ("h", "y")
    assert lost(model, ours, unseen) < 0.95 * lost(model, bare, unseen)
    only, alone = (applied(model, Prune(0.7, sites=("^h$",)), samples)[0] for _ in range(2))
    np.testing.assert_array_equal(find_sites(only)[1].weight, find_sites(model)[1].weight)
    assert to_bytes(only) == to_bytes(alone)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_bias_takes_up_the_mean_of_what_is_lost(wide: bool, grouped: bool) -> None:
    width = WIDEST + 8 if wide else 64
    if grouped:
        model = text(
            f"(float[N, {width}, 1, 1] x) => (float[N, 8, 1, 1] y)", "y = Conv <group = 2> (x, w, b)",
            constants(3, w=(8, width // 2, 1, 1), b=(8,)),
        )  # fmt: skip
    else:
        model = dense("y = Gemm <transB = 1> (x, w, b)", f"float[N, {width}] x", w=(8, width), b=(8,))
    infer_shapes(model)
    x = correlated(300, width, mean=3)
    x = {"x": x["x"][:, :, None, None]} if grouped else x
    for compensate in (True, False):
        changed, _ = applied(model, Prune(0.7, compensate=compensate), x)
        error = models.run(changed, x)["y"] - models.run(model, x)["y"]
        mean = np.abs(error.mean(0)).max()
        assert (mean < 1e-3 * error.std()) == compensate


def test_what_is_sparse_enough_already_is_left_alone() -> None:
    model = dense(TWO, **SHAPES)
    for step in (Prune(0.5), Prune(pattern="n_m"), Prune(0.5, pattern="block")):
        once, _ = applied(model, step, correlated(100))
        again, outcome = applied(once, step, correlated(100))
        assert not outcome.modified
        assert {s.reason for s in outcome.skipped} == {"it has as many zeros already"}
        assert to_bytes(again) == to_bytes(once)


def test_a_shared_weight_loses_its_least_magnitudes_for_all() -> None:
    model = dense("t = MatMul (x, w) r = Relu (t) y = MatMul (r, w)", w=(64, 64))
    for pattern in ("free", "n_m"):
        changed, outcome = applied(model, Prune(pattern=pattern), correlated(100))
        assert outcome.changed == ("t", "y")
        assert len(changed.graph.initializers) == 1
        before, after = (find_sites(m)[0].weight for m in (model, changed))
        assert (after == 0).sum() == 2048
        np.testing.assert_array_equal(after[after != 0], before[after != 0])
    changed, outcome = applied(model, Prune(leave=("y",)), correlated(100))
    assert not outcome.modified


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("t = Gemm <transB = 1> (x, w) y = Gemm (t, w)", "two ways"),
        ("t = MatMul (x, w) s = Add (t, w) y = Identity (s)", "elsewhere"),
    ],
)
def test_weights_that_are_read_otherwise_are_left_alone(body: str, word: str) -> None:
    header = "float[64, 64] x" if "Add" in body else "float[N, 64] x"
    model = dense(body, header, w=(64, 64))
    changed, outcome = applied(model, Prune(pattern="n_m"))
    assert not outcome.modified
    assert outcome.skipped
    assert all(word in s.reason for s in outcome.skipped)
    assert to_bytes(changed) == to_bytes(model)


def test_weights_read_in_a_body_or_given_out_are_left_alone() -> None:
    for model in (models.control_flow(), models.weight_as_output()):
        infer_shapes(model)
        _, outcome = applied(model, Prune(min_elements=1), models.feeds(model, 1))
        assert not outcome.modified
        assert len(outcome.skipped) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(bad: float) -> None:
    model = dense(TWO, **SHAPES)
    array = model.graph.initializers["w"].const_value.numpy().copy()
    array[0, 0] = bad
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    _, outcome = applied(model, Prune(scope="global"), correlated(100))
    assert outcome.changed == ("y",)
    assert Skipped("h", "its weights are not finite") in outcome.skipped


def test_sites_are_chosen_by_name_and_size() -> None:
    model = dense(TWO, **SHAPES)
    for step, changed in (
        (Prune(sites=("^h$",)), ("h",)),
        (Prune(leave=("h",)), ("y",)),
        (Prune(min_elements=2000), ("h",)),
    ):
        assert applied(model, step)[1].changed == changed
    _, outcome = applied(model, Prune(amounts=(("nothing", 0.5),)))
    assert Skipped("nothing", "no such site") in outcome.skipped


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": 1.0}, {"sparsity": -0.1}, {"amounts": (("h", 1.5),)}, {"n": 5}, {"n": 0}, {"block": 0},
        {"pattern": "n_m", "amounts": (("h", 0.5),)}, {"sites": ("(",)},
    ],
)  # fmt: skip
def test_fields_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Prune(**wrong)


def test_a_recipe_says_it_all() -> None:
    step = Prune(0.75, (("h", 0.5),), pattern="block", block=16, criterion="magnitude", scope="global")
    assert parse(dump((step,))) == (step,)
