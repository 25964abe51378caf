"""Half precision: weights and arithmetic of convolutions and products in float16, the rest in float32.

A float16 has 11 significant bits and ends at 65504. Convolutions and products with constant weights become half, and
so do the cheap nodes behind them that read nothing else; a Cast stands where a value comes in or goes out, so inputs
and outputs of the model stay what they were. What came near 65504 on the samples stays in float32.

Whether that is faster is the runtime's affair: where it has no kernels for float16 it widens all of it again at load,
and what is left is a file of half the size. `store` with 16 bits saves the same and computes in float32 everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.observe import NEW
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.products import drop_unread, left_out, weight_refusal
from edgepress.compressor.sites import constant, site_name

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

LIGHT = frozenset(
    {
        *("Add", "Sub", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"),
        *("MaxPool", "AveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    }
)
"""What may be half between them. Not what sums over many values or takes powers: Softmax, means, LayerNormalization."""

LARGEST = float(np.finfo(np.float16).max)

HEADROOM = 8
"""Values on unseen rows may be larger than on the samples, by as much."""

HALF_OPSET = 7
"""First opset in which all of these take float16."""

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True)
class Half(Pass):
    """Compute convolutions and products in float16: half the size; faster only where the device has kernels for it.

    Attributes:
        min_elements: sites with fewer weights stay as they are.
        sites: regular expressions of sites to make half; empty for all.
        leave: names of sites not to touch.
    """

    kind: ClassVar[str] = "half"
    min_elements: int = 256
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Make parts of `model` half, in place; needs `context.stream`."""
        heavy, skipped = self._choose(model, context)
        raised = bool(heavy) and raise_opset(model, HALF_OPSET)
        if raised:
            heavy, skipped = self._choose(model, context)
        peaks = _peaks(model, heavy, context)
        fits = [node for node in heavy if _fits(node, peaks)]
        skipped += [
            Skipped(site_name(node), "its values come near the largest half-precision number, or pass it")
            for node in heavy
            if node not in fits
        ]
        chosen, shared = _own_weights(fits)
        skipped += shared
        inside = _region(model, chosen, peaks, context)
        _Writer(Constants(model), inside).write()
        changed = tuple(site_name(node) for node in chosen)
        return Outcome(raised or bool(changed), changed, tuple(dict.fromkeys(skipped)))

    def _choose(self, model: ir.Model, context: Context) -> tuple[list[ir.Node], list[Skipped]]:
        """Heavy nodes that may become half, and the others with the reason."""
        chosen, skipped = [], []
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.domain not in ("", "ai.onnx") or node.op_type not in HEAVY:
                continue
            reason = self._refusal(model, node, context)
            if reason is None:
                chosen.append(node)
            else:
                skipped.append(Skipped(site_name(node), reason))
        return chosen, skipped

    def _refusal(self, model: ir.Model, node: ir.Node, context: Context) -> str | None:
        """Why a site stays in float32, or None."""
        name, (x, weight), array = site_name(node), node.inputs[:2], constant(node.inputs[1])
        if context.left_by_user(name):
            return "--leave names it"
        if node.graph is not model.graph:
            return "inside control flow"
        if reason := weight_refusal(weight):
            return reason
        if x is None or x.const_value is not None:
            return "its input is constant"
        size = 0 if array is None else array.size
        reason = left_out(name, size, context, self.sites, self.leave, self.min_elements)
        if reason is None and context.stream is None:
            return "needs samples: its values may be too large for half precision"
        return reason


def _own_weights(nodes: Sequence[ir.Node]) -> tuple[list[ir.Node], list[Skipped]]:
    """Without those whose weights somebody reads who stays in float32: the file would hold them twice."""
    kept: list[ir.Node] = list(nodes)
    skipped: list[Skipped] = []
    while True:
        apart = [n for n in kept if any(u.node not in kept or u.idx != 1 for u in _weight(n).uses())]
        if not apart:
            return kept, skipped
        kept = [node for node in kept if node not in apart]
        skipped += [
            Skipped(site_name(n), "its weights are read by what stays as it is, too: the file would grow")
            for n in apart
        ]


def _weight(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    if value is None:
        raise ValueError(f"{site_name(node)} has no weights")
    return value


def _peaks(model: ir.Model, heavy: Sequence[ir.Node], context: Context) -> dict[ir.Value, float]:
    """The largest magnitude of every value that may become half, on all samples; infinite where one is no number."""
    if not heavy or context.stream is None:
        return {}
    values: dict[str, ir.Value] = {}
    for node in model.graph:
        if node in heavy or (node.op_type in LIGHT and node.domain in ("", "ai.onnx")):
            for value in (*node.inputs, node.outputs[0]):
                if value is not None and value.const_value is None and value.dtype in (FLOAT, None):
                    values[value.name or ""] = value
    peaks = dict.fromkeys(values, 0.0)
    for batch, _ in context.stream(model, sorted(values)):
        for name, array in batch.items():
            if array.dtype == np.float32:
                peak = float(np.abs(array).max(initial=0.0))
                peaks[name] = max(peaks[name], peak if np.isfinite(peak) else np.inf)
            else:
                peaks[name] = np.inf
    return {values[name]: peak for name, peak in peaks.items()}


def _fits(node: ir.Node, peaks: Mapping[ir.Value, float]) -> bool:
    """Whether all that a node reads and gives is a float32 that half precision holds, with room to spare."""
    for index, value in enumerate(node.inputs):
        if value is None or (value.dtype is not None and value.dtype.is_integer()):
            continue
        array = constant(value)
        if array is not None:
            bound = node.op_type == "Clip" and index
            if array.dtype != np.float32 or (not bound and not np.abs(array).max(initial=0.0) <= LARGEST):
                return False
        elif not peaks.get(value, np.inf) * HEADROOM <= LARGEST:
            return False
    return peaks.get(node.outputs[0], np.inf) * HEADROOM <= LARGEST


def _region(
    model: ir.Model, heavy: Sequence[ir.Node], peaks: Mapping[ir.Value, float], context: Context
) -> list[ir.Node]:
    """Heavy nodes, and light ones all whose inputs that vary are given by nodes that are half already."""
    inside: dict[ir.Node, None] = {}
    for node in model.graph:
        if node in heavy:
            inside[node] = None
            continue
        light = node.op_type in LIGHT and node.domain in ("", "ai.onnx")
        if not light or context.left_by_user(site_name(node)):
            continue
        varying = [v for v in node.inputs if v is not None and v.const_value is None]
        if varying and all(v.producer() in inside for v in varying) and _fits(node, peaks):
            inside[node] = None
    return list(inside)


@dataclass
class _Writer:
    """Rewrites the nodes of a region.

    Attributes:
        constants: of the model, which is changed in place.
        inside: nodes to make half, in the order of the graph.
        halves: of values and constants from outside.
    """

    constants: Constants
    inside: Sequence[ir.Node]
    halves: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        """Casts at the border, constants in half, types inside."""
        members = set(self.inside)
        old = [value for node in self.inside for value in node.inputs]
        for node in self.inside:
            for index, value in enumerate(node.inputs):
                if value is not None and value.producer() not in members and self._float(value):
                    node.replace_input_with(index, self._half(node, value))
        for node in self.inside:
            y = node.outputs[0]
            y.type = ir.TensorType(HALF)
            outside = [(u.node, u.idx) for u in y.uses() if u.node not in members]
            if outside or y.is_graph_output():
                self._widen(node, y, outside)
        drop_unread(self.constants.model, old)

    def _float(self, value: ir.Value) -> bool:
        array = constant(value)
        return value.dtype in (FLOAT, None) if array is None else array.dtype == np.float32

    def _half(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """A value from outside in half precision."""
        if value not in self.halves:
            array = constant(value)
            if array is not None:
                narrow = np.clip(array, -LARGEST, LARGEST).astype(
                    np.float16
                )  # bounds of a Clip may be infinite
                self.halves[value] = self.constants.add(f"{value.name}_half", narrow)
            else:
                cast = self._cast(value, HALF, self.constants.fresh(f"{value.name}_half"))
                self.constants.model.graph.insert_before(node, cast)
                self.halves[value] = cast.outputs[0]
        return self.halves[value]

    def _widen(self, node: ir.Node, y: ir.Value, outside: Sequence[tuple[ir.Node, int]]) -> None:
        """Give those outside a float32; an output of the graph keeps its name, else the half one does."""
        name, graph = y.name or "value", self.constants.model.graph
        other = self.constants.fresh(f"{name}_{'half' if y.is_graph_output() else 'wide'}")
        cast = self._cast(y, FLOAT, name if y.is_graph_output() else other)
        wide = cast.outputs[0]
        wide.meta.update(y.meta)
        if y.is_graph_output():
            node.name = site_name(node)  # a nameless node goes by its output, which gets another name now
            y.name = other
            y.meta[NEW] = True
        else:
            wide.meta[NEW] = True
        graph.insert_after(node, cast)
        for reader, index in outside:
            reader.replace_input_with(index, wide)
        for index, output in enumerate(graph.outputs):
            if output is y:
                graph.outputs[index] = wide

    @staticmethod
    def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
        result = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
        return ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", int(kind))], outputs=[result], name=f"{name}_cast"
        )
