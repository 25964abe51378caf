"""Device profiles: what a compressor must know of a device before it has one.

A profile is a TOML file whose keys are the fields of `DeviceSpec`, less its name; `base = "other"` takes what
is not given from another profile. `[[kernel]]` tables hold what kernels were measured at (`table.py`). `local` is
this machine: the user's file of that name, where it was measured here, else what the machine tells of itself.
"""

import json
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from edgepress.devices.table import KernelTable, as_float, kernel_lines, read_kernels
from edgepress.runtime.environment import Environment, architecture, describe

LOCAL = "local"
MICRO = "tflite-micro"
"""The engine of microcontrollers."""
_OLDEST_RUNTIME = "1.24"  # what the package itself asks for
_VNNI = {"avx512_vnni", "avx_vnni"}
_MACS_AN_INSTRUCTION = 2.46
"""Of onnxruntime's float convolutions on any 64-bit ARM core, counted under emulation."""


class ProfileError(ValueError):
    """A profile is unknown or wrong.

    Args:
        message: what is wrong and where.
        known: names that would have been accepted.
    """

    def __init__(self, message: str, known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.known = tuple(known)


@dataclass(frozen=True)
class DeviceSpec:
    """One device, or one kind of device.

    Attributes:
        name: as the user wrote it (of a file: its stem).
        arch: `x86_64`, `aarch64`, or `armv7e-m`, which has no operating system.
        activation_dtype: `uint8` or `int8`: the activation type whose integer kernels are fast there.
        weight_bits: 8, or 7 where u8·s8 products saturate at 16 bits.
        channel_multiple: widths and ranks that fill a kernel's lanes are multiples of this.
        runtime_version: onnxruntime release there, such as `1.23`.
        macs_per_ns_fp32: multiply-accumulates per nanosecond in float kernels, one thread.
        macs_per_ns_int8: the same in 8-bit kernels.
        bytes_per_ns: memory traffic per nanosecond.
        node_overhead_ns: fixed time of one node.
        cpu: the core's name, such as `cortex-a72`; empty for any core of the architecture.
        description: a line for people.
        transport: how to get there: `local`, `ssh`, `adb` or `qemu`; empty: by ssh where there is an address.
        address: for ssh as it takes it (`user@board`); for adb a serial number or `host:port`.
        python: the command that starts Python there, `python3` where it is empty.
        benchmark: for devices without Python: `benchmark_model` or `onnxruntime_perf_test`, a file here or there.
        instructions_per_ns: that it executes: assumed, for what was counted under emulation; 0 where nothing is.
        engine: what runs models there where that is not onnxruntime: `tflite-micro`.
        flash_bytes: for microcontrollers, what is there for a model's file; 0 elsewhere.
        arena_bytes: likewise, what is there for the interpreter's memory.
        source: what the numbers rest on: `measured`, `emulated` or `data sheet`.
        table: what kernels were measured at, or None.
    """

    name: str
    arch: str
    activation_dtype: str
    weight_bits: int
    channel_multiple: int
    runtime_version: str
    macs_per_ns_fp32: float
    macs_per_ns_int8: float
    bytes_per_ns: float
    node_overhead_ns: float
    cpu: str = ""
    description: str = ""
    transport: str = ""
    address: str = ""
    python: str = ""
    benchmark: str = ""
    instructions_per_ns: float = 0.0
    engine: str = ""
    flash_bytes: int = 0
    arena_bytes: int = 0
    source: str = ""
    table: KernelTable | None = None

    def ns_of(self, instructions: float) -> float:
        """What so many instructions, counted under emulation, should take: assumed, not measured."""
        return instructions / (self.instructions_per_ns or self.macs_per_ns_fp32 / _MACS_AN_INSTRUCTION)


_CHOICES: dict[str, tuple[object, ...]] = {
    "arch": ("x86_64", "aarch64", "armv7e-m"),
    "activation_dtype": ("uint8", "int8"),
    "weight_bits": (7, 8),
    "transport": ("local", "ssh", "adb", "qemu"),
    "engine": (MICRO,),
    "source": ("measured", "emulated", "data sheet"),
}
_TYPES = {field.name: field.type for field in fields(DeviceSpec) if field.name not in ("name", "table")}
_OPTIONAL = {
    *("cpu", "description", "transport", "address", "python", "benchmark", "instructions_per_ns"),
    *("engine", "flash_bytes", "arena_bytes", "source"),
}
_NUMBERS = {
    *("macs_per_ns_fp32", "macs_per_ns_int8", "bytes_per_ns", "node_overhead_ns", "instructions_per_ns"),
    *("flash_bytes", "arena_bytes", "kernel"),
}
_ELSEWHERE = ("ssh", "adb", "qemu")


def load_profile(name_or_path: str | Path, user_dirs: Sequence[Path] = ()) -> DeviceSpec:
    """Find and read a profile.

    Args:
        name_or_path: `local`, a name (a user's own shadow ours), or the path of a TOML file.
        user_dirs: folders with the user's own `NAME.toml`.

    Raises:
        ProfileError: no such profile, not readable, or a field is missing, unknown or wrong.
    """
    name = str(name_or_path)
    if name == LOCAL:
        machine = describe()
        own = _own_local(user_dirs)
        return own if own is not None and is_host(own, machine) else local_profile(machine)
    spec_name = Path(name).stem if name.endswith(".toml") else name
    return _checked(spec_name, _table(name, user_dirs, ()))


def dump_profile(spec: DeviceSpec) -> str:
    """The text of a profile that stands by itself; `load_profile` reads it."""
    lines = [f"{key} = {_text(getattr(spec, key))}" for key in _TYPES if getattr(spec, key) not in ("", 0)]
    kernels = kernel_lines(spec.table, 1 / spec.ns_of(1)) if spec.table else ()
    return "\n".join([*lines, "", *kernels]).rstrip() + "\n"


def known_profiles(user_dirs: Sequence[Path] = ()) -> list[str]:
    """All names that `load_profile` takes, sorted."""
    return sorted({LOCAL, *(Path(entry.name).stem for entry in _entries(user_dirs))})


def local_profile(machine: Environment) -> DeviceSpec:
    """The profile of a machine, from its architecture and features; costs are the nearest profile's.

    Args:
        machine: what `describe` found.

    Raises:
        ProfileError: neither x86-64 nor 64-bit ARM.
    """
    table = _table(nearest_profile(machine), (), ())
    if machine.arch == "x86_64":
        table["channel_multiple"] = 16 if "avx512f" in machine.features else 8
    return _checked(LOCAL, {**table, "runtime_version": "installed", "cpu": "", "description": machine.cpu})


def nearest_profile(machine: Environment) -> str:
    """Our profile that is most like a machine, by its architecture and its 8-bit dot products.

    Unknown features, as where it is not Linux, count as none: 7 bits are right on every x86.

    Raises:
        ProfileError: neither x86-64 nor 64-bit ARM.
    """
    features = set(machine.features)
    if machine.arch == "x86_64":
        return "x86" if features & _VNNI else "x86-avx2"
    if machine.arch == "aarch64":
        return "cortex-a76" if "asimddp" in features else "cortex-a72"
    known = [name for name in known_profiles() if name != LOCAL]
    raise ProfileError(f"no profile fits this machine ({machine.arch})", known)


def is_host(spec: DeviceSpec, machine: Environment | None = None) -> bool:
    """Whether a time measured on this machine is a time of that device; otherwise costs are predicted.

    Args:
        spec: the device.
        machine: this machine, looked at afresh when not given.
    """
    if spec.transport in _ELSEWHERE or (spec.address and spec.transport != LOCAL):
        return False
    if spec.arch != (machine.arch if machine else architecture()):
        return False
    here = machine or describe()
    return spec.cpu == here.cpu.lower() if spec.cpu else not _other_products(spec, here)


def remark(spec: DeviceSpec, machine: Environment | None = None) -> str:
    """What a user should know who takes a profile for this machine, or runs its 8-bit models here; mostly nothing.

    Args:
        spec: the device.
        machine: this machine, looked at afresh when not given.
    """
    if spec.arch != (machine.arch if machine else architecture()) or spec.cpu or spec.address:
        return ""
    if not _other_products(spec, machine or describe()):
        return ""
    if spec.weight_bits == 8:
        return (
            f"{spec.name} has VNNI and this machine has not: costs are predicted, and 8-bit weights may saturate when "
            "models are run here. Profiles for machines without it are x86-avx2 and local."
        )
    return f"{spec.name} has no VNNI and this machine has: costs are predicted. Its own profiles are x86 and local."


def _other_products(spec: DeviceSpec, machine: Environment) -> bool:
    """Whether 8-bit products of an x86 are made in another way: with VNNI, and so for 8 bits of weight, or without."""
    return spec.arch == "x86_64" and (spec.weight_bits == 8) != bool(_VNNI & set(machine.features))


def installed_runtime() -> str:
    """Release of the onnxruntime installed here, as `major.minor`."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return ".".join(metadata.version(package).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return _OLDEST_RUNTIME


def _own_local(user_dirs: Sequence[Path]) -> DeviceSpec | None:
    """The user's file named `local`, where there is one."""
    if not any((folder / f"{LOCAL}.toml").is_file() for folder in user_dirs):
        return None
    return _checked(LOCAL, _table(LOCAL, user_dirs, ()))


def _entries(user_dirs: Sequence[Path]) -> Iterator[Traversable]:
    """Profile files, the user's before ours."""
    for folder in (*user_dirs, resources.files("edgepress.devices.profiles")):
        if folder.is_dir():
            yield from (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _find(name: str, user_dirs: Sequence[Path]) -> Traversable:
    if name.endswith(".toml"):
        if Path(name).is_file():
            return Path(name)
        raise ProfileError(f"no such profile file: {name}", known_profiles(user_dirs))
    for entry in _entries(user_dirs):
        if entry.name == f"{name}.toml":
            return entry
    raise ProfileError(f"unknown device profile {name!r}", known_profiles(user_dirs))


def _table(name: str, user_dirs: Sequence[Path], above: tuple[str, ...]) -> dict[str, Any]:
    """Keys of a profile over those of its base; `above` are the profiles that led here."""
    entry = _find(name, user_dirs)
    try:
        table = tomllib.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"profile {name} cannot be read: {error}") from error
    base = table.pop("base", None)
    if base is None:
        return table
    chain = (*above, name)
    if not isinstance(base, str):
        raise ProfileError(f"profile {name}: base must be a profile's name, not {base!r}")
    if base in chain:
        raise ProfileError("profiles build on each other in a circle: " + " → ".join((*chain, base)))
    below = _table(base, user_dirs, chain)
    if _NUMBERS & set(table):
        below.pop("source", None)  # other numbers rest on something else
    return {**below, **table}


def _checked(name: str, table: dict[str, Any]) -> DeviceSpec:
    entries = table.pop("kernel", None)
    unknown = sorted(set(table) - set(_TYPES))
    if unknown:
        raise ProfileError(
            f"profile {name}: unknown key {', '.join(unknown)}", sorted([*_TYPES, "base", "kernel"])
        )
    missing = sorted(set(_TYPES) - set(table) - _OPTIONAL)
    if missing:
        raise ProfileError(f"profile {name}: missing {', '.join(missing)}")
    values = {key: _value(name, key, value) for key, value in table.items()}
    if values["runtime_version"] == "installed":
        values["runtime_version"] = installed_runtime()
    _check_way(name, values)
    spec = DeviceSpec(name=name, **values)
    try:
        kernels = None if entries in (None, []) else read_kernels(entries, 1 / spec.ns_of(1))
    except ValueError as error:
        raise ProfileError(f"profile {name}: {error}") from error
    return replace(spec, table=kernels)


def _check_way(name: str, values: dict[str, Any]) -> None:
    """Refuse a way to the device that leads nowhere, or an address that a program would take for an option."""
    transport, address = values.get("transport", ""), values.get("address", "")
    if address.startswith("-") or any(letter.isspace() or not letter.isprintable() for letter in address):
        raise ProfileError(f"profile {name}: address must be one word that is no option, not {address!r}")
    if transport == "ssh" and not address:
        raise ProfileError(f"profile {name}: transport ssh needs an address, such as user@board")
    if transport in ("local", "qemu") and address:
        raise ProfileError(f"profile {name}: transport {transport} takes no address")
    memory = [values.get(key, 0) for key in ("flash_bytes", "arena_bytes")]
    if (values.get("engine") == MICRO) != (min(memory) > 0) or (max(memory) > 0) != (min(memory) > 0):
        raise ProfileError(f"profile {name}: engine {MICRO}, flash_bytes and arena_bytes go together")
    for key in ("python", "benchmark"):
        if "\0" in values.get(key, ""):
            raise ProfileError(f"profile {name}: {key} cannot be read")
    try:
        shlex.split(values.get("python", ""))
    except ValueError as error:
        raise ProfileError(f"profile {name}: python is no command: {error}") from error


def _value(name: str, key: str, value: Any) -> Any:
    kind = _TYPES[key]
    if kind is float and type(value) is int:
        value = as_float(value)
    if type(value) is not kind:
        raise ProfileError(f"profile {name}: {key} must be {_words(kind)}, not {value!r}")
    if isinstance(value, (int, float)) and not 0 < value < float("inf"):  # NaN fails it too
        raise ProfileError(f"profile {name}: {key} must be positive and finite, not {value!r}")
    choices = _CHOICES.get(key)
    if choices and value not in choices and not (key in _OPTIONAL and value == ""):
        raise ProfileError(f"profile {name}: {key} must be {' or '.join(map(str, choices))}, not {value!r}")
    if key == "runtime_version" and value != "installed" and not _is_version(value):
        raise ProfileError(f"profile {name}: runtime_version must look like 1.23, not {value!r}")
    return value


def _is_version(text: str) -> bool:
    parts = text.split(".")
    return len(parts) >= 2 and all(part.isascii() and part.isdigit() for part in parts)


def _words(kind: Any) -> str:
    return {str: "text", int: "a whole number", float: "a number"}[kind]


def _text(value: str | int | float) -> str:
    """A value as TOML; of what JSON writes otherwise in strings, only DEL is no TOML."""
    return json.dumps(value).replace("\x7f", "\\u007f")
