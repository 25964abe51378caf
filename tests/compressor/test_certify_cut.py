"""All signs at once behind two dense layers: never below what enumeration finds, and far below intervals."""

from dataclasses import replace
from itertools import product
from typing import Any

import models
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from certifynets import box_of, nudged, output
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify.choose import TIGHT, Task, choose
from edgepress.compressor.certify.cut import Cut, largest_singular, reach, tail_of
from edgepress.compressor.certify.difference import Aligned, change, joint
from edgepress.compressor.certify.intervals import UNIT32, Interval
from edgepress.compressor.certify.program import read
from edgepress.compressor.certify.swaps import stepped
from edgepress.compressor.normalize import normalize
from edgepress.compressor.sites import find_sites, replace_constant


def dense(act: str = "Relu", inputs: int = 12, hidden: int = 20, transposed: int = 1) -> ir.Model:
    """Dense, activation, dense."""
    shape = (hidden, inputs) if transposed else (inputs, hidden)
    body = f"h = Gemm <transB = {transposed}> (x, w0, b0) a = {act}(h) y = Gemm <transB = 1> (a, w, b)"
    kept = models.constants(1, w0=shape, b0=(hidden,), w=(3, hidden), b=(3,))
    return normalize(models.text(f"(float[N, {inputs}] x) => (float[N, 3] y)", body, kept)).model


def corners(box: Interval, count: int = 5000) -> npt.NDArray[Any]:
    """Some of them."""
    share = np.random.default_rng(4).integers(0, 2, (count, *box.shape[1:]))
    return np.asarray(box.lo + share * (box.hi - box.lo), np.float32)


def largest_by_enumeration(cut: Cut, k: int) -> float:
    """max over s in {−1, 1} and λ at its ends."""
    c = (cut.c if isinstance(cut.c, np.ndarray) else cut.c.toarray()) * cut.weights[k]
    signs = np.array(list(product((-1.0, 1.0), repeat=c.shape[0])))
    slopes = np.array(list(product((-1.0, 1.0), repeat=c.shape[1]))) * cut.half + cut.centre
    return float((signs @ c @ slopes.T).max())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.floats(0.05, 1.0))
def test_never_below_the_largest_of_all_signs(seed: int, into: int, hidden: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(into, hidden)) * (rng.random((into, hidden)) < share)
    ends = np.sort(rng.random((2, hidden)), 0) * rng.integers(0, 2, hidden)
    found = Cut.of(np.ones(into), c, (ends[0], ends[1]), rng.normal(size=(2, hidden)))
    for k in range(2):
        most = largest_by_enumeration(found, k)
        proved = found.proved(k, found.factors(k))
        assert most <= proved <= 1.8 * most + 1e-9  # Grothendieck's constant is below 1.783


def test_whatever_the_factors_are_the_bound_holds() -> None:
    rng = np.random.default_rng(3)
    found = Cut.of(np.ones(6), rng.normal(size=(6, 5)), (np.zeros(5), np.ones(5)), rng.normal(size=(1, 5)))
    bad = found.factors(0, rounds=1, start=np.abs(rng.normal(size=(6, 40))))
    assert found.proved(0, bad) >= largest_by_enumeration(found, 0)
    assert found.proved(0, found.factors(0, rounds=50)) < found.proved(0, bad)


@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-200, 1e-90, 1e150])
def test_inputs_that_hardly_move_or_move_far(size: float) -> None:
    moved = np.array([[1.0, -2.0], [0.5, 3.0]])
    found = Cut.of(np.full(2, size), moved, (np.zeros(2), np.ones(2)), np.ones((1, 2)))
    assert size * 5 <= found.proved(0, found.factors(0)) <= size * 6.6 + 1e-280


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30))
def test_norms_are_bounded_from_above_and_closely(seed: int, rows: int, columns: int) -> None:
    b = np.random.default_rng(seed).normal(size=(rows, columns)) * 10.0 ** (seed % 7 - 3)
    true = float(np.linalg.norm(b, 2))
    assert true <= largest_singular(b) <= true * (1 + 1e-5)


@pytest.mark.parametrize("act", ["Relu", "Sigmoid", "Tanh", "LeakyRelu"])
@pytest.mark.parametrize("unit", [0.0, UNIT32])
def test_no_input_moves_an_output_farther(act: str, unit: float) -> None:
    model = dense(act)
    other = nudged(model)
    original, changed, box = read(model), read(other), box_of(model)
    tail = tail_of(original, changed, "y")
    assert tail is not None
    found = reach(tail, joint(Aligned(original, changed), box, unit), unit)
    assert found is not None
    x = corners(box)
    moved = output(other, x) - output(model, x)
    room = 0.0 if unit else 1e-5  # what onnxruntime rounds
    assert (found.lo - room <= moved.min(0)).all()
    assert (moved.max(0) <= found.hi + room).all()


def test_narrower_than_linear_forms() -> None:
    model = dense(inputs=40, hidden=60)
    other = model.clone()
    site = find_sites(other)[0]
    some = np.random.default_rng(2).random(site.weight.shape) < 0.2
    replace_constant(site.node, 1, np.where(some, 0, site.weight).astype(np.float32))
    both = Aligned(read(model), read(other))
    forms, signs = (change(both, box_of(model), signs=on)[0].magnitude for on in (False, True))
    assert (signs < 0.8 * forms).all()


@pytest.mark.parametrize("transposed", [0, 1])
def test_more_weights_go_where_they_are_exchanged(transposed: int) -> None:
    model = dense(inputs=40, hidden=60, transposed=transposed)
    program, box, limit = read(model), box_of(model), np.full(3, 2.0)
    counts = []
    for method in (replace(TIGHT, exchanged=False), TIGHT):
        task = Task(program, box, program.ranges(box), limit, method)
        found = choose(task, np.random.default_rng(0))
        assert (found.change.magnitude <= limit).all()
        counts.append(found.count)
        assert sum(int(mask.sum()) for mask in found.gone.values()) == found.count
    assert counts[1] > counts[0]


def test_a_step_exchanges_what_pays_and_grows_while_there_is_room() -> None:
    state = np.array([True] * 50 + [False] * 50)
    linear = np.concatenate([np.full(49, 1.0), [9.0], [0.1], np.full(49, 5.0)])
    after = stepped(state, linear, np.zeros(100), used=1.0, share=0.05)
    assert after.sum() == 50
    assert np.flatnonzero(after != state).tolist() == [49, 50]
    assert stepped(state, linear, np.zeros(100), used=0.5, share=0.05).sum() == 51
    assert stepped(state, linear, np.zeros(100), used=1.5, share=0.05).sum() == 49


@pytest.mark.parametrize(("rows", "shift"), [((0,), 0.0), ((0, 1, 2), 0.0), ((), 1e3)])
def test_outputs_that_nothing_reaches_and_neurons_that_never_bend(
    rows: tuple[int, ...], shift: float
) -> None:
    """Every weight may go where no output is left, and no division by zero is heard of."""
    model = dense(inputs=40, hidden=60)
    first, site = find_sites(model)
    replace_constant(first.node, 2, np.full(60, shift, np.float32))
    weight = site.weight.copy()
    weight[list(rows)] = 0.0
    replace_constant(site.node, 1, weight)
    program, box = read(model), box_of(model)
    task = Task(program, box, program.ranges(box), np.full(3, 2.0), TIGHT)
    found = choose(task, np.random.default_rng(0))
    assert (found.change.magnitude <= 2.0).all()
    if len(rows) == 3:
        assert found.gone[program.steps[0].output].all()
    else:
        assert found.count > 0
