"""Rules of the exact check for curves and quantizers: against decimal arithmetic, and points tried."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from certifynets import box_of, net, one_layer, output, points
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import exactrules, gridrules, recheck, smoothrules
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.enclosures import ONE, decay, reciprocal_power, root, sigmoid
from edgepress.compressor.certify.nodepair import Nodes, TooHardError
from edgepress.compressor.certify.program import read
from edgepress.compressor.certify.rational import Ends, Triple, exactly
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import Quantize
from edgepress.compressor.protocols import Array

FINE = Decimal(2) ** -100


def real(x: float) -> Decimal:
    return Decimal(x)


def held(ends: tuple[Array, Array], exact: Decimal) -> None:
    """Between the two ends, which are hardly apart; relative to numbers above 1."""
    lo, hi = (Decimal(int(end.reshape(-1)[0])) / ONE for end in ends)
    assert lo <= exact <= hi
    assert hi - lo <= FINE * max(1, abs(exact))


@given(st.floats(0, 700))
def test_decay_holds_what_decimals_say(t: float) -> None:
    with localcontext(prec=400):
        held(decay(exactly(np.array([t]))), (-real(t)).exp())


@given(st.floats(-600, 600) | st.floats(-3, 3))
def test_sigmoid_holds_what_decimals_say(x: float) -> None:
    with localcontext(prec=400):
        held(sigmoid(exactly(np.array([x]))), 1 / (1 + (-real(x)).exp()))


@given(st.floats(0.01, 100), st.floats(0, 3, width=32).filter(lambda b: b == 0 or b > 0.01))
def test_roots_and_powers_hold_what_decimals_say(x: float, exponent: float) -> None:
    with localcontext(prec=200):
        whole = exactly(np.array([x]))
        ends = (whole.tops * ONE // whole.den, -(-whole.tops * ONE // whole.den))
        held(root(ends), real(x).sqrt())
        held(reciprocal_power(ends, exponent), real(x) ** -real(exponent))


CURVES: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "sigmoid": ("Sigmoid(x)", lambda x: 1 / (1 + np.exp(-x))),
    "tanh": ("Tanh(x)", np.tanh),
    "softmax": (
        "Softmax <axis = 2> (x)",
        lambda x: np.exp(x) / np.exp(x).sum(2, keepdims=True),
    ),
    "norm": (
        "LRN <size = 2, alpha = 1.5, beta = 0.75, bias = 0.25> (x)",
        lambda x: x / (0.25 + 0.75 * (x**2 + np.pad(x**2, [(0, 0), (0, 1), (0, 0)])[:, 1:])) ** 0.75,
    ),
    "norm that only rises": (
        "LRN <size = 3, alpha = 1.5, beta = 0.5> (x)",
        lambda x: (
            x
            / np.sqrt(1 + 0.5 * sum(np.pad(x**2, [(0, 0), (1, 1), (0, 0)])[:, i : i + 3] for i in range(3)))
        ),
    ),
}  # fmt: skip


def pair_of(body: str) -> Nodes:
    model = normalize(
        models.text("(float[N, 3, 2] x) => (float[N, 3, 2] y)", f"h = {body} y = Relu(h)")
    ).model
    node = next(iter(model.graph))
    return Nodes(node, node)


def triple(rng: np.random.Generator, size: float, moved: float) -> tuple[Triple, Array, Array]:
    """Ranges of x, of d and of x + d; and points in them, corners among them."""
    x_lo, d_lo = rng.normal(size=(3, 2)) * size, rng.normal(size=(3, 2)) * moved
    x_hi, d_hi = x_lo + rng.random((3, 2)) * size, d_lo + rng.random((3, 2)) * moved
    share = rng.random((2, 300, 3, 2))
    share[:, :200] = share[:, :200] < 0.5
    x, d = x_lo + share[0] * (x_hi - x_lo), d_lo + share[1] * (d_hi - d_lo)
    ends = [Ends.of(exactly(lo), exactly(hi)) for lo, hi in ((x_lo, x_hi), (d_lo, d_hi))]
    return Triple(ends[0], ends[0] + ends[1], ends[1]), x, d


def assert_rule_holds(name: str, seed: int, size: float, moved: float) -> None:
    body, f = CURVES[name]
    nodes = pair_of(body)
    at, x, d = triple(np.random.default_rng(seed), size, moved)
    made = exactrules.RULES[nodes.ours.op_type](nodes, [at])
    for part, seen in ((made.x, f(x)), (made.z, f(x + d)), (made.d, f(x + d) - f(x))):
        lo, hi = (np.array(end / part.den, np.float64) for end in (part.lo, part.hi))
        assert (lo <= seen.min(0) + 1e-12).all()
        assert (seen.max(0) <= hi + 1e-12).all()


@pytest.mark.parametrize("name", sorted(CURVES))
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.5, 3.0, 30.0]), st.sampled_from([0.0, 1e-3, 1.0]))
def test_no_point_is_outside_of_a_rule(name: str, seed: int, size: float, moved: float) -> None:
    assert_rule_holds(name, seed, size, moved)


_shares = smoothrules.shares


def _ends(of: smoothrules.Norm, lo: Array, hi: Array, others: Array) -> Array:
    """Values at the ends, and none between them."""
    return np.maximum(of._value(lo, abs(lo), abs(lo), others), of._value(hi, abs(hi), abs(hi), others))


FAULTS: dict[str, tuple[str, Any, str, Callable[..., Any]]] = {
    "a slope that is too small": (
        "tanh",
        smoothrules,
        "scaled",
        lambda d, least, most, den: Ends(least * d.lo, least * d.hi, d.den * den),
    ),
    "shares of the lower ends": (
        "softmax",
        smoothrules,
        "shares",
        lambda x: _shares(Ends(x.lo, x.lo, x.den)),
    ),
    "no peak": ("norm", smoothrules.Norm, "_largest", _ends),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_unsound_rule_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, where, what, instead = FAULTS[fault]

    def tried() -> None:
        for seed in range(20):
            assert_rule_holds(name, seed, 0.5, 0.3)

    tried()
    monkeypatch.setattr(where, what, instead)
    with pytest.raises(AssertionError):
        tried()


def quantized(name: str) -> tuple[ir.Model, ir.Model]:
    model = net(name)
    changed = model.clone()
    Quantize().apply(changed, oracles.context(model, 64))
    return model, normalize(changed).model


def assert_quantized_holds(model: ir.Model, changed: ir.Model, width: float) -> None:
    """Exact bounds hold what onnxruntime gives, and lie within the fast ones, which are wider by rounding only."""
    box = box_of(model, -width / 2, width / 2)
    (found,) = recheck.changes(model, changed, box)
    lo, hi = (np.array([float(x) for x in end]) for end in found.fractions())
    moved = output(changed, points(box)) - output(model, points(box))
    assert (lo <= moved.min(0) + 1e-5).all()
    assert (moved.max(0) <= hi + 1e-5).all()
    (fast,) = bound(read(model), read(changed), box, float32=False, tight=False).changes
    slack = 1e-11 * max(1.0, float(np.abs([lo, hi]).max()))
    assert (fast.lo.reshape(-1) <= lo + 1e-300).all()
    assert (hi <= fast.hi.reshape(-1) + 1e-300).all()
    assert (lo - slack <= fast.lo.reshape(-1)).all()
    assert (fast.hi.reshape(-1) <= hi + slack).all()


@pytest.mark.parametrize(
    "name", ["relu, max pool", "residual", "average pool", "sigmoid", "mean without axes", "mean with axes"]
)
@pytest.mark.parametrize("width", [2.0, 0.01])
def test_quantizing_is_bounded_exactly(name: str, width: float) -> None:
    assert_quantized_holds(*quantized(name), width)


@pytest.mark.parametrize("quantizes", [(False, True), (True, True)])
def test_a_grid_in_one_net_or_in_both(quantizes: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = one_layer(quantized=quantizes[0]), one_layer(quantized=quantizes[1], shift=0.1)
    assert_quantized_holds(*pair, 2.0)
    monkeypatch.setattr(gridrules, "spread", lambda by: Ends(*2 * (np.asarray(0, object),), 1))
    with pytest.raises(AssertionError):
        assert_quantized_holds(*pair, 2.0)


GRIDS = {
    "another scale behind": ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)", "another grid"),
    "integers that are read": (
        "q = QuantizeLinear(x, s, z) m = MaxPool <kernel_shape = [1]> (q) y = DequantizeLinear(m, s, z)",
        "differently",
    ),
    "another scale in the candidate": ("q = QuantizeLinear(x, t, z) y = DequantizeLinear(q, t, z)", "otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_do_not_fit_are_too_hard(name: str) -> None:
    body, said = GRIDS[name]
    kept = {"s": np.float32(0.3), "t": np.float32(0.25), "z": np.uint8(128)}
    bodies = ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", body)
    header = "(float[N, 2, 4] x) => (float[N, 2, 4] y)"
    nets = []
    for each in bodies:
        used = {key: value for key, value in kept.items() if f"{key}," in each or f"{key})" in each}
        nets.append(normalize(models.text(header, each, used)).model)
    with pytest.raises(TooHardError, match=said):
        recheck.changes(*nets, box_of(nets[0]))


def test_a_softmax_that_is_quantized_is_no_softmax_at_the_end() -> None:
    """What it reads stands for the original's output, and must not stand for what it gives."""
    header = "(float[N, 4] x) => (float[N, 4] y)"
    kept = {"s": np.float32(1 / 255), "z": np.uint8(0)}
    bodies = ("y = Softmax(x)", "p = Softmax(x) q = QuantizeLinear(p, s, z) y = DequantizeLinear(q, s, z)")
    nets = [
        normalize(models.text(header, body, weights)).model
        for body, weights in zip(bodies, ({}, kept), strict=True)
    ]
    for pair in (nets, nets[::-1]):
        with pytest.raises(TooHardError):
            recheck.changes(*pair, box_of(nets[0]))


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_weights_stored_as_integers_are_bounded_exactly(kind: Any) -> None:
    header, body = "(float[N, 3] x) => (float[N, 2] y)", "y = MatMul(x, w)"
    model = normalize(models.text(header, body, models.constants(2, w=(3, 2)))).model
    rng = np.random.default_rng(0)
    kept = {
        "q": rng.integers(0, 8, (3, 2)).astype(kind),
        "s": models.array(0.3, 0.7),
        "z": np.array([2, 4]).astype(kind),
    }
    body = "w = DequantizeLinear <axis = 1> (q, s, z) y = MatMul(x, w)"
    changed = normalize(models.text(header, body, kept)).model
    assert any(node.op_type == "DequantizeLinear" for node in changed.graph)
    assert_quantized_holds(model, changed, 2.0)


def test_a_change_of_a_sigmoid_that_is_worked_out_by_hand() -> None:
    """y = sigmoid(x + 1) and w = sigmoid(x + 2) at x = 0."""
    header, body = "(float[N, 1] x) => (float[N, 1] y)", "h = Add(x, b) y = Sigmoid(h)"
    nets = [normalize(models.text(header, body, {"b": models.array(by)})).model for by in (1, 2)]
    (found,) = recheck.changes(*nets, box_of(nets[0], 0.0, 0.0))
    (lo,), (hi,) = found.fractions()
    assert 0 < hi - lo < 1e-30
    assert float(lo) == pytest.approx(0.8807970779778823 - 0.7310585786300049, abs=1e-15)
