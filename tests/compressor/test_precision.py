"""Which sites 8 bits hurt, how few are spared, and what half precision saves there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import models
import numpy as np
import oracles
import pytest
from formats import distance, kernels
from hypothesis import given
from hypothesis import strategies as st
from models import constants, text

from edgepress.compressor.choice import Candidate
from edgepress.compressor.data import open_data
from edgepress.compressor.errors import UsageError
from edgepress.compressor.folds import Setup
from edgepress.compressor.metrics import resolve_metric
from edgepress.compressor.model import input_specs, to_bytes
from edgepress.compressor.options import Options
from edgepress.compressor.passes.base import site_name
from edgepress.compressor.passes.quantize import Quantize
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.passes.store import StoreWeights
from edgepress.compressor.precision import fewest, settle
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.search import Search
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites
from edgepress.compressor.tails import hardly_faster
from edgepress.compressor.tasks import Harm
from edgepress.compressor.trials import Trials, make_trials
from edgepress.runtime.engines.ort import OrtEngine

REGRESSION = "t = Gemm <transB = 1> (x, w, b) y = Gemm <transB = 1> (t, v, c)"


def uneven() -> Trials:
    """A regression whose first layer has weights of very different size in one row; 8 bits lose the small ones."""
    weights = constants(5, w=(24, 32), b=(24,), v=(8, 24), c=(8,))
    weights["w"][:, 0] *= 300
    model = text("(float[N, 32] x) => (float[N, 8] y)", REGRESSION, weights)
    infer_shapes(model)
    x = np.random.default_rng(1).standard_normal((120, 32)).astype(np.float32)
    x[:, 0] = 0.01
    data = open_data({"x": x}, input_specs(model))
    batch = next(iter(data.batches(60)))
    metric = resolve_metric("fidelity", models.run(model, batch.feeds), batch)
    setup = Setup(OrtEngine(), metric, None, data, oracles.Board(), 0, (), batch=60, folds=2)
    return make_trials(model, setup)


def settled(trials: Trials, budget: float, deadline: float = math.inf) -> Search:
    found = Search(
        trials, Options((), (), ()), oracles.Board(), "latency", budget, {},
        lambda named: [1.0 for _ in named], lambda *_: None, deadline,
    )  # fmt: skip
    settle(found)
    return found


def test_the_site_that_8_bits_hurt_goes_to_half_precision() -> None:
    trials = uneven()
    search = settled(trials, 2.0)
    first = trials.original.graph[0]
    assert search.half == search.leave == (site_name(first),)
    kept = next(c for c in search.settled if isinstance(c.recipe[0], StoreWeights))
    model, _ = trials.final(kept.recipe)
    makers = [node.inputs[1].producer() for node in model.graph if node.op_type == "Gemm"]
    assert [maker.op_type for maker in makers] == ["Cast", "Mul"]
    assert len(to_bytes(model)) < 0.75 * len(to_bytes(trials.original))


def test_without_time_to_find_out_every_weight_goes_to_half_precision() -> None:
    trials = uneven()
    search = settled(trials, 2.0, deadline=0.0)
    assert search.time_limit_hit
    assert search.half == tuple(sorted(site_name(node) for node in trials.original.graph))
    (kept,) = search.settled
    model, _ = trials.final(kept.recipe)
    assert len(to_bytes(model)) < 0.75 * len(to_bytes(trials.original))


def test_nothing_is_spared_where_the_budget_is_kept() -> None:
    search = settled(uneven(), 90.0)
    assert (search.half, search.leave) == ((), ())


def test_the_worst_come_first() -> None:
    trials = uneven()
    sites = [site_name(node) for node in trials.original.graph]
    harm = trials.results([Harm(name, StoreWeights(HALF, ((name, 8),))) for name in sites])
    assert harm[0] > 10 * harm[1] > 0


@given(st.integers(1, 20), st.integers(0, 21))
def test_fewest_finds_how_many(count: int, needed: int) -> None:
    worst = [str(i) for i in range(count)]
    tried: list[int] = []

    def spared(sites: Sequence[str]) -> Candidate:
        tried.append(len(sites))
        return Candidate(str(len(sites)), ())

    best, sites = fewest(worst, spared, lambda c: int(c.label) >= needed, lambda: False)
    assert (best is None) == (needed > count)
    assert list(sites) == ([] if best is None else worst[: max(needed, 1)])
    assert len(set(tried)) == len(tried) <= 2 * count.bit_length() + 1


def test_half_precision_halves_the_file_and_costs_nothing_at_run_time(tmp_path: Path) -> None:
    model = models.mlp(256, 128)
    changed = model.clone()
    outcome = StoreWeights(weight_bits=HALF).apply(changed, oracles.Context())
    assert outcome.modified
    assert 0.45 < len(to_bytes(changed)) / len(to_bytes(model)) < 0.65
    assert kernels(changed, tmp_path) == kernels(model, tmp_path)
    assert 0 < distance(model, changed, models.feeds(model, 8)) < 1e-3


def test_half_precision_is_refused_where_it_cannot_hold_or_pay() -> None:
    weights = constants(1, w=(64, 64))
    weights["w"][0, 0] = 1e5
    model = text("(float[N, 64] x) => (float[N, 64] y)", "y = MatMul (x, w)", weights)
    outcome = StoreWeights(weight_bits=HALF).apply(model, oracles.Context())
    assert not outcome.modified
    assert [s.reason for s in outcome.skipped] == ["a weight is too large for half precision"]
    assert not StoreWeights(weight_bits=HALF).apply(models.half(), oracles.Context()).modified
    with pytest.raises(UsageError, match="quantize"):
        Quantize(weight_bits=HALF)


@dataclass(frozen=True)
class Measured:
    """A table by which layers take 20 ns in floats, 12 in integers, and the way there and back what is said."""

    way: float

    def ns(self, kind: str, precision: str, inputs: float, outputs: float, positions: float) -> float:
        return self.way if kind == "quantize" else {"fp32": 20.0, "int8": 12.0}[precision]


@pytest.mark.parametrize(("way", "slow"), [(7.0, False), (9.0, True)])
def test_measured_kernels_say_where_8_bits_hardly_pay(way: float, slow: bool) -> None:
    model = models.cnn()
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    board = replace(oracles.Board(), table=Measured(way))
    assert len(hardly_faster(model, shapes, board)) == (len(find_sites(model)) if slow else 0)
