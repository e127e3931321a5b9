"""Where a file's blocks are: extents in the inode, and a tree of blocks where they do not fit (doc "ifork")."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from imagebuilder.direct.ext4.checksum import crc32c
from imagebuilder.direct.ext4.geometry import BLOCK

_HEADER = struct.Struct("<HHHHI")  # struct ext4_extent_header: magic, entries, most entries, depth, generation
_LEAF = struct.Struct("<IHHI")  # struct ext4_extent: first block of the file, length, start's high and low bits
_INDEX = struct.Struct("<IIHH")  # struct ext4_extent_idx: first block of the file, node's low and high bits, unused
_TAIL = struct.Struct("<I")  # struct ext4_extent_tail: checksum
_MAGIC = 0xF30A
IN_INODE = 4
IN_BLOCK = (BLOCK - _HEADER.size - _TAIL.size) // _LEAF.size
ROOT_SIZE = 60  # bytes: i_block


class Extent(NamedTuple):
    """``length`` blocks of a file from its block ``logical`` on are at ``start`` of the file system."""

    logical: int
    start: int
    length: int


def root(extents: Sequence[Extent], take: Callable[[], int], seed: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Return i_block of an inode and the blocks of its tree.

    Args:
        extents: of the file, ascending.
        take: hands out a block for a node.
        seed: of the inode's checksums.
    """
    if len(extents) <= IN_INODE:
        entries = [_leaf(extent) for extent in extents]
        return _node(entries, IN_INODE, 0).ljust(ROOT_SIZE, b"\0"), []
    blocks: list[tuple[int, bytes]] = []
    firsts = [extent.logical for extent in extents]
    entries, depth = [_leaf(extent) for extent in extents], 0
    while len(entries) > IN_INODE:
        above, above_firsts = [], []
        for at in range(0, len(entries), IN_BLOCK):
            block = take()
            node = _node(entries[at : at + IN_BLOCK], IN_BLOCK, depth).ljust(BLOCK - _TAIL.size, b"\0")
            blocks.append((block, node + _TAIL.pack(crc32c(seed, node))))
            above.append(_INDEX.pack(firsts[at], block & 0xFFFFFFFF, block >> 32, 0))
            above_firsts.append(firsts[at])
        entries, firsts, depth = above, above_firsts, depth + 1
    return _node(entries, IN_INODE, depth).ljust(ROOT_SIZE, b"\0"), blocks


def _leaf(extent: Extent) -> bytes:
    return _LEAF.pack(extent.logical, extent.length, extent.start >> 32, extent.start & 0xFFFFFFFF)


def _node(entries: Sequence[bytes], most: int, depth: int) -> bytes:
    return _HEADER.pack(_MAGIC, len(entries), most, depth, 0) + b"".join(entries)
