"""Releases of Python and of the dependencies that edgepress promises, and the package as others install it.

    python benchmarks/platforms.py [--steps resolve,install,test] [--out FILE]

resolve   every extra, for each release of Python, with wheels alone, to the newest and to the oldest versions allowed
install   wheel and sdist into an empty environment of each release that this machine has; there, outside the
          repository, the commands of `make demo` and a replay of what they wrote
test      a part of the tests with the oldest dependencies on the oldest release, and with the newest on the newest

Environments are made by uv in a temporary folder, and go. Exit code 1 where something fails; where there is no package
index, one line says that nothing was tried.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from common import HERE, OWN_ZOO, machine, shown_command, write_json
from interpreters import interpreters

ROOT = HERE.parent
RELEASES = ("3.11", "3.12", "3.13")
STRATEGIES = {"newest": "highest", "oldest": "lowest-direct"}
STEPS = ("resolve", "install", "test")
TESTS = (
    *("compressor", "runtime", "devices/test_profile.py", "test_bad_input.py", "test_cli.py", "test_gate.py"),
    *("test_gate_files.py", "test_recipes.py", "test_session.py", "test_trust.py", "test_evolve.py"),
)
"""Of the tests: those that take no browser, no board and no peers."""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=")
OWN = ("--no-binary", "edgepress")
MODEL = "fmnist_cnn"
LIMIT_S = 3600
PROBE_S = 120


@dataclass(frozen=True)
class Result:
    """One thing tried.

    Attributes:
        step: of `STEPS`.
        what: in words.
        python: release.
        fine: whether it went as it should.
        found: what came of it, or the last lines of what went wrong.
        seconds: that it took.
    """

    step: str
    what: str
    python: str
    fine: bool
    found: str
    seconds: float


class Workshop:
    """A temporary folder with uv, for environments."""

    def __init__(self, folder: Path) -> None:
        """Find uv, or install it, and ask the package index for one small package.

        Raises:
            SystemExit: with code 0, where nothing can be had.
        """
        self.folder = folder
        self.uv = shutil.which("uv") or str(folder / "tools" / "bin" / "uv")
        if not Path(self.uv).exists():
            venv.create(folder / "tools", with_pip=True)
            pip = [str(folder / "tools" / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
            if subprocess.run(pip, check=False, capture_output=True).returncode:
                _skip()
        if not self._reaches_index():
            _skip()

    def _reaches_index(self) -> bool:
        """Whether uv finds a package that is not in its cache."""
        words = [self.uv, "pip", "compile", "--quiet", "--no-cache", "--no-deps", "-"]
        try:
            done = subprocess.run(
                words, input="click\n", text=True, capture_output=True, check=False, timeout=PROBE_S
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def run(self, step: str, what: str, python: str, words: Sequence[str], cwd: Path = ROOT) -> Result:
        """Run a command, without a way to this repository's own packages.

        Args:
            step: see `Result`.
            what: likewise.
            python: likewise.
            words: of the command.
            cwd: where.
        """
        kept = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        started = time.monotonic()
        try:
            done = subprocess.run(
                words, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return Result(step, what, python, False, f"took over {LIMIT_S} s", time.monotonic() - started)
        said = done.stdout if done.returncode == 0 else (done.stdout + done.stderr)[-1500:]
        return Result(step, what, python, done.returncode == 0, said.strip(), time.monotonic() - started)

    def install(self, python: Path) -> list[str]:
        """The words that install into an environment, from wheels alone."""
        return [self.uv, "pip", "install", "--quiet", "--python", str(python), "--only-binary", ":all:"]

    def environment(self, name: str, step: str, release: str, program: str) -> tuple[Path, Result]:
        """The Python of an empty environment, and how making it went.

        Args:
            name: of its folder.
            step: see `Result`.
            release: likewise.
            program: the Python that it is made from.
        """
        folder = self.folder / name
        words = [self.uv, "venv", "--quiet", "--python", program, str(folder)]
        return folder / "bin" / "python", self.run(step, f"environment {name}", release, words)


def resolved(shop: Workshop, extras: Mapping[str, Sequence[str]]) -> Iterator[Result]:
    """Each extra with wheels alone."""
    compiled = [
        shop.uv,
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--only-binary",
        ":all:",
    ]
    for release in RELEASES:
        for strategy, said in STRATEGIES.items():
            for extra in (
                "",
                *(extras if strategy == "newest" else ("peers", "dev")),
            ):  # dev has all the others
                words = [*compiled, "--python-version", release, "--resolution", said]
                words += ["--extra", extra] if extra else []
                what = f"{strategy} of {f'[{extra}]' if extra else 'the core'}"
                found = shop.run("resolve", what, release, [*words, "pyproject.toml"])
                yield _told(found, f"{len(found.found.splitlines())} packages") if found.fine else found


def installed(shop: Workshop) -> Iterator[Result]:
    """Wheel and sdist in empty environments, and the demo in each."""
    built = shop.run(
        "install",
        "wheel and sdist built",
        "",
        [shop.uv, "build", "--quiet", "--out-dir", str(shop.folder / "dist")],
    )
    files = sorted(
        path for path in (shop.folder / "dist").glob("edgepress-*") if path.suffix in (".gz", ".whl")
    )
    yield _told(built, ", ".join(path.name for path in files)) if built.fine else built
    for release in RELEASES:
        program = next(interpreters(release), None)
        if program is None:
            yield Result("install", "skipped: this machine has no such interpreter", release, True, "", 0.0)
            continue
        for file in files:
            kind = "wheel" if file.suffix == ".whl" else "sdist"
            python, made = shop.environment(f"{kind}{release}", "install", release, program)
            if not made.fine:
                yield made
                continue
            own = () if kind == "wheel" else OWN
            words = [*shop.install(python), *own, f"edgepress[report] @ {file.as_uri()}"]
            found = shop.run("install", kind, release, words)
            yield found
            if found.fine and (kind == "wheel" or release == RELEASES[0]):
                yield from demo(shop, python.parent, release, kind)
            shutil.rmtree(python.parents[1])


def demo(shop: Workshop, programs: Path, release: str, kind: str) -> Iterator[Result]:
    """What `make demo` runs, and what the README says next, with nothing of the repository but the model."""
    folder = shop.folder / f"demo-{kind}{release}"
    shutil.copytree(OWN_ZOO / MODEL, folder / MODEL)
    compress = str(programs / "compress")
    main = [compress, f"{MODEL}/model.onnx", "--data", f"{MODEL}/calib.npz", "--test", f"{MODEL}/test.npz"]
    for words in (
        [*main, "--budget", "2", "--no-cache", "--out", "demo-out"],
        [compress, "replay", "demo-out/manifest.json", "--out", "again"],
        [compress, "doctor"],
    ):
        shown = " ".join([words[1].rpartition("/")[2], *words[2:3]])
        found = shop.run("install", f"{kind}: compress {shown}", release, words, folder)
        lines = found.found.splitlines()
        yield _told(found, lines[0] if words[1] != "replay" else lines[-1]) if found.fine and lines else found


def tested(shop: Workshop) -> Iterator[Result]:
    """The tests at both ends of what is allowed."""
    for strategy, release in zip(("oldest", "newest"), (RELEASES[0], RELEASES[-1]), strict=True):
        program = next(interpreters(release), None)
        if program is None:
            yield Result("test", "skipped: this machine has no such interpreter", release, True, "", 0.0)
            continue
        python, made = shop.environment(strategy, "test", release, program)
        if not made.fine:
            yield made
            continue
        words = [*shop.install(python), "--resolution", STRATEGIES[strategy], *OWN, ".[dev]"]
        found = shop.run("test", f"{strategy} dependencies", release, words)
        yield found
        if found.fine:
            words = [str(python), *PYTEST, *(f"tests/{name}" for name in TESTS)]
            ran = shop.run("test", f"tests with {strategy} dependencies", release, words)
            counts = re.findall(
                r"\d+ (?:passed|failed|skipped|errors?)", ran.found.splitlines()[-1] if ran.found else ""
            )
            yield _told(ran, ", ".join(counts)) if ran.fine else ran
        shutil.rmtree(python.parents[1])


def _skip() -> NoReturn:
    print("skipped: no package index can be reached, so nothing was tried")
    raise SystemExit(0)


def _told(result: Result, found: str) -> Result:
    return Result(**{**asdict(result), "found": found})


def stored(
    about: Mapping[str, object], steps: Sequence[str], results: Sequence[Result], out: Path
) -> dict[str, object]:
    """The document, by step; steps that were not taken this time stay as they are in the file."""
    known = json.loads(out.read_text("utf-8"))["steps"] if out.exists() else {}
    for step in steps:
        told = [asdict(result) for result in results if result.step == step]
        if told:
            known[step] = {**about, "failed": sum(not each["fine"] for each in told), "results": told}
    return {"steps": {step: known[step] for step in STEPS if step in known}}


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Releases of Python and of the dependencies.")
    parser.add_argument("--steps", default=",".join(STEPS), help="those to take")
    parser.add_argument(
        "--out", type=Path, help="JSON file of the result; steps that are not taken stay in it"
    )
    given = parser.parse_args(words)
    steps = given.steps.split(",")
    if unknown := sorted({*steps} - {*STEPS}):
        raise SystemExit(f"no such step: {', '.join(unknown)}; there are: {', '.join(STEPS)}")
    about = {
        "command": shown_command("python benchmarks/platforms.py", words or sys.argv[1:]),
        "machine": machine(),
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        take = {
            "resolve": lambda: resolved(shop, extras),
            "install": lambda: installed(shop),
            "test": lambda: tested(shop),
        }
        for step in steps:
            for result in take[step]():
                results.append(result)
                mark = "ok  " if result.fine else "FAIL"
                print(
                    f"{mark} {result.step} {result.python:5} {result.what}: {result.found}",
                    flush=True,
                )
                if given.out:  # after every result: all of them take an hour
                    write_json(stored(about, steps, results, given.out), given.out)
    failed = [result for result in results if not result.fine]
    print(f"{len(results)} tried, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
