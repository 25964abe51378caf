"""Damaged files of every kind that edgepress reads: each must end in a clear message, or in a whole result.

    python benchmarks/mutation.py [--count N] [--seed N] [--only REGEX] [--keep DIR] [--out FILE]

N mutants a kind, made at random as `mutators.py` has it; each is read by the command that reads such files, in a
process of its own that ends with it. What may come of it: the command goes through (many changes do no harm), or exits
with 2 or 3 and one message of at most three lines. A traceback, a signal, half a minute of the processor, more than
3 GB, a folder that is neither absent nor whole, or a file outside the folder is a fault: exit code 1.
"""

import argparse
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from common import machine, shown_command, versions, write_json
from edgepress.compressor.cli import commands, host
from edgepress.compressor.cli import main as compress
from edgepress.compressor.errors import EdgepressError
from edgepress.compressor.evolve import checkpoint
from edgepress.compressor.report import manifest
from mutation_subjects import SUBJECTS, Subject, build

LIMIT_S = 30
MEMORY_BYTES = 3 << 30
FAULTS = ("crash", "killed", "no end", "unclear", "half-written", "outside")


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant.

    Attributes:
        kind: `went through`, `refused`, or a fault.
        said: on stderr.
    """

    kind: str
    said: str

    @property
    def fault(self) -> bool:
        """Whether that must not be."""
        return self.kind.startswith(FAULTS)


def in_child(work: Callable[[], int], told: Path, cpu_s: int) -> int:
    """Exit code of some work in a process of its own; negative where a signal ended it.

    Args:
        work: gives the exit code.
        told: file that takes what is said on stderr.
        cpu_s: seconds of the processor that it may take, and ten times as many by the clock.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        signal.alarm(10 * cpu_s)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for stream, file in ((1, os.devnull), (2, str(told))):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: Sequence[str]) -> int:
    """`compress WORDS` in this process; memory, which takes a process of its own, is not measured."""
    host.memory_peak_bytes = lambda *_, **__: 1  # type: ignore[attr-defined]
    try:
        compress(list(words))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 99


def stage(folder: Path) -> None:
    """Make the undamaged files, and load all that commands import, before the first process is split off."""
    for name in set(commands.COMMANDS) - {"completion"}:  # which has no work of its own
        importlib.import_module(f"edgepress.compressor.cli.{name}")
    importlib.import_module("edgepress.compressor.cli.boards")

    def work() -> int:
        kept, save = folder / "evolved.checkpoint.npz", checkpoint.save

        def save_and_keep(path: Path, *rest: object) -> None:
            save(path, *rest)  # type: ignore[arg-type]
            shutil.copy(path, f"{kept}.kept")

        checkpoint.save = save_and_keep  # type: ignore[assignment]
        os.chdir(folder)
        build(command)
        shutil.move(f"{kept}.kept", kept)
        shutil.copy(folder / "evolved" / "model-sparse.npz", folder / "small.npz")
        return 0

    told = folder.parent / "told"
    if in_child(work, told, 10 * LIMIT_S):
        raise SystemExit(f"the undamaged files could not be made: {told.read_text()}")
    for made in ("made", "evolved"):
        shutil.rmtree(folder / made)


def examine(subject: Subject, clean: Path, data: bytes) -> Outcome:
    """Let a command read one mutant.

    Args:
        subject: what it is of.
        clean: folder of undamaged files.
        data: the mutant.
    """
    with tempfile.TemporaryDirectory() as above:
        folder, told = Path(above) / "here", Path(above) / "told"
        shutil.copytree(clean, folder)
        (folder / subject.file).write_bytes(data)

        def work() -> int:
            os.chdir(folder)
            return command(subject.words)

        code = in_child(work, told, LIMIT_S)
        said = told.read_text(encoding="utf-8", errors="replace")
        return Outcome(_kind(code, said, folder), said)


def _kind(code: int, said: str, folder: Path) -> str:
    if code < 0:
        late = -code in (signal.SIGALRM, signal.SIGXCPU)
        return "no end" if late else f"killed by {signal.Signals(-code).name}"
    if "Traceback" in said or code not in (0, 1, 2, 3, 4):
        errors = re.findall(r"^[\w.]+(?:Error|Exception|Warning)\b.*", said, re.MULTILINE)
        return f"crash: {errors[-1] if errors else code}"
    made = folder / "made"
    if made.exists() and not _is_whole(made):
        return "half-written"
    if sorted(path.name for path in folder.parent.iterdir()) != ["here", "told"] or (folder / "ran").exists():
        return "outside"
    if code in (0, 1, 4):
        return "went through"
    if made.exists():
        return "half-written"
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    clear = lines and lines[0].startswith("compress: ") and len(lines) <= 3 and max(map(len, lines)) < 1100
    return "refused" if clear else "unclear"


def _is_whole(made: Path) -> bool:
    """Whether an output folder has a manifest that can be read, and is as that says."""
    try:
        return not manifest.verify(made)
    except EdgepressError:
        return False


def run(subjects: Sequence[Subject], count: int, seed: int) -> Iterator[tuple[Subject, int, bytes, Outcome]]:
    """Mutants of each subject, and what came of them.

    Args:
        subjects: kinds of files.
        count: of mutants each.
        seed: of the first; the others count on from it.

    Raises:
        SystemExit: a subject is not read even where it is undamaged.
    """
    with tempfile.TemporaryDirectory() as above:
        clean = Path(above) / "clean"
        clean.mkdir()
        stage(clean)
        for subject in subjects:
            data = (clean / subject.file).read_bytes()
            whole = examine(subject, clean, data)
            if whole.kind != "went through":
                raise SystemExit(f"{subject.name}: undamaged, but {whole.kind}: {whole.said}")
            for number in range(seed, seed + count):
                mutant = subject.mutate(data, random.Random(f"{subject.name} {number}"))  # noqa: S311  no secret
                yield subject, number, mutant, examine(subject, clean, mutant)


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Damaged files must end in clear messages.")
    parser.add_argument("--count", type=int, default=100, help="mutants a kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="regular expression of kinds")
    parser.add_argument("--keep", type=Path, help="folder for the mutants that show a fault")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    given = parser.parse_args(words)
    about = {
        "command": shown_command("python benchmarks/mutation.py", words or sys.argv[1:], ("--out", "--keep")),
        "machine": machine(),
        "versions": versions(),
    }
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for subject, outcomes in groupby(
        run([each for each in SUBJECTS if re.search(given.only, each.name)], given.count, given.seed),
        key=lambda each: each[0],
    ):
        counter: Counter[str] = Counter()
        faults: list[dict[str, object]] = []
        for _, number, mutant, outcome in outcomes:
            counter[outcome.kind.partition(":")[0]] += 1
            if outcome.fault:
                faults.append({"mutant": number, "what": outcome.kind[:300]})
                print(f"{subject.name} {number}: {outcome.kind[:300]}", flush=True)
                if given.keep:
                    keep(given.keep, subject, number, mutant, outcome)
        counts = dict(counter)
        rows.append({"kind": subject.name, "counts": counts, "faults": faults, **about})
        print(
            f"{subject.name:26} " + ", ".join(f"{n} {what}" for what, n in counter.most_common()), flush=True
        )
        if given.out:  # after every kind: all of them take an hour
            store(given.out, rows)
    total, wrong = totals(rows)
    print(f"{total} mutants in {time.monotonic() - started:.0f} s; {wrong} faults")
    return 1 if wrong else 0


def store(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put kinds in the file, in the place of those of an earlier run; the others stay."""
    known = json.loads(path.read_text("utf-8"))["kinds"] if path.exists() else []
    new = {row["kind"] for row in rows}
    kinds = [*(each for each in known if each["kind"] not in new), *rows]
    mutants, faults = totals(kinds)
    write_json({"mutants": mutants, "faults": faults, "kinds": kinds}, path)


def totals(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Mutants and faults of some kinds."""
    return sum(sum(row["counts"].values()) for row in rows), sum(len(row["faults"]) for row in rows)


def keep(folder: Path, subject: Subject, number: int, mutant: bytes, outcome: Outcome) -> None:
    """Write a mutant that shows a fault, and what was said of it, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{subject.name.replace(' ', '_')}-{number}"
    (folder / f"{name}{Path(subject.file).suffix}").write_bytes(mutant)
    (folder / f"{name}.txt").write_text(outcome.said, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
