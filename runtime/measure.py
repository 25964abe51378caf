"""Interleaved timing of several models on this machine.

Every round times each model once, in an order of its own, so that whatever slows the machine for a while
slows all of them. A sample averages over enough calls to dwarf the clock; it is preceded by one call that is
not timed, which brings the model's weights back into the caches. Rounds go on until each median is known well
enough, or time is up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike

import numpy as np
import numpy.typing as npt

from edgepress.runtime import stats
from edgepress.runtime.engines.base import Engine, Feeds
from edgepress.runtime.engines.choose import engine_for
from edgepress.runtime.record import Measurement

__all__ = ["PRECISION", "Measurement", "measure", "ratio_interval"]

Call = Callable[[], object]
Clock = Callable[[], int]
Rounds = npt.NDArray[np.int64]
"""Nanoseconds per call, shape [rounds]."""

PRECISION = 0.01
"""Half the width of the 95 % interval, as a share of the median, at which a median is known, where nothing is said."""

_SAMPLE_NS = 200_000  # a sample lasts at least this long: 0.01 % for a clock that ticks every 20 ns
_WARM_CALLS = 5
_SETTLE_NS = 20_000_000  # above this, cold caches are a small part of one call, and a further call is dear
_FEWEST_ROUNDS = 3  # even when time is up: fewer give no interval at all


def measure(
    models: Sequence[bytes | PathLike[str]],
    feeds: Feeds | Sequence[Feeds],
    *,
    engine: Engine | Sequence[Engine] | None = None,
    threads: int = 1,
    time_limit_s: float = 10.0,
    precision: float = PRECISION,
    min_rounds: int = 30,
    max_rounds: int = 2000,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> list[Measurement]:
    """Time models, interleaved.

    Args:
        models: serialized models or files.
        feeds: what each of them is run on: the same for all, or one mapping a model.
        engine: what runs them, all or each; None: onnxruntime, and LiteRT for TFLite files.
        threads: threads that one operator may use.
        time_limit_s: no round starts after this many seconds, but three always run; loading not counted.
        precision: half the width of the 95 % interval, as a share of the median, at which a median is known.
        min_rounds: rounds before the first look at the intervals.
        max_rounds: rounds at most.
        seed: seed of the order within rounds and of the bootstrap.
        clock: nanoseconds, never going back.

    Returns:
        One measurement a model, in order, all over the same rounds.

    Raises:
        EngineError: a model does not load or does not run on the feeds.
        ValueError: there are several engines, but not as many as models.
    """
    if not models:
        return []
    engines = list(engine) if isinstance(engine, Sequence) else [engine or engine_for(m) for m in models]
    if len(engines) != len(models):
        raise ValueError(f"{len(engines)} engines for {len(models)} models")
    given = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    calls = [_bound(each, model, own, threads) for each, model, own in zip(engines, models, given)]
    shuffle, bootstrap = (np.random.default_rng([seed, stream]) for stream in range(2))
    with _no_garbage_collection():
        start = clock()
        repeats = [_warm(call, clock) for call in calls]
        rounds: list[list[int]] = []
        look = min_rounds
        while len(rounds) < max_rounds:
            if len(rounds) >= _FEWEST_ROUNDS and clock() - start >= time_limit_s * 1e9:
                break
            if len(rounds) >= look:
                if all(_known(column, precision, bootstrap) for column in np.array(rounds).T):
                    break
                look = max(look + 1, look * 3 // 2)  # looks grow rarer: each costs as long as some rounds
            rounds.append(_round(calls, repeats, shuffle, clock))
    return [
        _summary(column, repeat[0], precision, bootstrap)
        for column, repeat in zip(np.array(rounds).T, repeats)
    ]


def ratio_interval(a: Measurement, b: Measurement, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a's median over b's: below 1 throughout means that a is faster.

    Args:
        a: a measurement.
        b: another from the same call of `measure`.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the two do not share their rounds.
    """
    return stats.ratio_interval(a.samples_ns, b.samples_ns, np.random.default_rng(seed))


def _bound(engine: Engine, model: bytes | PathLike[str], feeds: Feeds, threads: int) -> Call:
    runner = engine.load(model, threads)
    runner(feeds)  # so that feeds which do not fit are refused by name, before any timing
    return runner.bind(feeds)


def _warm(call: Call, clock: Clock) -> tuple[int, bool]:
    """How many calls make a sample, and whether one untimed call goes before it."""
    fastest = _SAMPLE_NS
    spent = 0
    for _ in range(_WARM_CALLS):
        before = clock()
        call()
        took = clock() - before
        fastest = max(1, min(fastest, took))
        spent += took
        if spent > _SETTLE_NS:
            break
    return -(-_SAMPLE_NS // fastest), took <= _SETTLE_NS


def _round(
    calls: Sequence[Call], repeats: Sequence[tuple[int, bool]], rng: np.random.Generator, clock: Clock
) -> list[int]:
    """One sample a model, in nanoseconds per call."""
    samples = [0] * len(calls)
    for index in rng.permutation(len(calls)):
        call = calls[index]
        count, settle = repeats[index]
        if settle:
            call()
        before = clock()
        for _ in range(count):
            call()
        samples[index] = round((clock() - before) / count)
    return samples


def _known(samples: Rounds, precision: float, rng: np.random.Generator) -> bool:
    low, high = stats.median_interval(samples, rng)
    return (high - low) / 2 <= precision * float(np.median(samples))


def _summary(values: Rounds, calls: int, precision: float, rng: np.random.Generator) -> Measurement:
    median = float(np.median(values))
    low, high = stats.median_interval(values, rng)
    return Measurement(
        median_ns=median,
        ci95_ns=(low, high),
        samples_ns=tuple(int(value) for value in values),
        p90_ns=float(np.quantile(values, 0.9)),
        too_noisy=(high - low) / 2 > precision * median,
        outliers=stats.outliers(values),
        calls_per_sample=calls,
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
