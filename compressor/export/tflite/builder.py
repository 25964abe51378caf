"""Writes the FlatBuffer: tensors, constants, operators, signature.

The batch size of a model that takes any is a number that divides no other dimension (`Builder.batch`). Handlers
compute with it as with any size; here it becomes 1 in `shape`, -1 in `shape_signature` and in targets of RESHAPE.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepress.compressor.errors import ModelError
from edgepress.compressor.export.tflite.schema import DTYPES, options, schema
from edgepress.compressor.export.tflite.tensors import Array, Grid, Shape, Tensor
from edgepress.compressor.export.tflite.versions import version_of

LIMIT = 2**31 - 2**20
"""Bytes of constants that one file holds: offsets of a FlatBuffer are signed 32-bit numbers."""


@dataclass
class _Operator:
    code: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: Any
    version: int


@dataclass
class Builder:
    """Collects a model's tensors and operators, then packs them.

    Attributes:
        batch: the number that stands for the batch size, or 0 where all sizes are fixed.
    """

    batch: int = 0
    _tensors: list[tuple[Tensor, str]] = field(default_factory=list)
    _operators: list[_Operator] = field(default_factory=list)
    _constants: dict[tuple[bytes, str, Shape, Grid | None], Tensor] = field(default_factory=dict)
    _made_by: dict[int, _Operator] = field(default_factory=dict)

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        grid: Grid | None = None,
        name: str = "",
        array: Array | None = None,
    ) -> Tensor:
        """A new tensor that nothing fills yet (a graph input, or an operator's result)."""
        made = Tensor(len(self._tensors), tuple(int(size) for size in shape), dtype, grid, array)
        self._tensors.append((made, name))
        return made

    def call(self, tensor: Tensor, name: str) -> None:
        """Name a tensor for people, and for whoever compares the file with its source; the first name stays."""
        made, known = self._tensors[tensor.index]
        self._tensors[tensor.index] = made, known or name

    def constant(self, array: Array, grid: Grid | None = None, dtype: str = "", name: str = "") -> Tensor:
        """A constant; equal ones are stored once.

        Args:
            array: any type of `schema.DTYPES`.
            grid: of integers that stand for reals.
            dtype: `INT4` or `INT2` for narrow integers in an int8 array; otherwise the array's own.
            name: for people.
        """
        held = np.ascontiguousarray(array).reshape(np.shape(array))
        kind = dtype or DTYPES[held.dtype.name]
        key = hashlib.sha256(held.data).digest(), kind, held.shape, grid
        if key not in self._constants:
            self._constants[key] = self.tensor(held.shape, kind, grid, name, held)
        return self._constants[key]

    def op(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: str = "",
        grid: Grid | None = None,
        options: Any = None,
        version: int = 0,
    ) -> Tensor:
        """Append an operator with one result.

        Args:
            code: its name in the schema, such as `CONV_2D`.
            inputs: None for one that is left out.
            shape: of the result, in the file's order of dimensions.
            dtype: of the result; default: the first input's.
            grid: of the result.
            options: see `schema.options`.
            version: of the operator; default: the lowest that its types need.
        """
        first = next(each for each in inputs if each is not None)
        return self.ops(code, inputs, [(shape, dtype or first.dtype, grid)], options, version)[0]

    def ops(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        results: Sequence[tuple[Sequence[int], str, Grid | None]],
        options: Any = None,
        version: int = 0,
    ) -> list[Tensor]:
        """Append an operator with any number of results: (shape, dtype, grid) each."""
        outputs = [self.tensor(shape, dtype, grid) for shape, dtype, grid in results]
        made = _Operator(
            code, list(inputs), outputs, options, version or version_of(code, inputs, outputs, options)
        )
        self._operators.append(made)
        for output in outputs:
            self._made_by[output.index] = made
        return outputs

    def maker(self, tensor: Tensor) -> tuple[str, list[Tensor | None]]:
        """The operator that fills a tensor and what it reads; empty for inputs and constants."""
        made = self._made_by.get(tensor.index)
        return (made.code, made.inputs) if made else ("", [])

    def counts(self, outputs: Iterable[Tensor]) -> dict[str, int]:
        """Operators that the outputs need: kind → count."""
        return dict(sorted(Counter(each.code for each in self._needed(outputs)).items()))

    def reshaped(self, tensor: Tensor, shape: Sequence[int], grid: Grid | None = None) -> Tensor:
        """The same numbers in another shape; two in a row become one, and one that changes nothing none.

        Raises:
            ValueError: more than one dimension follows the batch.
        """
        wanted = tuple(int(size) for size in shape)
        code, sources = self.maker(tensor)
        if code == "RESHAPE" and sources[0] is not None:
            tensor = sources[0]
        if tensor.shape == wanted:
            return tensor
        if tensor.array is not None:
            return self.constant(tensor.array.reshape(wanted), tensor.grid, tensor.dtype)
        target = self.constant(np.array(self.signature(wanted), np.int32))
        if self.signature(wanted).count(-1) > 1:
            raise ValueError(f"two dimensions of {wanted} follow the batch")
        made = options("Reshape", newShape=self.signature(wanted))
        return self.op("RESHAPE", [tensor, target], wanted, tensor.dtype, grid or tensor.grid, made)

    def transposed(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """Dimensions in another order; where only those of size 1 move, a RESHAPE does it."""
        shape = tuple(tensor.shape[axis] for axis in order)
        if list(order) == sorted(order):
            return tensor
        if tensor.array is not None and (tensor.grid is None or tensor.grid.single):
            return self.constant(tensor.array.transpose(order), tensor.grid, tensor.dtype)
        moved = [axis for axis in order if tensor.shape[axis] != 1]
        if moved == sorted(moved):
            return self.reshaped(tensor, shape)
        code, sources = self.maker(tensor)
        if code == "TRANSPOSE" and sources[0] is not None and sources[1] is not None:
            before = sources[1].array
            if before is not None:
                return self.transposed(sources[0], [int(before[axis]) for axis in order])
        permutation = self.constant(np.array(order, np.int32))
        return self.op(
            "TRANSPOSE", [tensor, permutation], shape, tensor.dtype, tensor.grid, options("Transpose")
        )

    def static(self, shape: Sequence[int]) -> list[int]:
        """A shape at batch size 1."""
        return [size // self.batch if self._follows(size) else size for size in shape]

    def signature(self, shape: Sequence[int]) -> list[int]:
        """A shape with -1 where it follows the batch."""
        return [-1 if self._follows(size) else size for size in shape]

    def _follows(self, size: int) -> bool:
        return bool(self.batch) and size > 0 and size % self.batch == 0

    def finish(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], metadata: Mapping[str, bytes]
    ) -> bytes:
        """Pack the model; operators that no output needs are left out.

        Args:
            inputs: the signature's names → tensors.
            outputs: likewise.
            metadata: further buffers by name.

        Raises:
            ModelError: the constants take more than a FlatBuffer can address.
        """
        kept = self._needed(outputs.values())
        used = {t.index for each in kept for t in (*each.inputs, *each.outputs) if t is not None}
        used |= {t.index for t in (*inputs.values(), *outputs.values())}
        size = sum(t.array.nbytes for t, _ in self._tensors if t.index in used and t.array is not None)
        if size > LIMIT:
            raise ModelError(
                f"The constants take {size / 1e9:.2f} GB; a TFLite file holds up to 2 GB.",
                "Store weights in fewer bits first, or use --format onnx.",
            )
        return self._pack(kept, sorted(used), inputs, outputs, metadata)

    def _needed(self, outputs: Iterable[Tensor]) -> list[_Operator]:
        wanted = {tensor.index for tensor in outputs}
        kept = []
        for each in reversed(self._operators):
            if any(output.index in wanted for output in each.outputs):
                kept.append(each)
                wanted |= {tensor.index for tensor in each.inputs if tensor is not None}
        return kept[::-1]

    def _pack(
        self,
        operators: list[_Operator],
        used: list[int],
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        metadata: Mapping[str, bytes],
    ) -> bytes:
        import flatbuffers

        s = schema()
        model, graph = s.ModelT(), s.SubGraphT()
        model.version, model.description, model.buffers = 3, b"edgepress", [s.BufferT()]
        graph.name, model.subgraphs = b"main", [graph]
        place = {index: at for at, index in enumerate(used)}
        graph.tensors = [self._tensor(model, *self._tensors[index]) for index in used]
        codes: dict[tuple[str, int], int] = {}
        graph.operators, model.operatorCodes = [], []
        for each in operators:
            key = each.code, each.version
            if key not in codes:
                codes[key] = len(codes)
                model.operatorCodes.append(_code(*key))
            graph.operators.append(_operator(each, codes[key], place))
        graph.inputs = [place[tensor.index] for tensor in inputs.values()]
        graph.outputs = [place[tensor.index] for tensor in outputs.values()]
        signature = s.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs = [_named(name, place[t.index]) for name, t in inputs.items()]
        signature.outputs = [_named(name, place[t.index]) for name, t in outputs.items()]
        model.signatureDefs, model.metadata = [signature], []
        for name, content in metadata.items():
            entry = s.MetadataT()
            entry.name, entry.buffer = name.encode(), _buffer(model, np.frombuffer(content, np.uint8))
            model.metadata.append(entry)
        packed = flatbuffers.Builder(1 << 20)
        packed.Finish(model.Pack(packed), file_identifier=b"TFL3")
        return bytes(packed.Output())

    def _tensor(self, model: Any, tensor: Tensor, name: str) -> Any:
        s = schema()
        made = s.TensorT()
        made.name = (name or f"t{tensor.index}").encode()
        made.type, made.hasRank = getattr(s.TensorType, tensor.dtype), True
        made.shape = np.array(self.static(tensor.shape), np.int32)
        signature = self.signature(tensor.shape)
        if signature != list(tensor.shape):
            made.shapeSignature = np.array(signature, np.int32)
        made.buffer = 0 if tensor.array is None else _buffer(model, _bytes(tensor))
        if tensor.grid is not None:
            made.quantization = s.QuantizationParametersT()
            made.quantization.scale = np.array(tensor.grid.scale, np.float32)
            made.quantization.zeroPoint = np.array(tensor.grid.zero_point, np.int64)
            made.quantization.quantizedDimension = tensor.grid.axis
        return made


def _buffer(model: Any, content: Array) -> int:
    made = schema().BufferT()
    made.data = content
    model.buffers.append(made)
    return len(model.buffers) - 1


def _bytes(tensor: Tensor) -> Array:
    array = tensor.array if tensor.array is not None else np.empty(0)
    bits = {"INT4": 4, "INT2": 2}.get(tensor.dtype)
    if bits:
        return packed_narrow(array, bits)
    return np.frombuffer(array.tobytes(), np.uint8)


def packed_narrow(integers: Array, bits: int) -> Array:
    """Integers of 4 or 2 bits in bytes, the first in the lowest bits."""
    each = 8 // bits
    flat = integers.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    flat = np.append(flat, np.zeros(-flat.size % each, np.uint8)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    joined: Array = np.bitwise_or.reduce(flat << shifts, axis=1).astype(np.uint8)
    return joined


def _code(code: str, version: int) -> Any:
    made = schema().OperatorCodeT()
    made.builtinCode = getattr(schema().BuiltinOperator, code)
    made.deprecatedBuiltinCode = min(made.builtinCode, 127)
    made.version = version
    return made


def _operator(each: _Operator, code: int, place: Mapping[int, int]) -> Any:
    s = schema()
    made = s.OperatorT()
    made.opcodeIndex = code
    made.inputs = [-1 if tensor is None else place[tensor.index] for tensor in each.inputs]
    made.outputs = [place[tensor.index] for tensor in each.outputs]
    if each.options is not None:
        kind = type(each.options).__name__.removesuffix("T")
        made.builtinOptionsType, made.builtinOptions = getattr(s.BuiltinOptions, kind), each.options
    return made


def _named(name: str, index: int) -> Any:
    made = schema().TensorMapT()
    made.name, made.tensorIndex = name.encode(), index
    return made
