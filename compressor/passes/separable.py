"""Replace a k×k convolution by a depthwise one with m filters a channel and a pointwise one: W_c ≈ P_c D_c.

    Conv [out, in, *kernel]   →   Conv [in · m, 1, *kernel], group = in · m   →   Conv [out, in · m, 1 …]

For m > 1 the input stands side by side m times (Concat): runtimes have quick kernels for one filter a channel alone,
and copies cost less than those gain (onnxruntime 1.31 on x86: 299 → 174 µs for a VGG with m of 2 and 3). One channel
alone takes a dense convolution.

Strides, dilations and padding stay with the depthwise part. Which filters: `numerics/separable.py`; where the inputs
have moved, the kernel is refitted towards the original's outputs first, and the bias takes up the mean of what is lost
(Çallı 2017 §1.4.2; Sifre 2014).
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import scipy.linalg

from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.separable import (
    composed,
    loaded,
    most_multiplier,
    split_depthwise,
    split_to_share,
)
from edgepress.compressor.observe import WIDEST, wide
from edgepress.compressor.passes.base import Context, Outcome, Pass, check_patterns
from edgepress.compressor.passes.parts import (
    Part,
    replace_by_parts,
    split_in_order,
    take_up_mean,
    unsplittable,
    whole,
)
from edgepress.compressor.sites import Site, find_sites

DEPTHWISE = "_d"
"""Put behind a site's name, it names the first of its parts."""


@dataclass(frozen=True)
class Separable(Pass):
    """Replace dense convolutions by depthwise and pointwise ones.

    Attributes:
        multipliers: (site, filters a channel) pairs.
        multiplier: filters a channel at sites that `multipliers` does not name; None leaves them.
        energy: in place of that, the share of the output variance that is kept there.
        sites: regular expressions of sites that `multiplier` or `energy` is for; empty for all.
        follow: refit the sites after them, too.
    """

    kind: ClassVar[str] = "separable"
    suffixes: ClassVar[tuple[str, ...]] = (DEPTHWISE,)
    multipliers: tuple[tuple[str, int], ...] = ()
    multiplier: int | None = None
    energy: float | None = None
    sites: tuple[str, ...] = ()
    follow: bool = True

    def __post_init__(self) -> None:
        if self.multiplier is not None and self.energy is not None:
            raise UsageError("separable: multiplier and energy are both given", "Choose one of them.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"separable: energy is {self.energy}", "Choose a share above 0, up to 1.")
        for given in (self.multiplier, *(m for _, m in self.multipliers)):
            if given is not None and given < 1:
                raise UsageError(f"separable: a multiplier is {given}", "Choose 1 or more filters a channel.")
        check_patterns(self.kind, self.sites)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Split sites of `model` in place, and refit those that read changed values on the way."""
        wanted: dict[str, int | None] = dict(self.multipliers)
        if self.multiplier is not None or self.energy is not None:
            names = [site.name for site in find_sites(model)]
            chosen = [n for n in names if not self.sites or any(re.search(p, n) for p in self.sites)]
            wanted = {**dict.fromkeys(chosen, self.multiplier), **wanted}

        def split_one(site: Site, paired: bool, context: Context) -> str | None:
            multiplier = wanted[site.name]
            why = refusal(site, multiplier, context)
            return why or split(model, site, context, multiplier, self.energy or 1.0, paired=paired)

        return split_in_order(model, wanted, split_one, context, follow=self.follow)


def refusal(site: Site, multiplier: int | None, context: Context) -> str | None:
    """Why a site cannot be split with so many filters a channel, or with any where none is given; or None."""
    if not site.dense:
        return "grouped or transposed convolutions are not split"
    if why := unsplittable(site, context):
        return why
    if not site.is_conv or site.taps == 1:
        return "only convolutions of more than one tap are separable"
    if wide(site):
        return f"it has over {WIDEST} inputs"
    if (multiplier or 1) > most_multiplier(site.outputs, site.taps):
        shape = " × ".join(str(size) for size in site.weight.shape)
        return f"{multiplier or 1} filters a channel do not make {shape} smaller"
    return None


def split(
    model: ir.Model, site: Site, context: Context, multiplier: int | None, energy: float, *, paired: bool
) -> str | None:
    """Replace one site by two nodes; the last keeps name and output.

    Args:
        model: changed in place.
        site: one of its sites, not refused.
        context: with a stream.
        multiplier: filters a channel; None for as many as `energy` asks for.
        energy: share of the output variance to keep.
        paired: its inputs differ from the original's, so it is refitted towards the original first.

    Returns:
        Why it was left alone, where it turns out that it must be.
    """
    of = whole(model, site, context, paired=paired)
    if not of.moments.rows:
        return "no sample has finite values there"
    kernel = of.weights.reshape(site.outputs, site.inputs, site.taps)
    gram = loaded(kernel, of.moments.centred()[0], of.moments.rounding())
    most = most_multiplier(site.outputs, site.taps)
    try:
        found = (
            split_depthwise(kernel, gram, multiplier)
            if multiplier
            else split_to_share(kernel, gram, energy, most)
        )
    except scipy.linalg.LinAlgError:
        return "its inputs' moments are singular"
    if found is None:
        return f"{energy:.0%} of its outputs' variance needs all of it"
    mixed, filters = found
    shape, rank = site.weight.shape[2:], site.weight.ndim - 2
    # One filter of every channel, then the next one of every channel: copy by copy of the input.
    depthwise = filters.swapaxes(0, 1).reshape(-1, 1, *shape)
    pointwise = mixed.swapaxes(1, 2).reshape(site.outputs, -1, *(1,) * rank)
    with np.errstate(over="ignore"):
        parts = [part.astype(site.weight.dtype) for part in (depthwise, pointwise)]
    if not all(np.isfinite(part).all() for part in parts):
        return f"its parts do not fit {site.weight.dtype}"
    take_up_mean(of, composed(mixed, filters) @ of.moments.means()[0])
    copies = filters.shape[1] if site.inputs > 1 else 1
    first = Part(depthwise, tuple(range(rank)), site.inputs * copies, copies)
    replace_by_parts(site, [first, Part(pointwise)], (DEPTHWISE,))
    return None
