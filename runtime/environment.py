"""The machine of a measurement: processor, what it can do, load, system, engines. Standard library only."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ENGINE_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime")

TFLITE_PACKAGES = frozenset({"ai-edge-litert", "tflite-runtime"})
"""Those of them that run TFLite files."""

FEATURES = {
    "avx2": "256-bit integer and float kernels",
    "fma": "fused multiply-add",
    "avx512f": "512-bit float kernels",
    "avx512_vnni": "8-bit dot products (512-bit)",
    "avx_vnni": "8-bit dot products (256-bit)",
    "amx_int8": "8-bit tiles",
    "asimd": "128-bit kernels (NEON)",
    "asimddp": "8-bit dot products (SDOT, UDOT)",
    "i8mm": "8-bit matrix products",
    "sve": "scalable vectors",
}
"""Feature, as Linux names it → what kernels make of it."""

_THROTTLED = 0.9
"""A frequency below this share of what it was, or may be, is told."""
_BUSY = 0.5
"""Running processes per core above which times may be too long."""

# implementer and part (MIDR_EL1) → name, from Arm's reference manuals
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD49): "Neoverse-N2",
}


@dataclass(frozen=True)
class Environment:
    """Where a measurement was made.

    Attributes:
        arch: `x86_64`, `aarch64` or what the system calls it.
        cpu: the processor's name; "unknown" where the system hides it.
        features: those of `FEATURES` that it has; empty where the system does not tell.
        cores: processors that this process may use.
        governor: frequency governor of the first processor, None where there is none to see.
        load_1min: mean number of running processes over the last minute, None where not known.
        os: system and release.
        python: version.
        engines: package → version of each engine that is installed.
    """

    arch: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    governor: str | None
    load_1min: float | None
    os: str
    python: str
    engines: dict[str, str]


@dataclass(frozen=True)
class Condition:
    """What a machine is like at one moment; None where the system does not tell.

    Attributes:
        frequency_mhz: of the fastest processor now.
        top_frequency_mhz: the highest that the system would allow it.
        temperature_c: of the hottest zone.
        load_1min: mean number of running processes over the last minute.
    """

    frequency_mhz: float | None
    top_frequency_mhz: float | None
    temperature_c: float | None
    load_1min: float | None


def condition(system: Path = Path("/sys")) -> Condition:
    """Look at what changes while models run.

    Args:
        system: where the kernel's files are.
    """
    frequencies = system / "devices/system/cpu"
    zones = _numbers(system / "class/thermal", "thermal_zone*/temp")
    # A zone without a sensor reads as nothing, 0 or some impossible number.
    likely = [zone / 1000 for zone in zones if 0 < zone < 150_000]
    return Condition(
        frequency_mhz=_mhz(_numbers(frequencies, "cpu[0-9]*/cpufreq/scaling_cur_freq")),
        top_frequency_mhz=_mhz(_numbers(frequencies, "cpu[0-9]*/cpufreq/scaling_max_freq")),
        temperature_c=max(likely, default=None),
        load_1min=_load(),
    )


def warnings(before: Condition, after: Condition, cores: int) -> list[str]:
    """What may have spoilt a measurement between two looks at a machine, each with its remedy.

    Args:
        before: when it began.
        after: when it ended.
        cores: processors that it could use.
    """
    found = []
    now, top = after.frequency_mhz, after.top_frequency_mhz
    hot = after.temperature_c
    if now is not None and before.frequency_mhz is not None and now < _THROTTLED * before.frequency_mhz:
        heat = "" if hot is None else f", at {hot:.0f} °C"
        found.append(
            f"the processor slowed from {before.frequency_mhz:.0f} to {now:.0f} MHz{heat}: cool it, or let it rest"
        )
    elif now is not None and top is not None and now < _THROTTLED * top:
        found.append(
            f"the processor ran at {now:.0f} of {top:.0f} MHz: set the governor to performance, or cool it"
        )
    if before.load_1min is not None and before.load_1min > _BUSY * cores:
        found.append(
            f"load {before.load_1min:.1f} on {cores} cores before it began: end other programs for steadier times"
        )
    return found


def describe() -> Environment:
    """Look at this machine."""
    arch = architecture()
    cpu, features = _processor(arch)
    return Environment(
        arch=arch,
        cpu=cpu,
        features=features,
        cores=_cores(),
        governor=_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        load_1min=_load(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        engines=versions(ENGINE_PACKAGES),
    )


def architecture(machine: str | None = None) -> str:
    """One name per instruction set: `x86_64`, `aarch64`, or the system's own name in lower case."""
    name = (machine or platform.machine()).lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name, name)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The processor's name and its features of interest, from the text of Linux's /proc/cpuinfo.

    Where there are several kinds of cores: the last kind's name (big ones come last), and what all can do.
    """
    names, flags = [], []
    for block in text.strip().split("\n\n"):
        entries = {}
        for line in block.splitlines():
            key, _, value = line.partition(":")
            entries[key.strip()] = value.strip()
        name = entries.get("model name") or _arm_name(entries)
        if name:
            names.append(name)
        if "flags" in entries or "Features" in entries:
            flags.append(set(entries.get("flags", entries.get("Features", "")).split()))
    common = set.intersection(*flags) if flags else set()
    return (names[-1] if names else "unknown"), tuple(name for name in FEATURES if name in common)


def _arm_name(entries: dict[str, str]) -> str:
    try:
        part = (int(entries["CPU implementer"], 16), int(entries["CPU part"], 16))
    except (KeyError, ValueError):
        return ""
    return _ARM_PARTS.get(part, f"Arm {part[0]:#x}:{part[1]:#x}")


def _processor(arch: str) -> tuple[str, tuple[str, ...]]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        return parse_cpuinfo(path.read_text(errors="replace"))
    if platform.system() == "Darwin":
        return _darwin(arch)
    return platform.processor() or "unknown", ()


def _darwin(arch: str) -> tuple[str, tuple[str, ...]]:
    name = _sysctl("machdep.cpu.brand_string") or "unknown"
    if arch == "aarch64":
        known = {"asimddp": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}
        return name, ("asimd", *(feature for feature, key in known.items() if _sysctl(key) == "1"))
    return name, ("avx2",) if _sysctl("hw.optional.avx2_0") == "1" else ()


def _sysctl(key: str) -> str:
    command = ["/usr/sbin/sysctl", "-n", key]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has no such function
        return None


def _numbers(folder: Path, pattern: str) -> list[int]:
    """The whole numbers that files hold; those that cannot be read are left out."""
    found = []
    for path in folder.glob(pattern):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def _mhz(khz: list[int]) -> float | None:
    return max(khz) / 1000 if khz else None


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
