"""Split a site into thinner ones, one after another: W → U V, in one of three forms.

    channels   k×k to r channels, then 1×1             Gemm, MatMul, Conv and ConvTranspose of any rank
    space      k×1 to r channels, then 1×k             2-D Conv: the composition of two directions
    tucker     1×1 to p, k×k to q, then 1×1            Conv of any rank, narrow on both sides

Strides, dilations and padding go to the part that holds their axis. Of a grouped Conv each group is split, all at the
same rank, and all parts are grouped. A ConvTranspose becomes a thinner one and a 1×1 Conv. Directions are those in
which the outputs really vary (numerics/low_rank.py), and the matrix is refitted towards the original's outputs before
it is split; the bias takes up the mean of what is lost (Golub & Reinsch 1970; Jaderberg et al. 2014; Kim et al. 2016;
Çallı 2017 §1.3.1).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics import low_rank as lr
from edgepress.compressor.numerics.least_squares import MOST_OUTPUTS, Moments
from edgepress.compressor.observe import WIDEST, wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.parts import (
    Part,
    Parts,
    Whole,
    replace_by_parts,
    split_in_order,
    unsplittable,
    wholes,
)
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.sites import Site, find_sites, set_weights, site_of

__all__ = ["CORE", "INNER", "MOST_OUTPUTS", "Cut", "Form", "LowRank", "projection", "refusal", "split"]

INNER = "_v"
"""Put behind a site's name, it names the first of its parts."""

CORE = "_k"
"""The same of the part in the middle."""

COMPARED_AT = 0.35
"""Share of its weights that a site keeps where forms are compared."""

Form = Literal["channels", "space", "tucker"]


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace sites by thinner ones.

    Attributes:
        ranks: (site, rank) pairs, the rank of each group; that of a tucker is of the outputs, inputs in proportion.
        energy: share of the output variance that is kept at sites that `ranks` does not name; None leaves them.
        form: `channels`, `space`, or `tucker`.
        forms: (site, form) pairs that differ from that.
        sites: regular expressions of sites that `energy` is for; empty for all.
        follow: refit the sites after them, too.
    """

    kind: ClassVar[str] = "low_rank"
    suffixes: ClassVar[tuple[str, ...]] = (INNER, CORE)
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
        forms = dict(self.forms)
        wanted: dict[str, int | None] = dict(self.ranks)
        known = [site.name for site in find_sites(model)]
        if self.energy is not None:
            chosen = [n for n in known if not self.sites or any(re.search(p, n) for p in self.sites)]
            wanted = dict.fromkeys(chosen) | wanted

        def split_one(site: Site, paired: bool, context: Context) -> str | None:
            rank, form = wanted[site.name], forms.get(site.name, self.form)
            why = unfit(site, rank, context, form)
            return why or split(model, site, Cut(form, rank, self.energy or 1.0, paired), context)

        outcome = split_in_order(model, wanted, split_one, context, follow=self.follow)
        absent = [Skipped(n, "no such site") for n in forms if n not in known and n not in wanted]
        return replace(outcome, skipped=(*absent, *outcome.skipped))


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
    """Why a dense site cannot be split at this rank, or at any where none is given; or None."""
    return unfit(site, rank, context, form) if site.dense else "it is not dense"


def unfit(site: Site, rank: int | None, context: Context, form: Form) -> str | None:
    """Why any site cannot be split at this rank, or at any where none is given; or None."""
    if why := unsplittable(site, context):
        return why
    kernel = site.weight.shape[2:] if site.is_conv else ()
    if site.transposed_conv and (form != "channels" or site.groups > 1):
        return "transposed convolutions are split into channels, and only where there is one group"
    if form == "space" and (len(kernel) != 2 or min(kernel) < 2):
        return "only kernels of more than one row and column are split in space"
    if form == "tucker" and site.taps == 1:
        return "a kernel of one tap has no core"
    if (form != "channels" or site.groups > 1) and wide(site):
        return f"it has over {WIDEST} inputs"
    rows, columns = site.matrix().shape
    if rank is not None and (rank < 1 or numbers(site, form, rank, inner(site, rank)) >= site.weight.size):
        return f"rank {rank} does not make {rows} × {columns} smaller"
    return None


def inner(site: Site, rank: int) -> int:
    """Channels of a tucker's core's inputs, of each group, where its outputs are of this rank."""
    most = min(site.inputs, site.outputs * site.taps) // site.groups  # the rank of the inputs' unfolding
    return min(max(round(rank * site.inputs / site.outputs), 1), most)


def numbers(site: Site, form: Form, rank: int, narrow: int) -> int:
    """How many weights the parts of a site have.

    Args:
        site: the site.
        form: see the module.
        rank: of the outputs of a group.
        narrow: of a tucker's inputs, of each group.
    """
    inputs = site.inputs  # of all groups, each rank times its own
    if form == "space":
        rows, columns = (int(size) for size in site.weight.shape[2:])
        return rank * (inputs * rows + site.outputs * columns)
    if form == "tucker":
        return narrow * inputs + site.groups * rank * narrow * site.taps + site.outputs * rank
    return rank * (site.outputs + inputs * site.taps)


def parts_of(form: Form) -> tuple[str, ...]:
    """What the names of a site's parts end in."""
    return (INNER, CORE, "") if form == "tucker" else (INNER, "")


def best_form(site: Site, total: Moments) -> tuple[Form, Matrix]:
    """The form that loses least where a site keeps `COMPARED_AT` of its weights, and what it loses at each rank.

    Args:
        site: a dense site.
        total: its moments.
    """
    weights = site.matrix().astype(np.float64)
    plain = projection(site, weights, total).lost()
    found: dict[Form, Matrix] = {"channels": plain}
    if site.is_conv and site.taps > 1 and not wide(site):
        kernel, gram = weights.reshape(site.outputs, site.inputs, -1, 1), total.centred()[0]
        narrow = lr.unfolded_in_channels(kernel, gram).lost()
        found["tucker"] = np.minimum(plain + narrow[[inner(site, r) for r in range(len(plain))]], 1.0)
        if site.weight.ndim == 4 and min(site.weight.shape[2:]) > 1:
            found["space"] = lr.unfolded_in_space(weights.reshape(site.weight.shape), gram).lost()

    def at(form: Form) -> float:
        most = COMPARED_AT * weights.size
        fits = [r for r in range(1, len(found[form])) if numbers(site, form, r, inner(site, r)) <= most]
        return float(found[form][max(fits, default=0)])

    form = min(found, key=at)
    return form, found[form]


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
    groups = wholes(model, site, context, paired=cut.paired)
    if groups is None:
        return "its groups together have too many inputs"
    multiple = context.target.channel_multiple if context.target else 1
    each = factorised(site, groups, cut, multiple)
    parts = [
        Part(np.concatenate([one.weights for one in some]), some[0].axes, site.groups)
        for some in zip(*each, strict=True)
    ]
    if sum(part.weights.size for part in parts) >= site.weight.size:
        return f"{cut.energy:.0%} of its outputs' variance needs all of it"
    means = [
        of.moments.means()[1] - _mean_kept(own, of.moments, of.bias)
        for own, of in zip(each, groups, strict=True)
        if of.bias is not None
    ]
    replace_by_parts(site, parts, (INNER, CORE))
    last = site_of(site.node)
    if means and last is not None:
        set_weights(last, last.matrix(), np.concatenate(means).astype(np.float32))
    return None


def factorised(site: Site, groups: Sequence[Whole], cut: Cut, multiple: int = 1) -> list[Parts]:
    """The parts of each group of a site, all of the same rank: that of the group which needs most.

    Args:
        site: the site.
        groups: W [out, in] of each, with the moments of what it reads; one where the site is dense.
        cut: how.
        multiple: a rank that is to be found is rounded up to this.
    """
    kernel = site.weight.shape[2:] if "Conv" in site.node.op_type else ()
    shape = (site.outputs // site.groups, site.inputs // site.groups, *kernel)
    axes, ones = tuple(range(len(kernel))), (1,) * len(kernel)

    def rank(of: Sequence[lr.Projection], share: float) -> int:
        most = max(each.rank_for(share) for each in of)
        return min(-(-most // multiple) * multiple, len(of[0].carried))

    weights, grams = [of.weights for of in groups], [of.moments.centred()[0] for of in groups]
    if cut.form == "space":
        kernels = [w.reshape(shape) for w in weights]
        unfolded = [lr.unfolded_in_space(w, g) for w, g in zip(kernels, grams, strict=True)]
        found = cut.rank or rank(unfolded, cut.energy)
        cuts = [lr.split_in_space(*of, found) for of in zip(kernels, grams, unfolded, strict=True)]
        return [[Part(v, (0,)), Part(u, (1,))] for u, v in cuts]
    plain = [projection(site, of.weights, of.moments) for of in groups]
    if cut.form == "tucker":
        kernels = [w.reshape(*shape[:2], -1, 1) for w in weights]
        share = (1 + cut.energy) / 2  # each of the two projections loses half
        outer = cut.rank or rank(plain, share)
        starts, projected = zip(*(each.factorise(outer) for each in plain), strict=True)
        thin = [each.reshape(-1, *kernels[0].shape[1:]) for each in projected]
        unfolded = [lr.unfolded_in_channels(w, g) for w, g in zip(thin, grams, strict=True)]
        narrow = inner(site, outer) if cut.rank else rank(unfolded, share)
        return [
            [
                Part(v.reshape(*v.shape, *ones)),
                Part(core.reshape(*core.shape[:2], *kernel), axes),
                Part(u.reshape(*u.shape, *ones)),
            ]
            for u, core, v in (
                lr.split_by_tucker(*of, narrow)
                for of in zip(kernels, grams, starts, thin, unfolded, strict=True)
            )
        ]
    found = cut.rank or rank(plain, cut.energy)
    return [
        [Part(v.reshape(len(v), *shape[1:]), axes), Part(u.reshape(*u.shape, *ones))]
        for u, v in (each.factorise(found) for each in plain)
    ]


def projection(site: Site, weights: Matrix, total: Moments) -> lr.Projection:
    """The directions of a site's outputs, from the moments that are kept of it.

    Args:
        site: the site.
        weights: W [out, in], of one group where there are several.
        total: of all samples.
    """
    gram, _, covariance = total.centred()
    if wide(site) or site.transposed_conv:
        return lr.Projection.by_outputs(weights, covariance)
    return lr.Projection.by_inputs(weights, gram)


def _mean_kept(parts: Parts, total: Moments, bias: Array) -> Matrix:
    """The mean [out] that the parts give, without a bias, of inputs whose second moments are known."""
    first, last = parts[0].weights, parts[-1].weights
    if len(parts) == 2 and not parts[1].axes:  # projected: nothing need be known of the inputs
        u = last.reshape(last.shape[:2])
        kept: Matrix = u @ (u.T @ (total.means()[1] - bias))
        return kept
    if len(parts) == 2:
        effective = np.einsum("orj,rci->ocij", last[:, :, 0], first[:, :, :, 0])
    else:
        core = parts[1].weights.reshape(*parts[1].weights.shape[:2], -1)
        u, v = (part.reshape(part.shape[:2]) for part in (last, first))
        effective = np.einsum("oq,qpt,pc->oct", u, core, v)
    return np.asarray(effective.reshape(len(effective), -1) @ total.means()[0])
