"""Precision of candidates, and what the search makes of it."""

from collections.abc import Callable, Sequence

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest

from edgepress.compressor.choice import Candidate
from edgepress.compressor.data import open_data
from edgepress.compressor.folds import Setup
from edgepress.compressor.knobs import TRIAL_ERRORS, bits_knob
from edgepress.compressor.metrics import answers, resolve_metric
from edgepress.compressor.model import input_specs
from edgepress.compressor.options import Options, collect
from edgepress.compressor.passes import Cluster, Dynamic, LowRank, Quantize, Separable, Shrink, StoreWeights
from edgepress.compressor.passes.rounding import HALF
from edgepress.compressor.precision import settle
from edgepress.compressor.samples import shapes_in_one_run
from edgepress.compressor.search import Search
from edgepress.compressor.shapes import infer_shapes
from edgepress.compressor.sites import find_sites, replace_constant
from edgepress.compressor.tails import Tail, dynamic_pays, exchanged, few_bits, structure_of, without
from edgepress.compressor.tasks import gauge_of
from edgepress.compressor.trials import make_trials
from edgepress.runtime.engines.ort import OrtEngine

Named = Sequence[tuple[str, bytes]]
BOARD = oracles.Board()


def searched(
    model: ir.Model, x: np.ndarray, timer: Callable[[Named], list[float]], budget: float = 4.0
) -> list[Candidate]:
    """Candidates for a net with samples labelled by its own answers."""
    infer_shapes(model)
    labels = models.run(model, {"x": x})["y"].argmax(1)
    data = open_data({"x": x, "y": labels}, input_specs(model))
    batch = next(iter(data.batches(64)))
    outputs = models.run(model, batch.feeds)
    metric, told = resolve_metric("top1", outputs, batch), answers(outputs, batch)
    trials = make_trials(model, Setup(OrtEngine(), metric, told, data, BOARD, 0, (), batch=64, folds=2))
    shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
    options = collect(gauge_of(trials, 4, TRIAL_ERRORS), shapes)
    search = Search(trials, options, BOARD, "latency", budget, shapes, timer, lambda *_: None)
    settle(search)
    return search.run()


def kept(candidates: Sequence[Candidate]) -> Candidate:
    (one,) = [candidate for candidate in candidates if candidate.kept]
    return one


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in ir.from_proto(models.onnx.load_from_string(model)).graph]


def transformer() -> ir.Model:
    """Attention over 4 tokens, a feed-forward part, and a head."""
    rng = np.random.default_rng(4)
    shapes = {"wq": (24, 24), "wk": (24, 24), "wv": (24, 24), "w1": (24, 64), "w2": (64, 24), "wo": (24, 5)}
    w = {name: rng.normal(size=shape).astype(np.float32) / 5 for name, shape in shapes.items()}
    return models.text(
        "(float[N, 4, 24] x) => (float[N, 5] y)",
        """
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul(q, t) p = Softmax <axis = -1> (s) m = MatMul(p, v) a = Add(m, x)
        h = MatMul(a, w1) r = Relu(h) f = MatMul(r, w2) g = Add(f, a)
        o = MatMul(g, wo) y = ReduceMean <keepdims = 0> (o, axes)
        """,
        w | {"axes": np.array([1], np.int64)},
    )


def clock(favourite: str) -> Callable[[Named], list[float]]:
    """Time by bytes, halved where the favourite operator is."""

    def times(named: Named) -> list[float]:
        return [(1000.0 + len(data)) * (0.5 if favourite in operators(data) else 1.0) for _, data in named]

    return times


@pytest.mark.parametrize(("favourite", "winner"), [("MatMulInteger", Dynamic), ("QuantizeLinear", Quantize)])
def test_the_arithmetic_that_is_timed_to_be_faster_wins(favourite: str, winner: type) -> None:
    x = np.random.default_rng(1).normal(size=(160, 4, 24)).astype(np.float32)
    candidates = searched(transformer(), x, clock(favourite))
    best = kept(candidates)
    kinds = [type(step) for step in best.recipe]
    assert winner in kinds
    assert {Dynamic, Quantize} - {winner} - set(kinds)  # one arithmetic only
    assert any(kind in (Shrink, LowRank) for kind in kinds)  # with a structure searched for it
    assert favourite in operators(best.data)
    assert best.estimate is not None
    assert best.estimate.within(4.0)
    other = {"MatMulInteger": "int8", "QuantizeLinear": "dynamic"}[favourite]
    assert any(
        c.label.endswith(f"by {other}") for c in candidates
    )  # the same structures in the other arithmetic


def test_what_is_timed_to_be_slower_gets_no_search_of_its_own() -> None:
    x = np.random.default_rng(1).normal(size=(160, 4, 24)).astype(np.float32)

    def slow(named: Named) -> list[float]:
        return [
            (1000.0 + len(data)) * (2.0 if "MatMulInteger" in operators(data) else 1.0) for _, data in named
        ]

    candidates = searched(transformer(), x, slow)
    dynamic = [c for c in candidates if any(isinstance(step, Dynamic) for step in c.recipe)]
    assert len(dynamic) == 1
    assert not any(isinstance(step, Dynamic) for step in kept(candidates).recipe)


def test_exactly_separable_kernels_are_found_by_the_search() -> None:
    rng = np.random.default_rng(5)

    def kernel(outputs: int, inputs: int) -> np.ndarray:
        mixed, filters = rng.normal(size=(outputs, inputs, 1, 1)), rng.normal(size=(1, inputs, 3, 3))
        return (mixed * filters / np.sqrt(9 * inputs)).astype(np.float32)

    model = models.text(
        "(float[N, 3, 10, 10] x) => (float[N, 4] y)",
        "c = Conv(x, k1, b1) r = Relu(c) d = Conv(r, k2, b2) e = Relu(d) g = GlobalAveragePool(e) "
        "f = Flatten(g) y = Gemm <transB = 1> (f, w, b)",
        {"k1": (rng.normal(size=(24, 3, 3, 3)) / 5).astype(np.float32), "b1": np.zeros(24, np.float32),
         "k2": kernel(24, 24), "b2": np.zeros(24, np.float32),
         "w": rng.normal(size=(4, 24)).astype(np.float32), "b": np.zeros(4, np.float32)},
    )  # fmt: skip
    x = rng.normal(size=(120, 3, 10, 10)).astype(np.float32)
    candidates = searched(model, x, lambda named: [1000.0 + len(data) for _, data in named], budget=1.0)
    steps = {type(step): step for step in kept(candidates).recipe}
    assert Separable in steps
    assert dict(steps[Separable].multipliers) == {"d": 1}
    labels = [c.label for c in candidates]
    assert any(label.endswith("without separable") for label in labels)


def test_the_same_weights_are_few_bits_in_any_arithmetic() -> None:
    bits = (("a", 4), ("b", HALF))
    for precision, kinds in {
        "float": [StoreWeights],
        "int8": [Quantize, StoreWeights],
        "dynamic": [Dynamic, StoreWeights],
    }.items():
        passes = Tail(precision, oracles.Board(weight_bits=7), bits, ("c",)).passes()  # type: ignore[arg-type]
        assert [type(step) for step in passes] == kinds
        assert passes[-1].bits == bits  # type: ignore[attr-defined]
        if len(passes) > 1:
            assert passes[0].bits == (("a", 4),)  # type: ignore[attr-defined]
            assert passes[0].leave == ("c",)  # type: ignore[attr-defined]
            assert passes[0].weight_bits == 7  # type: ignore[attr-defined]
        assert structure_of((Shrink(), *passes)) == (Shrink(),)


def test_dynamic_is_thought_of_where_products_take_time() -> None:
    def pays(model: ir.Model, leave: tuple[str, ...] = ()) -> bool:
        infer_shapes(model)
        shapes = shapes_in_one_run(model, OrtEngine(), models.feeds(model, 1))
        return dynamic_pays(model, shapes, BOARD, leave)

    assert pays(models.mlp(hidden=400))
    assert not pays(models.mlp(hidden=400), leave=(".",))
    assert not pays(models.conv1d())
    assert pays(transformer())


def test_few_bits_are_indices_where_that_did_less_harm_and_floats_compute() -> None:
    bits, shared = (("a", 3), ("b", 4), ("c", 2), ("d", HALF)), frozenset({"a", "b"})
    cluster, store = Tail("float", BOARD, bits, shared=shared).passes()
    assert isinstance(cluster, Cluster)
    assert isinstance(store, StoreWeights)
    assert cluster.site_bits == (("a", 3),)  # of b there are too many, and c minds
    assert cluster.sites == ("^a$",)
    assert store.bits == bits[1:]
    assert sorted(few_bits((cluster, store))) == sorted(bits)
    assert structure_of((Shrink(), cluster, store)) == (Shrink(),)
    assert not any(isinstance(step, Cluster) for step in Tail("int8", BOARD, bits, shared=shared).passes())


@pytest.mark.parametrize("uneven", [True, False])
def test_weights_of_few_uneven_values_are_indices(uneven: bool) -> None:
    values = np.array([-1.0, -0.1, 0.05, 3.0] if uneven else [-1.0, 0.0, 1.0])
    model = models.mlp(hidden=400)
    infer_shapes(model)
    (first, *_) = find_sites(model)
    drawn = np.random.default_rng(0).choice(values, first.weight.shape).astype(np.float32)
    replace_constant(first.node, 1, drawn)
    first = find_sites(model)[0]
    context = oracles.context(model, 64, target=BOARD)
    x = models.feeds(model, 64, 3)
    before = models.run(model, x)

    def moved(candidate: ir.Model) -> float:
        return sum(float(np.square(models.run(candidate, x)[name] - before[name]).mean()) for name in before)

    knob = bits_knob(model, first, context, 4, moved)
    assert knob is not None
    assert knob.shared == uneven
    dear = bits_knob(model, first, context, 4, moved, trials=(0.05,))
    assert dear is not None
    assert not dear.shared  # a trial takes minutes
    options = Options((knob,), (), ())
    assert options.shared == ({first.name} if uneven else set())


@pytest.mark.parametrize(("hidden", "shared"), [(400, True), (300, False)])
def test_small_weights_are_no_indices_whatever_these_would_do(hidden: int, shared: bool) -> None:
    model = models.mlp(hidden=hidden)
    infer_shapes(model)

    def likes_indices(candidate: ir.Model) -> float:
        return (
            1.0 if any(node.op_type == "Mul" for node in candidate.graph) else 0.1
        )  # even steps have a scale

    knob = bits_knob(model, find_sites(model)[0], oracles.context(model, 64, target=BOARD), 4, likes_indices)
    assert knob is not None
    assert knob.shared == shared


def test_large_sites_are_tried_in_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """To nearest, and without indices: by outputs each trial would take half a minute."""
    model = models.mlp(hidden=400)
    infer_shapes(model)
    first, context, seen = find_sites(model)[0], oracles.context(model, 64, target=BOARD), []
    monkeypatch.setattr(
        "edgepress.compressor.passes.rounding.round_to_outputs", lambda *_, **__: seen.append("by outputs")
    )
    monkeypatch.setattr("edgepress.compressor.knobs.MOST_TRIED", 6 * 400 * 6 - 1)
    knob = bits_knob(model, first, context, 4, lambda _: 0.1)
    assert knob is not None
    assert not knob.shared
    assert seen == []


def test_a_structure_is_offered_in_another_arithmetic() -> None:
    bits = (("a", 3), ("b", HALF))
    recipe = (Shrink((("g", 4),)), *Tail("int8", BOARD, bits, ("b",)).passes())
    assert few_bits(recipe) == bits
    assert few_bits((Shrink(),)) == ()
    tail = Tail("dynamic", BOARD, bits).passes()
    assert list(exchanged(recipe, [("by dynamic", tail)])) == [("by dynamic", (recipe[0], *tail))]


def test_variants_lack_what_may_not_pay() -> None:
    store = StoreWeights()
    recipe = (LowRank((("a", 3),)), Separable((("b", 1),)), Quantize(leave=("b",)), store)
    found = dict(without(recipe, lambda: ["a"]))
    assert found == {
        "without low rank": (recipe[1], recipe[2], store),
        "without separable": (recipe[0], recipe[2], store),
        "small sites in float": (*recipe[:2], Quantize(leave=("a", "b")), store),
    }
    assert not dict(without((Quantize(leave=("b",)), store), lambda: ["b"]))
    assert not dict(without((Dynamic(), store), lambda: ["b"]))
