"""Group descriptors and bitmaps (doc "group_descr" and "bitmaps")."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imagebuilder.direct.ext4.checksum import crc32c
from imagebuilder.direct.ext4.geometry import BLOCK, GROUP_BLOCKS, Geometry

# struct ext4_group_desc: block bitmap, inode bitmap, inode table, free blocks and inodes, directories, flags,
# exclude bitmap, checksums of the two bitmaps, unused inodes, checksum; then the high halves, and a reserved field.
_DESCRIPTOR = struct.Struct("<IIIHHHHIHHHHIIIHHHHIHHI")
_CHECKSUM_AT = 0x1E
_GROUP = struct.Struct("<I")
_INODE_UNINIT, _BLOCK_UNINIT, _INODE_ZEROED = 1, 2, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """All descriptors, and the bitmaps that are not left to the kernel, by block."""

    descriptors: bytes
    bitmaps: Sequence[tuple[int, bytes]]
    free_blocks: int


def groups(geometry: Geometry, cursor: int, inodes: int, directories: Sequence[int], seed: int) -> Groups:
    """Return descriptors and bitmaps.

    The inode tables are marked as zeroed: what is not written of a disk of ours reads as zeros, so the kernel
    need not do it at the first boot.

    Args:
        geometry: of the file system.
        cursor: all blocks before it are used; after it only those that have a fixed place.
        inodes: all up to this number are used.
        directories: per group.
        seed: of the file system's checksums.
    """
    packed, bitmaps, free_blocks = [], [], 0
    fixed = list(geometry.fixed())
    for group in range(geometry.groups):
        start, end = geometry.group_start(group), geometry.group_end(group)
        used = list(_clipped([(0, cursor), *fixed], start, end))
        free = end - start - _union(used)
        free_blocks += free
        flags, block_sum, inode_sum = _INODE_ZEROED, 0, 0
        # What the kernel finds without being told: a group that holds nothing but its own superblock.
        if _union(used) == geometry.super_blocks(group) and 0 < group < geometry.groups - 1:
            flags |= _BLOCK_UNINIT
        else:
            bitmap = _bitmap([*used, (end - start, GROUP_BLOCKS)], GROUP_BLOCKS)
            bitmaps.append((geometry.block_bitmap(group), bitmap))
            block_sum = crc32c(seed, bitmap)
        per_group = geometry.inodes_per_group
        used_inodes = min(max(inodes - group * per_group, 0), per_group)
        if used_inodes:
            bitmap = _bitmap([(0, used_inodes), (per_group, GROUP_BLOCKS)], GROUP_BLOCKS)
            bitmaps.append((geometry.inode_bitmap(group), bitmap))
            inode_sum = crc32c(seed, bitmap[: per_group // 8])
        else:
            flags |= _INODE_UNINIT
        packed.append(_descriptor(
            geometry, group, free, per_group - used_inodes, directories[group], flags, block_sum, inode_sum, seed
        ))  # fmt: skip
    return Groups(descriptors=b"".join(packed), bitmaps=bitmaps, free_blocks=free_blocks)


def _descriptor(
    geometry: Geometry, group: int, free: int, free_inodes: int, directories: int, flags: int, block_sum: int,
    inode_sum: int, seed: int,
) -> bytes:  # fmt: skip
    places = geometry.block_bitmap(group), geometry.inode_bitmap(group), geometry.inode_table(group)
    data = bytearray(_DESCRIPTOR.pack(
        *places, free & 0xFFFF, free_inodes & 0xFFFF, directories & 0xFFFF, flags, 0,
        block_sum & 0xFFFF, inode_sum & 0xFFFF, free_inodes & 0xFFFF, 0, 0, 0, 0,
        free >> 16, free_inodes >> 16, directories >> 16, free_inodes >> 16, 0, block_sum >> 16, inode_sum >> 16, 0,
    ))  # fmt: skip
    checksum = crc32c(seed, _GROUP.pack(group) + data)
    struct.pack_into("<H", data, _CHECKSUM_AT, checksum & 0xFFFF)
    return bytes(data)


def _clipped(runs: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of runs from ``start`` to ``end``, counted from ``start``."""
    for first, stop in runs:
        if first < end and stop > start:
            yield max(first, start) - start, min(stop, end) - start


def _union(runs: Sequence[tuple[int, int]]) -> int:
    """Return how many blocks runs cover together."""
    total = last = 0
    for start, end in sorted(runs):
        total += max(0, end - max(start, last))
        last = max(last, end)
    return total


def _bitmap(runs: Sequence[tuple[int, int]], bits: int) -> bytes:
    number = 0
    for start, end in runs:
        if end > start:
            number |= ((1 << (end - start)) - 1) << start
    return number.to_bytes(max(bits // 8, BLOCK), "little")
