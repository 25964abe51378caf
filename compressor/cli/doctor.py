"""`compress doctor`: what is installed, what this machine can do, what is missing and how to get it."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepress.runtime.environment import FEATURES, Environment, describe, versions
from edgepress.runtime.memory import null_model
from edgepress.runtime.record import EngineError

_PACKAGE = "edgepress"
_HIDDEN_EXTRAS = {
    "all",
    "dev",
}  # the sum of the others; what changing the code takes
_EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;>]*(?:>=\s*(?P<least>[\d.]+))?[^;]*(?:;(?P<marker>.*))?")


@dataclass(frozen=True)
class Package:
    """A package that edgepress needs, always or for an extra.

    Attributes:
        name: its name on the package index.
        extra: the extra that asks for it, empty where it is always needed.
        least: oldest version that will do, empty where any will.
        installed: the version here, None where it is missing.
    """

    name: str
    extra: str
    least: str
    installed: str | None

    @property
    def ok(self) -> bool:
        """Whether it is there and new enough."""
        return self.installed is not None and _release(self.installed) >= _release(self.least)


@dataclass(frozen=True)
class Diagnosis:
    """All that `compress doctor` found.

    Attributes:
        version: of edgepress; None where it is not installed as a package.
        packages: what it needs.
        engine_error: why the inference engine does not run, empty where it does.
        environment: this machine.
        emulator: path of the ARM emulator, None where there is none.
    """

    version: str | None
    packages: tuple[Package, ...]
    engine_error: str
    environment: Environment
    emulator: str | None

    def problems(self) -> list[str]:
        """What keeps `compress` from running, each with its remedy."""
        found = []
        if self.version is None:
            found.append(f"{_PACKAGE} is not installed as a package: pip install {_PACKAGE}")
        for package in self.packages:
            if not package.extra and not package.ok:
                have = f"{package.installed} is too old" if package.installed else "is missing"
                wanted = f"{package.name}>={package.least}" if package.least else package.name
                found.append(f"{package.name} {have}: pip install '{wanted}'")
        if self.engine_error:
            found.append(f"{self.engine_error}: pip install --force-reinstall onnxruntime")
        return found

    def extras(self) -> dict[str, tuple[Package, ...]]:
        """Packages of each extra."""
        names = sorted({package.extra for package in self.packages if package.extra})
        return {name: tuple(p for p in self.packages if p.extra == name) for name in names}


def doctor(*, as_json: bool) -> int:
    """Say it, and return the exit code; arguments as the options in `options/doctor.py`."""
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(_record(diagnosis), indent=2))
    else:
        _show(diagnosis, Console())
    return 2 if diagnosis.problems() else 0


def diagnose() -> Diagnosis:
    """Look at this installation and this machine."""
    try:
        version: str | None = metadata.version(_PACKAGE)
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        version, requirements = None, []
    return Diagnosis(
        version=version,
        packages=packages(requirements),
        engine_error=_engine_error(),
        environment=describe(),
        emulator=next((path for path in map(shutil.which, _EMULATORS) if path), None),
    )


def packages(requirements: list[str]) -> tuple[Package, ...]:
    """What the package's own metadata asks for, looked up here.

    Args:
        requirements: `Requires-Dist` lines, such as `jinja2>=3.1; extra == "report"`.
    """
    found = []
    for line in requirements:
        match = _REQUIREMENT.match(line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", (match and match["marker"]) or "")
        if match is None or (extra and extra[1] in _HIDDEN_EXTRAS):
            continue
        installed = versions([match["name"]]).get(match["name"])
        found.append(Package(match["name"], extra[1] if extra else "", match["least"] or "", installed))
    return tuple(found)


def notes(machine: Environment) -> list[str]:
    """What this machine's features mean for compression.

    Args:
        machine: what `describe` found.
    """
    features = set(machine.features)
    found = []
    if machine.arch == "x86_64":
        if not features:
            found.append("The system hides the processor's features: 8-bit weights use 7 bits, to be safe.")
        elif features & {"avx512_vnni", "avx_vnni"}:
            found.append("VNNI: 8-bit kernels are fast and exact; weights use all 8 bits.")
        else:
            found.append(
                "No VNNI: 8-bit products saturate at 16 bits, so weights use 7 bits; gains are small."
            )
    elif machine.arch == "aarch64":
        if "asimddp" in features:
            found.append("Dot product (SDOT): 8-bit kernels are fast.")
        else:
            found.append("No dot product: 8-bit kernels are hardly faster than float ones.")
    else:
        found.append(f"No profile fits this machine ({machine.arch}): name a --target.")
    if machine.governor not in (None, "performance"):
        found.append(f"Frequency governor {machine.governor}: timings vary more than under 'performance'.")
    if machine.load_1min is not None and machine.load_1min > machine.cores:
        found.append(f"Load {machine.load_1min:.1f} on {machine.cores} cores: timings will be noisy.")
    return found


def _engine_error() -> str:
    """Run the smallest model there is; the reason where that fails."""
    try:
        from edgepress.runtime.engines.ort import OrtEngine

        OrtEngine().load(null_model())({"x": np.zeros(1, np.float32)})
    except (ImportError, OSError, EngineError) as error:
        return f"onnxruntime does not run here ({error})"
    return ""


def _release(version: str) -> tuple[int, ...]:
    """`1.26.0rc1` → (1, 26, 0): enough to compare with a lower bound."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _record(diagnosis: Diagnosis) -> dict[str, object]:
    core = [package for package in diagnosis.packages if not package.extra]
    return {
        "ok": not diagnosis.problems(),
        "problems": diagnosis.problems(),
        "versions": {
            "python": diagnosis.environment.python,
            _PACKAGE: diagnosis.version,
            **{package.name: package.installed for package in core},
        },
        "extras": {
            extra: {
                "ok": all(package.ok for package in members),
                "packages": {package.name: package.installed for package in members},
                "install": _install(extra),
            }
            for extra, members in diagnosis.extras().items()
        },
        "environment": asdict(diagnosis.environment),
        "emulator": diagnosis.emulator,
        "notes": notes(diagnosis.environment),
    }


def _show(diagnosis: Diagnosis, console: Console) -> None:
    machine = diagnosis.environment
    core = [package for package in diagnosis.packages if not package.extra]
    _table(
        console,
        "Software",
        ("package", "here", "needed"),
        [
            ("python", machine.python, "3.11"),
            (_PACKAGE, diagnosis.version or "missing", ""),
            *((package.name, package.installed or "missing", package.least) for package in core),
        ],
    )
    extras = []
    for extra, members in diagnosis.extras().items():
        lacking = [package.name for package in members if not package.ok]
        state = f"missing: {', '.join(lacking)}" if lacking else "present"
        extras.append((extra, state, _install(extra) if lacking else ""))
    _table(console, "Extras", ("extra", "state", "to get it"), extras)
    features = [f"{name}: {FEATURES[name]}" for name in machine.features]
    _table(
        console,
        "Machine",
        ("", ""),
        [
            ("processor", f"{machine.cpu} ({machine.arch})"),
            ("features", "\n".join(features) or "unknown"),
            ("cores", str(machine.cores)),
            ("governor", machine.governor or "unknown"),
            ("load (1 min)", "unknown" if machine.load_1min is None else f"{machine.load_1min:.2f}"),
            ("system", machine.os),
            ("ARM emulator", diagnosis.emulator or "none (apt install qemu-user)"),
        ],
    )
    for note in notes(machine):
        console.print(Text(f"· {note}"))
    problems = diagnosis.problems()
    for problem in problems:
        console.print(Text(f"✗ {problem}", style="red"), soft_wrap=True)
    if not problems:
        console.print(Text("compress can run here.", style="green"))


def _table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header, title=title, title_justify="left", show_header=any(header))
    for row in rows:
        table.add_row(
            *map(Text, row)
        )  # as text: rich would take the brackets of `edgepress[report]` for markup
    console.print(table)


def _install(extra: str) -> str:
    return f"pip install '{_PACKAGE}[{extra}]'"
