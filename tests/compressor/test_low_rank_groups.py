"""Low rank of grouped and transposed convolutions, and of any number of dimensions, against loops in float64."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.passes import parts
from edgepress.compressor.passes.low_rank import Cut, Form, LowRank, best_form, factorised
from edgepress.compressor.passes.parts import Whole
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites

SEEDS = st.integers(0, 10_000)
OUT, IN = 6, 4
"""Channels of a group."""


def thin(seed: int, form: Form, groups: int, kernel: tuple[int, ...]) -> Matrix:
    """[groups · OUT, IN, *kernel], each group of rank 2 in its form, of inputs 1 as a Tucker."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(groups):
        u = rng.standard_normal((OUT, 2))
        if form == "channels":
            found.append(np.einsum("or,r...->o...", u, rng.standard_normal((2, IN, *kernel))))
        elif form == "tucker":
            core, v = rng.standard_normal((2, 1, *kernel)), rng.standard_normal((1, IN))
            found.append(np.einsum("oq,qp...,pc->oc...", u, core, v))
        else:
            across, down = rng.standard_normal((OUT, 2, kernel[1])), rng.standard_normal((2, IN, kernel[0]))
            found.append(np.einsum("orj,rci->ocij", across, down))
    return np.concatenate(found)


def directly(
    x: Array, w: Array, bias: Array, groups: int, strides: list[int], dilations: list[int], pads: list[int]
) -> Matrix:
    """A convolution by loops, in float64: [n, out, *positions]."""
    kernel = w.shape[2:]
    ends = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    found = []
    for group, some in enumerate(np.split(w.astype(np.float64), groups)):
        own = x[:, group * IN : (group + 1) * IN].astype(np.float64)
        rows = oracles.conv_rows(own, kernel, strides, dilations, ends)
        found.append(rows @ some.reshape(len(some), -1).T)
    return np.moveaxis(np.concatenate(found, axis=-1) + bias.astype(np.float64), -1, 1)


def conv(w: Array, groups: int, attributes: str, kind: str = "Conv", bias: bool = True) -> ir.Model:
    kernel = w.shape[2:]
    channels = groups * IN
    size = ", ".join(["N", str(channels), *["9"] * len(kernel)])
    out = ", ".join(["N", "M", *"hwd"[: len(kernel)]])
    weights = {"w": w.astype(np.float32)} | (constants(2, b=(groups * OUT,)) if bias else {})
    body = f"y = {kind} <{attributes}> (x, w{', b' * bias})"
    model = text(f"(float[{size}] x) => (float[{out}] y)", body, weights)
    infer_shapes(model)
    return model


@given(
    SEEDS,
    st.sampled_from(["channels", "tucker", "space"]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_parts_compute_what_the_whole_did(
    seed: int, form: Form, groups: int, rank: int, data: st.DataObject
) -> None:
    rank = 2 if form == "space" else rank
    kernel = (3, 2, 2)[:rank] if form != "space" else (3, 3)
    strides, dilations = (data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)) for _ in "ab")
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    w = thin(seed, form, groups, kernel)
    attributes = f"group = {groups}, strides = {strides}, dilations = {dilations}, pads = {pads}"
    model = conv(w, groups, attributes)
    split = model.clone()
    outcome = LowRank((("y", 2),), form=form).apply(split, oracles.context(model, 24))
    assert outcome.changed == ("y",)
    assert sum(s.weight.size for s in find_sites(split)) < w.size
    assert [s.groups for s in find_sites(split)] == [groups] * (3 if form == "tucker" else 2)
    feeds = models.feeds(model, 2, 5)
    bias = model.graph.initializers["b"].const_value.numpy()
    expected = directly(feeds["x"], w.astype(np.float32), bias, groups, strides, dilations, pads)
    found = models.run(split, feeds)["y"]
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("outputs", [1, 2, 6])
def test_few_outputs_of_many_inputs_have_a_best_form(outputs: int) -> None:
    """The inputs' unfolding has no more rank than outputs times taps, as in the last layer of a detector."""
    rng = np.random.default_rng(outputs)
    weights = {"w": rng.standard_normal((outputs, 40, 3, 3)).astype(np.float32)}
    (site,) = find_sites(text("(float[N, 40, 8, 8] x) => (float[N, M, 6, 6] y)", "y = Conv(x, w)", weights))
    moments = Moments(360, 0)
    x = rng.standard_normal((500, 360))
    moments.update(x, x[:, :0])
    _, lost = best_form(site, moments)
    assert lost[0] == pytest.approx(1)
    assert lost[-1] == pytest.approx(0, abs=1e-9)
    assert (np.diff(lost) <= 1e-12).all()


@given(SEEDS, st.sampled_from(["channels", "tucker", "space"]), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_full_rank_is_the_original_to_rounding(seed: int, form: Form, groups: int, rank: int) -> None:
    kernel = (3, 2, 2)[: 2 if form == "space" else rank]
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((groups * OUT, IN, *kernel))
    (site,) = find_sites(conv(w, groups, f"group = {groups}"))
    width = w[0].size
    wholes = []
    for some in np.split(w.reshape(len(w), -1), groups):
        moments = Moments(width, 0)
        x = rng.standard_normal((3 * width, width)) * rng.uniform(0.5, 2, width) + 1
        moments.update(x, x[:, :0])
        wholes.append(Whole(site, some, None, moments))
    found = factorised(site, wholes, Cut(form, None, 1.0, False))
    for whole, (first, *others) in zip(wholes, found, strict=True):
        composed = first.weights
        if form == "space":
            composed = np.einsum("orj,rci->ocij", others[0].weights[:, :, 0], composed[..., 0])
        elif form == "tucker":
            v, u = (a.reshape(a.shape[:2]) for a in (first.weights, others[1].weights))
            composed = np.einsum("oq,qp...,pc->oc...", u, others[0].weights, v)
        else:
            u = others[0].weights.reshape(others[0].weights.shape[:2])
            composed = np.einsum("or,r...->o...", u, composed)
        np.testing.assert_allclose(composed.reshape(OUT, -1), whole.weights, atol=1e-10)


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("strides = [2, 2], pads = [1, 0, 1, 2], output_padding = [1, 0]", (3, 3)),
        ("dilations = [2, 1], strides = [1, 3]", (3, 2)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2], kernel_shape = [3, 3]', (3, 3)),
        ("strides = [2], output_shape = [17]", (4,)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_is_a_thinner_one_and_a_pointwise_one(
    attributes: str, kernel: tuple[int, ...], bias: bool
) -> None:
    w = np.ascontiguousarray(thin(1, "channels", 1, kernel).swapaxes(0, 1))
    model = conv(w, 1, attributes, "ConvTranspose", bias)
    split = model.clone()
    assert LowRank((("y", 2),)).apply(split, oracles.context(model, 24)).changed == ("y",)
    assert [node.op_type for node in split.graph] == ["ConvTranspose", "Conv"]
    assert [s.weight.shape for s in find_sites(split)] == [(IN, 2, *kernel), (OUT, 2, *[1] * len(kernel))]
    feeds = models.feeds(model, 3, 5)
    before, after = (models.run(m, feeds)["y"] for m in (model, split))
    assert before.shape == after.shape
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()


def test_outputs_that_vary_along_few_directions_say_how_a_transposed_convolution_is_split() -> None:
    """Weights are of full rank; the inputs that come use two directions of them."""
    rng = np.random.default_rng(0)
    model = conv(rng.standard_normal((IN, OUT, 3, 3)), 1, "strides = [2, 2]", "ConvTranspose")

    def feeds(seed: int) -> dict[str, Array]:
        other = np.random.default_rng(seed)
        mixed = other.standard_normal((40, 1, 9, 9)) * np.ones((1, IN, 1, 1)) + 3
        smooth = mixed.cumsum(axis=2).cumsum(axis=3) + 0.01 * other.standard_normal((40, IN, 9, 9))
        return {"x": smooth.astype(np.float32)}

    split = model.clone()
    outcome = LowRank(energy=0.98).apply(split, oracles.context(model, 40, feeds=feeds(1)))
    assert outcome.changed == ("y",)
    before, after = (models.run(m, feeds(2))["y"] for m in (model, split))
    spread = before - before.mean(axis=(0, 2, 3), keepdims=True)
    assert np.square(after - before).sum() < 0.05 * np.square(spread).sum()


def test_groups_are_refitted_where_their_inputs_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "h = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (h) y = Conv <group = 2> (r, v, c)"
    weights = constants(4, w=(16, 6, 3, 3), b=(16,), v=(16, 8, 3, 3), c=(16,))
    model = text("(float[N, 6, 9, 9] x) => (float[N, 16, 7, 7] y)", body, weights)
    infer_shapes(model)
    step, feeds = LowRank((("h", 4), ("y", 7))), models.feeds(model, 200, 1)

    def lost() -> float:
        split = model.clone()
        assert step.apply(split, oracles.context(model, 200, feeds=feeds)).changed == ("h", "y")
        before, after = (models.run(m, models.feeds(model, 50, 9))["y"] for m in (model, split))
        return float(np.square(after - before).sum())

    fitted = lost()
    wholes = parts.wholes
    monkeypatch.setattr(
        "edgepress.compressor.passes.low_rank.wholes",
        lambda model, site, context, paired: wholes(model, site, context, paired=paired and site.groups == 1),
    )
    assert fitted < 0.95 * lost()


def test_energy_of_groups_says_how_much_is_kept() -> None:
    w = np.random.default_rng(3).standard_normal((12, 8, 3, 3))
    model = text(
        "(float[N, 16, 9, 9] x) => (float[N, 12, 7, 7] y)", "y = Conv <group = 2> (x, w)",
        {"w": w.astype(np.float32)},
    )  # fmt: skip
    infer_shapes(model)
    errors = []
    for energy in (0.4, 0.7):
        split = model.clone()
        assert LowRank(energy=energy).apply(split, oracles.context(model)).changed
        feeds = models.feeds(model, 6, 7)
        before, after = (models.run(m, feeds)["y"] for m in (model, split))
        errors.append(float(np.square(after - before).sum() / np.square(before - before.mean()).sum()))
    assert errors[1] < errors[0] < 0.65
    assert errors[1] < 0.35


@pytest.mark.parametrize(
    ("kind", "attributes", "shape", "form", "reason"),
    [
        ("ConvTranspose", "group = 2", (8, 6, 3, 3), "channels", "only where there is one group"),
        ("ConvTranspose", "strides = [1, 1]", (4, 6, 3, 3), "tucker", "split into channels"),
        ("Conv", "group = 2", (12, 4, 1, 1), "tucker", "no core"),
        ("Conv", "group = 2", (12, 4, 1, 1), "channels", "does not make 12 × 4 smaller"),
    ],
)
def test_what_cannot_be_split_says_why(
    kind: str, attributes: str, shape: tuple[int, ...], form: Form, reason: str
) -> None:
    model = conv(np.ones(shape), 2 if "group" in attributes else 1, attributes, kind, bias=False)
    outcome = LowRank((("y", 3),), form=form).apply(model, oracles.context(model))
    assert not outcome.modified
    assert reason in outcome.skipped[0].reason


def test_moments_that_would_take_too_much_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv(thin(1, "channels", 3, (3, 3)), 3, "group = 3")
    monkeypatch.setattr("edgepress.compressor.observe.WIDEST", 40)
    outcome = LowRank((("y", 2),)).apply(model, oracles.context(model))
    assert [s.reason for s in outcome.skipped] == ["its groups together have too many inputs"]
