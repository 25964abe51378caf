"""The search: one model is kept, it pays, and it keeps the budget on samples it was not fitted to."""

import time
from collections.abc import Callable, Sequence

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.choice import Candidate, Objective
from edgepress.compressor.data import Dataset, open_data
from edgepress.compressor.folds import Setup
from edgepress.compressor.metrics import answers, resolve_metric
from edgepress.compressor.model import input_specs
from edgepress.compressor.options import TRIAL_ERRORS, Options, collect
from edgepress.compressor.passes.base import Pass
from edgepress.compressor.precision import settle
from edgepress.compressor.recipe import digest
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.search import Search
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.tasks import gauge_of
from edgepress.compressor.trials import Trials, make_trials
from edgepress.runtime.engines.ort import OrtEngine

Named = Sequence[tuple[str, bytes]]


def net() -> tuple[ir.Model, Dataset]:
    """A net with far more hidden units than its task needs, and samples labelled by its own answers."""
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(4, 6))
    weights = models.constants(3, b1=(96,), w2=(64, 96), b2=(64,), w3=(4, 64), b3=(4,))
    weights["w1"] = (rng.normal(size=(96, 4)) @ basis / 3).astype(np.float32)
    model = models.text(
        "(float[N, 6] x) => (float[N, 4] y)",
        "h = Gemm <transB = 1> (x, w1, b1) a = Relu(h) g = Gemm <transB = 1> (a, w2, b2) r = Relu(g) "
        "y = Gemm <transB = 1> (r, w3, b3)",
        weights,
    )
    infer_shapes(model)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    labels = models.run(model, {"x": x})["y"].argmax(1)
    return model, open_data({"x": x, "y": labels}, input_specs(model))


def by_size(named: Named) -> list[float]:
    """A clock by which what is smaller is faster."""
    return [1000.0 + len(data) for _, data in named]


def against_changes(named: Named) -> list[float]:
    """A clock by which everything but the original is slower."""
    return [1000.0 if name == digest(()) else 1500.0 for name, _ in named]


def trials() -> Trials:
    model, data = net()
    batch = next(iter(data.batches(64)))
    outputs = models.run(model, batch.feeds)
    metric = resolve_metric("top1", outputs, batch)
    setup = Setup(
        OrtEngine(), metric, answers(outputs, batch), data, oracles.Board(), 0, (), batch=64, folds=2
    )
    return make_trials(model, setup)


@pytest.fixture(scope="module")
def prepared() -> tuple[Trials, Options]:
    made = trials()
    shapes = shapes_in_one_run(made.original, made.setup.engine, models.feeds(made.original, 1))
    return made, collect(gauge_of(made, 4, TRIAL_ERRORS), shapes)


def search(
    prepared: tuple[Trials, Options], timer: Callable[[Named], list[float]] = by_size, *,
    objective: Objective = "latency", budget: float = 5.0, deadline: float = float("inf"),
    options: Options | None = None,
) -> Search:  # fmt: skip
    made, found = prepared
    shapes = shapes_in_one_run(made.original, made.setup.engine, models.feeds(made.original, 1))
    unsettled = Search(
        made,
        options or found,
        oracles.Board(),
        objective,
        budget,
        shapes,
        timer,
        lambda *_: None,
        deadline,
    )
    settle(unsettled)
    return unsettled


def kept(candidates: Sequence[Candidate]) -> Candidate:
    (one,) = [c for c in candidates if c.kept]
    return one


@pytest.mark.parametrize("objective", ["latency", "size", "memory"])
def test_one_model_is_kept_and_it_is_smaller_within_the_budget(
    prepared: tuple[Trials, Options], objective: Objective
) -> None:
    candidates = search(prepared, objective=objective).run()
    best = kept(candidates)
    original = next(c for c in candidates if not c.recipe)
    assert best.recipe
    assert best.estimate is not None
    assert best.estimate.within(5.0)
    assert len(best.data) < 0.5 * len(original.data)
    assert (best.latency_ns or 0) < (original.latency_ns or 0)
    assert all(c.why for c in candidates)
    assert len({digest(c.recipe) for c in candidates}) == len(candidates)
    x = models.feeds(prepared[0].original, 7)
    assert models.run(best.data, x)["y"].shape == (7, 4)


def test_what_is_slower_is_never_chosen(prepared: tuple[Trials, Options]) -> None:
    candidates = search(prepared, against_changes).run()
    assert kept(candidates).recipe == ()
    slower = [c for c in candidates if c.latency_ns is not None and c.recipe]
    assert slower
    assert {c.why for c in slower} == {"slower than the original"}


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_no_candidate_slower_or_larger_than_the_original_is_kept_whatever_the_clock_says(
    prepared: tuple[Trials, Options], objective: Objective
) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)

        def clock(named: Named, rng: np.random.Generator = rng) -> list[float]:
            return (1000 * rng.uniform(0.5, 2.0, len(named))).tolist()

        candidates = search(prepared, clock, objective=objective).run()
        best, original = kept(candidates), next(c for c in candidates if not c.recipe)
        assert (best.latency_ns or 0) <= 1.01 * (original.latency_ns or 0)
        assert len(best.data) <= len(original.data)


def test_a_larger_budget_gives_no_larger_model(prepared: tuple[Trials, Options]) -> None:
    sizes = [len(kept(search(prepared, objective="size", budget=z).run()).data) for z in (0.5, 5.0, 30.0)]
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[0] > sizes[2]


def test_the_same_clock_gives_the_same_choice() -> None:
    """From the partition of the samples on, twice."""
    found = []
    for _ in range(2):
        made = trials()
        shapes = shapes_in_one_run(made.original, made.setup.engine, models.feeds(made.original, 1))
        options = collect(gauge_of(made, 4, TRIAL_ERRORS), shapes)
        candidates = search((made, options)).run()
        found.append(
            ([(c.label, digest(c.recipe), c.estimate, c.why) for c in candidates], kept(candidates).data)
        )
    assert found[0] == found[1]


def test_after_the_deadline_nothing_new_is_begun(prepared: tuple[Trials, Options]) -> None:
    late = search(prepared, deadline=time.monotonic() - 1)
    candidates = late.run()
    assert late.time_limit_hit
    kinds = {step.kind for c in candidates for step in c.recipe}
    assert kinds <= {"quantize", "dynamic", "store"}  # what every search begins with
    assert len(candidates) <= 4
    assert kept(candidates)


def test_without_options_weights_are_still_stored_small(prepared: tuple[Trials, Options]) -> None:
    candidates = search(prepared, objective="size", options=Options((), (), ())).run()
    best = kept(candidates)
    assert best.recipe
    assert all(isinstance(step, Pass) and step.kind in ("quantize", "store") for step in best.recipe)


def test_a_budget_of_nothing_is_kept(prepared: tuple[Trials, Options]) -> None:
    best = kept(search(prepared, budget=0.0).run())
    assert best.estimate is None or best.estimate.drop_percent <= 0
