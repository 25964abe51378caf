"""Modified ReLU: small activations become zero.

    f(x) = x if x > ε else 0,      ε ≥ 0

(Im & Dasari, Computational complexity reduction of deep neural networks, §8, eq. 7.)

In ONNX that is ThresholdedRelu, one node, in the place of a Relu and behind any other activation; with an ε for each
channel it is Where(x > ε, x, 0). The document cuts σ(x) at x ≤ ε. σ grows with x, and so does x·σ(x) where x ≥ 0, so
the same is said here by what comes out: y ≤ ε with our ε being σ(ε) of the document's, or ε·σ(ε).

Which ε: the largest that costs at most a share of the activation's energy Σ y², on samples. What the sites behind it
then miss is put back by refitting them (`shrink.refit_following`).

No dense kernel is faster for zeros: they pay on hardware and in engines that skip them. onnxruntime 1.31 fuses neither
form, where it does fuse a Relu into the Conv before it: a net of six small layers took 6 % longer with one ε each,
16 % with one a channel. It has no kernel of half precision, and casts. Behind a quantizer whose step is at least 2ε
nothing is needed: `quantize` takes it out again (passes/swallow.py).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import analyse
from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.thresholds import BINS, Energies, just_below, swallowed
from edgepress.compressor.observe import NEW
from edgepress.compressor.passes.activations import Activation, activations
from edgepress.compressor.passes.base import (
    FLOATS,
    Context,
    Outcome,
    Pass,
    Skipped,
    Stream,
    check_patterns,
    site_name,
)
from edgepress.compressor.passes.constants import Constants
from edgepress.compressor.passes.integer_forms import raise_opset
from edgepress.compressor.passes.shrink import refit_following
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import constant, unique

OPSET = 10
"""First opset with ThresholdedRelu."""

SUFFIX = "_threshold"
"""Put behind an activation's name, it names the node behind it."""

MOST_CHANNELS = 4096
"""Channels of an activation up to which each has an ε of its own: every one takes 8 KiB while samples run."""

ENERGY_BYTES = 64 << 20
"""The sum of all energies that are gathered in one run of the samples."""


@dataclass(frozen=True)
class ThresholdReLU(Pass):
    """Make small activations zero, then refit the sites that read them.

    Attributes:
        thresholds: (activation, ε) pairs; an activation goes by its node's name or its output's.
        quantile: share of an activation's energy (sum of squares) that may go where `thresholds` names no ε; needs
            samples.
        per_channel: an ε for each channel, each channel losing that share; else one for all.
        compensate: refit the dense sites that read changed values; needs samples.
        sites: regular expressions of activations that `quantile` is for; empty for all.
        leave: names of activations not to touch.
    """

    kind: ClassVar[str] = "threshold_relu"
    suffixes: ClassVar[tuple[str, ...]] = (SUFFIX,)
    thresholds: tuple[tuple[str, float], ...] = ()
    quantile: float | None = None
    per_channel: bool = False
    compensate: bool = True
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, threshold in self.thresholds:
            if not (math.isfinite(threshold) and threshold >= 0):
                raise UsageError(
                    f"{self.kind}: the threshold of {name!r} is {threshold}", "Choose 0 or more."
                )
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise UsageError(
                f"{self.kind}: quantile is {self.quantile}", "Choose a share between 0 and 1: 0.01 for 1 %."
            )
        check_patterns(self.kind, self.sites)

    def candidates(self, model: ir.Model) -> set[str]:
        """Names of the activations."""
        return {activation.name for activation in activations(model)}

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Cut activations of `model` in place; samples are used where there are any."""
        given, skipped = self._named(model)
        wanted: dict[str, Array] = {}
        measured: list[Activation] = []
        for activation in activations(model):
            name, ours = activation.name, given.get(activation.node)
            if ours is None and not self._by_energy(name):
                continue
            why = "the recipe leaves it as it is" if name in self.leave else refusal(activation, context)
            if why is None and ours is None and context.stream is None:
                why = "needs samples"
            if why is not None:
                skipped.append(Skipped(name, why))
            elif ours is None:
                measured.append(activation)
            else:
                wanted[name] = np.array(ours)
        if context.stream is not None and measured and self.quantile is not None:
            axes = channel_axes(model, measured) if self.per_channel else {}
            wanted |= by_energy(context.stream, model, measured, axes, self.quantile)
        cuts: dict[str, Array] = {}
        for activation in activations(model):
            if (threshold := wanted.get(activation.name)) is not None:
                why = idle(activation, threshold)
                if why is None:
                    cuts[activation.name] = threshold
                else:
                    skipped.append(Skipped(activation.name, why))
        if cuts:
            raise_opset(model, OPSET)
            nodes = cut(model, cuts)
            if self.compensate and context.stream is not None:
                refit_following(model, nodes, context)
        return Outcome(bool(cuts), tuple(cuts), tuple(skipped))

    def _by_energy(self, name: str) -> bool:
        return self.quantile is not None and (not self.sites or any(re.search(p, name) for p in self.sites))

    def _named(self, model: ir.Model) -> tuple[dict[ir.Node, float], list[Skipped]]:
        """The ε that the recipe gives, by node; and names that are no activation's."""
        known: dict[str, ir.Node] = {}
        for activation in activations(model):
            known[activation.node.outputs[0].name or ""] = activation.node
        known |= {activation.name: activation.node for activation in activations(model)}
        given = {known[name]: threshold for name, threshold in self.thresholds if name in known}
        return given, [Skipped(n, "no such activation") for n, _ in self.thresholds if n not in known]


def refusal(activation: Activation, context: Context) -> str | None:
    """Why an activation cannot be cut, or None."""
    if context.left_by_user(activation.name):
        return "--leave names it"
    if activation.cut is not None:
        return "it has a threshold already"
    if activation.y.dtype not in FLOATS:
        return (
            f"there is no kernel for {activation.y.dtype}" if activation.y.dtype else "its type is not known"
        )
    if not activation.y.uses():
        return "nothing in the model reads it"
    return None


def idle(activation: Activation, threshold: Array) -> str | None:
    """Why this ε is not to be used, or None.

    Args:
        activation: a node without a cut.
        threshold: [] or one for each channel; NaN where samples were not finite, negative where even 0 is too much.
    """
    if np.isnan(threshold).any():
        return "its activations are not finite on the samples"
    if (threshold < 0).any():
        return "its negative values alone have more of the energy than may go"
    if not activation.signed and not threshold.any():
        return "nothing is small enough to go"
    scales = [
        constant(use.node.inputs[1]) for use in activation.y.uses() if use.node.op_type == "QuantizeLinear"
    ]
    if not scales:
        return None
    if all(s is not None and swallowed(float(threshold.max()), float(s.min())) for s in scales):
        return "its quantizer takes such values to zero as it is"
    return "it flows in integers, and no integer kernel has a threshold"


def channel_axes(model: ir.Model, chosen: Sequence[Activation]) -> dict[ir.Node, tuple[int, int]]:
    """Where channels lie, (axis counted from the last, how many), as far as that is known."""
    tracks = analyse(model).tracks
    found = {a.node: tracks[a.y] for a in chosen if a.y in tracks}
    return {
        node: (track.axis - track.rank, len(track.ids))
        for node, track in found.items()
        if 1 < len(track.ids) <= MOST_CHANNELS
    }


def by_energy(
    stream: Stream,
    model: ir.Model,
    chosen: Sequence[Activation],
    axes: Mapping[ir.Node, tuple[int, int]],
    share: float,
) -> dict[str, Array]:
    """The largest ε of each activation that costs at most this share of its energy.

    Args:
        stream: gives samples.
        model: holds the activations.
        chosen: activations of `model`.
        axes: of those that get an ε for each channel, as `channel_axes` gives it.
        share: in (0, 1).

    Returns:
        ε by name, [] or of a shape to be compared with the activation; NaN and −1 as `idle` reads them.
    """
    thresholds = {}
    for group in _groups(chosen, axes):
        energies = {a.node: Energies(axes.get(a.node, (0, 1))[1]) for a in group}
        dtypes: dict[ir.Node, np.dtype[np.floating]] = {}
        for batch, _ in stream(model, [a.y.name or "" for a in group]):
            for a in group:
                x, sums = batch[a.y.name or ""], energies[a.node]
                dtypes[a.node] = x.dtype
                rows = np.moveaxis(x, axes[a.node][0], 0) if a.node in axes else x
                sums.update(rows.reshape(sums.channels, -1))
        for a in group:
            edges = energies[a.node].thresholds(share)
            found = np.where(edges < 0, -1.0, just_below(edges, dtypes.get(a.node, np.dtype(np.float32))))
            found = found if energies[a.node].finite else np.full_like(found, np.nan)
            axis = axes[a.node][0] if a.node in axes else None
            thresholds[a.name] = found.reshape(()) if axis is None else found.reshape(-1, *[1] * (-1 - axis))
    return thresholds


def _groups(
    chosen: Sequence[Activation], axes: Mapping[ir.Node, tuple[int, int]]
) -> Iterator[list[Activation]]:
    """Activations whose energies fit into memory together."""
    group: list[Activation] = []
    taken = 0
    for activation in chosen:
        size = axes.get(activation.node, (0, 1))[1] * BINS * 8
        if group and taken + size > ENERGY_BYTES:
            yield group
            group, taken = [], 0
        group.append(activation)
        taken += size
    if group:
        yield group


def cut(model: ir.Model, thresholds: Mapping[str, Array]) -> list[str]:
    """Cut activations off at their ε.

    Args:
        model: changed in place, of opset 10 at least.
        thresholds: ε by the activation's name, [] or of a shape to be compared with it.

    Returns:
        Names of the nodes whose outputs are not the original's any more.
    """
    constants = Constants(model)
    names = {site_name(node) for node in model.graph}
    changed = []
    for activation in activations(model):
        threshold = thresholds.get(activation.name)
        if threshold is None:
            continue
        node = activation.node
        if node.op_type != "Relu" or activation.y.is_graph_output():
            node = _behind(model.graph, activation, constants, unique(f"{activation.name}{SUFFIX}", names))
        _write(model.graph, node, threshold, constants)
        changed.append(site_name(node))
    return changed


def _behind(graph: ir.Graph, activation: Activation, constants: Constants, name: str) -> ir.Node:
    """A Relu behind an activation, for all who read it in the model; what the model gives stays whole."""
    y, value = activation.y, constants.value(f"{activation.y.name}{SUFFIX}")
    value.type, value.shape = y.type, y.shape
    value.meta[NEW] = True
    readers = [(use.node, use.idx) for use in y.uses()]
    node = ir.Node("", "Relu", [y], outputs=[value], name=name)
    graph.insert_after(activation.node, node)
    for reader, index in readers:
        reader.replace_input_with(index, value)
    return node


def _write(graph: ir.Graph, node: ir.Node, threshold: Array, constants: Constants) -> None:
    """Turn a Relu into the modified one."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or y.dtype is None:
        raise ValueError(f"{site_name(node)} has no input, or no type")
    if threshold.ndim == 0:
        node.op_type = "ThresholdedRelu"
        node.attributes["alpha"] = ir.AttrFloat32("alpha", float(threshold))
        return
    dtype = y.dtype.numpy()
    mask = constants.value(f"{y.name}_mask")
    mask.type, mask.shape = ir.TensorType(ir.DataType.BOOL), y.shape
    above = constants.add("threshold", threshold.astype(dtype))
    graph.insert_before(node, ir.Node("", "Greater", [x, above], outputs=[mask]))
    node.op_type = "Where"
    node.resize_inputs(3)
    for index, value in enumerate((mask, x, constants.add("nothing", np.zeros((), dtype)))):
        node.replace_input_with(index, value)
