"""What samples tell about a model: ranges of values and mean inputs of sites, streamed in one run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepress.compressor.inputs import (
    INPUT_BYTES,
    input_moments,
    inputs_left_behind,
    leave_inputs,
    moments_size,
)
from edgepress.compressor.numerics import ranges as rg
from edgepress.compressor.numerics.grids import Array, Grid
from edgepress.compressor.observe import own_moments, unfittable
from edgepress.compressor.origins import Origin, Origins
from edgepress.compressor.passes.base import Context, Stream
from edgepress.compressor.passes.qdq import Plan, behind, given
from edgepress.compressor.sites import Site, constant, conv_padding, ints_attribute, replace_constant

SIGMOID_RANGE = (0.0, 255.0 / 256.0)
"""Kernels of 8 bits have this range built in."""


def site_window(site: Site, size: Sequence[int]) -> rg.Window:
    """Geometry of a Conv for inputs of spatial shape `size`."""
    kernel = site.weight.shape[2:]
    ones = [1] * len(kernel)
    pads = tuple(conv_padding(site.node, size, kernel))
    strides, dilations = (ints_attribute(site.node, n, ones) for n in ("strides", "dilations"))
    return rg.Window(tuple(kernel), strides, dilations, pads)


class Mean:
    """Mean im2col row of a site's input, [channels, *kernel] or [features]; exact, and no row is built."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.image: Array | None = None
        self.rows = 0
        self.total: Array | float = 0.0
        self.count = 0

    def add(self, x: Array) -> None:
        """Add a batch of the site's input."""
        if not self.site.is_conv:
            flat = x.reshape(-1, x.shape[-1])
            self.total = self.total + flat.sum(axis=0, dtype=np.float64)
            self.count += len(flat)
            return
        if self.image is not None and self.image.shape != x.shape[1:]:
            self._flush()
        batch = x.sum(axis=0, dtype=np.float32)
        self.image = batch.astype(np.float64) if self.image is None else self.image + batch
        self.rows += len(x)

    def _flush(self) -> None:
        if self.image is not None:
            sums, positions = rg.patch_sums(self.image, site_window(self.site, self.image.shape[1:]))
            self.total, self.count = self.total + sums, self.count + positions * self.rows
            self.image, self.rows = None, 0

    def value(self) -> Array:
        """The mean so far."""
        self._flush()
        return np.asarray(self.total / max(self.count, 1))


class Seen:
    """What the samples show: ranges of all values with a grid of their own, mean inputs of all sites."""

    def __init__(self, plan: Plan, choice: str, means: bool) -> None:
        self.choice = choice
        self.histograms = {root: rg.empty() for root in plan.root.values()}
        self.sums = {site.node: Mean(site) for site in plan.sites} if means else {}

    def look(self, context: Context, model: ir.Model) -> None:
        """`watch` the samples, unless they were watched through an equal model, as for other bits of its weights."""
        names = [v.name or "" for v in self.histograms], [mean.site.name for mean in self.sums.values()]
        on = Origins(model).of(*self.histograms, *(mean.site.x for mean in self.sums.values()))
        hangs = (self.choice, names, on)
        kept = context.left_behind.get("seen")
        if context.stream is not None and not (isinstance(kept, _Seen) and kept.origin == hangs):
            self.watch(context.stream, model)
            kept = _Seen(hangs, list(self.histograms.values()), list(self.sums.values()))
            context.left_behind["seen"] = kept
        if isinstance(kept, _Seen):
            self.histograms = dict(zip(self.histograms, kept.histograms, strict=True))
            self.sums = dict(zip(self.sums, kept.sums, strict=True))

    def watch(self, stream: Stream, model: ir.Model) -> None:
        """Run the samples once."""
        sample = 0 if self.choice == "minmax" else rg.SAMPLE
        values = {v.name or "": v for v in self.histograms}
        readers: dict[str, list[Mean]] = {}
        for mean in self.sums.values():
            readers.setdefault(mean.site.x.name or "", []).append(mean)
        for batch, _ in stream(model, sorted({*values, *readers})):
            for name, value in values.items():
                self.histograms[value] = rg.observe(self.histograms[value], batch[name], sample)
            for name, group in readers.items():
                for mean in group:
                    mean.add(batch[name])

    def finite(self, plan: Plan, site: Site) -> bool:
        """Whether a site's input and output were numbers on all samples."""
        around = {site.x, site.y, given(site.node)}.intersection(plan.carried)
        return all(self.histograms[plan.root[v]].finite for v in around)

    def range_of(self, root: ir.Value, grid: Grid) -> tuple[float, float]:
        """The range of a value by the choice of the recipe."""
        source = behind(root)
        if source is not None and source.op_type == "Sigmoid" and grid.bits <= 8:
            return SIGMOID_RANGE
        return rg.CHOICES[self.choice](self.histograms[root], grid)

    def means(self) -> dict[ir.Node, Array]:
        """Mean input of each site, as `Mean` says."""
        return {node: mean.value() for node, mean in self.sums.items()}


def mean_shift(site: Site, error: Array, mean: Array) -> npt.NDArray[np.float64]:
    """How far a change of the weights moves the mean of each output.

    Args:
        site: a Conv, Gemm or MatMul.
        error: W_q − W, in the operator's layout.
        mean: E[x], [channels, *kernel] or [features].

    Returns:
        (W_q − W) E[x], [outputs].
    """
    if not site.is_conv:
        wide = np.moveaxis(error, site.out_axis, 0).astype(np.float64)
        return np.asarray(wide @ mean)
    groups, outputs = site.groups, error.shape[0]
    per_group = error.reshape(groups, outputs // groups, -1).astype(np.float64)
    return np.asarray(np.einsum("gok,gk->go", per_group, mean.reshape(groups, -1)).reshape(-1))


def bias_takes_mean(site: Site) -> bool:
    """Whether a site has a constant bias, which can take up what moves the mean of its outputs."""
    bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
    return not site.transposed_conv and site.bias() is not None and constant(bias) is not None


def correct_bias(site: Site, error: Array, mean: Array) -> None:
    """Take the mean of what a change of the weights does to the outputs out of the bias; see `mean_shift`."""
    bias = site.bias()
    if bias is not None:
        replace_constant(site.node, 2, (bias - mean_shift(site, error, mean)).astype(site.weight.dtype))


@dataclass(frozen=True)
class _Seen:
    """What `Seen` holds in the end, in its order, and all that it hangs on."""

    origin: object
    histograms: Sequence[rg.Histogram]
    sums: Sequence[Mean]


@dataclass(frozen=True)
class _Left:
    """A mean input that was worked out before, and all that it hangs on."""

    origin: Origin
    mean: Array


def site_means(model: ir.Model, sites: Sequence[Site], context: Context) -> dict[ir.Node, Array]:
    """Mean input of each site, in one run of the samples; what was worked out for an equal model so far is not again.

    Args:
        model: the current model.
        sites: those wanted; one whose input is not finite is left out.
        context: gives the samples, and keeps the means.
    """
    origins = Origins(model)
    means = {site.node: mean for site in sites if (mean := _left_behind(site, context, origins)) is not None}
    unknown = [site for site in sites if site.node not in means]
    if context.stream is None or not unknown:
        return means
    found = means_of(context.stream, model, [Mean(site) for site in unknown])
    for site in unknown:
        if site.node in found:
            context.left_behind[f"mean {site.name}"] = _Left(origins.of(site.x), found[site.node])
    return means | found


def bring_inputs(model: ir.Model, site: Site, context: Context, sites: Sequence[Site]) -> Context:
    """A context for trials of few bits at one site, with what they all want to know of its inputs already in it.

    Args:
        model: the original.
        site: one of its sites.
        context: with a stream; remembers moments, and the means of all sites at once.
        sites: all of them.
    """
    apart = context.apart()
    if site.dense and unfittable(site) is None:
        leave_inputs(site, apart, Origins(model), [own_moments(model, site, context)])
    elif site.dense and 0 < moments_size(site) <= INPUT_BYTES:
        input_moments(model, site, apart)
    elif context.stream is not None:
        key = ("means",)
        if key not in context.memo:
            rest = [each for each in sites if not each.dense or unfittable(each) is not None]
            found = means_of(context.stream, model, [Mean(each) for each in rest])
            context.memo[key] = {node.outputs[0].name: mean for node, mean in found.items()}
        means = context.memo[key]
        if isinstance(means, dict) and site.y.name in means:
            apart.left_behind[f"mean {site.name}"] = _Left(Origins(model).of(site.x), means[site.y.name])
    return apart


def _left_behind(site: Site, context: Context, origins: Origins) -> Array | None:
    """The mean input that a refit of the same model left behind: of rows drawn at random, where not of all."""
    seen = inputs_left_behind(site, context, origins) if site.dense and site.bias_index is not None else None
    if seen is not None:
        parts = [(fit.x_sum + held.x_sum) / max(fit.rows + held.rows, 1) for fit, held in seen]
        return np.concatenate(parts)
    kept = context.left_behind.get(f"mean {site.name}")
    return kept.mean if isinstance(kept, _Left) and kept.origin == origins.of(site.x) else None


def means_of(stream: Stream, model: ir.Model, means: Sequence[Mean]) -> dict[ir.Node, Array]:
    """Mean inputs of sites, in one run of the samples; sites with an input that is not finite are left out.

    Args:
        stream: gives the samples.
        model: the current model.
        means: one for each site, empty.
    """
    names = sorted({mean.site.x.name or "" for mean in means})
    for batch, _ in stream(model, names):
        for mean in means:
            mean.add(batch[mean.site.x.name or ""])
    values = {mean.site.node: mean.value() for mean in means}
    return {node: value for node, value in values.items() if np.isfinite(value).all()}
