"""Schedules against their equations, random starts, and evolution against plain sorting."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.evolve import plain
from edgepress.compressor.evolve.layers import SparseLayer, start_sparse
from edgepress.compressor.evolve.schedules import Schedule
from edgepress.compressor.evolve.topology import (
    Topology,
    draw_free,
    erdos_renyi,
    largest,
    probability,
    weakest,
)

SHARES = st.floats(0, 0.9)
SIZES = st.integers(1, 40)


def layer_of(seed: int, inputs: int, outputs: int, epsilon: float = 1.5) -> SparseLayer:
    return start_sparse(inputs, outputs, epsilon, np.random.default_rng(seed), plain)


@given(SHARES, SHARES, st.floats(0, 4), SHARES, st.integers(1, 500), st.data())
def test_schedules_are_the_equations(
    zeta: float, low: float, kappa: float, interest: float, epochs: int, data: st.DataObject
) -> None:
    i = data.draw(st.integers(1, epochs))
    by_hand = {
        "set": zeta,
        "ldv": low + (zeta - low) * ((epochs - i) / epochs),
        "osv": (zeta + low) / 2
        + (zeta - low) / 2 * math.cos(2 * math.pi * i * (3 + 2 * kappa) / (2 * epochs)),
        "exd": zeta * (1 - interest) ** i,
        "fixprob": 0.0,
        "dense": 0.0,
    }
    for method, expected in by_hand.items():
        found = Schedule(method, zeta, low, kappa, interest).at(i, epochs)  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=1e-12)


def test_schedules_end_where_the_thesis_has_them_end() -> None:
    assert Schedule("ldv").at(500, 500) == pytest.approx(0.01)
    assert Schedule("osv").at(500, 500) == pytest.approx(0.01)  # κ = 1: two and a half periods
    assert Schedule("osv").at(200, 500) == pytest.approx(0.3)
    assert Schedule("exd").at(100, 500) == pytest.approx(0.3 * 0.99**100)


def test_probability_is_equation_3_1() -> None:
    assert probability(784, 1000, 20) == pytest.approx(20 * 1784 / 784_000)
    assert probability(1000, 10, 20) == 1.0


@given(st.integers(0, 2**32), SIZES, SIZES, st.floats(0.1, 5))
def test_random_start_is_sorted_and_inside(seed: int, inputs: int, outputs: int, epsilon: float) -> None:
    found = erdos_renyi(inputs, outputs, epsilon, np.random.default_rng(seed))
    assert (np.diff(found.keys) > 0).all()
    assert not len(found.keys) or (found.keys[0] >= 0 and found.keys[-1] < inputs * outputs)
    mask = np.zeros((inputs, outputs), bool)
    mask[found.sources, found.targets] = True
    starts, sources, order = found.by_output
    seen = np.repeat(np.arange(outputs), np.diff(starts))
    assert mask.sum() == found.connections == len(sources)
    assert mask[sources, seen].all()
    assert (found.sources[order] == sources).all()
    assert (found.targets[order] == seen).all()
    for chunks, end in ((found.output_chunks, outputs), (found.input_chunks, inputs)):
        assert chunks[0] == 0
        assert chunks[-1] == end
        assert (np.diff(chunks) >= 0).all()


def test_random_start_has_the_probability_of_3_1_everywhere() -> None:
    random, rounds = np.random.default_rng(1), 400
    seen = np.zeros((6, 9))
    for _ in range(rounds):
        found = erdos_renyi(6, 9, 0.9, random)
        seen[found.sources, found.targets] += 1
    p = probability(6, 9, 0.9)
    assert np.abs(seen / rounds - p).max() < 4.5 * math.sqrt(p * (1 - p) / rounds)


@given(st.integers(0, 2**32), st.integers(1, 200), st.data())
def test_draws_are_free_and_different(seed: int, total: int, data: st.DataObject) -> None:
    taken = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64)
    count = data.draw(st.integers(0, total - len(taken)))
    found = draw_free(taken, total, count, np.random.default_rng(seed))
    assert len(found) == count
    assert (np.diff(found) > 0).all()
    assert not set(found.tolist()) & set(taken.tolist())
    assert not count or (found[0] >= 0 and found[-1] < total)


@pytest.mark.parametrize("count", [3, 12])  # one at a time, and out of a list of all that are free
def test_draws_are_even(count: int) -> None:
    random, rounds = np.random.default_rng(0), 4000
    taken, seen = np.array([0, 7, 8], np.int64), np.zeros(20)
    for _ in range(rounds):
        seen[draw_free(taken, 20, count, random)] += 1
    free = np.setdiff1d(np.arange(20), taken)
    p = count / len(free)
    assert not seen[taken].any()
    assert np.abs(seen[free] / rounds - p).max() < 4.5 * math.sqrt(p * (1 - p) / rounds)


WEIGHTS = st.lists(st.floats(-1, 1, width=32), max_size=60)


@given(WEIGHTS, st.floats(0, 1))
def test_the_smallest_go(values: list[float], zeta: float) -> None:
    weights = np.array(values, np.float32)
    gone = weakest(weights, zeta)
    for side in (weights >= 0, weights < 0):
        went, stayed = np.abs(weights[side & gone]), np.abs(weights[side & ~gone])
        assert len(went) == int(zeta * side.sum())
        assert not len(went) or not len(stayed) or went.max() <= stayed.min()


@given(st.integers(0, 2**32), SIZES, SIZES, st.floats(0.2, 5), st.floats(0, 1), st.booleans())
def test_evolution_keeps_the_number_of_connections(
    seed: int, inputs: int, outputs: int, epsilon: float, zeta: float, regrow: bool
) -> None:
    layer = layer_of(seed, inputs, outputs, epsilon)
    layer.velocity += 1
    before = dict(zip(layer.topology.keys.tolist(), layer.weights.tolist(), strict=True))
    stays = dict(
        zip(
            layer.topology.keys[~weakest(layer.weights, zeta)].tolist(),
            layer.weights[~weakest(layer.weights, zeta)].tolist(),
            strict=True,
        )
    )
    went = layer.evolve(zeta, np.random.default_rng(seed), regrow)
    after = dict(zip(layer.topology.keys.tolist(), layer.weights.tolist(), strict=True))
    assert went == len(before) - len(stays)
    assert len(after) == (len(before) if regrow else len(stays)) == len(layer.velocity)
    assert all(after[key] == weight for key, weight in stays.items())
    assert (np.diff(layer.topology.keys) > 0).all()
    old = np.isin(layer.topology.keys, np.array(list(stays), np.int64))
    assert (layer.velocity[old] == 1).all()
    assert (layer.velocity[~old] == 0).all()


@given(st.integers(0, 2**32), SIZES, SIZES, st.floats(0.1, 3))
def test_the_largest_of_a_dense_layer_are_kept(seed: int, inputs: int, outputs: int, epsilon: float) -> None:
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)
    found = largest(weights, epsilon)
    assert found.connections == round(inputs * outputs * probability(inputs, outputs, epsilon))
    kept = np.zeros(weights.shape, bool)
    kept[found.sources, found.targets] = True
    if kept.any() and not kept.all():
        assert np.abs(weights[kept]).min() >= np.abs(weights[~kept]).max()


@settings(max_examples=20)
@given(st.integers(0, 2**32), SIZES, SIZES)
def test_keys_and_rows_are_two_ways_to_say_the_same(seed: int, inputs: int, outputs: int) -> None:
    topology = layer_of(seed, inputs, outputs).topology
    again = Topology.of(topology.keys, inputs, outputs)
    assert (again.starts == topology.starts).all()
    assert (again.targets == topology.targets).all()


def test_evolution_of_a_large_layer_needs_no_memory_for_the_whole() -> None:
    layer = layer_of(0, 100_000, 100_000, 0.5)  # 40 GB if it were dense
    assert abs(layer.connections - 100_000) < 2000
    assert layer.evolve(0.3, np.random.default_rng(0)) > 25_000
