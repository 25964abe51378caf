"""What a graph is brought into before integers flow through it."""

import models
import numpy as np
import onnx
import pytest
from models import constants, text

from edgepress.compressor.passes.integer_forms import raise_opset


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
