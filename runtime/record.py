"""What the runtime hands back: a measurement with its units, or an error that somebody can act on."""

from __future__ import annotations

from dataclasses import dataclass


class HintedError(Exception):
    """What went wrong outside this program, told to somebody who can do something about it.

    Args:
        message: what is wrong and where.
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class EngineError(HintedError):
    """An engine refused a model or failed while running it, or its process died."""


class EngineDiedError(EngineError):
    """The process that ran an engine was ended by a signal."""


@dataclass(frozen=True)
class Measurement:
    """One model's time per inference, in nanoseconds.

    Attributes:
        median_ns: median over all rounds.
        ci95_ns: 95 % bootstrap interval of the median.
        samples_ns: every round in order; models that were measured together share their rounds, so that
            `samples_ns[i]` of one and of another are a pair.
        p90_ns: 90th percentile over all rounds.
        too_noisy: the interval is still wider than the precision that was asked for.
        outliers: rounds that lie far from the median (modified z-score above 3.5); kept in all figures.
        calls_per_sample: inferences that one round averages over.
    """

    median_ns: float
    ci95_ns: tuple[float, float]
    samples_ns: tuple[int, ...]
    p90_ns: float
    too_noisy: bool
    outliers: int
    calls_per_sample: int
