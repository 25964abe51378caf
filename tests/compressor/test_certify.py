"""Bounds hold, whatever the net: against what onnxruntime gives on a grid over the box, its corners included."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import curves
from edgepress.compressor.certify.backward import bounded, tightened
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.choose import METHODS, PLAIN, TIGHT, Proposals, Task, by_segments, choose
from edgepress.compressor.certify.difference import aligned
from edgepress.compressor.certify.intervals import UNIT32, Interval, add
from edgepress.compressor.certify.linear import ConvMap, MatrixMap, MeanMap, ScaleMap
from edgepress.compressor.certify.program import NotCoveredError, read
from edgepress.compressor.certify.rules import Pair
from edgepress.compressor.certify.top1 import margins
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import Quantize, Reset, StoreWeights
from edgepress.compressor.passes.base import Context
from edgepress.compressor.sites import find_sites, replace_constant

HEAD = "(float[N, 2, 4, 4] x) => (float[N, M] y)"
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, k, b)"
TAIL = "f = Flatten(r) y = Gemm <transB = 1> (f, w, v)"
BODIES = {
    "relu, max pool": "a = Relu(c) r = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
    "max pool over the edge": "r = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c)",
    "max pool, size rounded up": "r = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (c)",
    "average pool": "a = Relu(c) r = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (a)",
    "leaky": "r = LeakyRelu <alpha = 0.2> (c)",
    "prelu": "r = PRelu(c, slope)",
    "prelu of any slope": "r = PRelu(c, steep)",
    "clip": "lo = Constant <value_float = -0.3> () hi = Constant <value_float = 0.4> () r = Clip(c, lo, hi)",
    "sigmoid": "r = Sigmoid(c)",
    "tanh": "r = Tanh(c)",
    "norm": "r = LRN <size = 3, alpha = 0.9, beta = 0.75, bias = 0.5> (c)",
    "residual": "a = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (a, k2, b) s = Add(d, c) r = Relu(s)",
    "a difference": "a = Relu(c) d = Conv <pads = [1, 1, 1, 1]> (a, k2, b) s = Sub(a, d) r = Relu(s)",
    "depthwise": "a = Relu(c) r = Conv <group = 3, strides = [2, 1], pads = [1, 0, 0, 1]> (a, kd)",
    "joined": "a = Relu(c) t = Tanh(c) r = Concat <axis = 1> (a, t)",
    "moved": "t = Transpose <perm = [0, 2, 3, 1]> (c) r = Relu(t)",
    "scaled": "n = BatchNormalization(c, g, g2, g3, g4) m = Mul(n, scale) r = Relu(m)",
    "mean": "a = Relu(c) r = GlobalAveragePool(a)",
    "softmax inside": "r = Softmax <axis = 1> (c)",
}  # fmt: skip


def weights(seed: int, inputs: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = models.constants(
        seed,
        k=(3, 2, 3, 3),
        b=(3,),
        k2=(3, 3, 3, 3),
        kd=(3, 1, 3, 2),
        w=(3, inputs),
        v=(3,),
        g=(3,),
        g2=(3,),
        g3=(3,),
    )
    return found | {
        "g4": rng.uniform(0.5, 2, 3).astype(np.float32),
        "slope": rng.uniform(0, 1, (3, 1, 1)).astype(np.float32),
        "steep": np.array([-0.4, 1.7, 0.5], np.float32).reshape(3, 1, 1),
        "scale": rng.normal(size=(1, 3, 1, 1)).astype(np.float32),
    }


def net(name: str, seed: int = 0) -> ir.Model:
    """One of `BODIES`, in canonical form but for constants that fold away."""
    width = {
        "relu, max pool": 12,
        "max pool over the edge": 12,
        "max pool, size rounded up": 12,
        "average pool": 12,
    }
    width |= {"joined": 96, "mean": 3, "depthwise": 24}
    kept = weights(seed, width.get(name, 48))
    body = f"{CONV} {BODIES[name]} {TAIL}"
    used = {
        key: value
        for key, value in kept.items()
        if f" {key}" in body.replace(",", " ").replace(")", " ").replace("(", " ")
    }
    return normalize(models.text(HEAD.replace("M]", "3]"), body, used)).model


def points(box: Interval, seed: int = 0) -> np.ndarray[Any, Any]:
    """Corners and points of a box: all corners of a small one, some of a large one."""
    rng, row = np.random.default_rng(seed), box.shape[1:]
    count = int(np.prod(row))
    corners = (
        np.array(list(product((0.0, 0.5, 1.0), repeat=count)))
        if count <= 4
        else rng.integers(0, 2, (300, count)).astype(float)
    )
    share = np.concatenate([corners, rng.random((100, count))]).reshape(-1, *row)
    return (box.lo + share * (box.hi - box.lo)).astype(np.float32)


def box_of(model: ir.Model, low: float = -1.0, high: float = 1.0) -> Interval:
    row = read(model).row
    return Interval(np.full((1, *row), low), np.full((1, *row), high))


def output(model: ir.Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = next(iter(models.run(model, {"x": x}).values())).astype(np.float64)
    return found.reshape(len(found), -1)


def assert_range_holds(model: ir.Model, box: Interval) -> None:
    """Intervals and linear bounds, for what onnxruntime computes in float32."""
    program, y = read(model), output(model, points(box))
    ranges = program.ranges(box, UNIT32)
    name = program.outputs[0]
    for known in (ranges, tightened(program, box, UNIT32)):
        for found in (known[name], bounded(program, name, known, UNIT32)):
            assert (found.lo.reshape(1, -1) <= y).all()
            assert (y <= found.hi.reshape(1, -1)).all()


def assert_change_holds(model: ir.Model, other: ir.Model, box: Interval, together: bool = True) -> None:
    """Bounds of the difference, plain and tight."""
    x = points(box)
    moved = output(other, x) - output(model, x)
    widths = []
    for tight in (False, True):
        found = bound(read(model), read(other), box, float32=True, tight=tight)
        assert found.together == together
        part = found.changes[0]
        assert (part.lo.reshape(1, -1) <= moved).all()
        assert (moved <= part.hi.reshape(1, -1)).all()
        widths.append(part.width.sum())
    assert widths[1] <= widths[0] * (1 + 1e-9)


def nudged(model: ir.Model, seed: int = 1, share: float = 0.3) -> ir.Model:
    """Some weights zero, the others off by a little."""
    changed, rng = model.clone(), np.random.default_rng(seed)
    for site in find_sites(changed):
        weight = site.weight * (1 + 0.05 * rng.normal(size=site.weight.shape))
        replace_constant(
            site.node, 1, np.where(rng.random(weight.shape) < share, 0, weight).astype(np.float32)
        )
    return changed


@pytest.mark.parametrize("name", sorted(BODIES))
def test_ranges_hold(name: str) -> None:
    model = net(name)
    for low, high in ((-1.0, 1.0), (0.2, 0.3), (0.5, 0.5)):
        assert_range_holds(model, box_of(model, low, high))


@pytest.mark.parametrize("name", sorted(BODIES))
def test_changes_hold(name: str) -> None:
    model = net(name)
    for low, high in ((-1.0, 1.0), (0.2, 0.3)):
        assert_change_holds(model, nudged(model), box_of(model, low, high))


def tiny(data: st.DataObject) -> ir.Model:
    """Two to four inputs, two or three layers: small enough to try every corner."""
    inputs, hidden, depth = (
        data.draw(st.integers(2, 4)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 2)),
    )
    kind = data.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "LeakyRelu"]))
    seed = data.draw(st.integers(0, 10**6))
    shapes: dict[str, tuple[int, ...]] = {"w0": (hidden, inputs), "b0": (hidden,)}
    lines = [f"h0 = Gemm <transB = 1> (x, w0, b0) a0 = {kind}(h0)"]
    for i in range(1, depth):
        shapes |= {f"w{i}": (hidden, hidden), f"b{i}": (hidden,)}
        lines.append(f"h{i} = Gemm <transB = 1> (a{i - 1}, w{i}, b{i}) a{i} = {kind}(h{i})")
    shapes |= {"w": (2, hidden), "b": (2,)}
    lines.append(f"y = Gemm <transB = 1> (a{depth - 1}, w, b)")
    body = " ".join(lines)
    return normalize(
        models.text(f"(float[N, {inputs}] x) => (float[N, 2] y)", body, models.constants(seed, **shapes))
    ).model


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_point_of_a_tiny_box_is_outside(data: st.DataObject) -> None:
    model = tiny(data)
    low = data.draw(st.floats(-2, 1))
    box = box_of(model, low, low + data.draw(st.floats(0, 2)))
    assert_range_holds(model, box)
    assert_change_holds(model, nudged(model, data.draw(st.integers(0, 99))), box)


@pytest.mark.parametrize("name", ["relu, max pool", "residual", "average pool", "mean"])
@pytest.mark.parametrize("width", [2.0, 0.01])
def test_quantizing_is_a_bounded_change(name: str, width: float) -> None:
    model = net(name)
    changed = model.clone()
    Quantize().apply(changed, oracles.context(model, 64))
    changed = normalize(changed).model
    assert aligned(read(model), read(changed)) is not None
    assert_change_holds(model, changed, box_of(model, -width / 2, width / 2))


def test_stored_weights_are_a_bounded_change() -> None:
    model = net("residual")
    changed = model.clone()
    StoreWeights(weight_bits=4, min_elements=2).apply(changed, Context())
    assert_change_holds(model, normalize(changed).model, box_of(model))


def test_nets_that_are_built_differently_are_bounded_apart() -> None:
    model, other = net("relu, max pool"), net("max pool over the edge")
    assert_change_holds(model, other, box_of(model, 0.0, 0.2), together=False)


FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "a grid with a quarter step": (curves.Grid, "_half", lambda self, x, unit: np.asarray(0.25 * self.step)),
    "a slope that may not be 0": (curves.Bent, "slopes", lambda self, x: (0.6 + 0 * x.lo, 1.0 + 0 * x.lo)),
    "a chord too low": (
        curves.Bent,
        "lines",
        lambda self, x: curves.Lines(0 * x.lo, 0 * x.lo, 0 * x.lo, 0.2 * x.hi),
    ),
    "no upper end": (
        curves.Bent,
        "forward",
        lambda self, xs, unit: Interval(self.value(xs[0].lo), 0.7 * xs[0].hi),
    ),
}


def one_layer(*, quantized: bool = False, shift: float = 0.0) -> ir.Model:
    """Two inputs, one layer: bounds are exact there, so that any that is too narrow shows."""
    first = "q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z)" if quantized else "u = Identity(x)"
    kept: dict[str, Any] = {"w": models.array(1, -1, 0.5, 1).reshape(2, 2), "b": models.array(shift, shift)}
    if quantized:
        kept |= {"s": np.float32(0.3), "z": np.uint8(128)}
    body = f"{first} h = Gemm(u, w, b) y = Relu(h)"
    return normalize(models.text("(float[N, 2] x) => (float[N, 2] y)", body, kept)).model


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_unsound_rule_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = one_layer()
    changed = one_layer(quantized=True) if "grid" in fault else one_layer(shift=0.1)
    box = box_of(model)

    def both() -> None:
        assert_range_holds(model, box)
        assert_change_holds(model, changed, box)

    both()
    monkeypatch.setattr(FAULTS[fault][0], FAULTS[fault][1], FAULTS[fault][2])
    with pytest.raises(AssertionError):
        both()


CURVES: dict[str, curves.Curve] = {
    "relu": curves.Bent(),
    "leaky": curves.Bent(below=0.3),
    "clip": curves.Bent(-0.5, 0.8),
    "sigmoid": curves.Smooth("Sigmoid"),
    "tanh": curves.Smooth("Tanh"),
}


@pytest.mark.parametrize("name", sorted(CURVES))
@settings(max_examples=60, deadline=None)
@given(
    ends=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), moved=st.tuples(st.floats(-1, 1), st.floats(-1, 1))
)
def test_lines_and_slopes_hold_at_every_point(
    name: str, ends: tuple[float, float], moved: tuple[float, float]
) -> None:
    curve = CURVES[name]
    x = Interval(np.array([min(ends)]), np.array([max(ends)]))
    d = Interval(np.array([min(moved)]), np.array([max(moved)]))
    at = np.linspace(x.lo, x.hi, 41)
    lines = curve.lines(x)
    assert (lines.low_slope * at + lines.low <= curve.value(at) + 1e-15).all()
    assert (curve.value(at) <= lines.high_slope * at + lines.high + 1e-15).all()
    by = np.linspace(d.lo, d.hi, 21)[:, None]
    change = curve.value(at + by) - curve.value(at)
    pair = Pair(x, add(x, d), d)
    found = curve.difference(curve, [pair], 0.0)
    assert (found.lo <= change + 1e-15).all()
    assert (change <= found.hi + 1e-15).all()
    for sign in (1.0, -1.0):
        (form,), _, number = curve.backward_difference(curve, np.full((1, 1, 1), sign), [pair], 0.0)
        assert (form[0, 0, 0] * by + number[0, 0] <= sign * change + 1e-14).all()


def maps() -> Iterator[tuple[Any, tuple[int, ...]]]:
    rng = np.random.default_rng(3)
    yield MatrixMap(rng.normal(size=(4, 3))), (2, 4)
    yield MatrixMap(rng.normal(size=(3, 4)), transposed=True), (4,)
    yield ConvMap(rng.normal(size=(4, 3, 2, 3)), (5, 6), (2, 1), ((1, 0), (0, 2)), (1, 2)), (3, 5, 6)
    yield ConvMap(rng.normal(size=(4, 2, 3)), (7,), (2,), ((1, 1),), (1,), 2), (4, 7)
    yield ScaleMap(rng.normal(size=(2, 3))), (2, 3)
    yield MeanMap((3, 4, 5), (1, 2), False, np.full(1, 1 / 20)), (3, 4, 5)


@pytest.mark.parametrize("number", range(6))
def test_adjoints_and_gradients_belong_to_their_operator(number: int) -> None:
    op, row = list(maps())[number]
    rng = np.random.default_rng(number)
    x = rng.normal(size=(3, *row))
    y = op.apply(x)
    a = rng.normal(size=y.shape)
    assert np.isclose((a * y).sum(), (op.adjoint(a) * x).sum(), rtol=1e-12)
    if not isinstance(op, MeanMap):
        moved = rng.normal(size=op.weight.shape)
        found = (op.gradient(x[0], a[:1]) * moved).sum()
        assert np.isclose((a[0] * op.with_weight(moved).apply(x[:1])[0]).sum(), found, rtol=1e-12)


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


def with_erf() -> ir.Model:
    """A net with an operator that no bounds are known for."""
    header = "(float[N, 6] x) => (float[N, 4] y)"
    return models.text(header, "r = Erf(x) y = MatMul(r, w)", models.constants(1, w=(6, 4)))


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


def test_what_is_not_covered_is_refused_by_name() -> None:
    with pytest.raises(NotCoveredError, match="Erf 'r'"):
        read(normalize(with_erf()).model)
    with pytest.raises(NotCoveredError, match="2 inputs"):
        read(models.two_inputs())
