"""Separable convolutions in a graph: exact where kernels are so, best on outputs where not, else left alone."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from models import constants, text

from edgepress.compressor.errors import UsageError
from edgepress.compressor.model import parameters, to_bytes
from edgepress.compressor.numerics.least_squares import MOST_OUTPUTS
from edgepress.compressor.observe import KEPT, NEW, WIDEST
from edgepress.compressor.passes import Separable
from edgepress.compressor.passes.base import Context
from edgepress.compressor.protocols import Array
from edgepress.compressor.recipe import dump, from_json, parse, to_json
from edgepress.compressor.report.sites import origin_of
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, int_attribute

CONVS = {
    "plain": (2, "pads = [1, 1, 1, 1]"),
    "strides": (2, "strides = [2, 3], pads = [1, 0, 1, 2]"),
    "dilations": (2, "dilations = [2, 1], pads = [2, 1, 2, 1]"),
    "same": (2, 'strides = [2, 2], auto_pad = "SAME_LOWER"'),
    "valid": (2, 'auto_pad = "VALID", group = 1'),
    "kernel_shape": (2, "kernel_shape = [3, 3]"),
    "one_dimension": (1, "strides = [2], dilations = [2], pads = [1, 0]"),
    "three_dimensions": (3, "pads = [1, 0, 1, 0, 1, 1]"),
}


def conv(weight: Array, attributes: str = "", bias: bool = True) -> ir.Model:
    rank = weight.ndim - 2
    size = ", ".join(["N", str(weight.shape[1]), *["9", "10", "8"][:rank]])
    out = ", ".join(["N", "M", *"hwd"[:rank]])
    attributes = f"<{attributes}>" if attributes else ""
    weights = constants(2, b=(len(weight),)) | {"w": weight}
    model = text(
        f"(float[{size}] x) => (float[{out}] y)", f"y = Conv {attributes} (x, w{', b' * bias})", weights
    )
    infer_shapes(model)
    return model


@pytest.mark.parametrize("name", sorted(CONVS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_separable_convolution_is_split_without_loss(name: str, bias: bool, rank: int) -> None:
    dimensions, attributes = CONVS[name]
    kernel = (3, 2, 2)[:dimensions] if name == "three_dimensions" else (3,) * dimensions
    if name == "one_dimension" and rank == 2:
        kernel = (5,)
    model = conv(oracles.separable_kernel(3, 12, 4, kernel, rank), attributes, bias)
    changed = model.clone()
    outcome = Separable((("y", rank),)).apply(changed, oracles.context(model))
    assert outcome.changed == ("y",)
    first, second = find_sites(changed)
    assert first.weight.shape == (4 * rank, 1, *kernel)
    assert second.weight.shape == (12, 4 * rank, *(1,) * dimensions)
    assert int_attribute(first.node, "group", 1) == 4 * rank
    assert (first.name, second.name) == ("y_d", "y")
    assert all(NEW in value.meta for node in list(changed.graph)[:-1] for value in node.outputs)
    assert [node.op_type for node in changed.graph] == ["Concat"] * (rank > 1) + ["Conv", "Conv"]
    assert oracles.moved(model, changed) < 1e-4
    assert parameters(changed) < parameters(model)


@pytest.mark.parametrize("inputs", [1, 3])
def test_one_input_channel_and_no_attributes(inputs: int) -> None:
    model = conv(oracles.separable_kernel(3, 12, inputs, (3, 3), 2))
    changed = model.clone()
    assert Separable(multiplier=2).apply(changed, oracles.context(model)).changed == ("y",)
    assert [node.op_type for node in changed.graph] == ["Concat"] * (inputs > 1) + ["Conv", "Conv"]
    assert oracles.moved(model, changed) < 1e-4


@pytest.mark.parametrize("energy", [0.999, 1])
def test_energy_finds_the_rank_of_a_kernel(energy: float) -> None:
    model = conv(oracles.separable_kernel(3, 16, 4, (3, 3), 3), "pads = [1, 1, 1, 1]")
    changed = model.clone()
    Separable(energy=energy).apply(changed, oracles.context(model))
    assert find_sites(changed)[0].weight.shape == (12, 1, 3, 3)


def test_energy_says_how_much_is_kept() -> None:
    rng = np.random.default_rng(3)
    model = conv(rng.standard_normal((32, 8, 3, 3)).astype(np.float32), "pads = [1, 1, 1, 1]")
    errors, sizes = [], []
    for energy in (0.4, 0.6, 0.8):
        changed = model.clone()
        assert Separable(energy=energy).apply(changed, oracles.context(model)).modified
        errors.append(oracles.moved(model, changed))
        sizes.append(parameters(changed))
        assert errors[-1] ** 2 < 1.15 * (1 - energy)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    outcome = Separable(energy=1.0).apply(changed := model.clone(), oracles.context(model))
    assert not outcome.modified
    assert "needs all of it" in outcome.skipped[0].reason
    assert to_bytes(changed) == to_bytes(model)


def smooth(rows: int, channels: int, size: int) -> Array:
    """Images whose channels and neighbours have much in common."""
    rng = np.random.default_rng(4)
    coarse = rng.standard_normal((rows, 2, size + 4, size + 4))
    blurred = sum(coarse[:, :, i : i + size, j : j + size] for i in range(5) for j in range(5))
    mixed = np.einsum("cd,ndhw->nchw", rng.standard_normal((channels, 2)), blurred)
    return (mixed + 0.1 * rng.standard_normal(mixed.shape)).astype(np.float32)


def test_samples_beat_the_plain_svd_on_images() -> None:
    kernel = np.random.default_rng(1).standard_normal((16, 4, 3, 3)).astype(np.float32)
    model = conv(kernel)
    feeds = {"x": smooth(64, 4, 12)[:, :, :9, :10]}
    changed = model.clone()
    Separable(multiplier=1).apply(changed, oracles.context(model, feeds=feeds))
    before, after = models.run(model, feeds)["y"], models.run(changed, feeds)["y"]
    other = (
        oracles.channel_svd(kernel.reshape(16, 4, 9).astype(np.float64), 1)
        .reshape(kernel.shape)
        .astype(np.float32)
    )
    reference = models.run(conv(other), feeds)["y"]
    assert np.linalg.norm(after - before) < 0.5 * np.linalg.norm(reference - before)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_bias_takes_up_the_mean_of_what_is_lost(paired: bool, bias: bool) -> None:
    model = text(
        "(float[N, 6, 8, 8] x) => (float[N, 24, h, w] y)",
        f"h = Identity (x) y = Conv (h, w{', b' * bias})",
        constants(3, w=(24, 6, 3, 3), b=(24,)),
    )
    infer_shapes(model)
    rng = np.random.default_rng(0)
    x = {"x": (rng.standard_normal((200, 6, 8, 8)) + 3).astype(np.float32)}
    changed = model.clone()
    if paired:
        changed.graph[0].outputs[0].meta[KEPT] = np.arange(6)
    Separable(multiplier=1).apply(changed, oracles.context(model, 200, feeds=x))
    lost_there = models.run(changed, x)["y"] - models.run(model, x)["y"]
    axes = (0, 2, 3)
    assert lost_there.std() > 0.3
    assert np.abs(lost_there.mean(axes)).max() < 5e-2 * lost_there.std()


def test_a_site_behind_a_changed_one_is_fitted_to_the_original() -> None:
    """The second kernel is split as well, from what now comes to what then came; `follow` refits the last."""
    model = models.residual()
    infer_shapes(model)
    feeds = models.feeds(model, 96, 5)
    errors = []
    for follow in (True, False):
        changed = model.clone()
        step = Separable((("c0", 1), ("c1", 2)), follow=follow)
        assert step.apply(changed, oracles.context(model, 96, feeds=feeds)).changed == ("c0", "c1")
        errors.append(np.linalg.norm(models.run(changed, feeds)["y"] - models.run(model, feeds)["y"]))
        after = {s.name: s.weight for s in find_sites(changed)}
        same = [np.array_equal(after[s.name], s.weight) for s in find_sites(model) if s.name in ("c2", "y")]
        assert same == [not follow] * 2
    assert errors[0] < errors[1]


def test_a_kernel_behind_a_changed_one_makes_good_what_that_lost() -> None:
    """Split together, the second one knows what comes from the first; split before that, it does not."""
    model = text(
        "(float[N, 4, 8, 8] x) => (float[N, 24, h, w] y)",
        "c = Conv (x, k, b) r = Relu (c) y = Conv (r, w, d)",
        constants(5, k=(24, 4, 3, 3), b=(24,), w=(24, 24, 3, 3), d=(24,)),
    )
    infer_shapes(model)
    feeds = models.feeds(model, 128, 5)
    errors = []
    for steps in ([("c", 1), ("y", 4)],), ([("y", 4)], [("c", 1)]):
        changed = model.clone()
        for pairs in steps:
            step = Separable(tuple(pairs), follow=False)
            assert step.apply(changed, oracles.context(model, 128, feeds=feeds)).changed == tuple(
                name for name, _ in pairs
            )
        errors.append(np.linalg.norm(models.run(changed, feeds)["y"] - models.run(model, feeds)["y"]))
    assert errors[0] < 0.97 * errors[1]


def test_reports_find_the_site_of_a_part() -> None:
    known = {"a", "b_v", "c_d"}
    names = {
        "a": "a",
        "a_d": "a",
        "a_d_copies": "a",
        "a_v_d": "a",
        "b_v": "b_v",
        "b_v_d": "b_v",
        "c_d": "c_d",
    }
    assert {name: origin_of(name, known) for name in names} == names
    assert origin_of("other", known) == "other"


@pytest.mark.parametrize(
    ("model", "step", "site", "word"),
    [
        (models.cnn, Separable((("c2", 9),)), "c2", "9 filters a channel do not make 8 × 4 × 3 × 3 smaller"),
        (models.cnn, Separable((("nobody", 2),)), "nobody", "no such"),
        (models.cnn, Separable((("y", 1),)), "y", "more than one tap"),
        (models.batchnorm, Separable((("d", 1),)), "d", "more than one tap"),
        (models.depthwise, Separable(energy=0.5, sites=("c2",)), "c2", "grouped or transposed"),
        (models.conv_transpose, Separable(multiplier=1, sites=("d",)), "d", "grouped or transposed"),
    ],
)
def test_what_cannot_be_split_is_left_alone_with_a_reason(
    model, step: Separable, site: str, word: str
) -> None:
    original = model()
    changed = original.clone()
    outcome = step.apply(changed, oracles.context(original))
    assert not outcome.modified
    assert [s.site for s in outcome.skipped] == [site]
    assert word in outcome.skipped[0].reason
    assert to_bytes(changed) == to_bytes(original)


def test_without_samples_and_where_the_user_says_so_nothing_is_split() -> None:
    model = models.cnn()
    for context, word in ((Context(), "needs samples"), (oracles.context(model, leave=("c2",)), "--leave")):
        outcome = Separable((("c2", 1),)).apply(model.clone(), context)
        assert word in outcome.skipped[0].reason


@pytest.mark.parametrize(
    ("shape", "word"),
    [((4, WIDEST // 9 + 1, 3, 3), f"over {WIDEST} inputs"), ((MOST_OUTPUTS + 1, 1, 1, 2), "outputs")],
)
def test_what_would_take_gigabytes_is_left_alone(shape: tuple[int, ...], word: str) -> None:
    model = conv(np.ones(shape, np.float32))
    outcome = Separable(multiplier=1).apply(model.clone(), oracles.context(model, 2))
    assert word in outcome.skipped[0].reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(bad: float) -> None:
    kernel = oracles.separable_kernel(1, 12, 4, (3, 3), 1)
    kernel[0, 0, 0, 0] = bad
    model = conv(kernel)
    outcome = Separable(multiplier=1).apply(model.clone(), oracles.context(model))
    assert outcome.skipped[0].reason == "its weights are not finite"


def test_samples_that_are_no_numbers_tell_nothing() -> None:
    model = conv(oracles.separable_kernel(1, 12, 4, (3, 3), 1))
    feeds = {"x": np.full((16, 4, 9, 10), np.nan, np.float32)}
    outcome = Separable(multiplier=1).apply(model.clone(), oracles.context(model, 16, feeds=feeds))
    assert "finite" in outcome.skipped[0].reason


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e12])
def test_inputs_of_any_scale_are_borne(scale: float) -> None:
    """A channel that is dead, and one that is constant, beside."""
    model = conv(oracles.separable_kernel(1, 12, 4, (3, 3), 1), "pads = [1, 1, 1, 1]")
    x = np.random.default_rng(0).standard_normal((32, 4, 9, 10)).astype(np.float32) * np.float32(scale)
    x[:, 1], x[:, 2] = 0, scale
    changed = model.clone()
    outcome = Separable(multiplier=1).apply(changed, oracles.context(model, 32, feeds={"x": x}))
    assert outcome.changed == ("y",)
    before, after = models.run(model, {"x": x})["y"], models.run(changed, {"x": x})["y"]
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def test_shared_weights_and_bias_stay_what_they_are_for_others() -> None:
    model = text(
        "(float[N, 8, 6, 6] x) => (float[N, 8, h, w] y, float[N, 8, p, q] z)",
        "y = Conv (x, w, b) z = Conv (x, w, b)",
        constants(3, w=(8, 8, 3, 3), b=(8,)),
    )
    infer_shapes(model)
    changed = model.clone()
    assert Separable((("y", 1),)).apply(changed, oracles.context(model)).changed == ("y",)
    feeds = models.feeds(model)
    before, after = models.run(model, feeds), models.run(changed, feeds)
    assert np.array_equal(before["z"], after["z"])
    assert not np.array_equal(before["y"], after["y"])


def test_half_precision_stays_half_precision() -> None:
    model = text(
        "(float16[N, 4, 6, 6] x) => (float16[N, 12, h, w] y)",
        "y = Conv (x, w, b)",
        {"w": oracles.separable_kernel(1, 12, 4, (3, 3), 1).astype(np.float16)}
        | constants(2, np.float16, b=(12,)),
    )
    infer_shapes(model)
    changed = model.clone()
    assert Separable(multiplier=1).apply(changed, oracles.context(model)).changed == ("y",)
    assert {s.weight.dtype for s in find_sites(changed)} == {np.dtype(np.float16)}
    assert oracles.moved(model, changed) < 1e-2


def test_names_stay_apart_and_a_site_can_be_split_again() -> None:
    model = models.residual()
    infer_shapes(model)
    changed = model.clone()
    context = oracles.context(model)
    Separable(multiplier=1).apply(changed, context)
    again = Separable(multiplier=1).apply(changed, context)
    assert not again.changed
    assert {s.reason for s in again.skipped} == {
        "grouped or transposed convolutions are not split",
        "only convolutions of more than one tap are separable",
    }
    names = [s.name for s in find_sites(changed)]
    assert len(names) == len(set(names)) == 7


def test_impossible_parameters_are_refused() -> None:
    for recipe in (
        {"energy": 0.0}, {"energy": 2.0}, {"sites": ("(",)}, {"multiplier": 0}, {"multipliers": (("c", 0),)},
        {"multiplier": 1, "energy": 0.5},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="separable"):
            Separable(**recipe)  # type: ignore[arg-type]


def test_a_recipe_says_it_all() -> None:
    recipe = (Separable((("c1", 2),), energy=0.9, sites=("^c",), follow=False), Separable(multiplier=1))
    assert parse(dump(recipe)) == from_json(to_json(recipe)) == recipe
