"""What flows through a net: moments of sites, batch by batch, of the current and of the original model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.inputs import (
    input_moments,
    leave_inputs,
    moments_of_inputs,
    moments_size,
    said_of_large,
    widths,
)
from edgepress.compressor.observe import (
    HELD_EVERY,
    KEPT,
    ROWS_OF_MOMENTS,
    TARGETS,
    Streamer,
    group_moments,
    kept_channels,
    output_names,
    own_moments,
    site_moments,
    unfittable,
)
from edgepress.compressor.origins import Origins
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.refitting import refittable
from edgepress.compressor.passes.shrink import Shrink
from edgepress.compressor.protocols import Feeds
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, set_weights
from edgepress.runtime.engines.ort import OrtEngine


def test_values_come_batch_by_batch_from_both_models() -> None:
    original = models.mlp()
    changed = original.clone()
    site = find_sites(changed)[0]
    set_weights(site, 2 * site.matrix(), None)
    feeds = models.feeds(original, 20)
    streamer = Streamer(OrtEngine(), original, lambda: oracles.batches(feeds, 8))
    seen = list(streamer(changed, ["h", "y"], ["h"]))
    assert [len(now["h"]) for now, _ in seen] == [8, 8, 4]
    assert all(set(now) == {"h", "y"} and set(then) == {"h"} for now, then in seen)
    bias = site.bias()
    for now, then in seen:
        np.testing.assert_allclose(now["h"] - bias, 2 * (then["h"] - bias), atol=1e-5)
    assert all(not then for _, then in streamer(changed, ["h"]))


def test_moments_of_groups_are_those_of_their_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.text(
        "(float[N, 6, 5, 4] x) => (float[N, 9, 3, 4] y)",
        "y = Conv <group = 3, pads = [1, 0, 0, 1]> (x, w)",
        models.constants(1, w=(9, 2, 4, 2)),
    )
    infer_shapes(model)
    (site,), context = find_sites(model), oracles.context(model, 20)
    found = group_moments(model, site, context)
    assert found is not None
    x = models.feeds(model, 20, 100)["x"]
    rows = oracles.conv_rows(x, (4, 2), (1, 1), (1, 1), [(1, 0), (0, 1)])
    held = np.arange(20) % HELD_EVERY == HELD_EVERY - 1
    for moments, part in zip(found, (~held, held), strict=True):
        each = rows[part].reshape(-1, 3, 2 * 8)
        for group, some in enumerate(moments):
            assert some.rows == len(each)
            np.testing.assert_allclose(some.xx, each[:, group].T @ each[:, group], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(some.x_sum, each[:, group].sum(0), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("edgepress.compressor.observe.WIDEST", 27)
    assert group_moments(model, site, context) is None


def test_moments_are_those_of_the_rows() -> None:
    model = models.mlp()
    context = oracles.context(model, 100)
    site = find_sites(model)[1]
    fit, held = site_moments(model, site, context)
    feeds = models.feeds(model, 100, 100)
    seen = oracles.values(model, feeds, ["a", "y"])
    chosen = np.arange(100) % HELD_EVERY == HELD_EVERY - 1
    assert (fit.rows, held.rows) == (80, 20)
    for part, rows in ((fit, ~chosen), (held, chosen)):
        gram, cross, outputs = part.centred()
        joint = np.cov(np.hstack([seen["a"][rows], seen["y"][rows]]).T.astype(np.float64), bias=True)
        np.testing.assert_allclose(gram, joint[:8, :8], atol=1e-5)
        np.testing.assert_allclose(cross, joint[:8, 8:], atol=1e-5)
        np.testing.assert_allclose(outputs, joint[8:, 8:], atol=1e-5)


def test_a_site_without_bias_has_moments_about_zero() -> None:
    model = models.matmul()
    fit, _ = site_moments(model, find_sites(model)[1], oracles.context(model))
    assert fit.about_zero
    np.testing.assert_array_equal(np.concatenate(fit.means()), 0)
    np.testing.assert_array_equal(fit.bias_for(np.ones((8, 4))), 0)


def test_paired_moments_are_of_the_original_at_the_same_places() -> None:
    """The current model's own weights on X, and the original's Y, differ by just what was changed."""
    model = models.residual()
    infer_shapes(model)
    changed = model.clone()
    site = find_sites(changed)[1]
    bias = find_sites(model)[1].bias().astype(np.float64)
    set_weights(site, site.matrix(), bias + 3)
    context = oracles.context(model)
    context.memo[TARGETS] = {}
    fit, held = site_moments(changed, find_sites(changed)[1], context, paired=True)
    assert list(context.memo[TARGETS]) == [site.y.name]
    weights = site.matrix().T.astype(np.float64)
    for part in (fit, held):
        assert part.error(weights, bias) == pytest.approx(0, abs=1e-5)
        assert part.error(weights, bias + 3) == pytest.approx(9 * 8, rel=1e-4)
    again = site_moments(changed, find_sites(changed)[1], context, paired=True)  # targets are remembered now
    for one, other in zip((fit, held), again, strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)
        np.testing.assert_array_equal(one.yy, other.yy)


def test_paired_moments_follow_the_channels_that_are_left() -> None:
    model = models.residual()
    infer_shapes(model)
    shrunk = model.clone()
    Shrink((("c0", 3), ("c1", 4)), compensate=False).apply(shrunk, oracles.context(model))
    site = find_sites(shrunk)[2]
    kept = kept_channels(site.y, 8)
    assert len(kept) == 3
    fit, held = site_moments(shrunk, site, oracles.context(model), paired=True)
    y = oracles.values(model, models.feeds(model, 64, 100), ["c2"])["c2"][:, kept]
    total = fit + held
    assert total.rows == y.size // 3
    np.testing.assert_allclose(total.y_sum / total.rows, y.mean((0, 2, 3)), atol=1e-5)


def test_clones_remember_which_channels_are_left() -> None:
    model = models.mlp()
    Shrink((("h", 3),)).apply(model, oracles.context(models.mlp()))
    first, second = model.graph[0].outputs[0], model.clone().graph[0].outputs[0]
    np.testing.assert_array_equal(first.meta[KEPT], second.meta[KEPT])


def test_rows_are_bounded_whatever_the_number_of_samples() -> None:
    model = models.cnn()
    infer_shapes(model)
    rows = 2000
    few = models.feeds(model, 50)

    def many() -> Iterator[Feeds]:
        for _ in range(rows // 50):
            yield few

    context = Context(Streamer(OrtEngine(), model, many), rows=rows)
    fit, held = site_moments(model, find_sites(model)[0], context)
    assert 0.9 * ROWS_OF_MOMENTS < fit.rows + held.rows < 1.1 * ROWS_OF_MOMENTS


def test_moments_of_the_original_are_remembered_and_of_a_shrunk_model_are_not() -> None:
    model = models.mlp()
    context = oracles.context(model)
    site = find_sites(model)[1]
    assert own_moments(model, site, context)[0] is own_moments(model, site, context)[0]
    shrunk = model.clone()
    Shrink((("h", 3),)).apply(shrunk, context)
    assert own_moments(shrunk, find_sites(shrunk)[1], context)[0].inputs == 3


def test_moments_need_samples() -> None:
    model = models.mlp()
    with pytest.raises(ValueError, match="samples"):
        site_moments(model, find_sites(model)[0], Context())


def test_outputs_have_names() -> None:
    assert output_names(models.two_inputs()) == ["y", "middle"]
    assert isinstance(models.two_inputs(), ir.Model)


def test_moments_are_remembered_up_to_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.residual()
    infer_shapes(model)
    sites = find_sites(model)
    roomy, tight = oracles.context(model), oracles.context(model)
    for site in sites:
        own_moments(model, site, roomy)
    assert len([key for key in roomy.memo if "moments" in str(key)]) == len(sites) > 1
    monkeypatch.setattr("edgepress.compressor.observe.MOMENTS_BYTES", 1)
    for site in sites:
        own_moments(model, site, tight)
    assert [key for key in tight.memo if "moments" in str(key)] == [("moments", sites[-1].name)]


def test_moments_left_behind_hold_until_something_before_the_site_changes() -> None:
    model = models.mlp()
    context = oracles.context(model)
    site = find_sites(model)[1]
    fit, held = site_moments(model, site, context, paired=True)
    leave_inputs(site, context, Origins(model), [(fit, held)])
    ((known, _),) = input_moments(model, site, context)
    assert known.xx is fit.xx
    assert known.outputs == 0
    set_weights(site, site.matrix() * 2, None)
    assert input_moments(model, find_sites(model)[1], context)[0][0].xx is fit.xx
    first = find_sites(model)[0]
    set_weights(first, first.matrix() * 2, None)
    ((fresh, _),) = input_moments(model, find_sites(model)[1], context)
    assert not np.allclose(fresh.xx, fit.xx)


def test_another_recipe_sees_nothing_of_what_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.mlp()
    context = oracles.context(model)
    site = find_sites(model)[1]
    input_moments(model, site, context)
    assert list(context.left_behind) == [site.name]
    assert not context.apart().left_behind
    assert context.apart().memo is context.memo
    monkeypatch.setattr("edgepress.compressor.inputs.INPUT_BYTES", 1)
    tight = context.apart()
    input_moments(model, site, tight)
    assert not tight.left_behind


def deep(layers: int) -> ir.Model:
    """Gemm and Relu in turn, six values wide."""
    steps = [
        f"h{n} = Gemm <transB = 1> ({f'a{n - 1}' if n else 'x'}, w{n}, b{n}) a{n} = Relu(h{n})"
        for n in range(layers)
    ]
    weights = {name: shape for n in range(layers) for name, shape in ((f"w{n}", (6, 6)), (f"b{n}", (6,)))}
    return models.text(
        f"(float[N, 6] x) => (float[N, 6] a{layers - 1})", " ".join(steps), models.constants(1, **weights)
    )


def test_inputs_of_many_sites_are_gathered_in_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many in one run as memory is allowed for, with the same numbers as one by one."""
    model = deep(12)
    sites, whole, apart = find_sites(model), oracles.context(model), oracles.context(model)
    runs: list[int] = []
    stream = whole.stream
    assert stream is not None

    def counted(model: ir.Model, values: Sequence[str], original: Sequence[str] = ()) -> Iterator[Any]:
        runs.append(len(values))
        return stream(model, values, original)

    found = list(moments_of_inputs(model, sites, replace(whole, stream=counted)))
    assert runs == [len(sites)]
    for site, (pair,) in zip(sites, found, strict=True):
        for ours, alone in zip(pair, input_moments(model, site, apart)[0], strict=True):
            np.testing.assert_allclose(ours.xx, alone.xx, rtol=1e-5, atol=1e-5)
            assert ours.rows == alone.rows
    runs.clear()
    assert list(moments_of_inputs(model, sites, replace(whole, stream=counted)))
    assert runs == []  # they were left behind
    monkeypatch.setattr("edgepress.compressor.inputs.MOMENTS_BYTES", 5 * moments_size(sites[0]))
    list(moments_of_inputs(model, sites, replace(whole, stream=counted, left_behind={})))
    assert runs == [5, 5, 2]


def test_origins_take_entries_as_there_are_nodes() -> None:
    """And tell apart what differs in front of a value, not what differs behind it."""
    model = deep(40)
    origins = Origins(model)
    sites = find_sites(model)
    found = [origins.of(site.x) for site in sites]
    assert len(found[-1].held) <= 4 * len(model.graph)
    copy = model.clone()
    assert [Origins(copy).of(site.x) for site in find_sites(copy)] == found
    assert len({each.digest for each in found}) == len(found)
    changed = find_sites(copy)[20]
    set_weights(changed, changed.matrix() * 2, None)
    now = [Origins(copy).of(site.x) for site in find_sites(copy)]
    assert [one == other for one, other in zip(now, found, strict=True)] == [True] * 21 + [False] * 19


@pytest.mark.parametrize("inputs", [64, 100, 200, 4096])
def test_inputs_of_wide_sites_are_seen_in_parts(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks on the diagonal of what would be seen at once, in no more memory than the widest site takes."""
    monkeypatch.setattr("edgepress.compressor.inputs.WIDEST", 64)
    model = models.mlp(hidden=inputs)
    site, context = find_sites(model)[1], oracles.context(model)
    parts = widths(site)
    if inputs == 4096:
        assert parts == []  # of one column each they would say nothing
        return
    assert (sum(parts), len(parts) == 1) == (inputs, inputs == 64)
    assert moments_size(site) <= 2 * 8 * 64**2
    seen = input_moments(model, site, context)
    monkeypatch.setattr("edgepress.compressor.inputs.WIDEST", 4096)
    ((fit, held),) = input_moments(model, site, context.apart())
    start = 0
    for pair in seen:
        some = slice(start, start + pair[0].inputs)
        for ours, whole in zip(pair, (fit, held), strict=True):
            np.testing.assert_allclose(ours.xx, whole.xx[some, some], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(ours.x_sum, whole.x_sum[some], rtol=1e-5, atol=1e-5)
            assert ours.rows == whole.rows
        start = some.stop


def test_a_site_with_too_many_weights_is_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.mlp(hidden=32)
    first, second = find_sites(model)
    context = oracles.context(model)
    assert refittable(first, context)
    monkeypatch.setattr("edgepress.compressor.observe.MOST_PAIRS", 32 * 4 - 1)
    assert not refittable(second, context)
    assert unfittable(second) == "it has over 127 weights"
    outcome = Shrink(widths=((first.name, 8),)).apply(model.clone(), context)
    assert [each.reason.partition(": ")[2] for each in outcome.skipped] == ["it has over 127 weights"]
    monkeypatch.setattr("edgepress.compressor.observe.WIDEST", 8)
    (said,) = said_of_large(model)
    assert f"{second.name} (32 × 4) (inputs × outputs)" in said
