"""`compress replay manifest.json`: build the same model again from what the manifest names."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgepress.compressor.cli.host import make_host
from edgepress.compressor.cli.run import progress_bar
from edgepress.compressor.errors import UsageError
from edgepress.compressor.outdir import staged
from edgepress.compressor.recipe import from_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.report.build import build_report, write_result
from edgepress.compressor.report.console import summary
from edgepress.compressor.session import Job
from edgepress.compressor.session import run as run_session


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
        return entry.name
    path = given or folder / entry.name
    if not path.exists():
        raise UsageError(
            f"The {role} {entry.name!r} is not at {path}.", f"Say where it is with --{role} PATH."
        )
    if manifests.sha256_path(path) != entry.sha256:
        raise UsageError(
            f"{path} is not the {role} of that run: its hash differs.", "A replay needs the same bytes."
        )
    return path


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the rebuilt result.")
@click.option("--model", type=click.Path(path_type=Path), help="Where the model is now.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the samples are now.")
@click.option("--test", type=click.Path(path_type=Path), help="Where the unseen samples are now.")
@click.option("--force", is_flag=True, help="Replace a folder that this tool did not write.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def replay(
    manifest: Path,
    out: Path,
    model: Path | None,
    data: Path | None,
    test: Path | None,
    force: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Rebuild the result that MANIFEST describes: the same bytes on the same machine."""
    record = manifests.read(manifest)
    folder = manifest.parent
    options: dict[str, Any] = dict(record.options)
    source = find_input(record, folder, "model", model)
    if source is None:
        raise UsageError(f"{manifest} names no model.", "Give the manifest.json of a compress run.")
    job = Job(
        Path(source),
        data=find_input(record, folder, "data", data),
        test=find_input(record, folder, "test", test),
        metric=options["metric"],
        output=options["output"],
        budget=options["budget"],
        objective=options["objective"],
        recipe=from_json(list(record.recipe)),
        shapes={name: tuple(dims) for name, dims in options["shapes"].items()},
        leave=tuple(options["leave"]),
        seed=record.seed,
        threads=options["threads"],
        timings=dict(record.timings_ns),
    )
    with staged(out, force) as staging:
        with progress_bar(quiet) as tell:
            result = run_session(job, make_host(options["target"], job.threads, job.seed, 10.0, tell))
        report = build_report(result)
        write_result(result, report, staging, out)
    same = manifests.read(out / manifests.FILE_NAME).files["model.onnx"] == record.files["model.onnx"]
    if not quiet:
        summary(report, Console(), out)
        click.echo(
            "The model is the same, byte for byte." if same else "The model differs from the recorded one."
        )
    if not same:
        changed = [
            f"{k} {v} → {report.versions.get(k)}"
            for k, v in record.versions.items()
            if report.versions.get(k) != v
        ]
        raise UsageError(
            "The rebuilt model has other bytes than the manifest says.",
            "Versions that differ: " + (", ".join(changed) or "none; was the machine another one?"),
        )
    return report.exit_code
