"""Files from which programs read what processor they run on, as a board has them.

Runtimes choose kernels by /proc/cpuinfo and /sys, and would see the host's there. The emulator looks for every path
below a folder of its own first, so files in that folder stand in for the kernel's. Part numbers and features are
those of Arm's technical reference manuals (MIDR_EL1, ID_AA64ISAR0_EL1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_V8 = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
_V82 = (*_V8, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")


@dataclass(frozen=True)
class Core:
    """A processor core as Linux describes it.

    Attributes:
        midr: main identification register.
        features: as in /proc/cpuinfo.
        level1_kb: data cache of a core.
        level2_kb: the cache behind it.
    """

    midr: int
    features: tuple[str, ...]
    level1_kb: int
    level2_kb: int


CORES = {
    "cortex-a53": Core(0x410FD034, _V8, 32, 512),
    "cortex-a57": Core(0x411FD073, _V8, 32, 1024),
    "cortex-a72": Core(0x410FD083, _V8, 32, 1024),
    "cortex-a76": Core(0x414FD0B1, _V82, 64, 512),
    "neoverse-n1": Core(0x413FD0C1, _V82, 64, 1024),
}
"""Cores that can be emulated, by the emulator's names of them."""


def write_board(folder: Path, root: Path, core: str, cores: int) -> None:
    """Make a folder in which the emulator finds a userland and the files of a board.

    Args:
        folder: to be made.
        root: the userland; linked, not copied.
        core: a name of `CORES`.
        cores: how many the board has.
    """
    folder.mkdir(parents=True)
    for entry in root.iterdir():
        (folder / entry.name).symlink_to(entry)
    for name, content in _files(CORES[core], cores).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")


def _files(core: Core, cores: int) -> dict[str, str]:
    """Path below the root → content."""
    everyone = "0" if cores == 1 else f"0-{cores - 1}"
    files = {"proc/cpuinfo": "".join(_cpuinfo(core, index) for index in range(cores))}
    top = "sys/devices/system/cpu"
    files |= {f"{top}/{name}": f"{everyone}\n" for name in ("possible", "present", "online")}
    files[f"{top}/kernel_max"] = "255\n"
    for index in range(cores):
        own = f"{top}/cpu{index}"
        files[f"{own}/regs/identification/midr_el1"] = f"0x{core.midr:016x}\n"
        files[f"{own}/topology/physical_package_id"] = "0\n"
        files[f"{own}/topology/core_id"] = f"{index}\n"
        files[f"{own}/topology/thread_siblings_list"] = f"{index}\n"
        for name in ("core_siblings_list", "package_cpus_list", "cluster_cpus_list"):
            files[f"{own}/topology/{name}"] = f"{everyone}\n"
        caches = (
            (1, core.level1_kb, "Data", str(index)),
            (1, core.level1_kb, "Instruction", str(index)),
            (2, core.level2_kb, "Unified", everyone),
        )
        for number, (level, size_kb, kind, shared) in enumerate(caches):
            cache = f"{own}/cache/index{number}"
            files[f"{cache}/level"] = f"{level}\n"
            files[f"{cache}/size"] = f"{size_kb}K\n"
            files[f"{cache}/type"] = f"{kind}\n"
            files[f"{cache}/shared_cpu_list"] = f"{shared}\n"
    return files


def _cpuinfo(core: Core, index: int) -> str:
    return (
        f"processor\t: {index}\n"
        "BogoMIPS\t: 108.00\n"
        f"Features\t: {' '.join(core.features)}\n"
        f"CPU implementer\t: 0x{core.midr >> 24:02x}\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: 0x{core.midr >> 20 & 15:x}\n"
        f"CPU part\t: 0x{core.midr >> 4 & 0xFFF:03x}\n"
        f"CPU revision\t: {core.midr & 15}\n\n"
    )
