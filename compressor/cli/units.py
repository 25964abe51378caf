"""Options that are numbers: in a range, or with a unit, such as `--max-size 1.5MB` and `--max-latency 300us`."""

import math
import re
from typing import Any

import click

SIZES = {"b": 1.0, "kb": 1e3, "kib": 1024.0, "mb": 1e6, "mib": 1024.0**2, "gb": 1e9}
TIMES = {"ns": 1.0, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9}

THREADS = click.IntRange(1, 1024)
"""An engine starts as many as it is told, whatever the machine has."""


class Finite(click.FloatRange):
    """A range of numbers without NaN, which all comparisons let through, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; raises `click.BadParameter` where it is none, or out of the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def size_option(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """`1.5MB` → bytes; a number without a unit is bytes already."""
    return (
        None
        if value is None
        else int(_read(f"{value}B" if value.isdecimal() else value, SIZES, "20kB, 1.5MB"))
    )


def time_option(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`300us` → nanoseconds; without a unit nobody could tell which is meant."""
    return None if value is None else _read(value, TIMES, "300us, 2.5ms")


def _read(value: str, units: dict[str, float], examples: str) -> float:
    """The number in the smallest unit.

    Raises:
        click.BadParameter: it is none, or has another unit; click adds the option's name.
    """
    found = re.fullmatch(r"\s*(\d+|\d*\.\d+)\s*([a-zµμ]+)\s*", value.lower())
    amount = float(found[1]) * units.get(found[2], math.nan) if found else math.nan
    if not 1 <= amount < math.inf:
        raise click.BadParameter(f"{value!r}: write a number and a unit, such as {examples}.")
    return amount
