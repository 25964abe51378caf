"""From a profile to the device that it describes."""

import shlex
import shutil
import sys
from importlib.util import find_spec

from edgepress.devices.adb import AdbDevice
from edgepress.devices.armboard import CORES
from edgepress.devices.armroot import Tell, prepared
from edgepress.devices.base import Device, DeviceTroubleError
from edgepress.devices.local import LocalDevice
from edgepress.devices.profile import MICRO, DeviceSpec, is_host, remark
from edgepress.devices.qemu import QemuDevice
from edgepress.devices.ssh import SshDevice


def transport_of(spec: DeviceSpec) -> str:
    """How a device is reached: as its profile says, else by ssh where it has an address, else here if it is here.

    An ARM core that is neither is emulated.

    Returns:
        `local`, `ssh`, `adb`, `qemu`, `tflite-micro` for what our code cannot run on, or nothing where there is no way.
    """
    if spec.engine == MICRO:
        return MICRO
    if spec.transport or spec.address or is_host(spec):
        return spec.transport or ("ssh" if spec.address else "local")
    return "qemu" if spec.arch == "aarch64" and spec.cpu in CORES else ""


def readiness(spec: DeviceSpec) -> tuple[bool | None, str]:
    """Whether a device can be used now, as far as that is known without a word to it.

    Returns:
        Yes, no, or None where only trying tells; and why, or what it takes.
    """
    transport, name = transport_of(spec), spec.name
    if spec.engine == MICRO:
        known = find_spec(MICRO.replace("-", "_")) is not None
        return known, "by its interpreter, here" if known else "pip install 'edgepress[micro]'"
    if transport == "local":
        return True, "it is this machine"
    if transport in ("ssh", "adb") and shutil.which(transport) is None:
        return False, f"there is no {transport} on this machine"
    if transport == "adb" and not spec.benchmark:
        return False, f"compress devices add NAME --transport adb --base {name} --benchmark ./benchmark_model"
    if transport in ("ssh", "adb"):
        return None, f"compress devices check {name}"
    if transport == "qemu" and sys.platform != "linux":
        return False, "cores are emulated on Linux only"
    if transport == "qemu":
        return (
            (True, "emulated") if prepared() else (None, "emulated; on first use some 100 MB are downloaded")
        )
    return False, remark(spec) or f"compress devices add NAME --base {name} --address user@board"


def device_of(spec: DeviceSpec, tell: Tell = lambda line: None) -> Device:
    """The device of a profile, not opened yet.

    Args:
        spec: the profile.
        tell: takes lines about what takes long: an emulated machine is made on first use.

    Raises:
        DeviceTroubleError: there is no way to it.
    """
    python = tuple(shlex.split(spec.python))
    transport = transport_of(spec)
    if transport == "local":
        return LocalDevice(spec.name, python)
    if transport == "ssh":
        return SshDevice(spec.address, python, spec.name)
    if transport == "adb":
        return AdbDevice(spec.address, python, spec.name)
    if transport == "qemu":
        return QemuDevice(spec, tell=tell)
    if spec.engine == MICRO:
        raise DeviceTroubleError(
            f"{spec.name} has no Python, so nothing of ours runs there",
            f"compress bench MODEL.tflite --device {spec.name} tells whether a model fits.",
        )
    if other := remark(spec):
        raise DeviceTroubleError(f"{spec.name} is not this machine, and has no address", other)
    raise DeviceTroubleError(
        f"nothing can run on {spec.name}: its profile has no address",
        f"compress devices add NAME --base {spec.name} --address user@board",
    )
