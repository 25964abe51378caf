"""Which candidate is best."""

import math
from dataclasses import replace

from edgepress.compressor.choice import Candidate, reason, worth

ORIGINAL = Candidate("original", (), data=b"x" * 1000, latency_ns=100.0)


def made(size: int, ns: float) -> Candidate:
    return Candidate("made", (), data=b"y" * size, latency_ns=ns)


def test_what_changes_nothing_is_no_better_whatever_the_clock_says() -> None:
    same = replace(ORIGINAL, label="same", latency_ns=90.0)
    assert worth(same, ORIGINAL, "latency") == worth(ORIGINAL, ORIGINAL, "latency") == 0


def test_larger_or_slower_is_out() -> None:
    for candidate in (made(1001, 50.0), made(500, 102.0)):
        assert worth(candidate, ORIGINAL, "latency") == worth(candidate, ORIGINAL, "size") == math.inf
    assert reason(made(1001, 50.0), ORIGINAL, ORIGINAL) == "larger than the original"
    assert reason(made(500, 102.0), ORIGINAL, ORIGINAL) == "slower than the original"


def test_the_objective_decides() -> None:
    small, fast = made(100, 90.0), made(500, 40.0)
    assert worth(small, ORIGINAL, "size") < worth(fast, ORIGINAL, "size") < 0
    assert worth(fast, ORIGINAL, "latency") < worth(small, ORIGINAL, "latency") < 0
