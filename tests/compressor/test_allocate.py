"""The path of ever smaller models: what it costs, what it hurts, and in which order."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracles
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.allocate import Descent, Knob, Layer, Weighing


def chain(seed: int, depth: int = 4) -> Descent:
    """A chain of dense layers with a width between each two, and a rank for some."""
    rng = np.random.default_rng(seed)
    widths = [int(w) * 4 for w in rng.integers(2, 12, depth + 1)]
    knobs = [knob(rng, "width", f"l{i}", widths[i + 1]) for i in range(depth - 1)]
    layers = []
    for i in range(depth):
        rank = -1
        if rng.random() < 0.5:
            rank = len(knobs)
            knobs.append(knob(rng, "rank", f"l{i}", min(widths[i], widths[i + 1])))
        out, into = (i if i < depth - 1 else -1), i - 1
        layers.append(
            Layer(f"l{i}", widths[i + 1], out, widths[i], into, 1.0 if into >= 0 else 0.0,
                  1.0 if out >= 0 else 0.0, int(rng.integers(1, 50)), 0, rank)
        )  # fmt: skip
    how = Weighing(float(rng.choice([0.7, 0.1])), 0.0, "int8" if rng.random() < 0.5 else "float", 4)
    how = Weighing(how.latency, 1 - how.latency, how.precision, 4)
    return Descent(layers, knobs, oracles.Board(), how, (500.0, 1000.0))


def knob(rng: np.random.Generator, kind: str, name: str, full: int) -> Knob:
    values = tuple(range(full - 4, 0, -4)) or (full // 2,)
    return Knob(kind, name, full, values, tuple(np.cumsum(rng.random(len(values)) + 1e-3).tolist()))


def total(descent: Descent, state: tuple[int, ...]) -> np.ndarray:
    return descent.costs(state, range(len(descent.layers))) + np.asarray(descent.fixed)


def objective(descent: Descent, state: tuple[int, ...]) -> float:
    ns, size = total(descent, state)
    return descent.how.latency * math.log(ns) + descent.how.size * math.log(size)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_each_step_turns_one_knob_down_gains_and_hurts_more(seed: int) -> None:
    descent = chain(seed)
    path = descent.path()
    assert path[0] == tuple(k.full for k in descent.knobs)
    assert descent.damage(path[0]) == 0
    for before, after in itertools.pairwise(path):
        turned = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert turned == [descent.turned(before, after)]
        assert after[turned[0]] < before[turned[0]]
        assert after[turned[0]] in descent.knobs[turned[0]].values
        assert objective(descent, after) < objective(descent, before)
        assert descent.damage(after) >= descent.damage(before)
    assert len(set(path)) == len(path)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_every_step_is_the_best_there_is(seed: int) -> None:
    descent = chain(seed, 3)
    path = descent.path()
    for before, after in itertools.pairwise(path):
        assert rate(descent, before, after) >= max(best_rates(descent, before)) * (1 - 1e-9)
    assert max(best_rates(descent, path[-1]), default=0.0) <= 0 or descent.step(path[-1]) is None


def rate(descent: Descent, before: tuple[int, ...], after: tuple[int, ...]) -> float:
    gain = objective(descent, before) - objective(descent, after)
    return gain / max(descent.damage(after) - descent.damage(before), 1e-12) if gain > 1e-6 else 0.0


def best_rates(descent: Descent, state: tuple[int, ...]) -> list[float]:
    return [
        rate(descent, state, (*state[:k], v, *state[k + 1 :]))
        for k, each in enumerate(descent.knobs)
        for v in each.values
        if v < state[k]
    ]


def test_frozen_knobs_stay() -> None:
    descent = chain(3)
    state = descent.path()[0]
    frozen: frozenset[int] = frozenset()
    while (following := descent.step(state, frozen)) is not None:
        turned = descent.turned(state, following)
        assert turned not in frozen
        frozen |= {turned}
    assert frozen
    assert descent.step(state, frozenset(range(len(descent.knobs)))) is None


def test_a_stride_is_so_many_steps_or_as_many_as_there_are() -> None:
    descent = chain(3)
    path = descent.path()
    assert descent.stride(path[0], 3) == path[3]
    assert descent.stride(path[2], 10**6) == path[-1]
    assert descent.stride(path[1], 0) == path[1]


def test_a_model_without_knobs_has_a_path_of_one() -> None:
    assert Descent((), (), oracles.Board(), Weighing(0.5, 0.5, "float", 4), (1.0, 1.0)).path() == [()]


def test_a_knob_that_gains_nothing_is_not_turned() -> None:
    """A width within the same lanes, where size does not count."""
    knob = Knob("width", "a", 8, (7, 6, 5), (0.1, 0.2, 0.3))
    layer = Layer("a", 8, 0, 16, -1, 0.0, 1.0, 1, 0, -1)
    board = oracles.Board(bytes_per_ns=1e12)
    assert Descent([layer], [knob], board, Weighing(1.0, 0.0, "float", 8), (0.0, 0.0)).path() == [(8,)]
    assert Descent([layer], [knob], board, Weighing(0.0, 1.0, "float", 8), (0.0, 0.0)).path() != [(8,)]


def test_rank_and_bits_of_one_site_do_not_add_up() -> None:
    rank = Knob("rank", "a", 32, (8, 4), (0.1, 0.3), rounded={4: (0.2, 0.5), 2: (3.0, 4.0)})
    bits = Knob("bits", "a", 8, (4, 2), (0.01, 0.02))
    layer = Layer("a", 64, -1, 64, -1, 0.0, 0.0, 1, 0, 0, 1)
    descent = Descent([layer], [rank, bits], oracles.Board(), Weighing(0.0, 1.0, "float", 4), (0.0, 0.0))
    said = {s: descent.damage(s) for s in ((32, 8), (8, 8), (32, 4), (8, 4), (4, 4), (4, 2))}
    assert list(said.values()) == [0.0, 0.1, 0.01, 0.2, 0.5, 4.0]
    assert descent.costs((32, 4), [0])[1] < 0.65 * descent.costs((32, 8), [0])[1]
    still = replace(descent, still=frozenset([1]))
    assert all(bits == 8 for _, bits in still.path())
    assert {bits for _, bits in descent.path()} == {8, 4, 2}


def test_a_split_layer_costs_two_and_a_depthwise_one_its_taps() -> None:
    board = oracles.Board(node_overhead_ns=0, bytes_per_ns=1e12, macs_per_ns_fp32=1.0)
    rank = Knob("rank", "a", 8, (2,), (0.1,))
    dense = Layer("a", 8, -1, 16, -1, 0.0, 0.0, 5, 0, 0)
    depthwise = Layer("b", 8, -1, 9, -1, 0.0, 0.0, 5, 9, -1)
    descent = Descent([dense, depthwise], [rank], board, Weighing(1.0, 0.0, "float", 1), (0.0, 0.0))
    np.testing.assert_allclose(descent.costs((8,), [0])[0], 5 * 8 * 16, rtol=1e-6)
    np.testing.assert_allclose(descent.costs((2,), [0])[0], 5 * (2 * 16 + 8 * 2), rtol=1e-6)
    np.testing.assert_allclose(descent.costs((8,), [1])[0], 5 * 8 * 9, rtol=1e-6)
