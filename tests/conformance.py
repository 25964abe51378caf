"""What every pass promises, whatever it does: a suite for passes of our own and of others.

Give `check` a pass, a model and samples; it applies the pass to copies and asserts on what users notice.
"""

from collections.abc import Callable, Mapping

import models
import numpy as np
import onnx
import onnx_ir as ir
import oracles

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import to_bytes, to_proto
from edgepress.compressor.passes import (
    Cluster,
    Dynamic,
    Equalize,
    Half,
    LowRank,
    Pass,
    Prune,
    Quantize,
    Reset,
    Separable,
    Shrink,
    StoreWeights,
    ThresholdReLU,
    WeightOnly,
)
from edgepress.compressor.passes.base import Context, Outcome
from edgepress.compressor.passes.threshold_relu import activations
from edgepress.compressor.sites import find_sites
from edgepress.runtime.engines.ort import OrtEngine


def shrink(model: ir.Model) -> Pass:
    """Half of every group."""
    groups, _ = groups_of(model, analyse(model))
    return Shrink(tuple((g.name, max(1, len(g.units) // 2)) for g in groups))


def shrink_bare(model: ir.Model) -> Pass:
    """A quarter of every group, and nothing put back."""
    groups, _ = groups_of(model, analyse(model))
    return Shrink(tuple((g.name, max(1, len(g.units) // 4)) for g in groups), compensate=False)


def low_rank(model: ir.Model) -> Pass:
    """Every site that can be split."""
    return LowRank(tuple((s.name, max(1, min(s.matrix().shape) // 3)) for s in find_sites(model)))


STRONG: Mapping[str, Callable[[ir.Model], Pass]] = {
    "shrink": shrink,
    "shrink, bare": shrink_bare,
    "shrink, zeros": lambda _: Shrink(criterion="zeros", zero_rate=0.4, cycles=2),
    "shrink, outliers": lambda _: Shrink(criterion="outliers", sigmas=0.5),
    "shrink, qr": lambda _: Shrink(criterion="qr", share=0.6, cycles=2),
    "shrink, fisher": lambda _: Shrink(criterion="fisher", share=0.6, compensate=False),
    "low rank": low_rank,
    "separable": lambda _: Separable(multiplier=1),
    "separable, by energy": lambda _: Separable(energy=0.7),
    "prune": lambda _: Prune(min_elements=2, sparsity=0.7),
    "prune, 2 of 4": lambda _: Prune(min_elements=2, pattern="n_m"),
    "prune, blocks": lambda _: Prune(min_elements=2, pattern="block", scope="global"),
    "reset": lambda _: Reset(limit=0.3),
    "reset, plain": lambda _: Reset(limit=0.3, relative=False, low=-1.0, high=1.0, method="plain"),
    "quantize": lambda _: Quantize(),
    "quantize, 4 bits": lambda _: Quantize(weight_bits=4, ranges="mse", granularity="tensor"),
    "quantize, few bits": lambda _: Quantize(weight_bits=3),
    "threshold": lambda m: ThresholdReLU(tuple((a.name, 0.3) for a in activations(m))),
    "threshold, by energy": lambda _: ThresholdReLU(quantile=0.1),
    "threshold, by channel": lambda _: ThresholdReLU(quantile=0.2, per_channel=True, compensate=False),
    "quantize, 16 bits": lambda _: Quantize(weight_bits=5, activation_bits=16, symmetric=False),
    "equalize": lambda _: Equalize(),
    "equalize, through clips": lambda _: Equalize(through_clips=True),
    "store, blocks": lambda _: StoreWeights(
        weight_bits=3, granularity="block", block=2, symmetric=False, min_elements=2
    ),
    "store": lambda _: StoreWeights(min_elements=2),
    "store, few bits": lambda _: StoreWeights(weight_bits=4, min_elements=2),
    "cluster": lambda _: Cluster(min_elements=2),
    "cluster, rows": lambda _: Cluster(1, per_channel=True, min_elements=2),
    "cluster, bytes": lambda _: Cluster(8, min_elements=2),
    "dynamic": lambda _: Dynamic(min_elements=2),
    "dynamic, few bits": lambda _: Dynamic(weight_bits=3, min_elements=2),
    "weight only": lambda _: WeightOnly(min_elements=2),
    "half": lambda _: Half(min_elements=2),
    "weight only, 2 bits": lambda _: WeightOnly(2, 32, symmetric=True, min_elements=2),
}
"""Each pass, set to do as much as it can on a given model."""

NEUTRAL: Mapping[str, Callable[[ir.Model], Pass]] = {
    "shrink": lambda m: Shrink(tuple((g.name, len(g.units)) for g in groups_of(m, analyse(m))[0])),
    "shrink, bare": lambda _: Shrink(),
    "shrink, zeros": lambda _: Shrink(criterion="zeros", sites=("^nobody$",)),
    "shrink, outliers": lambda _: Shrink(criterion="outliers", sigmas=1e9),
    "shrink, qr": lambda _: Shrink(criterion="qr", share=0.0, cycles=3),
    "shrink, fisher": lambda m: Shrink(
        criterion="fisher",
        share=0.5,
        leave=tuple(n for g in groups_of(m, analyse(m))[0] for n in g.producers),
    ),
    "low rank": lambda m: LowRank(tuple((s.name, min(s.matrix().shape)) for s in find_sites(m))),
    "separable": lambda m: Separable(tuple((s.name, 10**3) for s in find_sites(m))),
    "separable, by energy": lambda _: Separable(energy=0.5, sites=("^nobody$",)),
    "prune": lambda _: Prune(min_elements=2, sparsity=0.0),
    "prune, 2 of 4": lambda _: Prune(min_elements=2, pattern="n_m", n=4),
    "prune, blocks": lambda _: Prune(min_elements=2, pattern="block", scope="global", sparsity=0.0),
    "reset": lambda _: Reset(limit=0.0),
    "reset, plain": lambda _: Reset(sites=("^nobody$",), method="plain"),
    "quantize": lambda _: Quantize(sites=("^nobody$",)),
    "quantize, 4 bits": lambda m: Quantize(leave=tuple(s.name for s in find_sites(m))),
    "quantize, few bits": lambda _: Quantize(weight_bits=3, sites=("^nobody$",)),
    "threshold": lambda _: ThresholdReLU(),
    "threshold, by energy": lambda _: ThresholdReLU(quantile=0.1, sites=("^nobody$",)),
    "threshold, by channel": lambda m: ThresholdReLU(
        quantile=0.2, per_channel=True, leave=tuple(a.name for a in activations(m))
    ),
    "quantize, 16 bits": lambda _: Quantize(activation_bits=16, sites=("^nobody$",)),
    "equalize": lambda _: Equalize(sites=("^nobody$",)),
    "equalize, through clips": lambda m: Equalize(
        through_clips=True, leave=tuple(s.name for s in find_sites(m))
    ),
    "store, blocks": lambda _: StoreWeights(granularity="block", min_elements=10**9),
    "store": lambda _: StoreWeights(min_elements=10**9),
    "store, few bits": lambda _: StoreWeights(weight_bits=4, min_elements=10**9),
    "cluster": lambda _: Cluster(min_elements=10**9),
    "cluster, rows": lambda _: Cluster(1, per_channel=True, sites=("^nobody$",)),
    "cluster, bytes": lambda m: Cluster(8, leave=tuple(s.name for s in find_sites(m)), min_elements=10**9),
    "dynamic": lambda _: Dynamic(sites=("^nobody$",)),
    "weight only": lambda m: WeightOnly(leave=tuple(s.name for s in find_sites(m)), min_elements=10**9),
    "half": lambda _: Half(sites=("^nobody$",)),
    "weight only, 2 bits": lambda _: WeightOnly(2, sites=("^nobody$",)),
    "dynamic, few bits": lambda m: Dynamic(3, leave=tuple(s.name for s in find_sites(m)), min_elements=10**9),
}
"""The same passes, set to change nothing."""


def check(model: ir.Model, step: Pass, seed: int = 0) -> ir.Model:
    """Apply a pass to copies and assert on all that holds for every pass; gives the changed model.

    Args:
        model: stays as it is.
        step: the pass.
        seed: of the samples and of the pass.
    """
    before = to_bytes(model)
    changed, outcome = applied(step, model, oracles.context(model, 24, seed))
    again, _ = applied(step, model, oracles.context(model, 24, seed))
    assert to_bytes(model) == before, "the input changed"
    assert (to_bytes(changed) != before) == outcome.modified
    assert to_bytes(again) == to_bytes(changed), "the same seed gave other bytes"
    sound(model, changed)
    names = {s.site for s in outcome.skipped} | set(outcome.changed)
    assert all(s.reason for s in outcome.skipped)
    assert all(names), "a site without a name"
    return changed


def check_neutral(model: ir.Model, step: Pass) -> None:
    """A pass that was told to change nothing, or may look at nothing, or may touch nothing."""
    changed, outcome = applied(step, model, oracles.context(model, 24))
    assert not outcome.modified
    assert not outcome.changed
    assert to_bytes(changed) == to_bytes(model)


def check_without_samples(model: ir.Model, step: Pass) -> None:
    """Without samples a pass does what it can without them, and says why it leaves the rest."""
    changed, outcome = applied(step, model, Context())
    assert outcome.modified == (to_bytes(changed) != to_bytes(model))
    sound(model, changed)


def check_left(model: ir.Model, step: Pass) -> None:
    """`--leave` names every site."""
    changed, outcome = applied(step, model, oracles.context(model, 24, leave=(".",)))
    assert not outcome.modified
    assert to_bytes(changed) == to_bytes(model)
    assert {s.reason for s in outcome.skipped if "leave" in s.reason} <= {"--leave names it"}


def applied(step: Pass, model: ir.Model, context: Context) -> tuple[ir.Model, Outcome]:
    """The pass on a copy."""
    changed = model.clone()
    outcome = step.apply(changed, context)
    return changed, outcome


def sound(model: ir.Model, changed: ir.Model) -> None:
    """The changed model is valid, keeps its interface, and runs on as many rows as are fed."""
    onnx.checker.check_model(to_proto(changed), full_check=True)
    for one, other in zip(_ports(model), _ports(changed), strict=True):
        assert one == other, "an input or output changed"
    names = [v.name for node in changed.graph for v in node.outputs if v.name]
    assert len(set(names)) == len(names)
    for rows in (1, 5):
        feeds = models.feeds(model, rows)
        expected, found = models.run(model, feeds), OrtEngine().load(to_bytes(changed))(feeds)
        for name, array in expected.items():
            assert found[name].shape == array.shape, name
            assert found[name].dtype == array.dtype, name
            assert np.isfinite(found[name].astype(np.float64)).all() or not np.isfinite(array).all(), name


def _ports(model: ir.Model) -> list[tuple[object, ...]]:
    return [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
