"""How many connections neurons have, and whether that looks scale-free.

Evolution is said to lead from a random graph to one whose degrees follow a power law (Chouliaras 2021, §3.5; Mocanu
et al. 2018). As Clauset, Shalizi and Newman (2009) do, a power law is fitted to the tail k ≥ k_min that suits it best
and compared there, by the likelihood ratio of Vuong (1989), with an exponential tail, the heaviest that is not called
heavy; the Poisson degrees of a random graph fall faster still.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import zeta
from scipy.stats import norm

from edgepress.compressor.evolve.topology import Topology

Verdict = Literal["power law", "exponential", "cannot tell"]
LEAST_TAIL = 50
"""Fewer neurons tell nothing."""
LEAST_SHARE = 0.25
"""Of all neurons that the tail holds at least: a power law of the last few would be no property of the layer."""
SURE = 0.05
CANDIDATES = 30


@dataclass(frozen=True)
class Shape:
    """What a distribution of degrees looks like.

    Attributes:
        minimum: where its tail begins.
        tail: neurons in it.
        exponent: of the power law.
        distance: largest difference between the tail and the power law, as shares (Kolmogorov–Smirnov).
        ratio: log-likelihood of the power law less that of the exponential tail, a neuron.
        p: how likely a ratio so far from 0 is by chance.
        verdict: which of the two fits better.
    """

    minimum: int
    tail: int
    exponent: float
    distance: float
    ratio: float
    p: float
    verdict: Verdict


def degrees(topology: Topology) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Connections of each input [inputs] and of each output [outputs]."""
    return (
        np.diff(topology.starts).astype(np.int64),
        np.bincount(topology.targets, minlength=topology.outputs).astype(np.int64),
    )


def shape_of(found: npt.NDArray[np.int64]) -> Shape | None:
    """Fit both distributions to degrees [neurons]; None where too few differ to tell anything."""
    found = np.sort(found[found > 0])
    least = max(LEAST_TAIL, int(LEAST_SHARE * len(found)))
    if len(found) < least or found[0] == found[-1]:
        return None
    starts = np.unique(found[: len(found) - least + 1])
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, CANDIDATES).astype(int))]
    fits = [_power_law(found[found >= start], int(start)) for start in starts]
    distance, exponent, minimum = min(fits)
    tail = found[found >= minimum]
    if tail[0] == tail[-1]:
        return None
    each = _power_likelihood(tail, exponent, minimum) - _exponential_likelihood(tail, minimum)
    ratio, spread = float(each.mean()), float(each.std())
    p = float(2 * norm.sf(abs(ratio) * math.sqrt(len(tail)) / spread)) if spread else 1.0
    verdict: Verdict = "cannot tell" if p > SURE else "power law" if ratio > 0 else "exponential"
    return Shape(minimum, len(tail), exponent, distance, ratio, p, verdict)


def _power_law(tail: npt.NDArray[np.int64], minimum: int) -> tuple[float, float, int]:
    """Distance, exponent and where it begins."""
    logs = float(np.log(tail).mean())
    exponent = float(
        minimize_scalar(
            lambda a: a * logs + math.log(zeta(a, minimum)), bounds=(1.01, 50), method="bounded"
        ).x
    )
    values, counts = np.unique(tail, return_counts=True)
    seen = np.cumsum(counts) / len(tail)
    expected = 1 - zeta(exponent, values + 1) / zeta(exponent, minimum)
    return float(np.abs(seen - expected).max()), exponent, minimum


def _power_likelihood(tail: npt.NDArray[np.int64], exponent: float, minimum: int) -> npt.NDArray[np.float64]:
    likelihood: npt.NDArray[np.float64] = -exponent * np.log(tail) - math.log(zeta(exponent, minimum))
    return likelihood


def _exponential_likelihood(tail: npt.NDArray[np.int64], minimum: int) -> npt.NDArray[np.float64]:
    """Of the geometric distribution from `minimum` on that suits the tail best."""
    mean = float(tail.mean()) - minimum
    beyond = (tail - minimum).astype(np.float64)
    likelihood: npt.NDArray[np.float64] = beyond * math.log(mean / (1 + mean)) - math.log(1 + mean)
    return likelihood
