"""Weights that become zero: singly, n of every m, or in blocks, by magnitude or by what that does to the outputs.

Front to back each site is first fitted to what it gave before those in front of it were pruned; then the weights that
stay make good what they can, from second moments of its inputs (numerics/sparsity.py; numerics/elimination.py for
grouped convolutions), and the bias takes up the mean of the rest. Weights keep their place and shape: the file gets
smaller where it is compressed, the net faster where an engine skips zeros (Hassibi & Stork 1993; Frantar & Alistarh
2023; Çallı 2017 §1.5.1, 1.5.4).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.elimination import Groups, prune_groups
from edgepress.compressor.numerics.least_squares import Moments, refit
from edgepress.compressor.numerics.masks import Pattern, share_out
from edgepress.compressor.numerics.sparsity import predicted, prune_to_outputs
from edgepress.compressor.observe import group_moments, site_moments
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.calibrate import Mean, bias_takes_mean, correct_bias, means_of
from edgepress.compressor.passes.rounding import inputs_seen
from edgepress.compressor.passes.shrink import refittable
from edgepress.compressor.protocols import Array
from edgepress.compressor.sites import Site, find_sites, replace_constant, site_name, site_of
from edgepress.compressor.walk import walking

LEAST_KEPT = 0.1
"""With one threshold for all, a site keeps at least this share of what it would keep by itself: a site with nothing
left would cut the net in two."""


@dataclass(frozen=True)
class Prune(Pass):
    """Set weights of sites to zero.

    Attributes:
        sparsity: share of zeros, at least 0 and below 1; of blocks, where these go whole. `n_m` has its own.
        amounts: (site, sparsity) pairs that differ from that.
        pattern: `free`; `n_m`, at most n of m inputs side by side stay; or `block`, so many inputs go together. For
            convolutions inputs are channels, at each tap by itself.
        n: of `n_m`.
        m: of `n_m`.
        block: inputs of a block.
        criterion: which go: those of least `magnitude`, or those whose loss hurts outputs least (`obs`).
        scope: each `layer` has its share of zeros, or one threshold goes for all (`global`).
        min_elements: smaller weights stay as they are.
        sites: regular expressions of sites to prune; empty for all.
        leave: names of sites not to touch.
        compensate: with samples, the weights that stay and the bias make good what they can.
    """

    kind: ClassVar[str] = "prune"
    sparsity: float = 0.5
    amounts: tuple[tuple[str, float], ...] = ()
    pattern: Literal["free", "n_m", "block"] = "free"
    n: int = 2
    m: int = 4
    block: int = 4
    criterion: Literal["magnitude", "obs"] = "obs"
    scope: Literal["layer", "global"] = "layer"
    min_elements: int = 64
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    compensate: bool = True

    def __post_init__(self) -> None:
        for name, share in [("sparsity", self.sparsity), *self.amounts]:
            if not 0 <= share < 1:
                raise UsageError(f"prune: {name} is {share}", "Choose a share of at least 0, below 1.")
        if not 1 <= self.n <= self.m:
            raise UsageError(f"prune: n is {self.n} and m is {self.m}", "Choose 1 ≤ n ≤ m.")
        if self.block < 1:
            raise UsageError(f"prune: block is {self.block}", "Choose at least 1.")
        if self.pattern == "n_m" and self.amounts:
            raise UsageError("prune: amounts mean nothing to n_m", "Choose n and m, and `sites` or `leave`.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Prune the weights of `model` in place; samples are used where there are any."""
        chosen: list[Site] = []
        skipped: list[Skipped] = []
        known: set[ir.Value | None] = set()
        found = find_sites(model)
        for site in found:
            value = site.node.inputs[1]
            reason = self._refusal(model, site, context)
            if reason is not None:
                skipped.append(Skipped(site.name, reason))
            elif value not in known:
                chosen.append(site)
            known.add(value)
        names = {site.name for site in found}
        skipped += [Skipped(name, "no such site") for name, _ in self.amounts if name not in names]
        changed: list[str] = []
        counts, walked = self._counts(model, chosen, context), walking(context)
        todo = {site.node: (site, count) for site, count in zip(chosen, counts, strict=True)}
        different: set[ir.Value | None] = set()
        for node in list(model.graph):
            if node in todo:
                site, count = todo[node]
                if self._pattern(site).met(as_rows(site), count):
                    skipped.append(Skipped(site.name, "it has as many zeros already"))
                elif self._prune(model, site, count, walked, site.x in different):
                    changed += readers(site)
                    different.add(node.inputs[1])
                else:
                    skipped.append(Skipped(site.name, "its weights do not change"))
            if any(value in different for value in node.inputs if value is not None):
                different.update(node.outputs)
        return Outcome(bool(changed), tuple(changed), tuple(skipped))

    def _refusal(self, model: ir.Model, site: Site, context: Context) -> str | None:
        """Why the weights of a site stay as they are, or None."""
        value = site.node.inputs[1]
        if value is None:
            return "its weights are no constant"
        names = readers(site)
        if any(context.left_by_user(name) for name in names):
            return "--leave names it"
        if any(
            n in self.leave or (self.sites and not any(re.search(p, n) for p in self.sites)) for n in names
        ):
            return "the recipe leaves it as it is"
        if value.is_graph_output():
            return "its weights are an output of the graph"
        for use in value.uses():
            other = site_of(use.node) if use.node.graph is model.graph and use.idx == 1 else None
            if other is None:
                return "its weights are read elsewhere, too"
            if self.pattern != "free" and as_rows(other).shape != as_rows(site).shape:
                return "its weights are read in two ways"
            if self.pattern != "free" and (other.in_axis, run(other)) != (site.in_axis, run(site)):
                return "its weights are read in two ways"
        if not np.isfinite(site.weight).all():
            return "its weights are not finite"
        if site.weight.size < self.min_elements:
            return f"it has fewer than {self.min_elements} weights"
        return None

    def _pattern(self, site: Site) -> Pattern:
        if self.pattern == "n_m":
            return Pattern(self.m, self.n, run(site))
        return Pattern(self.block, None, run(site)) if self.pattern == "block" else Pattern()

    def _counts(self, model: ir.Model, chosen: Sequence[Site], context: Context) -> list[int]:
        """How many weights or blocks of each site go."""
        amounts = dict(self.amounts)
        own = [next((amounts[n] for n in readers(site) if n in amounts), None) for site in chosen]
        counts = [
            self._pattern(site).count(as_rows(site).shape, self.sparsity if share is None else share)
            for site, share in zip(chosen, own, strict=True)
        ]
        if self.scope == "layer" or self.pattern == "n_m":
            return counts
        walked, costs = walking(context), {}
        for i, site in enumerate(chosen):
            found = self._costs(model, site, walked) if own[i] is None else None
            if found is not None:
                costs[i] = found
        groups = [len(as_rows(s)) * len(self._pattern(s).groups(as_rows(s).shape[1])) for s in chosen]
        free = [i for i, share in enumerate(own) if share is None]
        total = round(self.sparsity * sum(groups[i] for i in free)) - sum(
            counts[i] for i in free if i not in costs
        )
        most = [groups[i] - max(int(LEAST_KEPT * (1 - self.sparsity) * groups[i]), 1) for i in costs]
        most = [max(some, ceil(self.sparsity * groups[i])) for some, i in zip(most, costs, strict=True)]
        shared = share_out(list(costs.values()), min(total, sum(most)), most)
        for i, count in zip(costs, shared, strict=True):
            counts[i] = count
        return counts

    def _costs(self, model: ir.Model, site: Site, walked: Context) -> Array | None:
        """What it costs that each weight or block goes, comparable between sites; None where nobody knows."""
        weights, pattern = as_rows(site), self._pattern(site)
        if self.criterion == "magnitude":
            return pattern.sums(np.abs(weights))
        groups = self._groups(model, site, walked)
        if groups is not None:
            costs: Array = groups.costs(compensate=self.compensate)
            return costs / (groups.errors(np.zeros_like(weights)).sum() or 1.0)
        seen = self._seen(model, site, walked)
        if seen is None:
            return None
        return predicted(weights, seen[0] + seen[1], pattern, compensate=self.compensate)

    def _seen(self, model: ir.Model, site: Site, walked: Context) -> tuple[Moments, Moments] | None:
        """Moments of the inputs, columns as in `as_rows`; None where there are none to go by."""
        if self.criterion == "magnitude" and not self.compensate:
            return None
        seen = inputs_seen(model, site, walked, centred=self.compensate and bias_takes_mean(site))
        return None if seen is None else in_rows(site, *seen)

    def _groups(self, model: ir.Model, site: Site, walked: Context) -> Groups | None:
        """A grouped convolution with what its groups read; None of others, and where there is nothing to go by."""
        blind = self.criterion == "magnitude" and not self.compensate
        if blind or self.pattern == "block" or not site.is_conv or site.groups == 1 or walked.stream is None:
            return None
        value = site.node.inputs[1]
        seen = None if value is None or len(value.uses()) > 1 else group_moments(model, site, walked)
        if seen is None:
            return None
        order, none = tap_by_tap(site), np.arange(0)
        about_zero = not (self.compensate and bias_takes_mean(site))
        each = [
            (one + other).part(order, none).of_inputs(about_zero=about_zero)
            for one, other in zip(*seen, strict=True)
        ]
        return Groups.of(as_rows(site), each)

    def _prune(self, model: ir.Model, site: Site, count: int, walked: Context, moved: bool) -> bool:
        """Prune one site; whether its weights changed.

        Args:
            model: changed in place.
            site: of the model.
            count: how many weights or blocks go.
            walked: with the samples, if there are any.
            moved: whether its inputs differ from what they were.
        """
        pattern, groups = self._pattern(site), self._groups(model, site, walked)
        start = Start(as_rows(site), None if groups else self._seen(model, site, walked))
        if moved and self.compensate and start.seen is not None and refittable(site, walked):
            start = towards_original(model, site, walked) or start
        array = None
        if start.seen is not None:
            found = prune_to_outputs(
                start.weights, *start.seen, pattern, count,
                by_outputs=self.criterion == "obs", compensate=self.compensate,
            )  # fmt: skip
            array = in_layout(site, found)
        elif groups is not None:
            by_outputs = self.criterion == "obs"
            found = prune_groups(groups, pattern, count, by_outputs=by_outputs, compensate=self.compensate)
            array = in_layout(site, found)
        if array is None or not np.isfinite(array).all():
            start = Start(as_rows(site), None)
            stays = pattern.mask(np.abs(start.weights), count)
            array = in_layout(site, np.where(stays, start.weights, 0))
        value = site.node.inputs[1]
        if value is None or np.array_equal(array, site.weight):
            return False
        mean = self._mean(model, site, walked) if start.paired is None else None
        value.const_value = ir.Tensor(array, name=value.name)
        pruned = site_of(site.node)
        if start.paired is not None and bias_takes_mean(site) and pruned is not None:
            bias = start.paired.bias_for(pruned.matrix().T.astype(np.float64))
            replace_constant(site.node, 2, bias.astype(array.dtype))
        elif mean is not None:
            correct_bias(site, array.astype(np.float32) - site.weight, mean)
        return True

    def _mean(self, model: ir.Model, site: Site, walked: Context) -> Array | None:
        """The mean input of a site whose bias is to take up what moves the mean of its outputs; else None."""
        value = site.node.inputs[1]
        alone = value is not None and len(value.uses()) == 1
        if walked.stream is None or not self.compensate or not alone or not bias_takes_mean(site):
            return None
        return means_of(walked.stream, model, [Mean(site)]).get(site.node)


@dataclass(frozen=True)
class Start:
    """What a site is pruned from.

    Attributes:
        weights: W, as `as_rows` gives it.
        seen: moments of the inputs, of most rows and of those held out, columns likewise; None where there are none.
        paired: moments of all inputs and of the original's outputs, where W was fitted to these.
    """

    weights: Array
    seen: tuple[Moments, Moments] | None
    paired: Moments | None = None


def towards_original(model: ir.Model, site: Site, context: Context) -> Start | None:
    """Weights that put right what sites in front of this one lost, as far as it can; None where nothing is gained.

    Args:
        model: holds the site.
        site: one with a bias of its own, or that cannot have one.
        context: with a stream.
    """
    if site.bias_index is not None and not bias_takes_mean(site):
        return None
    fit, held = site_moments(model, site, context, paired=True)
    fitted, _ = refit(fit, held, site.matrix().T.astype(np.float64))
    if not np.isfinite(fitted).all():
        return None
    matrix = fitted.T.reshape(site.outputs, site.inputs, site.taps)
    rows = np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(site.outputs, -1))
    about_zero = site.bias_index is None
    seen = in_rows(site, *(each.of_inputs(about_zero=about_zero) for each in (fit, held)))
    return Start(rows, seen, fit + held)


def readers(site: Site) -> list[str]:
    """Names of the nodes that read the weights of a site, its own first."""
    value = site.node.inputs[1]
    others = {site_name(use.node) for use in value.uses()} if value is not None else set()
    return [site.name, *sorted(others - {site.name})]


def run(site: Site) -> int:
    """Inputs that lie side by side in `as_rows`: one tap's, of one group of a convolution."""
    return int(site.weight.shape[site.in_axis]) // (site.groups if site.transposed_conv else 1)


def as_rows(site: Site) -> Array:
    """W [out, taps × in], float32: unlike `Site.matrix`, with the inputs of one tap side by side."""
    moved = np.moveaxis(site.weight, (site.out_axis, site.in_axis), (0, -1))
    return np.ascontiguousarray(moved.reshape(len(moved), -1), dtype=np.float32)


def in_rows(site: Site, fit: Moments, held: Moments) -> tuple[Moments, Moments]:
    """Moments of a dense site's inputs, columns as in `as_rows`."""
    if site.taps == 1:
        return fit, held
    order, none = tap_by_tap(site), np.arange(0)
    return fit.part(order, none), held.part(order, none)


def tap_by_tap(site: Site) -> Array:
    """Which column of a group's im2col rows is which of `as_rows`."""
    order: Array = np.arange(run(site) * site.taps).reshape(-1, site.taps).T.reshape(-1)
    return order


def in_layout(site: Site, rows: Array) -> Array:
    """The operator's own layout, in the weights' type, of W as `as_rows` gives it."""
    axes = (site.out_axis, site.in_axis)
    shape = np.moveaxis(site.weight, axes, (0, -1)).shape
    with np.errstate(over="ignore"):
        moved = np.moveaxis(rows.reshape(shape), (0, -1), axes).astype(site.weight.dtype)
    array: Array = np.ascontiguousarray(moved)
    return array
