"""How much of the score a candidate loses, estimated from samples that it was not fitted to.

Counting right answers there does not do: the labels are often ones that the net was trained on, which flatters it, and
few answers change, so that the count is noisy, and a search that picks the luckiest of many candidates makes it worse.
But of every row it is known how far its class leads, mᵢ, by how much that changed, dᵢ, and what a change would cost, cᵢ
(`compare.cost_of_a_change`), and a change of margin met at one row might as well have met another with a like margin:

    loss = 1/n Σᵢ cᵢ · 1/w Σ_{j near i} [mᵢ + dⱼ < 0]

rests on n·w comparisons instead of n (a two-sample U-statistic, Hoeffding 1948, local in m because rows that are sure
change more).
"""

import math
from dataclasses import dataclass

import numpy as np

from edgepress.compressor.protocols import Matrix
from edgepress.compressor.scoring import Metric

COST_OF_A_CHANGE = 0.6
"""Right answers lost per changed answer, where rows give no margins: some were wrong before, some become right. Over
small nets it was between 0.1 and 0.75."""

COST_ERROR = 0.35
"""Relative error of what a change is said to cost: over twelve small nets, classifiers of pictures and sounds, the loss
on other rows was 0.5 to 1.65 times what was said."""

FLATTERED = 1.5
"""Factor of the margin where rows have labels: they are often training rows, of which fewer change than of others
(over eleven small nets unseen rows changed 0.8 to 1.5 times as often)."""

NEAR = (32, 8)
"""Rows with a like margin: so many, or one in so many of all where that is more."""


@dataclass(frozen=True)
class Estimate:
    """How a candidate does on samples that it was not fitted to.

    Attributes:
        score: in the metric's unit.
        drop_percent: relative loss of the metric, what the changed answers cost, or the loss of fidelity of an output
            that the metric does not read: the largest.
        margin_percent: one standard error of what the unseen rows will show: chance here and there, and, where rows
            have labels, what they flatter.
        rows: samples judged.
        output: the output that lost most, where the metric does not read it.
        chance_percent: how much of the margin is due to so few samples.
    """

    score: float
    drop_percent: float
    margin_percent: float
    rows: int
    output: str = ""
    chance_percent: float = math.inf

    @property
    def cautious(self) -> float:
        """Drop and margin together, percent."""
        return self.drop_percent + self.margin_percent

    def within(self, budget_percent: float) -> bool:
        """Whether drop and margin together keep the budget."""
        return self.cautious <= budget_percent

    def settled(self, budget_percent: float) -> bool:
        """Whether as many samples again will hardly bring it over the budget's edge, to whichever side.

        Of the mean over both halves that over the first is known to within 1/√2 of the latter's error.
        """
        edge = self.chance_percent < abs(self.cautious - budget_percent) < math.inf
        return edge or self.drop_percent - self.margin_percent > budget_percent


@dataclass(frozen=True)
class Answers:
    """The answers of each row, before and after.

    Attributes:
        before: of the original, margins [n]; or, where there are none, the share of answers that are its own: 1.
        after: the same of the candidate.
        margins: which of the two.
        costs: what a change costs [n]; None where all cost the same.
    """

    before: Matrix
    after: Matrix
    margins: bool
    costs: Matrix | None = None

    def loss(self, unseen: float) -> tuple[float, float, float]:
        """The share of answers that change, weighted by cost where that is known, and its error.

        Args:
            unseen: how many rows will judge; the share of changes among so many deviates, too.

        Returns:
            Share, standard error, and that of these rows alone; at least as if one more of them had changed.
        """
        n = len(self.before)
        if not self.margins:
            flips = self.before - self.after
            here = float(np.std(flips) / np.sqrt(n))
            return float(np.mean(flips)), here * float(np.sqrt(1 + n / unseen)), max(here, 1 / n)
        changes, none = self.after - self.before, np.ones(n)
        costs = none if self.costs is None else self.costs
        loss, here = expected_loss(self.before, changes, costs)
        share = loss if self.costs is None else expected_loss(self.before, changes, none)[0]
        error = float(np.hypot(here, np.sqrt(share * (1 - share) / unseen)))
        return loss, error, max(here, float(np.mean(costs)) / n)


def expected_loss(margins: Matrix, changes: Matrix, costs: Matrix) -> tuple[float, float]:
    """The mean cost of rows whose margin falls below zero, as the module says, and its standard error.

    Args:
        margins: m [n], not negative.
        changes: d [n].
        costs: c [n].
    """
    n = len(margins)
    least, part = NEAR
    width = min(n, max(least, n // part))
    order = np.argsort(margins, kind="stable")
    start = np.clip(np.arange(n) - width // 2, 0, n - width)
    pairs = start[:, np.newaxis] + np.arange(width)
    below = margins[order][:, np.newaxis] + changes[order][pairs] < 0
    lost = below * costs[order][:, np.newaxis]
    by_margin = lost.mean(axis=1)
    by_change = np.bincount(pairs.ravel(), lost.ravel(), n) / width
    # What a row adds: by its margin, and by how far its change is from that of rows like it.
    added = by_margin + by_change - by_change[pairs].mean(axis=1)
    return max(float(by_margin.mean()), 0.0), float(np.std(added) / np.sqrt(n))


def estimate(
    metric: Metric, base: Matrix, ours: Matrix, answers: Answers | None, unseen: float = np.inf
) -> Estimate:
    """Compare two models on the same rows.

    Args:
        metric: how values make a score.
        base: the original's values [n].
        ours: the candidate's values [n].
        answers: of the same rows; None where there are no classes.
        unseen: rows that will give the verdict.
    """
    before, after = metric.finish(base), metric.finish(ours)
    n = len(base)
    # An original that is never right on these rows has no share to lose; changed answers still count.
    ratio = (after / before if before else 1.0) if metric.higher_is_better else before / max(after, 1e-300)
    drop = 100 * (1 - ratio) if np.isfinite(ratio) else 100.0
    change = (base - ours) if metric.higher_is_better else (ours - base)
    scale = abs(float(np.mean(base))) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):  # a candidate may overflow; its drop says so
        margin = (
            0.0
            if metric.whole or n < 2
            else 100 * float(np.std(change) * np.sqrt(1 / n + 1 / unseen)) / scale
        )
    if metric.name.startswith("psnr"):
        # A decibel is a logarithm: the relative change of the score is that of the loss over ln(10)/10 · score.
        margin = margin * 10 / np.log(10) / max(abs(before), 1e-9)
    chance = np.inf if metric.whole or n < 2 else margin / np.sqrt(1 + n / unseen)
    if answers is not None:
        known = metric.needs_reference or answers.costs is not None
        cost = 100.0 / scale * (1.0 if known else COST_OF_A_CHANGE)
        share, error, here = answers.loss(unseen)
        # Without a cost of each change, right and wrong labels overrule this where chance does not explain them.
        if known or drop - margin <= cost * share:
            if not metric.needs_reference:
                error, here = FLATTERED * float(np.hypot(error, COST_ERROR * share)), FLATTERED * here
            drop, margin, chance = cost * share, cost * error, cost * here
    return Estimate(after, float(drop), float(margin), n, chance_percent=float(chance))
