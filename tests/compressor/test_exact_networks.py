"""Exact networks: every construction answers the identity, and categories are lost just where the formula says."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.errors import DataError
from edgepress.compressor.exact import constructions, known
from edgepress.compressor.exact.arrays import MAX_TIMES, AssociativeArray
from edgepress.compressor.exact.constructions import combinatoric, deep, from_images, selective, words
from edgepress.compressor.exact.networks import ExactNet, collapsed_step, forward, infer, step
from edgepress.compressor.exact.perturb import betas_for, clean_answer, detected, false_alarm, thresholds

SETS = [[f"{place}{letter}" for letter in "ab"] for place in range(1, 5)]


def dense(net: ExactNet, y: npt.NDArray[np.float64], betas: list[float]) -> npt.NDArray[np.float64]:
    """The document's h(W Y + B), written out; y is [samples, features]."""
    for weight, beta in zip(net.weights, betas, strict=True):
        w = weight.toarray()
        y = np.maximum(y @ w.T + beta * (w.sum(axis=1) > 0) - w.sum(axis=1), 0)
    return y


def identity_comes_out(net: ExactNet) -> None:
    found = forward(net, net.supports().T)[-1]
    assert (found.toarray() == np.eye(net.weights[-1].shape[0])).all()


@pytest.mark.parametrize("each", list(known.WINDOWS))
def test_words_of_every_length_and_depth_are_told_apart(each: tuple[int, int]) -> None:
    net = words(*each)
    assert len(net.weights) == each[1]
    assert list(net.labels[-1]) == list(known.WORDS[each[0]])
    identity_comes_out(net)


def test_two_letter_words_are_those_of_the_document() -> None:
    net = words(2, 1)
    assert net.weights[0].shape == (37, 16 + 17)
    columns = dict(zip(net.labels[0], range(33), strict=True))
    row = net.weights[0].toarray()[list(net.labels[-1]).index("us")]
    assert set(np.flatnonzero(row)) == {columns["1u"], columns["2s"]}


def test_the_two_layers_of_figure_5_collapse_to_its_single_layer() -> None:
    two, one = combinatoric(SETS), combinatoric(SETS, deep=False)
    identity_comes_out(two)
    identity_comes_out(one)
    first, second = (
        AssociativeArray(np.array(rows), np.array(columns), weight, MAX_TIMES)
        for rows, columns, weight in zip(two.labels[1:], two.labels, two.weights, strict=False)
    )
    together = second @ first
    assert list(together.rows) == list(one.labels[1])
    assert (together.dense() == one.weights[0].toarray()).all()


@given(st.lists(st.integers(1, 3), min_size=2, max_size=5), st.booleans())
@settings(deadline=None, max_examples=25)
def test_the_combinatoric_construction_is_the_selective_one_of_all_combinations(
    sizes: list[int], tall: bool
) -> None:
    sets = [[f"{place}{letter}" for letter in "abc"[:size]] for place, size in enumerate(sizes)]
    net = combinatoric(sets, deep=tall)
    identity_comes_out(net)
    assert list(net.labels[-1]) == sorted("".join(each) for each in product(*sets))


@st.composite
def nets(draw: st.DrawFn) -> ExactNet:
    """Random categories under windows that may stand, grow or split."""
    letters = draw(st.integers(2, 4))
    layers = draw(st.integers(1, 3))
    shape = st.text(alphabet="abc", min_size=letters, max_size=letters)
    categories = draw(st.lists(shape, min_size=2, max_size=8, unique=True))
    return selective("drawn", [[*each] for each in categories], known.WINDOWS[letters, layers])


@given(nets(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_sparse_steps_are_the_dense_formula(net: ExactNet, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, (6, net.weights[0].shape[1])) / 4
    betas = list(rng.integers(1, 5, len(net.weights)) / 4)
    found = forward(net, y.T, betas)[-1].toarray().T
    assert (found == dense(net, y, betas)).all()


def entries(array: AssociativeArray) -> dict[tuple[str, str], float]:
    rows, columns, values = array.entries()
    return {
        (array.rows[a], array.columns[b]): float(v) for a, b, v in zip(rows, columns, values, strict=True)
    }


def test_a_network_collapsed_over_numbers_is_the_same() -> None:
    net = deep(12, 6)
    weights, biases = net.collapsed(named=False)
    own = net.supports().T.tocoo()
    found = infer(weights, biases, AssociativeArray.of(own.row, own.col, own.data), len(net.weights))
    rows, columns, values = found.entries()
    assert (rows - rows.min()).tolist() == columns.tolist() == list(range(12))
    assert (values == 1).all()


@given(nets(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_the_collapsed_arrays_give_what_the_layers_give(net: ExactNet, seed: int) -> None:
    y = np.random.default_rng(seed).integers(0, 3, (net.weights[0].shape[1], 4)) / 2
    weights, biases = net.collapsed()
    i, j = np.nonzero(y)
    samples = AssociativeArray.of([f"0|{net.labels[0][at]}" for at in i], [str(at) for at in j], y[i, j])
    last, first = len(net.weights), samples
    for _ in net.weights:
        samples = collapsed_step(weights, biases, samples)
    got = entries(samples)
    assert entries(infer(weights, biases, first, last)) == got
    expected = forward(net, y)[-1].tocoo()
    assert got == {
        (f"{last}|{net.labels[-1][a]}", str(b)): v
        for a, b, v in zip(expected.row, expected.col, expected.data, strict=True)
    }


@given(nets(), st.sampled_from([16, 64, 255]))
@settings(deadline=None, max_examples=30)
def test_categories_are_lost_where_the_formula_says_and_none_is_taken_for_another(
    net: ExactNet, steps: int
) -> None:
    betas = betas_for(len(net.weights), steps)
    own = net.supports().toarray()
    limits = thresholds(net, betas).tocoo()
    for c, f, limit in zip(limits.row, limits.col, limits.data, strict=True):
        r = np.array([0, limit / 2, limit - 1e-6, limit + 1e-6, 1, 1.5, 2])
        r = r[(r >= 0) & (r <= 2)]
        rows = np.repeat(own[c : c + 1], len(r), axis=0)
        rows[:, f] = r
        answers = dense(net, rows, betas)
        assert (detected(answers, c) == (r > limit)).all()
        assert not false_alarm(answers, c).any()


def test_thresholds_are_those_of_figure_10() -> None:
    shallow = selective("three letters", ["cat", "can", "car", "bat"], known.WINDOWS[3, 1])
    assert thresholds(shallow, [0.25]).data == pytest.approx(0.75)
    # f in one of the two neurons below: 1 − (2 · 0.8 + 1 − 2) = 0.4
    tall = selective("four letters", ["cats", "cart", "bats"], known.WINDOWS[4, 2])
    assert thresholds(tall, [0.8, 1.0]).data == pytest.approx(0.4)


def test_beta_that_leaves_no_gap_is_refused() -> None:
    net = words(4, 3, 5)
    assert (clean_answer(net, [0.5, 1.0, 1.0]) <= 0).all()
    with pytest.raises(ValueError, match="leaves nothing"):
        thresholds(net, [0.5, 1.0, 1.0])


def test_a_false_alarm_is_seen() -> None:
    answers = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.2], [0.0, 0.0]])
    assert detected(answers, 0).tolist() == [True, False, False, False]
    assert false_alarm(answers, 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("betas", [[0.0], [1.5], [1.0, 1.0]])
def test_betas_outside_of_their_range_are_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="β must be"):
        words(2, 1, 3).biases(betas)


def test_windows_that_do_not_follow_are_refused() -> None:
    with pytest.raises(ValueError, match="put together"):
        selective("x", ["abc", "abd"], (((0,), (1, 2)), ((0, 1),), ((0, 1, 2),)))
    with pytest.raises(ValueError, match="must differ"):
        selective("x", ["ab", "ab"], known.WINDOWS[2, 1])


def test_drawn_digits_are_told_apart_and_an_image_that_holds_another_is_left_out() -> None:
    net = from_images("digits", known.digits())
    identity_comes_out(net)
    assert net.weights[0].shape[0] == 10
    smaller = known.digits()
    smaller[3] = smaller[8]
    smaller[3, :8] = 0
    assert from_images("digits", smaller).weights[0].shape[0] == 9


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_any_images_make_an_exact_network(seed: int) -> None:
    rng = np.random.default_rng(seed)
    identity_comes_out(from_images("noise", rng.random((6, 28, 28)) ** rng.integers(1, 40)))


@pytest.mark.parametrize("shape", [(3, 20, 28), (3, 784), (2, 28, 28)])
def test_images_that_do_not_do_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        from_images("x", np.zeros(shape))


def test_a_deep_network_is_exact_and_as_large_as_asked_for() -> None:
    net = deep(30, 40)
    assert len(net.weights) == 40
    assert net.connections > net.neurons > 20000
    identity_comes_out(net)
    assert net.labels[-1][0] != net.labels[-1][1]


def test_a_step_keeps_nothing_that_is_zero() -> None:
    weight = sp.csr_array(np.array([[1.0, 1.0], [1.0, 0.0]]))
    found = step(weight, np.array([-1.0, -1.0]), sp.csr_array(np.array([[1.0, 0.5], [0.0, 1.0]])))
    assert found.nnz == 1
    assert found.toarray().tolist() == [[0.0, 0.5], [0.0, 0.0]]


def test_labels_are_made_of_places_and_letters() -> None:
    net = constructions.words(4, 3, 5)
    assert len(net.labels[1]) == net.weights[0].shape[0]
    assert net.labels[1][0] == f"1{net.labels[-1][0][0]}2{net.labels[-1][0][1]}" == "1a2b"
    with pytest.raises(IndexError):
        net.labels[1][len(net.labels[1])]
