"""Exact networks over any features: combinatoric, selective, and out of images (Kepner et al. 2018, §III–V).

    combinatoric   W₀(f₁₂) = 𝕀(f₁) ⊗ 𝟏(f₂) ⊕ 𝟏(f₁) ⊗ 𝕀(f₂)       Kronecker products: every combination is a category
    selective      W₀ = 𝕀(f₁₂, f₁) ⊕ 𝕀(f₁₂, f₂)                  categories are given, features are what they consist of
    images         a category an image, a feature a pixel

Only the order of features differs from one place of a word to another: features are known by place and letter (1a, 2a).
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from edgepress.compressor.errors import DataError
from edgepress.compressor.exact.arrays import AssociativeArray
from edgepress.compressor.exact.known import WINDOWS, WORDS
from edgepress.compressor.exact.networks import ExactNet

Window = tuple[int, ...]
"""Places of a word that a neuron looks at."""

SIDE = 26
"""Pixels of a trimmed image each way: each is indexed by two lower-case letters."""

THRESHOLD = 0.5
"""Pixels above are 1."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def combinatoric(sets: Sequence[Sequence[str]], *, deep: bool = True) -> ExactNet:
    """A category for every choice of one feature from each set.

    Args:
        sets: labels of features, two sets or more; no label twice.
        deep: put sets together two by two, a layer each time; False: all in one layer.
    """
    parts = [list(each) for each in sets]
    layers: list[AssociativeArray] = []
    while len(parts) > 1:
        groups = [parts[at : at + 2] for at in range(0, len(parts), 2)] if deep else [parts]
        arrays = [_combined(group) for group in groups]
        layers.append(reduce(lambda a, b: a + b, arrays))
        parts = [list(each.rows) for each in arrays]
    names = [list(layers[0].columns), *(list(each.rows) for each in layers)]
    sizes = "×".join(str(len(each)) for each in sets)
    count = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
    return ExactNet(f"combinatoric {sizes}, {count}", tuple(each.matrix for each in layers), tuple(names))


def _combined(sets: Sequence[Sequence[str]]) -> AssociativeArray:
    """Ones from each combination to what it consists of: ⊕ over i of 𝟏(f₁) ⊗ … 𝕀(fᵢ) … ⊗ 𝟏(fₙ)."""
    terms = []
    for place in range(len(sets)):
        factors = [
            AssociativeArray.identity(each) if at == place else AssociativeArray.ones(each)
            for at, each in enumerate(sets)
        ]
        terms.append(reduce(lambda a, b: a.kron(b), factors))
    return reduce(lambda a, b: a + b, terms)


def selective(
    name: str, categories: Sequence[Sequence[str]], windows: Sequence[Sequence[Window]]
) -> ExactNet:
    """One of the many networks that know these categories and no others.

    Args:
        name: for people.
        categories: of each its features in order, all as many; none twice.
        windows: a layer each: the places that its neurons look at. A neuron stands for what categories have at those
            places, and reads the neurons before it that lie within; the last layer looks at all.

    Raises:
        ValueError: windows do not follow from those before them, or two categories are the same.
    """
    letters = np.array([list(each) for each in categories])
    before: list[Window] = [(place,) for place in range(letters.shape[1])]
    weights: list[sp.csr_array] = []
    names: list[Sequence[str]] = []
    ids, sizes = _features(letters)
    names.append(_Labels(letters, list(zip(before, sizes, strict=True))))
    for layer in windows:
        columns, firsts, read, start = [], [], [], 0
        for window in layer:
            children = [at for at, each in enumerate(before) if set(each) <= set(window)]
            if {place for at in children for place in before[at]} != set(window):
                raise ValueError(f"places {window} cannot be put together out of {before}")
            found, first, numbers = np.unique(
                ids[:, children], axis=0, return_index=True, return_inverse=True
            )
            columns.append(numbers.reshape(-1) + start)
            firsts.append((window, first))
            read.append(found)
            start += len(found)
        weights.append(_ones(read, int(sum(map(len, names[-1:])))))
        names.append(_Labels(letters, firsts))
        ids, before = np.stack(columns, axis=1), list(layer)
    if len(windows[-1]) != 1 or len(names[-1]) != len(letters):
        raise ValueError("the last layer must look at all places, and categories must differ")
    # The last layer's neurons come out sorted; categories keep the order in which they were given.
    order = ids[:, 0]
    weights[-1] = weights[-1][order]
    names[-1] = ["".join(each) for each in letters]
    return ExactNet(name, tuple(weights), tuple(names))


def words(letters: int, layers: int, count: int | None = None) -> ExactNet:
    """A network that knows popular words (figures 6, 7 and 8).

    Args:
        letters: 2, 3 or 4.
        layers: 1, 2 or 3.
        count: the first so many words; None: all.
    """
    known = [[*word] for word in WORDS[letters][:count]]
    name = f"{len(known)} words of {letters} letters, {layers} layer{'s' * (layers > 1)}"
    return selective(name, known, WINDOWS[letters, layers])


def deep(categories: int, layers: int, seed: int = 0) -> ExactNet:
    """A network of any size: random words, read in windows that grow by one place a layer.

    Args:
        categories: how many words.
        layers: so many, for words of one letter more.
        seed: of the letters.
    """
    places = layers + 1
    numbers = np.random.default_rng(seed).integers(len(LETTERS), size=(categories, places))
    digits = max(1, int(np.ceil(np.log(max(categories, 2)) / np.log(len(LETTERS)))))
    for digit in range(min(digits, places)):  # the first letters number the words: no two are the same
        numbers[:, digit] = np.arange(categories) // len(LETTERS) ** digit % len(LETTERS)
    letters = np.array(list(LETTERS))[numbers]
    windows = [
        [tuple(range(start, start + size)) for start in range(places - size + 1)]
        for size in range(2, places + 1)
    ]
    return selective(f"{categories} random words, {layers} layers", letters, windows)  # type: ignore[arg-type]


def from_images(name: str, images: npt.NDArray[np.floating]) -> ExactNet:
    """A single layer that tells images apart by their pixels (figure 3).

    Args:
        name: for people.
        images: [images, height, width] from 0 to 1, at least 26 × 26; they are trimmed to the middle, and cut at 0.5.

    Raises:
        DataError: sizes do not fit, or every image has all pixels of another: then both would answer.
    """
    if images.ndim != 3 or min(images.shape[1:]) < SIDE:
        raise DataError(
            f"Images are {list(images.shape)}, wanted [images, height, width] of {SIDE} pixels or more."
        )
    top, left = ((size - SIDE) // 2 for size in images.shape[1:])
    trimmed = images[:, top : top + SIDE, left : left + SIDE].reshape(len(images), -1)
    ones = sp.csr_array((trimmed > THRESHOLD).astype(np.float64))
    ones = ones[_apart(ones)]
    if not ones.shape[0]:
        raise DataError(
            "No image can be told from the others.", "Give images with a threshold of 0.5 in mind."
        )
    used = np.unique(ones.indices)
    pixels = [f"{LETTERS[at // SIDE]}{LETTERS[at % SIDE]}" for at in used]
    weights = sp.csr_array(ones[:, used])
    return ExactNet(
        f"{name}, {weights.shape[0]} images", (weights,), (pixels, [str(n) for n in range(ones.shape[0])])
    )


def _apart(ones: sp.csr_array) -> npt.NDArray[np.int64]:
    """Rows to keep, so that none has all ones of another; the first of each such pair stays, empty rows go."""
    common = (ones @ ones.T).toarray()
    sizes = np.diag(common)
    kept: list[int] = []
    for row in np.flatnonzero(sizes):
        if all(common[row, other] < min(sizes[row], sizes[other]) for other in kept):
            kept.append(int(row))
    return np.array(kept, np.int64)


def _features(letters: npt.NDArray[np.str_]) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Numbers of the features of each category, [categories, places], and where each is first seen, a place each."""
    ids, firsts, start = [], [], 0
    for column in letters.T:
        _, first, numbers = np.unique(column, return_index=True, return_inverse=True)
        ids.append(numbers + start)
        firsts.append(first)
        start += len(first)
    return np.stack(ids, axis=1), firsts


def _ones(read: Sequence[npt.NDArray[np.int64]], columns: int) -> sp.csr_array:
    """Rows that have ones where they read: of each window [neurons, read]."""
    counts = np.concatenate([np.full(len(each), each.shape[1]) for each in read])
    indices = np.concatenate([np.sort(each, axis=1).ravel() for each in read])
    starts = np.concatenate(([0], np.cumsum(counts)))
    return sp.csr_array((np.ones(len(indices)), indices, starts), shape=(len(counts), columns))


class _Labels(Sequence[str]):
    """Labels such as 1c2a, made when they are asked for: a million of them take seconds."""

    def __init__(
        self, letters: npt.NDArray[np.str_], windows: Sequence[tuple[Window, npt.NDArray[np.int64]]]
    ) -> None:
        self._letters, self._windows = letters, [window for window, _ in windows]
        self._firsts = [first for _, first in windows]
        self._ends = np.cumsum([len(first) for first in self._firsts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, at: int) -> str:  # type: ignore[override]  # slices are not needed
        if not 0 <= at < len(self):
            raise IndexError(at)
        group = int(np.searchsorted(self._ends, at, side="right"))
        first = self._firsts[group][at - (self._ends[group - 1] if group else 0)]
        return "".join(f"{place + 1}{self._letters[first, place]}" for place in self._windows[group])
