"""What all records are made of: immutable parts, and numbers that JSON can hold; reading them from files."""

import json
import math
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from edgepress.compressor.errors import UsageError

SCHEMA_VERSION = 1
T = TypeVar("T", bound=BaseModel)


def _finite_or_none(value: object) -> object:
    numbers = value if isinstance(value, (tuple, list)) else [value]
    return None if any(isinstance(each, float) and not math.isfinite(each) for each in numbers) else value


MaybeFloat = Annotated[float | None, BeforeValidator(_finite_or_none)]
MaybeInterval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_or_none)]


class Record(BaseModel):
    """Base of all parts: immutable, and a field that the schema does not name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def schema_of(kind: type[Record], title: str, version: int) -> str:
    """JSON schema of a record as text, newline at the end.

    Args:
        kind: the record.
        title: what it is of, after the tool's name.
        version: of the schema.
    """
    schema = kind.model_json_schema(by_alias=True, mode="validation")
    schema["title"] = f"edgepress {title}, version {version}"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_record(kind: type[T], path: Path, what: str) -> T:
    """Read a JSON file into a record; `what` names it in errors, such as `a report`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", f"Give the path of {what}.") from error
    again = "Write it again with `compress`; the models beside it are not harmed."
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: not valid JSON ({error}).", again) from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(document, dict) and document.get("kind") == "evolve":
        raise UsageError(f"{path} is of `compress evolve`, not {what}.", "Its own page lies beside it.")
    if version is None:
        raise UsageError(f"{path} is not {what} of edgepress.", f"Give the path of {what}.")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version!r}; this edgepress reads version {SCHEMA_VERSION}.",
            "Use the release of edgepress that wrote it, or compress again.",
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "top level"
        raise UsageError(f"{path} is damaged at {place}: {fault['msg']}.", again) from error
