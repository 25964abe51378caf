"""A net as a list of steps with bounds: read from a canonical model, or refused by the name of what is not covered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.certify.affine import Affine
from edgepress.compressor.certify.curves import Bent, Grid
from edgepress.compressor.certify.intervals import Interval
from edgepress.compressor.certify.rules import Rule
from edgepress.compressor.errors import ModelError
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import constant, site_name
from edgepress.compressor.specs import dims

Row = tuple[int, ...]
"""Shape of one row of a value: all axes but the first."""


class NotCoveredError(ModelError):
    """A node that no bounds are known for."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operator.

    Attributes:
        name: the node's, as users meet it.
        inputs: names of the values that it reads.
        output: name of the value that it gives.
        rule: what it does to bounds.
        tunable: whether the rule's weight is the node's own constant, in its layout.
        biased: whether the node can have a bias.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    rule: Rule
    tunable: bool = False
    biased: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether this is half of a QuantizeLinear/DequantizeLinear pair."""
        clips = isinstance(self.rule, Bent) and self.name.endswith(CLIP_OF_GRID)
        return clips or isinstance(self.rule, Grid)


CLIP_OF_GRID = "/range"
"""Behind a quantizer's name: the step that clips to what its integers hold."""


@dataclass(frozen=True, eq=False)
class Program:
    """A net.

    Attributes:
        input: name of the one input.
        row: shape of its rows.
        steps: in an order in which they can be worked out.
        outputs: names of the outputs.
        softmax: axis of the softmax that is left off behind each output, of a row; None where there is none.
    """

    input: str
    row: Row
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    softmax: tuple[int | None, ...] = ()

    def ranges(
        self, box: Interval, unit: float = 0.0, known: Mapping[str, Interval] | None = None
    ) -> dict[str, Interval]:
        """Range of every value for inputs in boxes (interval pruning, phase 1).

        Args:
            box: [N, *row].
            unit: unit roundoff of the net's own arithmetic; 0: exact.
            known: ranges that hold for some values; taken where they are narrower.
        """
        found = {self.input: box}
        for step in self.steps:
            made = step.rule.forward([found[name] for name in step.inputs], unit)
            found[step.output] = made.within(known[step.output]) if known and step.output in known else made
        return found

    def readers(self) -> dict[str, int]:
        """How many steps read each value."""
        counts: dict[str, int] = {}
        for step in self.steps:
            for name in step.inputs:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def with_weights(self, weights: Mapping[str, Array], biases: Mapping[str, Array]) -> "Program":
        """The same net with other weights and biases of some linear steps, by the name of the step's output."""
        steps = []
        for step in self.steps:
            made = step
            if isinstance(step.rule, Affine) and (step.output in weights or step.output in biases):
                op = step.rule.op
                if step.output in weights:
                    op = op.with_weight(np.asarray(weights[step.output], np.float64))
                bias = biases.get(step.output)
                rule = replace(
                    step.rule, op=op, bias=step.rule.bias if bias is None else placed(step.rule, bias)
                )
                made = replace(step, rule=rule)
            steps.append(made)
        return replace(self, steps=tuple(steps))


def placed(rule: Affine, bias: Array) -> Array:
    """A bias of one number an output, as the rule broadcasts it."""
    return np.asarray(bias, np.float64).reshape(rule.bias.shape)


@dataclass
class Reader:
    """What handlers read a node with.

    Attributes:
        model: in canonical form.
        folded: values known before the net runs, beside initializers.
    """

    model: ir.Model
    folded: dict[ir.Value, Array] = field(default_factory=dict)

    def constant(self, value: ir.Value | None) -> Array | None:
        """The array of a value that is known; None of others."""
        if value is None:
            return None
        found = self.folded.get(value)
        return found if found is not None else constant(value)

    def number(self, node: ir.Node, index: int) -> Array:
        """A constant input as float64; refused where it varies."""
        found = self.constant(node.inputs[index] if index < len(node.inputs) else None)
        if found is None:
            raise refused(node, f"its input {index} is no constant")
        if found.dtype not in (np.float32, np.float64) and found.dtype.kind not in "iu":
            raise refused(node, f"it computes in {found.dtype}")
        return found.astype(np.float64)

    def row(self, value: ir.Value | None, node: ir.Node) -> Row:
        """Shape of a value's rows; refused where it is not known."""
        shape = None if value is None else dims(value)
        if shape is None or not shape or not all(isinstance(n, int) for n in shape[1:]):
            raise refused(node, "its sizes are not known", "Fix them with --shape.")
        return tuple(int(n) for n in shape[1:] if isinstance(n, int))


Handler = Callable[[Reader, ir.Node], Sequence[Step]]


def refused(node: ir.Node, why: str, hint: str = "") -> NotCoveredError:
    """The error for a node that is not covered."""
    return NotCoveredError(
        f"{node.op_type} {site_name(node)!r} cannot be certified: {why}.",
        hint or "docs/certify.md says what is covered.",
    )


def read(model: ir.Model, keep_softmax: bool = False) -> Program:
    """A canonical model as steps.

    Args:
        model: from `normalize`, with shapes.
        keep_softmax: else a softmax at the very end is left off, and what it reads is an output in its place.

    Raises:
        NotCoveredError: names the first node without bounds, and why.
    """
    from edgepress.compressor.certify.handlers import HANDLERS

    reader = Reader(model)
    fed = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(fed) != 1:
        raise NotCoveredError(f"The model has {len(fed)} inputs; certificates are for nets with one.")
    first = fed[0]
    shape = dims(first)
    if first.dtype != ir.DataType.FLOAT or shape is None or len(shape) < 2:
        raise NotCoveredError(f"Input {first.name!r} is no batch of float32 rows.")
    if not all(isinstance(n, int) for n in shape[1:]):
        raise NotCoveredError(f"The sizes of input {first.name!r} are not known.", "Fix them with --shape.")
    steps: list[Step] = []
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and all(reader.constant(v) is not None for v in node.inputs):
            reader.folded[node.outputs[0]] = dequantized(reader, node)
            continue
        handler = HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if handler is None:
            raise refused(node, "no bounds are known for this operator")
        if any(
            v.dtype in (ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16) for v in node.outputs
        ):
            raise refused(node, f"it computes in {node.outputs[0].dtype}")
        steps += handler(reader, node)
    outputs = [value.name or "" for value in model.graph.outputs]
    axes: tuple[int | None, ...] = (None,) * len(outputs)
    if not keep_softmax:
        steps, outputs, axes = without_softmax(steps, outputs)
    made = {first.name or "", *(step.output for step in steps)}
    if missing := [name for name in outputs if name not in made]:
        raise NotCoveredError(f"Output {missing[0]!r} is a constant: no input changes it.", "Take it out.")
    row = tuple(int(n) for n in shape[1:] if isinstance(n, int))
    return Program(first.name or "", row, tuple(steps), tuple(outputs), axes)


def without_softmax(
    steps: list[Step], outputs: list[str]
) -> tuple[list[Step], list[str], tuple[int | None, ...]]:
    """Leave off softmaxes that nothing but an output reads; their axes, one an output."""
    from edgepress.compressor.certify.normalizers import Softmax

    read_by_steps = {name for step in steps for name in step.inputs}
    last = {
        step.output: (step.inputs[0], step.rule.axis)
        for step in steps
        if isinstance(step.rule, Softmax) and step.output in outputs and step.output not in read_by_steps
    }
    found = [last.get(name, (name, None)) for name in outputs]
    kept = [step for step in steps if step.output not in last]
    return kept, [name for name, _ in found], tuple(axis for _, axis in found)


def dequantized(reader: Reader, node: ir.Node) -> Array:
    """(q − zero point) scale of constants, in float32 as runtimes work it out."""
    codes, scale = reader.number(node, 0), reader.number(node, 1)
    zero = reader.number(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    axis = node.attributes.get_int("axis", 1)
    if node.attributes.get_int("block_size", 0):
        raise refused(node, "its scales are of blocks")
    if scale.size > 1:
        shape = [1] * codes.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape) if zero.size > 1 else zero
    return ((codes - zero).astype(np.float32) * scale.astype(np.float32)).astype(np.float32)
