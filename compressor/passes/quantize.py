"""Static quantization: weights and activations as integers (Çallı 2017 §1.6).

    y = W x + b   becomes   y ≈ s_w s_x · (Q_w − z_w) (Q_x − z_x) + b,   in 8-bit products and 32-bit sums

Weights have one scale per output channel (`granularity`) and, unless `symmetric`, a zero point each; activations have
one scale and a zero point each, and the graph says so by QuantizeLinear/DequantizeLinear pairs (`qdq`, `qdq_writer`),
which runtimes fuse into integer kernels. Rounding the weights moves the mean of each output channel by
E[(W_q − W) x] = (W_q − W) E[x]; the bias takes that back (Nagel et al. 2019, Data-Free Quantization, §4.2), with E[x]
per input channel and kernel tap from samples.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import ModelError, UsageError
from edgepress.compressor.numerics.grids import Affine, Array, Grid, affine, bias_floor, symmetric
from edgepress.compressor.numerics.rounding import Rounding
from edgepress.compressor.numerics.steps import block_width, is_symmetric
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.calibrate import Seen
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.integer_forms import (
    PER_AXIS_OPSET,
    SIXTEEN_BITS_OPSET,
    Bounds,
    as_gemm,
    as_global_pool,
    clip_before_pool,
    raise_opset,
)
from edgepress.compressor.passes.qdq import Plan, already_quantized, place, separate_sums, share_grids
from edgepress.compressor.passes.qdq_writer import Weights, Writer, activation_grid, own_bias, runtime_before
from edgepress.compressor.passes.rounding import (
    Ranges,
    check_bits,
    check_share,
    round_by_outputs,
    round_plainly,
    spared,
    weight_grid,
)
from edgepress.compressor.passes.swallow import fold_swallowed
from edgepress.compressor.sites import Site, find_sites

HEAVY = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN"])

ACTIVATION_BITS = (8, 16)

ZERO_POINTS_SINCE = (1, 27)
"""First onnxruntime that takes a zero point for each channel in QLinearConv; older ones refuse at run time."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Insert QuantizeLinear/DequantizeLinear pairs around Conv, Gemm and MatMul and what lies between them.

    Attributes:
        weight_bits: 2 to 8; fewer where the target's kernels would saturate.
        bits: (site, bits) pairs that differ from that. Kernels compute with 8 bits whatever is stored.
        activation_bits: 8, or 16: near to float, for targets with such kernels; onnxruntime computes it in floats.
        ranges: how the range of an activation is chosen.
        results: `float`: those of Gemm and MatMul stay floats where no integer kernel reads them; `integer`: every
            result of a site has 8 bits, so that inputs and outputs of the model can be integers.
        symmetric: weights have zero point 0; else each scale has one, which costs a byte and some time.
        granularity: one weight scale per output `channel`, or per `tensor`.
        rounding: below 7 bits: to the `nearest` integer, or by outputs: column by column (`gptq`), and then weight
            by weight (`coordinate`).
        spare: bytes, as a share of those of all weights, spent on 8 bits for weights that take few; not for `bits`.
        bias_correction: take the mean error of rounded weights out of the bias.
        weight_ranges: `minmax` clips no weight, `mse` clips where that rounds the others better, `auto` below 7 bits.
        sites: regular expressions of sites to quantize; empty for all.
        leave: names of sites not to quantize.
    """

    kind: ClassVar[str] = "quantize"
    weight_bits: int = 8
    activation_bits: int = 8
    ranges: Literal["minmax", "percentile", "mse"] = "minmax"
    results: Literal["float", "integer"] = "float"
    symmetric: bool = True
    granularity: Literal["tensor", "channel"] = "channel"
    rounding: Rounding = "coordinate"
    spare: float = 0.05
    bias_correction: bool = True
    weight_ranges: Ranges = "auto"
    bits: tuple[tuple[str, int], ...] = ()
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bits(self.kind, self.weight_bits, self.bits)
        check_share(self.kind, self.spare)
        if self.activation_bits not in ACTIVATION_BITS:
            raise UsageError(f"quantize: activation_bits is {self.activation_bits}", "Choose 8 or 16.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Quantize `model` in place; needs `context.stream`."""
        sites, skipped = self._choose(model, context)
        if not sites or context.stream is None:
            return Outcome(modified=False, skipped=tuple(skipped))
        try:
            modified = raise_opset(model, self._opset())
        except ModelError as error:
            if self.activation_bits == ACTIVATION_BITS[0]:
                raise
            reason = f"16 bits need opset {SIXTEEN_BITS_OPSET}: {error}"
            return Outcome(modified=False, skipped=(*skipped, *(Skipped(s.name, reason) for s in sites)))
        if modified:
            sites, skipped = self._choose(model, context)
        if sum(as_gemm(site) + clip_before_pool(site) for site in sites):
            modified, names = True, {site.name for site in sites}
            sites = [site for site in find_sites(model) if site.name in names]
        modified |= bool(fold_swallowed(model, sites, self.ranges, activation_grid(context), context.stream))
        while sites:
            plan, pooled = _final_plan(model, sites, results=self.results == "integer")
            modified |= pooled
            seen = Seen(plan, self.ranges, means=self.bias_correction)
            seen.look(context, model)
            bad = [site for site in sites if not seen.finite(plan, site)]
            if not bad:
                grid = activation_grid(context, self.activation_bits)
                ranges = {root: seen.range_of(root, grid) for root in set(plan.root.values())}
                params = {
                    v: _params(*r, grid, inside) for v, (r, inside) in share_grids(plan, ranges).items()
                }
                if self.activation_bits == ACTIVATION_BITS[0]:
                    separate_sums(plan, params, grid)
                rounded, means = self._rounded(model, sites, params, context), seen.means()
                constants, bits = Constants(model), self.activation_bits
                Writer(constants, context, plan, params, rounded, means, bits).write()
                break
            skipped += [Skipped(s.name, "its activations are not finite on the samples") for s in bad]
            sites = [site for site in sites if site not in bad]
        return Outcome(modified or bool(sites), tuple(s.name for s in sites), tuple(skipped))

    def _opset(self) -> int:
        """First opset that says it all."""
        return PER_AXIS_OPSET if self.activation_bits == ACTIVATION_BITS[0] else SIXTEEN_BITS_OPSET

    def _rounded(
        self, model: ir.Model, sites: Sequence[Site], params: Mapping[ir.Value, Affine], context: Context
    ) -> dict[ir.Node, Weights]:
        """The integers of all sites' weights: the biases must still fit 32 bits at their scales."""
        grids = self._grids(sites, context)
        floors: dict[ir.Node, Array | float] = {}
        for site in sites:
            bias = own_bias(site)
            short = bias is not None and self.activation_bits == ACTIVATION_BITS[0]
            floors[site.node] = bias_floor(bias, params[site.x].scale) if bias is not None and short else 0.0
        corrected = {s.node for s in sites if self.bias_correction and own_bias(s) is not None}
        by_outputs = round_by_outputs(
            model, grids, sites, floors, context, corrected,
            how=self.rounding, ranges=self.weight_ranges, granularity=self.granularity,
        )  # fmt: skip
        rounded = {}
        for site in sites:
            found = by_outputs.get(site.node)
            if found is None:
                matrix = site.matrix()
                width = block_width(self.granularity, 0, matrix.shape[1])
                found = round_plainly(matrix, grids[site.node], width, floors[site.node], self.weight_ranges)
            rounded[site.node] = Weights.of(site, *found, shared=self.granularity == "tensor")
        return rounded

    def _grids(self, sites: Sequence[Site], context: Context) -> dict[ir.Node, Grid]:
        """The format of each site's weights."""
        most, bits = context.target.weight_bits if context.target else 8, dict(self.bits)
        wanted = {s.node: bits.get(s.name, self.weight_bits) for s in sites}
        unnamed = [s for s in sites if s.name not in bits]
        better = spared({s.node: (s.weight.size, wanted[s.node]) for s in unnamed}, self.spare)
        return {
            s.node: weight_grid(
                8 if s.node in better else wanted[s.node],
                s.weight.size,
                most,
                symmetric=self._symmetric(s, context),
            )
            for s in sites
        }

    def _symmetric(self, site: Site, context: Context) -> bool:
        """Whether the zero point is 0: older kernels of Conv want it the same in all channels."""
        old = runtime_before(context, ZERO_POINTS_SINCE)
        return self.symmetric or (old and site.is_conv and self.granularity == "channel")

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


def _final_plan(model: ir.Model, sites: Sequence[Site], *, results: bool) -> tuple[Plan, bool]:
    """The plan, after spatial means in it have become pools; and whether there were any."""
    plan = place(model, sites, results=results)
    means = [node for node in plan.integer if node.op_type == "ReduceMean"]
    for node in means:
        as_global_pool(node)
    return (place(model, sites, results=results) if means else plan), bool(means)


def _params(low: float, high: float, grid: Grid, inside: Bounds | None) -> Affine:
    """Scale and zero point of an activation."""
    return symmetric(low, high, grid) if is_symmetric(grid) else affine(low, high, grid, inside)
