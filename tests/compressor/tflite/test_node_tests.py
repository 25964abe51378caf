"""onnx's own backend node tests: every case of listed operators is converted and equal, or refused for a known reason.

`pytest -s` shows how many were refused for which reason.
"""

import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.test_case import TestCase as Case
from tflite import by_tflite

from edgepress.compressor.export.tflite import Converted, convert
from edgepress.compressor.export.tflite.convert import NotConvertibleError
from edgepress.compressor.export.tflite.emitter import CONTAINERS

_LISTED = """
Conv ConvTranspose Gemm MatMul Add Sub Mul Div Min Max Neg Abs Exp Log Sqrt Reciprocal Pow Erf Floor Ceil
Round Relu Clip LeakyRelu PRelu Elu Gelu Sigmoid HardSigmoid HardSwish Tanh Softmax LogSoftmax
ThresholdedRelu Where Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor MaxPool AveragePool
GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ArgMax Reshape Flatten
Squeeze Unsqueeze Transpose Expand Tile Concat Split Slice Pad Gather GatherND Resize DepthToSpace
SpaceToDepth BatchNormalization LayerNormalization InstanceNormalization LpNormalization LSTM GRU Cast Shape
Size Constant ConstantOfShape Range Identity Dropout QuantizeLinear DequantizeLinear
"""
OPERATORS = frozenset(_LISTED.split())
"""What the writer promises to express, in all forms."""
UNNAMED = frozenset(["And", "Or", "Not", "Xor", "Reciprocal", "Constant", "ConstantOfShape", "Range", "Size"])
"""Those of them that the list of promises has only as parts of others ("comparisons", "shape arithmetic")."""
REASONS = frozenset({"dtype", "rank", "dynamic shape", "empty", "random"})
CHUNKS = 8
_NARROW = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}


@cache
def cases() -> tuple[Case, ...]:
    """Cases whose operators are all listed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy, on overflows that cases are about
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)  # which onnx 1.20 wants to be said
    return tuple(
        case
        for case in found
        if case.model is not None
        and all(node.op_type in OPERATORS and not node.domain for node in case.model.graph.node)
    )


@cache
def outcome(at: int) -> str:
    """`converted`, the reason of a refusal, or what went wrong."""
    case = cases()[at]
    model = case.model
    assert model is not None
    try:
        converted = convert(ir.from_proto(model))
    except NotConvertibleError as error:
        reasons = [problem.why.split(":")[0] for problem in error.problems]
        return reasons[0] if REASONS.issuperset(reasons) else f"wrong: {error}"
    for inputs, outputs in case.data_sets or ():
        try:
            _assert_equal(case, converted, inputs, outputs)
        except (AssertionError, RuntimeError, ValueError) as error:
            return f"wrong: {error}"
    return "converted"


def _assert_equal(case: Case, converted: Converted, inputs: Any, outputs: Any) -> None:
    graph = case.model.graph
    feeds = {port.name: _array(held) for port, held in zip(graph.input, inputs, strict=True)}
    got = by_tflite(converted, feeds)
    for port, held in zip(graph.output, outputs, strict=True):
        expected = _array(held)
        assert got[port.name].dtype == expected.dtype, port.name
        np.testing.assert_allclose(
            got[port.name], expected, rtol=case.rtol, atol=case.atol, err_msg=port.name
        )
    narrow = {port.name for port in (*graph.input, *graph.output) if port.type.tensor_type.elem_type in _FEW}
    assert len(converted.notes) >= len(narrow)


_FEW = {kind.value for kind in CONTAINERS}


def _array(held: Any) -> npt.NDArray[Any]:
    """Numbers as the file has them: integers of fewer than 8 bits in 8, narrow floats in float32."""
    array = onnx.numpy_helper.to_array(held) if isinstance(held, onnx.TensorProto) else np.asarray(held)
    name = array.dtype.name
    narrow = np.float32 if name.startswith(("bfloat", "float8", "float4")) else array.dtype
    return array.astype(_NARROW.get(name, narrow))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_case_is_converted_and_equal_or_refused_for_a_known_reason(chunk: int) -> None:
    mine = range(chunk, len(cases()), CHUNKS)
    wrong = {cases()[at].name: outcome(at) for at in mine if outcome(at) not in {"converted", *REASONS}}
    assert not wrong


@pytest.mark.parametrize("left_out", [frozenset[str](), UNNAMED], ids=["all", "named"])
def test_most_cases_are_converted(left_out: frozenset[str]) -> None:
    counts = Counter(
        outcome(at) for at, case in enumerate(cases()) if left_out.isdisjoint(_operators(case.model))
    )
    print(f"\n{counts.total():5} cases{' of operators named in so many words' if left_out else ''}")
    for what, count in counts.most_common():
        print(f"{count:5} {what}, {100 * count / counts.total():.2f} %")
    assert counts["converted"] >= 0.85 * counts.total()


def _operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}
