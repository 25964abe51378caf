"""`compress replay manifest.json`: build the same model again from what the manifest names."""

from pathlib import Path

import click

from edgepress.compressor.cli.again import job_of, options_of
from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.remaining import APPLY
from edgepress.compressor.cli.run import TIMING_SECONDS, input_paths, progress_bar, show
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Findings
from edgepress.compressor.outdir import staged
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.build import MODEL_FILE, TFLITE_FILE, build_report, versions, write_result
from edgepress.compressor.report.record import dump_report
from edgepress.compressor.session import run as run_session


def replay(
    *,
    manifest: Path,
    out: Path,
    no_device: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: str | Path | None,
) -> int:
    """Do it, and return the exit code; arguments as the options in `options/replay.py`."""
    record = manifests.read(manifest)
    folder = manifest if manifest.is_dir() else manifest.parent
    job = job_of(record, folder, given)
    with staged(out, force, [*input_paths(job), manifest]) as staging:
        with progress_bar(quiet or as_json, APPLY) as tell:
            host = make_host(
                options_of(record).target, job.threads, job.seed, TIMING_SECONDS, tell, device=not no_device
            )
            found = run_session(job, host)
        report = build_report(found)
        write_result(found, report, staging, out)
        _check_same(record, staging, found)
    if as_json:
        click.echo(dump_report(report), nl=False)
    show(report, found.warnings, out, table=not (quiet or as_json), warn=not quiet)
    if not (quiet or as_json):
        click.echo(
            "The model is the same, byte for byte."
            if found.tflite_file is None
            else "Both models are the same, byte for byte."
        )
    return report.exit_code


def _check_same(record: manifests.Manifest, folder: Path, found: Findings) -> None:
    if TFLITE_FILE in record.files and found.tflite_file is None:
        why = found.tflite.reason if found.tflite is not None else "its format was not asked for"
        raise UsageError(f"{TFLITE_FILE} could not be rebuilt: {why}.", "Mend that, and replay again.")
    made, then = (
        {name: sha256 for name, sha256 in files.items() if name.startswith((MODEL_FILE, TFLITE_FILE))}
        for files in (manifests.hash_files(folder), record.files)
    )
    if made == then:
        return
    now = versions()
    changed = [
        f"{name} {then} → {now.get(name)}" for name, then in record.versions.items() if now.get(name) != then
    ]
    raise UsageError(
        "The rebuilt model has other bytes than the manifest says; it was not written.",
        "Versions that differ: " + (", ".join(changed) or "none; was the machine another one?"),
    )
