"""Weights that go under a limit, the pass that takes them, and classes that stay."""

from typing import Any

import numpy as np
import pytest
from certifynets import box_of, net, nudged, output, points, with_erf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.choose import METHODS, PLAIN, TIGHT, Proposals, Task, by_segments, choose
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.program import read
from edgepress.compressor.certify.top1 import margins
from edgepress.compressor.passes import Reset
from edgepress.compressor.passes.base import Context


def slowly(
    lo: np.ndarray[Any, Any], hi: np.ndarray[Any, Any], limit: np.ndarray[Any, Any], order: list[int]
) -> list[int]:
    """Phase 4 as the document words it, one weight after another."""
    v_lo, v_hi, taken = np.zeros(len(limit)), np.zeros(len(limit)), []
    for w in order:
        low, high = v_lo + lo[:, w], v_hi + hi[:, w]
        if (-low <= limit * (1 + 1e-12)).all() and (high <= limit * (1 + 1e-12)).all():
            v_lo, v_hi, taken = low, high, [*taken, w]
    return taken


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 3))
def test_segments_are_filled_as_the_document_says(seed: int, count: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    lo, hi = -rng.random((outputs, count)), rng.random((outputs, count))
    limit = np.full(outputs, rng.uniform(0.1, count / 3))
    proposals = Proposals(("s",), (count,), ((count,),), lo, hi, np.zeros(count, bool))
    found = by_segments(proposals, limit, np.random.default_rng(seed)).tolist()
    again, order = np.random.default_rng(seed), []
    by_size = np.argsort((np.maximum(-lo, hi) / limit[:, None]).sum(0), kind="stable")
    for segment in np.array_split(by_size, 10):
        order += segment[again.permutation(len(segment))].tolist()
    assert found == slowly(lo, hi, limit, order)


@pytest.mark.parametrize("method", ["plain", "tight"])
def test_weights_go_under_the_limit_and_more_under_a_wider_one(method: str) -> None:
    model = net("relu, max pool")
    program, box = read(model), box_of(model, 0.0, 1.0)
    counts = []
    for limit in (0.05, 0.5):
        task = Task(program, box, program.ranges(box), np.full(3, limit), METHODS[method])
        found = choose(task, np.random.default_rng(0))
        assert found.change.magnitude.max() <= limit
        counts.append(found.count)
        again = bound(program, found.program, box, float32=False, tight=method == "tight")
        assert again.largest <= limit * (1 + 1e-9)
    assert 0 < counts[0] < counts[1]


def test_tight_resets_more_than_plain() -> None:
    model = net("relu, max pool")
    program, box = read(model), box_of(model, 0.0, 1.0)
    counts = [
        choose(Task(program, box, program.ranges(box), np.full(3, 0.3), m), np.random.default_rng(0)).count
        for m in (PLAIN, TIGHT)
    ]
    assert counts[1] > counts[0]


def test_the_pass_keeps_its_limit_on_every_input() -> None:
    model = net("residual")
    changed = model.clone()
    outcome = Reset(limit=0.2, relative=False, low=0.0, high=1.0).apply(changed, Context())
    assert outcome.modified
    x = points(box_of(model, 0.0, 1.0))
    moved = np.abs(output(changed, x) - output(model, x))
    assert 0 < moved.max() <= 0.2 + 1e-5


def test_the_pass_says_why_it_can_do_nothing() -> None:
    outcome = Reset(limit=0.2, relative=False, low=0.0, high=1.0).apply(with_erf(), Context())
    assert not outcome.modified
    assert "Erf" in outcome.skipped[0].reason


def test_classes_that_are_proved_to_stay_do_stay() -> None:
    model = net("relu, max pool")
    changed = nudged(model, share=0.02)
    x = np.random.default_rng(5).normal(size=(40, 2, 4, 4)).astype(np.float32).astype(np.float64)
    near = 0.1
    box = Interval(x - near, x + near)
    found = margins((read(model), read(changed)), iter([(x, box)]))
    assert 0.1 < found.share < 1.0
    rng = np.random.default_rng(6)
    for _ in range(50):
        moved = (x + near * rng.choice([-1.0, 1.0], x.shape)).astype(np.float32)
        for each in (model, changed):
            y = output(each, moved)
            lead = (
                y[np.arange(40), found.classes]
                - np.sort(np.where(np.eye(3)[found.classes] > 0, -np.inf, y), 1)[:, -1]
            )
            assert (lead >= found.least - 1e-6).all()
