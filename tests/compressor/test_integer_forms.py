"""Opsets raised for integer kernels."""

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from formats import Samples, distance
from models import constants, text

from edgepress.compressor.model import to_bytes
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.quantize import Quantize


def test_old_opsets_are_raised_and_nothing_else_changes() -> None:
    model = text(
        "(float[N, 4, 8, 8] x) => (float[N, 5] y)",
        "c = Conv(x, w, b) r = Relu(c) p = ReduceMean <axes = [2, 3], keepdims = 0> (r) y = MatMul(p, v)",
        constants(3, w=(8, 4, 3, 3), b=(8,), v=(8, 5)),
        opset=11,
    )
    before = to_bytes(model)
    changed = model.clone()
    outcome = Quantize().apply(changed, Context(stream=Samples(models.feeds(model, 32))))
    assert outcome.changed == ("c", "y")
    assert changed.opset_imports[""] == 13
    assert to_bytes(model) == before
    assert [d.value if isinstance(d, ir.SymbolicDim) else d for d in changed.graph.inputs[0].shape] == [
        "N",
        4,
        8,
        8,
    ]
    assert distance(model, changed, models.feeds(model, 32)) < 0.05
    assert not raise_opset(changed)


def test_heavy_weights_do_not_pass_through_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, convert = [], onnx.version_converter.convert_version

    def spy(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        sizes.append(proto.ByteSize())
        return convert(proto, version)

    monkeypatch.setattr(onnx.version_converter, "convert_version", spy)
    model = text(
        "(float[N, 40] x) => (float[N, 5] y, float[40, 500] w)",
        "h = MatMul(x, w) s = Softmax(h) y = MatMul(s, v)",
        constants(3, w=(40, 500), v=(500, 5)),
        opset=11,
    )
    feeds, changed = models.feeds(model, 8), model.clone()
    assert raise_opset(changed)
    assert max(sizes) < 20_000 < 40 * 500 * 4
    assert [value.name for value in changed.graph.inputs] == ["x"]
    before, after = models.run(model, feeds), models.run(changed, feeds)
    assert all(np.array_equal(before[name], after[name]) for name in before)
