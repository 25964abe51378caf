"""`manifest.json`: what went in, what came out, and all that a replay needs to give the same bytes.

Names are relative, with forward slashes: a manifest tells nothing about the machine that it was written on.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from edgepress.compressor.errors import OutputError, UsageError
from edgepress.compressor.report.fields import Record, parse_record
from edgepress.compressor.report.tflite import Tflite

FILE_NAME = "manifest.json"
_CHUNK_BYTES = 1 << 20


def _relative(name: str) -> str:
    windows = PureWindowsPath(name)
    if not name or PurePosixPath(name).is_absolute() or windows.drive or windows.root:
        raise ValueError(f"{name!r} is not a relative name")
    return name


def _inside(name: str) -> str:
    if ".." in PureWindowsPath(_relative(name)).parts:
        raise ValueError(f"{name!r} leaves the folder")
    return name


RelativeName = Annotated[str, AfterValidator(_relative)]
InnerName = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Input(Record):
    """A file or folder that the run read.

    Attributes:
        role: what it was used for.
        name: relative to the manifest's folder where it lies near, else the bare name; for a data function,
            `module:function`.
        sha256: of the content (a folder: of its names and contents); null for a data function.
    """

    role: Literal["model", "external_data", "data", "test", "recipe", "timings"]
    name: RelativeName
    sha256: Sha256 | None


class Manifest(Record):
    """What went in and what came out.

    Attributes:
        tool: always `edgepress`; says that a folder is ours.
        tool_version: release of the tool.
        versions: Python and libraries.
        seed: of every random choice.
        options: as the command understood them (budget, metric, target, objective, output, shapes, leave, …).
        recipe: passes as JSON objects, in order.
        inputs: hashes of model, external data and samples.
        files: every file beside this one → SHA-256.
        tflite: the TFLite file and how far it agrees with the ONNX file; null where none was asked for.
        instructions: of one inference by name of the candidate, where they were counted.
        timings_ns: latency by name of the candidate, as the search used it: a replay need not measure.
    """

    schema_version: Literal[1] = 1
    tool: Literal["edgepress"] = "edgepress"
    tool_version: str
    versions: dict[str, str]
    seed: Annotated[int, Field(ge=0)]
    options: dict[str, JsonValue]
    recipe: tuple[dict[str, JsonValue], ...]
    inputs: tuple[Input, ...]
    files: dict[InnerName, Sha256]
    tflite: Tflite | None = None
    instructions: dict[str, int] = Field(default_factory=dict)
    timings_ns: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)


def write(manifest: Manifest, folder: Path) -> Path:
    """Write `manifest.json` into `folder`; equal manifests give equal bytes. Returns its path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / FILE_NAME
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.", "Choose another --out.") from error
    return path


def read(path: Path) -> Manifest:
    """Read a manifest; `path` is the file or the folder that holds it.

    Raises:
        UsageError: missing, damaged, or written by another version of the schema.
    """
    return parse_record(Manifest, path / FILE_NAME if path.is_dir() else path, what="a manifest")


def verify(folder: Path) -> list[str]:
    """Names of the files that are missing or differ from what the folder's manifest says, sorted.

    Raises:
        UsageError: the manifest is missing or damaged.
    """
    manifest = read(folder)
    return sorted(name for name, known in manifest.files.items() if _hash_or_none(folder / name) != known)


def files_of(folder: Path) -> frozenset[str] | None:
    """Names of the files that an earlier run of ours wrote into `folder`, or None where it is not ours.

    Reads manifests of every schema version: to know our own folder needs less than to replay it.
    """
    try:
        document = json.loads((folder / FILE_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("tool") != "edgepress":
        return None
    files = document.get("files")
    return frozenset([FILE_NAME, *(files if isinstance(files, dict) else ())])


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` by relative name, the manifest itself left out; sorted by name."""
    return {name: sha256_file(folder / name) for name in _names(folder) if name != FILE_NAME}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in blocks.

    Raises:
        UsageError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_CHUNK_BYTES):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check path and rights.") from error
    return digest.hexdigest()


def sha256_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents: a renamed label folder is another input."""
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for name in _names(path):
        digest.update(sha256_file(path / name).encode() + b" " + os.fsencode(name) + b"\n")
    return digest.hexdigest()


def portable_name(path: Path, folder: Path) -> str:
    """`path` as seen from `folder` where it lies inside or beside it, else the bare name.

    A longer way would tell how the machine's folders are called.
    """
    base = folder.resolve()
    full = path.resolve()
    name = full.name
    for steps, start in enumerate((base, base.parent)):
        if full.is_relative_to(start) and start not in (full, start.parent):
            name = "../" * steps + full.relative_to(start).as_posix()
            break
    return os.fsencode(name).decode(errors="replace")


def _names(folder: Path) -> Iterable[str]:
    found = (
        Path(where, name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
    )
    return sorted(found)


def _hash_or_none(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except UsageError:
        return None
