"""Split a dense site into thinner ones, one after another: W → U V, in one of three forms.

    channels   k×k to r channels, then 1×1             Gemm, MatMul, Conv of any rank
    space      k×1 to r channels, then 1×k             2-D Conv: the composition of two directions
    tucker     1×1 to p, k×k to q, then 1×1            Conv of any rank, narrow on both sides

Strides, dilations and padding go to the part that holds their axis. Directions are those in which the outputs really
vary (numerics/low_rank.py), and the dense matrix is refitted towards the original's outputs before it is split; the
bias takes up the mean of what is lost (Golub & Reinsch 1970; Jaderberg et al. 2014; Kim et al. 2016; Çallı 2017
§1.3.1).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics import low_rank as lr
from edgepress.compressor.numerics.least_squares import Moments, refit
from edgepress.compressor.observe import NEW, WIDEST, own_moments, restructured, site_moments, wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
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

INNER = "_v"
"""Put behind a site's name, it names the first of its parts."""

CORE = "_k"
"""The same of the part in the middle."""

MOST_OUTPUTS = 4096
"""Outputs of a site up to which it is split: their covariance takes outputs² × 8 bytes several times over, and its
directions outputs³ steps, a minute at this size."""

Form = Literal["channels", "space", "tucker"]
Parts = Sequence[tuple[Matrix, tuple[int, ...]]]
"""Weights in the operator's order [out, in, *kernel] and the spatial axes they hold, first to last."""


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace dense sites by thinner ones.

    Attributes:
        ranks: (site, rank) pairs; the rank of a tucker is that of the outputs, inputs in proportion.
        energy: share of the output variance that is kept at sites that `ranks` does not name; None leaves them.
        form: `channels`, `space`, or `tucker`.
        forms: (site, form) pairs that differ from that.
        sites: regular expressions of sites that `energy` is for; empty for all.
        follow: refit the sites after them, too.
    """

    kind: ClassVar[str] = "low_rank"
    ranks: tuple[tuple[str, int], ...] = ()
    energy: float | None = None
    form: Form = "channels"
    forms: tuple[tuple[str, Form], ...] = ()
    sites: tuple[str, ...] = ()
    follow: bool = True

    def __post_init__(self) -> None:
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"low_rank: energy is {self.energy}", "Choose a share above 0, up to 1.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Split sites of `model` in place, and refit those that read changed values on the way."""
        wanted: dict[str, int | None] = dict(self.ranks)
        forms = dict(self.forms)
        known = {site.name: site for site in find_sites(model)}
        skipped = [Skipped(n, "no such site") for n in {**wanted, **forms} if n not in known]
        if self.energy is not None:
            chosen = [n for n in known if not self.sites or any(re.search(p, n) for p in self.sites)]
            wanted = dict.fromkeys(chosen) | wanted
        changed: list[str] = []
        different: set[ir.Value] = set()
        before, walked = restructured(model), walking(context)
        for node in list(model.graph):
            site = site_of(node)
            moved = any(v in different for v in node.inputs if v is not None)
            if site is not None and site.name in wanted:
                paired = (moved or before) and NEW not in site.y.meta and not wide(site)
                form = forms.get(site.name, self.form)
                why = refusal(site, wanted[site.name], context, form)
                if why is None:
                    cut = Cut(form, wanted[site.name], self.energy or 1.0, paired)
                    why = split(model, site, cut, walked if paired else context)
                if why is None:
                    changed.append(site.name)
                    moved = True
                else:
                    skipped.append(Skipped(site.name, why))
            elif self.follow and site is not None and moved and refittable(site, context):
                refit_site(model, site, walked)
            if moved:
                different.update(node.outputs)
        return Outcome(bool(changed), tuple(changed), tuple(skipped))


@dataclass(frozen=True)
class Cut:
    """How one site is split.

    Attributes:
        form: see the module.
        rank: of the outputs; None for the one that `energy` asks for.
        energy: share of the output variance to keep.
        paired: its inputs differ from the original's, so it is refitted towards the original first.
    """

    form: Form
    rank: int | None
    energy: float
    paired: bool


def refusal(site: Site, rank: int | None, context: Context, form: Form = "channels") -> str | None:
    """Why a site cannot be split at this rank, or at any where none is given; or None."""
    if context.left_by_user(site.name):
        return "--leave names it"
    if not site.dense:
        return "grouped or transposed convolutions are not split"
    if context.stream is None:
        return "needs samples"
    if site.bias_index is not None and site.bias() is None:
        return "its bias is not constant"
    if site.outputs > MOST_OUTPUTS:
        return f"it has over {MOST_OUTPUTS} outputs"
    kernel = site.weight.shape[2:] if site.is_conv else ()
    if form == "space" and (len(kernel) != 2 or min(kernel) < 2):
        return "only kernels of more than one row and column are split in space"
    if form == "tucker" and site.taps == 1:
        return "a kernel of one tap has no core"
    if form != "channels" and wide(site):
        return f"it has over {WIDEST} inputs"
    rows, columns = site.matrix().shape
    if rank is not None and (rank < 1 or numbers(site, form, rank, inner(site, rank)) >= rows * columns):
        return f"rank {rank} does not make {rows} × {columns} smaller"
    return None


def inner(site: Site, rank: int) -> int:
    """Channels of a tucker's core's inputs where its outputs are of this rank."""
    return min(max(round(rank * site.inputs / site.outputs), 1), site.inputs)


def numbers(site: Site, form: Form, rank: int, narrow: int) -> int:
    """How many weights the parts of a site have.

    Args:
        site: the site.
        form: see the module.
        rank: of the outputs.
        narrow: of a tucker's inputs.
    """
    if form == "space":
        rows, columns = (int(size) for size in site.weight.shape[2:])
        return rank * (site.inputs * rows + site.outputs * columns)
    if form == "tucker":
        return narrow * site.inputs + rank * narrow * site.taps + site.outputs * rank
    return rank * (site.outputs + site.inputs * site.taps)


def split(model: ir.Model, site: Site, cut: Cut, context: Context) -> str | None:
    """Replace one site by two or three nodes; the last keeps name and output.

    Args:
        model: changed in place.
        site: one of its sites.
        cut: how.
        context: with a stream.

    Returns:
        Why it was left alone, where the rank turns out to make nothing smaller.
    """
    fit, held = (
        site_moments(model, site, context, paired=True) if cut.paired else own_moments(model, site, context)
    )
    total, weights, bias = fit + held, site.matrix().astype(np.float64), site.bias()
    if cut.paired:
        transposed, fitted = refit(fit, held, weights.T)
        weights, bias = transposed.T, None if bias is None else fitted.astype(np.float32)
    parts = _parts(site, weights, total, cut, context)
    if sum(part.size for part, _ in parts) >= weights.size:
        return f"{cut.energy:.0%} of its outputs' variance needs all of it"
    if bias is not None:
        mean = total.means()[1] - _mean_kept(parts, total, bias)
        set_weights(site, site.matrix(), mean.astype(np.float32))
    replace_by_parts(site, parts)
    return None


def _parts(site: Site, weights: Matrix, total: Moments, cut: Cut, context: Context) -> Parts:
    """The parts of a site with W [out, in]; a rank that is to be found is rounded up to what kernels like."""
    shape = (site.outputs, site.inputs, *site.weight.shape[2:]) if site.is_conv else weights.shape
    axes, multiple = tuple(range(len(shape) - 2)), context.target.channel_multiple if context.target else 1
    ones = (1,) * len(axes)

    def rank(of: lr.Projection, share: float) -> int:
        return min(-(-of.rank_for(share) // multiple) * multiple, len(of.carried))

    plain = projection(site, weights, total)
    if cut.form == "space":
        kernel, gram = weights.reshape(shape), total.centred()[0]
        unfolded = lr.unfolded_in_space(kernel, gram)
        u, v = lr.split_in_space(kernel, gram, unfolded, cut.rank or rank(unfolded, cut.energy))
        return [(v, (0,)), (u, (1,))]
    if cut.form == "tucker":
        kernel, gram = weights.reshape(*shape[:2], -1, 1), total.centred()[0]
        share = (1 + cut.energy) / 2  # each of the two projections loses half
        outer = cut.rank or rank(plain, share)
        thin = plain.factorise(outer)[1].reshape(outer, *kernel.shape[1:])
        unfolded = lr.unfolded_in_channels(thin, gram)
        narrow = inner(site, outer) if cut.rank else rank(unfolded, share)
        u, core, v = lr.split_by_tucker(kernel, gram, thin, unfolded, narrow)
        middle = core.reshape(*core.shape[:2], *shape[2:])
        return [(v.reshape(*v.shape, *ones), ()), (middle, axes), (u.reshape(*u.shape, *ones), ())]
    u, v = plain.factorise(cut.rank or rank(plain, cut.energy))
    return [(v.reshape(len(v), *shape[1:]), axes), (u.reshape(*u.shape, *ones), ())]


def projection(site: Site, weights: Matrix, total: Moments) -> lr.Projection:
    """The directions of a site's outputs, from the moments that are kept of it.

    Args:
        site: the site.
        weights: W [out, in].
        total: of all samples.
    """
    gram, _, covariance = total.centred()
    if wide(site):
        return lr.Projection.by_outputs(weights, covariance)
    return lr.Projection.by_inputs(weights, gram)


def replace_by_parts(site: Site, parts: Parts) -> None:
    """Put parts in the place of a site, in a row; the last is its node.

    Args:
        site: the site.
        parts: see `Parts`; of a Gemm or MatMul [out, in].
    """
    node, graph = site.node, site.node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{site.name} is not in the main graph")
    values = set(ir.convenience.create_value_mapping(graph, include_subgraphs=True))
    names = {site_name(each) for each in graph}
    attributes, x = dict(node.attributes), site.x
    for (weights, axes), suffix in zip(parts[:-1], (INNER, CORE), strict=False):
        name = unique(f"{site.name}{suffix}", names)
        names.add(name)
        middle = ir.Value(name=unique(f"{site.y.name}_middle", values), type=site.y.type)
        values.add(middle.name or "")
        middle.meta[NEW] = True
        own = _attributes(attributes, weights, axes) if site.is_conv else attributes
        given = [x, new_constant(graph, name, _stored(site, weights))]
        graph.insert_before(node, ir.Node(node.domain, node.op_type, given, own, outputs=[middle], name=name))
        x = middle
    weights, axes = parts[-1]
    if site.is_conv:
        for old in attributes:
            node.attributes.pop(old)
        node.attributes.update(_attributes(attributes, weights, axes))
    node.replace_input_with(0, x)
    replace_constant(node, 1, _stored(site, weights))


def _stored(site: Site, weights: Matrix) -> Array:
    """A part in the layout and the type of the site's weights."""
    moved = weights if site.is_conv or site.out_axis == 0 else weights.T
    stored: Array = np.ascontiguousarray(moved.astype(site.weight.dtype))
    return stored


def _attributes(whole: Mapping[str, ir.Attr], weights: Matrix, axes: tuple[int, ...]) -> dict[str, ir.Attr]:
    """Those of a Conv for a part of it: neutral along the axes that the part does not hold."""
    count = weights.ndim - 2
    found = {name: whole[name] for name in ("auto_pad",) if name in whole and axes}
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in whole:
            given = whole[name].as_ints()
            part = [value if i % count in axes else neutral for i, value in enumerate(given)]
            found[name] = ir.AttrInt64s(name, part)
    found["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(weights.shape[2:]))
    return found


def _mean_kept(parts: Parts, total: Moments, bias: Array) -> Matrix:
    """The mean [out] that the parts give, without a bias, of inputs whose second moments are known."""
    first, last = parts[0][0], parts[-1][0]
    if len(parts) == 2 and not parts[1][1]:  # projected: nothing need be known of the inputs
        u = last.reshape(last.shape[:2])
        kept: Matrix = u @ (u.T @ (total.means()[1] - bias))
        return kept
    if len(parts) == 2:
        effective = np.einsum("orj,rci->ocij", last[:, :, 0], first[:, :, :, 0])
    else:
        core = parts[1][0].reshape(*parts[1][0].shape[:2], -1)
        u, v = (part.reshape(part.shape[:2]) for part in (last, first))
        effective = np.einsum("oq,qpt,pc->oct", u, core, v)
    return np.asarray(effective.reshape(len(effective), -1) @ total.means()[0])
