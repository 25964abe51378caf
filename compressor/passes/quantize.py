"""8-bit static quantization: weights and activations as integers (Çallı 2017 §1.6).

    y = W x + b   becomes   y ≈ s_w s_x · (Q_w (Q_x − z)) + b,   computed in 8-bit products and 32-bit sums

Weights are symmetric with one scale per output channel, activations have one scale and a zero point each, and
the graph says so by QuantizeLinear/DequantizeLinear pairs (`qdq`), which runtimes fuse into integer kernels.
Rounding the weights moves the mean of each output channel by E[(W_q − W) x] = (W_q − W) E[x]; the bias takes
that back (Nagel et al. 2019, Data-Free Quantization, §4.2), with E[x] per input channel and kernel tap from
samples.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.grids import (
    BIAS_GRID,
    Affine,
    Array,
    Grid,
    affine,
    bias_floor,
    bias_scale,
    dequantize,
    integer_grid,
    quantize,
)
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.calibrate import Seen, mean_shift
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.integer_forms import (
    as_gemm,
    as_global_pool,
    clip_before_pool,
    raise_opset,
)
from edgepress.compressor.passes.qdq import Plan, already_quantized, given, place, share_grids
from edgepress.compressor.passes.rounding import (
    Ranges,
    Rounded,
    check_bits,
    round_by_outputs,
    round_plainly,
    weight_grid,
)
from edgepress.compressor.passes.swallow import fold_swallowed
from edgepress.compressor.sites import Site, find_sites

HEAVY = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN"])

FLOAT_BIAS_SINCE = (1, 23)
"""First onnxruntime seen to fuse float biases everywhere; 1.22 does not before a Relu, 1.20 nowhere."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Insert QuantizeLinear/DequantizeLinear pairs around Conv, Gemm and MatMul and what lies between them.

    Attributes:
        weight_bits: 2 to 8; fewer where the target's kernels would saturate.
        bits: (site, bits) pairs that differ from that. Kernels compute with 8 bits whatever is stored.
        activation_bits: 8.
        ranges: how the range of an activation is chosen.
        per_channel: one weight scale per output channel; else one per tensor.
        bias_correction: take the mean error of rounded weights out of the bias.
        weight_ranges: `minmax` clips no weight, `mse` clips where that rounds the others better.
        sites: regular expressions of sites to quantize; empty for all.
        leave: names of sites not to quantize.
    """

    kind: ClassVar[str] = "quantize"
    weight_bits: int = 8
    activation_bits: int = 8
    ranges: Literal["minmax", "percentile", "mse"] = "minmax"
    per_channel: bool = True
    bias_correction: bool = True
    weight_ranges: Ranges = "minmax"
    bits: tuple[tuple[str, int], ...] = ()
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bits(self.kind, self.weight_bits, self.bits)
        if self.activation_bits != 8:
            raise UsageError(
                f"quantize: activation_bits is {self.activation_bits}", "Only 8 has fast kernels."
            )
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize `model` in place; needs `context.stream`."""
        sites, skipped = self._choose(model, context)
        if not sites or context.stream is None:
            return Outcome(modified=False, skipped=tuple(skipped))
        modified = raise_opset(model)
        if modified:
            sites, skipped = self._choose(model, context)
        if sum(as_gemm(site) + clip_before_pool(site) for site in sites):
            modified, names = True, {site.name for site in sites}
            sites = [site for site in find_sites(model) if site.name in names]
        modified |= bool(fold_swallowed(model, sites, self.ranges, activation_grid(context), context.stream))
        while sites:
            plan, pooled = _final_plan(model, sites)
            modified |= pooled
            seen = Seen(plan, self.ranges, means=self.bias_correction)
            seen.watch(context.stream, model)
            bad = [site for site in sites if not seen.finite(plan, site)]
            if not bad:
                grid = activation_grid(context)
                ranges = {root: seen.range_of(root, grid) for root in set(plan.root.values())}
                params = {v: affine(*r, grid, inside) for v, (r, inside) in share_grids(plan, ranges).items()}
                rounded = self._rounded(model, sites, params, context)
                _Writer(self, Constants(model), context, plan, params, rounded, seen.means()).write()
                break
            skipped += [Skipped(s.name, "its activations are not finite on the samples") for s in bad]
            sites = [site for site in sites if site not in bad]
        return Outcome(modified or bool(sites), tuple(s.name for s in sites), tuple(skipped))

    def _rounded(
        self, model: ir.Model, sites: Sequence[Site], params: Mapping[ir.Value, Affine], context: Context
    ) -> dict[ir.Node, tuple[Grid, Rounded]]:
        """The integers of all sites' weights: the biases must still fit 32 bits at their scales."""
        most = context.target.weight_bits if context.target else 8
        bits = dict(self.bits)
        grids = {s.node: weight_grid(bits.get(s.name, self.weight_bits), s.weight.size, most) for s in sites}
        floors: dict[ir.Node, Array | float] = {}
        for site in sites:
            bias = own_bias(site)
            floors[site.node] = 0.0 if bias is None else bias_floor(bias, params[site.x].scale)
        corrected = {s.node for s in sites if self.bias_correction and own_bias(s) is not None}
        by_outputs = (
            round_by_outputs(model, grids, sites, floors, context, corrected) if self.per_channel else {}
        )
        rounded: dict[ir.Node, tuple[Grid, Rounded]] = {}
        for site in sites:
            found = by_outputs.get(site.node)
            if found is None:
                floor = floors[site.node] if self.per_channel else np.max(floors[site.node])
                axis = site.out_axis if self.per_channel else None
                found = round_plainly(site.weight, grids[site.node], axis, floor, self.weight_ranges)
            rounded[site.node] = grids[site.node], found
        return rounded

    def _choose(self, model: ir.Model, context: Context) -> tuple[list[Site], list[Skipped]]:
        """Sites to quantize, and the others with the reason."""
        found, done = find_sites(model), already_quantized(model)
        chosen, skipped = [], list(_others(model, {site.node for site in found}, done))
        for site in found:
            reason = "already quantized" if done else self._refusal(site, context)
            if reason is None:
                chosen.append(site)
            else:
                skipped.append(Skipped(site.name, reason))
        return chosen, skipped

    def _refusal(self, site: Site, context: Context) -> str | None:
        """Why a site stays float, or None."""
        if context.left_by_user(site.name):
            return "--leave names it"
        if site.name in self.leave or (self.sites and not any(re.search(p, site.name) for p in self.sites)):
            return "the recipe leaves it in float"
        if site.transposed_conv:
            return "there is no integer kernel for ConvTranspose"
        if site.weight.dtype != np.float32:
            return f"{site.weight.dtype} weights: integer kernels replace float32 ones only"
        if site.x.const_value is not None:
            return "its input is constant"
        if context.stream is None:
            return "needs samples"
        return None


def _others(model: ir.Model, known: set[ir.Node], done: bool) -> Iterator[Skipped]:
    """Heavy operators that are no sites."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        heavy = node.op_type in HEAVY or node.op_type.startswith("QLinear")
        if not heavy or node in known:
            continue
        reason = "its weights are no plain float constant"
        if node.op_type == "MatMul" and all(v is not None and v.const_value is None for v in node.inputs):
            reason = "both factors are activations"
        if node.op_type in ("GRU", "LSTM", "RNN"):
            reason = f"there is no integer kernel for {node.op_type}"
        elif node.graph is not model.graph:
            reason = "inside control flow"
        yield Skipped(site_name(node), "already quantized" if done else reason)


def _final_plan(model: ir.Model, sites: Sequence[Site]) -> tuple[Plan, bool]:
    """The plan, after spatial means in it have become pools; and whether there were any."""
    plan = place(model, sites)
    means = [node for node in plan.integer if node.op_type == "ReduceMean"]
    for node in means:
        as_global_pool(node)
    return (place(model, sites) if means else plan), bool(means)


def activation_grid(context: Context) -> Grid:
    """The format of activations on the target."""
    return integer_grid(8, signed=context.target is not None and context.target.activation_dtype == "int8")


@dataclass
class _Writer:
    """Rewrites the graph as the plan says.

    Attributes:
        recipe: the pass.
        constants: of the model, which is changed in place.
        context: names the target.
        plan: where integers flow.
        params: scale and zero point of every carried value.
        rounded: weights of each site: their grid, integers and scales.
        means: mean input of each site; empty without bias correction.
    """

    recipe: Quantize
    constants: Constants
    context: Context
    plan: Plan
    params: dict[ir.Value, Affine]
    rounded: dict[ir.Node, tuple[Grid, Rounded]]
    means: dict[ir.Node, Array]
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
        graph, grid, params = self.graph, activation_grid(self.context), self.params[value]
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
        grid, (q, scale) = self.rounded[site.node]
        axis = site.out_axis if self.recipe.per_channel else None
        base = (site.node.inputs[1].name if site.node.inputs[1] else None) or site.name
        stored = [
            self.constants.integers(f"{base}_q", q, grid, site.node),
            self.constants.add("scale", scale),
        ]
        if (
            site.node.op_type == "Gemm"
        ):  # without it Gemm is not fused; Conv and MatMul are, and it costs bytes
            stored.append(self.constants.add("zero", np.zeros(scale.shape, grid.dtype)))
        site.node.replace_input_with(1, self._dequantized(site.node, stored, f"{base}_dq", axis))
        if bias is None:
            return
        if site.node in self.means:
            error = dequantize(q, scale, axis=axis) - site.weight
            bias = (bias - mean_shift(site, error, self.means[site.node])).astype(np.float32)
        name = site.node.inputs[2].name if site.node.inputs[2] else f"{site.name}_bias"
        if self._float_bias(site):
            site.node.replace_input_with(2, self.constants.add(f"{name}_c", bias))
            return
        product = np.broadcast_to(bias_scale(input_scale, scale), bias.shape)
        product = product if axis is not None else product[:1].reshape(())
        along = 0 if axis is not None else None
        q = quantize(bias, product, BIAS_GRID, axis=along)
        stored = [self.constants.add(f"{name}_q", q), self.constants.add("scale", product)]
        site.node.replace_input_with(2, self._dequantized(site.node, stored, f"{name}_dq", along))

    def _float_bias(self, site: Site) -> bool:
        """Whether kernels take the bias as floats: smaller, for it needs no scales and no node."""
        if site.node.op_type == "Gemm" and given(site.node) not in self.params:
            return False
        target = self.context.target
        found = re.match(r"(\d+)\.(\d+)", target.runtime_version) if target is not None else None
        return found is None or (int(found[1]), int(found[2])) >= FLOAT_BIAS_SINCE

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
