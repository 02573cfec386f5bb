"""Refuses a device that the installed torch cannot have, without importing torch: that takes seconds."""

import re
from importlib.metadata import PackageNotFoundError, version

from trimoe.errors import UsageError

_NAMES = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu|meta)(:\d+)?")


def require_device(device: str) -> None:
    """Raise `UsageError` for a name that is no device, and for CUDA with a build of torch for CPUs.

    Not checked: whether this machine has the device. The first tensor on it shows that.
    """
    try:
        build = version("torch")
    except PackageNotFoundError:
        return  # whoever needs torch says so
    if not _NAMES.fullmatch(device):
        raise _unusable(device, "not the name of a device")
    if device.startswith("cuda") and build.endswith("+cpu"):
        raise _unusable(device, f"torch {build}, a build for CPUs")


def _unusable(device: str, actual: str) -> UsageError:
    return UsageError(
        f"device {device} cannot be used",
        expected="cpu, cuda or cuda:N of this machine",
        actual=actual,
        remedy="choose another --device, or install a build of torch for it",
    )
