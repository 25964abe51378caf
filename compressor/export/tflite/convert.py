"""From a graph to a TFLite file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import onnx_ir as ir

from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.export.tflite.builder import Builder
from edgepress.compressor.export.tflite.emitter import (
    CONTAINERS,
    Emitter,
    FollowsError,
    UnsupportedError,
    where,
)
from edgepress.compressor.export.tflite.ops import HANDLERS
from edgepress.compressor.export.tflite.ops.narrow import check_types
from edgepress.compressor.export.tflite.prepare import dynamic_inputs, prepare, simplify, stand_ins
from edgepress.compressor.export.tflite.quantization import common_grid, held_grid
from edgepress.compressor.export.tflite.tensors import Grid, Tensor
from edgepress.compressor.model import dims

BORDERS = ("float32", "int8", "uint8")
"""Types that quantized inputs and outputs may have."""
METADATA = "edgepress"


@dataclass(frozen=True)
class Converted:
    """A TFLite file.

    Attributes:
        data: the file.
        inputs: name → whether its dimensions are in another order than in ONNX (channels last).
        outputs: likewise.
        operators: kind → count.
        notes: what a user should know, such as a batch size that had to be fixed.
    """

    data: bytes
    inputs: Mapping[str, bool]
    outputs: Mapping[str, bool]
    operators: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A node that cannot be expressed."""

    node: str
    why: str
    hint: str


class NotConvertibleError(ModelError):
    """Nodes that TFLite cannot express, all of them.

    Attributes:
        problems: one for each node.
    """

    def __init__(self, problems: list[Problem]) -> None:
        lines = "\n".join(f"  {each.node}: {each.why}" for each in problems)
        hints = dict.fromkeys(each.hint for each in problems if each.hint)
        super().__init__(
            f"{len(problems)} of the model's nodes cannot be written as TFLite:\n{lines}",
            " ".join([*hints, "Or write ONNX alone: --format onnx."]),
        )
        self.problems = tuple(problems)


@dataclass(frozen=True)
class _Form:
    """What is asked of the file; see `convert`."""

    io: str
    keep_layout: bool
    hybrid: bool


def convert(
    model: ir.Model, *, io: str = "float32", keep_layout: bool = False, hybrid: bool = True
) -> Converted:
    """Write a model as TFLite.

    Args:
        model: any; one with Q/DQ pairs runs as integers with the same scales. It is not changed.
        io: type of quantized inputs and outputs, one of `BORDERS`.
        keep_layout: leave inputs and outputs of rank 4 in ONNX's order; costs a TRANSPOSE each.
        hybrid: use kernels that multiply floats by int8 weights; interpreters of microcontrollers have none.

    Raises:
        NotConvertibleError: naming every node that cannot be expressed.
        ModelError: sizes are not fixed, or the weights are too large.
        UsageError: `io` is unknown, or the packages for TFLite are missing.
    """
    if io not in BORDERS:
        raise UsageError(f"TFLite inputs cannot be {io!r}.", f"One of: {', '.join(BORDERS)}.")
    _check_inputs(model)
    form = _Form(io, keep_layout, hybrid)
    simple = simplify(model)
    if not dynamic_inputs(simple):
        return _written(prepare(simple, 1), 0, form)
    first, second = (_attempt(simple, batch, form) for batch in stand_ins(simple))
    if isinstance(first, Converted) and isinstance(second, Converted) and first.data == second.data:
        return first
    fixed = _written(prepare(simple, 1), 0, form)
    why = first if isinstance(first, str) else "what is computed from it is more than a shape"
    note = f"The batch size is fixed at 1: {why}."
    return Converted(fixed.data, fixed.inputs, fixed.outputs, fixed.operators, (*fixed.notes, note))


def _check_inputs(model: ir.Model) -> None:
    """Sequences and maps have no place in the file, nor sizes that could be fixed."""
    problems = [
        Problem(f"input {value.name}", f"dtype: it is {value.type}, no tensor", "")
        for value in model.graph.inputs
        if value.type is not None and not isinstance(value.type, ir.TensorType)
    ]
    if problems:
        raise NotConvertibleError(problems)


def _attempt(model: ir.Model, batch: int, form: _Form) -> Converted | str:
    try:
        return _written(prepare(model, batch), batch, form)
    except NotConvertibleError as error:
        return f"{error.problems[0].node}: {error.problems[0].why}"


def _written(model: ir.Model, batch: int, form: _Form) -> Converted:
    builder, io, keep_layout = Builder(batch), form.io, form.keep_layout
    emit = Emitter(builder, hybrid=form.hybrid)
    found: list[tuple[str, UnsupportedError]] = []
    inputs = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        try:
            inputs[value.name or ""] = _input(emit, value, io, keep_layout)
        except UnsupportedError as error:
            found.append((f"input {value.name}", error))
    for node in model.graph:
        if node in emit.done or all(emit.constants.known(output) for output in node.outputs):
            continue
        try:
            handler = HANDLERS.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
            if handler is None:
                raise UnsupportedError(f"form: there is no way to express {node.op_type}")
            _check_sizes(emit, node)
            check_types(node)
            handler(emit, node)
        except UnsupportedError as error:
            found.append((where(node), error))
            _stand_in(emit, node)
    outputs = {}
    for value in model.graph.outputs:
        try:
            outputs[value.name or ""] = _output(emit, value, io, keep_layout)
        except UnsupportedError as error:
            found.append((f"output {value.name}", error))
    if found:
        causes = [each for each in found if not isinstance(each[1], FollowsError)] or found
        raise NotConvertibleError([Problem(place, str(why), why.hint) for place, why in causes])
    turned = {
        kind: {v.name or "": _turned(emit, v, keep_layout) for v in values if v.name in ports}
        for kind, values, ports in (
            ("inputs", model.graph.inputs, inputs),
            ("outputs", model.graph.outputs, outputs),
        )
    }
    said = {
        "tool": _tool(),
        "io": io,
        "channels_last": turned,
        "quantized": {
            "inputs": _integer_borders(emit, model.graph.inputs, inputs),
            "outputs": _integer_borders(emit, model.graph.outputs, outputs),
        },
    }
    data = builder.finish(inputs, outputs, {METADATA: json.dumps(said, sort_keys=True).encode()})
    notes = tuple(
        f"{value.name!r} is {value.dtype.name.lower()}; the file has it as {emit.dtype(value).lower()}."
        for value in (*model.graph.inputs, *model.graph.outputs)
        if value.dtype in CONTAINERS and not value.is_initializer()
    )
    return Converted(data, turned["inputs"], turned["outputs"], builder.counts(outputs.values()), notes)


@cache  # looked up in the package's metadata, which takes longer than to write a small file
def _tool() -> str:
    return f"edgepress {version('edgepress')}"


def _turned(emit: Emitter, value: ir.Value, keep_layout: bool) -> bool:
    return not keep_layout and len(emit.shape(value)) == 4


def _integer_borders(emit: Emitter, values: Iterable[ir.Value], border: Mapping[str, Tensor]) -> list[str]:
    """Names of inputs or outputs that are reals in ONNX, and integers in the file."""
    return [
        name
        for value in values
        if (name := value.name or "") in border and emit.dtype(value) == "FLOAT32" != border[name].dtype
    ]


def _check_sizes(emit: Emitter, node: ir.Node) -> None:
    empty_lists = {value for value in node.inputs[1:] if value is not None and _sizes(value) == (0,)}
    for value in (*node.inputs, *node.outputs):
        if value is not None and value not in empty_lists and 0 in (dims(value) or ()):
            raise UnsupportedError(f"empty: {value.name!r} has no elements", "Leave out what reads it.")


def _sizes(value: ir.Value) -> tuple[object, ...]:
    return () if value.shape is None else tuple(value.shape)


def _stand_in(emit: Emitter, node: ir.Node) -> None:
    """Something for later nodes to read, so that their own problems are found in the same run."""
    for value in node.outputs:
        try:
            emit.write(value, emit.builder.tensor(emit.shape(value), emit.dtype(value)))
        except UnsupportedError:
            continue


def _input(emit: Emitter, value: ir.Value, io: str, keep_layout: bool) -> Tensor:
    last = _turned(emit, value, keep_layout)
    shape = emit.shape(value)
    order = [0, 2, 3, 1] if last else range(len(shape))
    sizes = [shape[axis] for axis in order]
    grid = common_grid(value, emit.constants)
    if io != "float32" and emit.dtype(value) == "FLOAT32":
        if grid is None:
            raise ModelError(
                f"Input {value.name!r} is not quantized, so it cannot be {io}.",
                "Leave out --io, or quantize first.",
            )
        return _integers(emit, value, sizes, grid, io, last=last)
    if emit.dtype(value) in {"INT8", "UINT8"} and (held := held_grid(value, emit.constants)) is not None:
        return _integers(emit, value, sizes, held, emit.dtype(value).lower(), last=last)
    tensor = emit.builder.tensor(sizes, emit.dtype(value), name=value.name or "")
    emit.write(value, tensor, last=last)
    return tensor


def _integers(emit: Emitter, value: ir.Value, sizes: list[int], grid: Grid, io: str, *, last: bool) -> Tensor:
    """An input in integers; uint8 is moved to int8."""
    unsigned = Grid.of(grid.scale[0], grid.zero_point[0] + 128)
    if io == "int8":
        tensor = emit.builder.tensor(sizes, "INT8", grid, value.name or "")
        emit.write(value, tensor, last=last)
        return tensor
    tensor = emit.builder.tensor(sizes, "UINT8", unsigned, value.name or "")
    emit.write(value, emit.quantized(tensor, grid), last=last)
    return tensor


def _output(emit: Emitter, value: ir.Value, io: str, keep_layout: bool) -> Tensor:
    last = _turned(emit, value, keep_layout)
    grid = emit.grid(value)
    if grid is not None and emit.dtype(value) in {"INT8", "UINT8"}:
        io = emit.dtype(value).lower()
    elif io == "float32" or emit.dtype(value) != "FLOAT32":
        return emit.read(value, last=last)
    if grid is None:
        raise ModelError(
            f"Output {value.name!r} is not quantized, so it cannot be {io}.",
            'Leave out --io, or quantize it: results = "integer" in the recipe\'s quantize.',
        )
    tensor = emit.read(value, integer=True, last=last)
    if io == "int8":
        return tensor
    unsigned = Grid.of(grid.scale[0], grid.zero_point[0] + 128)
    return emit.builder.op("QUANTIZE", [tensor], tensor.shape, "UINT8", unsigned)
