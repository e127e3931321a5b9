"""Decides what the disk of a cell is: format, size, firmware, kernel arguments, and who makes the initramfs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from imagebuilder.errors import UsageError
from imagebuilder.model import INITRAMFS, BuildRequest
from imagebuilder.profile_data import Profile
from imagebuilder.targets import Target

GIB = 1 << 30
FIRMWARE = {"amd64": ("bios", "uefi"), "arm64": ("uefi",)}  # arm64 has never had a BIOS
NO_SMALL = "--initramfs small is for nodes that the direct engine makes, and for targets that list their drivers"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskPlan:
    """The disk: format, size in bytes, firmware, and what the boot loader passes to the kernel.

    Attributes:
        drivers: of the small initramfs; empty where the distribution's is made.
    """

    format: str
    extension: str
    size: int
    firmware: tuple[str, ...]
    kernel_arguments: tuple[str, ...]
    drivers: tuple[str, ...]

    @property
    def size_gib(self) -> int:
        """Return the size in GiB."""
        return self.size // GIB

    @property
    def initramfs(self) -> str:
        """Return which of ``INITRAMFS`` is made."""
        return INITRAMFS[not self.drivers]


def disk_plan(request: BuildRequest, profile: Profile, target: Target, engine: str) -> DiskPlan:
    """Decide what the disk is.

    Raises:
        UsageError: the small initramfs is asked for where it is not made.
    """
    consoles = (f"console={name}" for name in target.consoles)
    return DiskPlan(
        format=target.format, extension=target.extension, size=target.size_gib * GIB,
        firmware=tuple(name for name in target.firmware if name in FIRMWARE[profile.arch]),
        kernel_arguments=(*profile.kernel_arguments, *target.kernel_arguments, *consoles),
        drivers=_drivers(request, profile, target, engine),
    )  # fmt: skip


def _drivers(request: BuildRequest, profile: Profile, target: Target, engine: str) -> tuple[str, ...]:
    asked = request.initramfs or profile.initramfs
    modules = target.initramfs_modules
    # A bare image is for other tools, and for machines that nobody here knows.
    if engine == "direct" and not request.bare and not isinstance(modules, str):
        return modules if asked == INITRAMFS[0] else ()
    if request.initramfs == INITRAMFS[0]:
        raise UsageError(NO_SMALL, hint="--initramfs stock")
    return ()
