"""Microcontrollers as the compressor sees them, from the runtime's interpreter and a profile."""

from functools import partial

from edgepress.compressor.errors import DeviceError
from edgepress.compressor.micro import estimate
from edgepress.compressor.protocols import Footprint
from edgepress.devices.profile import MICRO, DeviceSpec
from edgepress.runtime.engines import micro
from edgepress.runtime.engines.apart import alone
from edgepress.runtime.record import EngineError


class Board:
    """A microcontroller by its profile.

    Attributes:
        name: of the profile.
        flash_bytes: see `Microcontroller`.
        arena_bytes: likewise.
        measured: whether its interpreter is here.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        """Nothing is run yet.

        Args:
            spec: its profile.
        """
        self.name, self.flash_bytes, self.arena_bytes = spec.name, spec.flash_bytes, spec.arena_bytes
        self.measured = installed() is not None

    def footprint(self, file: bytes) -> Footprint:
        """What a TFLite file takes, by the interpreter, or else estimated.

        Raises:
            DeviceError: the file is damaged.
        """
        if not self.measured:
            return estimate(file)
        try:
            found: micro.Footprint = alone(micro.NAME, micro.footprint, file)
        except EngineError as error:
            raise DeviceError(str(error), error.hint) from error
        return Footprint(
            flash_bytes=found.flash_bytes,
            arena_bytes=found.arena_bytes,
            activation_bytes=found.activation_bytes,
            missing=tuple((each.kind, each.output) for each in found.missing),
            floats=found.floats or {},
            reason=found.refusal,
            measured=True,
        )


def installed() -> str | None:
    """Release of the interpreter, or None where it is not here."""
    try:
        return micro.MicroEngine().version
    except EngineError:
        return None


def board_of(spec: DeviceSpec) -> Board | None:
    """The microcontroller of a profile; None where it is of something else."""
    return Board(spec) if spec.engine == MICRO else None


make_engine = partial(micro.MicroEngine, as_onnx=True)
"""Makes the interpreter in any process."""
