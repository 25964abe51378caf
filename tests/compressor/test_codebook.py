"""Codebooks against brute force, equal bins and a plain solve."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics import codebook, kmeans
from edgepress.compressor.numerics.codebook import (
    Books,
    codebooks,
    fit_scales,
    fit_values,
    keeps_zeros,
    refine,
)
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.rounding import row_errors
from edgepress.compressor.protocols import Matrix

seeds = st.integers(0, 10_000)
layouts = st.sampled_from([{}, {"per_row": True}, {"scaled": True}])


def error(values: Matrix, importance: Matrix, book: Matrix) -> float:
    """The weighted squared error of the nearest values, by trying all."""
    return float(np.square(values[:, None] - book[None, :]).min(axis=1) @ importance)


def least_error(values: Matrix, importance: Matrix, count: int) -> float:
    """That of the best clusters, by trying all cuts of the sorted values."""
    order = np.argsort(values)
    values, importance = values[order], importance[order]
    least = np.inf
    for cuts in itertools.combinations(range(1, len(values)), min(count, len(values)) - 1):
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, len(values))):
            mean = np.average(values[start:end], weights=importance[start:end])
            total += float(np.square(values[start:end] - mean) @ importance[start:end])
        least = min(least, total)
    return least


def shared(books: Books, codes: Matrix) -> Matrix:
    """The weights that codes [rows, n] stand for."""
    rows = np.broadcast_to(books.table, (len(codes), books.table.shape[1]))
    scales = np.ones(len(codes)) if books.scales is None else books.scales
    return np.take_along_axis(rows, codes.astype(int), axis=1) * scales[:, None]


def sample(seed: int, size: int, kind: int) -> tuple[Matrix, Matrix]:
    """Values of several distributions, with ties and outliers among them, and what they count."""
    rng = np.random.default_rng(seed)
    values = (
        rng.standard_normal(size), rng.laplace(size=size) ** 3, rng.integers(-5, 6, size) / 7.0,
        np.where(rng.random(size) < 0.8, 0.0, rng.standard_normal(size)), 1e6 + rng.random(size),
    )[kind]  # fmt: skip
    return values, rng.random(size) ** 3 + 1e-3


@given(seeds, st.integers(1, 9), st.integers(1, 6), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_few_weights_are_clustered_exactly(seed: int, size: int, count: int, kind: int) -> None:
    values, importance = sample(seed, size, kind)
    book = codebooks(values[None], count, importance).table[0]
    assert book.shape == (count,)
    assert (np.diff(book) >= 0).all()
    best = least_error(values, importance, count)
    scale = float(np.square(values - values.mean()) @ importance)
    assert error(values, importance, book) == pytest.approx(best, rel=1e-6, abs=1e-9 * scale + 1e-18)


@given(seeds, st.integers(600, 3000), st.sampled_from([1, 2, 3, 4, 7, 16, 64, 256]), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_many_weights_are_never_worse_than_in_equal_bins(seed: int, size: int, count: int, kind: int) -> None:
    values, importance = sample(seed, size, kind)
    book = codebooks(values[None], count, importance).table[0]
    low, high = values.min(), values.max()
    width = (high - low) / count
    for bins in (low + width * (np.arange(count) + 0.5), np.linspace(low, high, count)):
        assert error(values, importance, book) <= error(values, importance, bins) * (1 + 1e-9) + 1e-20


@pytest.mark.parametrize("count", [2, 4, 16, 32])
@pytest.mark.parametrize("kind", [0, 1])
def test_what_lloyd_finds_is_nearly_the_best(count: int, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, importance = sample(count, 900, kind)
    found = error(values, importance, codebooks(values[None], count, importance).table[0])
    monkeypatch.setattr(kmeans, "EXACT", 1000)
    best = error(values, importance, codebooks(values[None], count, importance).table[0])
    assert best <= found * (1 + 1e-9)
    assert found <= 1.08 * best


def test_a_sample_of_many_weights_is_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).standard_normal((50, 400)).astype(np.float32)
    importance = np.random.default_rng(1).random(400) + 0.1
    whole = codebooks(weights, 16, importance).error(weights, importance)
    monkeypatch.setattr(codebook, "SAMPLE", 4000)
    monkeypatch.setattr(codebook, "PIECE", 150)
    assert codebooks(weights, 16, importance).error(weights, importance) < 1.1 * whole


def test_weights_that_count_more_are_nearer() -> None:
    values, importance = np.concatenate([np.linspace(-1, 0, 600), np.linspace(0.1, 1, 600)]), np.ones(1200)
    importance[:600] = 1e4
    book = codebooks(values[None], 8, importance).table[0]
    assert (book < 0.05).sum() >= 6


@given(seeds, st.integers(1, 40), st.sampled_from([1, 2, 3, 5, 16, 200]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_codes_name_the_nearest_value(seed: int, rows: int, count: int, per_row: bool) -> None:
    rng = np.random.default_rng(seed)
    table = np.sort(rng.standard_normal((rows if per_row else 1, count)), axis=1)
    weights = rng.standard_normal((rows, 30))
    codes = Books(table).nearest(weights)
    away = np.abs(weights[:, :, None] - table[:, None, :])
    taken = np.take_along_axis(away, codes[:, :, None].astype(int), axis=2)[:, :, 0]
    np.testing.assert_allclose(taken, away.min(axis=2), atol=1e-12)


@given(seeds, st.integers(1, 6), st.integers(1, 12), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_values_are_those_of_a_plain_solve(
    seed: int, rows: int, width: int, count: int, per_row: bool
) -> None:
    rng = np.random.default_rng(seed)
    root, weights = rng.standard_normal((width, width + 2)), rng.standard_normal((rows, width))
    gram = root @ root.T + 0.1 * np.eye(width)
    codes = rng.integers(0, count, weights.shape).astype(np.uint8)
    books = Books(np.sort(rng.standard_normal((rows if per_row else 1, count)), axis=1))
    found, moved = fit_values(weights, gram, books, codes)
    assert (np.diff(found.table, axis=1) >= 0).all()
    ours = row_errors(
        weights - np.take_along_axis(np.broadcast_to(found.table, (rows, count)), moved.astype(int), 1), gram
    )
    half = np.linalg.cholesky(gram)
    for some in [[r] for r in range(rows)] if per_row else [list(range(rows))]:
        marks = np.stack([((codes[some] == code) @ half).reshape(-1) for code in range(count)], axis=1)
        target = (weights[some] @ half).reshape(-1)
        least = np.square(target - marks @ np.linalg.lstsq(marks, target, rcond=None)[0]).sum()
        assert ours[some].sum() == pytest.approx(least, rel=1e-5, abs=1e-8)


def moments(x: Matrix) -> Moments:
    found = Moments(x.shape[1], 0)
    found.update(x, np.zeros((len(x), 0)))
    return found


@given(seeds, st.integers(1, 5), st.integers(2, 40), st.integers(4, 300), layouts)
@settings(max_examples=50, deadline=None)
def test_outputs_never_move_more_than_before(
    seed: int, bits: int, width: int, rows: int, layout: dict[str, bool]
) -> None:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width))
    fit, held = (moments(rng.standard_normal((n, width)) @ mix + 1) for n in (rows, max(rows // 4, 2)))
    weights = (rng.standard_normal((7, width)) * rng.exponential(1, (7, 1)) ** 2).astype(np.float32)
    books = codebooks(weights, 2**bits, **layout)
    gram = (fit + held).centred()[0]

    def lost(some: Books, codes: Matrix) -> Matrix:
        errors = row_errors(weights - shared(some, codes), gram)
        return errors if layout.get("per_row") else errors.sum(keepdims=True)

    before = lost(books, books.nearest(weights))
    refined, codes = refine(weights, fit, held, books)
    assert (lost(refined, codes) <= before * (1 + 1e-9) + 1e-12).all()
    assert (np.diff(refined.table, axis=1) >= 0).all()


@given(seeds, st.integers(1, 5), st.integers(2, 40), st.floats(0.2, 1), layouts)
@settings(max_examples=50, deadline=None)
def test_what_was_pruned_stays_zero(
    seed: int, bits: int, width: int, share: float, layout: dict[str, bool]
) -> None:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width))
    fit, held = (moments(rng.standard_normal((n, width)) @ mix + 1) for n in (200, 50))
    weights = rng.standard_normal((7, width)).astype(np.float32)
    weights[rng.random(weights.shape) < share] = 0
    books = codebooks(weights, 2**bits, **layout, zero=True)
    before = shared(books, books.nearest(weights))
    refined, codes = refine(weights, fit, held, books)
    after = shared(refined, codes)
    assert (before[weights == 0] == 0).all()
    assert (after[weights == 0] == 0).all()
    assert (np.diff(refined.table, axis=1) >= 0).all()
    gram = (fit + held).centred()[0]
    lost, least = (row_errors(weights - w, gram).sum() for w in (after, before))
    assert lost <= least * (1 + 1e-9) + 1e-12


def test_zeros_do_not_cost_the_weights_that_are_left() -> None:
    """Errors that zeros would have taken up go to others: no worse than if there were no zeros to keep."""
    rng = np.random.default_rng(2)
    mix = rng.standard_normal((8, 64))
    x, unseen = (rng.standard_normal((2000, 8)) @ mix + 0.05 * rng.standard_normal((2000, 64)) for _ in "ab")
    weights = rng.standard_normal((16, 64))
    weights[rng.random(weights.shape) < 0.5] = 0
    books, gram = codebooks(weights, 8, zero=True), unseen.T @ unseen
    refined, codes = refine(weights, moments(x[:1600]), moments(x[1600:]), books)
    plain = row_errors(weights - shared(books, books.nearest(weights)), gram).sum()
    assert row_errors(weights - shared(refined, codes), gram).sum() < 0.15 * plain


def test_zeros_have_a_value_where_they_are_as_many_as_one_has() -> None:
    weights = np.ones((10, 16))
    for zeros, count, kept in (
        (10, 16, True),
        (9, 16, False),
        (79, 2, False),
        (80, 2, True),
        (0, 256, False),
    ):
        weights.reshape(-1)[:] = 1
        weights.reshape(-1)[:zeros] = 0
        assert keeps_zeros(weights, count) == kept
    assert (codebooks(np.zeros((3, 4)), 2, zero=True).table == 0).all()
    assert codebooks(np.full((3, 4), 0.5), 2, zero=True).table.tolist() == [[0, 0.5]]


@pytest.mark.parametrize("layout", [{}, {"per_row": True}, {"scaled": True}])
def test_correlated_inputs_make_much_good(layout: dict[str, bool]) -> None:
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((8, 64))
    x, unseen = (rng.standard_normal((2000, 8)) @ mix + 0.05 * rng.standard_normal((2000, 64)) for _ in "ab")
    weights = rng.standard_normal((16, 64))
    books = codebooks(weights, 8, **layout)
    refined, codes = refine(weights, moments(x[:1600]), moments(x[1600:]), books)
    gram = unseen.T @ unseen
    plain = row_errors(weights - shared(books, books.nearest(weights)), gram).sum()
    assert row_errors(weights - shared(refined, codes), gram).sum() < 0.15 * plain


@pytest.mark.parametrize("layout", [{}, {"per_row": True}, {"scaled": True}])
def test_few_rows_are_not_believed(layout: dict[str, bool]) -> None:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((256, 256)) / 16
    seen, held, others = (rng.standard_normal((n, 256)) @ mix for n in (60, 15, 4000))
    weights = rng.standard_normal((32, 256))
    books = codebooks(weights, 16, **layout)
    refined, codes = refine(weights, moments(seen), moments(held), books)
    gram = others.T @ others

    def lost(some: Books, which: Matrix) -> float:
        return float(row_errors(weights - shared(some, which), gram).sum())

    assert lost(refined, codes) < 1.05 * lost(books, books.nearest(weights))


def test_rows_of_other_sizes_have_scales() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 300)) * np.geomspace(1e-3, 1e3, 20)[:, None]
    weights[3] = 0
    errors = []
    for layout in ({}, {"scaled": True}, {"per_row": True}):
        books = codebooks(weights, 16, **layout)
        away = weights - shared(books, books.nearest(weights))
        errors.append(np.delete(np.linalg.norm(away, axis=1) / (np.linalg.norm(weights, axis=1) + 1e-9), 3))
        assert np.abs(away[3]).max() < (1e-2 if layout else 500)
    assert np.median(errors[0]) > 0.9
    assert errors[1].max() < 0.2
    assert errors[2].max() < 0.15
    few = rng.choice([-0.3, 0.0, 0.7], (20, 300))
    assert codebooks(few, 4, scaled=True).scales is None, "exact without"


@given(seeds, st.integers(1, 6), st.integers(2, 12), st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_scales_and_scaled_values_are_the_best(seed: int, rows: int, width: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    root, weights = rng.standard_normal((width, width + 2)), rng.standard_normal((rows, width))
    gram = root @ root.T + 0.1 * np.eye(width)
    books = codebooks(weights, count, scaled=True)
    if books.scales is None:
        return
    codes = books.nearest(weights)

    def lost(some: Books, which: Matrix) -> float:
        return float(row_errors(weights - shared(some, which), gram).sum())

    found, moved = fit_values(weights, gram, books, codes)
    least, rescaled = lost(found, moved), fit_scales(weights, gram, found, moved)
    assert least <= lost(books, codes) * (1 + 1e-9) + 1e-12
    assert lost(rescaled, moved) <= least * (1 + 1e-9) + 1e-12
    for sign in (-1, 1):
        other = found.table + sign * 1e-3 * rng.standard_normal(found.table.shape)
        assert lost(Books(other, found.scales), moved) >= least * (1 - 1e-9)
        inside = (rescaled.scales != found.scales)[:, None]
        near = np.where(inside[:, 0], rescaled.scales * (1 + sign * 1e-3), rescaled.scales)
        assert lost(Books(found.table, near), moved) >= lost(rescaled, moved) * (1 - 1e-9)


def test_equal_weights_and_constant_inputs_are_no_trouble() -> None:
    flat = moments(np.ones((50, 5)))
    for weights in (np.zeros((3, 5)), np.full((3, 5), 7.0), np.eye(5)):
        books = codebooks(weights, 4)
        refined, codes = refine(weights, flat, flat, books)
        np.testing.assert_allclose(refined.table[0][codes], weights, atol=1e-6)
