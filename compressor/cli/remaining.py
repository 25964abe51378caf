"""How long a run may take yet, from what it has told so far.

A stage takes either about the same time for every model (`seconds`), or grows with the model, and then its `work` says
how long it takes beside the others that grow: once one of them is over, or has told how far it is, the rest follows.
Nothing is said before: a guess that knows nothing of the model would be off by a factor of a thousand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

OVERTIME = 0.25
"""A stage that takes longer than was thought takes so much of what it has taken yet."""

FIRST_SHARE = 0.02
"""Of a stage: before it has got so far, its speed says nothing."""


@dataclass(frozen=True)
class Stage:
    """What is known of a stage before it begins.

    Attributes:
        name: as it is told.
        seconds: that it takes, where it does not grow with the model.
        work: of one that grows, its time beside that of the others.
        steps: how often it usually tells a step, where it does not tell the share that is done.
        most: how often at most.
        between: whether it comes in between as well, when those before it are not over yet.
        limited: whether it begins nothing new after the time limit.
    """

    name: str
    seconds: float = 0.0
    work: float = 0.0
    steps: int = 0
    most: int = 0
    between: bool = False
    limited: bool = False


START = (Stage("load", 0.3), Stage("samples", 0.3), Stage("normalise", 0.5))
END = (
    Stage("time", 4.0, between=True),
    Stage("export", 0.3),
    Stage("measure", 4.0),
    Stage("judge", 0.3),
    Stage("tflite", 1.5),
)

SEARCH = (
    *START,
    Stage("precision", work=1.0, limited=True),
    Stage("options", work=2.0, limited=True),
    # Two borders, each of about ten strides and halvings, ten refinements and six turns to fewer bits, at most.
    Stage("search", work=12.0, steps=20, most=52, limited=True),
    Stage("fit", work=2.0),
    Stage("weigh", between=True),
    Stage("front", work=1.0),
    *END,
)
"""The main job; work as measured on nets from 4 000 to 600 000 weights."""

APPLY = (*START, Stage("rewrite", work=1.0), *END)
"""A recipe, or what needs no samples."""

INSPECT = (*START, Stage("precision", work=1.0, limited=True), Stage("options", work=3.0, limited=True))
"""What sites bear."""

EVOLVE = (START[1], Stage("train", work=1.0), Stage("export", 0.5), Stage("judge", 0.5))
"""A training."""


@dataclass
class Remaining:
    """An estimate that every word from the run makes better; clocks are handed in.

    Attributes:
        plan: the stages, in the order in which they are over.
        limit: seconds after which nothing new begins, from the start.
        started: when the run did.
    """

    plan: Sequence[Stage]
    limit: float = math.inf
    started: float = 0.0
    _stage: int = 0
    _running: int = 0
    _since: float = 0.0
    _furthest: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    _shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since = self.started

    def tell(self, now: float, name: str, share: float) -> None:
        """What `host.progress` is told.

        Args:
            now: the time.
            name: of the stage; one that is not in the plan counts as what goes on anyway.
            share: of it that is done; 0 where it does not know.
        """
        self._account(now)
        place = next((i for i, stage in enumerate(self.plan) if stage.name == name), None)
        if place is None:
            return
        self._told[name] = self._told.get(name, 0) + 1
        self._shares[name] = max(self._shares.get(name, 0.0), min(share, 1.0))
        self._running = place
        early = self.plan[place].between and any(
            s.work and not self._told.get(s.name) for s in self.plan[:place]
        )
        if not early:  # only what comes in its turn ends what was before it
            self._stage = place

    def left(self, now: float) -> float | None:
        """Seconds that the run will take yet; None while nothing is known."""
        unit = self._unit(now)
        limited = free = 0.0
        for place in range(self._stage, len(self.plan)):
            stage = self.plan[place]
            seconds = self._of_stage(place, now, unit)
            if seconds is None:
                return None
            if stage.limited:
                limited += seconds
            else:
                free += seconds
        return min(limited, max(self.limit - (now - self.started), 0.0)) + free

    def done(self, now: float) -> float:
        """Share of the whole run that is over, in [0, 1]; never falls."""
        left = self.left(now)
        elapsed = now - self.started
        if left is not None and elapsed + left > 0:
            self._furthest = max(self._furthest, elapsed / (elapsed + left))
        return self._furthest

    def _account(self, now: float) -> None:
        name = self.plan[self._running].name
        self._spent[name] = self._spent.get(name, 0.0) + now - self._since
        self._since = now

    def _spent_in(self, place: int, now: float) -> float:
        running = now - self._since if place == self._running else 0.0
        return self._spent.get(self.plan[place].name, 0.0) + running

    def _unit(self, now: float) -> float | None:
        """Seconds per work, by the stages that are over and by how far the one is that goes on."""
        seconds = work = 0.0
        for place, stage in enumerate(self.plan[: self._stage + 1]):
            share = 1.0 if place < self._stage else self._share(stage)
            if stage.work and self._told.get(stage.name) and share >= FIRST_SHARE:
                seconds += self._spent_in(place, now)
                work += stage.work * share
        return seconds / work if work else None

    def _of_stage(self, place: int, now: float, unit: float | None) -> float | None:
        """Seconds that a stage will take yet."""
        stage, spent = self.plan[place], self._spent_in(place, now)
        if place > self._stage or not stage.work:
            expected = stage.seconds if not stage.work else None if unit is None else stage.work * unit
        else:  # the longer it goes on, the more its own speed counts
            share = self._share(stage)
            before = None if unit is None else stage.work * unit
            if share >= FIRST_SHARE:
                own = spent / share
                expected = own if before is None else share * own + (1 - share) * before
            else:
                expected = before
        if expected is None:
            return None
        if place > self._stage:
            return expected
        return max(expected - spent, OVERTIME * spent * (1 - self._share(stage)))

    def _share(self, stage: Stage) -> float:
        """How much of a stage is done: as it says, else by the steps that it told."""
        if self._shares.get(stage.name) or not stage.steps:
            return self._shares.get(stage.name, 0.0)
        steps = max(self._told.get(stage.name, 0) - 1, 0)  # the first word only says that it begins
        yet = max(stage.steps - steps, (stage.most - steps) / 4, 0.5)
        return steps / (steps + yet)


def in_words(seconds: float | None) -> str:
    """`about 40 s left`; nothing while nothing is known."""
    if seconds is None:
        return ""
    if seconds < 5:
        return "seconds left"
    if seconds < 100:
        return f"about {10 * math.ceil(seconds / 10)} s left"
    if seconds < 100 * 60:
        return f"about {math.ceil(seconds / 60)} min left"
    return f"about {math.ceil(seconds / 3600)} h left"
