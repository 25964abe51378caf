"""Bounds hold, whatever the net: against what onnxruntime gives on a grid over the box, its corners included."""

import models
import numpy as np
import oracles
import pytest
from certifynets import BODIES, assert_change_holds, assert_range_holds, box_of, net, nudged, tiny, with_erf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.certify import backward, certificate, difference
from edgepress.compressor.certify.certificate import bound
from edgepress.compressor.certify.difference import aligned
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.program import NotCoveredError, read
from edgepress.compressor.normalize import normalize
from edgepress.compressor.passes import Quantize, StoreWeights
from edgepress.compressor.passes.base import Context


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


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_point_of_a_tiny_box_is_outside(data: st.DataObject) -> None:
    model = tiny(data)
    low = data.draw(st.floats(-2, 1))
    box = box_of(model, low, low + data.draw(st.floats(0, 2)))
    assert_range_holds(model, box)
    assert_change_holds(model, nudged(model, data.draw(st.integers(0, 99))), box)


@pytest.mark.parametrize("name", ["relu, max pool", "residual", "average pool", "mean", "mean without axes"])
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


def test_what_is_not_covered_is_refused_by_name() -> None:
    with pytest.raises(NotCoveredError, match="Erf 'r'"):
        read(normalize(with_erf()).model)
    with pytest.raises(NotCoveredError, match="2 inputs"):
        read(models.two_inputs())


def test_forms_go_a_few_at_a_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net("residual")
    pair, box = (read(model), read(nudged(model))), box_of(model)

    def change(tight: bool) -> Interval:
        return bound(*pair, box, float32=False, tight=tight).changes[0]

    plain, whole = change(False), change(True)
    assert (whole.width < plain.width).any()
    monkeypatch.setattr(backward, "FORMS_AT_ONCE", 1)
    parts = change(True)
    assert np.allclose(parts.lo, whole.lo, rtol=1e-12)
    assert np.allclose(parts.hi, whole.hi, rtol=1e-12)
    monkeypatch.setattr(difference, "CHANGE_WORK", 0)
    monkeypatch.setattr(certificate, "TIGHTEN_WORK", 0)
    assert np.array_equal(change(True).lo, plain.lo)


@pytest.mark.parametrize("kind", ["LeakyRelu <alpha = 0.97>", "PRelu"])
def test_what_float32_rounds_of_slopes_counts(kind: str) -> None:
    """Two hundred products, each rounded; the sum of that is more than what the two nets differ by."""
    slope = {"s": models.array(0.97)} if kind == "PRelu" else {}
    lines = [f"h{i + 1} = {kind}(h{i}{', s' if slope else ''})" for i in range(200)]
    body = f"h0 = Mul(x, w) {' '.join(lines)} y = Identity(h200)"
    header = "(float[N, 1] x) => (float[N, 1] y)"
    for first in (0.6, 0.7, 0.8, 0.9):
        weights = [{"w": np.float32(first).reshape(1), **slope} for _ in range(2)]
        weights[1]["w"] = np.nextafter(weights[0]["w"], np.float32(2))
        model, other = (normalize(models.text(header, body, each)).model for each in weights)
        box = box_of(model, -1.0, -1.0)
        assert_range_holds(model, box)
        assert_change_holds(model, other, box)
