"""What a model takes of a microcontroller in words, for the terminal and the page."""

from collections.abc import Iterator

from edgepress.compressor.report.agreement import counts
from edgepress.compressor.report.micro import MicroFit

MOST_NAMED = 5
"""Operators that a line names at most."""
KERNELS = "The program around the model, tflite-micro and its kernels included, is not in these figures."


def exactly(count: int | None) -> str:
    """All digits: `18,176`."""
    return "unknown" if count is None else f"{count:,}"


def share(count: int | None, whole: int) -> str:
    """`18,176 of 786,432 bytes (2.3 %)`."""
    percent = "" if count is None else f" ({100 * count / whole:.1f} %)"
    return f"{exactly(count)} of {exactly(whole)} bytes{percent}"


def faults(fit: MicroFit) -> Iterator[str]:
    """Why a model does not fit, a phrase each."""
    if fit.reason:
        yield fit.reason
    if fit.missing_operators:
        named = ", ".join(fit.missing_operators[:MOST_NAMED])
        more = len(fit.missing_operators) - MOST_NAMED
        yield f"tflite-micro has no kernel for {named}" + (f" and {more} more" if more > 0 else "")
    for short, what in ((fit.flash_short_bytes, "flash"), (fit.arena_short_bytes, "arena")):
        if short:
            yield f"{exactly(short)} {'byte' if short == 1 else 'bytes'} of {what} lacking"


def fit_text(fit: MicroFit) -> str:
    """`fits`, or why not."""
    least = "" if fit.measured else ", as estimated"
    return "; ".join(faults(fit)) or f"fits{least}"


def arithmetic_text(fit: MicroFit) -> str:
    """What computes in floats."""
    if not fit.float_operators:
        return "all in 8-bit integers"
    return f"in floats {counts(fit.float_operators)}"


def lines(fit: MicroFit) -> Iterator[tuple[str, str]]:
    """(label, text) of all that is known."""
    yield "Fit", fit_text(fit)
    yield "Flash", share(fit.flash_bytes, fit.flash_available_bytes)
    arena = share(fit.arena_bytes, fit.arena_available_bytes)
    yield "Arena", arena if fit.measured else f"at least {arena}: estimated from activations alone"
    yield "Arithmetic", arithmetic_text(fit)
    if fit.missing_operators is None:
        yield "Operators", "not known: tflite-micro is not installed"
    yield "Note", KERNELS
