"""Holds TFLite files against onnxruntime: floats, and 8-bit integers between Q/DQ pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter

from edgepress.compressor.export.tflite import Converted, convert

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
STEP = 1.001
"""Steps of the output's grid that integer kernels of two runtimes may lie apart: one, and the rounding of floats."""


def by_onnxruntime(model: ir.Model, feeds: Feeds) -> dict[str, Array]:
    """Outputs by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def by_tflite(converted: Converted, feeds: Feeds) -> dict[str, Array]:
    """Outputs by name, in ONNX's order of dimensions."""
    interpreter = Interpreter(model_content=converted.data, num_threads=1)
    run = interpreter.get_signature_runner()
    turned = {k: np.moveaxis(v, 1, -1) if converted.inputs[k] else v for k, v in feeds.items()}
    outputs = run(**{k: np.array(v, order="C") for k, v in turned.items()})
    return {k: np.moveaxis(v, -1, 1) if converted.outputs[k] else v for k, v in outputs.items()}


def assert_same(model: ir.Model, feeds: Feeds, *, rtol: float, atol: float, **settings: Any) -> Converted:
    """Both runtimes give the same outputs; `rtol` is relative to the largest magnitude of an output."""
    converted = convert(model, **settings)
    expected, got = by_onnxruntime(model, feeds), by_tflite(converted, feeds)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], array, err_msg=name)
            continue
        assert got[name].dtype == array.dtype, name
        finite = np.abs(array[np.isfinite(array)]).max(initial=0.0)
        np.testing.assert_allclose(got[name], array, rtol=0, atol=atol + rtol * finite, err_msg=name)
    return converted


def one_op(
    op: str,
    inputs: Mapping[str, Array],
    *,
    constants: Mapping[str, Array] | None = None,
    order: Sequence[str] | None = None,
    outputs: int = 1,
    opset: int = 21,
    dynamic: bool = False,
    **attributes: Any,
) -> ir.Model:
    """A model of one node.

    Args:
        op: its type.
        inputs: name → example; they become the graph's inputs.
        constants: name → initializer.
        order: names of the node's inputs, "" where one is left out; default: inputs, then constants.
        outputs: how many, named y0, y1, …
        opset: of ai.onnx.
        dynamic: whether the first dimension of every input is free.
        attributes: of the node.
    """
    held = dict(constants or {})
    names = list(order) if order is not None else [*inputs, *held]
    results = [f"y{at}" for at in range(outputs)]
    node = onnx.helper.make_node(op, names, results, name=f"the_{op}", **attributes)
    ports = [_port(name, array, dynamic) for name, array in inputs.items()]
    graph = onnx.helper.make_graph(
        [node],
        "one",
        ports,
        [onnx.ValueInfoProto(name=name) for name in results],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def _port(name: str, array: Array, dynamic: bool) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(array.shape)
    if dynamic:
        shape[0] = "N"
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def behind_a_pool(model: ir.Model) -> ir.Model:
    """The same model with a pooling that changes nothing behind float inputs of rank 3 to 5.

    Such a value is stored with its channels last, whatever its rank.
    """
    proto = ir.to_proto(model)
    graph = proto.graph
    for port in list(graph.input):
        kind = port.type.tensor_type
        rank = len(kind.shape.dim)
        if kind.elem_type == onnx.TensorProto.FLOAT and 3 <= rank <= 5:
            for node in graph.node:
                node.input[:] = [f"{port.name}_p" if name == port.name else name for name in node.input]
            ones = [1] * (rank - 2)
            pool = onnx.helper.make_node("MaxPool", [port.name], [f"{port.name}_p"], kernel_shape=ones)
            graph.node.insert(0, pool)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def between_pairs(
    model: ir.Model, feeds: Feeds, *, weights: Mapping[str, int] | None = None
) -> tuple[ir.Model, float]:
    """The same model with a Q/DQ pair behind every float input and before every float output.

    Args:
        model: of floats.
        feeds: what ranges are taken from.
        weights: initializers to be stored in int8 → the axis of their scales.

    Returns:
        The model, and the step of its (first) output's grid.
    """
    proto = ir.to_proto(model)
    graph, nodes, held = proto.graph, [], list(proto.graph.initializer)
    ranges = {**{k: v for k, v in feeds.items() if v.dtype == np.float32}, **by_onnxruntime(model, feeds)}
    steps = {}
    renamed = {}

    def pair(source: str, target: str, array: Array) -> None:
        low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
        step = np.float32((high - low) / 255 or 1.0)
        zero = np.uint8(np.clip(np.round(-low / step), 0, 255))
        held.append(onnx.numpy_helper.from_array(step, f"{target}_s"))
        held.append(onnx.numpy_helper.from_array(zero, f"{target}_z"))
        grid = [f"{target}_s", f"{target}_z"]
        nodes.append(onnx.helper.make_node("QuantizeLinear", [source, *grid], [f"{target}_q"]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{target}_q", *grid], [target]))
        steps[target] = float(step)

    for port in graph.input:
        if port.name in ranges:
            pair(port.name, f"{port.name}_dq", ranges[port.name])
            renamed[port.name] = f"{port.name}_dq"
    for name, axis in (weights or {}).items():
        tensor = next(each for each in held if each.name == name)
        array = onnx.numpy_helper.to_array(tensor)
        over = tuple(a for a in range(array.ndim) if a != axis)
        scale = (np.abs(array).max(axis=over, keepdims=True) / 127 + 1e-9).astype(np.float32)
        held.remove(tensor)
        held.append(onnx.numpy_helper.from_array(np.round(array / scale).astype(np.int8), f"{name}_q"))
        held.append(onnx.numpy_helper.from_array(scale.reshape(-1), f"{name}_s"))
        held.append(onnx.numpy_helper.from_array(np.zeros(scale.size, np.int8), f"{name}_z"))
        parts = [f"{name}_q", f"{name}_s", f"{name}_z"]
        nodes.append(onnx.helper.make_node("DequantizeLinear", parts, [name], axis=axis))
    outputs = {port.name: f"{port.name}_raw" for port in graph.output if port.name in ranges}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
        nodes.append(node)
    for name, raw in outputs.items():
        pair(raw, name, ranges[name])
    new = onnx.helper.make_graph(nodes, "pairs", graph.input, graph.output, held)
    made = onnx.helper.make_model(new, opset_imports=proto.opset_import, ir_version=10)
    return ir.from_proto(made), steps[next(iter(outputs))]


def assert_same_integers(
    model: ir.Model, feeds: Feeds, *, weights: Mapping[str, int] | None = None, steps: float = STEP
) -> Converted:
    """As 8-bit integers between pairs both runtimes lie at most `steps` of the output's grid apart."""
    quantized, step = between_pairs(model, feeds, weights=weights)
    return assert_same(quantized, feeds, rtol=0, atol=steps * step)


def graph(text: str, opset: int = 21) -> ir.Model:
    """A model in onnx's own text format; `text` is its graph: `g (float[2,3] x) => (float[2,3] y) {...}`."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(f"{head}\n{text}")))
