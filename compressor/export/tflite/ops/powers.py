"""Powers, and quotients of integers."""

import numpy as np

from edgepress.compressor.export.tflite.maths import Maths
from edgepress.compressor.export.tflite.tensors import Tensor

_BITS = 6
"""Of an exponent: any base but -1, 0 and 1 leaves 64 bits with the 63rd power."""
_ROUNDS = 4
"""Each finds at least 19 more bits of a quotient of 64 bits."""


def power(maths: Maths, base: Tensor, exponent: Tensor, *, whole: bool) -> Tensor:
    """`base` to the power of `exponent`, in the type of the base.

    Args:
        maths: appends kernels.
        base: FLOAT32, INT32 or INT64.
        exponent: likewise.
        whole: whether the result is an integer.
    """
    if whole and exponent.dtype != "FLOAT32":
        return _whole_power(maths, base, exponent)
    if whole and exponent.array is not None and np.all(exponent.array == np.round(exponent.array)):
        return _whole_power(maths, base, maths.builder.constant(exponent.array.astype(np.int32)))
    x, y = maths.cast(base, "FLOAT32"), maths.cast(exponent, "FLOAT32")
    return maths.cast(_real_power(maths, x, y), base.dtype)


def _real_power(maths: Maths, x: Tensor, y: Tensor) -> Tensor:
    """POW, or what gives the same faster for one common exponent: XNNPACK has no POW."""
    known = float(y.array.reshape(-1)[0]) if y.array is not None and y.array.size == 1 else None
    if len(y.shape) > len(x.shape) or known not in {-1, -0.5, 0.5, 1, 2, 3, 4}:
        return maths.binary("POW", x, y)
    if known in {0.5, -0.5}:
        return maths.unary("SQRT" if known > 0 else "RSQRT", x)
    if known == -1:
        return maths.div(1.0, x)
    if known == 1:
        return x
    square = maths.mul(x, x)
    return square if known == 2 else maths.mul(square, x if known == 3 else square)


def _whole_power(maths: Maths, base: Tensor, exponent: Tensor) -> Tensor:
    """By squaring. Negative exponents give what is left of the reciprocal: 0, but for bases of -1 and 1."""
    e = maths.cast(exponent, "INT32")
    odd, top = maths.binary("FLOOR_MOD", e, 2), 2**_BITS - 2
    inside = maths.select(maths.binary("GREATER", e, top), maths.add(odd, top), e)
    rest = maths.select(maths.binary("LESS", e, 0), odd, inside)
    square = base
    result = maths.select(maths.binary("EQUAL", maths.binary("FLOOR_MOD", rest, 2), 1), square, 1)
    for _ in range(_BITS - 1):
        square, rest = maths.mul(square, square), maths.div(rest, 2)
        taken = maths.binary("EQUAL", maths.binary("FLOOR_MOD", rest, 2), 1)
        result = maths.mul(result, maths.select(taken, square, 1))
    near = maths.clipped(base, -2, 2)
    lost = maths.binary(
        "LOGICAL_AND",
        maths.binary("LESS", e, 0),
        maths.binary("GREATER", maths.mul(near, near), 1),
    )
    return maths.select(lost, 0, result)


def quotient(maths: Maths, a: Tensor, b: Tensor) -> Tensor:
    """The quotient; of integers, cut off towards 0.

    There is no kernel for 64 bits: quotients of floats come ever closer. Each is made a little smaller than
    roundings could make it larger, so that it never goes beyond, and 2**63 never comes out. In the end at most 1
    is missing.
    """
    if a.dtype != "INT64":
        return maths.div(a, b)
    divisor = maths.cast(b, "FLOAT32")
    rest, parts = a, []
    for _ in range(_ROUNDS):
        part = maths.mul(maths.div(maths.cast(rest, "FLOAT32"), divisor), 1 - 2.0**-20)
        parts.append(maths.cast(part, "INT64"))
        rest = maths.sub(rest, maths.mul(parts[-1], b))
    # negative magnitudes: the lowest integer has no positive one
    left, size = (maths.minimum(each, maths.unary("NEG", each)) for each in (rest, b))
    missing = maths.cast(maths.binary("LESS_EQUAL", left, size), "INT64")
    sign = maths.clipped(a, -1, 1)
    parts.append(maths.mul(maths.mul(sign, maths.clipped(b, -1, 1)), missing))
    result = parts[0]
    for part in parts[1:]:
        result = maths.add(result, part)
    return result
