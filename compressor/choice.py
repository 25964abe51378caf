"""Candidates, and which of those that keep the budget is the best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.estimate import Estimate
from edgepress.compressor.passes import Pass
from edgepress.compressor.passes.base import Skipped
from edgepress.compressor.protocols import Footprint
from edgepress.compressor.serialize import Serialized

Objective = Literal["latency", "size", "memory"]

LATENCY_SHARE: dict[Objective, float] = {"latency": 0.7, "size": 0.1, "memory": 0.1}
"""Weight of latency in the allocation; the rest is size, or memory where that is the objective."""

Weigher = Callable[[str, Serialized], int]
"""Name and serialized model → peak bytes of one run."""

SIZE_AGAINST_LATENCY = 0.1
"""When latency is the objective: a model may be so much slower (in log) as it is smaller, times this."""

SIZE_AGAINST_MEMORY = 0.1
"""The same of memory."""

NOISE = 0.01
"""Differences in latency or memory below this are none."""

MEMORY_NOISE_BYTES = 100_000
"""Differences in measured memory below this are the allocator's."""


CANNOT_RUN = 1e3
"""Excess of what a device cannot run at all."""


@dataclass(frozen=True)
class Candidate:
    """A model that was considered.

    Attributes:
        label: how people tell it from others.
        recipe: what makes it.
        estimate: on samples that it was not fitted to; None where it was not judged.
        data: serialized, where it got that far.
        latency_ns: measured or predicted.
        memory_bytes: peak of one run, likewise; None where the objective does not ask for it.
        footprint: what it takes of the target, where that is a microcontroller.
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
    memory_bytes: int | None = None
    footprint: Footprint | None = None
    skipped: tuple[Skipped, ...] = ()
    kept: bool = False
    why: str = ""


@dataclass(frozen=True)
class Limits:
    """What the result may take at most; None: as much as it likes.

    Attributes:
        size_bytes: of the file.
        latency_ns: of one inference, measured where the device answers.
        flash_bytes: of the TFLite file, on a microcontroller.
        arena_bytes: of the interpreter there.
    """

    size_bytes: int | None = None
    latency_ns: float | None = None
    flash_bytes: int | None = None
    arena_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing can keep to."""
        for name, limit in (("--max-size", self.size_bytes), ("--max-latency", self.latency_ns)):
            if limit is not None and not 0 < limit < math.inf:
                raise UsageError(f"{name}: {limit} is no limit.", "Give a number above 0.")

    def excess(self, size_bytes: float, latency_ns: float) -> float:
        """By how much a model is over, as the sum of logarithms of both ratios; 0 where it keeps to the limits."""
        pairs = ((size_bytes, self.size_bytes), (latency_ns, self.latency_ns))
        return sum(max(math.log(max(has, 1e-9) / limit), 0.0) for has, limit in pairs if limit is not None)

    def missed(self, candidate: Candidate) -> float:
        """The excess of a candidate; its latency must be below by what a clock may err."""
        over = self.excess(len(candidate.data), (1 + NOISE) * (candidate.latency_ns or 0.0))
        return over + (self.overflow(candidate.footprint) if candidate.footprint is not None else 0.0)

    def overflow(self, footprint: Footprint) -> float:
        """By how much a microcontroller's memories are too small, as `excess`; very much where it cannot run it."""
        pairs = ((footprint.flash_bytes, self.flash_bytes), (footprint.arena_bytes, self.arena_bytes))
        known = ((has, limit) for has, limit in pairs if has is not None and limit is not None)
        over = sum(max(math.log(max(has, 1) / limit), 0.0) for has, limit in known)
        return over + (0.0 if footprint.runs else CANNOT_RUN)


NONE = Limits()


def worth(candidate: Candidate, original: Candidate, objective: Objective) -> float:
    """What is minimised: 0 for the original and its equals, infinite for what is slower, larger or hungrier."""
    if candidate.data == original.data:
        return 0.0
    ratio = (candidate.latency_ns or 1.0) / (original.latency_ns or 1.0)
    smaller = size_ratio(candidate, original)
    if ratio > 1 + NOISE or smaller > 1 or (objective == "memory" and hungrier(candidate, original)):
        return math.inf
    if objective == "memory":
        leaner = math.log(memory_ratio(candidate, original))
        return leaner + SIZE_AGAINST_MEMORY * math.log(smaller) + 0.01 * math.log(ratio)
    weight = SIZE_AGAINST_LATENCY if objective == "latency" else 1.0
    return weight * math.log(smaller) + (
        math.log(ratio) if objective == "latency" else 0.01 * math.log(ratio)
    )


def size_ratio(candidate: Candidate, original: Candidate) -> float:
    """The file's bytes over the original's; of the files that go to the device, where both are known."""
    pair = [c.footprint.flash_bytes if c.footprint is not None else None for c in (candidate, original)]
    now, before = pair
    if now is None or before is None:
        now, before = len(candidate.data), len(original.data)
    return now / max(before, 1)


def memory_ratio(candidate: Candidate, original: Candidate) -> float:
    """Peak memory over the original's, each in whole steps of what the allocator's noise is, at least one."""
    noise = _noise_bytes(original)
    now, before = (max(round((c.memory_bytes or 0) / noise), 1) for c in (candidate, original))
    return now / before


def _noise_bytes(original: Candidate) -> int:
    """An interpreter's arena is known to the byte."""
    return MEMORY_NOISE_BYTES if original.footprint is None else 1


def hungrier(candidate: Candidate, original: Candidate) -> bool:
    """Whether it takes more memory than the original, beyond noise."""
    now, before = (c.memory_bytes or 0 for c in (candidate, original))
    return now - before > max(NOISE * before, _noise_bytes(original))


def chosen(built: Sequence[Candidate], objective: Objective, limits: Limits = NONE) -> list[Candidate]:
    """The same candidates, one of them kept, each with the reason.

    What is slower or larger than the original is never kept; of the others the least over the limits, and of those
    the best by the objective.

    Args:
        built: with data and latency (and memory, where that is the objective), the original first.
        objective: what is to become small.
        limits: what the result may take.
    """
    original = built[0]

    def rank(candidate: Candidate) -> tuple[bool, float, float]:
        value = worth(candidate, original, objective)
        return math.isinf(value), limits.missed(candidate), value

    best = min(built, key=rank)
    return [replace(c, kept=c is best, why=reason(c, best, original, limits)) for c in built]


def reason(candidate: Candidate, best: Candidate, original: Candidate, limits: Limits = NONE) -> str:
    """Why a candidate was kept or not, in words for the report."""
    if candidate is best and limits.missed(best):
        return "nearest to the limits of what keeps the budget"
    if candidate is best:
        return (
            "best within the budget"
            if candidate is not original
            else "nothing smaller or faster keeps the budget"
        )
    if candidate is not original and (candidate.latency_ns or 0) > (1 + NOISE) * (original.latency_ns or 0):
        return "slower than the original"
    if size_ratio(candidate, original) > 1:
        return "larger than the original"
    if hungrier(candidate, original):
        return "takes more memory than the original"
    return "over the limits" if limits.missed(candidate) > limits.missed(best) else "another one is better"
