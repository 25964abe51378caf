"""What a process breaks in itself on purpose, before it is a run of the command line."""

import ctypes
import errno
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3


def full_disk_from(number: float) -> None:
    """From the so many-th on, nothing can be opened for writing or made."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event == "os.mkdir"
        path = arguments[0] if arguments else None
        if writes and isinstance(path, str | bytes) and not os.fsdecode(path).startswith(("/dev/", "/proc/")):
            count += 1
            if count >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)


def file_limit(size: float) -> None:
    """No file grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def memory_limit(more: float) -> None:
    """So many bytes of address space beyond what there is now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def open_files(number: float) -> None:
    """No more than so many files at a time."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(number), int(number)))


def jumping_clock(days: float) -> None:
    """The system's clock jumps by up to so many days at every look; how long things take is not told by it."""
    plain, chance = time.time, np.random.default_rng(0)
    time.time = lambda: plain() + 86400 * days * chance.uniform(-1, 1)


def obey_rights(_: float) -> None:
    """Have no right to pass over those of files, as root otherwise does."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: for programs that are started
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the upper halves
    if libc.capget(header, sets) == 0:
        mask = ~sum(1 << each for each in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER)) & 0xFFFFFFFF
        for place in range(3):
            sets[place] &= mask
        libc.capset(header, sets)


def hired_at_once(_: float) -> None:
    """A search has its work done by processes from the start."""
    from edgepress.compressor import workers

    workers.WORTH_PROCESSES = -1.0


FAULTS: Mapping[str, Callable[[float], None]] = {
    "clock": jumping_clock,
    "disk": full_disk_from,
    "file size": file_limit,
    "files": open_files,
    "hired": hired_at_once,
    "memory": memory_limit,
    "rights": obey_rights,
}
