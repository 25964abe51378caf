from typing import Any

import pytest

from edgepress.compressor.report import words


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (None, "bytes", "–"),
        (0, "bytes", "0 B"),
        (40, "bytes", "40 B"),
        (999, "bytes", "999 B"),
        (999_600, "bytes", "1.00 MB"),
        (10_444, "bytes", "10.4 kB"),
        (58_123.4, "ns", "58.1 µs"),
        (0.25, "ns", "0.250 ns"),
        (-4_000.0, "ns", "-4.00 µs"),
        (431_080, "count", "431 k"),
        (12, "count", "12"),
    ],
)
def test_quantities_have_three_digits_and_a_handy_unit(value: float | None, kind: Any, says: str) -> None:
    assert words.quantity(value, kind) == says


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (1_724_000, 10_444, ("165× smaller", True)),
        (100, 109, ("1.09× larger", False)),
        (1000, 1001, ("the same", None)),
        (0, 5, ("", None)),
        (None, 5, ("", None)),
    ],
)
def test_a_factor_says_which_way_it_went(before: Any, after: Any, says: tuple[str, bool | None]) -> None:
    assert words.factor(before, after, "smaller", "larger") == says
