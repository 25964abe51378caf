"""Forms in which a site can be split into thinner ones, whichever pass does it: what each loses, how large it gets.

The strength of `channels`, `space` and `tucker` is a rank (passes/low_rank.py), that of `separable` the filters a
channel (passes/separable.py). A site gets the form that loses least of its outputs' variance where about as many
weights are left.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
import scipy.linalg

from edgepress.compressor.numerics.least_squares import Moments
from edgepress.compressor.numerics.low_rank import Projection
from edgepress.compressor.numerics.separable import loaded, lost, split_depthwise
from edgepress.compressor.observe import own_moments
from edgepress.compressor.passes import low_rank, separable
from edgepress.compressor.passes.base import Context, Pass
from edgepress.compressor.passes.low_rank import COMPARED_AT, LowRank, best_form, projection
from edgepress.compressor.passes.parts import wholes
from edgepress.compressor.passes.separable import DEPTHWISE, Separable
from edgepress.compressor.protocols import Matrix
from edgepress.compressor.sites import Site

Structure = Literal["channels", "space", "tucker", "separable"]

MOST_FILTERS = 4
"""Filters a channel offered: with more, a rank does as well and has fewer values to move."""

MOST_LEFT = 0.9
"""Share of its weights that a split may leave of a site."""

ROUNDS_FORETOLD = 3
"""Rounds of the fit by which `separable` is foretold: what more of them gain is little beside what forms differ by."""


def splits(form: Structure, ranks: tuple[tuple[str, int], ...]) -> Pass:
    """The pass that splits (site, strength) pairs in one form."""
    if form == "separable":
        return Separable(multipliers=ranks, follow=False)
    return LowRank(ranks=ranks, form=form, follow=False)


def recipe_of(turned: Sequence[tuple[str, int, Structure]]) -> tuple[Pass, ...]:
    """The passes that split sites as a whole: (site, strength, form) each."""
    ranks = tuple((name, value) for name, value, form in turned if form != "separable")
    forms = tuple((n, form) for n, _, form in turned if form in ("space", "tucker"))
    filters = tuple((name, value) for name, value, form in turned if form == "separable")
    found: list[Pass] = [LowRank(ranks=ranks, forms=forms)] if ranks else []
    return (*found, Separable(multipliers=filters)) if filters else tuple(found)


def parts_of(form: Structure) -> tuple[str, ...]:
    """What the names of a site's parts end in."""
    return (DEPTHWISE, "") if form == "separable" else low_rank.parts_of(form)


def numbers(site: Site, form: Structure, strength: int) -> int:
    """How many weights the parts of a site have."""
    if form == "separable":
        return strength * site.inputs * (site.taps + site.outputs)
    return low_rank.numbers(site, form, strength, low_rank.inner(site, strength))


def splittable(site: Site, context: Context) -> bool:
    """Whether any form might make a site smaller."""
    return low_rank.unfit(site, 1, context, "channels") is None


def structures(model: ir.Model, site: Site, context: Context) -> list[tuple[Structure, Matrix]]:
    """The forms that may lose least of a site for the weights they leave, and what each loses at every strength.

    Args:
        model: holds the site.
        site: one that is `splittable`.
        context: with a stream.

    Returns:
        (form, e [strengths + 1]) pairs, e a share of the outputs' variance, 1 at 0; the last is the whole site. None
        where the site's groups together have too many inputs.
    """
    if not site.dense:
        groups = wholes(model, site, context, paired=False)
        return (
            [("channels", together([projection(site, g.weights, g.moments) for g in groups]))]
            if groups
            else []
        )
    fit, held = own_moments(model, site, context)
    form, curve = best_form(site, fit + held)
    found: list[tuple[Structure, Matrix]] = [(form, curve)]
    if (
        site.inputs > 1 and separable.refusal(site, 1, context) is None
    ):  # of one input, filters are `channels`
        filters = _separable(site, fit + held, form, curve)
        found += [("separable", filters)] if filters is not None else []
    return found


def compared(site: Site, forms: Sequence[tuple[Structure, Matrix]]) -> list[int]:
    """A strength of each form at which all leave about as many weights: `COMPARED_AT`, or as few as the coarsest can.

    Args:
        site: the site.
        forms: and what each loses by strength.
    """

    def at(form: Structure, curve: Matrix, most: float) -> int:
        fits = [r for r in range(1, len(curve) - 1) if numbers(site, form, r) <= most]
        return max(fits, default=min(1, len(curve) - 1))

    first = [numbers(site, form, at(form, curve, COMPARED_AT * site.weight.size)) for form, curve in forms]
    return [at(form, curve, min(first)) for form, curve in forms]


def _separable(site: Site, total: Moments, form: Structure, curve: Matrix) -> Matrix | None:
    """What `separable` loses by filters a channel, where that is less than another form does for as many weights.

    None where it is not, or cannot be told, or would make nothing smaller enough. It is told at one strength first: a
    fit of each takes longer than the spectra of all other forms.
    """
    most = min(MOST_FILTERS, site.taps - 1, site.outputs - 1)
    strengths = [
        m for m in range(1, most + 1) if numbers(site, "separable", m) < MOST_LEFT * site.weight.size
    ]
    if not strengths:
        return None
    kernel = site.matrix().astype(np.float64).reshape(site.outputs, site.inputs, site.taps)
    gram = loaded(kernel, total.centred()[0], total.rounding())

    def foretold(multiplier: int) -> float:
        return lost(kernel, gram, *split_depthwise(kernel, gram, multiplier, ROUNDS_FORETOLD))

    rank, at = compared(site, [(form, curve), ("separable", np.zeros(len(strengths) + 2))])
    try:
        first = foretold(at)
        if first >= curve[rank]:
            return None
        found = [first if m == at else foretold(m) for m in strengths]
    except scipy.linalg.LinAlgError:
        return None
    return np.minimum.accumulate([1.0, *found, 0.0])


def together(groups: Sequence[Projection]) -> Matrix:
    """What groups that are all split at one rank lose, as a share of the variance of all their outputs: [rank + 1]."""
    carried = np.asarray([group.carried.sum() for group in groups])
    each = np.asarray([group.lost() for group in groups])
    total: Matrix = carried @ each / (carried.sum() or 1.0)
    return total
