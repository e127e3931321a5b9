"""Reading ext4 file systems of unknown origin, without a mount.

Reference: the kernel's Documentation/filesystems/ext4 ("doc" below). Folders with an index are read as those without:
doc "directory", "Hash Tree Directories", hides the index in entries that are not used. Inodes are read many at a
time, as their tables lie on the disk. Read are files with extents or with their content in the inode; ext2 and ext3,
whose files have block maps, are refused when such a file is come to.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import NamedTuple

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.verify.disks.ext4head import Head, read_head
from imagebuilder.verify.disks.ext4map import Blocks, extents
from imagebuilder.verify.disks.folders import Folders
from imagebuilder.verify.disks.source import read
from imagebuilder.verify.tree import Entry

ROOT = 2  # doc "special inodes"
_CHUNK = 128 << 10  # bytes of a table of inodes that are read at once
_KEPT = 256  # chunks: 32 MiB
_KEPT_ENTRIES = 1 << 15  # inodes: 25 MB
_MAX_FOLDER = 64 << 20  # bytes of a folder: 1.5 million short names
_MAX_TARGET = 4096  # bytes: PATH_MAX
_LONG_TARGET, _MAX_TARGETS = 512, 64 << 20  # bytes: of targets that are longer, all together; a node has none
_KINDS = frozenset({
    stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFLNK, stat.S_IFSOCK,
})  # fmt: skip

# struct ext4_inode: mode, owner, size, atime, ctime, mtime, dtime, group, links, sectors, flags, version, i_block,
# generation, attributes' block, size's high bits, obsolete, then high bits of sectors, attributes' block, owner, group.
_INODE = struct.Struct("<HHIIIiIHHIII60sIIIIHHHH4x")
_GOOD_SIZE = 128  # doc "inodes": the part that every inode has
_EXTRA = struct.Struct("<HHII")  # what follows it: its size, checksum's high bits, the extra bits of ctime and mtime
_EXTENTS, _INLINE, _ENCRYPTED = 0x80000, 0x10000000, 0x800
_FAST_LINK = 60  # bytes of target from which on it does not fit i_block

_NAME = struct.Struct("<IHB")  # struct ext4_dir_entry_2: inode, length of the record and of the name; its kind follows
_NAME_AT = 8
_INLINE_PARENT = 4  # doc "Inline Directories": the parent's inode comes first

# doc "attributes"
_XATTR_MAGIC = 0xEA020000
_XATTR = struct.Struct("<BBHIII")  # name's length and index, value's offset, inode, size, hash
_XATTR_BLOCK_HEADER = 32
_SYSTEM, _SECURITY = 7, 6
_MAX_XATTR = 4096  # bytes of a value: one block, and a capability has 20


class Inode(NamedTuple):
    """What of an inode is needed after its entry: flags, i_block, and where attributes are."""

    entry: Entry
    flags: int
    body: bytes
    attributes: int
    inside: bytes


class Ext4(Folders[int]):
    """An ext4 on a disk.

    Raises:
        ArtifactError: it is none, is damaged, or has features that are not read.
    """

    def __init__(self, disk: DiskSource) -> None:
        super().__init__(ROOT, "ext4")
        self._disk, self._targets = disk, 0
        self.head: Head = read_head(disk)
        self._blocks = Blocks(self._block, self.head.blocks)
        self._chunk = lru_cache(_KEPT)(self._read_chunk)
        self._inode = lru_cache(_KEPT_ENTRIES)(self._read_inode)

    def _identity(self, node: int) -> Hashable:
        return node

    def _entry(self, node: int) -> Entry:
        return self._inode(node).entry

    def _block(self, number: int) -> bytes:
        if not 0 < number < self.head.blocks:
            raise self._damaged(f"block {number} of {self.head.blocks}")
        return read(self._disk, number * self.head.block, self.head.block)

    def _read_chunk(self, group: int, at: int) -> bytes:
        """Return a part of a group's inodes, from its byte ``at`` on."""
        length = min(_CHUNK, self.head.per_group * self.head.inode_size - at)
        return read(self._disk, self.head.tables[group] * self.head.block + at, length)

    def _read_inode(self, number: int) -> Inode:
        if not 0 < number <= self.head.inodes:
            raise self._damaged(f"inode {number} of {self.head.inodes}")
        group, index = divmod(number - 1, self.head.per_group)
        chunk, at = divmod(index * self.head.inode_size, _CHUNK)
        data = self._chunk(group, chunk * _CHUNK)
        (
            mode, uid, size, _, _, mtime, _, gid, _, _, flags, _, body, _, attributes, size_high, _,
            _, attributes_high, uid_high, gid_high,
        ) = _INODE.unpack_from(data, at)  # fmt: skip
        if mode & 0xF000 not in _KINDS:
            raise self._damaged(f"inode {number} is of no kind")
        size |= size_high << 32
        attributes |= attributes_high << 32
        inside = b""
        if self.head.inode_size > _GOOD_SIZE:
            extra, _, _, time = _EXTRA.unpack_from(data, at + _GOOD_SIZE)
            mtime += (time & 3) << 32 if extra >= _EXTRA.size else 0
            inside = data[at + _GOOD_SIZE + extra : at + self.head.inode_size]
        inode = Inode(Entry(mode=mode), flags, body, attributes, inside)
        kind = stat.S_IFMT(mode)
        return inode._replace(entry=Entry(
            mode=mode, uid=uid | uid_high << 16, gid=gid | gid_high << 16, size=size, mtime=mtime,
            target=self._target(inode, size) if kind == stat.S_IFLNK else "",
            capability=self._attribute(inode, _SECURITY, b"capability") if kind == stat.S_IFREG else b"",
        ))  # fmt: skip

    def _target(self, inode: Inode, size: int) -> str:
        if not 0 < size <= _MAX_TARGET:
            raise self._damaged(f"a symbolic link of {size} bytes")
        self._targets += size if size > _LONG_TARGET else 0
        if self._targets > _MAX_TARGETS:
            raise self._damaged("too many long symbolic links")
        fast = size < _FAST_LINK and not inode.flags & (_EXTENTS | _INLINE | _ENCRYPTED)
        return _text(inode.body[:size] if fast else self._bytes(inode, size))

    def _content(self, node: int, limit: int) -> bytes:
        return self._bytes(self._inode(node), limit)

    def _bytes(self, inode: Inode, limit: int) -> bytes:
        """Return the first bytes of what an inode has."""
        if inode.flags & _ENCRYPTED:
            raise self._damaged("a file of it is encrypted")
        if inode.flags & _INLINE:
            data = inode.body + self._attribute(inode, _SYSTEM, b"data")
            return data[:limit].ljust(limit, b"\0")
        if not inode.flags & _EXTENTS:
            if any(inode.body):
                raise self._damaged("a file of it has a block map, as ext2 and ext3 have, and not extents")
            return bytes(limit)
        return self._extended(inode, limit)

    def _extended(self, inode: Inode, limit: int) -> bytes:
        data, block = bytearray(limit), self.head.block
        view = memoryview(data)
        for extent in extents(inode.body, self._blocks):
            start = extent.logical * block
            if start >= limit:
                break
            if extent.start:
                self._disk.read_into(extent.start * block, view[start : start + extent.length * block])
        return bytes(data)

    def _children(self, node: int) -> dict[str, int]:
        inode = self._inode(node)
        found: dict[str, int] = {}
        for part in self._parts(inode):
            for name, number in self._listed(part):
                if name in (b".", b".."):
                    continue
                if b"/" in name or b"\0" in name:
                    raise self._damaged(f"a file with the name {name!r}")
                text = _text(name)
                if text in found:
                    raise self._damaged(f"two files with the name {text!r} in one folder")
                found[text] = number
        return found

    def _parts(self, inode: Inode) -> Iterator[bytes]:
        """Yield the parts of a folder, none of whose entries is in two of them."""
        size, block = inode.entry.size, self.head.block
        if inode.flags & _INLINE:
            yield inode.body[_INLINE_PARENT:]
            yield self._attribute(inode, _SYSTEM, b"data")
            return
        if size > _MAX_FOLDER or size % block or not size:
            raise self._damaged(f"a folder of {size} bytes")
        data = self._bytes(inode, size)
        for at in range(0, size, block):
            yield data[at : at + block]

    def _listed(self, part: bytes) -> Iterator[tuple[bytes, int]]:
        at = 0
        while at < len(part):
            if len(part) - at < _NAME_AT:
                raise self._damaged("a folder whose entries do not end with it")
            number, length, size = _NAME.unpack_from(part, at)
            # With blocks of 64 KiB, a whole one is written so.
            length = len(part) if length in (0, 0xFFFF) and len(part) == 1 << 16 else length
            if length % 4 or not _NAME_AT + (size if number else 0) <= length <= len(part) - at:
                raise self._damaged(f"a folder with an entry of {length} bytes")
            if number:
                if not size:
                    raise self._damaged("a file without a name")
                yield part[at + _NAME_AT : at + _NAME_AT + size], number
            at += length

    def _attribute(self, inode: Inode, index: int, name: bytes) -> bytes:
        """Return the value of an extended attribute; empty where there is none."""
        inside = inode.inside
        if len(inside) >= 4 and int.from_bytes(inside[:4], "little") == _XATTR_MAGIC:
            value = self._value(inside[4:], 0, index, name)
            if value is not None:
                return value
        if inode.attributes:
            block = self._block(inode.attributes)
            if int.from_bytes(block[:4], "little") != _XATTR_MAGIC:
                raise self._damaged("attributes where there are none")
            return self._value(block, _XATTR_BLOCK_HEADER, index, name) or b""
        return b""

    def _value(self, area: bytes, at: int, index: int, name: bytes) -> bytes | None:
        """Return a value by a list of entries that starts at ``at``; None where the attribute is not in it."""
        while at + 4 <= len(area) and any(area[at : at + 4]):
            if at + _XATTR.size > len(area):
                raise self._damaged("attributes that do not end within their place")
            length, kind, offset, outside, size, _ = _XATTR.unpack_from(area, at)
            if kind == index and area[at + _XATTR.size : at + _XATTR.size + length] == name:
                if outside or size > _MAX_XATTR or offset + size > len(area):
                    raise self._damaged(f"the attribute {name.decode()} of {size} bytes")
                return area[offset : offset + size]
            at += _XATTR.size + -(-length // 4) * 4
        return None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
