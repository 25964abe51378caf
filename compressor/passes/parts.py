"""A site in parts, one after another: what passes that split sites share, from the walk over a model to the nodes.

A pass says how one site's matrix is divided. Here it is found which sites come, their moments, what they are refitted
towards, how the parts stand in the graph, and that the bias takes up the mean of what is lost.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgepress.compressor.numerics.least_squares import MOST_OUTPUTS, Moments, refit
from edgepress.compressor.observe import (
    NEW,
    group_moments,
    output_moments,
    own_moments,
    restructured,
    site_moments,
    wide,
)
from edgepress.compressor.origins import Origins
from edgepress.compressor.passes.base import Context, Outcome, Skipped
from edgepress.compressor.passes.shrink import refit_site, refittable
from edgepress.compressor.protocols import Array, Matrix
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

ADDEND_OPTIONAL = 11
"""First opset whose Gemm needs no third input."""

COPIES = "_copies"
"""Put behind a part's name, it names the node that lays its input side by side."""


@dataclass(frozen=True)
class Part:
    """One of the nodes that a site becomes.

    Attributes:
        weights: in the operator's order [out, in per group, *kernel].
        axes: the spatial axes that it holds: strides, dilations and padding along them are its own.
        groups: of a Conv.
        copies: how often its input stands side by side, on the axis of channels, to make up for its groups.
    """

    weights: Matrix
    axes: tuple[int, ...] = ()
    groups: int = 1
    copies: int = 1


Parts = Sequence[Part]
"""First to last."""


@dataclass(frozen=True)
class Whole:
    """A site that is to be split.

    Attributes:
        site: the site.
        weights: W [out, in] in float64, refitted towards the original where its inputs have moved.
        bias: b [out]; None where the operator has none.
        moments: of all samples; Y are the original's outputs where the site was refitted.
    """

    site: Site
    weights: Matrix
    bias: Array | None
    moments: Moments


def split_in_order(
    model: ir.Model,
    wanted: Collection[str],
    split: Callable[[Site, bool, Context], str | None],
    context: Context,
    *,
    follow: bool,
) -> Outcome:
    """Split sites of a model in place, front to back, and refit those that read changed values on the way.

    Args:
        model: changed in place.
        wanted: names of the sites to split.
        split: splits one, given whether it is to be refitted towards the original first; or says why not.
        context: what may be looked at.
        follow: refit the sites after them, too.
    """
    known = {site.name for site in find_sites(model)}
    skipped = [Skipped(name, "no such site") for name in wanted if name not in known]
    changed: list[str] = []
    different: set[ir.Value] = set()
    before, walked, origins = restructured(model), walking(context), Origins(model)
    for node in list(model.graph):
        site = site_of(node)
        moved = any(v in different for v in node.inputs if v is not None)
        if site is not None and site.name in wanted:
            fits = not (wide(site) or site.transposed_conv or NEW in site.y.meta)
            paired = (moved or before) and fits
            why = split(site, paired, walked if paired else context)
            if why is None:
                changed.append(site.name)
                moved = True
            else:
                skipped.append(Skipped(site.name, why))
        elif follow and site is not None and moved and refittable(site, context):
            refit_site(model, site, walked, origins)
        if moved:
            different.update(node.outputs)
    return Outcome(bool(changed), tuple(changed), tuple(skipped))


def unsplittable(site: Site, context: Context) -> str | None:
    """Why no pass can split a site, or None."""
    if context.left_by_user(site.name):
        return "--leave names it"
    if context.stream is None:
        return "needs samples"
    if site.bias_index is not None and site.bias() is None:
        return "its bias is not constant"
    if site.outputs > MOST_OUTPUTS:
        return f"it has over {MOST_OUTPUTS} outputs"
    if not np.isfinite(site.weight).all():
        return "its weights are not finite"
    return None


def whole(model: ir.Model, site: Site, context: Context, *, paired: bool) -> Whole:
    """A site as it is to be split.

    Args:
        model: holds the site.
        site: one that is not `unsplittable`.
        context: with a stream.
        paired: its inputs differ from the original's, so it is refitted towards the original first.
    """
    fit, held = (
        site_moments(model, site, context, paired=True) if paired else own_moments(model, site, context)
    )
    weights, bias = site.matrix().astype(np.float64), site.bias()
    if paired:
        transposed, fitted = refit(fit, held, weights.T)
        weights, bias = transposed.T, None if bias is None else fitted.astype(np.float32)
    return Whole(site, weights, bias, fit + held)


def wholes(model: ir.Model, site: Site, context: Context, *, paired: bool) -> list[Whole] | None:
    """`whole` of each group of a site; of a ConvTranspose, which is not refitted, with the moments of outputs alone.

    Returns:
        None where its groups have too many inputs.
    """
    if site.dense:
        return [whole(model, site, context, paired=paired)]
    weights, bias = site.matrix().astype(np.float64), site.bias()
    if site.transposed_conv:
        return [Whole(site, weights, bias, output_moments(model, site, context))]
    seen = group_moments(model, site, context, outputs=True, paired=paired)
    if seen is None:
        return None
    found = []
    own = [None] * site.groups if bias is None else np.split(bias, site.groups)
    for matrix, own_bias, fit, held in zip(np.split(weights, site.groups), own, *seen, strict=True):
        if paired:
            transposed, fitted = refit(fit, held, matrix.T)
            found.append(Whole(site, transposed.T, fitted.astype(np.float32), fit + held))
        else:
            found.append(Whole(site, matrix, own_bias, fit + held))
    return found


def take_up_mean(of: Whole, kept: Matrix) -> None:
    """Give a site the bias with which the mean of its outputs stays.

    Args:
        of: the site; where it has no bias nothing is done.
        kept: the mean [out] that its parts give without one.
    """
    if of.bias is not None:
        bias = of.moments.means()[1] - kept
        set_weights(of.site, of.site.matrix(), bias.astype(np.float32))


def replace_by_parts(site: Site, parts: Parts, suffixes: Sequence[str]) -> None:
    """Put parts in the place of a site, in a row; the last is its node.

    Args:
        site: the site.
        parts: of a Gemm or MatMul [out, in] each.
        suffixes: put behind the site's name they name all but the last.
    """
    node, graph, kind = site.node, site.node.graph, site.node.op_type
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{site.name} is not in the main graph")
    values = set(ir.convenience.create_value_mapping(graph, include_subgraphs=True))
    names = {site_name(each) for each in graph}
    attributes, x = dict(node.attributes), site.x

    def add(
        kind: str, name: str, given: Sequence[ir.Value], own: Mapping[str, ir.Attr], inner: str
    ) -> ir.Value:
        """A node before the site's, and what it gives."""
        made = ir.Value(name=unique(f"{site.y.name}_{inner}", values), type=site.y.type)
        made.meta[NEW] = True
        fresh = ir.Node(node.domain, kind, given, own.values(), outputs=[made], name=unique(name, names))
        graph.insert_before(node, fresh)
        return made

    for part, suffix in zip(parts[:-1], suffixes, strict=False):
        name = f"{site.name}{suffix}"
        if part.copies > 1:
            axis = {"axis": ir.AttrInt64("axis", 1)}
            x = add("Concat", f"{name}{COPIES}", [x] * part.copies, axis, "copies")
        own = _attributes(attributes, part) if site.is_conv else attributes
        given = [x, new_constant(graph, name, _stored(site, part.weights))]
        if kind == "Gemm" and graph.opset_imports.get("", ADDEND_OPTIONAL) < ADDEND_OPTIONAL:
            given.append(new_constant(graph, f"{name}_bias", np.zeros(1, site.weight.dtype)))
        x = add(kind, name, given, own, "middle")
    if site.transposed_conv:
        node.op_type = "Conv"
        site = replace(site, out_axis=0, in_axis=1)
    if kind.startswith("Conv"):
        for old in attributes:
            node.attributes.pop(old)
        node.attributes.update(_attributes(attributes, parts[-1]))
    node.replace_input_with(0, x)
    replace_constant(node, 1, _stored(site, parts[-1].weights))


def _stored(site: Site, weights: Matrix) -> Array:
    """A part in the layout and the type of the site's weights."""
    moved = weights if site.out_axis == 0 else weights.swapaxes(0, 1)
    stored: Array = np.ascontiguousarray(moved.astype(site.weight.dtype))
    return stored


def _attributes(whole: Mapping[str, ir.Attr], part: Part) -> dict[str, ir.Attr]:
    """Those of a Conv for a part of it: neutral along the axes that the part does not hold."""
    count = part.weights.ndim - 2
    found = {name: whole[name] for name in ("auto_pad",) if name in whole and part.axes}
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in whole:
            given = whole[name].as_ints()
            own = [value if i % count in part.axes else neutral for i, value in enumerate(given)]
            found[name] = ir.AttrInt64s(name, own)
    found["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(part.weights.shape[2:]))
    if part.groups > 1:
        found["group"] = ir.AttrInt64("group", part.groups)
    return found
