"""Runs that are killed, starved and fenced in: nothing half-written stays, reruns succeed, the message names the cause.

    python benchmarks/faults.py [--kills N] [--rooms N] [--only REGEX] [--out FILE]

On a net of 32 hidden neurons. Exit code 1 where anything was left that may not be, or a message did not name the cause.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import RESULTS, machine, shown_command, versions, write_json
from fault_disks import AMPLE_BYTES, disks, enter, watched
from fault_findings import ELSEWHERE, Findings, Place
from fault_runs import Fault, server
from fault_subjects import COMMANDS, FACES, make_inputs

BY_LIBRARIES = (-6, -11)
"""A library ends the process where it gets no memory; nothing of ours can say so then."""
FULL = "No space left|disk is full|Free some space|Make room on the disk"


def kills(place: Place, command: str, count: int, kind: str = "") -> Findings:
    """Kill a command at random moments; after each kill the same command must succeed.

    Args:
        place: where.
        command: its name.
        count: how often.
        kind: of what else is changed in it.
    """
    found, chance = Findings(), np.random.default_rng(len(command))
    whole = place.again(found, command, "nothing").seconds
    for number in range(count):
        if number % 2:  # an existing result is replaced, or there is none yet
            place.clear()
        fault = Fault(kind, kill_s=chance.uniform(0, 1.1 * whole))
        ended = place.runs.run(COMMANDS[command], place.folder, fault)
        found.note(ended, place.left(command), f"kill {number}")
        place.again(found, command, f"kill {number}")
    return found


def full_disks(place: Place, command: str) -> Findings:
    """The disk is full from the n-th file on that is opened for writing, for every n."""
    found = Findings()
    for number in range(1, 1000):
        fault = Fault("disk", number)
        again = number % 4 == 0  # to rerun each time takes minutes
        if place.broken(found, command, fault, FULL, (2, 3), again=again).code == 0:
            break
    return found


def small_disks(place: Place, command: str) -> Findings:
    """No file may be larger than so much."""
    found = Findings()
    for size in (0, 100, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000):
        place.broken(found, command, Fault("file size", size), f"File too large|ulimit -f|{FULL}", (2, 3))
    return found


def real_disks(place: Place, command: str, count: int = 30) -> Findings:
    """Results, cache or temporary files lie on a disk of their own with so much room, from none to enough.

    Args:
        place: where.
        command: its name.
        count: amounts of room that are tried on each of the three.
    """
    found = Findings()
    with disks(place.folder, (".", *ELSEWHERE)) as mounted:
        for name, content in place.inputs.items():
            (place.folder / name).write_bytes(content)
        with watched(list(mounted.values())):
            place.again(found, command, "nothing")
        place.clear()
        for name, disk in mounted.items():
            for number, room in enumerate(range(0, AMPLE_BYTES, disk.step_bytes(count))):
                disk.leave(room)
                ended, what = (
                    place.runs.run(COMMANDS[command], place.folder),
                    f"{command}, {name}, {room} bytes",
                )
                found.note(ended, place.left(command), what)
                found.judge(ended, FULL, (2, 3), what)
                disk.leave(AMPLE_BYTES)
                if ended.code and number % 3 == 0:
                    place.again(found, command, what)
                place.clear()
                if room >= disk.most_bytes and ended.code == 0:
                    break  # a look may have missed what lay there for a moment, so not before
            else:
                found.wrong.append(f"{command}, {name}: {AMPLE_BYTES} bytes are not enough")
    return found


def short_memory(place: Place, command: str) -> Findings:
    """So many bytes of address space are left."""
    found = Findings()
    for size in (1, 4, 16, 64, 256, 1024):
        place.broken(
            found, command, Fault("memory", size << 20), "[Mm]emory|bad_alloc|threads?", (3, *BY_LIBRARIES)
        )
    return found


def few_files(place: Place, command: str) -> Findings:
    """So many files may be open at a time."""
    found = Findings()
    for number in (8, 12, 16, 20, 24, 32, 64):
        place.broken(found, command, Fault("files", number), "Too many open files", (2, 3))
    return found


def jumping_clock(place: Place, command: str) -> Findings:
    """The system's clock jumps by up to 40 days each time that it is read."""
    found = Findings()
    ended = place.broken(found, command, Fault("clock", 40), "", ())
    if ended.seconds > 60:
        found.wrong.append(f"{command}: took {ended.seconds:.0f} s while the clock jumped")
    place.again(found, command, "jumps of the clock")
    return found


def no_rights(place: Place, command: str) -> Findings:
    """A folder that may not be written to: the output's, the result itself, the cache, that of temporary files."""
    found, out = Findings(), FACES.get(command, "out")
    place.again(found, command, "nothing")
    for locked in (".", out, "cache", "tmp"):
        path = place.folder / locked
        if path.is_dir():
            path.chmod(0o555)
        ended = place.runs.run(COMMANDS[command], place.folder, Fault("rights"))
        if path.is_dir():
            path.chmod(0o755)
        found.note(ended, place.left(command), locked)
        (place.folder / "out.checkpoint.npz").unlink(
            missing_ok=True
        )  # of what was trained and could not be put there
        if ended.code not in (0, 2, 3) or (
            ended.code and not re.search("Permission|temporary|cannot hold", ended.told)
        ):
            found.wrong.append(f"{command}, {locked}: code {ended.code}: {ended.told.strip()[-300:]}")
        if ended.code == 0 and locked == ".":
            found.wrong.append(f"{command}: wrote where it has no rights")
    place.again(found, command, "rights came back")
    return found


def three_at_once(place: Place, command: str, count: int = 3) -> Findings:
    """Three runs into one place at the same time: each is whole or told that another one is at work."""
    found = Findings()
    for _ in range(count):
        for ended in place.runs.together([COMMANDS[command]] * 3, place.folder):
            found.note(ended, place.left(command), "three at once")
            if ended.code not in (0, 2) or (ended.code and "Another run is writing" not in ended.told):
                found.wrong.append(f"three at once: code {ended.code}: {ended.told.strip()[-300:]}")
        if found.codes.get("0", 0) == 0:
            found.wrong.append("three at once: none of them succeeded")
        place.clear()
    return found


def killed_workers(place: Place, command: str, count: int = 3) -> Findings:
    """A process that a search has hired is killed amid its work: the search goes through all the same."""
    found = Findings()
    words = [*COMMANDS[command][:-1], "2"]
    for number in range(count):
        ended = place.runs.run(words, place.folder, Fault("hired", strikes="worker"))
        found.note(ended, place.left(command), f"worker {number}")
        if ended.code:
            found.wrong.append(f"worker {number}: code {ended.code}: {ended.told.strip()[-300:]}")
        if not ended.struck:
            found.wrong.append(f"worker {number}: there was none that could be killed")
        place.clear()
    return found


def killed_with_workers(place: Place, command: str, count: int = 5) -> Findings:
    """A search is killed while processes that it has hired work: none of them may stay."""
    found, chance = Findings(), np.random.default_rng(1)
    words = [*COMMANDS[command][:-1], "2"]
    for number in range(count):
        place.clear()
        after_s = chance.uniform(0, 0.5) if number else 0.0  # later ones may end before they are killed
        fault = Fault("hired", strikes="run", strike_after_s=after_s)
        ended = place.runs.run(words, place.folder, fault)
        found.note(ended, place.left(command), f"kill {number}")
        if ended.code != (-signal.SIGKILL if ended.struck else 0):
            found.wrong.append(f"kill {number}: code {ended.code}: {ended.told.strip()[-300:]}")
    if not found.struck:
        found.wrong.append("no run was killed while a process that it had hired worked")
    place.clear()
    place.again(found, command, "kills")
    if found.alive:
        found.wrong.append(f"{found.alive} processes outlived the run that hired them")
    return found


KILLS = {"search": 0.35, "recipe": 0.2, "evolve": 0.25, "bench": 0.2}
"""Shares of all kills."""
DISKS = "disks with little room"
ALL, SEARCHES = tuple(COMMANDS), ("search",)
KINDS: Mapping[str, tuple[Callable[[Place, str], Findings], Sequence[str]]] = {
    "disk full from the n-th file on": (full_disks, ALL),
    "files limited in size": (small_disks, ALL),
    "memory limited": (short_memory, ALL),
    "open files limited": (few_files, ALL),
    "clock jumps": (jumping_clock, ALL),
    "no rights": (no_rights, ALL),
    "three runs into one place": (three_at_once, ALL),
    "a worker is killed": (killed_workers, SEARCHES),
    "killed while workers work": (killed_with_workers, SEARCHES),
}
"""What goes wrong, and in which commands."""


def main() -> int:
    """Inject them all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many runs are killed in all")
    parser.add_argument("--rooms", type=int, default=30, help="how much room is tried on each small disk")
    parser.add_argument("--only", default="", help="regular expression of kinds")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    given = parser.parse_args()
    begun, wrong, mountable = machine(), 0, enter()
    if not mountable:
        print(
            f"{DISKS}: left out, since nothing can be mounted here, by root or in a namespace of a user's own"
        )
    with tempfile.TemporaryDirectory(prefix="faults-") as name, server() as runs:
        for place, (kind, command, work) in enumerate(jobs(given.kills, given.rooms)):
            if not re.search(given.only, f"{kind}: {command}") or (kind == DISKS and not mountable):
                continue
            folder = Path(name) / str(place)
            folder.mkdir()
            started = time.monotonic()
            found = work(Place(runs, folder, make_inputs(folder)), command)
            found.seconds = round(time.monotonic() - started, 1)
            shutil.rmtree(folder)
            store(given.out, {"kind": kind, "command": command, **asdict(found)}, begun)
            told = f"{found.runs} runs, codes {found.codes}, {len(found.wrong)} wrong, {found.seconds} s"
            print("\n  ".join([f"{kind}, {command}: {told}", *found.wrong]), flush=True)
            wrong += len(found.wrong)
    return 1 if wrong else 0


def store(path: Path, row: dict[str, Any], begun: dict[str, Any]) -> None:
    """Put a kind's findings in the file, in the place of those of an earlier run; the others stay.

    Args:
        path: of the file.
        row: what was found.
        begun: the machine when this run began.
    """
    known = json.loads(path.read_text("utf-8"))["kinds"] if path.exists() else []
    rows = [each for each in known if (each["kind"], each["command"]) != (row["kind"], row["command"])]
    script = shown_command("python benchmarks/faults.py", sys.argv[1:])
    rows.append({**row, "script": script, "machine": begun, "versions": versions()})
    total = {name: sum(each[name] for each in rows) for name in ("runs", "alive")}
    total["wrong"] = sum(len(each["wrong"]) for each in rows)
    write_json({**total, "kinds": rows}, path)


def jobs(count: int, rooms: int) -> Iterator[tuple[str, str, Callable[[Place, str], Findings]]]:
    """Kinds of faults, commands, and the work that it takes."""
    for command, share in KILLS.items():
        yield "killed", command, partial(kills, count=round(share * count))
    for command in COMMANDS:
        yield DISKS, command, partial(real_disks, count=rooms)
    for kind, (work, commands) in KINDS.items():
        for command in commands:
            yield kind, command, work


if __name__ == "__main__":
    sys.exit(main())
