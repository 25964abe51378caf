"""LSTM, GRU and RNN over a fixed number of steps, one after the other.

TFLite has no GRU, and its LSTM keeps its state from one run to the next, where ONNX begins anew. So all steps are
written out: one product for the inputs of all steps, then for each step one of the state and arithmetic. Weights
are in the file once, in 8 bits where the graph has them so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.export.tflite.emitter import Emitter, UnsupportedError, operand_of
from edgepress.compressor.export.tflite.ops.arithmetic import binary, give, joined, parts, real, sliced
from edgepress.compressor.export.tflite.ops.gates import Activation, activations_of
from edgepress.compressor.export.tflite.schema import options
from edgepress.compressor.export.tflite.tensors import Tensor
from edgepress.compressor.sites import attribute, int_attribute

MOST_STEPS = 2000
"""Steps of all directions together: the file grows by about 1 kB with each."""
_INPUTS = {"X": 0, "W": 1, "R": 2, "B": 3, "lens": 4, "h": 5, "c": 6, "P": 7}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Net:
    """One direction of a recurrent node.

    Attributes:
        emit: writes it.
        node: the node.
        at: which direction, 0 or 1.
        hidden: size of the state.
        activations: of its gates.
    """

    emit: Emitter
    node: ir.Node
    at: int
    hidden: int
    activations: list[Activation]

    @property
    def gates(self) -> int:
        """How many rows of the weights belong to one unit."""
        return _GATES[self.node.op_type]

    def value(self, name: str) -> ir.Value | None:
        """An input by its short name."""
        return operand_of(self.node, _INPUTS[name])

    def weight(self, name: str, first: int = 0, count: int = 0) -> Tensor:
        """Rows of W or R [rows, columns] for some gates, in float32."""
        rows = slice(first * self.hidden, (first + (count or self.gates)) * self.hidden)
        value = self.value(name)
        if value is not None and self.emit.constant(value) is not None:
            return self.emit.stored(value, lambda array: array[self.at, rows], 0)
        whole = self.emit.builder.reshaped(
            sliced(self.emit, real(self.emit, value), 0, self.at, 1), self.emit.shape(value)[1:]
        )
        return sliced(self.emit, whole, 0, rows.start, rows.stop - rows.start)

    def vector(self, name: str, first: int, count: int = 1) -> Tensor | None:
        """Numbers of B or P [count · hidden], from gate `first` on; None where there are none."""
        value = self.value(name)
        if value is None:
            return None
        start, length = first * self.hidden, count * self.hidden
        known = self.emit.constant(value)
        if known is not None:
            return self.emit.builder.constant(known[self.at, start : start + length].astype(np.float32))
        row = sliced(self.emit, real(self.emit, value), 0, self.at, 1)
        return self.emit.builder.reshaped(sliced(self.emit, row, 1, start, length), (length,))

    def first(self, name: str, batch: int) -> Tensor | None:
        """The state [batch, hidden] before the first step; None stands for zeros.

        Raises:
            UnsupportedError: it is different for each sample of a batch of any size.
        """
        value, axis = self.value(name), int_attribute(self.node, "layout", 0)
        known = self.emit.constant(value)
        if value is None or (known is not None and not known.any()):
            return None
        if known is None:
            row = sliced(self.emit, real(self.emit, value), axis, self.at, 1)
            return self.emit.builder.reshaped(row, (batch, self.hidden))
        rows = known.take(self.at, axis).astype(np.float32)
        if (rows == rows[:1]).all():
            rows = rows[:1]
        elif self.emit.builder.signature([batch]) != [batch]:
            raise UnsupportedError("dynamic shape: the state to begin with differs from sample to sample")
        return self.emit.builder.constant(rows)

    def times(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """FULLY_CONNECTED: x [..., columns] by weights [rows, columns]."""
        made = options("FullyConnected", keepNumDims=len(x.shape) > 2)
        shape = (*x.shape[:-1], weight.shape[0])
        return self.emit.builder.op("FULLY_CONNECTED", [x, weight, bias], shape, "FLOAT32", options=made)

    def plus(self, one: Tensor | None, other: Tensor | None) -> Tensor | None:
        """The sum of what there is; of constants, worked out here."""
        if one is None or other is None:
            return one if other is None else other
        if one.array is not None and other.array is not None:
            return self.emit.builder.constant(one.array + other.array)
        return binary(self.emit, "ADD", one, other)

    def mul(self, one: Tensor, other: Tensor | float) -> Tensor:
        """The product of each two elements."""
        return binary(self.emit, "MUL", one, other)


State = list[Tensor | None]
"""What a step hands on: the output, and an LSTM's cells; None stands for zeros."""
Step = Callable[[Tensor, State], list[Tensor]]


def _lstm(net: Net) -> tuple[Step, Tensor | None]:
    """One step of an LSTM, and the bias of its inputs' product."""
    f, g, h = net.activations
    h = replace(h, clip=0.0)  # onnxruntime cuts what enters the gates, not the cells
    recurrent = net.weight("R")
    p_in, p_out, p_forget = (net.vector("P", at) for at in range(3))
    coupled = int_attribute(net.node, "input_forget", 0)

    def peeped(gate: Tensor, peephole: Tensor | None, cells: Tensor | None) -> Tensor:
        return gate if peephole is None or cells is None else _sum(net, gate, net.mul(cells, peephole))

    def step(given: Tensor, state: State) -> list[Tensor]:
        output, cells = state
        whole = given if output is None else _sum(net, given, net.times(output, recurrent))
        i, o, forget, c = parts(net.emit, whole, 1, 4)
        i = f(net.emit, peeped(i, p_in, cells))
        new = net.mul(i, g(net.emit, c))
        if cells is not None:
            kept = (
                binary(net.emit, "SUB", _one(net), i)
                if coupled
                else f(net.emit, peeped(forget, p_forget, cells))
            )
            new = _sum(net, net.mul(kept, cells), new)
        o = f(net.emit, peeped(o, p_out, new))
        return [net.mul(o, h(net.emit, new)), new]

    return step, net.plus(net.vector("B", 0, 4), net.vector("B", 4, 4))


def _gru(net: Net) -> tuple[Step, Tensor | None]:
    """One step of a GRU, the reset gate before or behind the product of the state."""
    f, g = net.activations
    behind = int_attribute(net.node, "linear_before_reset", 0)
    gates, candidate = net.weight("R", 0, 2), net.weight("R", 2, 1)
    own = net.vector("B", 5) if behind else None

    def step(given: Tensor, state: State) -> list[Tensor]:
        (output,) = state
        z, r, new = parts(net.emit, given, 1, 3)
        if output is not None:
            z_more, r_more = parts(net.emit, net.times(output, gates), 1, 2)
            z, r = _sum(net, z, z_more), _sum(net, r, r_more)
        z, r = f(net.emit, z), f(net.emit, r)
        if behind:
            product = own if output is None else net.times(output, candidate, own)
            new = new if product is None else _sum(net, new, net.mul(r, product))
        elif output is not None:
            new = _sum(net, new, net.times(net.mul(r, output), candidate))
        new = g(net.emit, new)
        if output is None:
            return [binary(net.emit, "SUB", new, net.mul(z, new))]
        return [_sum(net, new, net.mul(z, binary(net.emit, "SUB", output, new)))]

    if behind and net.value("B") is not None:
        both = net.plus(net.vector("B", 0, 2), net.vector("B", 3, 2))
        last = net.vector("B", 2)
        return step, joined(net.emit, [each for each in (both, last) if each is not None], 0)
    return step, net.plus(net.vector("B", 0, 3), net.vector("B", 3, 3))


def _rnn(net: Net) -> tuple[Step, Tensor | None]:
    """One step of a plain recurrent net."""
    (f,) = net.activations
    recurrent = net.weight("R")

    def step(given: Tensor, state: State) -> list[Tensor]:
        (output,) = state
        return [f(net.emit, given if output is None else _sum(net, given, net.times(output, recurrent)))]

    return step, net.plus(net.vector("B", 0), net.vector("B", 1))


_STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _sum(net: Net, one: Tensor, other: Tensor) -> Tensor:
    return binary(net.emit, "ADD", one, other)


def _one(net: Net) -> Tensor:
    return net.emit.builder.constant(np.array(1.0, np.float32))


def recurrent(emit: Emitter, node: ir.Node) -> None:
    """An LSTM, GRU or RNN in one or two directions."""
    x, layout = node.inputs[0], int_attribute(node, "layout", 0)
    steps, batch = (emit.shape(x)[at] for at in ((1, 0) if layout else (0, 1)))
    directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    _check(emit, node, steps, directions)
    hidden = emit.shape(node.inputs[2])[-1]
    data = real(emit, x)
    outputs, ends = [], []
    for at, activations in enumerate(activations_of(node, _DEFAULTS[node.op_type], directions)):
        net = Net(emit, node, at, hidden, activations)
        backward = at == 1 or attribute(node, "direction", "forward") == "reverse"
        each, end = _run(net, data, steps, batch, layout, backward=backward)
        outputs.append(_stacked(emit, each, layout))
        ends.append(end)
    kept = [*outputs[0].shape[:2], hidden]
    kept.insert(2 if layout else 1, 1)
    whole = joined(emit, [emit.builder.reshaped(y, kept) for y in outputs], 2 if layout else 1)
    give(emit, node.outputs[0], whole)
    for at, result in enumerate(node.outputs[1:]):
        shape = (batch, 1, hidden) if layout else (1, batch, hidden)
        last = [emit.builder.reshaped(end[at], shape) for end in ends]
        give(emit, result, joined(emit, last, layout))


def _run(
    net: Net, data: Tensor, steps: int, batch: int, layout: int, *, backward: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """All steps of one direction: outputs [batch, hidden] in the order of time, and the last state."""
    step, bias = _STEPS[net.node.op_type](net)
    given = net.times(data, net.weight("W"), bias)
    made = options("Unpack", num=steps, axis=layout)
    each = (batch, net.gates * net.hidden)
    inputs = net.emit.builder.ops("UNPACK", [given], [(each, "FLOAT32", None)] * steps, made)
    state: State = [net.first(name, batch) for name in ("h", "c")[: 1 + (net.node.op_type == "LSTM")]]
    outputs: list[Tensor] = []
    now: list[Tensor] = []
    for one in inputs[::-1] if backward else inputs:
        now = step(one, state)
        state = list(now)
        outputs.append(now[0])
    return outputs[::-1] if backward else outputs, now


def _stacked(emit: Emitter, outputs: Sequence[Tensor], layout: int) -> Tensor:
    """PACK: [batch, hidden] of each step along the axis of time."""
    shape = list(outputs[0].shape)
    shape.insert(layout, len(outputs))
    made = options("Pack", valuesCount=len(outputs), axis=layout)
    return emit.builder.op("PACK", list(outputs), shape, options=made)


def _check(emit: Emitter, node: ir.Node, steps: int, directions: int) -> None:
    if emit.builder.signature([steps]) != [steps]:
        raise UnsupportedError("dynamic shape: the number of steps hangs on the batch size")
    lengths = operand_of(node, _INPUTS["lens"])
    known = emit.constant(lengths)
    if lengths is not None and (known is None or (known != steps).any()):
        raise UnsupportedError(
            "dynamic shape: sequences of different lengths", "Fill them up to the same length."
        )
    if steps * directions > MOST_STEPS:
        raise UnsupportedError(
            f"form: {steps * directions} steps; at most {MOST_STEPS} are written out",
            "Feed shorter pieces (--shape), and carry the state on.",
        )


HANDLERS = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
