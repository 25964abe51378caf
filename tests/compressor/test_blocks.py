"""Weights in blocks, against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.numerics.blocks import (
    fit_blocks,
    packed_blocks,
    packed_zeros,
    round_in_blocks,
    unblocked,
    unpacked_blocks,
)
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.protocols import Array

SHAPES = st.tuples(
    st.integers(1, 6), st.integers(1, 70), st.sampled_from([2, 4, 8]), st.sampled_from([16, 32])
)


def weights_of(seed: int, outputs: int, inputs: int) -> Array:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((outputs, inputs)) * 10.0 ** rng.integers(-4, 4, (outputs, 1))
    w[rng.random(w.shape) < 0.1] = 0
    return (w + rng.integers(-1, 2)).astype(np.float32)


def moments(seed: int, inputs: int, rows: int = 200) -> tuple[Array, tuple[Moments, Moments]]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, max(1, inputs // 3))) @ rng.standard_normal(
        (max(1, inputs // 3), inputs)
    )
    x = (mixed + 0.1 * rng.standard_normal((rows, inputs))).astype(np.float32)
    both = Moments(inputs, 0, about_zero=True), Moments(inputs, 0, about_zero=True)
    for part, rows_of in zip(both, (x[: rows * 4 // 5], x[rows * 4 // 5 :]), strict=True):
        part.update(rows_of, rows_of[:, :0])
    return x, both


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans(), st.integers(0, 999))
def test_what_was_packed_comes_back(shape: tuple[int, int, int, int], symmetric: bool, seed: int) -> None:
    outputs, inputs, bits, size = shape
    codes, levels = round_in_blocks(weights_of(seed, outputs, inputs), bits, size, symmetric, None)
    zeros = None if symmetric else packed_zeros(levels, bits)
    found = unpacked_blocks(packed_blocks(codes, bits, size), levels.scales.T, zeros, bits, inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unblocked(codes, levels), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.booleans(), st.integers(0, 999))
def test_no_block_is_worse_than_with_the_range_that_clips_nothing(
    shape: tuple[int, int, int, int], symmetric: bool, seed: int
) -> None:
    outputs, inputs, bits, size = shape
    w = weights_of(seed, outputs, inputs)
    codes, levels = round_in_blocks(w, bits, size, symmetric, None)
    back = unblocked(codes, levels)
    for o in range(outputs):
        for start in range(0, inputs, size):
            block, b = w[o, start : start + size], start // size
            span = np.abs(block).max() if symmetric else max(block.max(), 0) - min(block.min(), 0)
            plain = span / (2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
            # the range that clips nothing is among those tried (its zero point may move it by half a step)
            error = np.square(back[o, start : start + size].astype(np.float64) - block).sum()
            assert error <= len(block) * plain**2 * (1 + 1e-5) + 1e-12
            assert levels.zeros[b, o] == (2 ** (bits - 1) if symmetric else int(levels.zeros[b, o]))
    assert codes.max(initial=0) < 2**bits


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 999))
def test_bytes_hold_the_first_code_lowest(shape: tuple[int, int, int, int], seed: int) -> None:
    outputs, inputs, bits, size = shape
    codes = np.random.default_rng(seed).integers(0, 2**bits, (outputs, inputs)).astype(np.uint8)
    packed = packed_blocks(codes, bits, size)
    assert packed.shape == (outputs, -(-inputs // size), size * bits // 8)
    for o in range(outputs):
        for i in range(inputs):
            at = i % size * bits
            assert (int(packed[o, i // size, at // 8]) >> at % 8) % 2**bits == codes[o, i]
    levels = fit_blocks(weights_of(seed, outputs, inputs), bits, size, symmetric=False)
    zeros = packed_zeros(levels, bits)
    for o in range(outputs):
        for b in range(len(levels.zeros)):
            assert (int(zeros[o, b * bits // 8]) >> b * bits % 8) % 2**bits == levels.zeros[b, o]


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.booleans(), st.integers(0, 999))
def test_a_look_at_inputs_is_never_worse_than_the_nearest_levels(
    shape: tuple[int, int, int, int], symmetric: bool, seed: int
) -> None:
    outputs, inputs, bits, size = shape
    w = weights_of(seed, outputs, inputs)
    x, seen = moments(seed, inputs)
    codes, levels = round_in_blocks(w, bits, size, symmetric, [seen])
    wide = [
        (c.astype(np.float64) - levels.zeros[levels.of].T) * levels.scales[levels.of].T
        for c in (
            codes,
            np.clip(
                np.rint(w / levels.scales[levels.of].T.astype(np.float64) + levels.zeros[levels.of].T),
                0,
                2**bits - 1,
            ),
        )
    ]
    lost = [np.square(x.astype(np.float64) @ (each - w).T).sum(axis=0) for each in wide]
    assert (lost[0] <= lost[1] * (1 + 1e-6) + 1e-9 * np.square(w).sum()).all()


def test_a_look_at_inputs_helps() -> None:
    w = weights_of(1, 24, 64)
    x, seen = moments(1, 64, 600)
    lost = []
    for known in ([seen], None):
        back = unblocked(*round_in_blocks(w, 2, 32, False, known))
        lost.append(np.square(x @ (back - w).T).sum())
    assert lost[0] < lost[1] / 3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equal_weights_and_zeros_are_exact(bits: int, symmetric: bool) -> None:
    w = np.zeros((3, 40), np.float32)
    w[1], w[2] = 0.3, -0.7
    np.testing.assert_allclose(unblocked(*round_in_blocks(w, bits, 16, symmetric, None)), w, rtol=1e-6)


def test_rows_do_not_hang_on_how_many_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights_of(4, 50, 40)
    whole = round_in_blocks(w, 4, 16, False, None)
    monkeypatch.setattr("edgepress.compressor.numerics.blocks.ROWS", 7)
    cut = round_in_blocks(w, 4, 16, False, None)
    assert np.array_equal(whole[0], cut[0])
    assert np.array_equal(whole[1].scales, cut[1].scales)
    assert np.array_equal(unblocked(*whole), unblocked(*cut))


@pytest.mark.parametrize("sign", [1, -1])
def test_all_codes_are_used_on_either_side_of_zero(sign: int) -> None:
    w = (sign * 0.1 * np.arange(-8, 8)[None]).astype(np.float32)
    np.testing.assert_allclose(unblocked(*round_in_blocks(w, 4, 16, True, None)), w, rtol=1e-6, atol=1e-7)
