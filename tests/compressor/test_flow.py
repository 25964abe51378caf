"""Channels through recurrent layers, Split, Slice, Gather, Reshape …: shrinking is masking there, too."""

import models
import models_core
import models_flow
import numpy as np
import onnx_ir as ir
import oracles
import pytest
from conformance import check
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.compressor.channels import analyse, groups_of
from edgepress.compressor.dimensions import target_of
from edgepress.compressor.passes import Shrink
from edgepress.compressor.recurrent import recurrence_of
from edgepress.compressor.shapes import infer_shapes


@pytest.mark.parametrize("name", sorted(models_flow.FLOWS))
@pytest.mark.parametrize(("share", "seed"), [(0.5, 7), (0.7, 8), (0.01, 9)])
def test_shrinking_is_masking(name: str, share: float, seed: int) -> None:
    model = models_flow.FLOWS[name]()
    groups, stuck = groups_of(model, analyse(model))
    assert [s.site for s in stuck if "output" not in s.reason] == []
    assert groups
    shrunk = oracles.cut(model, share, seed)
    assert sum(v.const_value.size for v in shrunk.graph.initializers.values() if v.const_value) < sum(
        v.const_value.size for v in model.graph.initializers.values() if v.const_value
    )
    oracles.assert_masked(model, shrunk)


@pytest.mark.parametrize("name", sorted(models_flow.FLOWS))
@pytest.mark.parametrize("criterion", ["obs", "zeros", "outliers", "qr", "fisher"])
def test_every_criterion_takes_what_it_is_told_to(name: str, criterion: str) -> None:
    model = models_flow.FLOWS[name]()
    changed = check(model, Shrink(share=0.5, criterion=criterion))  # type: ignore[arg-type]
    for group in groups_of(model, analyse(model))[0]:
        left = {g.name: len(g.units) for g in groups_of(changed, analyse(changed))[0]}
        assert left.get(group.name, 1) < len(group.units)


def test_sizes_that_the_graph_worked_out_are_gone_with_what_they_said() -> None:
    model = models_flow.exported_gru()
    shrunk = oracles.cut(model, 0.5, 3)
    assert {node.op_type for node in shrunk.graph} == {"GRU", "Transpose", "Reshape", "Gather", "Gemm"}
    layer = recurrence_of(next(node for node in shrunk.graph if node.op_type == "GRU"))
    assert layer is not None
    assert layer.hidden == 3
    assert layer.starts() == []
    assert all(value.uses() for value in shrunk.graph.initializers.values())


@pytest.mark.parametrize(
    ("body", "weights", "channels"),
    [
        ("of = Shape(a) g = Gather(of, one) f = Cast <to = 1> (g) b = Mul(a, f)", {"one": np.array([1])}, 8),
        ("of = Shape(a) t = Tile(z, of) b = Add(a, t)", {"z": np.zeros((1, 1, 1, 1), np.float32)}, 8),
        ("b = Slice(a, at, to, axes, steps)", models_flow.integers(at=[0], to=[8], axes=[1], steps=[2]), 4),
        ("b = DepthToSpace <blocksize = 2> (a)", {}, 2),
        ("b = Reshape(a, shape)", models_flow.integers(shape=[-1, 4, 8, 4]), 4),
        ("b = Pad(a, pads)", models_flow.integers(pads=[0, 1, 0, 0, 0, 0, 0, 0]), 9),
        ("s, i = MaxPool <kernel_shape = [1, 1]> (a) f = Cast <to = 1> (i) b = Add(s, f)", {}, 8),
        ("b = Softmax <axis = 1> (a)", {}, 8),
        ("b = Resize(a, , , sizes)", models_flow.integers(sizes=[4, 4, 4, 4]), 4),
        ("b = Resize(a, , factors)", {"factors": np.array([1, 2, 1, 1], np.float32)}, 16),
    ],
)
def test_what_is_not_understood_stays(body: str, weights: models.Weights, channels: int) -> None:
    """Or what is joined goes together; in either case the model goes on computing what its mask does."""
    model = models_flow.conv_head(body, weights, channels)
    shrunk = oracles.cut(model, 0.5, 5)
    if body.startswith("b = Reshape"):
        oracles.assert_masked(model, shrunk)
        assert next(iter(groups_of(model, analyse(model))[0])).units.size == 4
    else:
        assert groups_of(model, analyse(model))[0] == []


def test_a_first_state_from_elsewhere_holds_its_layer() -> None:
    model = models.text(
        "(float[5, N, 3] x, float[1, N, 4] s0) => (float[N, 2] y)",
        "s, h = GRU <hidden_size = 4> (x, w, r, b, , s0) q = Squeeze(h, axes) y = Gemm <transB = 1> (q, v)",
        models.constants(10, w=(1, 12, 3), r=(1, 12, 4), b=(1, 24), v=(2, 4))
        | models_flow.integers(axes=[0]),
    )
    infer_shapes(model)
    groups, stuck = groups_of(model, analyse(model))
    assert groups == []
    assert any("first state" in s.reason for s in stuck)


def test_weights_of_two_layers_hold_both() -> None:
    model = models.text(
        "(float[5, N, 3] x) => (float[N, 2] y)",
        "s, h = GRU <hidden_size = 4> (x, w, r, b) t, g = GRU <hidden_size = 4> (x, w, r2, b2) a = Add(h, g) "
        "q = Squeeze(a, axes) y = Gemm <transB = 1> (q, v)",
        models.constants(10, w=(1, 12, 3), r=(1, 12, 4), b=(1, 24), r2=(1, 12, 4), b2=(1, 24), v=(2, 4))
        | models_flow.integers(axes=[0]),
    )
    infer_shapes(model)
    groups, stuck = groups_of(model, analyse(model))
    assert groups == []
    assert any("shared" in s.reason for s in stuck)


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(st.data(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_reshape_puts_units_where_numpy_does(data: st.DataObject, flatten: bool) -> None:
    """Every unit is followed to all positions that hold it, and to none that holds another's values as well."""
    before = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    factors = data.draw(st.permutations([f for d in before for f in ([2, 2] if d == 4 else [d])]))
    after = list(before)
    if data.draw(st.booleans()):
        cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(factors) - 1)), max_size=3)))
        pieces = np.split(np.array(factors), cuts)
        after = [int(np.prod(p)) for p in pieces]
    else:
        at = data.draw(st.integers(0, len(before) - 2))
        after[at : at + 2] = [before[at] * before[at + 1]]
    axis = data.draw(st.integers(0, len(before) - 1))
    assert_followed(before, after, axis, flatten=flatten)


def assert_followed(before: list[int], after: list[int], axis: int, *, flatten: bool) -> None:
    from edgepress.compressor.carried import carried
    from edgepress.compressor.units import Channels, Track

    graph_weights = models_flow.integers(shape=after)
    head = f"(float[{', '.join(map(str, before))}] x)"
    if flatten:
        after = [int(np.prod(before[:1])), int(np.prod(before[1:]))]
    body = "y = Flatten(x)" if flatten else "y = Reshape(x, shape)"
    model = models_flow.made(f"{head} => (float[{', '.join(map(str, after))}] y)", body, graph_weights)
    node = model.graph[0]
    x = node.inputs[0]
    assert x is not None
    channels = Channels()
    channels.tracks[x] = Track(axis, len(before), channels.fresh(before[axis], "x"))
    tracks = carried(channels, node, [x])
    if tracks is None:
        return
    index = np.indices(before)[axis].reshape(after)
    (track,) = tracks
    for position, unit in enumerate(channels.roots(track.ids)):
        held = {channels.root(int(u)) for u in np.take(index, position, axis=track.axis).ravel()}
        assert held == {int(unit)}


def test_target_shapes_are_worked_out() -> None:
    model = models_flow.exported_gru()
    found = {node.outputs[0].name: target_of(node) for node in model.graph if node.op_type == "Reshape"}
    assert found["q"] == ([5, 0, 6], [5, "N", 6])
    view = models_flow.view()
    assert target_of(next(n for n in view.graph if n.op_type == "Reshape")) == ([0, 128], ["N", 128])


def test_models_that_were_held_before_are_still_masked_by_shrinking() -> None:
    model = models_core.folded_rows()
    oracles.assert_masked(model, oracles.cut(model, 0.5, 1))


def test_a_model_of_many_multiplied_sizes_is_looked_at_once() -> None:
    """Each doubles what a careless walk would visit."""
    body = "of = Shape(a) d0 = Gather(of, one) " + " ".join(f"d{i + 1} = Mul(d{i}, d{i})" for i in range(60))
    model = models_flow.conv_head(f"{body} t = Concat <axis = 0> (d60, d60) f = Reshape(a, t) b = Neg(a)",
                                  {"one": np.array([1])})  # fmt: skip
    assert isinstance(analyse(model).pinned, dict)


def test_rows_of_a_state_that_nobody_names_are_still_found() -> None:
    """Y is left out of an exported layer whose last state alone is read."""
    model = models.text(
        "(float[5, N, 3] x) => (float[N, 2] y)",
        "s, h = GRU <hidden_size = 6> (x, w, r, b) q = Squeeze(h, axes) y = Gemm <transB = 1> (q, v)",
        models.constants(10, w=(1, 18, 3), r=(1, 18, 6), b=(1, 36), v=(2, 6))
        | models_flow.integers(axes=[0]),
    )
    model.graph[0].outputs[0].name = ""
    infer_shapes(model)
    shrunk: ir.Model = model.clone()
    assert Shrink(share=0.5).apply(shrunk, oracles.context(model)).modified
    assert oracles.values(shrunk, models.feeds(model), ["y"])["y"].shape == (4, 2)
