"""What came of runs in which something went wrong, and the folder that they ran in."""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgepress.compressor.claim import empty
from fault_runs import Ended, Fault, Left, Server, left_in, run_fresh
from fault_subjects import COMMANDS, FACES

ELSEWHERE = ("tmp", "cache")
"""Folders of runs that are no results."""


@dataclass
class Findings:
    """What came of one kind of fault.

    Attributes:
        runs: how many there were.
        codes: exit code → how often; negative: ended by that signal.
        wrong: what was left or said that may not be.
        messages: the different ones, without their numbers.
        most_temporary: most files and folders that lay in the folder for temporary files after a run.
        alive: processes that outlived their run.
        struck: runs in which somebody was killed while a hired process worked.
        seconds: that all of it took.
    """

    runs: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    most_temporary: int = 0
    alive: int = 0
    struck: int = 0
    seconds: float = 0.0

    def note(self, ended: Ended, left: Left, what: str) -> None:
        """Add a run."""
        self.runs += 1
        self.codes[str(ended.code)] = self.codes.get(str(ended.code), 0) + 1
        self.wrong += [f"{what}: {each}" for each in left.wrong]
        self.most_temporary = max(self.most_temporary, left.temporary)
        self.alive += ended.alive
        self.struck += ended.struck
        if "Traceback" in ended.told or ended.code == 70:
            self.wrong.append(f"{what}: {ended.told.strip()[-300:]}")
        first = re.sub(r"(edgepress-run-)\w+", r"\1…", ended.told.strip().split("\n")[0])
        message = re.sub(r"/\S+/", "…/", re.sub(r"\d+", "N", first))
        if ended.code > 0 and message not in self.messages:
            self.messages.append(message)

    def judge(self, ended: Ended, says: str, codes: Sequence[int], what: str) -> None:
        """A run that does not succeed has to end with one of these codes, and to say why."""
        if ended.code not in (0, *codes):
            self.wrong.append(f"{what}: code {ended.code}: {ended.told.strip()[-300:]}")
        elif ended.code and not re.search(says, ended.told):
            self.wrong.append(f"{what}: said {ended.told.strip()[-300:]}")


@dataclass(frozen=True)
class Place:
    """Where runs are made to fail.

    Attributes:
        runs: starts them.
        folder: with the inputs.
        inputs: what is in them.
        models: digests of the models that undisturbed runs wrote, by command: one each.
    """

    runs: Server
    folder: Path
    inputs: Mapping[str, bytes]
    models: dict[str, set[str]] = field(default_factory=dict)

    def clear(self) -> None:
        """Remove all but the inputs."""
        for each in self.folder.iterdir():
            if each.name in ELSEWHERE:  # disks of their own, maybe
                empty(each)
            elif each.is_dir():
                shutil.rmtree(each)
            elif each.name not in self.inputs:
                each.unlink()

    def left(self, command: str) -> Left:
        """What lies there after a run."""
        return left_in(self.folder, self.inputs, FACES.get(command, "out"))

    def again(self, found: Findings, command: str, what: str) -> Ended:
        """Nothing is wrong any more: the same command must succeed, as ever, and leave nothing beside its result."""
        words, out = list(COMMANDS[command]), FACES.get(command, "out")
        if command == "evolve" and (self.folder / "out.checkpoint.npz").exists():
            words.append("--resume")
        ended = self.runs.run(words, self.folder)
        wrong = self.left(command).wrong
        if ended.code != 0 or not (self.folder / out).exists():
            wrong.append(f"code {ended.code}: {ended.told.strip()[-300:]}")
        if any((self.folder / f".edgepress{mark}{out}").exists() for mark in "-."):
            wrong.append("the working folder was left")
        if (model := self.folder / out / "model.onnx").exists():
            known = self.models.setdefault(command, set())
            known.add(hashlib.sha256(model.read_bytes()).hexdigest())
            if len(known) > 1:
                wrong.append("another model came of it than before")
        found.wrong += [f"rerun after {what}: {each}" for each in wrong]
        return ended

    def broken(
        self,
        found: Findings,
        command: str,
        fault: Fault,
        says: str,
        codes: Sequence[int],
        *,
        again: bool = True,
    ) -> Ended:
        """A run in which something goes wrong: it succeeds all the same, or says what it was, and a rerun succeeds."""
        what = f"{command}, {fault.kind} {fault.value:g}"
        fresh = fault.kind == "memory"
        start = run_fresh if fresh else self.runs.run
        ended = start(COMMANDS[command], self.folder, fault)
        found.note(ended, self.left(command), what)
        found.judge(ended, says, codes, what)
        if ended.code and again:
            self.again(found, command, what)
        self.clear()
        return ended
