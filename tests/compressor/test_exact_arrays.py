"""Associative arrays against dictionaries of keys, over three semirings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.compressor.exact.arrays import MAX_PLUS, MAX_TIMES, STANDARD, AssociativeArray, Semiring

Table = dict[tuple[str, str], float]
SEMIRINGS = st.sampled_from([STANDARD, MAX_PLUS, MAX_TIMES])
KEYS = st.sampled_from(["a", "b", "c", "d"])


def tables(least: int) -> st.SearchStrategy[Table]:
    return st.dictionaries(st.tuples(KEYS, KEYS), st.integers(least, 5).map(float), min_size=1, max_size=8)


@st.composite
def pairs(draw: Any) -> tuple[Semiring, Table, Table]:
    semiring = draw(SEMIRINGS)
    least = -5 if semiring is MAX_PLUS else 1
    return semiring, draw(tables(least)), draw(tables(least))


def array(table: Table, semiring: Semiring) -> AssociativeArray:
    rows, columns = zip(*table, strict=True)
    return AssociativeArray.of(rows, columns, list(table.values()), semiring)


def table(found: AssociativeArray) -> Table:
    i, j, values = found.entries()
    return {
        (str(found.rows[a]), str(found.columns[b])): float(v) for a, b, v in zip(i, j, values, strict=True)
    }


def summed(terms: list[tuple[tuple[str, str], float]], semiring: Semiring) -> Table:
    found: Table = {}
    for key, value in terms:
        found[key] = float(semiring.add(found[key], value)) if key in found else value
    return found


@given(pairs())
def test_addition_takes_the_keys_of_either(case: tuple[Semiring, Table, Table]) -> None:
    semiring, left, right = case
    found = table(array(left, semiring) + array(right, semiring))
    assert found == summed([*left.items(), *right.items()], semiring)


@given(pairs())
def test_multiplication_element_by_element_takes_common_keys(case: tuple[Semiring, Table, Table]) -> None:
    semiring, left, right = case
    found = table(array(left, semiring) * array(right, semiring))
    assert found == {
        key: float(semiring.multiply(left[key], right[key])) for key in left.keys() & right.keys()
    }


@given(pairs())
def test_products_add_over_common_keys(case: tuple[Semiring, Table, Table]) -> None:
    semiring, left, right = case
    terms = [
        ((row, column), float(semiring.multiply(left[row, inner], right[other, column])))
        for row, inner in left
        for other, column in right
        if inner == other
    ]
    assert table(array(left, semiring) @ array(right, semiring)) == summed(terms, semiring)


@given(pairs())
def test_kronecker_products_join_keys(case: tuple[Semiring, Table, Table]) -> None:
    semiring, left, right = case
    assert table(array(left, semiring).kron(array(right, semiring))) == {
        (a + c, b + d): float(semiring.multiply(x, y))
        for (a, b), x in left.items()
        for (c, d), y in right.items()
    }


@given(pairs(), tables(1))
def test_the_laws_of_appendix_a_hold(case: tuple[Semiring, Table, Table], third: Table) -> None:
    semiring, *first = case
    a, b, c = (array(each, semiring) for each in (*first, third))
    assert table((a + b) + c) == table(a + (b + c))
    assert table((a @ b) @ c) == table(a @ (b @ c))
    assert table(a @ (b + c)) == table((a @ b) + (a @ c))
    assert table((a @ b).T) == table(b.T @ a.T)
    keys = ["a", "b", "c", "d"]
    assert table(a @ AssociativeArray.of(keys, keys, semiring.one, semiring)) == table(a)


def test_what_is_not_stored_is_the_semirings_zero() -> None:
    found = array({("a", "x"): 1.0, ("b", "y"): 2.0}, MAX_PLUS).dense()
    assert found.tolist() == [[1.0, -np.inf], [-np.inf, 2.0]]


def test_the_zero_norm_makes_ones_of_what_is_not_zero() -> None:
    found = AssociativeArray.of(["a", "a", "b"], ["x", "y", "y"], [3.0, 0.0, -1.0]).norm0()
    assert table(found) == {("a", "x"): 1.0, ("b", "y"): 1.0}


def test_arrays_of_two_semirings_do_not_mix() -> None:
    a, b = array({("a", "a"): 1.0}, STANDARD), array({("a", "a"): 1.0}, MAX_PLUS)
    for mix in (lambda: a + b, lambda: a * b, lambda: a @ b, lambda: a.kron(b)):
        with pytest.raises(ValueError, match="two semirings"):
            mix()
