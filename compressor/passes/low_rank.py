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
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics import low_rank as lr
from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.observe import WIDEST, wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.parts import (
    MOST_OUTPUTS,
    Part,
    Parts,
    replace_by_parts,
    split_in_order,
    take_up_mean,
    unsplittable,
    whole,
)
from edgepress.compressor.protocols import Array, Matrix
from edgepress.compressor.sites import Site, find_sites

__all__ = ["CORE", "INNER", "MOST_OUTPUTS", "Cut", "Form", "LowRank", "projection", "refusal", "split"]

INNER = "_v"
"""Put behind a site's name, it names the first of its parts."""

CORE = "_k"
"""The same of the part in the middle."""

Form = Literal["channels", "space", "tucker"]


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
            why = refusal(site, rank, context, form)
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
    """Why a site cannot be split at this rank, or at any where none is given; or None."""
    if why := unsplittable(site, context):
        return why
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
    of = whole(model, site, context, paired=cut.paired)
    parts = _parts(site, of.weights, of.moments, cut, context)
    if sum(part.weights.size for part in parts) >= of.weights.size:
        return f"{cut.energy:.0%} of its outputs' variance needs all of it"
    if of.bias is not None:
        take_up_mean(of, _mean_kept(parts, of.moments, of.bias))
    replace_by_parts(site, parts, (INNER, CORE))
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
        return [Part(v, (0,)), Part(u, (1,))]
    if cut.form == "tucker":
        kernel, gram = weights.reshape(*shape[:2], -1, 1), total.centred()[0]
        share = (1 + cut.energy) / 2  # each of the two projections loses half
        outer = cut.rank or rank(plain, share)
        thin = plain.factorise(outer)[1].reshape(outer, *kernel.shape[1:])
        unfolded = lr.unfolded_in_channels(thin, gram)
        narrow = inner(site, outer) if cut.rank else rank(unfolded, share)
        u, core, v = lr.split_by_tucker(kernel, gram, thin, unfolded, narrow)
        middle = core.reshape(*core.shape[:2], *shape[2:])
        return [Part(v.reshape(*v.shape, *ones)), Part(middle, axes), Part(u.reshape(*u.shape, *ones))]
    u, v = plain.factorise(cut.rank or rank(plain, cut.energy))
    return [Part(v.reshape(len(v), *shape[1:]), axes), Part(u.reshape(*u.shape, *ones))]


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
