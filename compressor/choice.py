"""Candidates, and which of those that keep the budget is the best."""

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgepress.compressor.estimate import Estimate
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import Skipped
from edgepress.compressor.serialize import Serialized

Objective = Literal["latency", "size", "memory"]

SIZE_AGAINST_LATENCY = 0.1
"""When latency is the objective: a model may be so much slower (in log) as it is smaller, times this."""

NOISE = 0.01
"""Differences in latency below this are none."""


@dataclass(frozen=True)
class Candidate:
    """A model that was considered.

    Attributes:
        label: how people tell it from others.
        recipe: what makes it.
        estimate: on samples that it was not fitted to; None where it was not judged.
        data: serialized, where it got that far.
        latency_ns: measured or predicted.
        skipped: sites left alone on the way.
        kept: whether it is the result.
        why: the reason.
    """

    label: str
    recipe: tuple[Pass, ...]
    estimate: Estimate | None = None
    model: ir.Model | None = None
    data: Serialized = b""
    latency_ns: float | None = None
    skipped: tuple[Skipped, ...] = ()
    kept: bool = False
    why: str = ""


def worth(candidate: Candidate, original: Candidate, objective: Objective) -> float:
    """What is minimised: 0 for the original and its equals, infinite for what is slower or larger."""
    if candidate.data == original.data:
        return 0.0
    ratio = (candidate.latency_ns or 1.0) / (original.latency_ns or 1.0)
    smaller = len(candidate.data) / max(len(original.data), 1)
    if ratio > 1 + NOISE or smaller > 1:
        return math.inf
    weight = SIZE_AGAINST_LATENCY if objective == "latency" else 1.0
    return weight * math.log(smaller) + (
        math.log(ratio) if objective == "latency" else 0.01 * math.log(ratio)
    )


def reason(candidate: Candidate, best: Candidate, original: Candidate) -> str:
    """Why a candidate was kept or not, in words for the report."""
    if candidate is best:
        return (
            "best within the budget"
            if candidate is not original
            else "nothing smaller or faster keeps the budget"
        )
    if candidate is not original and (candidate.latency_ns or 0) > (1 + NOISE) * (original.latency_ns or 0):
        return "slower than the original"
    if len(candidate.data) > len(original.data):
        return "larger than the original"
    return "another one is better"
