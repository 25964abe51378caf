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
from edgepress.compressor.export.tflite.ops.gates import Activation, activations_of
from edgepress.compressor.export.tflite.ops.moving import cut, joined, parts
from edgepress.compressor.export.tflite.ops.values import real, write
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

    def _own(self, whole: Tensor, axis: int = 0) -> Tensor:
        """What belongs to this direction; its dimension stays, with size 1."""
        return cut(self.emit, whole, {axis: range(self.at, self.at + 1)})

    def weight(self, name: str, first: int = 0, count: int = 0) -> Tensor:
        """Rows of W or R [rows, columns] for some gates, in float32."""
        rows = slice(first * self.hidden, (first + (count or self.gates)) * self.hidden)
        value = self.value(name)
        if value is not None and self.emit.constant(value) is not None:
            return self.emit.stored(value, lambda array: array[self.at, rows], 0)
        own = self._own(real(self.emit, value))
        whole = self.emit.builder.reshaped(own, own.shape[1:])
        return cut(self.emit, whole, {0: range(rows.start, rows.stop)})

    def vector(self, name: str, first: int, count: int = 1) -> Tensor | None:
        """Numbers of B or P [count · hidden], from gate `first` on; None where there are none."""
        value = self.value(name)
        if value is None:
            return None
        start, length = first * self.hidden, count * self.hidden
        known = self.emit.constant(value)
        if known is not None:
            return self.emit.builder.constant(known[self.at, start : start + length].astype(np.float32))
        row = cut(self.emit, self._own(real(self.emit, value)), {1: range(start, start + length)})
        return self.emit.builder.reshaped(row, (length,))

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
            row = self._own(real(self.emit, value), axis)
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
        return self.emit.maths.add(one, other)


State = list[Tensor | None]
"""What a step hands on: the output, and an LSTM's cells; None stands for zeros."""
Step = Callable[[Tensor, State], list[Tensor]]


def _lstm(net: Net) -> tuple[Step, Tensor | None]:
    """One step of an LSTM, and the bias of its inputs' product."""
    f, g, h = net.activations
    maths = net.emit.maths
    h = replace(h, clip=0.0)  # onnxruntime cuts what enters the gates, not the cells
    recurrent = net.weight("R")
    p_in, p_out, p_forget = (net.vector("P", at) for at in range(3))
    coupled = int_attribute(net.node, "input_forget", 0)

    def peeped(gate: Tensor, peephole: Tensor | None, cells: Tensor | None) -> Tensor:
        return gate if peephole is None or cells is None else maths.add(gate, maths.mul(cells, peephole))

    def step(given: Tensor, state: State) -> list[Tensor]:
        output, cells = state
        whole = given if output is None else maths.add(given, net.times(output, recurrent))
        i, o, forget, c = parts(net.emit, whole, 1, 4)
        i = f(maths, peeped(i, p_in, cells))
        new = maths.mul(i, g(maths, c))
        if cells is not None:
            kept = maths.sub(1.0, i) if coupled else f(maths, peeped(forget, p_forget, cells))
            new = maths.add(maths.mul(kept, cells), new)
        o = f(maths, peeped(o, p_out, new))
        return [maths.mul(o, h(maths, new)), new]

    return step, net.plus(net.vector("B", 0, 4), net.vector("B", 4, 4))


def _gru(net: Net) -> tuple[Step, Tensor | None]:
    """One step of a GRU, the reset gate before or behind the product of the state."""
    f, g = net.activations
    maths = net.emit.maths
    behind = int_attribute(net.node, "linear_before_reset", 0)
    gates, candidate = net.weight("R", 0, 2), net.weight("R", 2, 1)
    own = net.vector("B", 5) if behind else None

    def step(given: Tensor, state: State) -> list[Tensor]:
        (output,) = state
        z, r, new = parts(net.emit, given, 1, 3)
        if output is not None:
            z_more, r_more = parts(net.emit, net.times(output, gates), 1, 2)
            z, r = maths.add(z, z_more), maths.add(r, r_more)
        z, r = f(maths, z), f(maths, r)
        if behind:
            product = own if output is None else net.times(output, candidate, own)
            new = new if product is None else maths.add(new, maths.mul(r, product))
        elif output is not None:
            new = maths.add(new, net.times(maths.mul(r, output), candidate))
        new = g(maths, new)
        if output is None:
            return [maths.sub(new, maths.mul(z, new))]
        return [maths.add(new, maths.mul(z, maths.sub(output, new)))]

    if behind and net.value("B") is not None:
        both = net.plus(net.vector("B", 0, 2), net.vector("B", 3, 2))
        last = net.vector("B", 2)
        return step, joined(net.emit, [each for each in (both, last) if each is not None], 0)
    return step, net.plus(net.vector("B", 0, 3), net.vector("B", 3, 3))


def _rnn(net: Net) -> tuple[Step, Tensor | None]:
    """One step of a plain recurrent net."""
    (f,) = net.activations
    maths = net.emit.maths
    recurrent = net.weight("R")

    def step(given: Tensor, state: State) -> list[Tensor]:
        (output,) = state
        return [f(maths, given if output is None else maths.add(given, net.times(output, recurrent)))]

    return step, net.plus(net.vector("B", 0), net.vector("B", 1))


_STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


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
    write(emit, node.outputs[0], whole)
    for at, result in enumerate(node.outputs[1:]):
        shape = (batch, 1, hidden) if layout else (1, batch, hidden)
        last = [emit.builder.reshaped(end[at], shape) for end in ends]
        write(emit, result, joined(emit, last, layout))


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
