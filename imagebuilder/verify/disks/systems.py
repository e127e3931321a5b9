"""Which partition has the root file system, and which is the EFI system partition.

References: the Discoverable Partitions Specification (UAPI group) for types; for what is not read, the magic
numbers of the formats themselves, named where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from imagebuilder.direct.gpt import ESP_TYPE, ROOT_TYPES
from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.ext4 import Ext4
from imagebuilder.verify.disks.ext4head import is_ext4
from imagebuilder.verify.disks.fat import Fat
from imagebuilder.verify.disks.source import SECTOR, Window, read
from imagebuilder.verify.model import Partition
from imagebuilder.verify.tree import Tree

_LVM, _LUKS = "LVM", "LUKS (encrypted)"
# By partition type; those of other architectures have no root of ours, but LVM and LUKS are of none.
_UNREADABLE = {
    "e6d6d379-f507-44c2-a23c-238f2a3df928": _LVM,
    "0x8e": _LVM,
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": _LUKS,
    "0xe8": _LUKS,
}
_ROOTS = frozenset({
    "0fc63daf-8483-4772-8e79-3d69d8477de4",  # Linux filesystem data: what most tools write
    "44479540-f297-41b2-9af7-d131d5f0458a",  # root, 32-bit x86: some tools' only root type
    *(str(guid) for guid in ROOT_TYPES.values()),
    "0x83",
})  # fmt: skip
_ESPS = frozenset({str(ESP_TYPE), "0xef"})
# Where in a file system its magic is, what it is, and its name: on-disk formats of LUKS 1 and 2, XFS ("XFS
# Algorithms & Data Structures"), btrfs (btrfs.readthedocs.io, "On-disk Format"), F2FS, squashfs, swap, ZFS's label.
_MAGICS = (
    (0, b"LUKS\xba\xbe", _LUKS),
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (0, b"hsqs", "squashfs"),
    (4086, b"SWAPSPACE2", "swap"),
)
_LVM_LABEL, _LVM_SECTORS = b"LABELONE", 4  # LVM2's label is in one of the first four sectors
_HINT = "verify reads roots on ext4, on a partition or on the whole disk"


def find_root(disk: DiskSource, found: Sequence[Partition]) -> Tree:
    """Return the root file system: the largest ext4 with an ``/etc`` on a partition of Linux, or on the disk itself.

    Raises:
        ArtifactError: there is none; the message says what is there instead.
    """
    parts = {f"partition {one.number}": (Window(disk, one.start, one.size), one.type) for one in found}
    whole: tuple[Window, str] = (Window(disk, 0, disk.size), "0x83")
    seen, best, size = [], None, -1
    for name, (window, kind) in (parts or {"the disk": whole}).items():
        if kind not in _ROOTS and kind not in _UNREADABLE:
            continue
        if not is_ext4(window):
            seen.append(f"{name} is {_unreadable(window) or _UNREADABLE.get(kind) or 'nothing known'}")
            continue
        tree = Ext4(window)
        entry = tree.entry("/etc")
        if entry is None or not entry.is_folder:
            seen.append(f"{name} is an ext4 without /etc")
        elif window.size > size:
            best, size = tree, window.size
    if best is None:
        what = ", ".join(seen) or ("no partition is for Linux" if found else "no partition")
        raise ArtifactError(f"no root file system that is supported: {what}", hint=_HINT)
    return best


def _unreadable(window: Window) -> str:
    """Return what a file system is that is not read; empty where that is not known."""
    for at, magic, name in _MAGICS:
        if window.size >= at + len(magic) and read(window, at, len(magic)) == magic:
            return name
    for sector in range(min(_LVM_SECTORS, window.size // SECTOR)):
        if read(window, sector * SECTOR, len(_LVM_LABEL)) == _LVM_LABEL:
            return _LVM
    return ""


def find_esp(disk: DiskSource, found: Sequence[Partition]) -> Tree | None:
    """Return the file system of the first EFI system partition; None where there is no such partition.

    Raises:
        ArtifactError: it has no FAT, or a damaged one.
    """
    return next((Fat(Window(disk, one.start, one.size)) for one in found if one.type in _ESPS), None)
