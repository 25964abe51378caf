"""Maps, which onnx-ir has no type for: as long as a model is in its form, their types lie beside the values as text.

scikit-learn's classifiers give their probabilities as a map for each row.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from edgepress.compressor import guard

_KEY = "edgepress.type"
_MAKERS = frozenset({"ZipMap"})
_UNKNOWN = "_unknown"


def represent(proto: onnx.ModelProto) -> ir.Model:
    """A protobuf as the IR has it; raises what the IR raises.

    Args:
        proto: types of maps are moved, and stay so.
    """
    for value in _values(proto):
        if _holds_map(value.type):
            text = base64.b64encode(value.type.SerializeToString()).decode()
            value.metadata_props.add(key=_KEY, value=text)
            value.ClearField("type")
    return ir.serde.deserialize_model(proto)


def restored(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A protobuf that comes from the IR, its values' types given back in place."""
    for value in _values(proto):
        kept = [entry for entry in value.metadata_props if entry.key != _KEY]
        for entry in value.metadata_props:
            if entry.key == _KEY:
                value.type.ParseFromString(base64.b64decode(entry.value))
        if len(kept) < len(value.metadata_props):
            others = {entry.key: entry.value for entry in kept}
            value.ClearField("metadata_props")
            onnx.helper.set_metadata_props(value, others)
    return proto


@contextmanager
def unseen(model: ir.Model) -> Iterator[None]:
    """Let shape inference not know the operators that make maps: the IR cannot read what it finds out."""
    makers = [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.op_type in _MAKERS]
    for node in makers:
        node.op_type += _UNKNOWN
    try:
        yield
    finally:
        for node in makers:
            node.op_type = node.op_type.removesuffix(_UNKNOWN)


def _values(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for graph in guard.graphs(proto):
        yield from graph.value_info
        if isinstance(graph, onnx.GraphProto):
            yield from (*graph.input, *graph.output)


def _holds_map(kind: onnx.TypeProto) -> bool:
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
    return bool(kind.HasField("map_type"))
