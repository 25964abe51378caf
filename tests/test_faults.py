"""Some of what `benchmarks/faults.py` does to runs; `make test-all` takes all of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from resultfolders import fill

import faults
from fault_disks import Disk
from fault_runs import Ended, Fault, Left, Server, left_in, server
from faults import Findings, Place


@pytest.fixture(scope="module")
def runs() -> Iterator[Server]:
    """One server for all tests: it takes seconds to start."""
    with server() as found:
        yield found


@pytest.fixture
def place(runs: Server, tmp_path: Path) -> Place:
    return Place(runs, tmp_path, faults.make_inputs(tmp_path))


@pytest.mark.parametrize(("command", "count"), [("evolve", 5), ("recipe", 2)])
def test_killed_at_any_moment(place: Place, command: str, count: int) -> None:
    found = faults.kills(place, command, count)
    assert found.wrong == []
    assert found.runs == count
    assert found.codes.get("-9", 0) >= 1


@pytest.mark.parametrize(
    ("command", "kind", "value", "says", "codes"),
    [
        ("evolve", "disk", 1, "The disk is full: .*out was not written", (2,)),
        ("evolve", "disk", 9, "Cannot write the checkpoint .*No space left", (2,)),
        ("recipe", "disk", 5, "disk is full|No space left", (2, 3)),
        ("bench", "disk", 3, "No space left", (2, 3)),
        ("evolve", "file size", 0, "Cannot write the checkpoint .*File too large", (2,)),
        ("recipe", "file size", 100, "File too large", (2, 3)),
        ("search", "file size", 100, "cannot hold what was worked out .*ulimit -f unlimited", (2,)),
        ("evolve", "files", 6, "Too many open files", (2,)),
        ("recipe", "memory", 64 << 20, "Memory is limited: .*ulimit -v unlimited", (3,)),
    ],
)
def test_what_runs_out_is_named(
    place: Place, command: str, kind: str, value: float, says: str, codes: tuple[int, ...]
) -> None:
    found = Findings()
    ended = place.broken(found, command, Fault(kind, value), f"(?s){says}", codes)
    assert found.wrong == []
    assert ended.code in codes
    assert ended.told.count("\n") == 2


def test_disks_with_little_room(tmp_path: Path) -> None:
    """Real ones; where none can be mounted that is said, and nothing stored."""
    script, file = Path(faults.__file__), tmp_path / "faults.json"
    only = f"{faults.DISKS}: evolve"
    words = [sys.executable, str(script), "--only", only, "--rooms", "4", "--out", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    if not file.exists():
        assert done.stdout.startswith(f"{faults.DISKS}: left out, since nothing can be mounted")
        pytest.skip("nothing can be mounted here")
    (row,) = json.loads(file.read_text())["kinds"]
    assert row["codes"]["2"] >= 3
    assert row["codes"]["0"] >= 3, "the last on each of the disks"
    assert any("No space left" in each or "disk is full" in each for each in row["messages"])


def test_a_rerun_that_gives_another_model_is_found(place: Place) -> None:
    found = Findings()
    place.again(found, "recipe", "nothing")
    place.models["recipe"] = {"of another one"}
    place.again(found, "recipe", "a fault")
    assert [each.partition(": ")[2] for each in found.wrong] == ["another model came of it than before"]


@pytest.mark.parametrize(("most", "step"), [(0, 1), (5, 1), (29, 1), (30, 2), (290, 10)])
def test_rooms_reach_what_was_ever_taken(most: int, step: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert Disk(Path(), most * page).step_bytes(30) == step * page


@pytest.mark.parametrize(
    "work", [faults.jumping_clock, faults.no_rights, faults.three_at_once], ids=lambda work: work.__name__
)
def test_clocks_rights_and_others(place: Place, work: Callable[[Place, str], Findings]) -> None:
    found = work(place, "evolve")
    assert found.wrong == []
    assert found.runs >= 1


def until_struck(work: Callable[[Place, str, int], Findings], place: Place) -> Findings:
    """What came of the first run that was hit: on a busy machine a search may be over before."""
    found = Findings()
    for _ in range(6):
        found = work(place, "search", 1)
        if found.struck:
            break
    return found


def test_hired_processes_do_not_outlive_a_killed_run(place: Place) -> None:
    found = until_struck(faults.killed_with_workers, place)
    assert (found.wrong, found.alive) == ([], 0)
    assert (found.codes, found.struck) == ({"-9": 1}, 1)


def test_a_search_goes_on_without_a_killed_worker(place: Place) -> None:
    found = until_struck(faults.killed_workers, place)
    assert found.wrong == []
    assert (found.codes, found.struck) == ({"0": 1}, 1)


@pytest.mark.parametrize(
    ("work", "ended", "says"),
    [
        (faults.killed_workers, Ended(0, "", 0.1, 0), "none that could be killed"),
        (faults.killed_with_workers, Ended(0, "", 0.1, 0), "no run was killed"),
        (faults.killed_with_workers, Ended(-9, "", 120.0, 0), "code -9"),
        (faults.killed_with_workers, Ended(-9, "", 0.1, 2, struck=True), "2 processes outlived"),
    ],
)
def test_a_run_in_which_nothing_was_killed_is_no_proof(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Place, str, int], Findings],
    ended: Ended,
    says: str,
) -> None:
    monkeypatch.setattr(Server, "run", lambda *_: ended)
    assert any(says in each for each in work(place, "search", 1).wrong)


def test_what_may_not_be_left_is_found(tmp_path: Path) -> None:
    """The look at what is left sees half a result, a changed input, and what lies about."""
    inputs = faults.make_inputs(tmp_path)
    assert left_in(tmp_path, inputs) == Left()
    out = tmp_path / "out"
    out.mkdir()
    assert len(left_in(tmp_path, inputs).wrong) == 1
    fill(out, "whole")
    assert left_in(tmp_path, inputs) == Left()
    (out / "model.onnx").write_text("hal")
    (tmp_path / ".edgepress-abc").mkdir()
    (tmp_path / "recipe.toml").write_text("other")
    assert len(left_in(tmp_path, inputs).wrong) == 3
    (tmp_path / "out.json").write_text('{"a": ')
    assert "out.json is half a file" in left_in(tmp_path, inputs, "out.json").wrong


def test_a_message_that_does_not_name_the_cause_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([Ended(2, "compress: No.\n", 0.1, 0), Ended(0, "", 0.1, 0)])
    monkeypatch.setattr(Server, "run", lambda *_: next(said))
    found = Findings()
    place.broken(found, "recipe", Fault("disk", 1), "disk is full", (2,))
    assert any("said compress: No." in each for each in found.wrong)
    assert any("rerun" in each for each in found.wrong), "it wrote nothing"


def test_findings_of_other_kinds_stay_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "faults.json"
    row = {"kind": "killed", "command": "bench", "runs": 3, "alive": 0, "wrong": ["x"]}
    monkeypatch.setattr("sys.argv", ["faults.py", "--only", "killed", "--out", "faults.json"])
    faults.store(file, row, {})
    faults.store(file, {**row, "command": "search"}, {})
    monkeypatch.setattr("sys.argv", ["faults.py", "--kills", "9"])
    faults.store(file, {**row, "wrong": []}, {"cores": 2})
    stored = json.loads(file.read_text())
    assert (stored["runs"], stored["wrong"]) == (6, 1)
    assert [(each["command"], each["script"], each["machine"]) for each in stored["kinds"]] == [
        ("search", "python benchmarks/faults.py --only killed", {}),
        ("bench", "python benchmarks/faults.py --kills 9", {"cores": 2}),
    ]
