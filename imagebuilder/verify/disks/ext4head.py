"""What the superblock and the group descriptors of an ext4 say.

Reference: the kernel's Documentation/filesystems/ext4, "super" and "group_descr" ("doc" below).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.source import read

SUPERBLOCK_AT, _SUPERBLOCK_SIZE = 1024, 1024  # bytes
_MAGIC_AT, MAGIC = 0x38, b"\x53\xef"
_MAX_BLOCK_BITS = 16  # doc "super": blocks of up to 64 KiB
_INODE_SIZES = (128, 256, 512, 1024, 2048, 4096)
_MAX_DESCRIPTORS = 16 << 20  # bytes: of 256 GiB in groups of 8 MiB, and eight times that

# Doc "super", s_feature_incompat: what changes how the file system is read.
_READABLE = {
    "filetype": 0x2, "extents": 0x40, "64bit": 0x80, "mmp": 0x100, "flex_bg": 0x200, "ea_inode": 0x400,
    "csum_seed": 0x2000, "large_dir": 0x4000, "inline_data": 0x8000, "encrypt": 0x10000, "casefold": 0x20000,
}  # fmt: skip
_RECOVER = 0x4
_64BIT = _READABLE["64bit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What is needed to find an inode.

    Attributes:
        block: bytes of a block.
        blocks: of the file system.
        inodes: of the file system.
        inode_size: bytes of an inode.
        per_group: inodes of a group.
        tables: the first block of each group's inodes.
    """

    block: int
    blocks: int
    inodes: int
    inode_size: int
    per_group: int
    tables: tuple[int, ...]


def is_ext4(disk: DiskSource) -> bool:
    """Tell whether a disk says that it is an ext2, ext3 or ext4."""
    at = SUPERBLOCK_AT + _MAGIC_AT
    return disk.size >= SUPERBLOCK_AT + _SUPERBLOCK_SIZE and read(disk, at, len(MAGIC)) == MAGIC


def read_head(disk: DiskSource) -> Head:
    """Return what superblock and group descriptors say.

    Raises:
        ArtifactError: it is no ext4, it is damaged, or it has features that are not known.
    """
    data = read(disk, SUPERBLOCK_AT, _SUPERBLOCK_SIZE)
    inodes, blocks_low = struct.unpack_from("<II", data)
    first_block, bits = struct.unpack_from("<II", data, 0x14)
    group_blocks, _, per_group = struct.unpack_from("<III", data, 0x20)
    inode_size, features = _checked_features(data)
    if bits > _MAX_BLOCK_BITS - 10:
        raise _damaged(f"blocks of 2^{bits + 10} bytes")
    block = 1024 << bits
    wide = bool(features & _64BIT)
    blocks = blocks_low | (struct.unpack_from("<I", data, 0x150)[0] << 32 if wide else 0)
    if not first_block < blocks <= disk.size // block or first_block != (1 if bits == 0 else 0):
        raise _damaged(f"{blocks} blocks of {block} bytes on a disk of {disk.size}")
    if not 0 < group_blocks <= 8 * block * 16 or not 0 < per_group <= 8 * block:
        raise _damaged(f"groups of {group_blocks} blocks and {per_group} inodes")
    groups = -(-(blocks - first_block) // group_blocks)
    if inodes != groups * per_group or inode_size > block:
        raise _damaged(f"{inodes} inodes in {groups} groups")
    each = struct.unpack_from("<H", data, 0xFE)[0] if wide else 32
    if each not in (32, 64, 128, 256, 512, 1024) or groups * each > _MAX_DESCRIPTORS or (wide and each < 64):
        raise _damaged(f"{groups} group descriptors of {each} bytes")
    descriptors = read(disk, (first_block + 1) * block, groups * each)
    tables = tuple(_table(descriptors, at, wide) for at in range(0, len(descriptors), each))
    length = -(-per_group * inode_size // block)
    if any(not 0 < table <= blocks - length for table in tables):
        raise _damaged("inodes outside of it")
    return Head(block=block, blocks=blocks, inodes=inodes, inode_size=inode_size, per_group=per_group, tables=tables)


def _checked_features(data: bytes) -> tuple[int, int]:
    """Return the size of inodes, and the features that matter for reading."""
    if data[_MAGIC_AT : _MAGIC_AT + len(MAGIC)] != MAGIC:
        raise ArtifactError("there is no ext4 file system")
    revision, inode_size, features = (
        struct.unpack_from(form, data, at)[0] for form, at in (("<I", 0x4C), ("<H", 0x58), ("<I", 0x60))
    )
    if features & _RECOVER:
        raise ArtifactError(
            "the ext4 file system in the image was not unmounted: its journal holds changes",
            hint="shut the machine down before its disk is taken, or let e2fsck -p replay the journal",
        )
    unknown = features & ~sum(_READABLE.values())
    if revision != 1 or unknown:
        raise ArtifactError(f"the ext4 file system in the image has features {unknown:#x}, which are not supported")
    if inode_size not in _INODE_SIZES:
        raise _damaged(f"inodes of {inode_size} bytes")
    return inode_size, features


def _table(descriptors: bytes, at: int, wide: bool) -> int:
    low: int = struct.unpack_from("<I", descriptors, at + 8)[0]
    high: int = struct.unpack_from("<I", descriptors, at + 0x28)[0] if wide else 0
    return high << 32 | low


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"the ext4 file system in the image is damaged: its superblock says {what}")
