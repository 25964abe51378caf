"""Associative arrays: keys × keys → values of a semiring, as scipy.sparse matrices (Kepner et al. 2018, appendix A).

    A = 𝔸(k₁, k₂, v)     C = A ⊕ B     C = A ⊗ B     C = A B = A ⊕.⊗ B     Aᵀ     A ⊗ B (Kronecker)

What is not stored is the semiring's 0. Keys are sorted and unique; two arrays meet at equal keys, so nobody counts
neurons: networks are put together by their labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Keys = npt.NDArray[Any]
Triples = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Semiring:
    """Two operations of which the second distributes over the first.

    Attributes:
        add: ⊕, a ufunc.
        multiply: ⊗, a ufunc.
        zero: identity of ⊕, and what ⊗ makes 0 of anything.
        one: identity of ⊗.
    """

    add: np.ufunc
    multiply: np.ufunc
    zero: float
    one: float


STANDARD = Semiring(np.add, np.multiply, 0.0, 1.0)
"""S₁ of the document: (ℝ, +, ×, 0, 1)."""

MAX_PLUS = Semiring(np.maximum, np.add, -np.inf, 0.0)
"""S₂: ({−∞} ∪ ℝ, max, +, −∞, 0)."""

MAX_TIMES = Semiring(np.maximum, np.multiply, 0.0, 1.0)
"""Of values not below 0: sums of ones stay ones."""


@dataclass(frozen=True, eq=False)
class AssociativeArray:
    """A sparse matrix whose rows and columns have names.

    Attributes:
        rows: sorted, unique keys, [m].
        columns: likewise, [n].
        matrix: [m, n], canonical; stored entries alone have a value.
        semiring: that the values belong to.
    """

    rows: Keys
    columns: Keys
    matrix: sp.csr_array
    semiring: Semiring = STANDARD

    @classmethod
    def of(cls, rows: Any, columns: Any, values: Any, semiring: Semiring = STANDARD) -> Self:
        """𝔸(k₁, k₂, v); what stands at one place twice is added up by ⊕.

        Args:
            rows: a key an entry, [k].
            columns: likewise.
            values: [k], or one value for all.
            semiring: that they belong to.
        """
        row_keys, i = np.unique(np.asarray(rows), return_inverse=True)
        column_keys, j = np.unique(np.asarray(columns), return_inverse=True)
        entries = np.broadcast_to(np.asarray(values, np.float64), i.shape)
        return cls(
            row_keys,
            column_keys,
            _matrix((i, j, entries), (len(row_keys), len(column_keys)), semiring),
            semiring,
        )

    @classmethod
    def identity(cls, rows: Sequence[str], columns: Sequence[str] | None = None) -> Self:
        """𝕀(k₁, k₂): ones at the pairs of keys, once where a pair comes twice; 𝕀(k) = 𝕀(k, k)."""
        pairs = cls.of(rows, rows if columns is None else columns, 1.0, MAX_TIMES)
        return cls(pairs.rows, pairs.columns, pairs.matrix)

    @classmethod
    def ones(cls, rows: Sequence[str]) -> Self:
        """𝟏(k): a column of ones, whose key is empty."""
        return cls.of(rows, np.full(len(rows), ""), 1.0)

    @property
    def T(self) -> "AssociativeArray":  # noqa: N802  as numpy has it
        """The transpose."""
        return AssociativeArray(self.columns, self.rows, self.matrix.T.tocsr(), self.semiring)

    def over(self, semiring: Semiring) -> "AssociativeArray":
        """The same stored values in another semiring; what is not stored becomes its 0."""
        return AssociativeArray(self.rows, self.columns, self.matrix, semiring)

    def norm0(self) -> "AssociativeArray":
        """|A|₀: 1 wherever something other than the semiring's 0 is stored."""
        i, j, values = _triples(self.matrix)
        kept = values != self.semiring.zero
        ones = np.full(int(kept.sum()), self.semiring.one)
        matrix = _matrix((i[kept], j[kept], ones), self.matrix.shape, self.semiring)
        return AssociativeArray(self.rows, self.columns, matrix, self.semiring)

    def __add__(self, other: "AssociativeArray") -> "AssociativeArray":
        """A ⊕ B, at the keys of either."""
        self._same(other)
        rows, columns = np.union1d(self.rows, other.rows), np.union1d(self.columns, other.columns)
        parts = [_triples(each.placed(rows, columns)) for each in (self, other)]
        i, j, values = (np.concatenate(both) for both in zip(*parts, strict=True))
        matrix = _matrix((i, j, values), (len(rows), len(columns)), self.semiring)
        return AssociativeArray(rows, columns, matrix, self.semiring)

    def __mul__(self, other: "AssociativeArray") -> "AssociativeArray":
        """A ⊗ B, element by element, at the keys of either."""
        self._same(other)
        rows, columns = np.union1d(self.rows, other.rows), np.union1d(self.columns, other.columns)
        (i, j, left), (k, n, right) = (_triples(each.placed(rows, columns)) for each in (self, other))
        _, here, there = np.intersect1d(
            i * len(columns) + j, k * len(columns) + n, assume_unique=True, return_indices=True
        )
        values = self.semiring.multiply(left[here], right[there])
        matrix = _matrix((i[here], j[here], values), (len(rows), len(columns)), self.semiring)
        return AssociativeArray(rows, columns, matrix, self.semiring)

    def __matmul__(self, other: "AssociativeArray") -> "AssociativeArray":
        """A B: ⊕ over the common keys of A(k₁, k) ⊗ B(k, k₂)."""
        self._same(other)
        inner = np.union1d(self.columns, other.rows)
        left, right = self.placed(self.rows, inner), other.placed(inner, other.columns)
        matrix = left @ right if self.semiring is STANDARD else _product(left, right, self.semiring)
        return AssociativeArray(self.rows, other.columns, matrix, self.semiring)

    def kron(self, other: "AssociativeArray") -> "AssociativeArray":
        """The Kronecker product C(k₁k₃, k₂k₄) = A(k₁, k₂) ⊗ B(k₃, k₄); keys are texts, put one behind the other."""
        self._same(other)
        (i, j, left), (k, n, right) = _triples(self.matrix), _triples(other.matrix)
        first, second = (each.ravel() for each in np.indices((len(left), len(right))))
        return AssociativeArray.of(
            np.char.add(self.rows[i[first]], other.rows[k[second]]),
            np.char.add(self.columns[j[first]], other.columns[n[second]]),
            self.semiring.multiply(left[first], right[second]),
            self.semiring,
        )

    def entries(self) -> Triples:
        """Places of the rows, places of the columns, values: of what is stored, [k] each."""
        return _triples(self.matrix)

    def dense(self) -> npt.NDArray[np.float64]:
        """All values, [m, n], with the semiring's 0 where none is stored."""
        found = np.full(self.matrix.shape, self.semiring.zero)
        i, j, values = _triples(self.matrix)
        found[i, j] = values
        return found

    def placed(self, rows: Keys, columns: Keys) -> sp.csr_array:
        """The matrix over more keys, which hold all of its own; sorted."""
        i, j, values = _triples(self.matrix)
        i, j = np.searchsorted(rows, self.rows)[i], np.searchsorted(columns, self.columns)[j]
        return sp.csr_array((values, (i, j)), shape=(len(rows), len(columns)))

    def _same(self, other: "AssociativeArray") -> None:
        if self.semiring is not other.semiring:
            raise ValueError("associative arrays of two semirings do not mix; see `over`")


def _triples(matrix: sp.csr_array) -> Triples:
    coo = matrix.tocoo()
    return coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data


def _matrix(entries: Triples, shape: tuple[int, int], semiring: Semiring) -> sp.csr_array:
    """Entries as a canonical matrix; those at one place are added up by ⊕."""
    i, j, values = entries
    places = i * shape[1] + j
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    values = semiring.add.reduceat(values, starts) if len(starts) else values
    i, j = np.divmod(places[starts], max(shape[1], 1))
    return sp.csr_array((values, (i, j)), shape=shape)


def _product(left: sp.csr_array, right: sp.csr_array, semiring: Semiring) -> sp.csr_array:
    """Left ⊕.⊗ right: every stored pair is written out, then added up. Memory grows with the pairs."""
    i, k, values = _triples(left)
    counts = np.diff(right.indptr)[k]
    total = int(counts.sum())
    # For each entry of `left`, the entries of the row of `right` that it meets.
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    meets = np.repeat(right.indptr[k], counts) + within
    pairs = semiring.multiply(np.repeat(values, counts), right.data[meets])
    places = (np.repeat(i, counts), right.indices[meets].astype(np.int64), pairs)
    return _matrix(places, (left.shape[0], right.shape[1]), semiring)
