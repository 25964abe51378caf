"""From a profile to the device that it describes."""

import shlex

from edgepress.devices.adb import AdbDevice
from edgepress.devices.armboard import CORES
from edgepress.devices.base import Device, DeviceTroubleError
from edgepress.devices.local import LocalDevice
from edgepress.devices.profile import DeviceSpec, is_host
from edgepress.devices.qemu import QemuDevice
from edgepress.devices.ssh import SshDevice


def transport_of(spec: DeviceSpec) -> str:
    """How a device is reached: as its profile says, else by ssh where it has an address, else here if it is here.

    An ARM core that is neither is emulated.

    Returns:
        `local`, `ssh`, `adb`, `qemu`, or nothing where there is no way.
    """
    if spec.transport or spec.address or is_host(spec):
        return spec.transport or ("ssh" if spec.address else "local")
    return "qemu" if spec.arch == "aarch64" and spec.cpu in CORES else ""


def device_of(spec: DeviceSpec) -> Device:
    """The device of a profile, not opened yet.

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
        return QemuDevice(spec)
    raise DeviceTroubleError(
        f"nothing can run on {spec.name}: its profile has no address",
        f"compress devices add NAME --base {spec.name} --address user@board",
    )
