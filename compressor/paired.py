"""Two models on the same rows: how much of the first one's score the second one keeps, with intervals and tests.

Right/wrong rows fall into four cells: both right, lost (right before, wrong now), gained, neither. The share kept is
ρ = p₂ / p₁, a ratio of paired proportions. Its interval holds every ρ that the score test does not refuse:

    T(ρ) = (x₂ − ρ x₁ ∓ κ) / √(n ρ (π̃_lost + π̃_gained)),    π̃: most likely under p₂ = ρ p₁, a quadratic's root

after Tang, Tang & Chan (Statistics in Medicine 22, 2003, 1217–1233) and Nam & Blackwelder (21, 2002, 689–699). It keeps
its width where no row changed. κ is a continuity correction of a quarter of a row: without it, at 5 % and 100 or 200
rows, up to 5.7 % of candidates exactly on a budget would be let through (`benchmarks/gate.py`); half a row is more than
is needed.

Whether anything was lost at all is asked by McNemar's exact test. Values that are not right or wrong: the paired
bootstrap, bias-corrected and accelerated (Efron, JASA 82, 1987, 171–185), of the share kept itself. scipy.stats has it,
but its jackknife takes n² steps; scores here are functions of means, of which a jackknife takes n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from edgepress.compressor.protocols import Matrix

Interval = tuple[float, float]
Score = Callable[[Matrix], Matrix]
"""Means of rows' values [k] → scores [k]."""

CONTINUITY = 0.25
RESAMPLES = 2000
MOST_ROWS = 1e9
"""More than this nobody has."""


@dataclass(frozen=True)
class Cells:
    """Right and wrong rows of two models; fractions where rows are imagined.

    Attributes:
        both: right under both.
        lost: right under the first only.
        gained: right under the second only.
        neither: right under none.
    """

    both: float
    lost: float
    gained: float
    neither: float

    @classmethod
    def of(cls, first: Matrix, second: Matrix) -> "Cells":
        """Count rows of 0 and 1, [n] both."""
        one, two = first == 1, second == 1
        lost, gained = int((one & ~two).sum()), int((~one & two).sum())
        both = int((one & two).sum())
        return cls(both, lost, gained, len(first) - both - lost - gained)

    @property
    def rows(self) -> float:
        """All of them."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def share(self) -> float:
        """The second model's right rows over the first one's."""
        before = self.both + self.lost
        return (self.both + self.gained) / before if before else math.inf

    def scaled(self, rows: float) -> "Cells":
        """The same shares of another number of rows."""
        k = rows / self.rows
        return Cells(k * self.both, k * self.lost, k * self.gained, k * self.neither)

    def without_drop(self) -> "Cells":
        """As many rows that differ, as many gained as lost."""
        half = (self.lost + self.gained) / 2
        spare = self.both + (self.lost - half)
        return Cells(spare, half, half, self.neither + (self.gained - half))


def score_statistic(cells: Cells, share: float, correction: float = 0.0) -> float:
    """T(ρ): how many standard errors the second model's right rows lie above ρ times the first one's.

    Args:
        cells: with at least one row right under one of the models.
        share: ρ, above 0.
        correction: rows by which the distance is made smaller.
    """
    if share > 1:  # the other way round the quadratic has one positive root
        return -score_statistic(
            Cells(cells.both, cells.gained, cells.lost, cells.neither), 1 / share, correction / share
        )
    a, b, c = cells.both, cells.lost, cells.gained
    total = a + b + c
    # Of the rows right under one of the models x are gained, (1 − ρ) + ρ x lost, and ρ − (1 + ρ) x right under both.
    square = share * (1 + share) * total
    linear = a * (1 - share**2) - b * share**2 - c * (2 * share**2 - 1)
    constant = -c * share * (1 - share)
    gained = (-linear + math.sqrt(max(linear**2 - 4 * square * constant, 0.0))) / (2 * square)
    variance = total * share * ((1 - share) + (1 + share) * gained)
    distance = (a + c) - share * (a + b)
    distance = math.copysign(max(abs(distance) - correction, 0.0), distance)
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def share_interval(cells: Cells, confidence: float) -> Interval:
    """The shares ρ that the score test does not refuse.

    Args:
        cells: with at least one row right under the first model.
        confidence: with which each end holds by itself, in (0.5, 1); 0.975 makes an interval of 95 %.

    Returns:
        (low, high), 0 ≤ low ≤ share ≤ high ≤ infinity.
    """
    z = float(norm.ppf(confidence))
    share = cells.share
    low, high = 0.0, math.inf
    smallest, largest = 1e-6, 1e6
    if share > smallest and score_statistic(cells, smallest, CONTINUITY) > z:
        low = _root(lambda rho: score_statistic(cells, rho, CONTINUITY) - z, smallest, min(share, largest))
    if score_statistic(cells, largest, CONTINUITY) < -z:
        high = _root(lambda rho: score_statistic(cells, rho, CONTINUITY) + z, max(share, smallest), largest)
    return min(low, share), max(high, share)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Between two shares, on a logarithmic scale."""
    return math.exp(brentq(lambda x: function(math.exp(x)), math.log(low), math.log(high), xtol=1e-12))


def mcnemar(cells: Cells) -> float:
    """Probability of at least so many lost among the rows that differ, were losing and gaining as likely.

    McNemar's test, exact and one-sided (Psychometrika 12, 1947, 153–157).
    """
    differing = round(cells.lost + cells.gained)
    return float(binomtest(round(cells.lost), differing, alternative="greater").pvalue) if differing else 1.0


@dataclass(frozen=True)
class Bootstrap:
    """Shares kept under resampling of rows, from which ends of intervals are read.

    Attributes:
        share: of the rows as they are.
        shares: of each resample, ascending; [RESAMPLES].
        bias: z₀.
        acceleration: â.
    """

    share: float
    shares: Matrix
    bias: float
    acceleration: float

    def end(self, level: float) -> float:
        """The value below which the share lies with this probability.

        Args:
            level: in (0, 1).
        """
        z = self.bias + float(norm.ppf(level))
        adjusted = norm.cdf(self.bias + z / (1 - self.acceleration * z))
        return float(np.quantile(self.shares, adjusted))


def bootstrap(
    first: Matrix, second: Matrix, share: Callable[[Matrix, Matrix], Matrix], seed: int
) -> Bootstrap | None:
    """Resample rows, both models' values of a row together.

    Args:
        first: [n] values.
        second: [n] values of the same rows.
        share: means of both [k], [k] → share kept [k].
        seed: of the resampling.

    Returns:
        What `end` reads; None below two rows, or where a share is not finite.
    """
    n = len(first)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    both = np.stack([first, second])  # [2, n]
    means = np.empty((2, RESAMPLES))
    for place in range(RESAMPLES):
        times = np.bincount(rng.integers(0, n, n), minlength=n)  # how often each row was drawn
        means[:, place] = both @ times / n
    whole = both.mean(axis=1)
    without = (n * whole[:, None] - both) / (n - 1)  # [2, n]: the means without each row
    found = float(share(whole[:1], whole[1:])[0])
    shares, left_out = share(*means), share(*without)
    if not (math.isfinite(found) and np.isfinite(shares).all() and np.isfinite(left_out).all()):
        return None
    # Resamples equal to the estimate count half, as in scipy.stats.bootstrap.
    below = (np.count_nonzero(shares < found) + np.count_nonzero(shares <= found)) / (2 * RESAMPLES)
    bias = float(norm.ppf(min(max(below, 0.5 / RESAMPLES), 1 - 0.5 / RESAMPLES)))
    away = left_out.mean() - left_out
    spread = float((away**2).sum())
    acceleration = float((away**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0
    return Bootstrap(found, np.sort(shares), bias, acceleration)


def rows_to_decide(
    cells: Cells, allowed: float, confidence: float, certainty: float, power: float
) -> int | None:
    """How many rows would most likely settle whether `allowed` is kept, were shares of rows what they are here.

    Args:
        cells: what was found.
        allowed: share that must be kept, above 0.
        confidence: of each end of the interval.
        certainty: with which McNemar's test must find a loss for a failure.
        power: probability of a verdict on so many rows.

    Returns:
        Rows; None where no number that anybody has would do, as for a share that is the allowed one.
    """
    more, z = float(norm.ppf(power)), float(norm.ppf(confidence))
    kept = cells.share >= allowed

    def settled(rows: float) -> bool:
        imagined = cells.scaled(rows)
        statistic = abs(score_statistic(imagined, allowed, CONTINUITY))
        # Its denominator is the spread if the share is the allowed one; if it is what was found, it may be wider.
        away = abs((imagined.both + imagined.gained) - allowed * (imagined.both + imagined.lost))
        under_found = _spread(imagined, allowed)
        wider = max(1.0, under_found * statistic / away) if away else 1.0
        if statistic < z + more * wider:
            return False
        differing = imagined.lost + imagined.gained
        loss = (imagined.lost - imagined.gained) / math.sqrt(differing) if differing else 0.0
        return kept or loss >= float(norm.ppf(certainty)) + more

    if not settled(MOST_ROWS):
        return None
    low, high = 1.0, MOST_ROWS
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return math.ceil(high)


def _spread(cells: Cells, share: float) -> float:
    """Standard deviation of x₂ − ρ x₁ if the cells are the truth."""
    squares = cells.both * (1 - share) ** 2 + cells.lost * share**2 + cells.gained
    mean = (cells.both + cells.gained) - share * (cells.both + cells.lost)
    return math.sqrt(max(squares - mean**2 / cells.rows, 0.0))


def rows_for_distance(
    rows: int, reach: float, distance: float, confidence: float, power: float
) -> int | None:
    """The same for values that are not right or wrong, their interval narrowing with the root of the rows.

    Args:
        rows: that were looked at.
        reach: from the share found to the end of its interval, on the side of what is allowed.
        distance: from the share found to what is allowed.
        confidence: of that end.
        power: probability of a verdict on so many rows.
    """
    z = float(norm.ppf(confidence))
    if distance <= 0:
        return None
    needed = rows * (reach / distance * (z + float(norm.ppf(power))) / z) ** 2
    return math.ceil(needed) if needed <= MOST_ROWS else None
