"""The job of an earlier run, from its manifest: for `replay`, and for `--pick`."""

from pathlib import Path
from typing import Any

from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Job
from edgepress.compressor.recipe import from_json
from edgepress.compressor.report import manifest as manifests
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
        f"The same bytes are needed; --{role} PATH names another file.",
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
    if options.get("command") == "evolve":
        raise UsageError(
            "The manifest is of `compress evolve`, which replay does not repeat.",
            "Run `compress evolve` again with its options and samples.",
        )
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
            max_size_bytes=options.get("max_size_bytes"),
            max_latency_ns=options.get("max_latency_ns"),
            formats=tuple(options.get("format", ["onnx"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"The manifest's options are damaged ({type(error).__name__}: {error}).", "Compress again."
        ) from error
