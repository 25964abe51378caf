"""What a gate is asked: options of the command over those of an `edgepress.toml` beside the model."""

import math
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgepress.compressor.cli.units import SIZES
from edgepress.compressor.errors import UsageError, nearest
from edgepress.compressor.gate import Limit
from edgepress.compressor.metrics import is_user_metric
from edgepress.compressor.userfunction import exists, is_function_name

FILE_NAME = "edgepress.toml"
TABLE = "gate"
_WRITTEN = ("history",)
_PATHS = ("baseline", "candidate", "preprocess", *_WRITTEN)


def as_limit(value: object) -> Limit:
    """`1.5MB` or a whole number: bytes; `0.5`, `0.5x`, `50%`: of the baseline's.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Limit):
        return value
    text = repr(value) if isinstance(value, float) else str(value).strip().lower()
    found = re.fullmatch(r"(\d+|\d*\.\d+)\s*([a-zµ×%]*)", text)
    amount, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if found and amount > 0:
        if unit == "%":
            return Limit(amount / 100, relative=True)
        if unit in ("x", "×") or (not unit and "." in found[1]):
            return Limit(amount, relative=True)
        size = amount * SIZES.get(unit, 1.0)
        if (unit in SIZES or not unit) and math.isfinite(size):
            return Limit(float(int(size)), relative=False)
    raise ValueError(
        f"{value!r}: write bytes, such as 1.5MB, or a share of the baseline's, such as 0.5x or 50%"
    )


MaybeLimit = Annotated[
    Limit | None, BeforeValidator(lambda value: None if value is None else as_limit(value))
]


class Settings(BaseModel):
    """All that a gate can be asked; also the table `[gate]` of `edgepress.toml`.

    Attributes:
        baseline: the model that is known to be good.
        candidate: the model that is to take its place.
        test: rows that neither has seen: npz, folder of images or module:function.
        preprocess: for images.
        metric: as `compress` has it; output likewise.
        budget: percent of the baseline's score that may be lost.
        target: device profile.
        max_latency_ratio: the most that candidate / baseline may be, in latency.
        max_size: of the candidate's file; max_memory likewise, of its peak.
        confidence: of each end of an interval.
        inconclusive: what to make of that verdict.
        threads: of the runtime.
        seconds: of one timing; the longer run is several of twice as long.
        seed: of the bootstrap.
        history: JSON lines with past results.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    baseline: Path | None = None
    candidate: Path | None = None
    test: str | None = None
    preprocess: Path | None = None
    metric: str | None = None
    output: str | None = None
    budget: float = Field(default=2.0, ge=0, lt=100)
    target: str = "local"
    max_latency_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_size: MaybeLimit = None
    max_memory: MaybeLimit = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    inconclusive: Literal["report", "pass", "fail"] = "report"
    threads: int = Field(default=1, ge=1, le=1024)
    seconds: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    history: Path | None = None


def settings_of(given: Mapping[str, Any], config: Path | None = None) -> tuple[Settings, Path | None]:
    """Options given by the user, then those of the file, then defaults.

    Args:
        given: options by the names of `Settings`; None where not given.
        config: the file; None: the one beside the candidate, else beside the baseline, else in the current folder.

    Returns:
        The settings, and the file that was read.

    Raises:
        UsageError: the file cannot be read, or an option in it or here makes no sense.
    """
    given = {name: value for name, value in given.items() if value is not None}
    path = config if config is not None else _beside(given)
    said = {} if path is None else _read(path)
    if config is None:
        _check_harmless(path, {name: value for name, value in said.items() if name not in given})
    try:
        return Settings.model_validate({**said, **given}), path
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"{path}: {name}" if name in said and name not in given else f"--{name.replace('_', '-')}"
        hint = nearest(name, Settings.model_fields) if first["type"] == "extra_forbidden" else ""
        what = "no such option" if hint else first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {what}.", hint) from error


def command_of(given: Mapping[str, Any], config: Path | None) -> str:
    """The command line that asks the same, options at their defaults left out."""
    models = [name for name in ("baseline", "candidate") if given.get(name) is not None]
    words = ["compress", "gate", *(str(given[name]) for name in models)]
    for name, value in given.items():
        if value is None or name in models:
            continue
        if isinstance(value, Limit):
            value = f"{value.value:g}x" if value.relative else f"{value.value:.0f}"  # noqa: PLW2901
        words += [f"--{name.replace('_', '-')}", str(value)]
    if config is not None:
        words += ["--config", str(config)]
    return shlex.join(words)


def _beside(given: Mapping[str, Any]) -> Path | None:
    models = [Path(given[name]).parent for name in ("candidate", "baseline") if name in given]
    found = (folder / FILE_NAME for folder in (*models, Path()))
    return next((path for path in found if path.is_file()), None)


def _check_harmless(path: Path | None, said: Mapping[str, Any]) -> None:
    """Refuse code, and places to write to elsewhere, that nobody named: the file may be somebody else's."""
    what = {
        "metric": (is_user_metric, "Python code"),
        "test": (is_function_name, "Python code"),
        "target": (lambda value: value.endswith(".toml"), "a device profile, which may name commands"),
        **dict.fromkeys(_WRITTEN, (lambda value: _is_outside(path, value), "a file outside its folder")),
    }
    for name, (is_refused, kind) in what.items():
        value = said.get(name)
        if isinstance(value, str) and is_refused(value):
            raise UsageError(
                f"{path}: {name} = {value!r} names {kind}, and the file was only found beside the models.",
                f"If you trust it, name the file with --config, or say --{name} yourself.",
            )


def _is_outside(path: Path | None, value: str) -> bool:
    """Whether a file is not below the budget file's folder, links followed."""
    folder = Path() if path is None else path.parent
    try:
        return not Path(value).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle; a name that no file can have
        return True


def _read(path: Path) -> dict[str, Any]:
    """The file's table; paths in it are relative to it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Name another with --config.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}.", "Mend the file, or name another with --config.") from error
    said = document.get(TABLE)
    if not isinstance(said, dict):
        raise UsageError(f"{path} has no table [{TABLE}].", f"Put the options under [{TABLE}].")

    def inside(value: str) -> str:
        return str(path.parent / value)

    for name in _PATHS:
        if isinstance(said.get(name), str):
            said[name] = inside(said[name])
    for name in ("test", "target"):
        value = said.get(name)
        if isinstance(value, str) and exists(path.parent / value) and not is_function_name(value):
            said[name] = inside(value)
    return said
