"""Device profiles by name; apart from `host.py`, so that commands that only name a device load no engine."""

from pathlib import Path

import click

from edgepress.compressor.errors import UsageError, nearest
from edgepress.devices.profile import DeviceSpec, ProfileError, load_profile


def user_profiles() -> list[Path]:
    """Where the user's own profiles lie: `devices/` in the folder where the system keeps settings of programs."""
    return [Path(click.get_app_dir("edgepress")) / "devices"]


def find_target(name: str) -> DeviceSpec:
    """A device profile by name or path; raises `UsageError` for unknown or damaged ones."""
    try:
        return load_profile(name, user_profiles())
    except ProfileError as error:
        raise UsageError(str(error), nearest(name, error.known) if error.known else "") from error
