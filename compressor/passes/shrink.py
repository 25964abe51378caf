"""Shrink whole neurons, channels and hidden units, and refit what reads them towards the original's outputs.

Which go says the criterion: backward elimination on the second moments of the readers' inputs, each removal charged
with the error that is left once the readers are refitted (`obs`: optimal brain surgeon for blocks of columns, Hassibi &
Stork 1993); the average percentage of zeros (`zeros`: Hu et al. 2016, network trimming; Çallı 2017 §1.5.2); activations
far below those of the layer (`outliers`: Çallı 2017 §2.2.2); output-weighted pivoted QR (`qr`); or the units' Fisher
information (`fisher`: Çallı 2017 §1.5.4, a heading without text; what stands for it is told in `numerics.saliency`).

What it costs to remove them is put back in closed form: reader after reader, its weights are fitted by ridge regression
from the shrunk net's activations to the original's pre-activations. Readers that are no dense sites (ConvTranspose,
recurrent layers) get what stays to tell what went (`readers.fold`). Shrinking is not masking: the arrays get smaller.
With `cycles` all that is done again and again, on what the cycle before it left (Çallı 2017 §2.2.1).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepress.compressor.channels import THE_OUTPUT, Channels, Group, analyse, groups_of
from edgepress.compressor.errors import UsageError
from edgepress.compressor.numerics.least_squares import refit
from edgepress.compressor.numerics.saliency import Activity, outliers, rounded_up
from edgepress.compressor.observe import WIDEST, distance, kept_channels, own_moments, unfittable
from edgepress.compressor.passes.base import Context, Outcome, Pass, Skipped, check_patterns
from edgepress.compressor.passes.cutting import remove_units
from edgepress.compressor.passes.readers import fold, too_wide
from edgepress.compressor.passes.refitting import refit_following, refit_site, refittable, write_fit
from edgepress.compressor.passes.saliency import (
    BY_ACTIVITY,
    Criterion,
    Curve,
    activities,
    curve_by_activity,
    group_curve,
    group_curves,
)
from edgepress.compressor.recurrent import recurrence_of
from edgepress.compressor.sites import find_sites

__all__ = [
    "Curve", "Shrink", "group_curve", "leaving", "left_by_user", "refit_following", "refit_site", "refittable",
    "remove_units", "shrinkable", "shrunk_alone", "write_fit",
]  # fmt: skip

TOO_WIDE = "a site that reads its channels is too large to be refitted: {}"

NO_REFIT = "nothing that could be refitted reads its channels; a recipe can shrink it"


@dataclass(frozen=True)
class Shrink(Pass):
    """Remove channels, neurons and hidden units, then refit the sites that follow.

    Attributes:
        widths: (group, channels to keep) pairs; a group bears the name of the first site that makes it.
        compensate: refit the dense sites that read changed values.
        criterion: which go first: those whose loss is least once readers are refitted (`obs`), those that are most
            often zero (`zeros`) or weakest (`outliers`), those that others of the layer span (`qr`), or those of least
            Fisher information (`fisher`).
        share: of the channels of every group that `widths` does not name, this much goes.
        zero_rate: of `zeros`, without `widths` and `share`: what is zero at least so often goes; 1 for what is dead.
        sigmas: of `outliers`, likewise: what is weaker than the layer's mean by so many standard deviations goes.
        cycles: measure, remove and refit so many times, towards `widths` and `share` step by step, else until nothing
            more falls below the threshold.
        sites: regular expressions of groups that `share` and thresholds are for; empty for all.
        leave: names of sites that keep their channels.
    """

    kind: ClassVar[str] = "shrink"
    widths: tuple[tuple[str, int], ...] = ()
    compensate: bool = True
    criterion: Criterion = "obs"
    share: float | None = None
    zero_rate: float = 1.0
    sigmas: float = 2.0
    cycles: int = 1
    sites: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share < 1:
            raise UsageError(f"{self.kind}: share is {self.share}", "Choose a share of at least 0, below 1.")
        if not 0 < self.zero_rate <= 1:
            raise UsageError(f"{self.kind}: zero_rate is {self.zero_rate}", "Choose more than 0, at most 1.")
        if not self.sigmas >= 0:
            raise UsageError(f"{self.kind}: sigmas is {self.sigmas}", "Choose 0 or more.")
        if self.cycles < 1:
            raise UsageError(f"{self.kind}: cycles is {self.cycles}", "Choose at least 1.")
        check_patterns(self.kind, self.sites)

    @property
    def by_threshold(self) -> bool:
        """Whether the samples say how many go."""
        return self.criterion in BY_ACTIVITY and not self.widths and self.share is None

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Shrink groups of `model` in place."""
        channels = analyse(model)
        groups, stuck = groups_of(model, channels)
        chosen, skipped = self._chosen(channels, groups, stuck, context)
        if context.stream is None:
            return Outcome(False, (), tuple(Skipped(name, "needs samples") for name in chosen))
        full = {group.name: len(group.units) for group in groups}
        goals = {name: self._goal(name, full[name], context) for name in chosen}
        changed: dict[str, None] = {}
        left = dict(full)
        for cycle in range(1, self.cycles + 1):
            todo = [group for group in groups if group.name in chosen]
            seen = activities(model, channels, todo, context) if self.criterion in BY_ACTIVITY else []
            part = cycle / self.cycles
            keep = {g.name: round(full[g.name] * (goals[g.name] / full[g.name]) ** part) for g in todo}
            removed = self._leaving(model, channels, todo, seen, keep, context)
            if removed:
                known = list(zip(todo, seen, strict=False))
                changed |= dict.fromkeys(self._remove(model, channels, removed, known, context))
                channels = analyse(model)
                groups, _ = groups_of(model, channels)
                left |= {group.name: len(group.units) for group in groups}
            elif self.by_threshold:
                break
        idle = [
            Skipped(n, why)
            for n in chosen
            if left[n] == full[n] and (why := self._idle(n, goals[n], full[n]))
        ]
        return Outcome(bool(changed), tuple(changed), (*skipped, *idle))

    def _chosen(
        self, channels: Channels, groups: Sequence[Group], stuck: Sequence[Skipped], context: Context
    ) -> tuple[list[str], tuple[Skipped, ...]]:
        """Names of the groups to shrink, and of what was asked for in vain."""
        known = {group.name: group for group in groups}
        reasons = {s.site: s.reason for s in stuck}
        wanted = [name for name, _ in self.widths]
        if self.by_threshold or self.share:
            wanted += [g.name for g in groups if g.name not in wanted and self._matches(g)]
        chosen, skipped = [], []
        for name in dict.fromkeys(wanted):
            group = known.get(name)
            if group is None:
                skipped.append(Skipped(name, reasons.get(name, "no channels to shrink here")))
            elif left_by_user(group, context):
                skipped.append(Skipped(name, "--leave names it"))
            elif any(made in self.leave for made in group.producers):
                skipped.append(Skipped(name, "the recipe leaves it as it is"))
            elif self.criterion not in BY_ACTIVITY and (why := too_large(channels, group)):
                skipped.append(Skipped(name, TOO_WIDE.format(why)))
            else:
                chosen.append(name)
        if self.by_threshold or self.share:  # all were asked for; of outputs nobody expects it
            stays = [s for s in stuck if s.site not in wanted and s.reason != f"channels stay: {THE_OUTPUT}"]
            skipped += [s for s in stays if self._named(s.site)]
        return chosen, tuple(skipped)

    def _matches(self, group: Group) -> bool:
        return any(self._named(name) for name in group.producers)

    def _named(self, name: str) -> bool:
        return not self.sites or any(re.search(p, name) for p in self.sites)

    def _goal(self, name: str, full: int, context: Context) -> int:
        """How many units of a group are to stay in the end, as far as that is known."""
        width = dict(self.widths).get(name)
        if width is not None:
            return width if 0 < width < full else full
        if self.share is None:
            return 0
        return rounded_up(full - round(self.share * full), full, multiple(context))

    def _leaving(
        self,
        model: ir.Model,
        channels: Channels,
        groups: Sequence[Group],
        seen: Sequence[Activity],
        keep: Mapping[str, int],
        context: Context,
    ) -> set[int]:
        """The units that go, so that of each group `keep` stay; `seen` where the criterion looks at activations."""
        if self.by_threshold:
            below = [
                self._below(channels, group, each, context) for group, each in zip(groups, seen, strict=True)
            ]
            return set().union(*below)
        narrower = [at for at, g in enumerate(groups) if 0 < keep[g.name] < len(g.units)]
        todo = [groups[at] for at in narrower]
        curves = (
            [curve_by_activity(groups[at], seen[at], self.criterion) for at in narrower]
            if seen
            else group_curves(model, channels, todo, context, self.criterion)
        )
        pairs = zip(todo, curves, strict=True)
        return set().union(*(leaving(channels, curve, keep[group.name]) for group, curve in pairs))

    def _below(self, channels: Channels, group: Group, seen: Activity, context: Context) -> set[int]:
        """The units below the threshold, but for as many as make up a width that kernels like."""
        if self.criterion == "zeros":
            below = int((seen.zero_rate() >= self.zero_rate).sum())
        else:
            below = int(outliers(seen.strength(), self.sigmas).sum())
        keep = rounded_up(seen.units - below, seen.units, multiple(context)) if below else seen.units
        curve = curve_by_activity(group, seen, self.criterion)
        lowest = Curve(
            curve.order[:below], curve.damage[: below + 1]
        )  # never another in the place of one that stays
        return leaving(channels, lowest, below - (seen.units - keep))

    def _idle(self, name: str, goal: int, full: int) -> str:
        """Why nothing of a group went; empty where nothing was to go."""
        if self.by_threshold:
            return "too few of its channels fall below the threshold for a narrower width that kernels like"
        if goal < full:
            return "a value would lose its last channel"
        named = any(name == each for each, _ in self.widths)
        return "" if named else "rounded up to a width that kernels like, it keeps all its channels"

    def _remove(
        self,
        model: ir.Model,
        channels: Channels,
        removed: set[int],
        seen: Sequence[tuple[Group, Activity]],
        context: Context,
    ) -> list[str]:
        """Take units out, and put back what they did; for those that were always zero that is nothing."""
        dead = {int(u) for group, found in seen for u in group.units[found.zero_rate() == 1]}
        if not self.compensate or removed <= dead:
            return remove_units(model, channels, removed)
        return removed_and_made_good(
            model, channels, removed, context, own=own_fold_pays(model, removed, context)
        )


def removed_and_made_good(
    model: ir.Model, channels: Channels, removed: set[int], context: Context, *, own: bool
) -> list[str]:
    """Take units out and put back what they did; `own` as for `readers.fold`. Gives names as `remove_units` does."""
    fold(model, channels, removed, context, own=own)
    changed = remove_units(model, channels, removed)
    refit_following(model, changed, context)
    return changed


def own_fold_pays(model: ir.Model, removed: set[int], context: Context) -> bool:
    """Whether recurrent layers that lose hidden units are better off if the others take their part in the next state.

    What is told wrongly goes round and round, so that hangs on how much goes: both are tried on copies, and the outputs
    compared with the original's. True where no such layer loses any.
    """
    channels = analyse(model)
    layers = (recurrence_of(node) for node in model.graph)
    states = [v for layer in layers if layer for v in layer.node.outputs if v in channels.tracks]
    if not any(removed.intersection(channels.roots(channels.tracks[v].ids).tolist()) for v in states):
        return True
    moved = []
    for own in (True, False):
        candidate = model.clone()
        removed_and_made_good(candidate, analyse(candidate), removed, context, own=own)
        moved.append(distance(candidate, context))
    return moved[0] <= moved[1]


def multiple(context: Context) -> int:
    """Widths that the target's kernels like are multiples of this."""
    return context.target.channel_multiple if context.target else 1


def too_large(channels: Channels, group: Group) -> str | None:
    """Why second moments of what reads a group are too large to keep, or None."""
    reasons = (unfittable(site) for site in group.consumers)
    others = f"it has over {WIDEST} inputs" if too_wide(channels, group) else None
    return next((why for why in reasons if why), others)


def left_by_user(group: Group, context: Context) -> bool:
    """Whether `--leave` names a site whose weights would change with this group."""
    return any(context.left_by_user(name) for name in group.names)


def leaving(channels: Channels, curve: Curve, width: int) -> set[int]:
    """The units that go, those that hurt least first; no value loses its last one: no kernel runs on nothing.

    Args:
        channels: analysis of the model.
        curve: of one group.
        width: how many units of it to keep; more stay where a value would lose all.
    """
    units = {int(u) for u in curve.order}
    rosters = {frozenset(channels.roots(track.ids).tolist()) for track in channels.tracks.values()}
    left = {roster: len(roster) for roster in rosters if roster <= units}
    gone: set[int] = set()
    for unit in map(int, curve.order):
        holders = [roster for roster in left if unit in roster]
        if len(units) - len(gone) > width and all(left[roster] > 1 for roster in holders):
            gone.add(unit)
            left.update((roster, left[roster] - 1) for roster in holders)
    return gone


def shrunk_alone(model: ir.Model, name: str, width: int, context: Context) -> ir.Model:
    """A copy of the original with one group shrunk and its direct readers refitted, from moments at hand.

    Args:
        model: the normalised original.
        name: a group of it.
        width: units to keep.
        context: with a stream.
    """
    candidate = model.clone()
    channels = analyse(candidate)
    group = next(g for g in groups_of(candidate, channels)[0] if g.name == name)
    curve = group_curve(candidate, channels, group, context)
    before = {s.name: own_moments(candidate, s, context) for s in group.consumers}
    gone = leaving(channels, curve, width)
    columns = {
        s.name: ~np.isin(np.repeat(channels.roots(channels.tracks[s.x].ids), s.taps), list(gone))
        for s in group.consumers
    }
    if group.others:
        fold(candidate, channels, gone, context, own=own_fold_pays(model, gone, context))
    remove_units(candidate, channels, gone)
    for site in find_sites(candidate):
        if site.name in before and refittable(site, context):
            rows = kept_channels(site.y, site.outputs)
            fit, held = (m.part(columns[site.name], rows) for m in before[site.name])
            write_fit(site, *refit(fit, held, site.matrix().T.astype(np.float64)))
    return candidate


def shrinkable(model: ir.Model) -> tuple[Channels, list[Group], list[Skipped]]:
    """Groups of a model that can shrink, for search and inspection."""
    channels = analyse(model)
    groups, skipped = groups_of(model, channels)
    narrow: list[Group] = []
    for group in groups:
        why = too_large(channels, group)
        if group.consumers and why is None:
            narrow.append(group)
        else:
            reason = TOO_WIDE.format(why) if group.consumers else NO_REFIT
            skipped.append(Skipped(group.name, reason))
    return channels, narrow, skipped
