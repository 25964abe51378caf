"""Shrinking is masking: what is left computes what the original does with gone channels weighed by zero."""

import models_core
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.model import to_bytes
from edgepress.compressor.shapes import infer_shapes

FIRST = {"net_residual": 1, "net_grouped": 0}

nets = st.builds(
    models_core.random_net,
    st.lists(st.sampled_from(models_core.BLOCKS), min_size=1, max_size=6),
    st.sampled_from(models_core.HEADS),
    st.integers(0, 1000),
)


@given(nets, st.floats(0.1, 0.9), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_shrinking_is_masking(model: ir.Model, share: float, seed: int) -> None:
    before = to_bytes(model)
    shrunk = oracles.cut(model, share, seed)
    assert to_bytes(model) == before
    oracles.assert_masked(model, shrunk)
    oracles.assert_masked(
        model, oracles.cut(shrunk, share, seed)
    )  # what is kept is told in terms of the original


@pytest.mark.parametrize("name", sorted(models_core.ALL))
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_shrinking_every_tiny_model_is_masking(name: str, share: float) -> None:
    model = models_core.ALL[name]()
    infer_shapes(model)
    oracles.assert_masked(model, oracles.cut(model, share, 7))
