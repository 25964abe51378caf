"""The job of an earlier run, from its manifest: for `replay`, and for `--pick`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from edgepress.compressor.choice import Objective
from edgepress.compressor.errors import UsageError
from edgepress.compressor.job import Job
from edgepress.compressor.metrics import is_user_metric
from edgepress.compressor.recipe import from_json
from edgepress.compressor.report import manifest as manifests
from edgepress.compressor.userfunction import is_function_name

Given = Mapping[str, str | Path | None]
"""What the user says anew: `model`, `data`, `test`, `preprocess` and `metric`; None where nothing was said."""


def _no_file(name: str) -> str:
    if name.endswith(".toml"):  # edgepress writes names; a profile may name commands
        raise ValueError(f"{name!r} is a file, not the name of a profile")
    return name


class Options(BaseModel):
    """The options of a run as its manifest has them; those that nothing is done with are passed over.

    Attributes:
        target: name of the device profile.
        shapes: input name → shape.

    The others are those of `Job`.
    """

    target: Annotated[str, AfterValidator(_no_file)]
    metric: str | None
    output: str | None
    budget: float = Field(ge=0, lt=100)
    objective: Objective
    shapes: dict[str, tuple[Annotated[int, Field(ge=1)], ...]]
    leave: tuple[str, ...]
    preprocess: manifests.RelativeName | None = None
    threads: int = Field(ge=1, le=1024)
    max_size_bytes: int | None = None
    max_latency_ns: float | None = Field(default=None, allow_inf_nan=False)
    format: tuple[str, ...] = ("onnx",)


def options_of(record: manifests.Manifest) -> Options:
    """What a run was asked for.

    Raises:
        UsageError: the manifest is of another command, or damaged.
    """
    if record.options.get("command") == "evolve":
        raise UsageError(
            "The manifest is of `compress evolve`, which replay does not repeat.",
            "Run `compress evolve` again with its options and samples.",
        )
    try:
        return Options.model_validate(record.options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UsageError(
            f"The manifest's options are damaged at {where}: {fault['msg']}.", "Compress again."
        ) from error


def find_input(
    manifest: manifests.Manifest, folder: Path, role: str, given: str | Path | None
) -> str | Path | None:
    """Where an input of the original run lies now; its content must be the same.

    Args:
        manifest: of the original run.
        folder: of the manifest.
        role: `model`, `data` or `test`.
        given: the user's own path or function, or None.

    Raises:
        UsageError: missing, of other content, or a function that the user did not name.
    """
    entry = next((i for i in manifest.inputs if i.role == role), None)
    if entry is None:
        return None
    function = given is not None and is_function_name(str(given))
    if entry.sha256 is None:
        if is_function_name(entry.name) and (given is None or function):
            _check_said(role, entry.name, given)
            return entry.name
        if given is None or function:
            raise UsageError(
                f"The {role} of that run came from memory; no file holds it.",
                f"Save the same samples as an npz file and name it with --{role} PATH.",
            )
        return Path(given)
    # A bare name says no folder: what this run wrote itself may be called the same, and is not meant.
    own = {folder / name for name in manifest.files}
    places = [Path(given)] if given else [p for p in (folder / entry.name, Path(entry.name)) if p not in own]
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


def _check_said(role: str, name: str | None, said: str | Path | None) -> None:
    """Refuse a function that the user did not name: the manifest may have come with a model of somebody else's."""
    if said is not None and str(said) != name:
        raise UsageError(
            f"--{role} {said}: that run had {f'--{role} {name}' if name else f'no --{role}'}.",
            f"Leave --{role} out, or compress again.",
        )
    if said is None:
        raise UsageError(
            f"The {role} of that run, {name!r}, is Python code that would be run, and may have come with the manifest.",
            f"If you trust it, name it yourself: --{role} {name}",
        )


def job_of(record: manifests.Manifest, folder: Path, given: Given) -> Job:
    """The job that a manifest describes.

    Args:
        record: the manifest.
        folder: where it lies.
        given: where the user says that inputs are, and functions that the user names.

    Raises:
        UsageError: an input is missing or another one, the manifest is damaged, or names a function that the user does
            not.
    """
    options = options_of(record)
    said = given.get("metric")
    if said is not None or (options.metric is not None and is_user_metric(options.metric)):
        _check_said("metric", options.metric, said)
    source = find_input(record, folder, "model", given.get("model"))
    if source is None:
        raise UsageError("The manifest names no model.", "Give the manifest.json of a compress run.")
    preprocess = given.get("preprocess") or (folder / options.preprocess if options.preprocess else None)
    return Job(
        Path(source),
        data=find_input(record, folder, "data", given.get("data")),
        test=find_input(record, folder, "test", given.get("test")),
        metric=options.metric,
        output=options.output,
        budget=options.budget,
        objective=options.objective,
        recipe=from_json(list(record.recipe)),
        strict=False,
        shapes=dict(options.shapes),
        leave=options.leave,
        preprocess=None if preprocess is None else Path(preprocess),
        seed=record.seed,
        threads=options.threads,
        timings=dict(record.timings_ns),
        max_size_bytes=options.max_size_bytes,
        max_latency_ns=options.max_latency_ns,
        formats=options.format,
    )
