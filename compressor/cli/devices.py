"""`compress devices`: which device profiles there are; `compress devices profile`: measure this machine for one.

The commands for single devices are in `boards.py`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from edgepress.compressor.cli.targets import find_target, user_profiles
from edgepress.compressor.cli.troubles import errors_told
from edgepress.compressor.errors import DeviceError, UsageError
from edgepress.compressor.outdir import write_file
from edgepress.devices.opening import device_of, readiness, transport_of
from edgepress.devices.profile import (
    LOCAL,
    DeviceSpec,
    ProfileError,
    dump_profile,
    is_host,
    known_profiles,
    local_profile,
)
from edgepress.devices.sweep import DEAREST_NS, measured_spec, sweep
from edgepress.devices.sweep import Progress as Tell
from edgepress.devices.there import COUNTED_MACS, timer_there
from edgepress.runtime.environment import Environment, describe

_ENDING = 0.9
"""Share of the time limit that timing may take; models are made and loaded in the rest."""
_BUSY = 0.5
"""Running processes per core above which the user is told."""


def devices(*, as_json: bool, debug: bool) -> int:
    """List profiles, and return the exit code; arguments as the options in `options/devices.py`."""
    _list(as_json)
    return 0


def profile(
    *, name: str | None, device: str | None, out: Path | None, threads: int, time_limit: float,
    as_json: bool, quiet: bool, debug: bool,
) -> int:  # fmt: skip
    """Measure, write, and return the exit code; likewise."""
    spec = None if device in (None, LOCAL) else find_target(str(device))
    word = name or (LOCAL if spec is None else spec.name)
    path = _path(None if out is not None and name is None else word, out)
    silent = quiet or as_json
    with errors_told(), _progress(silent) as tell:
        seconds = 60 * _ENDING * time_limit
        found = (
            _of_this_machine(threads, seconds, tell, quiet=silent)
            if spec is None
            else _of_device(spec, threads, seconds, tell)
        )
    write_file(path, dump_profile(found), "Name another file with --out.")
    used = str(path) if out is not None else word
    if as_json:
        click.echo(json.dumps({"file": str(path), "target": used}, indent=2))
    elif not quiet:
        click.echo(f"Wrote {path}" + ("" if used == LOCAL else f"\nUse it with --target {used}"))
    return 0


def _of_this_machine(threads: int, seconds: float, tell: Tell, *, quiet: bool) -> DeviceSpec:
    machine = describe()
    try:
        spec = local_profile(machine)
    except ProfileError as error:
        raise DeviceError(str(error), "Profiles can be made on x86-64 and 64-bit ARM.") from error
    if not quiet and machine.load_1min is not None and machine.load_1min > _BUSY * machine.cores:
        click.echo("warning: other programs keep this machine busy; times may come out too long", err=True)
    table = sweep(spec, threads=threads, time_limit_s=seconds, progress=tell)
    words = f"{machine.cpu}, {threads} thread{'' if threads == 1 else 's'}"
    cpu = "" if machine.cpu == "unknown" else machine.cpu.lower()
    return measured_spec(replace(spec, cpu=cpu, description=words), table)


def _of_device(spec: DeviceSpec, threads: int, seconds: float, tell: Tell) -> DeviceSpec:
    """The profile with times of a board; or with counts of an emulated core, its rates left as they are."""
    with device_of(spec, lambda line: tell(0.0, line)) as device:
        timer = timer_there(device, spec)
        dearest = DEAREST_NS if device.timed else COUNTED_MACS / spec.macs_per_ns_fp32
        table = sweep(
            spec, threads=threads, time_limit_s=seconds, timer=timer, progress=tell, dearest_ns=dearest
        )
        if device.timed:
            return measured_spec(spec, table)
    return replace(spec, instructions_per_ns=1 / spec.ns_of(1), table=replace(table, counted=True))


def _path(name: str | None, out: Path | None) -> Path:
    """Where the profile goes; refused before anything is timed where nothing can or should be written."""
    if name is not None and out is not None:
        raise UsageError("--name and --out exclude each other.", "A file's profile is named as the file.")
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{name!r} is no name of a profile.", "Letters, digits, and . + - _ make one.")
    path = out or user_profiles()[0] / f"{name or LOCAL}.toml"
    if path.suffix != ".toml":
        raise UsageError(f"{path} is no TOML file.", f"Name it {path.name}.toml.")
    if out is not None and out.exists():
        try:
            find_target(str(out))
        except UsageError as error:
            raise UsageError(f"{out} is no profile; it is not overwritten.", "Name another file.") from error
    return path


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell]:
    """A line on stderr with the time left; silent when not a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda share, what: None
        return
    columns = (TextColumn("{task.description:10}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("node", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


def _list(as_json: bool) -> None:
    machine = describe()
    rows = [_row(name, machine) for name in known_profiles(user_profiles())]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print(rows, Console())


def _row(name: str, machine: Environment) -> dict[str, Any]:
    """A line of the list; a damaged profile is one that says so."""
    try:
        spec = find_target(name)
    except (UsageError, ProfileError) as error:
        nothing = dict.fromkeys(
            ("arch", "cpu", "costs", "predicted_by", "source", "transport", "usable", "use")
        )
        return {"name": name, **nothing, "description": str(error)}
    usable, use = readiness(spec)
    return {
        "name": name,
        "arch": spec.arch,
        "cpu": spec.cpu,
        "costs": "measured" if is_host(spec, machine) else predicted_by(spec),
        "predicted_by": predicted_by(spec),
        "source": spec.source or None,
        "transport": transport_of(spec) or None,
        "usable": usable,
        "use": use,
        "description": spec.description,
    }


def predicted_by(spec: DeviceSpec) -> str:
    """What predicted costs rest on: `table`, `counted` or `rates`."""
    if spec.table is None:
        return "rates"
    return "counted" if spec.table.counted else "table"


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("profile", "core", "costs", "by", "now", "description"):
        table.add_column(heading, no_wrap=heading != "description", overflow="fold")
    for row in rows:
        now = "" if row["costs"] is None else {True: "yes", False: "no", None: "try"}[row["usable"]]
        core = row["cpu"] or (f"any {row['arch']}" if row["arch"] else "")
        cells = (row["name"], core, _costs(row), row["transport"] or "", now, row["description"])
        table.add_row(*map(Text, cells))
    console.print(table)


def _costs(row: dict[str, Any]) -> str:
    """What costs rest on, and of what kind the profile's own numbers are."""
    if row["costs"] is None:
        return "damaged"
    if row["costs"] == "measured":
        return f"measured here; {row['predicted_by']}"
    return str(row["costs"]) + (f", {row['source']}" if row["source"] else "")
