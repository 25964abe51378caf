"""What a model takes of a microcontroller."""

from collections.abc import Sequence

from pydantic import Field

from edgepress.compressor.protocols import Footprint, Microcontroller
from edgepress.compressor.report.fields import Record


class MicroFit(Record):
    """One model on one microcontroller.

    Attributes:
        device: name of the profile.
        fits: whether it runs there.
        flash_bytes: of the TFLite file; null where there is none.
        flash_available_bytes: what the profile has for it.
        flash_short_bytes: how many are lacking.
        arena_bytes: least memory in which tflite-micro runs it on this machine; null where it does not. Its structures
            have 64-bit pointers here, so a device takes somewhat less, and kernels made for one processor (CMSIS-NN)
            take buffers of their own on top.
        arena_available_bytes: what the profile has for it.
        arena_short_bytes: how many are lacking.
        activation_bytes: what activations need of the arena at their peak.
        missing_operators: that tflite-micro has no kernel for, `node (KIND)` each; null where nothing could tell.
        float_operators: that compute in floats, kind → count.
        reason: why it does not run, where that is none of the above; else empty.
        measured: whether tflite-micro ran it; else the arena is what activations need at least.
        judged: whether the verdict rests on the outputs of its kernels.
        flash_bytes_before: of the model that came in, written as TFLite; so is the next one.
        arena_bytes_before: likewise.
    """

    device: str
    fits: bool
    flash_bytes: int | None = None
    flash_available_bytes: int
    flash_short_bytes: int = 0
    arena_bytes: int | None = None
    arena_available_bytes: int
    arena_short_bytes: int = 0
    activation_bytes: int | None = None
    missing_operators: tuple[str, ...] | None = ()
    float_operators: dict[str, int] = Field(default_factory=dict)
    reason: str = ""
    measured: bool
    judged: bool = False
    flash_bytes_before: int | None = None
    arena_bytes_before: int | None = None


def fit_of(device: str, board: Microcontroller, footprint: Footprint, missing: Sequence[str]) -> MicroFit:
    """The record of one model.

    Args:
        device: name of the profile.
        board: its memories.
        footprint: of the file.
        missing: operators without a kernel, in words.
    """
    flash = max((footprint.flash_bytes or 0) - board.flash_bytes, 0)
    arena = max((footprint.arena_bytes or 0) - board.arena_bytes, 0)
    return MicroFit(
        device=device,
        fits=footprint.runs and not flash and not arena,
        flash_bytes=footprint.flash_bytes,
        flash_available_bytes=board.flash_bytes,
        flash_short_bytes=flash,
        arena_bytes=footprint.arena_bytes,
        arena_available_bytes=board.arena_bytes,
        arena_short_bytes=arena,
        activation_bytes=footprint.activation_bytes,
        missing_operators=tuple(missing) if footprint.measured or footprint.missing else None,
        float_operators=dict(footprint.floats),
        reason=footprint.reason,
        measured=footprint.measured,
    )
