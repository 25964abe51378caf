"""The ONNX file for deployment: nothing in it that a runtime does not read, equal bytes for equal models.

Works on the protobuf, where one map renames a value in every graph at once. Left out: doc strings, metadata
below the model's own, value_info, names of nodes, attributes that say the default, opsets that no node uses.
What the user wrote on the model itself (metadata, producer, version, domain) stays.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from itertools import count as count_from
from itertools import product
from string import ascii_letters, digits

import onnx
import onnx_ir as ir

from edgepress.compressor import guard
from edgepress.compressor.errors import OutputError
from edgepress.compressor.export.releases import bound, oldest_runtime
from edgepress.compressor.maps import represent
from edgepress.compressor.model import dims
from edgepress.compressor.serialize import Serialized, proto_of, serialize

__all__ = ["bound", "oldest_runtime", "save", "verify"]

_SPATIAL = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "ConvInteger", "QLinearConv"})


def save(model: ir.Model, *, short_names: bool = True) -> Serialized:
    """Clean a model up and serialize it.

    Args:
        model: is not changed.
        short_names: rename everything but the graph's inputs and outputs.

    Raises:
        OutputError: it is over 2 GB, and the folder for temporary files has no room.
    """
    return serialize(model, partial(_clean, short_names=short_names))


def _clean(proto: onnx.ModelProto, *, short_names: bool) -> None:
    _strip(proto)
    _share_equal(proto.graph)
    _drop_unread(proto.graph)
    _drop_unused_opsets(proto)
    if short_names:
        _shorten(proto)


def _strip(proto: onnx.ModelProto) -> None:
    """Take out what no runtime reads; tensors get their shortest form."""
    proto.ClearField("doc_string")
    opset = {entry.domain: entry.version for entry in proto.opset_import}.get("", 1)
    for tensor in guard.tensors(proto):
        _compact(tensor)
    for graph in guard.graphs(proto):
        for field in ("doc_string", "metadata_props", "value_info"):
            graph.ClearField(field)
        if isinstance(graph, onnx.GraphProto):
            graph.ClearField("quantization_annotation")
            if "/" in graph.name or "\\" in graph.name:  # a path of the machine that exported it
                graph.name = "graph"
            for value in (*graph.input, *graph.output):
                value.ClearField("doc_string")
                value.ClearField("metadata_props")
        for node in graph.node:
            for field in ("doc_string", "metadata_props", "name"):
                node.ClearField(field)
            _drop_defaults(node, opset)


def _compact(tensor: onnx.TensorProto) -> None:
    """Raw bytes, or varints where a few small int64 (shapes, axes) are shorter that way."""
    tensor.ClearField("doc_string")
    tensor.ClearField("metadata_props")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
        return
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.INT64:
        return  # written anew it would be in memory twice, for a message frees nothing before it goes
    decoded = ir.serde.deserialize_tensor(tensor)
    raw = decoded.tobytes()
    numbers = decoded.numpy().reshape(-1) if tensor.data_type == onnx.TensorProto.INT64 else None
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "uint64_data", "double_data"):
        tensor.ClearField(field)
    if numbers is not None and numbers.size <= 16 and all(0 <= number < 128 for number in numbers):
        tensor.int64_data.extend(int(number) for number in numbers)
    else:
        tensor.raw_data = raw


def _drop_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Leave out attributes that say what the operator's definition says anyway."""
    if node.domain not in {"", "ai.onnx"} or not node.attribute:
        return
    try:
        known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    except onnx.defs.SchemaError:
        return
    kept = []
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        default = known[attribute.name].default_value if attribute.name in known else None
        neutral = {"dilations": 1, "strides": 1, "pads": 0}.get(attribute.name)
        spatial = node.op_type in _SPATIAL and neutral is not None and set(attribute.ints) == {neutral}
        if not spatial and not _says(attribute, default):
            kept.append(attribute)
    if len(kept) < len(node.attribute):
        copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
        del node.attribute[:]
        node.attribute.extend(copies)


def _says(attribute: onnx.AttributeProto, default: onnx.AttributeProto | None) -> bool:
    """Whether an attribute says the same as the definition's default."""
    if default is None or default.type != attribute.type or attribute.ref_attr_name:
        return False
    return bool(
        attribute.SerializeToString(deterministic=True) == default.SerializeToString(deterministic=True)
    )


def _share_equal(graph: onnx.GraphProto) -> None:
    """Keep one of several equal initializers; the graph's own inputs and outputs are not touched."""
    edges = {value.name for value in (*graph.input, *graph.output)}
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in edges or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        name, tensor.name = tensor.name, ""
        content = blake2b(tensor.SerializeToString(deterministic=True)).digest()
        tensor.name = name
        kept = first.setdefault(content, name)
        if kept != name:
            same[name] = kept
    if same:
        kept_tensors = [tensor for tensor in graph.initializer if tensor.name not in same]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept_tensors]
        del graph.initializer[:]
        graph.initializer.extend(copies)
        _rename([graph, *_bodies(graph)], same)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Initializers that nothing reads go: they take bytes, and onnxruntime warns of each."""
    read = {name for each in (graph, *_bodies(graph)) for node in each.node for name in node.input}
    read |= {value.name for each in (graph, *_bodies(graph)) for value in each.output}
    read |= {value.name for value in graph.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield body
                yield from _bodies(body)


def _rename(graphs: list[onnx.GraphProto], names: dict[str, str]) -> None:
    """Rename values wherever they are made or read; a name means the same in a graph and in its bodies."""
    for graph in graphs:
        for tensor in (*graph.initializer, *graph.input, *graph.output):
            tensor.name = names.get(tensor.name, tensor.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _drop_unused_opsets(proto: onnx.ModelProto) -> None:
    used = {node.domain for graph in guard.graphs(proto) for node in graph.node}
    if not used or used & {
        "",
        "ai.onnx",
    }:  # one domain under two names; without nodes the checker wants it, too
        used |= {"", "ai.onnx"}
    kept = [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in kept)


def _shorten(proto: onnx.ModelProto) -> None:
    """Give the names used most the shortest ones; ties go by first appearance, so equal models stay equal."""
    graphs = [proto.graph, *_bodies(proto.graph)]
    fixed = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    uses: Counter[str] = Counter()
    for graph in graphs:
        uses.update(tensor.name for tensor in graph.initializer)
        for node in graph.node:
            uses.update(name for name in (*node.input, *node.output) if name)
        if graph is not proto.graph:
            uses.update(value.name for value in (*graph.input, *graph.output))
    free = (name for name in _short_names() if name not in fixed)
    _rename(graphs, {name: next(free) for name, _ in uses.most_common() if name not in fixed})


def _short_names() -> Iterator[str]:
    """a, b, …, Z, aa, ab, …: letters first, then letters and digits."""
    for length in count_from(0):
        for first, *rest in product(ascii_letters, *[ascii_letters + digits] * length):
            yield "".join((first, *rest))


def verify(original: ir.Model, saved: Serialized) -> None:
    """Check a saved file: onnx's checker, and inputs and outputs as the original has them.

    Args:
        original: what the user gave.
        saved: what is to be handed over.

    Raises:
        OutputError: naming what differs.
    """
    try:
        onnx.checker.check_model(saved if isinstance(saved, bytes) else str(saved.path))
    except onnx.checker.ValidationError as error:
        raise OutputError(f"The onnx checker refuses the result: {error}", "Please report this.") from error
    result = represent(proto_of(saved))
    for kind, ours, theirs in (
        ("input", _fed(original), _fed(result)),
        ("output", original.graph.outputs, result.graph.outputs),
    ):
        left, right = ([_edge(value) for value in values] for values in (ours, theirs))
        if left != right:
            raise OutputError(f"The result's {kind}s are {right} instead of {left}.", "Please report this.")


def _fed(model: ir.Model) -> list[ir.Value]:
    """Inputs without those that have a default: `normalize` makes constants of them."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _edge(value: ir.Value) -> tuple[str | None, str, tuple[int | str | None, ...] | None]:
    shape = dims(value)
    fixed = None if shape is None else tuple(None if isinstance(d, int) and d < 0 else d for d in shape)
    return value.name, str(value.dtype), fixed
