"""Cross-layer equalisation: channels of neighbouring layers share their ranges (Nagel et al. 2019, DFQ, §4.1).

    W₂ f(W₁ x + b₁)  =  (W₂ S) f(S⁻¹ W₁ x + S⁻¹ b₁)      S diagonal, above zero, f(s x) = s f(x)

The function stays the same; what changes is that no channel of a layer is much smaller than another, so that one scale
for all of them (`granularity = "tensor"`) rounds all alike. `numerics/equalize.py` finds S.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import Channels, analyse
from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.equalize import Entries, Pair, equalize
from edgepress.compressor.observe import KEPT, NEW
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns, site_name
from edgepress.compressor.passes.integer_forms import clip_bounds
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.sites import (
    Site,
    constant,
    exclusive,
    find_sites,
    replace_constant,
    taken,
    unique,
)

HOMOGENEOUS = frozenset([
    "Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Abs", "MaxPool", "AveragePool", "GlobalAveragePool",
    "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
])  # fmt: skip
"""Operators with f(s x) = s f(x) for a factor above zero on each channel."""

LITTLE = 1e-3
"""When all factors of a round are nearer to 1 it was the last."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels between neighbouring sites so that the weights on both sides have equal ranges.

    Attributes:
        rounds: most turns of all pairs.
        through_clips: also through a Clip with bounds, channels that no sample takes to one, and no farther than that
            stays so: exact on the samples, and not for certain on others.
        sites: regular expressions of the sites in front of what is scaled; empty for all.
        leave: names of sites whose weights stay as they are.
    """

    kind: ClassVar[str] = "equalize"
    rounds: int = 50
    through_clips: bool = False
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"equalize: rounds is {self.rounds}", "Choose 1 or more.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Equalise `model` in place; samples are used where a Clip is met."""
        net = _Net.of(model)
        links, skipped = [], []
        for site in net.sites:
            found = self._refusal(site, context) or net.link(site, self.through_clips)
            if isinstance(found, _Link):
                other = next((r for r in (self._kept(s, context) for s, _ in found.readers) if r), None)
                found = found if other is None else f"{other}, of a site that reads it"
            if isinstance(found, str):
                skipped.append(Skipped(site.name, found))
            else:
                links.append(found)
        peaks = _peaks(model, links, context)
        usable = [link for link in links if all(clip.value in peaks for clip in link.clips)]
        skipped += [
            Skipped(link.maker.name, "how far its Clip is used cannot be seen: it needs finite samples")
            for link in links
            if link not in usable
        ]
        changed = _write(model, usable, peaks, self.rounds)
        skipped += [
            Skipped(n.maker.name, "its ranges are equal") for n in usable if n.maker.name not in changed
        ]
        return Outcome(bool(changed), tuple(changed), tuple(skipped))

    def _kept(self, site: Site, context: Context) -> str | None:
        """Why the weights of a site must stay, or None."""
        if context.left_by_user(site.name):
            return "--leave names it"
        return "the recipe leaves it as it is" if site.name in self.leave else None

    def _refusal(self, site: Site, context: Context) -> str | None:
        if self.sites and not any(re.search(p, site.name) for p in self.sites):
            return "the recipe leaves it as it is"
        return self._kept(site, context)


@dataclass(frozen=True)
class _Clip:
    """A Clip between two sites: what it reads, on which axis the maker's outputs lie, and its bounds."""

    value: ir.Value
    axis: int
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class _Link:
    """A site whose outputs may be scaled, those that read it, and what lies between.

    Attributes:
        maker: the site in front.
        readers: the sites behind, and which output of the maker each of their inputs is.
        between: values that are scaled.
        clips: among them.
    """

    maker: Site
    readers: tuple[tuple[Site, Array], ...]
    between: tuple[ir.Value, ...]
    clips: tuple[_Clip, ...]


@dataclass
class _Net:
    """A model, to be asked what may be scaled."""

    sites: list[Site]
    by_node: dict[ir.Node, Site]
    channels: Channels
    graph: ir.Graph = field(repr=False)

    @staticmethod
    def of(model: ir.Model) -> "_Net":
        """Look a model over."""
        sites = find_sites(model)
        return _Net(sites, {site.node: site for site in sites}, analyse(model), model.graph)

    def link(self, site: Site, through_clips: bool) -> "_Link | str":
        """What scaling the outputs of a site comes to, or why that cannot be done."""
        reason = _bound(site)
        if reason is not None:
            return reason
        ids = self._ids(site.y, site.outputs)
        if ids is None or len(np.unique(ids)) < len(ids):
            return "its channels cannot be followed"
        between, readers, clips = [site.y], [], []
        for value in between:  # grows
            if value.is_graph_output() or not value.uses():
                return "its channels end in an output of the model"
            for use in value.uses():
                reader = self.by_node.get(use.node)
                if reader is not None and use.idx == 0:
                    source = self._source(reader, ids)
                    if source is None or (reason := _bound(reader)) is not None:
                        return reason or f"{reader.name} reads its channels in a way not understood"
                    readers.append((reader, source))
                    continue
                clip = self._clip(use.node, value, ids) if use.idx == 0 else None
                if clip is not None and through_clips:
                    clips.append(clip)
                elif not (use.idx == 0 and self._homogeneous(use.node)):
                    return f"{use.node.op_type} behind it is not positively homogeneous"
                between += use.node.outputs
        return _Link(site, tuple(readers), tuple(between), tuple(clips))

    def _ids(self, value: ir.Value, count: int) -> Array | None:
        track = self.channels.tracks.get(value)
        return None if track is None or len(track.ids) != count else track.ids

    def _source(self, reader: Site, ids: Array) -> Array | None:
        """Which of `ids` each input of a site is."""
        found = self._ids(reader.x, reader.inputs)
        track = self.channels.tracks.get(reader.x)
        if found is None or track is None or not np.isin(found, ids).all():
            return None
        if track.axis != (track.rank - 1 if reader.node.op_type in ("MatMul", "Gemm") else 1):
            return None
        order = np.argsort(ids)
        return order[np.searchsorted(ids, found, sorter=order)]

    def _homogeneous(self, node: ir.Node) -> bool:
        ours = node.graph is self.graph and node.domain in ("", "ai.onnx") and len(node.outputs) == 1
        return ours and (node.op_type in HOMOGENEOUS or clip_bounds(node) == (0.0, np.inf))

    def _clip(self, node: ir.Node, value: ir.Value, ids: Array) -> _Clip | None:
        bounds, track = clip_bounds(node), self.channels.tracks.get(value)
        if node.op_type != "Clip" or bounds is None or node.graph is not self.graph or track is None:
            return None
        if not bounds[0] <= 0.0 <= bounds[1] or bounds == (0.0, np.inf) or len(track.ids) != len(ids):
            return None
        return _Clip(value, track.axis, *bounds) if (track.ids == ids).all() else None


def _bound(site: Site) -> str | None:
    """Why the weights of a site may not be changed, or None."""
    weight = site.node.inputs[1]
    if weight is None or not exclusive(weight):
        return "its weights are shared, or an output of the model"
    if site.weight.dtype != np.float32:
        return f"{site.weight.dtype}: scaled values might be too large for it"
    if site.transposed_conv and site.groups > 1:
        return f"it has {site.groups} groups"
    if not np.isfinite(site.weight).all():
        return "its weights are not finite"
    if site.bias_index is not None and site.bias() is None:
        return "its bias is no constant"
    return None


def _peaks(
    model: ir.Model, links: Sequence[_Link], context: Context
) -> Mapping[ir.Value, tuple[Matrix, Matrix]]:
    """Least and largest value of each channel that a Clip reads; none of those that are not finite."""
    clips = {clip.value.name or "": clip for link in links for clip in link.clips}
    found: dict[str, tuple[Matrix, Matrix]] = {}
    if context.stream is None or not clips:
        return {}
    for batch, _ in context.stream(model, sorted(clips)):
        for name, clip in clips.items():
            rows = np.moveaxis(batch[name], clip.axis, 0).reshape(batch[name].shape[clip.axis], -1)
            low, high = rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)
            before = found.get(name, (low, high))
            found[name] = np.minimum(before[0], low), np.maximum(before[1], high)
    return {clips[n].value: pair for n, pair in found.items() if all(np.isfinite(a).all() for a in pair)}


def _limits(link: _Link, peaks: Mapping[ir.Value, tuple[Matrix, Matrix]]) -> tuple[Matrix, Array]:
    """Least divisor of each output of the maker, and which stay: those that a Clip cuts on the samples."""
    least, fixed = np.zeros(link.maker.outputs), np.zeros(link.maker.outputs, bool)
    for clip in link.clips:
        for peak, bound in zip(peaks[clip.value], (clip.low, clip.high), strict=True):
            if bound == 0.0 or np.isinf(bound):  # a bound of zero cuts the same at any scale
                continue
            reach = np.maximum(peak / bound, 0.0)
            fixed |= reach >= 1.0
            least = np.maximum(least, reach)
    return least, fixed


def _write(
    model: ir.Model, links: Sequence[_Link], peaks: Mapping[ir.Value, tuple[Matrix, Matrix]], rounds: int
) -> list[str]:
    """Scale what the links name; gives the names of the makers that changed."""
    sites = {s.node: s for link in links for s in (link.maker, *(r for r, _ in link.readers))}
    index = {node: i for i, node in enumerate(sites)}
    layers = [Entries(_entries(site), 1 if site.transposed_conv else site.groups) for site in sites.values()]
    pairs = [
        Pair(index[k.maker.node], tuple((index[r.node], s) for r, s in k.readers), *_limits(k, peaks))
        for k in links
    ]
    totals = equalize(layers, pairs, rounds, LITTLE)
    made, read = {}, {}
    for link, total in zip(links, totals, strict=True):
        if np.abs(np.log(total)).max(initial=0.0) > LITTLE:
            made[link.maker.node] = link, 1 / total
            read.update({reader.node: total[source] for reader, source in link.readers})
    for node, site in sites.items():
        _scale(site, made[node][1] if node in made else None, read.get(node))
    names = taken(model)
    for link, _ in made.values():
        for value in link.between:  # no longer what the original's value of that name is
            producer = value.producer()
            if producer is not None:
                producer.name = site_name(producer)
            value.name, value.meta[NEW] = unique(f"{value.name}_equal", names), True
            value.meta.pop(KEPT, None)
    return [link.maker.name for link, _ in made.values()]


def _entries(site: Site) -> Matrix:
    """Largest magnitude between each output and input [outputs, inputs per group], float64."""
    wide = np.moveaxis(np.abs(site.weight), (site.out_axis, site.in_axis), (0, 1)).astype(np.float64)
    peaks: Matrix = wide.reshape(*wide.shape[:2], -1).max(axis=2)
    return peaks


def _scale(site: Site, made: Matrix | None, read: Matrix | None) -> None:
    """Multiply the outputs [outputs] and inputs [inputs] of a site, and its bias by the former."""
    weight = np.moveaxis(site.weight, (site.out_axis, site.in_axis), (0, 1)).astype(np.float64)
    if made is not None:
        weight = weight * made.reshape(-1, *[1] * (weight.ndim - 1))
        bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
        old = constant(bias)
        if site.bias_index is not None and old is not None:
            replace_constant(
                site.node, 2, (np.broadcast_to(old.reshape(-1), len(made)) * made).astype(old.dtype)
            )
    if read is not None:
        groups = 1 if site.transposed_conv else site.groups
        shaped = weight.reshape(groups, -1, *weight.shape[1:])
        weight = (shaped * read.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    if made is not None or read is not None:
        turned = np.moveaxis(weight, (0, 1), (site.out_axis, site.in_axis))
        replace_constant(site.node, 1, np.ascontiguousarray(turned.astype(site.weight.dtype)))
