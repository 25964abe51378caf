"""How long a run may take yet: runs with known lengths, and what is shown of it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from clicase import Case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepress.compressor.cli import run
from edgepress.compressor.cli.remaining import APPLY, INSPECT, SEARCH, Remaining, Stage, in_words

Words = list[tuple[float, str, float]]
"""Time, stage, share."""

seconds = st.floats(0.01, 1e4)
words = st.lists(
    st.tuples(
        st.floats(0, 100), st.sampled_from([s.name for s in SEARCH] + ["rewrite", "other"]), st.floats(0, 1)
    ),
    max_size=60,
)


def replayed(plan: Sequence[Stage], said: Words, limit: float = math.inf) -> Remaining:
    remaining = Remaining(plan, limit)
    for now, stage, share in said:
        remaining.tell(now, stage, share)
    return remaining


@given(seconds, st.floats(0.05, 0.95), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_run_that_goes_as_planned_is_told_exactly(unit: float, share: float, place: int) -> None:
    """Oracle: every stage takes its work times one unit, known from any point within a stage that tells its share."""
    plan = [Stage(name, work=work) for name, work in (("a", 1.0), ("b", 3.0), ("c", 0.5), ("d", 2.0))]
    ends = [unit * sum(s.work for s in plan[:i]) for i in range(len(plan) + 1)]
    said = [(ends[i], plan[i].name, 0.0) for i in range(place + 1)]
    now = ends[place] + share * plan[place].work * unit
    remaining = replayed(plan, [*said, (now, plan[place].name, share)])
    assert remaining.left(now) == pytest.approx(ends[-1] - now, rel=1e-6)
    assert remaining.done(now) == pytest.approx(now / ends[-1], rel=1e-6)


@given(st.floats(0.1, 50), st.integers(3, 51))
@settings(max_examples=60, deadline=None)
def test_while_candidates_are_judged_their_own_pace_counts(pace: float, judged: int) -> None:
    """Between as many more as there usually are, at least a quarter of all that can come, and all of those."""
    search = Stage("search", work=1.0, steps=20, most=52)
    said = [(i * pace, "search", 0.0) for i in range(judged + 1)]
    now = judged * pace
    left = replayed([search], said).left(now)
    assert left is not None
    yet = left / pace
    assert yet == pytest.approx(max(20 - judged, (52 - judged) / 4, 0.5), rel=1e-6)


@given(words, st.floats(0.01, 1e3))
@settings(max_examples=100, deadline=None)
def test_whatever_is_told_the_estimate_is_sound(said: Words, limit: float) -> None:
    said.sort(key=lambda word: word[0])
    remaining, last = Remaining(SEARCH, limit), 0.0
    for now, stage, share in said:
        remaining.tell(now, stage, share)
        done, left = remaining.done(now), remaining.left(now)
        assert last <= done <= 1
        assert left is None or 0 <= left < math.inf
        last = done


@given(words, st.floats(1.0, 200.0))
@settings(max_examples=100, deadline=None)
def test_a_time_limit_bounds_what_it_limits(said: Words, limit: float) -> None:
    said.sort(key=lambda word: word[0])
    now = said[-1][0] if said else 0.0
    free, bound = replayed(SEARCH, said).left(now), replayed(SEARCH, said, limit).left(now)
    assume(free is not None and bound is not None)
    assert free is not None
    assert bound is not None
    assert bound <= free + 1e-9
    only = [stage for stage in SEARCH if stage.limited]
    in_search = replayed(only, [word for word in said if word[1] in {s.name for s in only}], limit).left(now)
    if in_search is not None:
        assert in_search <= max(limit - now, 0.0) + 1e-9


def test_nothing_is_said_before_anything_is_known() -> None:
    said = [(0.1, "load", 0.0), (0.2, "samples", 0.0), (0.3, "precision", 0.0)]
    assert replayed(SEARCH, said).left(5.0) is None
    known = [*said, (6.0, "options", 0.0)]
    assert replayed(SEARCH, known).left(6.0) == pytest.approx(
        5.7 * (2 + 12 + 2 + 1) + 4 + 0.3 + 4 + 0.3 + 1.5
    )


def test_timing_in_between_does_not_end_the_search() -> None:
    said = [(1.0, "precision", 0.0), (2.0, "options", 0.0), (4.0, "search", 0.0), (5.0, "search", 0.0)]
    before = replayed(SEARCH, said).left(5.0)
    assert before is not None
    for minutes in (0, 1):  # however long the timing takes, the pace of candidates is theirs
        between = replayed(SEARCH, [*said, (5.0, "time", 0.0)]).left(5.0 + 60 * minutes)
        assert between == pytest.approx(before)
    after = replayed(SEARCH, [*said, (5.0, "fit", 0.0), (5.0, "time", 0.0)]).left(5.0)
    assert after == pytest.approx(0.8 + 4 + 0.3 + 4 + 0.3 + 1.5)  # the front comes yet


def test_a_recipe_and_an_inspection_have_plans_of_their_own() -> None:
    assert replayed(APPLY, [(1.0, "rewrite", 0.0), (3.0, "export", 0.0)]).left(3.0) == pytest.approx(6.1)
    half = [(0.0, "precision", 0.0), (2.0, "options", 0.0), (5.0, "options", 0.5)]
    left = replayed(INSPECT, half).left(5.0)
    assert left is not None
    assert 2.9 < left < 3.1


@pytest.mark.parametrize(
    ("given_seconds", "said"),
    [(None, ""), (3, "seconds left"), (31, "about 40 s left"), (99, "about 100 s left"),
     (101, "about 2 min left"), (7000, "about 2 h left")],
)  # fmt: skip
def test_in_words(given_seconds: float | None, said: str) -> None:
    assert in_words(given_seconds) == said


# shown


def test_a_terminal_sees_stage_and_time_left_and_a_pipe_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("inspect", case.model, "--data", "calib.npz")
    assert not re.search("left|options", case.run(*words).err)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    assert "options" not in case.run(*words, "--json").err
    shown = case.compress()
    assert shown.code == 0
    assert re.search(r"seconds left|about \d+ s left", shown.err)


def test_what_is_told_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with run.progress_bar(quiet=False) as tell:
        tell("options", 0.5, "\x1b[2J[bold]conv[/]")
    assert "\x1b[2J" not in (said := capsys.readouterr().err)
    assert "[bold]conv[/]" in said
