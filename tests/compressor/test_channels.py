"""Shrinking is masking: what is left computes what the original does with gone channels weighed by zero."""

import models
import models_core
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.model import to_bytes
from edgepress.compressor.observe import KEPT
from edgepress.compressor.passes.shrink import Curve, leaving, remove_units
from edgepress.compressor.shapes import infer_shapes

FIRST = {"net_residual": 1, "net_grouped": 0}

nets = st.builds(
    models_core.random_net,
    st.lists(st.sampled_from(models_core.BLOCKS), min_size=1, max_size=6),
    st.sampled_from(models_core.HEADS),
    st.integers(0, 1000),
)


def cut(model: ir.Model, share: float, seed: int) -> ir.Model:
    """Take the same share of units, drawn at random, out of each group of a copy."""
    shrunk = model.clone()
    channels = analyse(shrunk)
    rng = np.random.default_rng(seed)
    gone: set[int] = set()
    for group in groups_of(shrunk, channels)[0]:
        order = rng.permutation(group.units)
        gone |= leaving(channels, Curve(order, np.zeros(0)), max(1, round(share * len(order))))
    changed = remove_units(shrunk, channels, gone)
    assert bool(changed) == bool(gone)
    return shrunk


def assert_masked(model: ir.Model, shrunk: ir.Model) -> None:
    """All values of the shrunk model are those of the masked original, less the channels that went."""
    names = [v.name or "" for node in shrunk.graph for v in node.outputs if v.name and v.type is not None]
    mask = oracles.masked(model, shrunk)
    feeds = models.feeds(model, 3, 1)
    before, after = oracles.values(mask, feeds, names), oracles.values(shrunk, feeds, names)
    kept = {v.name: (v, v.meta[KEPT]) for node in shrunk.graph for v in node.outputs if KEPT in v.meta}
    for name in names:
        expected = before[name]
        if name in kept:
            value, channels = kept[name]
            axis = analyse(shrunk).tracks[value].axis
            expected = np.take(expected, channels, axis=axis)
            assert value.shape is None or value.shape[axis] == len(channels)
        assert oracles.close({name: expected}, {name: after[name]}, 1e-5), name


@given(nets, st.floats(0.1, 0.9), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_shrinking_is_masking(model: ir.Model, share: float, seed: int) -> None:
    before = to_bytes(model)
    shrunk = cut(model, share, seed)
    assert to_bytes(model) == before
    assert_masked(model, shrunk)
    assert_masked(model, cut(shrunk, share, seed))  # what is kept is told in terms of the original


@pytest.mark.parametrize("name", sorted(models_core.ALL))
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_shrinking_every_tiny_model_is_masking(name: str, share: float) -> None:
    model = models_core.ALL[name]()
    infer_shapes(model)
    assert_masked(model, cut(model, share, 7))
