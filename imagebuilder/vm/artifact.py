"""Finds the disk that an argument ARTIFACT means: a file, or the folder that a bake wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagebuilder.errors import ArtifactError

if TYPE_CHECKING:
    from imagebuilder.vm.machine import DiskFormat

MANIFEST = "manifest.json"
MAX_MANIFEST = 16 << 20  # bytes: one with 400 packages has 0.1 MB
QCOW2_MAGIC = b"QFI\xfb"
SECTOR = 512
BOOT_SIGNATURE = b"\x55\xaa"  # ends the first sector of every disk with an MBR, or a GPT's protective one


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A disk file, its format, and the name of its image."""

    disk: Path
    disk_format: DiskFormat
    name: str


def find_artifact(path: Path) -> Artifact:
    """Return the disk that a path means.

    Raises:
        ArtifactError: there is none, or it is not a disk.
    """
    path = path.absolute()
    if path.is_dir():
        return _in_folder(path)
    return Artifact(disk=path, disk_format=disk_format(path), name=path.stem)


def disk_format(path: Path) -> DiskFormat:
    """Return a disk file's format, from its first sector.

    Raises:
        ArtifactError: it cannot be read, or is no disk.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(SECTOR)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}", hint="name a disk, or the folder that a bake wrote") from error
    if start.startswith(QCOW2_MAGIC):
        return "qcow2"
    if start[-2:] == BOOT_SIGNATURE and len(start) == SECTOR:
        return "raw"
    raise ArtifactError(f"{path} is neither a qcow2 nor a bootable raw disk", hint="name the folder that a bake wrote")


def _in_folder(folder: Path) -> Artifact:
    manifest = read_manifest(folder / MANIFEST)
    match manifest:
        case {"artifact": {"file": str(name), "format": "qcow2" | "raw" as said}} if Path(name).name == name:
            disk = folder / name
        case _:
            raise ArtifactError(f"{folder / MANIFEST} does not name a disk", hint="bake it again")
    found = disk_format(disk)
    if found != said:
        raise ArtifactError(f"{disk} is {found}, but its manifest says {said}", hint="bake it again")
    return Artifact(disk=disk, disk_format=found, name=str(manifest.get("id", folder.name)))


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of an image.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            data = json.loads(stream.read(MAX_MANIFEST))
    except FileNotFoundError as error:
        hint = "name a disk, or the folder out/<build identifier> that a bake wrote"
        raise ArtifactError(f"{path.parent} has no {MANIFEST}: it is not whole", hint=hint) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read", context=str(error), hint="bake it again") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is not a manifest", hint="bake it again")
    return data
