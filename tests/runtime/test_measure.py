import gc

import numpy as np
import pytest

from edgepress.runtime import measure as module
from edgepress.runtime.measure import measure, ratio_interval
from edgepress.runtime.memory import null_model
from edgepress.runtime.record import EngineError

FEEDS = {"x": np.zeros(1, np.float32)}


class FakeEngine:
    """Models are names; each call of one takes the time that the script says, on a clock of its own."""

    name = "fake"
    version = "0"

    def __init__(self, **durations):
        self.durations = durations
        self.now = 0
        self.calls = []
        self.gc_was_on = False

    def clock(self):
        return self.now

    def load(self, model, threads=1):
        return FakeRunner(self, model.decode())


class FakeRunner:
    def __init__(self, engine, name):
        self.engine = engine
        self.name = name

    def __call__(self, feeds, *, outputs=None):
        return {}

    def bind(self, feeds):
        def call():
            duration = self.engine.durations[self.name]
            self.engine.now += duration(len(self.engine.calls)) if callable(duration) else duration
            self.engine.calls.append(self.name)
            self.engine.gc_was_on |= gc.isenabled()

        return call


def timed(engine, names="ab", **options):
    models = [name.encode() for name in names]
    return measure(models, FEEDS, engine=engine, clock=engine.clock, **options)


def test_steady_models_are_known_after_the_fewest_rounds():
    engine = FakeEngine(a=1_000_000, b=2_000_000)
    a, b = timed(engine, min_rounds=12)
    assert (a.median_ns, a.ci95_ns, a.p90_ns) == (1e6, (1e6, 1e6), 1e6)
    assert b.median_ns == 2e6
    assert len(a.samples_ns) == len(b.samples_ns) == 12
    assert not a.too_noisy
    assert a.outliers == 0
    assert ratio_interval(a, b) == (0.5, 0.5)


def test_models_take_turns_in_an_order_that_changes_and_repeats_under_a_seed():
    runs = []
    for seed in (0, 0, 1):
        engine = FakeEngine(a=1_000_000, b=1_000_000, c=1_000_000)
        timed(engine, "abc", min_rounds=8, seed=seed)
        order = "".join(engine.calls)[15:]  # after five warm-up calls each
        assert all(sorted(order[start : start + 6]) == list("aabbcc") for start in range(0, len(order), 6))
        runs.append(order)
    assert runs[0] == runs[1] != runs[2]
    assert len({runs[0][start : start + 6] for start in range(0, len(runs[0]), 6)}) > 1


def test_a_sample_of_a_quick_model_averages_over_many_calls():
    engine = FakeEngine(a=5_000)
    (a,) = timed(engine, "a", min_rounds=3)
    assert a.calls_per_sample == 40  # 200 us
    assert a.median_ns == 5_000
    assert len(engine.calls) == 5 + 3 * (1 + 40)


def test_slow_first_calls_are_no_part_of_the_figures():
    engine = FakeEngine(a=lambda call: 50_000_000 if call == 0 else 1_000_000)
    (a,) = timed(engine, "a", min_rounds=5)
    assert a.median_ns == max(a.samples_ns) == 1_000_000


def test_noise_is_measured_for_longer_and_said_aloud():
    noise = np.random.default_rng(0).lognormal(0, 0.5, 100_000)
    engine = FakeEngine(a=lambda call: int(1_000_000 * noise[call]))
    (a,) = timed(engine, "a", min_rounds=5, max_rounds=40)
    assert len(a.samples_ns) == 40
    assert a.too_noisy
    low, high = a.ci95_ns
    assert low < a.median_ns < high
    assert a.p90_ns > high


def test_rounds_go_on_until_the_median_is_known():
    noise = np.random.default_rng(0).lognormal(0, 0.03, 100_000)
    engine = FakeEngine(a=lambda call: int(1_000_000 * noise[call]))
    (a,) = timed(engine, "a", min_rounds=5, max_rounds=10_000)
    assert 5 < len(a.samples_ns) < 1000
    assert not a.too_noisy


def test_time_limit_ends_the_rounds_but_three_always_run():
    engine = FakeEngine(a=lambda call: 1_000_000_000 + call)
    (a,) = timed(engine, "a", time_limit_s=1.5, min_rounds=50)
    assert len(a.samples_ns) == 3
    engine = FakeEngine(a=lambda call: 10_000_000 + 4_000_000 * (call % 3))
    (a,) = timed(engine, "a", time_limit_s=2.0, min_rounds=500)
    assert 60 < len(a.samples_ns) < 100


def test_outliers_are_counted_and_do_not_move_the_median():
    engine = FakeEngine(a=lambda call: 90_000_000 if call % 20 == 0 else 1_000_000 + call)
    (a,) = timed(engine, "a", min_rounds=40, max_rounds=40)
    assert 0 < a.outliers < 10
    assert a.median_ns == pytest.approx(1_000_000, rel=1e-3)


def test_garbage_collection_rests_while_timing_and_comes_back_after_an_error():
    engine = FakeEngine(a=1_000_000)
    timed(engine, "a", min_rounds=3)
    assert not engine.gc_was_on
    assert gc.isenabled()

    def broken(call):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        timed(FakeEngine(a=broken), "a")
    assert gc.isenabled()


def test_a_real_model_is_timed_and_wrong_feeds_are_named():
    first, second = measure([null_model(), null_model()], FEEDS, time_limit_s=0.2, max_rounds=40)
    assert 0 < first.ci95_ns[0] <= first.median_ns <= first.ci95_ns[1] < 50e6
    assert len(first.samples_ns) == len(second.samples_ns)
    with pytest.raises(EngineError, match=r"cannot run the model.*x"):
        measure([null_model()], {"z": FEEDS["x"]})


def test_each_model_may_have_an_engine_of_its_own():
    quick = FakeEngine(a=1_000_000)
    slow = FakeEngine(a=3_000_000)
    found = measure([b"a", b"a"], FEEDS, engine=[quick, slow], clock=lambda: quick.now + slow.now)
    assert [one.median_ns for one in found] == [1e6, 3e6]
    with pytest.raises(ValueError, match="1 engines for 2 models"):
        measure([b"a", b"a"], FEEDS, engine=[quick])


def test_nothing_to_measure_gives_nothing():
    assert measure([], FEEDS) == []


def test_measurements_of_different_calls_are_no_pairs():
    engine = FakeEngine(a=1_000_000)
    (a,) = timed(engine, "a", min_rounds=3)
    (b,) = timed(engine, "a", min_rounds=4)
    with pytest.raises(ValueError, match="3 rounds against 4"):
        module.ratio_interval(a, b)
