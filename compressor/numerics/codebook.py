r"""Weights as indices into a codebook: few values that many weights share (Han et al. 2016; Çallı 2017 §1.3.2).

Without a look at the inputs, the codebook is that of k-means (numerics/kmeans.py). With G = E[x xᵀ] of the inputs,
errors on the outputs count instead, tr((W − Ŵ) G (W − Ŵ)ᵀ). Two steps take turns: codes column by column, each error
made good by the columns after it (numerics/rounding.py), and the values that are best for these codes. The latter is
least squares, A b = r with

    A_lm = Σ_o m_lo G m_moᵀ,   r_l = Σ_o m_lo G w_oᵀ,   m_lo marks the weights of row o whose code is l

solved by conjugate gradients: a step costs one product with G, and A is never formed. Rows may have a scale each on
one codebook: of rows that differ in size alone it makes as much as codebooks of their own, for one number a row.

Weights that were pruned stay zero: where there are enough zeros, one value of the codebook is exactly zero, it is not
fitted, and what the weights on it should have made good goes on to the columns after them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgepress.compressor.numerics.factors import ridge, row_errors
from edgepress.compressor.numerics.grids import Array
from edgepress.compressor.numerics.kmeans import equal_bins, kmeans
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.masks import Mask
from edgepress.compressor.numerics.rounding import best_damping, levels_at, nearest_codes, round_among
from edgepress.compressor.protocols import Matrix

Codes = npt.NDArray[np.uint8]

SAMPLE = 1 << 22
"""Of more weights that share a codebook so many are looked at, drawn at random: the sums over all would take ten times
the memory of the weights."""

PIECE = 1 << 20
"""Weights that are looked up together."""

ROUNDS = 4
"""How often codes and values take turns: after that the error hardly falls."""

LITTLE = 1e-3
"""A round that lowers the error by a smaller share is the last."""

TINY = 1e-6
"""Share of the largest scale that is the least: zeros divided by it, and what becomes of them, do no harm."""

STEPS = 16
"""Most steps of conjugate gradients."""

ROWS = 1024
"""Rows of weights that are multiplied by G together."""


@dataclass(frozen=True)
class Books:
    """Codebooks, one for all rows of a matrix or one for each; they are `rounding.Levels`.

    Attributes:
        table: values, rising in each row [1 or rows, count].
        scales: of the rows, above zero, on one codebook [rows]; None for ones.
    """

    table: Matrix
    scales: Matrix | None = None

    @cached_property
    def _middles(self) -> Matrix:
        """Between neighbours, infinite behind the last; a power of two less one in each row."""
        count = self.table.shape[1]
        width = (1 << max(count - 1, 1).bit_length()) - 1
        middles: Matrix = np.full((len(self.table), width), np.inf)
        middles[:, : count - 1] = self.table[:, :-1] / 2 + self.table[:, 1:] / 2
        return middles

    def part(self, rows: slice) -> "Books":
        """The codebooks of some rows."""
        if self.scales is not None:
            return Books(self.table, self.scales[rows])
        return self if len(self.table) == 1 else Books(self.table[rows])

    def codes(self, x: Matrix, column: int | None = None) -> Matrix:
        """Indices, as floats, of the values nearest to X [..., rows]: a binary search in all rows at once."""
        middles = self._middles
        if len(middles) == 1:
            ratio = x if self.scales is None else x / self.scales
            return np.searchsorted(middles[0], ratio).astype(np.float64)
        at, row = np.zeros(x.shape, np.intp), np.arange(len(middles)) * middles.shape[1]
        flat, step = middles.reshape(-1), (middles.shape[1] + 1) // 2
        while step:
            at += step * (x > flat[row + at + (step - 1)])
            step //= 2
        codes: Matrix = at.astype(np.float64)
        return codes

    def values(self, codes: Array, column: int | None = None) -> Matrix:
        """The values that codes [..., rows] stand for."""
        found: Matrix = self.table[np.arange(len(self.table)), codes.astype(np.intp)]
        return found if self.scales is None else found * self.scales

    def nearest(self, weights: Array) -> Codes:
        """Codes of the values nearest to W [rows, n]."""
        codes = np.empty(weights.shape, np.uint8)
        for piece in _pieces(weights.shape):
            codes[piece] = nearest_codes(weights[piece], self.part(piece[0]))
        return codes

    def error(self, weights: Array, importance: Matrix) -> float:
        """Squared distances of W [rows, n] from the nearest values, times what each counts [n], summed."""
        total = 0.0
        for piece in _pieces(weights.shape):
            some, books = weights[piece].astype(np.float64), self.part(piece[0])
            change = some - levels_at(nearest_codes(some, books), books)
            total += float((np.square(change) @ importance[piece[1]]).sum())
        return total


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """A matrix cut into parts of at most `PIECE` elements."""
    across = max(1, min(shape[1], PIECE))
    down = max(1, PIECE // across)
    for start in range(0, shape[0], down):
        for left in range(0, shape[1], across):
            yield slice(start, start + down), slice(left, left + across)


def codebooks(
    weights: Array,
    count: int,
    importance: Matrix | None = None,
    *,
    per_row: bool = False,
    scaled: bool = False,
    zero: bool = False,
) -> Books:
    """The codebooks with the least squared error, or nearly; never more than that of equal bins.

    Args:
        weights: W [rows, n], finite.
        count: values in a codebook, 1 to 256; where there are fewer different weights the last value is repeated.
        importance: what an error in each column counts [n], above zero; None for alike.
        per_row: a codebook for each row rather than one for all.
        scaled: a scale for each row where that makes the error smaller.
        zero: one value is exactly zero; the bound then holds for the others, and the weights that are not zero.
    """
    columns = np.ones(weights.shape[1]) if importance is None else importance
    if per_row:
        each = [_one_book(row[None], count, columns, None, zero=zero).table for row in weights]
        return Books(np.concatenate(each))
    tries = [_one_book(weights, count, columns, None, zero=zero)]
    if scaled:
        sizes = np.concatenate(
            [np.square(weights[p].astype(np.float64)) @ columns for p in _row_parts(len(weights))]
        )
        scales = np.sqrt(sizes / columns.sum())
        scales = np.maximum(scales, TINY * scales.max(initial=0.0) or 1.0)
        tries.append(_one_book(weights, count, columns, scales, zero=zero))
    return tries[0] if len(tries) == 1 else min(tries, key=lambda books: books.error(weights, columns))


def keeps_zeros(weights: Array, count: int) -> bool:
    """Whether zeros are so many that one value of a codebook is theirs: as many as a value has on average.

    Of fewer, one of 16 say, a value of their own would cost the others more than a few zeros are worth.

    Args:
        weights: W, of any shape.
        count: values in a codebook.
    """
    return (weights.size - int(np.count_nonzero(weights))) * count >= max(weights.size, 1)


def _one_book(weights: Array, count: int, columns: Matrix, scales: Matrix | None, *, zero: bool) -> Books:
    """A codebook for all rows, given their scales, of many weights for a sample."""
    each = np.ones(len(weights)) if scales is None else scales
    if weights.size <= SAMPLE:
        importance = np.square(each)[:, None] * columns
        values = (weights / each[:, None]).reshape(-1)
        return Books(_values(values, importance.reshape(-1), count, zero=zero)[None], scales)
    drawn = np.random.default_rng(0).integers(0, weights.size, SAMPLE)
    row, column = np.divmod(drawn, weights.shape[1])
    values, importance = weights.reshape(-1)[drawn] / each[row], np.square(each)[row] * columns[column]
    found = Books(_values(values, importance, count, zero=zero)[None], scales)
    if zero:
        return found
    low, high = (float((ends / each).min()) for ends in (weights.min(axis=1), -weights.max(axis=1)))
    bins = Books(equal_bins(low, -high, count)[None], scales)
    return min(found, bins, key=lambda books: books.error(weights, columns))


def _values(values: Array, importance: Matrix, count: int, *, zero: bool) -> Matrix:
    """A codebook [count] of numbers [n] that count as much [n], rising."""
    if not zero:
        return kmeans(values, importance, count)
    others = values != 0
    if count == 1 or not others.any():
        return np.zeros(count)
    return np.sort(np.append(kmeans(values[others], importance[others], count - 1), 0.0))


def refine(weights: Array, fit: Moments, held: Moments, books: Books) -> tuple[Books, Codes]:
    """Codes and codebooks that do less to outputs; over all rows of inputs never more than the nearest of `books`.

    Args:
        weights: W [out, in], finite.
        fit: moments of most rows of inputs.
        held: moments of the others; with few rows they say how far inputs are believed.
        books: to start from.

    Returns:
        Codebooks of the same shape, and codes [out, in].
    """
    both, codes = fit + held, books.nearest(weights)
    gram, least = both.centred()[0], both.rounding()
    stays: Mask | None = weights != 0 if (books.table == 0).any(axis=1).all() else None
    damping = best_damping(weights, fit, held, books, stays)
    if damping is None:
        return books, codes
    loaded = gram.copy()
    loaded[np.diag_indices_from(loaded)] += ridge(gram, damping, least)
    best, best_codes, lowest = books, codes, _errors(weights, gram, books, codes)
    for _ in range(ROUNDS):
        codes = round_among(weights, gram, least, damping, books, np.uint8, stays)
        books, codes = fit_values(weights, loaded, books, codes)
        books = fit_scales(weights, loaded, books, codes)
        errors = _errors(weights, gram, books, codes)
        better = errors < lowest
        if not better.any():
            break
        settled = bool((errors > (1 - LITTLE) * lowest).all())
        rows = better[:, None]
        best = Books(np.where(rows, books.table, best.table), books.scales)
        best_codes, lowest = np.where(rows, codes, best_codes), np.minimum(errors, lowest)
        if settled:
            break
    return best, best_codes


def _errors(weights: Array, gram: Matrix, books: Books, codes: Codes) -> Matrix:
    """How far each codebook moves its outputs, mean square, summed over them [1 or rows]."""
    errors = np.concatenate(
        [row_errors(weights[p] - levels_at(codes[p], books.part(p)), gram) for p in _row_parts(len(weights))]
    )
    return errors.sum(keepdims=True) if len(books.table) == 1 else errors


def _row_parts(rows: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, max(rows, 1), ROWS)]


def fit_values(weights: Array, gram: Matrix, books: Books, codes: Codes) -> tuple[Books, Codes]:
    """The values that do least to outputs with these codes, by conjugate gradients from those of `books`.

    Args:
        weights: W [out, in].
        gram: G [in, in], positive.
        books: one codebook, or one for each row.
        codes: [out, in].

    Returns:
        Codebooks, rising, and codes to go with them; zeros stay, and values that no code names.
    """
    groups, count = books.table.shape
    normal = _Normal(gram, codes, groups, count, books.scales)
    table = books.table.copy()
    free = table != 0
    residual = normal.gathered(lambda p: weights[p] - levels_at(codes[p], books.part(p))) * free
    scale = normal.diagonal()
    ready = residual / scale
    direction, size = ready.copy(), (residual * ready).sum(axis=1, keepdims=True)
    first = size
    for _ in range(min(STEPS, count)):
        if (size <= 1e-18 * first).all():
            break
        product = normal.applied(direction) * free
        curve = (direction * product).sum(axis=1, keepdims=True)
        step = np.divide(size, curve, out=np.zeros_like(size), where=curve > 0)
        table += step * direction
        residual -= step * product
        ready = residual / scale
        before, size = size, (residual * ready).sum(axis=1, keepdims=True)
        direction = ready + np.divide(size, before, out=np.zeros_like(size), where=before > 0) * direction
    order = np.argsort(table, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable").astype(np.uint8)
    moved: Codes = ranks[np.arange(len(ranks))[:, None], codes]
    return Books(np.take_along_axis(table, order, axis=1), books.scales), moved


def fit_scales(weights: Array, gram: Matrix, books: Books, codes: Codes) -> Books:
    """The scales of rows, where there are any, that do least to outputs with these codes and values.

    Args:
        weights: W [out, in].
        gram: G [in, in], positive.
        books: one codebook.
        codes: [out, in].
    """
    if books.scales is None:
        return books
    scales = books.scales.copy()
    for part in _row_parts(len(weights)):
        now = levels_at(codes[part], books.part(part))
        carried = now @ gram
        over, under = (np.einsum("oi,oi->o", carried, each) for each in (weights[part], now))
        ratio = np.divide(over, under, out=np.ones_like(under), where=under > 0)
        scales[part] *= np.where((ratio > 0.5) & (ratio < 2), ratio, 1.0)  # else the codes fit nothing
    return Books(books.table, scales)


@dataclass(frozen=True)
class _Normal:
    """The least-squares system of the values of codebooks: A of the module's header, for each codebook.

    Attributes:
        gram: G [in, in].
        codes: [out, in].
        groups: codebooks, one or as many as rows.
        count: values of each.
        scales: of the rows [out]; None for ones.
    """

    gram: Matrix
    codes: Codes
    groups: int
    count: int
    scales: Matrix | None

    def places(self, part: slice) -> Array:
        """Where in all codebooks the weights of some rows find their values [rows, in]."""
        first = np.arange(len(self.codes))[part, None] * self.count if self.groups > 1 else 0
        places: Array = first + self.codes[part].astype(np.intp)
        return places

    def scaling(self, part: slice) -> Matrix | float:
        """Scales of some rows [rows, 1]."""
        return 1.0 if self.scales is None else self.scales[part, None]

    def summed(self, each: Callable[[slice], Matrix]) -> Matrix:
        """The sums over each value's weights [groups, count] of what is given for some rows [rows, in]."""
        total = np.zeros(self.groups * self.count)
        for part in _row_parts(len(self.codes)):
            found = each(part) * self.scaling(part)
            total += np.bincount(self.places(part).reshape(-1), found.reshape(-1), len(total))
        return total.reshape(self.groups, self.count)

    def gathered(self, change: Callable[[slice], Matrix]) -> Matrix:
        """The sums of D G, D being given."""
        return self.summed(lambda part: change(part) @ self.gram)

    def applied(self, values: Matrix) -> Matrix:
        """A times one value for each entry of the codebooks [groups, count]."""
        flat = values.reshape(-1)
        return self.gathered(lambda part: flat[self.places(part)] * self.scaling(part))

    def diagonal(self) -> Matrix:
        """About the diagonal of A, above zero: inputs taken for uncorrelated."""
        each = np.diag(self.gram)
        found = self.summed(lambda part: np.broadcast_to(each, self.codes[part].shape) * self.scaling(part))
        return np.where(found > 0, found, 1.0)
