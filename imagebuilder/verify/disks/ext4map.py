"""Which blocks a file of an ext4 has: its extents.

Reference: the kernel's Documentation/filesystems/ext4, "ifork" ("doc" below).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imagebuilder.errors import ArtifactError

_HEADER = struct.Struct("<HHHHI")  # struct ext4_extent_header: magic, entries, room, depth, generation
_MAGIC = 0xF30A
_EXTENT = struct.Struct("<IHHI")  # struct ext4_extent: first block of the file, length, start's high and low bits
_INDEX = struct.Struct("<IIHH")  # struct ext4_extent_idx: first block of the file, node's low and high bits
_MAX_DEPTH = 5  # doc "ifork": enough for any file
_UNWRITTEN = 32768  # a length above it is that of blocks which read as zeros
_MAX_BLOCK = 1 << 32  # of a file


class Extent(NamedTuple):
    """``length`` blocks of a file from ``logical`` on; ``start`` is where they are, or 0 where they read as zeros."""

    logical: int
    start: int
    length: int


class Blocks(NamedTuple):
    """The blocks of the file system: how to read one, and how many there are."""

    read: Callable[[int], bytes]
    total: int


def extents(body: bytes, blocks: Blocks) -> Iterator[Extent]:
    """Yield the extents of a file, ascending; a node of the tree is read when its first one is asked for.

    Args:
        body: i_block of its inode.
        blocks: of the file system; no extent is outside of them.

    Raises:
        ArtifactError: the tree is damaged.
    """
    depth = _head(body)[1]
    if depth > _MAX_DEPTH:
        raise _damaged(f"a tree of extents {depth} deep")
    return _below(body, depth, range(_MAX_BLOCK), blocks)


def _below(node: bytes, depth: int, within: range, blocks: Blocks) -> Iterator[Extent]:
    """Yield the extents of one node; it, and all below it, may say of the blocks ``within`` only."""
    count, found = _head(node)
    if found != depth:
        raise _damaged(f"a node of extents {found} deep where {depth} was stated")
    if depth:
        for block, inner in _children(node, count, within):
            yield from _below(blocks.read(block), depth - 1, inner, blocks)
        return
    free = within.start
    for at in range(count):
        logical, length, high, low = _EXTENT.unpack_from(node, _HEADER.size + at * _EXTENT.size)
        written, start = length <= _UNWRITTEN, high << 32 | low
        length -= 0 if written else _UNWRITTEN
        if not length or logical < free or logical + length > within.stop:
            raise _damaged(f"an extent of {length} blocks at {logical}, out of order")
        if not 0 < start <= blocks.total - length:
            raise _damaged(f"an extent of {length} blocks at {start}, of {blocks.total}")
        free = logical + length
        yield Extent(logical, start if written else 0, length)


def _children(node: bytes, count: int, within: range) -> Iterator[tuple[int, range]]:
    found = [_INDEX.unpack_from(node, _HEADER.size + at * _INDEX.size) for at in range(count)]
    firsts = [logical for logical, *_ in found] + [within.stop]
    # As no two say of the same blocks, a tree that leads to one node twice ends, too.
    if not found or firsts[0] < within.start or any(left >= right for left, right in itertools.pairwise(firsts)):
        raise _damaged("an index of extents that is empty, or out of order")
    for (_, low, high, _), first, stop in zip(found, firsts, firsts[1:], strict=False):
        yield high << 32 | low, range(first, stop)


def _head(node: bytes) -> tuple[int, int]:
    """Return entries and depth of a node."""
    magic, count, _, depth, _ = _HEADER.unpack_from(node)
    if magic != _MAGIC or _HEADER.size + count * _EXTENT.size > len(node):
        raise _damaged("a node of extents that is none")
    return count, depth


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"the ext4 file system in the image is damaged, or no node's: {what}")
