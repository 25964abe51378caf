"""Functions whose values are no rationals, held between two of them: in whole numbers over 2^128, rounded outward.

No library's `exp` is trusted: sums of a series with all terms above 0, squares, quotients and integer square roots,
each rounded down for the lower end and up for the upper one.
"""

import math

import numpy as np

from edgepress.compressor.certify.nodepair import TooHardError
from edgepress.compressor.certify.rational import Ends, Whole
from edgepress.compressor.protocols import Array

BITS = 128
ONE = 1 << BITS
"""1, in the units of this file."""
_TERMS, _SQUARES, _FAR = 16, 16, 512
"""e^t for t ≤ 512 is (e^(t / 2^16))^(2^16), the inner one by 16 terms: what is left out is below 2^-150."""
_root = np.frompyfunc(math.isqrt, 1, 1)


def up(numerator: Array | int, denominator: Array | int) -> Array:
    """Quotient, rounded up."""
    return np.asarray(-((-numerator) // denominator), object)


def down(numerator: Array | int, denominator: Array | int) -> Array:
    """Quotient, rounded down."""
    return np.asarray(numerator // denominator, object)


def fixed(x: Ends) -> tuple[Array, Array]:
    """Both ends in units of 2^-128, outward."""
    return down(x.lo * ONE, x.den), up(x.hi * ONE, x.den)


def decay(t: Whole) -> tuple[Array, Array]:
    """e^−t from below and from above, in units of 2^-128.

    Args:
        t: at least 0. Beyond 512 the lower end is 0.
    """
    far = np.asarray(t.tops > _FAR * t.den, bool)
    near = np.where(far, _FAR * t.den, t.tops)
    small = t.den << _SQUARES
    r_lo, r_hi = down(near * ONE, small), up(near * ONE, small)  # of the inner exponent, below 2^-7
    term_lo, term_hi = (np.full(near.shape, ONE, object) for _ in range(2))
    lo, hi = term_lo, term_hi
    for n in range(1, _TERMS + 1):
        term_lo, term_hi = down(term_lo * r_lo, n << BITS), up(term_hi * r_hi, n << BITS)
        lo, hi = lo + term_lo, hi + term_hi
    hi = hi + term_hi  # the rest: at most r / 17 + (r / 17)² + … of the last term
    for _ in range(_SQUARES):
        lo, hi = down(lo * lo, ONE), up(hi * hi, ONE)
    return np.where(far, 0, down(ONE * ONE, hi)), up(ONE * ONE, lo)


def sigmoid(x: Whole) -> tuple[Array, Array]:
    """1 / (1 + e^−x) from below and from above, in units of 2^-128."""
    e_lo, e_hi = decay(Whole(np.asarray(abs(x.tops), object), x.den))
    above = np.asarray(x.tops >= 0, bool)
    lo = np.where(above, down(ONE * ONE, ONE + e_hi), down(e_lo * ONE, ONE + e_lo))
    return lo, np.where(above, up(ONE * ONE, ONE + e_lo), up(e_hi * ONE, ONE + e_hi))


def root(x: tuple[Array, Array]) -> tuple[Array, Array]:
    """√x; x at least 0, all in units of 2^-128."""
    return np.asarray(_root(x[0] * ONE), object), np.asarray(_root(x[1] * ONE) + 1, object)


def reciprocal_power(x: tuple[Array, Array], exponent: float) -> tuple[Array, Array]:
    """x^−exponent, by squares of roots: a float32 is a whole number over a power of two.

    Args:
        x: from below and from above, above 0, in units of 2^-128.
        exponent: at least 0.

    Raises:
        TooHardError: the exponent is large, or has too many digits.
    """
    top, bottom = exponent.as_integer_ratio()
    whole, part = divmod(top, bottom)
    if whole > 8 or bottom > 1 << 32:
        raise TooHardError(f"its exponent {exponent} takes too many roots")
    lo, hi = (np.full(end.shape, ONE, object) for end in x)
    for _ in range(whole):
        lo, hi = down(lo * x[0], ONE), up(hi * x[1], ONE)
    while part:
        x, bottom = root(x), bottom // 2
        if part >= bottom:
            lo, hi, part = down(lo * x[0], ONE), up(hi * x[1], ONE), part - bottom
    if (lo <= 0).any():
        raise TooHardError("its power is too small")
    return down(ONE * ONE, hi), up(ONE * ONE, lo)
