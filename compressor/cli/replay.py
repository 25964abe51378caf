"""`compress replay manifest.json`: build the same model again from what the manifest names."""

from pathlib import Path
from typing import Any

import click

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.remaining import APPLY
from edgepress.compressor.cli.run import TIMING_SECONDS, input_paths, progress_bar, show
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Job
from edgepress.compressor.outdir import staged
from edgepress.compressor.recipe import from_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.build import MODEL_FILE, build_report, versions, write_result
from edgepress.compressor.session import run as run_session
from edgepress.compressor.userfunction import is_function_name


def find_input(
    manifest: manifests.Manifest, folder: Path, role: str, given: Path | None
) -> str | Path | None:
    """Where an input of the original run lies now; its content must be the same.

    Args:
        manifest: of the original run.
        folder: of the manifest.
        role: `model`, `data` or `test`.
        given: the user's own path, or None.

    Raises:
        UsageError: missing, or of other content.
    """
    entry = next((i for i in manifest.inputs if i.role == role), None)
    if entry is None:
        return None
    if entry.sha256 is None:
        if given is None and not is_function_name(entry.name):
            raise UsageError(
                f"The {role} of that run came from memory; no file holds it.",
                f"Save the same samples as an npz file and name it with --{role} PATH.",
            )
        return given or entry.name
    # A bare name says no folder: what this run wrote itself may be called the same, and is not meant.
    own = {folder / name for name in manifest.files}
    places = [given] if given else [p for p in (folder / entry.name, Path(entry.name)) if p not in own]
    there = [path for path in places if path.exists()]
    if not there:
        raise UsageError(
            f"The {role} {Path(entry.name).name!r} of that run was not found.",
            f"Say where it is with --{role} PATH.",
        )
    for path in there:
        if manifests.sha256_path(path) == entry.sha256:
            return path
    raise UsageError(
        f"{there[0]} is not the {role} of that run: its content differs.",
        f"A replay needs the same bytes; --{role} PATH names another file.",
    )


def job_of(record: manifests.Manifest, folder: Path, given: dict[str, Path | None]) -> Job:
    """The job that a manifest describes.

    Args:
        record: the manifest.
        folder: where it lies.
        given: where the user says that `model`, `data`, `test` and `preprocess` are.

    Raises:
        UsageError: an input is missing or another one, or the manifest is damaged.
    """
    options: dict[str, Any] = dict(record.options)
    source = find_input(record, folder, "model", given["model"])
    if source is None:
        raise UsageError("The manifest names no model.", "Give the manifest.json of a compress run.")
    try:
        preprocess = options.get("preprocess")
        return Job(
            Path(source),
            data=find_input(record, folder, "data", given["data"]),
            test=find_input(record, folder, "test", given["test"]),
            metric=options["metric"],
            output=options["output"],
            budget=float(options["budget"]),
            objective=options["objective"],
            recipe=from_json(list(record.recipe)),
            strict=False,
            shapes={name: tuple(dims) for name, dims in options["shapes"].items()},
            leave=tuple(options["leave"]),
            preprocess=given["preprocess"] or (folder / preprocess if preprocess else None),
            seed=record.seed,
            threads=int(options["threads"]),
            timings=dict(record.timings_ns),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"The manifest's options are damaged ({type(error).__name__}: {error}).", "Compress again."
        ) from error


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the rebuilt result.")
@click.option("--model", type=click.Path(path_type=Path), help="Where the model is now.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the samples are now.")
@click.option("--test", type=click.Path(path_type=Path), help="Where the unseen samples are now.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="Where preprocess.toml is now.")
@click.option("--force", is_flag=True, help="Write into a folder that this tool did not write.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def replay(*, manifest: Path, out: Path, force: bool, quiet: bool, debug: bool, **given: Path | None) -> int:
    """Rebuild the result that MANIFEST describes: the same bytes on the same machine, else exit 2."""
    record = manifests.read(manifest)
    folder = manifest if manifest.is_dir() else manifest.parent
    job = job_of(record, folder, given)
    with staged(out, force, [*input_paths(job), manifest]) as staging:
        with progress_bar(quiet, APPLY) as tell:
            host = make_host(str(record.options["target"]), job.threads, job.seed, TIMING_SECONDS, tell)
            found = run_session(job, host)
        report = build_report(found)
        write_result(found, report, staging, out)
        _check_same(record, staging)
    show(report, found.warnings, out, table=not quiet, warn=not quiet)
    if not quiet:
        click.echo("The model is the same, byte for byte.")
    return report.exit_code


def _check_same(record: manifests.Manifest, folder: Path) -> None:
    made, then = (
        {name: sha256 for name, sha256 in files.items() if name.startswith(MODEL_FILE)}
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
