"""Superblock, journal and the inode that keeps room for growth (doc "super", "journal" and "special_inodes")."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from imagebuilder.direct.ext4.checksum import superblock_checksum
from imagebuilder.direct.ext4.geometry import (
    BLOCK,
    DESCRIPTOR_SIZE,
    FLEX_BITS,
    GROUP_BLOCKS,
    INODE_SIZE,
    Geometry,
    has_superblock,
)
from imagebuilder.direct.ext4.inodes import EXTRA_SIZE

RESIZE_INODE, JOURNAL_INODE, FIRST_INODE = 7, 8, 11  # doc "special_inodes"
PRIMARY_AT = 1024  # bytes from the start of the disk; in other groups it starts the group
RESERVED_PERCENT = 1  # of the blocks, for root

# struct ext4_super_block up to want_extra_isize and flags, in the order of doc "super".
_SUPER = struct.Struct("<IIIIIIIIIIIIIHHHHHHIIIIHHIHHIII16s16s64sIBBH16sIII16sBBHIII68sIIIHHIHHQIBBBBQ")
_OVERHEAD_AT, _SIZE = 0x248, 1024  # bytes
_MAGIC = 0xEF53
_LOG_BLOCK = 2  # 1 KiB << 2
_COMPATIBLE = 0x4 | 0x8 | 0x10 | 0x20  # has_journal, ext_attr, resize_inode, dir_index
_INCOMPATIBLE = 0x2 | 0x40 | 0x80 | 0x200  # filetype, extent, 64bit, flex_bg
# sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
_READ_ONLY_COMPATIBLE = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400
_CLEAN, _CONTINUE, _LINUX, _DYNAMIC, _CRC32C = 1, 1, 0, 1, 1
_HALF_MD4, _SIGNED_HASH = 1, 1
_MOUNT_OPTIONS = 0x4 | 0x8  # user_xattr, acl
_JOURNAL_BACKUP = 1  # s_jnl_blocks holds the journal's i_block and size

# struct journal_superblock_s: magic, kind, sequence; block size, length, first block, first sequence, start, error,
# three sets of features, UUID, users.
_JOURNAL = struct.Struct(">IIIIIIIIIIII16sI")
_JOURNAL_MAGIC, _JOURNAL_V2 = 0xC03B3998, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What tells a file system from others.

    Attributes:
        epoch: when it was made, in seconds since 1970; nothing in it is younger.
    """

    uuid: UUID
    label: str
    epoch: int


def superblock(
    geometry: Geometry, identity: Identity, free_blocks: int, used_inodes: int, journal: bytes, group: int
) -> bytes:
    """Return the 1,024 bytes of the superblock or of a copy.

    Args:
        geometry: of the file system.
        identity: of the file system.
        free_blocks: in all groups.
        used_inodes: with the reserved ones.
        journal: i_block of the journal.
        group: the group whose copy it is.
    """
    now, blocks = identity.epoch & 0xFFFFFFFF, geometry.blocks
    reserved = blocks * RESERVED_PERCENT // 100
    size = geometry.journal_blocks * BLOCK
    backup = journal + struct.pack("<II", size >> 32, size & 0xFFFFFFFF)
    data = bytearray(_SUPER.pack(
        geometry.inodes, blocks, reserved, free_blocks, geometry.inodes - used_inodes, 0, _LOG_BLOCK, _LOG_BLOCK,
        GROUP_BLOCKS, GROUP_BLOCKS, geometry.inodes_per_group, 0, now, 0, 0xFFFF, _MAGIC, _CLEAN, _CONTINUE, 0,
        now, 0, _LINUX, _DYNAMIC, 0, 0, FIRST_INODE, INODE_SIZE, group, _COMPATIBLE, _INCOMPATIBLE,
        _READ_ONLY_COMPATIBLE, identity.uuid.bytes, identity.label.encode(), b"", 0, 0, 0, geometry.reserved_blocks,
        bytes(16), JOURNAL_INODE, 0, 0, identity.uuid.bytes, _HALF_MD4, _JOURNAL_BACKUP, DESCRIPTOR_SIZE,
        _MOUNT_OPTIONS, 0, now, backup, 0, 0, 0, EXTRA_SIZE, EXTRA_SIZE, _SIGNED_HASH, 0, 0, 0, 0, FLEX_BITS, _CRC32C,
        0, 0, 0,
    ).ljust(_SIZE - 4, b"\0"))  # fmt: skip
    struct.pack_into("<I", data, _OVERHEAD_AT, overhead(geometry))
    return bytes(data) + struct.pack("<I", superblock_checksum(bytes(data)))


def overhead(geometry: Geometry) -> int:
    """Return the blocks that no file can have: what ``df`` does not count."""
    tables = geometry.groups * (2 + geometry.table_blocks)
    return tables + sum(map(geometry.super_blocks, range(geometry.groups))) + geometry.journal_blocks


def journal_superblock(geometry: Geometry, identity: Identity) -> bytes:
    """Return the first block of an empty journal; the kernel reads no other one."""
    return _JOURNAL.pack(
        _JOURNAL_MAGIC, _JOURNAL_V2, 0, BLOCK, geometry.journal_blocks, 1, 1, 0, 0, 0, 0, 0, identity.uuid.bytes, 1
    ).ljust(BLOCK, b"\0")


def resize_size() -> int:
    """Return the size of the resize inode: all that direct, indirect and double indirect blocks reach."""
    per_block = BLOCK // 4
    return (12 + per_block + per_block * per_block) * BLOCK


def resize_blocks(geometry: Geometry, block: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of the resize inode, which own the reserved ones in all groups.

    Its double indirect block names the reserved blocks of the first group; each of those names its copies.
    Reference: e2fsprogs, ext2fs_create_resize_inode().

    Args:
        geometry: of the file system.
        block: the double indirect block.
    """
    per_block = BLOCK // 4
    first, count = 1 + geometry.descriptor_blocks, geometry.reserved_blocks
    pointers = [0] * per_block
    backups = [group * GROUP_BLOCKS for group in range(1, geometry.groups) if has_superblock(group)]
    for reserved in range(first, first + count):
        pointers[(reserved - 1) % per_block] = reserved
        copies = [start + reserved for start in backups]
        yield reserved, struct.pack(f"<{len(copies)}I", *copies).ljust(BLOCK, b"\0")
    yield block, struct.pack(f"<{per_block}I", *pointers)


def resize_body(block: int) -> bytes:
    """Return i_block of the resize inode: only the double indirect block (number 13)."""
    return struct.pack("<15I", *([0] * 13), block, 0)


def resize_total(geometry: Geometry) -> int:
    """Return the blocks that the resize inode counts as its own."""
    return 1 + geometry.reserved_blocks * sum(map(has_superblock, range(geometry.groups)))
