"""A second, much simpler reader of ext4: by the kernel's documentation, with every checksum looked at."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import google_crc32c

BLOCK = 4096


def crc(seed: int, data: bytes) -> int:
    return int(google_crc32c.extend(seed ^ 0xFFFFFFFF, data)) ^ 0xFFFFFFFF


@dataclass
class File:
    """An inode and where its content is."""

    number: int
    raw: bytes
    blocks: dict[int, int] = field(default_factory=dict)  # of the file -> of the file system
    own: list[int] = field(default_factory=list)  # all blocks that it takes

    @property
    def mode(self) -> int:
        return int(struct.unpack_from("<H", self.raw)[0])

    @property
    def size(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 4)[0] | struct.unpack_from("<I", self.raw, 108)[0] << 32)

    @property
    def links(self) -> int:
        return int(struct.unpack_from("<H", self.raw, 26)[0])

    @property
    def body(self) -> bytes:
        return self.raw[40:100]


class Reader:
    """A file system in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        sb = data[1024:2048]
        assert crc(0xFFFFFFFF, sb[:1020]) == struct.unpack_from("<I", sb, 1020)[0]
        assert struct.unpack_from("<H", sb, 0x38)[0] == 0xEF53
        self.seed = crc(0xFFFFFFFF, sb[0x68:0x78])
        self.blocks, self.free_blocks, self.free_inodes = struct.unpack_from("<I4xII", sb, 4)
        self.inodes = struct.unpack_from("<I", sb)[0]
        self.per_group = struct.unpack_from("<I", sb, 0x28)[0]
        self.groups = -(-self.blocks // 32768)
        self.descriptors = [data[BLOCK + 64 * group : BLOCK + 64 * (group + 1)] for group in range(self.groups)]
        for group, raw in enumerate(self.descriptors):
            bare = raw[:0x1E] + bytes(2) + raw[0x20:]
            assert crc(self.seed, struct.pack("<I", group) + bare) & 0xFFFF == struct.unpack_from("<H", raw, 0x1E)[0]

    def block(self, number: int) -> bytes:
        assert 0 < number < self.blocks
        return self.data[number * BLOCK : (number + 1) * BLOCK]

    def file(self, number: int) -> File:
        """Return an inode by its number."""
        group, at = divmod(number - 1, self.per_group)
        start = struct.unpack_from("<I", self.descriptors[group], 8)[0] * BLOCK + at * 256
        raw = self.data[start : start + 256]
        seed = crc(self.seed, struct.pack("<II", number, 0))
        bare = raw[:0x7C] + bytes(2) + raw[0x7E:0x82] + bytes(2) + raw[0x84:]
        low, high = raw[0x7C:0x7E], raw[0x82:0x84]
        assert crc(seed, bare) == int.from_bytes(low + high, "little"), f"inode {number}"
        found = File(number, raw)
        if struct.unpack_from("<I", raw, 32)[0] & 0x80000:
            self._extents(found, found.body, seed)
        attributes = struct.unpack_from("<I", raw, 104)[0]
        if attributes:
            found.own.append(attributes)
        assert struct.unpack_from("<I", raw, 28)[0] == 8 * len(found.own), "sectors"
        return found

    def _extents(self, file: File, node: bytes, seed: int) -> None:
        magic, entries, most, depth = struct.unpack_from("<HHHH", node)
        assert magic == 0xF30A and entries <= most
        if len(node) == BLOCK:
            assert crc(seed, node[:4092]) == struct.unpack_from("<I", node, 4092)[0]
        for at in range(12, 12 + 12 * entries, 12):
            if depth:
                child = struct.unpack_from("<4xI", node, at)[0]
                file.own.append(child)
                self._extents(file, self.block(child), seed)
            else:
                logical, length, start = struct.unpack_from("<IH2xI", node, at)
                assert 0 < length <= 32768
                assert not file.blocks or logical > max(file.blocks), "ascending"
                file.blocks |= {logical + number: start + number for number in range(length)}
                file.own += range(start, start + length)

    def content(self, file: File) -> bytes:
        """Return what is in a file."""
        count = -(-file.size // BLOCK)
        zero = bytes(BLOCK)
        parts = [self.block(file.blocks[at]) if at in file.blocks else zero for at in range(count)]
        return b"".join(parts)[: file.size]

    def names(self, file: File) -> Iterator[tuple[bytes, int]]:
        """Yield what is in a directory."""
        seed = crc(self.seed, struct.pack("<II", file.number, 0))
        data = self.content(file)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            assert crc(seed, block[:4084]) == struct.unpack_from("<I", block, 4092)[0]
            at = 0
            while at < 4084:
                inode, length, size = struct.unpack_from("<IHB", block, at)
                if inode:
                    yield block[at + 8 : at + 8 + size], inode
                at += length
            assert at == 4084

    def walk(self) -> dict[bytes, File]:
        """Return everything by its path."""
        found, todo = {b"": self.file(2)}, [b""]
        while todo:
            path = todo.pop()
            for name, inode in self.names(found[path]):
                if name not in (b".", b".."):
                    below = path + b"/" + name if path else name
                    found[below] = self.file(inode)
                    if found[below].mode & 0o170000 == 0o040000:
                        todo.append(below)
        return found

    def used(self, group: int) -> set[int]:
        """Return the blocks that a group's bitmap says are used."""
        start, end = group * 32768, min((group + 1) * 32768, self.blocks)
        place, flags = struct.unpack_from("<I14xH", self.descriptors[group])
        assert not flags & 2, "left to the kernel"
        bitmap = int.from_bytes(self.block(place), "little")
        assert bitmap >> (end - start) == (1 << (32768 - end + start)) - 1, "what is behind the end"
        return {start + bit for bit in range(end - start) if bitmap >> bit & 1}
