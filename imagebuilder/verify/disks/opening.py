"""Opening an artifact: which format it is, where its root file system is. Nothing is mounted, and no root is needed.

Order of trust: the first bytes say the format, never the name; the format says where the disk is, the disk's table
where the file systems are. Each says only what the one before it has room for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.direct.virtual import DiskSource, RawFile
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks import vhd
from imagebuilder.verify.disks.partitions import BOOT_CODE, partitions
from imagebuilder.verify.disks.qcow2 import Qcow2
from imagebuilder.verify.disks.source import SECTOR, checked_size, read
from imagebuilder.verify.disks.systems import find_esp, find_root
from imagebuilder.verify.model import DiskFacts
from imagebuilder.verify.tree import Tree

_QCOW2 = b"QFI\xfb"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenDisk:
    """An artifact that is open.

    Attributes:
        disk: what the machine would see.
        facts: what it says before any file system.
        root: the root file system.
        esp: the EFI system partition's, where there is one.
        packed: what the disk's file was inside: ``tar.gz``, ``box``, ``ova``, or empty.
    """

    disk: DiskSource
    facts: DiskFacts
    root: Tree
    esp: Tree | None
    packed: str


@contextlib.contextmanager
def open_image(path: Path, scratch: Path) -> Iterator[OpenDisk]:
    """Open an artifact of any format that is read, whatever its name; it is closed when the block ends.

    Args:
        path: the file.
        scratch: an existing folder for what has to be unpacked; what was put there is removed.

    Raises:
        ArtifactError: it is of no format that is read, it is damaged, or it has no root file system that is read;
            also while the block reads of it.
    """
    with _file(path) as file:
        kind, disk = _disk(file)
        yield _opened(kind, disk, "")


@contextlib.contextmanager
def _file(path: Path) -> Iterator[RawFile]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ArtifactError(f"{path} is no file", hint=f"ls -l {path}")
        file = RawFile(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", hint=f"ls -l {path}") from error
    with file:
        yield file


def _disk(file: DiskSource) -> tuple[str, DiskSource]:
    """Return the format that a file is of, and the disk in it."""
    start = read(file, 0, min(SECTOR, file.size))
    if start.startswith(_QCOW2):
        return "qcow2", Qcow2(file)
    end = read(file, file.size - SECTOR, SECTOR) if file.size > SECTOR else b""
    if vhd.COOKIE in (start[: len(vhd.COOKIE)], end[: len(vhd.COOKIE)]):
        return "vhd", vhd.fixed_disk(file)
    checked_size(file.size)
    return "raw", file


def _opened(kind: str, disk: DiskSource, packed: str) -> OpenDisk:
    table, found = partitions(disk)
    facts = DiskFacts(
        format=kind, size=disk.size, table=table, partitions=found, boot_code=read(disk, 0, min(BOOT_CODE, disk.size))
    )
    return OpenDisk(disk=disk, facts=facts, root=find_root(disk, found), esp=find_esp(disk, found), packed=packed)
