"""Forms of a split: which one a site gets, how large it makes the site, what it costs."""

import itertools
import math

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.allocate import Descent, Knob, Layer, Weighing
from edgepress.compressor.channels import analyse
from edgepress.compressor.cost import total_macs
from edgepress.compressor.knobs import rank_knob
from edgepress.compressor.layers import layer_of
from edgepress.compressor.numerics.low_rank import Projection
from edgepress.compressor.options import Gauge, collect
from edgepress.compressor.passes import LowRank, Separable
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import Site, find_sites
from edgepress.compressor.structures import (
    Structure,
    compared,
    numbers,
    parts_of,
    recipe_of,
    splits,
    splittable,
    structures,
    together,
)
from edgepress.runtime.engines.ort import OrtEngine


def conv(weight: np.ndarray, groups: int = 1, kind: str = "Conv", attributes: str = "") -> ir.Model:
    """A convolution of 7 × 7, and a Relu."""
    inputs = weight.shape[0] if kind == "ConvTranspose" else weight.shape[1] * groups
    outputs = weight.shape[1] if kind == "ConvTranspose" else weight.shape[0]
    made = models.text(
        f"(float[N, {inputs}, 7, 7] x) => (float[N, {outputs}, h, w] y)",
        f"c = {kind} <group = {groups}{attributes}> (x, k, b) y = Relu(c)",
        {"k": weight.astype(np.float32), "b": np.zeros(outputs, np.float32)},
    )
    infer_shapes(made)
    return made


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def separable(seed: int, outputs: int, inputs: int) -> np.ndarray:
    """A kernel of one filter a channel, that neither space nor channels can split."""
    return normal(seed, outputs, inputs, 1, 1) * normal(seed + 1, 1, inputs, 3, 3)


def only(model: ir.Model) -> Site:
    (site,) = find_sites(model)
    return site


CASES: list[tuple[Structure, ir.Model]] = [
    ("channels", conv(normal(0, 12, 8, 3, 3), attributes=", strides = [2, 2], pads = [1, 1, 1, 1]")),
    ("space", conv(normal(1, 12, 8, 3, 3), attributes=", strides = [2, 2], pads = [1, 1, 1, 1]")),
    ("tucker", conv(normal(2, 12, 8, 3, 3), attributes=", strides = [2, 2], pads = [1, 1, 1, 1]")),
    ("separable", conv(normal(3, 12, 8, 3, 3), attributes=", strides = [2, 2], pads = [1, 1, 1, 1]")),
    ("channels", conv(normal(4, 12, 8, 3, 3), groups=2)),
    ("channels", conv(normal(5, 8, 12, 3, 3), kind="ConvTranspose", attributes=", strides = [2, 2]")),
]


@pytest.mark.parametrize(("form", "model"), CASES)
@pytest.mark.parametrize("strength", [1, 3])
def test_numbers_and_multiplications_are_foretold(form: Structure, model: ir.Model, strength: int) -> None:
    site, split = only(model), model.clone()
    outcome = splits(form, ((site.name, strength),)).apply(split, oracles.context(model))
    assert outcome.modified, outcome.skipped
    made = find_sites(split)
    assert [s.name for s in made] == [f"{site.name}{part}" for part in parts_of(form)]
    assert sum(s.weight.size for s in made) == numbers(site, form, strength)
    shapes = shapes_in_one_run(split, OrtEngine(), models.feeds(split, 1))
    channels, groups = analyse(model), ()
    layer = layer_of(
        site, channels, groups, [], shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    )
    parts = layer.split(form, strength, layer.rows, layer.columns)
    foretold = sum(p.outputs * p.columns * p.positions for p in parts)
    assert foretold == pytest.approx(total_macs(split, shapes), rel=0.02)
    assert sum(p.outputs * p.columns for p in parts) == pytest.approx(numbers(site, form, strength), rel=0.02)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_what_groups_lose_together_is_what_all_outputs_lose(seed: int, count: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(5, 6)) * rng.uniform(0.1, 10) for _ in range(count)]
    grams = [a @ a.T for a in rng.normal(size=(count, 6, 9))]
    whole = missing = 0.0
    projections = [Projection.by_inputs(w, g) for w, g in zip(weights, grams, strict=True)]
    for w, g, each in zip(weights, grams, projections, strict=True):
        u, v = each.factorise(rank)
        whole += np.trace(w @ g @ w.T)
        missing += np.trace((w - u @ v) @ g @ (w - u @ v).T)
    assert together(projections)[rank] == pytest.approx(
        missing / whole, abs=5e-3
    )  # directions no sample excites


def composed(seed: int, outputs: int, inputs: int, rank: int) -> np.ndarray:
    """A kernel of a vertical and a horizontal convolution."""
    across, down = normal(seed, outputs, rank, 3), normal(seed + 1, rank, inputs, 3)
    return np.einsum("orj,rci->ocij", across, down)


@pytest.mark.parametrize(
    ("kernel", "form", "strength"),
    [(separable(0, 24, 12), "separable", 1), (composed(9, 24, 12, 4), "space", 4)],
)
def test_a_kernel_gets_the_form_that_it_has(kernel: np.ndarray, form: str, strength: int) -> None:
    model = conv(kernel)
    context = oracles.context(model, 64, target=oracles.Board())
    knob = rank_knob(model, only(model), context, 4, lambda m: loss(model, m))
    assert knob is not None
    assert knob.form == form
    assert knob.damage[knob.values.index(strength)] < 1e-4


def loss(model: ir.Model, other: ir.Model) -> float:
    x = models.feeds(model, 32, 5)
    a, b = models.run(model, x)["y"], models.run(other, x)["y"]
    return float(np.mean((a - b) ** 2) / np.mean(a**2))


def test_the_trial_decides_and_not_what_was_foretold() -> None:
    """A comparison that dislikes depthwise parts: the other form is taken though it loses more."""
    model = conv(separable(0, 24, 12))
    context = oracles.context(model, 64, target=oracles.Board())
    assert [form for form, _ in structures(model, only(model), context)][-1] == "separable"

    def dislikes(candidate: ir.Model) -> float:
        return 10.0 if any(site.depthwise for site in find_sites(candidate)) else 1.0

    knob = rank_knob(model, only(model), context, 4, dislikes)
    assert knob is not None
    assert knob.form != "separable"


@given(st.integers(0, 1000), st.integers(4, 24), st.integers(2, 16))
@settings(max_examples=15, deadline=None)
def test_forms_are_compared_at_about_equal_weights(seed: int, outputs: int, inputs: int) -> None:
    model = conv(normal(seed, outputs, inputs, 3, 3))
    site = only(model)
    found = structures(model, site, oracles.context(model, 32, target=oracles.Board()))
    at = compared(site, found)
    if len(found) == 2:
        plain, filters = (numbers(site, form, r) for (form, _), r in zip(found, at, strict=True))
        assert plain <= filters or at[0] == 1
    for _, curve in found:
        assert curve[0] == pytest.approx(1.0)
        assert curve[-1] == pytest.approx(0.0, abs=1e-6)
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(curve))


@pytest.mark.parametrize("kind", ["grouped", "transposed"])
def test_grouped_and_transposed_convolutions_get_a_rank(kind: str) -> None:
    left, right = normal(1, 24, 2), normal(2, 2, 24 * 9)
    weight = (left @ right).reshape(24, 24, 3, 3)
    if kind == "transposed":
        model = conv(weight.swapaxes(0, 1), kind="ConvTranspose", attributes=", strides = [2, 2]")
    else:
        model = conv(weight[:, :12], groups=2)
    context = oracles.context(model, 64, target=oracles.Board())
    assert splittable(only(model), context)
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    options = collect(Gauge(model, context, context, 2), shapes)
    (rank,) = [knob for knob in options.knobs if knob.kind == "rank"]
    assert rank.damage[rank.values.index(2)] < 1e-3 < rank.damage[rank.values.index(1)]


def test_depthwise_convolutions_are_not_split() -> None:
    model = conv(normal(0, 8, 1, 3, 3), groups=8)
    assert not splittable(only(model), oracles.context(model, target=oracles.Board()))


def test_a_recipe_has_each_site_in_its_own_form() -> None:
    steps = recipe_of([("a", 4, "channels"), ("b", 2, "separable"), ("c", 3, "space")])
    assert steps == (
        LowRank(ranks=(("a", 4), ("c", 3)), forms=(("c", "space"),)),
        Separable(multipliers=(("b", 2),)),
    )
    assert recipe_of([("b", 2, "separable")]) == (Separable(multipliers=(("b", 2),)),)
    assert recipe_of([]) == ()


def test_eight_bits_make_no_depthwise_part_faster() -> None:
    board = oracles.Board(node_overhead_ns=0, bytes_per_ns=1e12)
    rank = Knob("rank", "a", 3, (2, 1), (0.1, 0.2), "separable")
    layer = Layer("a", 32, -1, 9 * 16, -1, 0.0, 0.0, 49, 0, 0, kernel=(3, 3))

    def ns(state: int, how: Weighing) -> float:
        return float(Descent([layer], [rank], board, how, (0.0, 0.0)).costs((state,), [0])[0])

    floats, integers = (Weighing(1.0, 0.0, precision, 1) for precision in ("float", "int8"))
    assert ns(3, floats) == pytest.approx(3 * ns(3, integers))
    depthwise, pointwise = 16 * 9 * 49 / 10, 32 * 16 * 49
    assert ns(1, floats) == pytest.approx(depthwise + pointwise / 10)
    assert ns(1, integers) == pytest.approx(depthwise + pointwise / 30)
    assert math.isfinite(ns(2, integers))
