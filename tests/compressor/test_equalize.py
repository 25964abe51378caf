"""Equal ranges on both sides of an activation, and the same outputs."""

import itertools

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.equalize import Entries, Pair, equalize
from edgepress.compressor.observe import NEW
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.passes.equalize import Equalize
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites


def equalized(model: ir.Model, step: Equalize | None = None, rows: int = 24) -> tuple[ir.Model, Outcome]:
    infer_shapes(model)
    changed = model.clone()
    return changed, (step or Equalize()).apply(changed, oracles.context(model, rows))


def uneven(
    body: str, header: str = "(float[N, 4, 6, 6] x) => (float[N, 3, M, K] y)", **more: object
) -> ir.Model:
    """Conv `a`, something, Conv `b`; the channels between differ in size by up to a thousand."""
    weights = constants(3, ka=(8, 4, 3, 3), ba=(8,), kb=(3, 8, 1, 1), bb=(3,))
    sizes = np.logspace(-1.5, 1.5, 8).astype(np.float32)
    weights["ka"] *= sizes[:, None, None, None]
    weights["ba"] *= sizes
    weights["kb"] /= sizes[:, None, None]
    return text(header, body, weights | more)  # type: ignore[arg-type]


FIRST, LAST = "a = Conv <pads = [1, 1, 1, 1]> (x, ka, ba)", "y = Conv (m, kb, bb)"
BETWEEN = {
    "relu": "m = Relu (a)",
    "leaky": "m = LeakyRelu <alpha = 0.2> (a)",
    "prelu": "m = PRelu (a, slope)",
    "identity": "m = Identity (a)",
    "pools": "r = Relu (a) p = MaxPool <kernel_shape = [2, 2]> (r) m = AveragePool <kernel_shape = [2, 2]> (p)",
    "depthwise": "r = Relu (a) d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, kd, bd) m = Relu (d)",
    "unbounded clip": "m = Clip (a, zero)",
    "grouped": "r = Relu (a) g = Conv <group = 2> (r, kg) m = Relu (g)",
}


def between(name: str) -> ir.Model:
    more = constants(4, slope=(8, 1, 1), kd=(8, 1, 3, 3), bd=(8,), kg=(8, 4, 1, 1)) | {"zero": np.float32(0)}
    used = {key: np.asarray(value) for key, value in more.items() if key in BETWEEN[name]}
    return uneven(f"{FIRST} {BETWEEN[name]} {LAST}", **used)


def relative(model: ir.Model, changed: ir.Model, seed: int = 5) -> float:
    feeds = models.feeds(model, 16, seed)
    one, other = models.run(model, feeds), models.run(changed, feeds)
    return max(
        float(np.abs(one[k] - other[k]).max(initial=0) / max(np.abs(one[k]).max(initial=0), 1e-9))
        for k in one
    )


@pytest.mark.parametrize("name", sorted(BETWEEN))
def test_the_function_stays_and_ranges_meet(name: str) -> None:
    model = between(name)
    changed, outcome = equalized(model)
    assert outcome.changed[0] == "a"
    assert relative(model, changed) < 1e-5
    makes, reads = (find_sites(changed)[i] for i in (0, 1))
    made = np.abs(makes.matrix()).max(axis=1)
    read = np.abs(np.moveaxis(reads.weight, 1, 0).reshape(reads.weight.shape[1], -1)).max(axis=1)
    if name == "depthwise":
        read = np.abs(reads.matrix()).max(axis=1)
    if name != "grouped":
        np.testing.assert_allclose(made, read, rtol=0.02)


@pytest.mark.parametrize("name", sorted(models_core.ALL))
def test_no_tiny_model_says_anything_else(name: str) -> None:
    model = models_core.ALL[name]()
    changed, _ = equalized(model)
    assert relative(model, changed) < 2e-5


def test_weights_of_one_scale_lose_less() -> None:
    model = between("depthwise")
    infer_shapes(model)
    even, _ = equalized(model)
    feeds, step = models.feeds(model, 64, 9), Quantize(granularity="tensor")
    lost = []
    for each in (model.clone(), even):
        step.apply(each, oracles.context(model, 64))
        wanted, found = models.run(model, feeds)["y"], models.run(each, feeds)["y"]
        lost.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m = Sigmoid (a)", "Sigmoid behind it"),
        ("m = Clip (a, zero, six)", "Clip behind it"),
        ("m = Add (a, a)", "Add behind it"),
    ],
)
def test_what_is_not_homogeneous_is_left(body: str, reason: str) -> None:
    bounds = {"zero": np.float32(0), "six": np.float32(6)} if "Clip" in body else {}
    model = uneven(f"{FIRST} {body} {LAST}", **bounds)
    changed, outcome = equalized(model)
    assert not outcome.modified
    assert reason in next(s.reason for s in outcome.skipped if s.site == "a")
    assert relative(model, changed) == 0


def test_channels_that_meet_no_bound_go_through_a_clip() -> None:
    model = uneven(f"{FIRST} m = Clip (a, zero, six) {LAST}", zero=np.float32(0), six=np.float32(6))
    infer_shapes(model)
    feeds = models.feeds(model, 24, 100)
    changed = model.clone()
    outcome = Equalize(through_clips=True).apply(changed, oracles.context(model, 24, feeds=feeds))
    assert outcome.changed == ("a",)
    one, other = models.run(model, feeds)["y"], models.run(changed, feeds)["y"]
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
    cut = oracles.values(model, feeds, ["a"])["a"].max(axis=(0, 2, 3)) >= 6
    assert cut.any()
    before, after = (find_sites(m)[0].matrix() for m in (model, changed))
    np.testing.assert_array_equal(before[cut], after[cut])
    assert not np.allclose(before[~cut], after[~cut])
    assert not Equalize(through_clips=True).apply(model.clone(), Context()).modified


def test_scaled_values_are_not_taken_for_the_originals() -> None:
    changed, _ = equalized(between("relu"))
    conv, relu = changed.graph[0].outputs[0], changed.graph[1].outputs[0]
    assert all(NEW in v.meta and v.name not in ("a", "m") for v in (conv, relu))
    assert [site.name for site in find_sites(changed)] == ["a", "y"]


def test_shared_weights_and_zero_channels_are_left() -> None:
    shared = text(
        "(float[N, 6] x) => (float[N, 6] y)", "h = Gemm (x, w, b) r = Relu (h) y = Gemm (r, w, b)",
        constants(2, w=(6, 6), b=(6,)),
    )  # fmt: skip
    _, outcome = equalized(shared)
    assert not outcome.modified
    assert "shared" in outcome.skipped[0].reason
    dead = between("relu")
    array = dead.graph.initializers["ka"].const_value.numpy().copy()  # type: ignore[union-attr]
    array[2] = 0
    dead.graph.initializers["ka"].const_value = ir.Tensor(array, name="ka")
    changed, _ = equalized(dead)
    assert relative(dead, changed) < 1e-5


def test_impossible_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="rounds"):
        Equalize(rounds=0)


def product(layers: list[Matrix]) -> Matrix:
    result = layers[0]
    for layer in layers[1:]:
        result = np.abs(layer) @ result
    return result


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_chains_converge_to_equal_ranges(width: int, inputs: int, depth: int, seed: int) -> None:
    """The product of all layers stays, and no pair could be made more equal."""
    rng = np.random.default_rng(seed)
    sizes = [inputs, *[width] * (depth - 1), 3]
    layers = [np.exp(rng.normal(0, 2, (b, a))) for a, b in itertools.pairwise(sizes)]
    entries = [Entries(layer.copy()) for layer in layers]
    pairs = [
        Pair(i, ((i + 1, np.arange(width)),), np.zeros(width), np.zeros(width, bool))
        for i in range(depth - 1)
    ]
    totals = equalize(entries, pairs, 500, 1e-6)
    np.testing.assert_allclose(product([e.peaks for e in entries]), product(layers), rtol=1e-6)
    for i in range(depth - 1):
        np.testing.assert_allclose(entries[i].made(), entries[i + 1].read(), rtol=1e-3)
        expected = layers[i] / totals[i][:, None] * (totals[i - 1][None, :] if i else 1)
        np.testing.assert_allclose(entries[i].peaks, expected, rtol=1e-6)
