"""Random nets: the canonical form gives the same, and every pass leaves a valid model that runs."""

import conformance
import models
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import nets

from edgepress.compressor.equality import interface_difference, same_outputs
from edgepress.compressor.model import to_bytes
from edgepress.compressor.normalize import normalize
from edgepress.compressor.shapes import missing_shapes

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@pytest.fixture(autouse=True)
def packing_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else weights as few as these would never be packed, nor quantized."""
    monkeypatch.setattr("edgepress.compressor.numerics.packing.UNPACKING_BYTES", -(10**6))
    for module in ("dynamic", "weight_only"):
        monkeypatch.setattr(f"edgepress.compressor.passes.{module}.OVERHEAD", -(10**6))


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(model=nets())
def test_the_canonical_form_of_any_net_gives_the_same(model: ir.Model) -> None:
    feeds, before = models.feeds(model, 3), to_bytes(model)
    found = normalize(model)
    assert to_bytes(model) == before
    assert not interface_difference(model, found.model)
    assert not missing_shapes(found.model)
    expected, got = models.run(model, feeds), models.run(found.model, feeds)
    assert same_outputs(expected, got, 1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(model=nets(), kinds=st.lists(st.sampled_from(sorted(conformance.STRONG)), min_size=1, max_size=3))
def test_any_recipe_leaves_a_valid_model(model: ir.Model, kinds: list[str]) -> None:
    whole = normalize(model).model
    context = oracles.context(whole, 24)
    changed = whole.clone()
    for kind in kinds:
        outcome = conformance.STRONG[kind](changed).apply(changed, context)
        assert all(skipped.reason for skipped in outcome.skipped)
    if all(np.isfinite(array).all() for array in models.run(whole, models.feeds(whole, 24)).values()):
        conformance.sound(whole, changed)
