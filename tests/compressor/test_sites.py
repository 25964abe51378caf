"""Sites: which nodes are, what matrix they multiply by, and which rows they see."""

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import array, constants, text

from edgepress.compressor.model import to_bytes
from edgepress.compressor.sites import (
    Site,
    conv_padding,
    find_sites,
    new_constant,
    replace_constant,
    sampled_rows,
    set_weights,
)


def product(site: Site, x: np.ndarray) -> np.ndarray:
    """X Wᵀ + b on every row that the site sees."""
    rng = np.random.default_rng(0)
    rows = next(sampled_rows(site, x, [], 10**9, rng))
    bias = site.bias()
    result: np.ndarray = rows @ site.matrix().T + (0 if bias is None else bias)
    return result


@pytest.mark.parametrize("name", sorted(models_core.ALL))
def test_every_dense_site_is_a_product_of_rows_and_a_matrix(name: str) -> None:
    model = models_core.ALL[name]()
    feeds = models.feeds(model, 6)
    for site in find_sites(model):
        if not site.dense or (site.bias_index is not None and site.bias() is None):
            continue
        names = [site.x.name or "", site.y.name or ""]
        seen = oracles.values(model, feeds, [n for n in names if n not in feeds]) | feeds
        x, y = seen[names[0]], seen[names[1]]
        flat = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]) if site.is_conv else y.reshape(-1, y.shape[-1])
        tolerance = 2e-2 if site.weight.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(product(site, x), flat, atol=tolerance)


geometries = st.fixed_dictionaries(
    {
        "kernel": st.lists(st.integers(1, 3), min_size=1, max_size=2),
        "seed": st.integers(0, 99),
        "auto": st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    }
)


@given(geometries, st.data())
@settings(max_examples=80, deadline=None)
def test_rows_are_the_patches_that_a_convolution_sees(shape: dict, data: st.DataObject) -> None:
    kernel, auto = shape["kernel"], shape["auto"]
    rank = len(kernel)
    few = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    strides, dilations = data.draw(few), data.draw(few)
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    size = data.draw(st.lists(st.integers(3, 8), min_size=rank, max_size=rank))
    said = f'auto_pad = "{auto}"' if auto != "NOTSET" else f"pads = {pads}"
    model = text(
        f"(float[N, 2, {', '.join(map(str, size))}] x) => (float[N, M, {', '.join('hw'[:rank])}] y)",
        f"y = Conv <{said}, strides = {strides}, dilations = {dilations}> (x, w, b)",
        constants(shape["seed"], w=(3, 2, *kernel), b=(3,)),
    )
    site = find_sites(model)[0]
    padding = oracles.pads_of(site.node, size, kernel)
    assume(all(s + sum(p) > (k - 1) * d for s, p, k, d in zip(size, padding, kernel, dilations, strict=True)))
    assert conv_padding(site.node, size, kernel) == padding
    x = models.feeds(model, 2, shape["seed"])["x"]
    slow = oracles.conv_rows(x, kernel, strides, dilations, padding)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(
        next(sampled_rows(site, x, [], 10**9, rng)), slow.reshape(-1, slow.shape[-1])
    )
    if auto == "NOTSET" or max(dilations) == 1:  # onnxruntime refuses the others
        y = models.run(model, {"x": x})["y"]
        np.testing.assert_allclose(product(site, x), np.moveaxis(y, 1, -1).reshape(-1, 3), atol=1e-5)


@given(st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_sampled_rows_of_x_and_y_belong_together(limit: int, seed: int) -> None:
    model = models.cnn()
    site = find_sites(model)[0]
    x = models.feeds(model, 3, seed)["x"]
    y = oracles.values(model, {"x": x}, ["c1"])["c1"]
    rows, outputs = sampled_rows(site, x, [y], limit, np.random.default_rng(seed))
    assert len(rows) == len(outputs) == min(limit, 3 * 64)
    np.testing.assert_allclose(rows @ site.matrix().T + site.bias(), outputs, atol=1e-5)
    assert len(np.unique(outputs, axis=0)) == len(outputs)  # without repetition


def test_no_position_is_preferred() -> None:
    site = find_sites(models.mlp())[0]
    x = np.arange(50, dtype=np.float32)[:, None] * np.ones((1, 6), np.float32)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([next(sampled_rows(site, x, [], 10, rng))[:, 0] for _ in range(400)])
    counts = np.bincount(drawn.astype(int), minlength=50)
    assert counts.min() > 50  # of 80
    assert counts.max() < 115


@pytest.mark.parametrize("name", sorted(models_core.ALL))
def test_writing_weights_back_changes_nothing(name: str) -> None:
    model = models_core.ALL[name]()
    same = model.clone()
    for site in find_sites(same):
        if site.dense:
            set_weights(site, site.matrix(), site.bias())
    feeds = models.feeds(model, 3)
    assert oracles.close(models.run(model, feeds), models.run(same, feeds), 1e-6)


def test_a_bias_appears_only_where_it_is_not_zero() -> None:
    model = models.batchnorm()
    site = find_sites(model)[0]
    set_weights(site, site.matrix(), np.zeros(4))
    assert len(site.node.inputs) == 2
    set_weights(site, site.matrix(), array(0, 1, 0, 0))
    assert len(find_sites(model)[0].node.inputs) == 3
    before = models.run(models.batchnorm(), models.feeds(model))
    assert not oracles.close(before, models.run(model, models.feeds(model)), 1e-3)


def test_a_shared_weight_is_copied_before_it_changes() -> None:
    model = models.shared_weight()
    first, second = find_sites(model)
    set_weights(first, first.matrix() * 2, None)
    np.testing.assert_array_equal(find_sites(model)[1].weight, second.weight)
    np.testing.assert_array_equal(find_sites(model)[0].weight, 2 * second.weight)
    assert models.run(model, models.feeds(model))["y"].shape == (4, 6)


def test_a_weight_that_is_an_output_stays_as_it_is() -> None:
    model = models.weight_as_output()
    before = models.run(model, models.feeds(model))
    site = find_sites(model)[0]
    set_weights(site, site.matrix() * 2, None)
    after = models.run(model, models.feeds(model))
    np.testing.assert_array_equal(before["w"], after["w"])
    np.testing.assert_allclose(2 * before["y"], after["y"], rtol=1e-5)


def test_new_constants_take_no_name_in_use() -> None:
    model = models.mlp()
    for name in ("w1", "h", "x"):
        made = new_constant(model.graph, name, array(1))
        assert made.name not in {"w1", "b1", "w2", "b2", "h", "a", "y", "x"}
    replace_constant(model.graph[0], 2, np.zeros(8, np.float32))
    assert model.graph.initializers["b1"].const_value.numpy().max() == 0
    assert to_bytes(model)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm <alpha = 2.0> (x, w, b)",
        "y = Gemm <beta = 0.5> (x, w, b)",
        "y = Gemm <transA = 1> (x, w, b)",
        "t = Identity(w) y = MatMul(x, t)",
    ],
)
def test_what_is_no_plain_product_is_no_site(body: str) -> None:
    model = text("(float[6, 6] x) => (float[6, 4] y)", body, constants(1, w=(6, 4), b=(4,)))
    assert find_sites(model) == []


def test_weights_that_callers_may_override_are_no_constants() -> None:
    model = models.mlp()
    model.graph.inputs.append(model.graph.initializers["w1"])
    assert [site.name for site in find_sites(model)] == ["y"]


def test_a_bias_of_one_value_a_row_is_none_of_the_outputs() -> None:
    site = find_sites(models_core.column_bias())[0]
    assert site.bias() is None


def test_names_are_those_that_users_see() -> None:
    model = models.mlp()
    model.graph[0].name = "dense"
    assert [site.name for site in find_sites(model)] == ["dense", "y"]
    assert isinstance(find_sites(model)[0].node, ir.Node)
