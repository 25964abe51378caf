"""Codes of a few bits in words: nothing is lost, and it takes what it is said to take."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepress.compressor.numerics.packing import MOST_PACKED_BITS, pack, packing, stored_bytes
from edgepress.compressor.protocols import Array


def unpack(words: Array, bits: int, shape: tuple[int, ...]) -> Array:
    """Codes of a shape, one after another."""
    width = 8 * words.dtype.itemsize
    codes = [int(w) >> at & (1 << bits) - 1 for w in words.ravel() for at in range(0, width - bits + 1, bits)]
    return np.array(codes[: math.prod(shape)]).reshape(shape)


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_codes_come_back(bits: int, shape: list[int], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, shape)
    words = pack(codes, bits)
    np.testing.assert_array_equal(unpack(words, bits, tuple(shape)), codes)
    how = packing(bits)
    assert words.dtype == how.dtype
    assert words.shape == (-(-codes.size // how.per_word), 1)


@given(st.integers(2, MOST_PACKED_BITS), st.integers(1, 10**6))
def test_bytes_are_those_of_the_words(bits: int, count: int) -> None:
    how = packing(bits)
    said = stored_bytes(count, bits)
    assert said <= count
    if said < count:
        assert 0 <= said - count * bits / 8 <= 380 + 0.07 * count
        assert how.per_word * bits <= how.dtype.itemsize * 8 < (how.per_word + 1) * bits


@pytest.mark.parametrize("bits", [0, 8])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits"):
        packing(bits)
