"""Writes quantized sites into a graph: pairs around values, integers for weights, corrected biases."""

import re
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.grids import (
    BIAS_GRID,
    Affine,
    Array,
    Grid,
    bias_scale,
    dequantize,
    integer_grid,
    quantize,
)
from edgepress.compressor.numerics.steps import Steps, is_symmetric
from edgepress.compressor.passes.base import Context
from edgepress.compressor.passes.calibrate import mean_shift
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.qdq import Plan, given
from edgepress.compressor.passes.rounding import in_layout
from edgepress.compressor.sites import Site

FLOAT_BIAS_SINCE = (1, 23)
"""First onnxruntime seen to fuse float biases everywhere; 1.22 does not before a Relu, 1.20 nowhere."""


def activation_grid(context: Context, bits: int = 8) -> Grid:
    """The format of activations on the target; signed ones of 16 bits have zero point 0 there."""
    signed = context.target is not None and context.target.activation_dtype == "int8"
    return integer_grid(bits, signed=signed, symmetric=signed and bits > 8)


def runtime_before(context: Context, version: tuple[int, int]) -> bool:
    """Whether the target's onnxruntime is known and older."""
    target = context.target
    found = re.match(r"(\d+)\.(\d+)", target.runtime_version) if target is not None else None
    return found is not None and (int(found[1]), int(found[2])) < version


@dataclass(frozen=True)
class Weights:
    """The integers of one site.

    Attributes:
        grid: their format.
        q: in the operator's layout.
        scale: one, or for each output [outputs], float32.
        zero: integers, shaped alike.
        axis: of the outputs; None where there is one scale.
    """

    grid: Grid
    q: Array
    scale: Array
    zero: Array
    axis: int | None

    @staticmethod
    def of(site: Site, codes: Array, steps: Steps, *, shared: bool) -> "Weights":
        """Of integers [outputs, inputs] and their levels; `shared` by all outputs."""
        scale, zero = steps.scales[:, 0].astype(np.float32), steps.zeros[:, 0].astype(steps.grid.dtype)
        if shared:
            scale, zero = scale[0], zero[0]
        axis = None if shared else site.out_axis
        return Weights(steps.grid, in_layout(site, codes), np.asarray(scale), np.asarray(zero), axis)


@dataclass
class Writer:
    """Rewrites the graph as the plan says.

    Attributes:
        constants: of the model, which is changed in place.
        context: names the target.
        plan: where integers flow.
        params: scale and zero point of every carried value.
        rounded: weights of each site.
        means: mean input of each site; empty without bias correction.
        bits: of activations.
    """

    constants: Constants
    context: Context
    plan: Plan
    params: dict[ir.Value, Affine]
    rounded: dict[ir.Node, Weights]
    means: dict[ir.Node, Array]
    bits: int = 8
    graph: ir.Graph = field(init=False)

    def __post_init__(self) -> None:
        self.graph = self.constants.model.graph

    def write(self) -> None:
        """Insert all pairs, then replace weights and biases."""
        uses = {v: self._readers(v) for v in self.plan.carried}
        inputs = {site.node: site.x for site in self.plan.sites}
        old = [v for site in self.plan.sites for v in site.node.inputs[1:] if v is not None]
        for value, readers in uses.items():
            self._pair(value, readers)
        for site in self.plan.sites:
            self._site(site, self.params[inputs[site.node]].scale)
        for value in old:
            if not value.uses() and not value.is_graph_output() and value.name:
                self.graph.initializers.pop(value.name, None)

    def _readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Who must read a value from behind its pair: all, where an integer kernel gives it."""
        everybody = self.plan.from_integers(value)
        return [(u.node, u.idx) for u in value.uses() if everybody or self.plan.computes(u.node)]

    def _pair(self, value: ir.Value, readers: list[tuple[ir.Node, int]]) -> None:
        graph, grid, params = self.graph, activation_grid(self.context, self.bits), self.params[value]
        scale = self.constants.add("scale", np.array(params.scale, np.float32))
        zero = self.constants.add("zero", np.array(params.zero_point, grid.dtype))
        name = value.name or "value"
        q = ir.Node("", "QuantizeLinear", [value, scale, zero], outputs=[self.constants.value(f"{name}_q")])
        dq = ir.Node(
            "", "DequantizeLinear", [q.outputs[0], scale, zero], outputs=[self.constants.value(f"{name}_dq")]
        )
        copy = dq.outputs[0]
        copy.type, copy.shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], [q, dq])
        else:
            graph.insert_after(producer, [q, dq])
        for node, index in readers:
            node.replace_input_with(index, copy)
        if self.plan.from_integers(value) and value.is_graph_output():
            value.name, copy.name = self.constants.fresh(f"{name}_float"), name
            copy.meta.update(value.meta)
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = copy

    def _site(self, site: Site, input_scale: float) -> None:
        """Replace weights and bias of one site."""
        bias = own_bias(site)
        found = self.rounded[site.node]
        axis = found.axis
        base = (site.node.inputs[1].name if site.node.inputs[1] else None) or site.name
        stored = [
            self.constants.integers(f"{base}_q", found.q, found.grid, site.node),
            self.constants.add("scale", found.scale),
        ]
        # without zeros Gemm is not fused; Conv and MatMul are, and they cost bytes
        if site.node.op_type == "Gemm" or not is_symmetric(found.grid):
            stored.append(self.constants.add("zero", found.zero))
        site.node.replace_input_with(1, self._dequantized(site.node, stored, f"{base}_dq", axis))
        if bias is None:
            return
        if site.node in self.means:
            error = dequantize(found.q, found.scale, found.zero, axis=axis) - site.weight
            bias = (bias - mean_shift(site, error, self.means[site.node])).astype(np.float32)
        name = site.node.inputs[2].name if site.node.inputs[2] else f"{site.name}_bias"
        if self._float_bias(site):
            site.node.replace_input_with(2, self.constants.add(f"{name}_c", bias))
            return
        product = np.broadcast_to(bias_scale(input_scale, found.scale), bias.shape)
        product = product if axis is not None else product[:1].reshape(())
        along = 0 if axis is not None else None
        q = quantize(bias, product, BIAS_GRID, axis=along)
        stored = [self.constants.add(f"{name}_q", q), self.constants.add("scale", product)]
        site.node.replace_input_with(2, self._dequantized(site.node, stored, f"{name}_dq", along))

    def _float_bias(self, site: Site) -> bool:
        """Whether kernels take the bias as floats: smaller, for it needs no scales and no node."""
        if self.bits > 8:  # computed in floats, whatever the file says
            return True
        if site.node.op_type == "Gemm" and given(site.node) not in self.params:
            return False
        return not runtime_before(self.context, FLOAT_BIAS_SINCE)

    def _dequantized(self, reader: ir.Node, stored: list[ir.Value], name: str, axis: int | None) -> ir.Value:
        """A DequantizeLinear of constants, in front of `reader`."""
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node("", "DequantizeLinear", stored, attributes, outputs=[self.constants.value(name)])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = stored[0].shape
        self.graph.insert_before(reader, node)
        return node.outputs[0]


def own_bias(site: Site) -> Array | None:
    """The constant bias [outputs], or None where there is none to be changed."""
    if len(site.node.inputs) < 3 or site.node.inputs[2] is None:
        return None
    return site.bias()
