"""The fast bounds against exact plain intervals, worked out by other code in whole numbers."""

from fractions import Fraction

import models
import numpy as np
import onnx_ir as ir
import pytest
from certifynets import BODIES, assert_change_holds, box_of, net, nudged, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import exactrules, recheck
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.nodepair import Nodes, TooHardError
from edgepress.compressor.certify.program import NotCoveredError, read
from edgepress.compressor.certify.rational import Ends, Triple, exactly, reciprocal
from edgepress.compressor.errors import UsageError
from edgepress.compressor.normalize import normalize

ROUNDED = 1e-11
"""How much wider than exact a bound may be, as a share of the largest: rounding, and no more."""


def assert_just_outside(model: ir.Model, changed: ir.Model, box: Interval) -> None:
    """Fast plain intervals hold the exact ones, and are hardly wider."""
    (exact,) = recheck.changes(model, changed, box)
    lo, hi = exact.fractions()
    (fast,) = bound(read(model), read(changed), box, float32=False, tight=False).changes
    low, high = ([Fraction(float(x)) for x in end.reshape(-1)] for end in (fast.lo, fast.hi))
    assert all(a <= b for a, b in zip(low, lo, strict=True))
    assert all(a >= b for a, b in zip(high, hi, strict=True))
    slack = ROUNDED * float(max(1, *map(abs, lo), *map(abs, hi)))
    assert all(abs(float(a - b)) <= slack for a, b in zip([*low, *high], [*lo, *hi], strict=True))


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.2, 0.3), (0.1, 0.1)])
def test_fast_bounds_are_exact_ones_but_for_rounding(name: str, ends: tuple[float, float]) -> None:
    model = net(name)
    assert_just_outside(model, nudged(model), box_of(model, *ends))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_so_they_are_for_any_tiny_net(data: st.DataObject) -> None:
    model = tiny(data)
    low = data.draw(st.floats(-2, 1))
    box = box_of(model, low, low + data.draw(st.floats(0, 2)))
    assert_just_outside(model, nudged(model, data.draw(st.integers(0, 99))), box)


@pytest.mark.parametrize(
    ("other", "said"), [("relu, max pool", "differently"), ("max pool, size rounded up", "another in the")]
)
def test_nets_that_are_built_differently_are_too_hard(other: str, said: str) -> None:
    model = net("max pool over the edge")
    with pytest.raises(TooHardError, match=said):
        recheck.changes(model, net(other), box_of(model))


def test_a_change_that_is_worked_out_by_hand() -> None:
    """y = relu(2 x − 1) and w = relu(3 x − 1) for x in [0, 1]: what differs is λ x, 0 ≤ λ ≤ 1."""
    header, body = "(float[N, 1] x) => (float[N, 1] y)", "h = Gemm(x, w, b) y = Relu(h)"
    weights = [{"w": models.array(slope).reshape(1, 1), "b": models.array(-1)} for slope in (2, 3)]
    model, other = (normalize(models.text(header, body, each)).model for each in weights)
    (found,) = recheck.changes(model, other, box_of(model, 0.0, 1.0))
    assert found.fractions() == ([Fraction(0)], [Fraction(1)])


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4), min_size=1, max_size=5))
def test_floats_become_the_very_numbers_that_they_are(values: list[float]) -> None:
    found = exactly(np.array(values))
    assert [Fraction(top, found.den) for top in found.tops] == [Fraction(value) for value in values]
    if all(values):
        turned = reciprocal(found)
        assert [Fraction(top, turned.den) for top in turned.tops] == [1 / Fraction(value) for value in values]


GRID, OTHER = (models.array(*sizes, dtype=np.int64) for sizes in ((-1, 1, 4, 4), (-1, 1, 2, 8)))
KEPT = models.constants(3, k=(2, 1, 3, 3), b=(2,), w=(4, 4), v=(16, 2))
PADS = "pads = [1, 1, 1, 1]"
PAIRS: dict[str, tuple[str, tuple[str, models.Weights], tuple[str, models.Weights]]] = {
    "Reshape target": (
        "(float[N, 16] x) => (float[N, 32] y)",
        (f"r = Reshape(x, s) c = Conv <{PADS}> (r, k, b) y = Flatten(c)", {"s": GRID}),
        (f"r = Reshape(x, s) c = Conv <{PADS}> (r, k, b) y = Flatten(c)", {"s": OTHER}),
    ),
    "Transpose perm": (
        "(float[N, 3, 3, 3] x) => (float[N, 3, 3, 3] y)",
        ("y = Transpose <perm = [0, 2, 3, 1]> (x)", {}),
        ("y = Transpose <perm = [0, 3, 1, 2]> (x)", {}),
    ),
    "Concat axis": (
        "(float[N, 4, 4] x) => (float[N, 32] y)",
        ("a = Relu(x) c = Concat <axis = 1> (x, a) y = Flatten(c)", {}),
        ("a = Relu(x) c = Concat <axis = 2> (x, a) y = Flatten(c)", {}),
    ),
    "Conv stride": (
        "(float[N, 1, 5, 5] x) => (float[N, 12] y)",
        ("c = Conv <strides = [1, 2]> (x, k, b) y = Flatten(c)", {}),
        ("c = Conv <strides = [2, 1]> (x, k, b) y = Flatten(c)", {}),
    ),
    "Conv kernel": (
        "(float[N, 1, 5, 5] x) => (float[N, 30] y)",
        ("c = Conv(x, k, b) y = Flatten(c)", {"k": np.ones((2, 1, 1, 3), np.float32)}),
        ("c = Conv(x, k, b) y = Flatten(c)", {"k": np.ones((2, 1, 3, 1), np.float32)}),
    ),
    "Gemm transposed": (
        "(float[N, 4] x) => (float[N, 4] y)",
        ("y = Gemm(x, w)", {}),
        ("y = Gemm <transB = 1> (x, w)", {}),
    ),
    "mean over another axis": (
        "(float[N, 4, 4] x) => (float[N, 4] y)",
        ("y = ReduceMean <keepdims = 0> (x, axes)", {"axes": models.array(1, dtype=np.int64)}),
        ("y = ReduceMean <keepdims = 0> (x, axes)", {"axes": models.array(2, dtype=np.int64)}),
    ),
    "slope": (
        "(float[N, 4, 4] x) => (float[N, 4, 4] y)",
        ("y = PRelu(x, s)", {"s": np.linspace(0, 1, 4, dtype=np.float32).reshape(4, 1)}),
        ("y = PRelu(x, s)", {"s": np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 4)}),
    ),
    "one slope and several": (
        "(float[N, 4, 4] x) => (float[N, 4, 4] y)",
        ("y = PRelu(x, s)", {"s": np.linspace(0, 1, 4, dtype=np.float32).reshape(4, 1)}),
        ("y = LeakyRelu <alpha = 0.5> (x)", {}),
    ),
    "what is taken off": (
        "(float[N, 16] x) => (float[N, 16] y)",
        ("y = Sub(x, s)", {"s": np.ones((1, 16), np.float32)}),
        ("y = Sub(s, x)", {"s": np.ones((1, 16), np.float32)}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_operators_on_other_places_are_never_taken_for_the_same(name: str) -> None:
    """All that differs is what moves numbers: walked side by side, these nets would seem to be equal."""
    header, *sides = PAIRS[name]
    nets = [normalize(models.text(header, body, {**KEPT, **own})).model for body, own in sides]
    box = box_of(nets[0])
    with pytest.raises(TooHardError):
        recheck.changes(nets[0], nets[1], box)
    assert_change_holds(nets[0], nets[1], box, together=name == "what is taken off")


def linear(header: str, body: str, *shape: int) -> ir.Model:
    """A net with one weight `w` of ones."""
    return normalize(models.text(header, body, {"w": np.ones(shape, np.float32)})).model


ONE = linear("(float[N, 4] x) => (float[N, 2] y)", "y = MatMul(x, w)", 4, 2)
FLAT = "f = Flatten(x) y = MatMul(f, w)"
OTHERS = {
    "output": (ONE, linear("(float[N, 4] x) => (float[N, 1] y)", "y = MatMul(x, w)", 4, 1)),
    "input": (
        linear("(float[N, 1, 4, 4] x) => (float[N, 2] y)", FLAT, 16, 2),
        linear("(float[N, 1, 2, 8] x) => (float[N, 2] y)", FLAT, 16, 2),
    ),
    "a softmax alone": (
        ONE,
        linear("(float[N, 4] x) => (float[N, 2] y)", "h = MatMul(x, w) y = Softmax(h)", 4, 2),
    ),
    "axis of a softmax": (
        linear(
            "(float[N, 3, 4] x) => (float[N, 3, 2] y)", "h = MatMul(x, w) y = Softmax <axis = 1> (h)", 4, 2
        ),
        linear(
            "(float[N, 3, 4] x) => (float[N, 3, 2] y)", "h = MatMul(x, w) y = Softmax <axis = 2> (h)", 4, 2
        ),
    ),
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("output", "another shape"),
        ("input", "another shape"),
        ("a softmax alone", "differently"),
        ("axis of a softmax", "axis"),
    ],
)
def test_nets_whose_inputs_or_outputs_differ_are_compared_by_neither(name: str, said: str) -> None:
    model, other = OTHERS[name]
    box = box_of(model)
    with pytest.raises(TooHardError, match=said):
        recheck.changes(model, other, box)
    for tight in (False, True):
        with pytest.raises(UsageError, match="inputs or outputs"):
            bound(read(model), read(other), box, float32=False, tight=tight)


def test_an_operator_of_another_domain_is_another_operator() -> None:
    model, other = ONE.clone(), ONE.clone()
    next(iter(other.graph)).domain = "com.example"
    for pair in ((model, other), (other, model)):
        with pytest.raises(TooHardError, match="no exact rule"):
            recheck.changes(*pair, box_of(model))
    with pytest.raises(NotCoveredError):
        read(other)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_window_of_padding_alone_is_refused(kind: str) -> None:
    body = f"y = {kind} <kernel_shape = [1, 1], pads = [1, 1, 1, 1]> (x)"
    model = normalize(models.text("(float[N, 1, 2, 2] x) => (float[N, 1, 4, 4] y)", body)).model
    box = Interval(np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))
    with pytest.raises(TooHardError, match="padding"):
        recheck.changes(model, model.clone(), box)
    with pytest.raises(NotCoveredError, match="padding"):
        read(model)


BN = "y = BatchNormalization(x, g, c, m, v)"
ROUNDED_CONSTANTS: dict[str, tuple[str, models.Weights, models.Weights]] = {
    "a quotient": ("y = Div(x, c)", {"c": models.array(1.9668323)}, {"c": models.array(1.9668324)}),
    "a normalization": (
        BN,
        {"g": models.array(1.3), "c": models.array(0.3), "m": models.array(0.7), "v": models.array(2)},
        {"g": models.array(1.3000001), "c": models.array(0.3), "m": models.array(0.7), "v": models.array(2)},
    ),
    "a shift that cancels": (
        BN,
        {"g": models.array(1e6), "c": models.array(7e5), "m": models.array(0.7), "v": models.array(1)},
        {
            "g": models.array(1e6),
            "c": models.array(7e5),
            "m": models.array(0.7),
            "v": models.array(1.0000001),
        },
    ),
}


@pytest.mark.parametrize("name", ROUNDED_CONSTANTS)
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_constants_that_are_rounded_are_no_exact_ones(name: str, at: float) -> None:
    """Where two nets' weights nearly cancel, what is left is less than what each was rounded by may move it."""
    body, *weights = ROUNDED_CONSTANTS[name]
    header = "(float[N, 1] x) => (float[N, 1] y)"
    nets = [normalize(models.text(header, body, each)).model for each in weights]
    box = box_of(nets[0], at, at)
    (exact,) = recheck.changes(nets[0], nets[1], box)
    (lo,), (hi,) = exact.fractions()
    for tight in (False, True):
        (found,) = bound(read(nets[0]), read(nets[1]), box, float32=False, tight=tight).changes
        assert Fraction(float(found.lo[0, 0])) <= lo
        assert hi <= Fraction(float(found.hi[0, 0]))


@pytest.mark.parametrize(
    ("first", "ends", "said"),
    [
        ("", {"lo": np.float32(0.5), "hi": np.float32(-0.5)}, "above"),
        ("", {"lo": np.float32(np.inf), "hi": np.float32(0.5)}, "infinity"),
        ("lo = ReduceMin <keepdims = 0> (x)", {"hi": np.float32(0.5)}, "no constant"),
    ],
)
def test_a_clip_whose_ends_are_crossed_or_vary_is_too_hard(
    first: str, ends: models.Weights, said: str
) -> None:
    header = "(float[N, 2] x) => (float[N, 2] y)"
    model = models.text(header, f"{first} y = Clip(x, lo, hi)", ends)
    clip = next(node for node in model.graph if node.op_type == "Clip")
    at = ends_of(-1.0, 1.0)
    with pytest.raises(TooHardError, match=said):
        exactrules.clip(Nodes(clip, clip), [Triple(at, at, at)])


def ends_of(low: float, high: float) -> Ends:
    """The same range for two numbers."""
    return Ends.of(*(exactly(np.full(2, end)) for end in (low, high)))
