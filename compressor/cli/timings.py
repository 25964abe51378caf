"""`--timings FILE`: what the search was timed at, so that the same choices can be made again.

Where memory is the objective, what it was weighed at is there, too.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Findings, Job
from edgepress.compressor.outdir import write_file
from edgepress.compressor.report.manifest import sha256_file


def read_timings(path: Path | None, job: Job, target: str) -> Job:
    """The job with the timings of a file, where there is one.

    Args:
        path: of the file; it need not exist yet.
        job: of this run.
        target: name of the device.

    Raises:
        UsageError: the file is damaged, or of another model, device or number of threads.
    """
    if path is None or not path.exists():
        return job
    again = "Delete it, or name another file; the run writes it anew."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        timings = {str(name): float(ns) for name, ns in document["timings_ns"].items()}
        memories = {str(name): int(size) for name, size in document.get("memory_bytes", {}).items()}
        header = {name: document[name] for name in _header(job, target)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path} holds no timings ({type(error).__name__}: {error}).", again) from error
    if not all(math.isfinite(ns) and ns > 0 for ns in timings.values()):
        raise UsageError(f"{path} holds a timing that is not a positive number.", again)
    for name, ours in _header(job, target).items():
        if header[name] != ours:
            raise UsageError(
                f"{path} holds timings of another {name}: {header[name]!r}, not {ours!r}.", again
            )
    return replace(job, timings=timings, memories=memories)


def write_timings(path: Path, found: Findings) -> None:
    """Store the timings that this run used.

    Raises:
        OutputError: the file cannot be written.
    """
    document = {**_header(found.job, found.host.target.name), "timings_ns": found.timings}
    if found.memories:
        document["memory_bytes"] = found.memories
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    write_file(path, text, "Name another --timings file.")


def _header(job: Job, target: str) -> dict[str, Any]:
    """What must be the same for timings to mean the same."""
    model = sha256_file(job.model) if job.model.is_file() else ""
    return {"model": model, "target": target, "threads": job.threads}
