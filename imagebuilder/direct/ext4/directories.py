"""Blocks of directories: linear, with file types and checksums (doc "directory").

An index (htree) is left out, as ``mke2fs -d`` does: a directory without it is whole, and read from its start.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Sequence

from imagebuilder.direct.ext4.checksum import crc32c
from imagebuilder.direct.ext4.geometry import BLOCK

_ENTRY = struct.Struct("<IHBB")  # struct ext4_dir_entry_2: inode, length of the record and of the name, kind
_TAIL = struct.Struct("<IHBBI")  # struct ext4_dir_entry_tail: an entry without inode and name, checksum
_TAIL_KIND = 0xDE
_ROOM = BLOCK - _TAIL.size
KINDS = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}  # fmt: skip

Name = tuple[bytes, int, int]  # name, inode, kind


def split(names: Iterable[Name], least: int = 1) -> list[list[Name]]:
    """Return the names of a directory, "." and ".." among them, block by block.

    Args:
        names: in the order in which they shall be found.
        least: blocks to return at least.
    """
    blocks: list[list[Name]] = [[]]
    free = _ROOM
    for name in names:
        need = _length(name[0])
        if need > free:
            blocks.append([])
            free = _ROOM
        blocks[-1].append(name)
        free -= need
    blocks.extend([] for _ in range(least - len(blocks)))
    return blocks


def packed(blocks: Sequence[Sequence[Name]], seed: int) -> bytes:
    """Return the content of a directory.

    Args:
        blocks: what :func:`split` returned.
        seed: of the inode's checksums.
    """
    parts = []
    for names in blocks:
        at, body = 0, bytearray(_ROOM)
        last = len(names) - 1
        for place, (name, inode, kind) in enumerate(names):
            length = _length(name) if place < last else _ROOM - at
            _ENTRY.pack_into(body, at, inode, length, len(name), kind)
            body[at + 8 : at + 8 + len(name)] = name
            at += length
        if not names:
            _ENTRY.pack_into(body, 0, 0, _ROOM, 0, 0)
        data = bytes(body)
        parts += [data, _TAIL.pack(0, _TAIL.size, 0, _TAIL_KIND, crc32c(seed, data))]
    return b"".join(parts)


def _length(name: bytes) -> int:
    return (_ENTRY.size + len(name) + 3) & ~3
