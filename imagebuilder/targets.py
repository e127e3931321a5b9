"""Targets: where an image goes, as data. One TOML file per target."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from imagebuilder import resources
from imagebuilder.errors import UsageError
from imagebuilder.strict import Strict, Strings, did_you_mean, label, read_toml, validate

Firmwares = Annotated[tuple[Literal["bios", "uefi"], ...], Field(strict=False)]
Engines = Annotated[tuple[Literal["direct", "packer"], ...], Field(strict=False)]


class TargetData(Strict):
    """What a target's file states."""

    title: str = Field(description="The name that people know.")
    summary: str = Field(description="One sentence: what the artifact is for.")
    format: Literal["raw", "qcow2", "vmdk", "ova", "tar.gz", "vhd", "box", "none"] = Field(
        description="Format of the artifact; none where it is an image in a cloud."
    )
    box_provider: Literal["", "libvirt", "virtualbox", "qemu"] = Field(
        default="", description="The Vagrant provider that a box is for."
    )
    extension: str = Field(
        description="The artifact's file extension, without a dot.", pattern=r"^[a-z0-9]+(\.[a-z0-9]+)*$"
    )
    size_gib: int = Field(description="Size of the virtual disk in GiB; the root file system fills it.", ge=2)
    firmware: Firmwares = Field(description="Firmware that can boot the disk.", min_length=1)
    kernel: Literal["cloud", "generic"] = Field(description="Kernel flavour; the profile names its package.")
    kernel_arguments: Strings = Field(default=(), description="Kernel arguments, without root= and console=.")
    consoles: Strings = Field(description="Values of console=, the main one last.", min_length=1)
    initramfs_modules: Literal["most"] | Strings = Field(
        description="Modules in the initramfs: those that find the root disk here, or most of them."
    )
    cloud_init: bool = Field(default=False, description="Whether cloud-init is in the image.")
    guest_packages: Mapping[str, Strings] = Field(default={}, description="Packages per family.")
    engines: Engines = Field(description="Engines that can build it, the preferred one first.", min_length=1)
    source_kind: str = Field(description="Kind of source image that Packer starts from.")
    masked_services: Strings = Field(default=(), description="Services that must never start here.")


class Target(TargetData):
    """A destination format and place."""

    name: str = Field(description="Name on the command line.")

    def packages(self, family: str) -> tuple[str, ...]:
        """Return the guest packages for one family of operating systems."""
        return self.guest_packages.get(family, ())


def target_names(folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of all targets, sorted."""
    return _names(folder or resources.folder("targets"))


def load_target(name: str, *, folder: Path | None = None) -> Target:
    """Return one target.

    Raises:
        UsageError: there is no such target; the nearest one is named.
        DataError: its file does not follow the schema.
    """
    return _load(folder or resources.folder("targets"), name)


@cache
def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


@cache
def _load(folder: Path, name: str) -> Target:
    known = _names(folder)
    if name not in known:
        raise UsageError(f'there is no target "{name}"{did_you_mean(name, known)}', hint=f"target: {', '.join(known)}")
    path = folder / f"{name}.toml"
    data = validate(read_toml(path), TargetData, label(path))
    return Target(name=name, **dict(data))
