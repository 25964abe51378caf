"""What all records are made of: immutable parts, and numbers that JSON can hold."""

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _finite_or_none(value: object) -> object:
    numbers = value if isinstance(value, (tuple, list)) else [value]
    return None if any(isinstance(each, float) and not math.isfinite(each) for each in numbers) else value


MaybeFloat = Annotated[float | None, BeforeValidator(_finite_or_none)]
MaybeInterval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_or_none)]


class Record(BaseModel):
    """Base of all parts: immutable, and a field that the schema does not name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
