"""`compress devices show|check|add NAME`: what a profile says, whether the device answers, a profile for a board."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.text import Text

from edgepress.compressor.cli.bench_micro import facts
from edgepress.compressor.cli.targets import find_target, user_profiles
from edgepress.compressor.cli.troubles import errors_told, line_told
from edgepress.compressor.errors import DeviceError, UsageError
from edgepress.compressor.outdir import write_file
from edgepress.compressor.printable import printable
from edgepress.compressor.report.console import encodable
from edgepress.devices.base import Device
from edgepress.devices.opening import device_of, transport_of
from edgepress.devices.profile import (
    MICRO,
    DeviceSpec,
    ProfileError,
    dump_profile,
    load_profile,
    nearest_profile,
)
from edgepress.devices.remote import RemoteWorker
from edgepress.runtime.environment import Condition, Environment


def show(*, name: str, as_json: bool, debug: bool) -> int:
    """Print a profile as TOML, with all that it takes from others."""
    text = dump_profile(find_target(name))
    click.echo(json.dumps(tomllib.loads(text), indent=2) + "\n" if as_json else text, nl=False)
    return 0


def check(*, name: str, as_json: bool, debug: bool) -> int:
    """Connect to a device and print what it is; exit code 3 where it does not answer."""
    spec = find_target(name)
    if spec.engine == MICRO:
        lines = facts(spec)
    else:
        with errors_told(), line_told() as tell, device_of(spec, tell) as device:
            lines = _report(spec, device)
    if as_json:
        click.echo(json.dumps(dict(lines), indent=2, ensure_ascii=False))
        return 0
    console = Console()
    for label, text in lines:
        console.print(Text(encodable(console, printable(f"{label:13}{text}"))), soft_wrap=True)
    return 0


def add(
    *, name: str, address: str | None, transport: str | None, base: str | None, python: str | None,
    benchmark: str | None, force: bool, as_json: bool, debug: bool,
) -> int:  # fmt: skip
    """Write a profile of your own for a board, and have it answer once."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or name == "local":
        raise UsageError(f"{name!r} is no name of a board.", "Letters, digits, and . + - _ make one.")
    if not address and transport != "adb":
        raise UsageError("Where is the board?", "Give --address user@board, or --transport adb.")
    path = user_profiles()[0] / f"{name}.toml"
    if path.exists() and not force:
        raise UsageError(f"{path} is there already.", "Choose another name, or add --force.")

    def aimed(like: str) -> DeviceSpec:
        return replace(
            find_target(like), name=name, transport=transport or "ssh", address=address or "",
            python=python or "", benchmark=benchmark or "", table=None,
        )  # fmt: skip

    spec = aimed(base or "arm")
    _refuse_nonsense(spec)
    described = ""
    with errors_told(), device_of(spec) as device:
        if device.python:
            machine, _ = RemoteWorker(device).environment()
            nearest = base or _nearest(machine)
            cpu = "" if machine.cpu == "unknown" else machine.cpu.lower()
            described = f"{machine.cpu}, {machine.cores} cores"
            spec = replace(aimed(nearest), cpu=cpu, arch=machine.arch)
    spec = replace(spec, description=described or f"like {base or 'arm'}")
    write_file(path, dump_profile(spec), "Is the settings' folder yours?")
    if as_json:
        click.echo(json.dumps({"file": str(path), "description": spec.description}, indent=2))
        return 0
    click.echo(f"Wrote {path}: {spec.description}\nUse it with --device {name}; costs are not measured yet.")
    return 0


def _refuse_nonsense(spec: DeviceSpec) -> None:
    """What a profile's file must not say is refused before it is written."""
    with TemporaryDirectory(prefix="edgepress-") as folder:
        path = Path(folder) / f"{spec.name}.toml"
        path.write_text(dump_profile(spec), encoding="utf-8")
        try:
            load_profile(str(path))
        except ProfileError as error:
            raise UsageError(str(error)) from error


def _nearest(machine: Environment) -> str:
    try:
        return nearest_profile(machine)
    except ProfileError as error:
        raise DeviceError(
            f"no profile fits that machine ({machine.arch})", "Name the nearest one with --base."
        ) from error


def _report(spec: DeviceSpec, device: Device) -> list[tuple[str, str]]:
    """What the device tells of itself, label and text."""
    where = " ".join(word for word in (transport_of(spec), spec.address) if word)
    lines = [("device", f"{spec.name} ({where}) answers")]
    if not device.python:
        done = device.run(["uname", "-srm"], limit_s=20)
        return [*lines, ("system", done.out.decode("utf-8", "replace").strip() or "unknown")]
    machine, now = RemoteWorker(device).environment()
    return [*lines, *_facts(machine, now)]


def _facts(machine: Environment, now: Condition) -> list[tuple[str, str]]:
    engines = ", ".join(f"{name} {version}" for name, version in machine.engines.items())
    frequency = "unknown"
    if now.frequency_mhz is not None:
        top = f" of {now.top_frequency_mhz:.0f}" if now.top_frequency_mhz is not None else ""
        frequency = f"{now.frequency_mhz:.0f}{top} MHz"
    return [
        ("processor", f"{machine.cpu} ({machine.arch})"),
        ("features", ", ".join(machine.features) or "unknown"),
        ("cores", str(machine.cores)),
        ("governor", machine.governor or "unknown"),
        ("frequency", frequency),
        ("temperature", "unknown" if now.temperature_c is None else f"{now.temperature_c:.0f} °C"),
        ("load (1 min)", "unknown" if now.load_1min is None else f"{now.load_1min:.2f}"),
        ("system", machine.os),
        ("python", machine.python),
        ("engines", engines or "none: python3 -m pip install onnxruntime"),
    ]
