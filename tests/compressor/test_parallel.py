"""How many pieces of work run at a time."""

import gc
import threading
import time

import pytest

from edgepress.compressor import parallel
from edgepress.compressor.parallel import COPIES, OBJECTS, seldom_collecting, side_by_side, within_memory


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores and 8 GB."""
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(parallel, "physical_bytes", lambda: 8 << 30)


def most_at_once(items: int = 8) -> int:
    """The most pieces of work that ran together."""
    running, peak, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return -item

    assert side_by_side(work, range(items)) == [-item for item in range(items)]
    return peak


def test_a_large_model_has_fewer_at_a_time(machine: None) -> None:
    assert most_at_once() == 4
    with within_memory((2 << 30) // COPIES):
        assert most_at_once() == 2
    with within_memory(3 << 30):
        assert most_at_once() == 1
    with within_memory(0):
        assert most_at_once() == 4
    assert most_at_once() == 4


def test_this_machine_has_memory() -> None:
    assert parallel.physical_bytes() > 100 << 20


@pytest.mark.parametrize(("before", "meanwhile"), [(700, OBJECTS), (OBJECTS + 5, OBJECTS + 5), (0, 0)])
def test_garbage_is_looked_for_seldom_and_then_as_before(before: int, meanwhile: int) -> None:
    usual = gc.get_threshold()
    gc.set_threshold(before, *usual[1:])
    try:
        with seldom_collecting():
            assert gc.get_threshold() == (meanwhile, *usual[1:])
        assert gc.get_threshold() == (before, *usual[1:])
    finally:
        gc.set_threshold(*usual)
