"""Which kernels ran, by what the engine itself tells of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.compressor.exact import cases, constructions
from edgepress.compressor.exact.models import FORMS, ExactModel, Form, build, build_sparse, precisions
from edgepress.compressor.export.tflite import convert
from edgepress.compressor.serialize import parse
from edgepress.runtime.engines.base import Kernel
from edgepress.runtime.engines.litert import LiteRTEngine
from edgepress.runtime.engines.ort import OrtEngine
from edgepress.runtime.engines.sparse import SparseEngine
from edgepress.runtime.kernels import run_seen, traced

PRECISIONS = precisions("uint8", 8)


def made(name: str, form: Form = "gemm") -> tuple[ExactModel, Mapping[str, Any]]:
    case = cases.answers(constructions.words(3, 2, 12), PRECISIONS[name], 1)
    maker = build_sparse if form == "sparse" else lambda net, *rest: build(net, form, *rest)
    model = maker(case.net, case.precision, case.biases, case.steps)
    return model, model.feeds(case.rows)


def event(op: str, *types: str, **more: object) -> dict[str, object]:
    args = {"op_name": op, "input_type_shape": [{kind: [1, 2]} for kind in types]}
    return {"cat": "Node", "name": f"{op}_1_kernel_time", "args": args, **more}


def test_a_trace_is_read_by_kernels_and_types_each_kind_once() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "args": {}},
        event("FusedGemm", "float", "float"),
        event("FusedGemm", "float", "float", name="other_kernel_time"),
        event("Cast", "float16", name="first_fence_before"),
        event("Cast", "float16"),
        event("Shape"),
        {
            "cat": "Node",
            "name": "old_kernel_time",
            "args": {"op_name": "Relu"},
        },  # of releases that tell no types
    ]
    assert traced(events) == (
        Kernel("Cast", ("float16",)),
        Kernel("FusedGemm", ("float32", "float32")),
        Kernel("Relu", ()),
        Kernel("Shape", ()),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "first"), [("fp32", {"float32"}), ("int8", {"uint8"}), ("int4", {"uint8"})])
def test_onnxruntime_tells_what_its_products_read(
    name: str, first: set[str], form: Form, tmp_path: Path
) -> None:
    model, feeds = made(name, form)
    outputs, kernels = run_seen(OrtEngine(), model.data, feeds, tmp_path / "trace")
    assert kernels is not None
    products = [each for each in kernels if "Gemm" in each.op or "MatMul" in each.op or "Conv" in each.op]
    assert {each.reads[0] for each in products} == first
    right = OrtEngine().load(model.data)(feeds)
    assert all(np.array_equal(outputs[key], right[key]) for key in right)


def test_a_product_of_halves_reads_halves_or_floats_behind_a_cast(tmp_path: Path) -> None:
    model, feeds = made("fp16")
    _, kernels = run_seen(OrtEngine(), model.data, feeds, tmp_path / "trace")
    assert kernels is not None
    (product,) = (each for each in kernels if "Gemm" in each.op)
    cast = Kernel("Cast", ("float16",)) in kernels
    assert product.reads[0] == ("float32" if cast else "float16")


@pytest.mark.parametrize(("name", "first"), [("fp32", "float32"), ("fp16", "float32"), ("int8", "int8")])
def test_tflite_tells_the_types_of_its_operators(name: str, first: str, tmp_path: Path) -> None:
    model, feeds = made(name)
    data = convert(parse(model.data)).data
    _, kernels = run_seen(LiteRTEngine(as_onnx=True), data, feeds, tmp_path / "trace")
    assert kernels is not None
    assert {each.reads[0] for each in kernels if each.op == "FULLY_CONNECTED"} == {first}
    assert not any("DELEGATE" in each.op.upper() for each in kernels)


def test_the_sparse_engine_multiplies_floats(tmp_path: Path) -> None:
    model, feeds = made("fp32", "sparse")
    _, kernels = run_seen(SparseEngine(), model.data, feeds, tmp_path / "trace")
    assert kernels
    assert {each.reads for each in kernels} == {("float32", "float32")}


def test_an_engine_that_does_not_tell_is_not_guessed_at(tmp_path: Path) -> None:
    class Silent:
        def load(self, model: bytes, threads: int) -> Any:
            return lambda feeds: {"y": feeds["x"]}

    outputs, kernels = run_seen(Silent(), b"", {"x": np.ones(1)}, tmp_path / "trace")
    assert kernels is None
    assert outputs["y"] == 1


@pytest.mark.parametrize("text", ["", "[{", '[{"cat": "Node", "name": "a_kernel_time"}]'])
def test_a_trace_that_cannot_be_read_takes_nothing_from_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    model, feeds = made("fp32")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    outputs, kernels = run_seen(OrtEngine(), model.data, feeds, tmp_path / "trace")
    assert outputs
    assert kernels is None
