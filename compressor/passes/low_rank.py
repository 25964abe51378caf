"""Split a dense site in two through a narrow middle: W → U V.

A Gemm, MatMul or Conv with W [out, in] becomes one with V [rank, in], then one with U [out, rank]: fewer
weights and fewer multiplications once rank < out · in / (out + in). The first keeps the kernel, strides and
padding of a Conv, the second is 1×1. Directions are those in which the outputs really vary
(numerics/low_rank.py), and the dense matrix is refitted towards the original's outputs before it is split
(Golub & Reinsch 1970; Çallı 2017 §1.3.1).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.least_squares import refit
from edgepress.compressor.numerics.low_rank import factorise
from edgepress.compressor.observe import NEW, own_moments, restructured, site_moments, wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped
from edgepress.compressor.passes.shrink import refit_site, refittable
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.sites import (
    Site,
    find_sites,
    new_constant,
    replace_constant,
    set_weights,
    site_name,
    site_of,
    unique,
)
from edgepress.compressor.walk import walking

INNER = "_v"
"""Put behind a site's name, it names the first of the two."""

MOST_OUTPUTS = 4096
"""Outputs of a site up to which it is split: their covariance takes outputs² × 8 bytes several times over, and its
directions outputs³ steps, a minute at this size."""


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace dense sites by two thinner ones.

    Attributes:
        ranks: (site, rank) pairs.
        follow: refit the sites after them, too.
    """

    kind: ClassVar[str] = "low_rank"
    ranks: tuple[tuple[str, int], ...] = ()
    follow: bool = True

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Split the named sites of `model` in place, and refit those that read changed values on the way."""
        wanted = dict(self.ranks)
        known = {site.name: site for site in find_sites(model)}
        skipped = [Skipped(n, "no such site") for n in wanted if n not in known]
        changed: list[str] = []
        different: set[ir.Value] = set()
        before, walked = restructured(model), walking(context)
        for node in list(model.graph):
            site = site_of(node)
            moved = any(v in different for v in node.inputs if v is not None)
            if site is not None and site.name in wanted:
                why = refusal(site, wanted[site.name], context)
                if why is None:
                    paired = (moved or before) and NEW not in site.y.meta and not wide(site)
                    split(model, site, wanted[site.name], walked if paired else context, paired=paired)
                    changed.append(site.name)
                    moved = True
                else:
                    skipped.append(Skipped(site.name, why))
            elif self.follow and site is not None and moved and refittable(site, context):
                refit_site(model, site, walked)
            if moved:
                different.update(node.outputs)
        return Outcome(bool(changed), tuple(changed), tuple(skipped))


def refusal(site: Site, rank: int, context: Context) -> str | None:
    """Why a site cannot be split at this rank, or None."""
    if context.left_by_user(site.name):
        return "--leave names it"
    if not site.dense:
        return "grouped or transposed convolutions are not split"
    if context.stream is None:
        return "needs samples"
    if site.bias_index is not None and site.bias() is None:
        return "its bias is not constant"
    rows, columns = site.matrix().shape
    if rows > MOST_OUTPUTS:
        return f"it has over {MOST_OUTPUTS} outputs"
    if rank < 1 or rank * (rows + columns) >= rows * columns:
        return f"rank {rank} does not make {rows} × {columns} smaller"
    return None


def split(model: ir.Model, site: Site, rank: int, context: Context, *, paired: bool) -> None:
    """Replace one site by two nodes; the second keeps name and output.

    Args:
        model: changed in place.
        site: one of its sites.
        rank: width of the middle.
        context: with a stream.
        paired: its inputs differ from the original's, so it is refitted towards the original first.
    """
    fit, held = (
        site_moments(model, site, context, paired=True) if paired else own_moments(model, site, context)
    )
    total, weights = fit + held, site.matrix().T.astype(np.float64)  # [in, out]
    covariance = total.centred()[2]
    if paired:
        weights, bias = refit(fit, held, weights)
        covariance = weights.T @ total.centred()[0] @ weights
        if site.bias_index is not None:
            set_weights(site, weights.T.astype(np.float32), bias.astype(np.float32))
    u, v = factorise(weights.T, covariance, rank)
    old = site.bias()
    if old is not None and site.bias_index is not None:
        lost = total.means()[1] - old
        set_weights(site, weights.T.astype(np.float32), old + (lost - u @ (u.T @ lost)).astype(np.float32))
    replace_by_two(site, u, v)


def replace_by_two(site: Site, u: Matrix, v: Matrix) -> None:
    """Put a node with V [rank, in] before one with U [out, rank]; strides and padding stay with the first.

    Args:
        site: the site; its node becomes the second one.
        u: [out, rank].
        v: [rank, in].
    """
    node, graph = site.node, site.node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{site.name} is not in the main graph")
    dtype = site.weight.dtype
    values = set(ir.convenience.create_value_mapping(graph, include_subgraphs=True))
    name = unique(f"{site.name}{INNER}", {site_name(each) for each in graph})
    middle = ir.Value(name=unique(f"{site.y.name}_middle", values), type=site.y.type)
    inner = ir.Node(
        node.domain,
        node.op_type,
        [site.x, new_constant(graph, name, site.from_matrix(v))],
        dict(node.attributes),
        outputs=[middle],
        name=name,
    )
    middle.meta[NEW] = True
    graph.insert_before(node, inner)
    if site.is_conv:
        ones = [1] * (site.weight.ndim - 2)
        second = u.reshape(*u.shape, *ones)
        for name in ("strides", "pads", "dilations", "auto_pad", "kernel_shape"):
            node.attributes.pop(name, None)
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", ones)
    else:
        second = u if site.out_axis == 0 else u.T
    node.replace_input_with(0, middle)
    replace_constant(node, 1, np.ascontiguousarray(second.astype(dtype)))
