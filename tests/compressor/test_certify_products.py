"""Products of values that vary, values that are repeated, transposed convolutions: no point is outside."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest
from certifynets import assert_change_holds, assert_range_holds, box_of, net, nudged
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import products, rational, recheck
from edgepress.compressor.certify.choose import METHODS, Task, choose
from edgepress.compressor.certify.intervals import Interval, add
from edgepress.compressor.certify.nodepair import TooHardError
from edgepress.compressor.certify.products import Product
from edgepress.compressor.certify.program import NotCoveredError, read
from edgepress.compressor.certify.rational import Ends, Triple, exactly
from edgepress.compressor.certify.rules import Pair
from edgepress.compressor.normalize import normalize
from edgepress.compressor.protocols import Array

CLOSE = 1e-12


def tried(seed: int, size: float, moved: float) -> tuple[list[Pair], list[Array], list[Array]]:
    """Two factors in two nets: ranges [1, 2], and points [m, 2] of each; every corner is among them."""
    rng = np.random.default_rng(seed)
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1, 1)
    pairs, xs, ds = [], [], []
    for number in range(2):
        x = Interval(lo := rng.normal(size=(1, 2)) * size, lo + rng.random((1, 2)) * size)
        d = Interval(lo := rng.normal(size=(1, 2)) * moved, lo + rng.random((1, 2)) * moved)
        pairs.append(Pair(x, add(x, d), d))
        inside = rng.random((40, 2))
        for found, of, corner in ((xs, x, corners[number]), (ds, d, corners[2 + number])):
            share = np.concatenate([np.repeat(corner, 2, 1), inside])
            found.append(of.lo + share * (of.hi - of.lo))
    return pairs, xs, ds


def assert_product_holds(seed: int, size: float, moved: float) -> None:
    rule, (pairs, xs, ds) = Product(), tried(seed, size, moved)
    y = xs[0] * xs[1]
    change = (xs[0] + ds[0]) * (xs[1] + ds[1]) - y
    slack = CLOSE * (1 + size + moved) ** 2
    for found, seen in (
        (rule.forward([p.x for p in pairs], 0.0), y),
        (rule.difference(rule, pairs, 0.0), change),
    ):
        assert (found.lo <= seen + slack).all()
        assert (seen <= found.hi + slack).all()
    a = np.random.default_rng(seed).normal(size=(1, 3, 2))
    forms, number = rule.backward(a, [p.x for p in pairs], 0.0)
    least = sum(x @ form[0].T for x, form in zip(xs, forms, strict=True)) + number[0]
    assert (least <= y @ a[0].T + slack).all()
    forms, rest, number = rule.backward_difference(rule, a, pairs, 0.0)
    assert not any(part.any() for part in rest)
    least = sum(d @ form[0].T for d, form in zip(ds, forms, strict=True)) + number[0]
    assert (least <= change @ a[0].T + slack).all()
    exact = rational.product_of(*(Triple(*(ends(part) for part in (p.x, p.z, p.d))) for p in pairs))
    lo, hi = (np.array(end / exact.d.den, np.float64) for end in (exact.d.lo, exact.d.hi))
    assert (lo <= change.min(0) + slack).all()
    assert (change.max(0) <= hi + slack).all()


@given(st.integers(-(2**1200), 2**1200), st.integers(0, 2**1200), st.integers(1, 2**1100))
def test_long_numbers_are_shortened_outward(low: int, width: int, den: int) -> None:
    x = Ends(np.array([low], object), np.array([low + width], object), den)
    found = rational.shortened(x)
    ((lo,), (hi,)), ((low_end,), (high_end,)) = found.fractions(), x.fractions()
    assert lo <= low_end
    assert high_end <= hi
    assert low_end - lo <= Fraction(1, 2**512) >= hi - high_end
    assert found.den.bit_length() <= 1024


def ends(x: Interval) -> Ends:
    return Ends.of(exactly(x.lo[0]), exactly(x.hi[0]))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 50.0]), st.sampled_from([0.0, 1e-3, 1.0]))
def test_no_point_is_outside_of_a_product(seed: int, size: float, moved: float) -> None:
    assert_product_holds(seed, size, moved)


def _halved(one: Triple, two: Triple) -> Triple:
    made = _product_of(one, two)
    return Triple(made.x, made.z, rational.times(one.z, two.d))


_product_of = rational.product_of
FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "the lower ends alone": (
        products,
        "times",
        lambda one, other: Interval(one.lo * other.lo, one.lo * other.lo),
    ),
    "two corners of four": (
        products,
        "times",
        lambda one, other: Interval(
            np.minimum(one.lo * other.lo, one.hi * other.hi), np.maximum(one.lo * other.lo, one.hi * other.hi)
        ),
    ),
    "one factor's change left out": (
        Product,
        "difference",
        lambda self, other, pairs, unit: products.times(pairs[0].z, pairs[1].d),
    ),
    "nothing for what is off the centres": (products, "_weighed", lambda a, size: np.zeros(a.shape[:2])),
    "nothing for it in the checker": (rational, "product_of", _halved),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_unsound_product_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def each() -> None:
        for seed in range(20):
            assert_product_holds(seed, 1.0, 0.5)

    each()
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        each()


def multiplied(seed: int, kind: str) -> ir.Model:
    """Two inputs and one product or sum of what they give, small enough to try every corner."""
    kept = models.constants(seed, w=(2, 3), b=(3,), v=(2, 1), u=(3, 2))
    body = f"h = Gemm(x, w, b) k = MatMul(x, v) g = Sigmoid(k) m = {kind}(h, g) y = MatMul(m, u)"
    return normalize(models.text("(float[N, 2] x) => (float[N, 2] y)", body, kept)).model


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["Mul", "Add", "Sub"]),
    st.floats(-2, 1),
    st.sampled_from([0.1, 2.0]),
)
def test_no_point_of_a_tiny_box_is_outside(seed: int, kind: str, low: float, width: float) -> None:
    model = multiplied(seed, kind)
    box = box_of(model, low, low + width)
    assert_range_holds(model, box)
    assert_change_holds(model, nudged(model, seed), box)


def test_weights_of_a_transposed_convolution_may_go() -> None:
    model = net("transposed")
    program, box = read(model), box_of(model, 0.0, 1.0)
    (name,) = (step.output for step in program.steps if step.output == "r")
    for method in ("plain", "tight"):
        task = Task(program, box, program.ranges(box), np.full(3, 3.0), METHODS[method])
        found = choose(task, np.random.default_rng(0), allowed=lambda step: step.output == name)
        assert found.count > 0
        assert set(found.gone) == {name}
        assert found.change.magnitude.max() <= 3.0


REFUSED = {
    "quotient": ("y = Div(x, x)", "divides by what varies"),
    "shapes of another length": (
        "s = ReduceMean <keepdims = 0> (x, axes) y = Mul(x, s)",
        "its sizes differ",
    ),
    "padding from the output": (
        "y = ConvTranspose <output_shape = [4, 4]> (x, k)",
        "shape of its output",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused(name: str) -> None:
    body, said = REFUSED[name]
    kept: models.Weights = {}
    if "axes" in body:
        kept = {"axes": models.array(1, dtype=np.int64)}
    elif "k)" in body:
        kept = models.constants(1, k=(2, 2, 1, 1))
    text = models.text("(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)", body, kept)
    model = normalize(text).model
    with pytest.raises(NotCoveredError, match=said):
        read(model)
    with pytest.raises(TooHardError):
        recheck.changes(model, model, Interval(np.zeros((1, 2, 4, 4)), np.ones((1, 2, 4, 4))))
