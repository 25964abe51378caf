"""Models in and out of memory: load with every guard of `guard`, measure, serialize, cut.

`ir.Model.clone()` shares tensors, so a candidate costs no memory; external data are memory-mapped.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from edgepress.compressor import guard, specs
from edgepress.compressor.errors import ModelError, nearest
from edgepress.compressor.mapped import Mapped, map_external
from edgepress.compressor.maps import represent, restored
from edgepress.compressor.prototext import not_utf8
from edgepress.compressor.specs import InputSpec, dims, input_specs

__all__ = [
    "CONTROL_FLOW",
    "InputSpec",
    "captured",
    "copies_within",
    "dims",
    "fits_protobuf",
    "in_memory",
    "in_one_message",
    "input_specs",
    "load",
    "on_disk",
    "parameters",
    "prefix",
    "tensor_bytes",
    "to_bytes",
    "to_proto",
    "weights_bytes",
]

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_ROOM = 16 << 20  # bytes left for the graph itself when weights are summed against the 2 GB limit
IN_MEMORY = 256 << 20
"""Bytes of weights up to which a model is handed on as bytes: it is held several times while it is made and loaded."""
_MUST_BE_FINITE = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN", "PRelu"),
        *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *("DequantizeLinear", "QuantizeLinear"),
    }
)

_GRIDS = {
    "QuantizeLinear": slice(1, None),
    "DequantizeLinear": slice(1, None),
    "MatMulNBits": slice(2, 4),
    "DynamicQuantizeLSTM": slice(8, 12),
}
"""Operator → inputs that are scales and zero points."""


def load(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ir.Model:
    """Read, check and represent a model.

    Args:
        path: an .onnx file, its external data beside it.
        shapes: input name → full shape, which fixes dynamic dimensions.

    Raises:
        ModelError: the file cannot be read, checked or represented; the message names what and where.
        UsageError: `shapes` does not fit the inputs.
    """
    file = Path(path)
    if any("\ud800" <= letter <= "\udfff" for letter in str(file)):
        raise ModelError(f"{file}: a name that is not UTF-8 text.", "Give the file or its folder another.")
    try:
        proto = guard.read_proto(file)
        if field := not_utf8(proto):
            raise ModelError(f"{file}: {field} is not UTF-8 text.", "Export the model again.")
        guard.check_external(proto, file.parent)
        guard.check_content(proto)
        guard.check_onnx(file)
        guard.drop_devices(proto)
        guard.densify(proto)
    except OSError as error:
        raise ModelError(
            f"{file}: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    try:
        model = represent(proto)
        map_external(model, file.parent)
    except Exception as error:  # the IR raises many kinds, each with the cause below it
        cause = _root(error)
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise ModelError(f"{file}: cannot be represented: {text}.", "Please report this model.") from error
    _check_finite(model)
    specs.forget_negative_dims(model)
    if shapes:
        specs.fix_shapes(model, shapes)
    return model


def _root(error: BaseException) -> BaseException:
    """What an error came of."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _weights(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol, frozenset[str]]]:
    """Name, tensor and the operators that read it, for initializers and Constant nodes of all graphs."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value, _readers(value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Constant" and (attribute := node.attributes.get("value")) is not None:
            yield node.outputs[0].name or "", attribute.as_tensor(), _readers(node.outputs[0])


def _readers(value: ir.Value) -> frozenset[str]:
    return frozenset(use.node.op_type for use in value.uses())


def on_disk(path: Path) -> tuple[int, tuple[Path, ...]]:
    """Bytes of a model with its external data, and the files of those.

    Args:
        path: a model that `load` takes.
    """
    outside = [
        tensor
        for tensor in guard.tensors(onnx.load(str(path), load_external_data=False))
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    locations = {
        entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"
    }
    total = path.stat().st_size + sum(guard.nbytes(tensor) for tensor in outside)
    return total, tuple(sorted(path.parent / location for location in locations))


def _check_finite(model: ir.Model) -> None:
    """Refuse NaN anywhere and infinity in weights; masks and clip bounds may be infinite.

    Raises:
        ModelError: naming the tensor.
    """
    for name, tensor, readers in _weights(model):
        if not tensor.dtype.is_floating_point():
            continue
        nan, infinite = guard.count_bad(tensor.numpy())
        if isinstance(tensor, Mapped):
            tensor.release()
        bad = nan or (infinite if readers & _MUST_BE_FINITE else 0)
        if bad:
            raise ModelError(
                f"Weights {name!r}: {bad} of {tensor.size} values are {'NaN' if nan else 'infinite'}.",
                "The training diverged or the export went wrong: such a model cannot be compressed.",
            )


def parameters(model: ir.Model) -> int:
    """Weights: elements of float and of up to 32-bit integer constants, but for scales and zeros."""
    return sum(tensor.size for _, tensor in parameter_tensors(model))


def weights_bytes(model: ir.Model) -> int:
    """Bytes that the weights counted by `parameters` take in the file."""
    return sum(tensor.nbytes for _, tensor in parameter_tensors(model))


def parameter_tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Names and tensors of what `parameters` counts."""
    left_out = {ir.DataType.INT64, ir.DataType.UINT64, ir.DataType.BOOL, ir.DataType.STRING}
    grids = {
        value.name
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in _grid_of(node)
        if value is not None
    }
    for name, tensor, _ in _weights(model):
        if tensor.dtype not in left_out and name not in grids:
            yield name, tensor


def _grid_of(node: ir.Node) -> Sequence[ir.Value | None]:
    """What a node reads as scales or zero points."""
    makers = [value.producer() for value in node.inputs if value is not None]
    if node.op_type == "Mul" and any(m is not None and m.op_type == "DynamicQuantizeLinear" for m in makers):
        return node.inputs
    return node.inputs[_GRIDS.get(node.op_type, slice(0))]


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The protobuf form; external data stay external.

    Each trip through the IR adds one more copy of a tensor's metadata: the copies are taken out. Names of
    tensors in attributes mean nothing, and change when a clone, which shares the tensor, names it: they go.
    """
    proto = restored(ir.serde.serialize_model(model))
    for tensor in guard.tensors(proto):
        if len(tensor.metadata_props) > 1:
            entries = {entry.key: entry.value for entry in tensor.metadata_props}
            del tensor.metadata_props[:]
            onnx.helper.set_metadata_props(tensor, entries)
    for graph in guard.graphs(proto):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    attribute.t.ClearField("name")
    return proto


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all tensors together, every type and every graph."""
    return sum(map(_tensor_bytes, model.graphs()))


def _tensor_bytes(graph: ir.Graph | ir.GraphView) -> int:
    """Bytes of one graph's own tensors."""
    values = (value.const_value for value in graph.initializers.values())
    constants = (node.attributes.get("value") for node in graph if node.op_type == "Constant")
    return sum(tensor.nbytes for tensor in values if tensor is not None) + sum(
        attribute.as_tensor().nbytes for attribute in constants if attribute is not None
    )


def copies_within(limit_bytes: int, model: ir.Model) -> int:
    """How many models of this size fit into so many bytes; at least one."""
    return max(1, limit_bytes // max(tensor_bytes(model), 1))


def fits_protobuf(model: ir.Model) -> bool:
    """Whether a model can be one protobuf, weights and all: below 2 GB."""
    return tensor_bytes(model) <= in_one_message()


def in_one_message() -> int:
    """Bytes of weights up to which a model can be one protobuf."""
    return guard.PROTO_LIMIT - _ROOM


def in_memory() -> int:
    """Bytes of weights up to which a model is handed on as bytes."""
    return min(IN_MEMORY, in_one_message())


def to_bytes(model: ir.Model) -> bytes:
    """Serialize with all weights inline; equal models give equal bytes.

    Raises:
        ModelError: over 2 GB; `serialize.serialize` takes those.
    """
    if not fits_protobuf(model):
        raise ModelError(
            f"The model holds {tensor_bytes(model)} bytes of weights; one file ends at 2 GB.",
            "Save it with external data.",
        )
    data: bytes = to_proto(model).SerializeToString(deterministic=True)
    return data


def prefix(model: ir.Model, outputs: Sequence[str], inputs: Sequence[str] = ()) -> ir.Model:
    """A model that computes just the named values; the given one is untouched and its tensors are shared.

    Graph inputs and initializers may be asked for as well. Values of control-flow bodies may not.

    Args:
        model: nodes in topological order.
        outputs: names of values of the main graph, each once.
        inputs: values that are fed instead of computed; then only the graph inputs still needed stay, and
            types must be known (`normalize` infers them). Without them all graph inputs stay.

    Raises:
        ModelError: a name is no value of the main graph, or nothing is asked for.
    """
    functions = [f.clone() for f in model.functions.values()]
    cut = ir.Model(_view(model, outputs, inputs).clone(), ir_version=model.ir_version, functions=functions)
    cut.graph.opset_imports.update(model.graph.opset_imports)
    ends = {*cut.graph.inputs, *cut.graph.outputs}
    for value in (value for node in cut.graph for value in node.outputs if value not in ends):
        value.shape, value.type = None, None  # engines infer them, and to write them down takes longer
    return cut


def prefix_bytes(model: ir.Model, outputs: Sequence[str], inputs: Sequence[str] = ()) -> bytes | None:
    """`prefix` as engines load it, without the copy in between; None where that is not to be had in one piece.

    Args:
        model: as for `prefix`.
        outputs: likewise.
        inputs: likewise.

    Raises:
        ModelError: likewise.
    """
    view = _view(model, outputs, inputs)
    if model.functions or _tensor_bytes(view) > in_memory():
        return None
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = view.name or "prefix"
    for value in view.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    for value in view.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
    for value in view.initializers.values():
        if value.const_value is not None:
            tensor = graph.initializer.add()
            ir.serde.serialize_tensor_into(tensor, value.const_value)
            tensor.name = value.name or ""
    for node in view:
        ir.serde.serialize_node_into(graph.node.add(), node)
    return bytes(restored(proto).SerializeToString())


def _view(model: ir.Model, outputs: Sequence[str], inputs: Sequence[str]) -> ir.GraphView:
    """The part of the main graph that `prefix` is made of."""
    graph = model.graph
    given = (*graph.inputs, *graph.initializers.values())
    values = {v.name or "": v for v in (*given, *(v for node in graph for v in node.outputs))}
    if unknown := [name for name in (*outputs, *inputs) if not name or name not in values]:
        raise ModelError(f"The model has no value {unknown[0]!r}.", nearest(unknown[0], values))
    if not outputs:
        raise ModelError("No value was asked for.")
    cuts = [values[name] for name in inputs]
    if untyped := [value.name for value in cuts if value.dtype is None]:
        raise ModelError(f"The type of value {untyped[0]!r} is not known.", "Infer shapes first.")
    wanted = [values[name] for name in outputs]
    nodes, roots = needed(graph, wanted, set(cuts))
    return ir.GraphView(
        [*cuts, *(v for v in graph.inputs if v not in cuts and (not inputs or v in roots))],
        wanted,
        nodes=[node for node in graph if node in nodes],
        initializers=[v for v in graph.initializers.values() if v in roots and v not in cuts],
        opset_imports=graph.opset_imports,
        name=graph.name,
    )


def needed(
    graph: ir.Graph, wanted: Sequence[ir.Value], cuts: set[ir.Value]
) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes that compute some values, and the values without a producer that they read.

    Args:
        graph: which holds them.
        wanted: values of it.
        cuts: values that are there already.
    """
    nodes: set[ir.Node] = set()
    roots: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value in seen or value in cuts:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            roots.add(value)
        elif node not in nodes:
            nodes.add(node)
            stack.extend(read for read in node.inputs if read is not None)
            stack.extend(captured(node, graph))
    return nodes, roots


def captured(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    """Values of `graph` that the bodies of a control-flow node read."""
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type not in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            continue
        bodies = [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs()
        for body in bodies:
            reads = [value for inner in ir.traversal.RecursiveGraphIterator(body) for value in inner.inputs]
            yield from (v for v in (*reads, *body.outputs) if v is not None and v.graph is graph)
