"""Kernels split in space and by Tucker: exact where they are made so, best on outputs where not."""

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.cost import positions
from edgepress.compressor.errors import UsageError
from edgepress.compressor.layers import layer_of
from edgepress.compressor.numerics.low_rank import (
    Projection,
    best_after,
    split_by_tucker,
    split_in_space,
    unfolded_in_channels,
    unfolded_in_space,
)
from edgepress.compressor.observe import own_moments
from edgepress.compressor.passes.low_rank import Form, LowRank, best_form
from edgepress.compressor.passes.shrink import shrinkable
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine

SEEDS = st.integers(0, 10_000)
CONVS = {
    "plain": "pads = [1, 1, 1, 1]",
    "strides": "strides = [2, 3], pads = [1, 0, 1, 2]",
    "dilations": "dilations = [2, 1], pads = [2, 1, 2, 1]",
    "same": 'strides = [2, 2], auto_pad = "SAME_LOWER"',
    "valid": 'auto_pad = "VALID"',
}


def gram(rng: np.random.Generator, size: int) -> Matrix:
    x = rng.standard_normal((3 * size, size)) @ rng.standard_normal((size, size))
    return np.asarray(x.T @ x / len(x))


def error(change: Matrix, seen: Matrix) -> float:
    flat = change.reshape(len(change), -1)
    return float(np.trace(flat @ seen @ flat.T))


def in_space(seed: int, rank: int) -> tuple[Array, Array]:
    """[12, 4, 3, 3] of two factors [12, rank, 1, 3] and [rank, 4, 3, 1]."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((12, rank, 3)), rng.standard_normal((rank, 4, 3))
    return np.einsum("orj,rci->ocij", u, v).astype(np.float32), u


def by_tucker(seed: int, outer: int, narrow: int, *kernel: int) -> Array:
    rng = np.random.default_rng(seed)
    core = rng.standard_normal((outer, narrow, *kernel))
    u, v = rng.standard_normal((12, outer)), rng.standard_normal((narrow, 8))
    return np.einsum("oq,qp...,pc->oc...", u, core, v).astype(np.float32)


def conv(weight: Array, attributes: str, bias: bool = True) -> ir.Model:
    size = ", ".join(["N", str(weight.shape[1]), *["11", "10"][: weight.ndim - 2]])
    out = ", ".join(["N", "M", *"hw"[: weight.ndim - 2]])
    weights = constants(2, b=(len(weight),)) | {"w": weight}
    model = text(
        f"(float[{size}] x) => (float[{out}] y)", f"y = Conv <{attributes}> (x, w{', b' * bias})", weights
    )
    infer_shapes(model)
    return model


@pytest.mark.parametrize("name", sorted(CONVS))
@pytest.mark.parametrize("bias", [True, False])
def test_a_composition_of_two_directions_is_found(name: str, bias: bool) -> None:
    model = conv(in_space(1, 2)[0], CONVS[name], bias)
    changed = model.clone()
    outcome = LowRank((("y", 2),), form="space").apply(changed, oracles.context(model))
    assert outcome.changed == ("y",)
    assert [s.weight.shape for s in find_sites(changed)] == [(2, 4, 3, 1), (12, 2, 1, 3)]
    assert oracles.moved(model, changed) < 1e-4


@pytest.mark.parametrize("kernel", [(3, 3), (5,)])
@pytest.mark.parametrize("energy", [None, 0.9999])
def test_a_tucker_is_found(kernel: tuple[int, ...], energy: float | None) -> None:
    attributes = (
        "strides = [2, 1], pads = [1, 0, 0, 2]" if len(kernel) == 2 else "strides = [2], pads = [1, 2]"
    )
    model = conv(by_tucker(1, 3, 2, *kernel), attributes)
    changed = model.clone()
    recipe = LowRank(() if energy else (("y", 3),), energy, form="tucker")
    assert recipe.apply(changed, oracles.context(model)).changed == ("y",)
    ones = (1,) * len(kernel)
    assert [s.weight.shape for s in find_sites(changed)] == [(2, 8, *ones), (3, 2, *kernel), (12, 3, *ones)]
    assert oracles.moved(model, changed) < 1e-4


@given(SEEDS, st.integers(1, 7), st.sampled_from([(14, 10), (8, 10)]))
@settings(max_examples=20, deadline=None)
def test_no_projection_of_the_same_rank_is_better(seed: int, rank: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    seen = gram(rng, 10)
    unfolded = Projection.by_inputs(rng.standard_normal(shape), seen)
    u, v = unfolded.factorise(rank)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-9)
    ours = error(unfolded.matrix - u @ v, seen)
    root = np.linalg.cholesky(seen)
    values = np.linalg.svd(unfolded.matrix @ root)[1]
    full, least = error(unfolded.matrix, seen), float((values[rank:] ** 2).sum())
    assert least * (1 - 1e-9) <= ours <= least + 1e-3 * full
    assert ours / full == pytest.approx(unfolded.lost()[rank], abs=2e-3)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_what_follows_a_fixed_map_is_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weights, features = (
        rng.standard_normal((200, 9)),
        rng.standard_normal((5, 9)),
        rng.standard_normal((4, 9)),
    )
    found = best_after(weights, x.T @ x / 200, features)
    expected = np.linalg.lstsq(x @ features.T, x @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_moments_that_rounding_made_indefinite_are_no_obstacle() -> None:
    seen = np.ones((6, 6)) - 1e-6 * np.outer([1, -1, 0, 0, 0, 0], [1, -1, 0, 0, 0, 0])
    weights = np.random.default_rng(0).standard_normal((3, 6))
    assert np.isfinite(best_after(weights, seen, np.eye(6))).all()


@given(SEEDS, st.integers(1, 11))
@settings(max_examples=15, deadline=None)
def test_splits_lose_less_the_higher_the_rank_and_nothing_at_the_full_one(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, seen = rng.standard_normal((5, 4, 3, 3)), gram(rng, 36)

    def space(r: int) -> float:
        u, v = split_in_space(kernel, seen, unfolded_in_space(kernel, seen), r)
        return error(kernel - np.einsum("orj,rci->ocij", u[:, :, 0], v[:, :, :, 0]), seen)

    def tucker(r: int) -> float:
        u, core, v = split_by_tucker(kernel, seen, np.eye(5), kernel, unfolded_in_channels(kernel, seen), r)
        return error(kernel - np.einsum("oq,qpij,pc->ocij", u, core, v), seen)

    full = error(kernel, seen)
    assert space(12) < 1e-20 * full
    assert tucker(4) < 1e-20 * full
    assert space(rank) <= full * (1 + 1e-9)
    assert space(min(rank + 3, 12)) <= space(rank) * 1.2


def test_energy_says_how_much_is_kept() -> None:
    rng = np.random.default_rng(3)
    model = conv(rng.standard_normal((12, 8, 3, 3)).astype(np.float32), "pads = [1, 1, 1, 1]")
    forms: tuple[Form, ...] = ("channels", "space", "tucker")
    for form in forms:
        errors, sizes = [], []
        for energy in (0.5, 0.8, 0.9):
            changed = model.clone()
            LowRank(energy=energy, form=form).apply(changed, oracles.context(model))
            errors.append(oracles.moved(model, changed))
            sizes.append(sum(site.weight.size for site in find_sites(changed)))
        assert errors == sorted(errors, reverse=True)
        assert sizes == sorted(sizes)
        assert errors[0] ** 2 < 0.6
        assert errors[2] ** 2 < 0.15


def test_what_energy_cannot_make_smaller_stays() -> None:
    rng = np.random.default_rng(3)
    model = conv(rng.standard_normal((12, 8, 3, 3)).astype(np.float32), "pads = [1, 1, 1, 1]")
    changed = model.clone()
    outcome = LowRank(energy=1.0).apply(changed, oracles.context(model))
    assert not outcome.modified
    assert "needs all of it" in outcome.skipped[0].reason
    assert not LowRank(energy=0.5, sites=("^other$",)).apply(changed, oracles.context(model)).modified


@pytest.mark.parametrize(
    ("form", "weight", "attributes", "reason"),
    [
        ("space", (12, 8, 1, 3), "pads = [0, 1, 0, 1]", "more than one row and column"),
        ("space", (12, 8, 3), "pads = [1, 1]", "more than one row and column"),
        ("tucker", (12, 8, 1, 1), "strides = [1, 1]", "no core"),
    ],
)
def test_forms_that_do_not_fit_are_refused(
    form: Form, weight: tuple[int, ...], attributes: str, reason: str
) -> None:
    model = conv(np.ones(weight, np.float32), attributes)
    outcome = LowRank((("y", 2),), form=form).apply(model.clone(), oracles.context(model))
    assert reason in outcome.skipped[0].reason


def test_impossible_parameters_are_refused() -> None:
    for recipe in ({"energy": 0.0}, {"energy": 2.0}, {"sites": ("(",)}):
        with pytest.raises(UsageError, match="low_rank"):
            LowRank(**recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["channels", "space", "tucker"])
@pytest.mark.parametrize("attributes", [CONVS["plain"], CONVS["strides"]])
def test_layers_foretell_what_a_split_costs(form: Form, attributes: str) -> None:
    """Weights and multiplications of the parts, by the runtime's own shapes."""
    model = conv(np.random.default_rng(0).standard_normal((12, 8, 3, 3)).astype(np.float32), attributes)
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    channels, groups, _ = shrinkable(model)
    site = find_sites(model)[0]
    layer = layer_of(site, channels, groups, [], shapes)
    LowRank((("y", 6),), form=form).apply(model, oracles.context(model, seed=1))
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    parts = layer.split(form, 6, layer.rows, layer.columns)
    found = [(s.outputs, s.inputs * s.taps, positions(s, shapes)) for s in find_sites(model)]
    np.testing.assert_allclose(np.array([part[:3] for part in parts]), np.array(found))
    assert [part.kind for part in parts] == [
        "pointwise" if s.taps == 1 else "conv" for s in find_sites(model)
    ]


def test_the_form_is_the_one_that_fits_the_kernel() -> None:
    cases: dict[Form, Array] = {
        "space": in_space(1, 3)[0],
        "tucker": by_tucker(1, 5, 2, 3, 3),
        "channels": by_tucker(1, 3, 8, 3, 3),
    }
    for form, weight in cases.items():
        model = conv(weight, CONVS["plain"])
        site = find_sites(model)[0]
        fit, held = own_moments(model, site, oracles.context(model))
        found, lost = best_form(site, fit + held)
        assert found == form
        assert lost[0] == 1
        assert lost[-1] < 1e-6
