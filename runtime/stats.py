"""Statistics of repeated timings: medians with bootstrap intervals, and outliers.

Timings on a shared machine have a long right tail, so everything here rests on medians.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval);
Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993 (modified z-score, limit 3.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.ArrayLike
"""One figure a round, shape [rounds]."""

_BLOCK = 1 << 20  # resampled elements held at once: 8 MB


def median_interval(
    samples: Samples, rng: np.random.Generator, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median.

    Args:
        samples: [rounds], at least one.
        rng: source of the resampling; equal states give equal intervals.
        level: coverage in (0, 1).
        resamples: bootstrap samples.

    Returns:
        Lower and upper end, in the samples' unit.
    """
    return _bootstrap(_rounds(samples)[None, :], rng, level, resamples)


def ratio_interval(
    a: Samples, b: Samples, rng: np.random.Generator, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Paired percentile bootstrap interval of median(a) / median(b).

    Rounds are drawn together for both, so that what slowed a whole round cancels.

    Args:
        a: [rounds].
        b: [rounds], positive, taken in the same rounds as `a`.
        rng: source of the resampling.
        level: coverage in (0, 1).
        resamples: bootstrap samples.

    Raises:
        ValueError: the two do not share their rounds.
    """
    first, second = _rounds(a), _rounds(b)
    if first.shape != second.shape:
        raise ValueError(f"not paired: {first.size} rounds against {second.size}")
    return _bootstrap(np.stack([first, second]), rng, level, resamples)


def outliers(samples: Samples, limit: float = 3.5) -> int:
    """How many rounds have a modified z-score 0.6745·|x − median| / MAD above `limit`.

    Args:
        samples: [rounds].
        limit: 3.5 in the source.

    Returns:
        A count; where more than half of the rounds are equal (MAD = 0), every round that differs counts.
    """
    rounds = _rounds(samples)
    distance = np.abs(rounds - np.median(rounds))
    return int(np.count_nonzero(0.6745 * distance > limit * np.median(distance)))


def _rounds(samples: Samples) -> npt.NDArray[np.float64]:
    rounds = np.asarray(samples, dtype=np.float64)
    if rounds.ndim != 1 or rounds.size == 0:
        raise ValueError(f"expected one row of samples, got shape {rounds.shape}")
    return rounds


def _bootstrap(
    rows: npt.NDArray[np.float64], rng: np.random.Generator, level: float, resamples: int
) -> tuple[float, float]:
    """Interval of the median of one row [1, n], or of the ratio of the medians of two [2, n]."""
    size = rows.shape[1]
    block = max(1, _BLOCK // size)
    parts: list[npt.NDArray[Any]] = []
    for start in range(0, resamples, block):
        drawn = rng.integers(0, size, (min(block, resamples - start), size))
        medians = np.median(rows[:, drawn], axis=2)  # [1 or 2, block]
        parts.append(medians[0] / medians[1] if len(rows) == 2 else medians[0])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return float(low), float(high)
