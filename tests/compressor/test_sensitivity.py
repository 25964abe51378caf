"""What sites bear: damages against passes applied by hand, gains against the cost of all layers anew, and the page."""

import math
import re
from dataclasses import replace
from typing import Any

import models
import models_core
import models_flow
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import Page, assert_alone
from test_precision import uneven

from edgepress.compressor.allocate import layer_cost
from edgepress.compressor.data import open_data
from edgepress.compressor.folds import Setup
from edgepress.compressor.metrics import resolve_metric
from edgepress.compressor.model import input_specs
from edgepress.compressor.options import divergence, stacked_outputs
from edgepress.compressor.passes import Quantize, StoreWeights
from edgepress.compressor.report import heatmap
from edgepress.compressor.report import sensitivity as told
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.sensitivity import LITTLE, Bearing, Sensitivity, Strength, _Gains, measure
from edgepress.compressor.trials import Trials, make_trials
from edgepress.runtime.engines.ort import OrtEngine

BOARD = oracles.Board(node_overhead_ns=5.0)


def trials_of(model: ir.Model, rows: int = 48, folds: int = 2, leave: tuple[str, ...] = ()) -> Trials:
    feeds = models.feeds(model, rows)
    data = open_data(feeds, input_specs(model))
    batch = next(iter(data.batches(min(rows, 16))))
    metric = resolve_metric("fidelity", OrtEngine().load(models.serialize(model))(batch.feeds), batch)
    return make_trials(model, Setup(OrtEngine(), metric, None, data, BOARD, 0, leave, batch=16, folds=folds))


def look(trials: Trials) -> Sensitivity:
    one = {name: array[:1] for name, array in models.feeds(trials.original, 4).items()}
    shapes = shapes_in_one_run(trials.original, OrtEngine(), one)
    return measure(trials, shapes, BOARD, 2, lambda *_: None)


def facts_of(found: Sensitivity, size: int = 10_000) -> dict[str, Any]:
    names = dict.fromkeys(bearing.site for bearing in found.bearings)
    rows = [
        {
            "site": name, "op": "Gemm", "parameters": 10, "shrinks_with": None, "left_alone": None,
            "not_measured": None, "bears": told.bears(found, name, size),
        }
        for name in names
    ]  # fmt: skip
    return {
        "model": "m.onnx", "size_bytes": size, "rows": 7, "target": "board", "latency_ns_predicted": found.ns,
        "little": LITTLE, "warnings": [], "summary": told.sentence(rows), "sites": rows,
    }  # fmt: skip


def knob(kind: str = "arithmetic", damage: float = 0.5, value: int = 8, full: int = 32) -> Bearing:
    return Bearing(kind, "a", full, None, (Strength(value, damage, 10.0, 20.0),))


# measured


@pytest.mark.parametrize("kind", ["bits", "arithmetic"])
def test_damage_of_8_bits_is_that_of_the_pass_at_this_site_alone(kind: str) -> None:
    trials = trials_of(models.cnn())
    found = {b.site: b.strengths[0].damage for b in look(trials).bearings if b.kind == kind}
    assert len(found) == {"bits": 1, "arithmetic": 3}[kind]  # of two, weights are too few to be stored
    context = trials.probe
    for site, damage in found.items():
        only = (f"^{re.escape(site)}$",)
        candidate = trials.original.clone()
        (Quantize(8, sites=only) if kind == "arithmetic" else StoreWeights(sites=only)).apply(
            candidate, context
        )
        outputs = [stacked_outputs(model, context, 256) for model in (trials.original, candidate)]
        assert damage == pytest.approx(divergence(*outputs), rel=1e-6)
        assert damage > 0


def test_what_hurts_most_is_named_first_and_its_pattern_matches_it_alone() -> None:
    found = look(uneven())
    facts = facts_of(found)
    worst = told.worst(facts["sites"])
    assert worst is not None
    sites = [row["site"] for row in facts["sites"]]
    assert worst["site"] == sites[0]
    assert facts["summary"].startswith(f"{sites[0]} hurts most")
    assert worst["leave"] in facts["summary"]
    assert [site for site in sites if re.search(worst["leave"], site)] == sites[:1]
    assert told.sort(facts["sites"], "harm")[0]["site"] == sites[0]


EVERY = {name: build for name, build in models.ALL.items() if name != "gru"} | {
    build.__name__: build
    for build in (
        models.two_heads, models_core.attention, models_core.captured, models_core.one_channel,
        models_flow.exported_gru,
    )
}  # fmt: skip
"""Without one whose rows are not the first axis: it has no metric."""


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_kind_of_model_is_measured(name: str) -> None:
    found = look(trials_of(EVERY[name](), rows=16))
    assert math.isfinite(found.ns)
    for bearing in found.bearings:
        assert bearing.strengths
        for strength in bearing.strengths:
            assert strength.value < bearing.full
            assert strength.damage >= 0
            assert math.isfinite(strength.ns + strength.size)
        values = [strength.value for strength in bearing.strengths]
        assert values == sorted(values, reverse=True)
    assert Page(told.page(facts_of(found))).text


def test_one_sample_and_nothing_to_measure() -> None:
    assert look(trials_of(models.mlp(32), rows=1, folds=1)).bearings
    plain = models.text("(float[N, 4] x) => (float[N, 4] y)", "y = Relu(x)")
    found = look(trials_of(plain))
    assert found.bearings == ()
    assert told.sentence([]) == "No site has weights that could be measured in 8 bits."


def test_what_the_user_leaves_is_not_measured() -> None:
    trials = trials_of(models.cnn(), leave=(".*",))
    assert look(trials).bearings == ()


def test_a_layer_that_the_cost_model_does_not_see_makes_gains_a_lower_bound() -> None:
    for build, partly in ((models_flow.exported_gru, True), (models.mlp, False)):
        found = look(trials_of(build()))
        widths = [bearing for bearing in found.bearings if bearing.kind == "width"]
        assert widths
        assert {bearing.partly for bearing in widths} == {partly}


# gains


@pytest.mark.parametrize("build", [models.cnn, models.residual, models.depthwise, models.half])
def test_gains_are_the_difference_of_all_layers_costs(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[_Gains] = []
    plain = _Gains.of.__func__  # type: ignore[attr-defined]

    def listening(*given: Any) -> _Gains:
        seen.append(plain(_Gains, *given))
        return seen[-1]

    monkeypatch.setattr(_Gains, "of", listening)
    found = look(trials_of(build()))
    descent, start = seen[0].descent, seen[0].start

    def cost(state: tuple[int, ...]) -> tuple[float, float]:
        each = [layer_cost(layer, state, descent.knobs, BOARD, descent.how) for layer in descent.layers]
        return sum(ns for ns, _ in each), sum(size for _, size in each)

    assert found.ns == pytest.approx(cost(start)[0] + descent.fixed[0])
    compared = 0
    for bearing in found.bearings:
        if bearing.kind == "arithmetic":
            continue
        place = [(k.kind, k.name) for k in descent.knobs].index((bearing.kind, bearing.site))
        for strength in bearing.strengths:
            after = cost((*start[:place], strength.value, *start[place + 1 :]))
            assert strength.ns == pytest.approx(cost(start)[0] - after[0], abs=1e-6)
            assert strength.size == pytest.approx(cost(start)[1] - after[1], abs=1e-6)
            compared += 1
    assert compared


def test_8_bits_save_three_bytes_of_four_and_arithmetic_pays_for_its_way() -> None:
    trials = trials_of(models.mlp(64))
    saved = {b.kind: b.strengths[0] for b in look(trials).bearings if b.site == "h" and b.kind != "width"}
    assert saved["bits"].size == saved["arithmetic"].size == 3 * 64 * 6
    macs, moved = 64 * 6, 64 * 3  # outputs of a byte instead of four
    kernel = macs / BOARD.macs_per_ns_fp32 - macs / BOARD.macs_per_ns_int8 + moved / BOARD.bytes_per_ns
    assert saved["arithmetic"].ns == pytest.approx(kernel - BOARD.node_overhead_ns)
    assert saved["bits"].ns == 0


# words


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_strongest_that_does_little_harm_is_found(damages: list[float]) -> None:
    strengths = tuple(Strength(20 - i, damage, 1.0, 1.0) for i, damage in enumerate(damages))
    easy = Bearing("width", "a", 32, None, strengths).easy
    little = [20 - i for i, damage in enumerate(damages) if damage < 0.01]
    assert (easy.value if easy else None) == (min(little) if little else None)


@given(st.floats(1e-6, 1e4))
@settings(max_examples=60, deadline=None)
def test_damage_in_few_characters_is_right_to_half_a_digit(damage: float) -> None:
    assert float(told.small(damage)) == pytest.approx(damage, rel=0.06 if damage >= 1e-3 else 0.51)
    assert len(told.small(damage)) <= 6


def test_the_sentence_says_by_how_much_and_what_to_do() -> None:
    found = Sensitivity((knob(damage=0.5), replace(knob(damage=0.1), site="b")), (), 100.0)
    said = facts_of(found)["summary"]
    assert "8-bit arithmetic there alone does a damage of 0.50, 5.0 times as much" in said
    assert "--leave '^a$'" in said
    mild = Sensitivity((knob(damage=0.001),), (), 100.0)
    assert facts_of(mild)["summary"].startswith("No site is hurt by 8-bit arithmetic: a minds it most")
    stored = Sensitivity((knob("bits", 0.2),), (), 100.0)
    assert "8-bit weights there alone" in facts_of(stored)["summary"]


def test_sites_are_sorted_by_what_they_bring() -> None:
    small, large = knob(damage=0.0), replace(knob(damage=0.0), site="b")
    large = replace(large, strengths=(Strength(8, 0.0, 50.0, 20.0),))
    hurt = replace(knob(damage=1.0), site="c")
    rows = facts_of(Sensitivity((small, large, hurt), (), 100.0))["sites"]
    assert [row["site"] for row in told.sort(rows, "gain")] == ["b", "a", "c"]
    assert [row["site"] for row in told.sort(rows, "harm")] == ["c", "a", "b"]
    assert told.sort(rows, "net") == rows


# page


def test_names_from_models_are_escaped() -> None:
    evil = '<script>alert("x")</script>\x1b[2J'
    text = told.page(facts_of(Sensitivity((replace(knob(), site=evil),), (), 100.0)))
    page = Page(text)
    assert_alone(page)
    assert '<script>alert("x")</script>' in page.text
    assert "http:" not in text
    assert "https:" not in text
    assert "\x1b" not in told.sentence(facts_of(Sensitivity((replace(knob(), site=evil),), (), 9.0))["sites"])


def test_cells_say_their_damage_and_lie_in_the_column_of_their_share() -> None:
    strengths = tuple(Strength(v, d, 5.0, 6.0) for v, d in ((48, 1e-4), (24, 0.02), (8, 2.0)))
    found = Sensitivity((Bearing("width", "a", 64, None, strengths),), (), 100.0)
    rows = facts_of(found)["sites"]
    assert heatmap.columns(rows) == [("width", 0.75), ("width", 0.125)]  # 24 of 64 is near neither ½ nor ¼
    cells = [
        attrs for tag, attrs in Page(told.page(facts_of(found))).tags if tag == "td" and "title" in attrs
    ]
    assert [cell["class"] for cell in cells] == ["l2", "l7"]
    assert "8 of 64: damage 2.0; saves in latency 5 ns 5.0 %, in size 6 B 0.1 %" in str(cells[1]["title"])


@given(st.floats(1e-9, 1e6), st.floats(1e-9, 1e6))
@settings(max_examples=40, deadline=None)
def test_more_damage_never_has_a_milder_colour(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert 0 <= heatmap.level(low) <= heatmap.level(high) <= len(heatmap.LEVELS)
    assert (heatmap.level(high) >= heatmap.level(LITTLE)) == (high >= LITTLE)


def test_numbers_can_be_read_on_every_colour_by_day_and_night_and_colours_without_hue() -> None:
    text = told.page(facts_of(Sensitivity((knob(),), (), 100.0)))
    by_day, night = text.split("prefers-color-scheme: dark")
    for style, rising in ((by_day, False), (night, True)):
        back, front = (
            [_luminance(re.search(rf"--{kind}{i}: (#\w+)", style)[1]) for i in range(len(heatmap.LEVELS) + 1)]  # type: ignore[index]
            for kind in "bt"
        )
        assert back == sorted(back, reverse=not rising)
        for one, two in zip(back, front, strict=True):
            assert (max(one, two) + 0.05) / (min(one, two) + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
