"""Refuses at the door: files that are no ONNX model, damaged ones, and what the IR would lose without a word.

Everything here reads the protobuf only; nothing in it is run or evaluated.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgepress.compressor.errors import ModelError
from edgepress.compressor.foreign import foreign
from edgepress.compressor.protocols import Array

PROTO_LIMIT = 2**31 - 1
"""Bytes of one protobuf message: the format's own limit."""
_EXTERNAL_KEYS = ("location", "offset", "length", "checksum", "basepath")
_BLOCK = 1 << 22  # elements looked at in one go


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a model file without its external data.

    Args:
        path: where the user says the model is.

    Raises:
        ModelError: missing, a folder, empty, another format, over 2 GB in one file, truncated.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file.", "Give the path of an .onnx file.")
    if hint := foreign(path):
        raise ModelError(f"{path}: not an ONNX file.", hint)
    if path.is_dir():
        raise ModelError(f"{path}: is a folder.", "Give the .onnx file in it.")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path}: is empty.", "Export or download the model again.")
    if size > PROTO_LIMIT:
        raise ModelError(
            f"{path}: {size} bytes in one file; protobuf ends at 2 GB.",
            "Export it with external data: `onnx.save(model, path, save_as_external_data=True)`.",
        )
    data = path.read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        if _ends_early(data):
            raise ModelError(
                f"{path}: is truncated (ends inside the model).", "Copy or download it again."
            ) from error
        raise ModelError(f"{path}: not an ONNX file.", "Export the network to ONNX first.") from error
    if not proto.HasField("graph") or not proto.ir_version:
        if proto.ir_version or proto.HasField("graph"):
            raise ModelError(f"{path}: is truncated (the graph is missing).", "Copy or download it again.")
        raise ModelError(f"{path}: not an ONNX file.", "Export the network to ONNX first.")
    return proto


def _ends_early(data: bytes) -> bool:
    """Whether the top-level fields are those of a model and the last one is cut off."""
    at, seen_version = 0, False
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if at < 0 or not 1 <= field <= 30 or wire not in {0, 2}:
            return at < 0 and seen_version
        value, at = _varint(data, at)
        if at < 0:
            return seen_version
        seen_version |= field == 1
        if wire == 2:
            if value > len(data) - at:
                return field in {7, 2, 3, 4, 6, 8, 14, 20, 25}
            at += value
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position and the position after it, or -1 where the data end inside."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return 0, -1
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, -1


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph, every body below it, and every function."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, bodies and functions included."""
    for graph in graphs(proto):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's elements in raw form; sub-byte types are packed, strings count 0.

    Raises:
        ModelError: its type is none that ONNX has.
    """
    if tensor.data_type in {onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED}:
        return 0
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except ValueError as error:
        raise ModelError(
            f"Tensor {tensor.name!r}: {tensor.data_type} is no type of elements.", "Export the model again."
        ) from error
    return math.ceil(math.prod(map(int, tensor.dims)) * bits / 8)


def check_external(proto: onnx.ModelProto, folder: Path) -> None:
    """Refuse external data that is missing, outside the model's folder, or shorter than said.

    Args:
        proto: the model, external data not read.
        folder: where the model file lies.

    Raises:
        ModelError: naming the tensor and the file.
    """
    for tensor in tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _inside(tensor.name, entries.get("location", ""), folder)
        expected = nbytes(tensor)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
        except ValueError as error:
            raise ModelError(f"Tensor {tensor.name!r}: offset or length is not a number.") from error
        if length != expected or offset < 0:
            raise ModelError(
                f"Tensor {tensor.name!r}: {length} bytes of external data, but its shape needs {expected}.",
                "Export the model again.",
            )
        if offset + length > file.stat().st_size:
            raise ModelError(
                f"{file}: is shorter than the model says (tensor {tensor.name!r} ends at byte "
                f"{offset + length}, the file at {file.stat().st_size}).",
                "Copy or download the data file again.",
            )
        for at in reversed(range(len(tensor.external_data))):
            if (
                tensor.external_data[at].key not in _EXTERNAL_KEYS
            ):  # the IR warns of them, and does nothing else
                del tensor.external_data[at]


def _inside(name: str, location: str, folder: Path) -> Path:
    """The data file of a tensor, refused where it leaves the model's folder."""
    file = folder / location
    outside = not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts
    if outside or not file.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"Tensor {name!r}: its external data {location!r} lies outside the model's folder.",
            "Put the data file beside the model; links that lead out are not followed.",
        )
    if not file.is_file():
        raise ModelError(
            f"{file}: external data of tensor {name!r} is missing.", "Copy it beside the model file."
        )
    if file.stat().st_nlink > 1:
        raise ModelError(
            f"{file}: external data is a hard link, which onnx refuses to read.",
            "Copy the file (`cp --reflink=never`).",
        )
    return file


def check_onnx(file: Path) -> None:
    """Run onnx's own checker by path: it reads no weights and takes models over 2 GB.

    Raises:
        ModelError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        text = " ".join(str(error).split("==>")[0].split())
        raise ModelError(f"{file}: the onnx checker refuses it: {text}", "Export the model again.") from error


def check_content(proto: onnx.ModelProto) -> None:
    """Refuse training information and names that occur twice; both would be lost or mixed up.

    Raises:
        ModelError: naming what is wrong.
    """
    if len(proto.training_info):
        raise ModelError(
            "The model holds training information (optimizer or loss), which would be lost.",
            "Export it for inference: `torch.onnx.export(model.eval(), …)`, or `del model.training_info[:]`.",
        )
    for graph in graphs(proto):
        if not isinstance(graph, onnx.GraphProto):
            continue
        produced = [name for node in graph.node for name in node.output if name]
        for kind, names in (
            ("initializers", [tensor.name for tensor in graph.initializer]),
            ("inputs", [value.name for value in graph.input]),
            ("outputs", [value.name for value in graph.output]),
            ("results of nodes", produced),
        ):
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise ModelError(
                    f"Two {kind} are named {twice[0]!r}.", "Names must be unique: export it again."
                )
    for tensor in tensors(proto):
        if tensor.HasField("raw_data") and len(tensor.raw_data) != nbytes(tensor):
            raise ModelError(
                f"Tensor {tensor.name!r}: {len(tensor.raw_data)} bytes, its shape needs {nbytes(tensor)}.",
                "Export the model again.",
            )


def drop_devices(proto: onnx.ModelProto) -> None:
    """Take out how nodes are spread over several devices, in place: a small device is one."""
    del proto.configuration[:]
    for graph in graphs(proto):
        for node in graph.node:
            del node.device_configurations[:]


def densify(proto: onnx.ModelProto) -> int:
    """Turn sparse initializers and sparse constants into dense ones, in place; the IR would drop them.

    Returns:
        How many there were.

    Raises:
        ModelError: where all together would take over 2 GB, or indices of one do not fit its shape.
    """
    _check_dense(proto)
    count = 0
    for graph in graphs(proto):
        if isinstance(graph, onnx.GraphProto):
            for sparse in graph.sparse_initializer:
                graph.initializer.append(_dense(sparse))
                count += 1
            del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor") and node.op_type == "Constant":
                    dense = _dense(attribute.sparse_tensor)
                    attribute.Clear()
                    attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
                    count += 1
    return count


def _check_dense(proto: onnx.ModelProto) -> None:
    """Refuse sparse tensors that would take over 2 GB together: each may claim so much in a few bytes."""
    total = 0
    for graph in graphs(proto):
        found = list(graph.sparse_initializer) if isinstance(graph, onnx.GraphProto) else []
        found += [attribute.sparse_tensor for node in graph.node for attribute in node.attribute]
        for sparse in found:
            kind = sparse.values.data_type
            total += nbytes(onnx.TensorProto(data_type=kind, dims=sparse.dims)) if sparse.dims else 0
            if total > PROTO_LIMIT:
                raise ModelError(
                    f"Sparse tensor {sparse.values.name!r} takes the model over 2 GB when dense.",
                    "Export it with dense weights.",
                )


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name = sparse.values.name
    try:
        values, indices = (
            ir.serde.deserialize_tensor(part).numpy() for part in (sparse.values, sparse.indices)
        )
        dense = np.zeros(math.prod(sparse.dims), dtype=values.dtype)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        dense[indices] = values
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"Sparse tensor {name!r}: its indices do not fit its shape.", "Export it with dense weights."
        ) from error
    return ir.serde.serialize_tensor(ir.Tensor(dense.reshape(tuple(sparse.dims)), name=name))


def count_bad(array: Array) -> tuple[int, int]:
    """How many elements are NaN and how many infinite, looked at in blocks.

    Args:
        array: any shape; other than float gives (0, 0).
    """
    flat = array.reshape(-1)
    nan = infinite = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            here = int(np.isnan(block).sum())
            nan, infinite = nan + here, infinite + int(block.size - finite.sum()) - here
    return nan, infinite
