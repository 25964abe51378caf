"""What can be turned down in a model, and what it is thought to cost."""

import itertools
from collections.abc import Callable, Sequence

import models
import models_core
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.knobs import GROWTH, LADDER, MOST_DAMAGE, along, ladder, measured_points
from edgepress.compressor.options import Gauge, Options, collect, divergence, stacked_outputs
from edgepress.compressor.passes import LowRank, Shrink
from edgepress.compressor.passes.base import Context
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine

arrays = st.integers(0, 10_000).map(
    lambda s: np.random.default_rng(s).normal(size=(20, 4)).astype(np.float32)
)


@given(arrays, st.floats(0.01, 2.0), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_divergence_is_zero_for_the_same_and_grows_with_the_change(
    scores: np.ndarray, size: float, seed: int
) -> None:
    change = np.random.default_rng(seed).normal(size=scores.shape).astype(np.float32)
    assert divergence({"y": scores}, {"y": scores}) == pytest.approx(0, abs=1e-12)
    near = divergence({"y": scores}, {"y": scores + size * change})
    far = divergence({"y": scores}, {"y": scores + 2 * size * change})
    assert 0 < near < far


@given(arrays)
@settings(max_examples=15, deadline=None)
def test_scores_are_probabilities_up_to_a_shift(scores: np.ndarray) -> None:
    """Logits that all move together give the same answer, and so do their probabilities."""
    assert divergence({"y": scores}, {"y": scores + 3}) == pytest.approx(0, abs=1e-5)
    other = scores[::-1]
    soft = [np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (scores, other)]
    p, q = soft
    expected = float(np.mean(np.sum(p * np.log(p / q), axis=1)))
    assert divergence({"y": scores}, {"y": other}) == pytest.approx(expected, rel=1e-4)
    assert divergence({"y": p}, {"y": q}) == pytest.approx(expected, rel=1e-3)


def test_pictures_diverge_by_their_relative_error() -> None:
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(50, 1, 4, 4))
    noise = 0.1 * rng.normal(size=picture.shape)
    assert divergence({"y": picture}, {"y": picture + noise}) == pytest.approx(0.01, rel=0.2)


def test_the_worst_output_counts_and_broken_ones_count_infinitely() -> None:
    a, b = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    assert divergence({"y": a, "z": a}, {"y": a, "z": b}) == divergence({"y": a}, {"y": b}) > 0
    assert divergence({"y": a}, {"y": np.full_like(a, np.nan)}) == np.inf
    assert divergence({"classes": np.arange(4)}, {"classes": np.arange(4)[::-1]}) == 0  # no scores


@given(st.integers(1, 3000), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_ladder_goes_down_in_multiples_and_then_in_halves(full: int, multiple: int) -> None:
    steps = ladder(full, multiple)
    assert steps == sorted(set(steps), reverse=True)
    assert len(steps) <= LADDER + 1
    assert all(0 < s < full for s in steps)
    assert all(s % multiple == 0 for s in steps if s > multiple and full > multiple)
    if full > 4 * multiple:
        assert steps[-1] <= multiple
        assert steps[0] >= full - multiple


def damages(
    values: Sequence[int], errors: Sequence[float], trial: Callable[[int], float], *trials: list[float]
) -> tuple[float, ...]:
    return along(measured_points(values, errors, trial, *trials), errors)


def collected(name: str, leave: tuple[str, ...] = ()) -> Options:
    model = models_core.ALL[name]()
    infer_shapes(model)
    context = oracles.context(model, 64, target=oracles.Board(), leave=leave)
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    return collect(Gauge(model, context, context, 2), shapes)


@pytest.mark.parametrize("name", ["mlp", "residual", "concat", "depthwise", "matmul", "net_excite", "zeros"])
def test_options_of_a_model(name: str) -> None:
    options = collected(name)
    assert options.knobs
    for knob in options.knobs:
        assert list(knob.values) == sorted(knob.values, reverse=True)
        assert all(v < knob.full for v in knob.values)
        assert list(knob.damage) == sorted(knob.damage)
        assert all(0 < d < np.inf for d in knob.damage)
    model = models_core.ALL[name]()
    assert [layer.name for layer in options.layers] == [s.name for s in find_sites(model)]
    for layer in options.layers:
        for index in (layer.rows_knob, layer.columns_knob):
            assert index == -1 or options.knobs[index].kind == "width"
        assert layer.rank_knob == -1 or options.knobs[layer.rank_knob].name == layer.name
        assert layer.bits_knob == -1 or options.knobs[layer.bits_knob].kind == "bits"


@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "net_excite", "net_multiplier"])
def test_layers_foretell_what_shrinking_does_to_arrays(name: str) -> None:
    options = collected(name)
    state = tuple(k.values[len(k.values) // 2] if k.kind == "width" else k.full for k in options.knobs)
    model = models_core.ALL[name]()
    infer_shapes(model)
    for step in options.recipe(state):
        step.apply(model, oracles.context(models_core.ALL[name]()))
    sites = {s.name: s for s in find_sites(model)}
    for layer in options.layers:
        rows, columns = float(layer.rows), float(layer.columns)
        if layer.rows_knob >= 0:
            k = options.knobs[layer.rows_knob]
            rows -= (k.full - state[layer.rows_knob]) * layer.rows_per_unit
        if layer.columns_knob >= 0:
            k = options.knobs[layer.columns_knob]
            columns -= (k.full - state[layer.columns_knob]) * layer.per_unit
        matrix = sites[layer.name].matrix()
        if name == "concat":  # branches share one knob: the mean over both
            assert abs(rows * columns / matrix.size - 1) < 0.7
        else:
            assert (round(rows), round(columns)) == matrix.shape


def test_a_state_makes_a_recipe() -> None:
    options = collected("mlp")
    full = tuple(k.full for k in options.knobs)
    assert options.recipe(full) == ()
    least = tuple(k.values[-1] for k in options.knobs)
    recipe = options.recipe(least)
    assert [type(step) for step in recipe] == [Shrink, LowRank][: len(recipe)]
    assert dict(recipe[0].widths) == {k.name: k.values[-1] for k in options.knobs if k.kind == "width"}  # type: ignore[attr-defined]


def test_what_the_user_leaves_has_no_knob() -> None:
    assert collected("mlp", leave=("^h$", "^y$")).knobs == ()


def test_outputs_are_stacked_up_to_a_limit() -> None:
    model = models.two_inputs()
    found = stacked_outputs(model, oracles.context(model, 64), 40)
    assert {name: len(a) for name, a in found.items()} == {"y": 40, "middle": 40}
    with pytest.raises(ValueError, match="samples"):
        stacked_outputs(model, Context())


@given(st.floats(0.5, 3.0), st.floats(0.01, 10.0))
@settings(max_examples=30, deadline=None)
def test_damage_is_the_power_of_the_error_that_trials_show(power: float, factor: float) -> None:
    errors = np.geomspace(0.005, 0.5, 12)
    tried: list[int] = []

    def trial(value: int) -> float:
        tried.append(value)
        return factor * float(errors[12 - value]) ** power

    found = damages(range(12, 0, -1), errors, trial)
    assert len(tried) == 3
    inside = slice(12 - max(tried), 12 - min(tried) + 1)
    np.testing.assert_allclose(found[inside], (factor * errors**power)[inside], rtol=1e-6)
    assert list(found) == sorted(found)


def test_one_trial_is_extended_by_the_usual_growth() -> None:
    errors = [0.01, 0.05, 0.2]
    found = damages([3, 2, 1], errors, lambda _: 0.1, [0.05])
    np.testing.assert_allclose(found, [0.1 * (e / 0.05) ** GROWTH for e in errors])


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=14), st.lists(st.floats(0, np.inf), min_size=3, max_size=3)
)
@settings(max_examples=50, deadline=None)
def test_damage_never_falls_and_is_a_number(errors: list[float], answers: list[float]) -> None:
    """Whatever trials say: broken outputs, and less damage at more strength."""
    given_back = iter(answers)
    found = damages(range(len(errors), 0, -1), sorted(errors), lambda _: next(given_back))
    assert all(0 < a < b for a, b in itertools.pairwise(found))
    assert np.isfinite(found).all()
    assert max(found) <= 1.01 * MOST_DAMAGE


def test_fewer_bits_hurt_more_and_are_offered_where_they_pay() -> None:
    model = models.mlp(hidden=400)
    infer_shapes(model)
    context = oracles.context(model, 64, target=oracles.Board())
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    options = collect(Gauge(model, context, context, 8), shapes)
    bits = [knob for knob in options.knobs if knob.kind == "bits"]
    sizes = {site.name: site.weight.size for site in find_sites(model)}
    assert {knob.name for knob in bits} == {name for name, size in sizes.items() if size * 3 / 4 > 320}
    for knob in bits:
        assert knob.full == 8
        assert all(b > a for a, b in itertools.pairwise(knob.damage))
    state = tuple(3 if knob.kind == "bits" else knob.values[0] for knob in options.knobs)
    named = dict(options.bits(state))
    split = {knob.name for knob in options.knobs if knob.kind == "rank"}
    assert set(named) == {k.name for k in bits} | {f"{k.name}_v" for k in bits if k.name in split}
    assert set(named.values()) == {3}
    assert not options.bits(tuple(knob.full for knob in options.knobs))
