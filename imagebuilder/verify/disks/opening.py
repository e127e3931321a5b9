"""Opening an artifact: which format it is, where its root file system is. Nothing is mounted, and no root is needed.

Order of trust: the first bytes say the format, never the name; the format says where the disk is, the disk's table
where the file systems are. Each says only what the one before it has room for.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.direct.virtual import DiskSource, RawFile
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks import vhd, vmdk
from imagebuilder.verify.disks.archives import is_archive, unpack
from imagebuilder.verify.disks.partitions import BOOT_CODE, partitions
from imagebuilder.verify.disks.qcow2 import Qcow2
from imagebuilder.verify.disks.source import SECTOR, checked_size, read
from imagebuilder.verify.disks.systems import find_esp, find_root
from imagebuilder.verify.model import DiskFacts
from imagebuilder.verify.tree import Tree

_QCOW2 = b"QFI\xfb"
_UNREAD = {
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "an archive in an archive",
    b"vhdxfile": "a VHDX",
    b"COWD": "a VMDK of the kind that VMware's hosts write",
    b"# Disk DescriptorFile": "the description of a VMDK in several files",
    b"<<< ": "a VDI of VirtualBox",
    b"QED\0": "a QED",
}
_HINT = "read are raw, qcow2, VMDK and VHD disks; a tar.gz, box or OVA with one; else: qemu-img convert -O qcow2 IN OUT"


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
    with contextlib.ExitStack() as stack:
        file, packed = stack.enter_context(_file(path)), ""
        if is_archive(_start(file)):
            packed, inside = unpack(path, Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))))
            file = stack.enter_context(_file(inside))
        yield _opened(*_disk(file), packed)


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


def _start(file: DiskSource) -> bytes:
    return read(file, 0, min(SECTOR, file.size))


def _disk(file: DiskSource) -> tuple[str, DiskSource]:
    """Return the format that a file is of, and the disk in it."""
    start = _start(file)
    for magic, what in _UNREAD.items():
        if start.startswith(magic):
            raise ArtifactError(f"it is {what}, which is not read", hint=_HINT)
    if start.startswith(_QCOW2):
        return "qcow2", Qcow2(file)
    if start.startswith(vmdk.MAGIC):
        return "vmdk", vmdk.Vmdk(file)
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
