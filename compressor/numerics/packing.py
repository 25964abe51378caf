"""Codes of a few bits, side by side in words of the types that runtimes can shift.

A word holds `per_word` codes, the first in its lowest bits:

    code_i = (word >> i · bits) mod 2^bits

Words are bytes where codes fill them, else 32 bits wide, of which a few stay empty: taken apart at load they become as
many numbers as the file has weights, so wider words would cost memory for nothing.
"""

from dataclasses import dataclass

import numpy as np

from edgepress.compressor.numerics.grids import Array

MOST_PACKED_BITS = 6
"""Wider codes would not save enough to be packed."""

UNPACKING_BYTES = 260
"""About what the nodes, shapes and names of one packed weight take in the file; levels and shifts are shared."""

CUTTING_BYTES = 120
"""What comes on top where the last word is not full."""


@dataclass(frozen=True)
class Packing:
    """How codes of one width lie in words.

    Attributes:
        bits: of a code, 1 to 7.
        dtype: of a word, unsigned.
        per_word: codes in a word.
    """

    bits: int
    dtype: np.dtype[np.uint8] | np.dtype[np.uint32]
    per_word: int

    @property
    def shifts(self) -> Array:
        """Where the codes of a word begin [per_word], in the words' type."""
        shifts: Array = (np.arange(self.per_word) * self.bits).astype(self.dtype)
        return shifts


def packing(bits: int) -> Packing:
    """The packing of codes of 1 to 7 bits."""
    if not 1 <= bits <= 7:
        raise ValueError(f"codes of {bits} bits are not packed")
    dtype: np.dtype[np.uint8] | np.dtype[np.uint32]
    dtype = np.dtype(np.uint8) if 8 % bits == 0 else np.dtype(np.uint32)
    return Packing(bits, dtype, dtype.itemsize * 8 // bits)


def stored_bytes(count: float, bits: int) -> float:
    """About what weights of some bits take in a file: packed where that saves, else a byte each."""
    if bits > MOST_PACKED_BITS:
        return count
    how = packing(bits)
    nodes = UNPACKING_BYTES + (CUTTING_BYTES if count % how.per_word else 0)
    return min(count, count / how.per_word * how.dtype.itemsize + nodes)


def pack(codes: Array, bits: int) -> Array:
    """Codes 0 … 2^bits − 1, of any shape, as words [words, 1]; zeros fill the last word."""
    how = packing(bits)
    flat = codes.reshape(-1).astype(how.dtype)
    padded = np.zeros(-(-flat.size // how.per_word) * how.per_word, how.dtype)
    padded[: flat.size] = flat
    shifted = padded.reshape(-1, how.per_word) << how.shifts
    words: Array = np.bitwise_or.reduce(shifted, axis=1, keepdims=True)
    return words
