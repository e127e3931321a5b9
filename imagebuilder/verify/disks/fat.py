"""Reading FAT file systems of unknown origin: EFI system partitions.

Reference: Microsoft's "FAT: General Overview of On-Disk Format" 1.03 ("spec" below); names are found whatever their
case, as firmware does it.
"""

from __future__ import annotations

import calendar
import stat
import struct
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.folders import Folders
from imagebuilder.verify.disks.source import read
from imagebuilder.verify.tree import Entry

# Spec "Boot Sector and BPB": jump, name, bytes per sector, sectors per cluster, reserved sectors, FATs, entries of
# the root folder, sectors, media, sectors per FAT, track, heads, hidden sectors, sectors (32 bits); then, of FAT32
# only, sectors per FAT, flags, version, the root folder's cluster.
_BOOT = struct.Struct("<3s8sHBHBHHBHHHIIIHHI")
_END = b"\x55\xaa"
_FAT12, _FAT16 = 4085, 65525  # clusters from which on it is a FAT16, or FAT32 (spec "FAT Type Determination")
_MAX_FAT = 16 << 20  # bytes of a table: 4 million clusters
_MAX_FOLDER = 2 << 20  # bytes: 65,536 entries (spec "FAT Directory Structure")

# Spec "FAT Directory Structure": name, attributes, case of the name, tenths, created, accessed, cluster's high bits,
# time and date of writing, cluster's low bits, size.
_RECORD = struct.Struct("<11sBBBHHHHHHHI")
_LAST, _GONE, _E5 = 0x00, 0xE5, 0x05
_VOLUME, _FOLDER, _READ_ONLY, _LONG, _LONG_MASK = 0x08, 0x10, 0x01, 0x0F, 0x3F
_LOWER_NAME, _LOWER_EXTENSION = 0x08, 0x10  # of Windows NT and Linux: the part of the name is in lower case
# Spec "Long Directory Entries": number, 5 characters, attribute, type, checksum, 6 characters, cluster, 2 characters.
_PART = struct.Struct("<B10sBBB12sH4s")
_LAST_PART, _MAX_PARTS = 0x40, 20
_CODE_PAGE = "cp437"  # what firmware and Linux take


class Node(NamedTuple):
    """A file or folder: its first cluster (0 for none, or for the root of FAT12 and FAT16), and what it is."""

    cluster: int
    entry: Entry


class Fat(Folders[Node]):
    """A FAT12, FAT16 or FAT32 on a disk.

    Raises:
        ArtifactError: it is none, or damaged.
    """

    def __init__(self, disk: DiskSource) -> None:
        (
            _, _, sector, per_cluster, reserved, fats, entries, small, _, short, _, _, _, large, long, _, _, root,
        ) = _boot(disk)  # fmt: skip
        fat, total = short or long, small or large
        root_at = reserved + fats * fat
        data_at = root_at + -(-entries * _RECORD.size // sector)
        if not reserved or not 0 < fats <= 2 or not data_at < total or total * sector > disk.size:
            raise ArtifactError("the FAT file system in the image is damaged: its boot sector does not fit it")
        self._disk, self._bytes = disk, sector * per_cluster
        self._data_at, self._count = data_at * sector, (total - data_at) // per_cluster
        self._bits = 12 if self._count < _FAT12 else 16 if self._count < _FAT16 else 32
        self._root_at, self._root_size = root_at * sector, entries * _RECORD.size
        needed = -(-(self._count + 2) * self._bits // 8)
        if needed > min(fat * sector, _MAX_FAT) or (self._bits == 32) != (entries == 0):
            raise ArtifactError(f"the FAT file system in the image is damaged: {self._count} clusters")
        self._fat = read(disk, reserved * sector, needed)
        folder = Entry(mode=stat.S_IFDIR | 0o755)
        super().__init__(Node(root if self._bits == 32 else 0, folder), "FAT", str.lower)

    def _identity(self, node: Node) -> Hashable:
        return node.cluster

    def _entry(self, node: Node) -> Entry:
        return node.entry

    def _content(self, node: Node, limit: int) -> bytes:
        return self._bytes_of(node.cluster, limit)

    def _following(self, cluster: int) -> int:
        """Return what the table says of a cluster."""
        if self._bits == 12:
            pair = int.from_bytes(self._fat[cluster * 3 // 2 : cluster * 3 // 2 + 2], "little")
            return pair >> 4 if cluster % 2 else pair & 0xFFF
        width = self._bits // 8
        value = int.from_bytes(self._fat[cluster * width : (cluster + 1) * width], "little")
        return value & 0x0FFFFFFF if width == 4 else value

    def _chain(self, cluster: int) -> Iterator[int]:
        """Yield the clusters of a file, each once."""
        last = (1 << min(self._bits, 28)) - 8  # spec "FAT Data Structure": from here on it is the end
        for _ in range(self._count):
            if not 2 <= cluster < self._count + 2:
                raise self._damaged(f"cluster {cluster} of {self._count}")
            yield cluster
            cluster = self._following(cluster)
            if cluster >= last:
                return
        raise self._damaged("a chain of clusters that has no end")

    def _bytes_of(self, cluster: int, limit: int) -> bytes:
        """Return the first bytes of a chain.

        Raises:
            ArtifactError: it has fewer.
        """
        data, at = bytearray(limit), 0
        view = memoryview(data)
        for one in self._chain(cluster):
            part = view[at : at + self._bytes]
            self._disk.read_into(self._data_at + (one - 2) * self._bytes, part)
            at += len(part)
            if at == limit:
                return bytes(data)
        raise self._damaged(f"a file of {limit} bytes has clusters for {at}")

    def _children(self, node: Node) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, child in self._listed(self._records(node)):
            if name in (".", ".."):
                continue
            if not name or "/" in name or "\0" in name:
                raise self._damaged(f"a file with the name {name!r}")
            if name in found:
                raise self._damaged(f"two files with the name {name!r} in one folder")
            found[name] = child
        return found

    def _records(self, node: Node) -> Iterator[bytes]:
        """Yield the records of a folder up to the last."""
        if not node.cluster:
            if node is not self._root:
                raise self._damaged("a folder without clusters")
            data = read(self._disk, self._root_at, self._root_size)
        else:
            size = 0
            for _ in self._chain(node.cluster):
                size += self._bytes
                if size > _MAX_FOLDER:
                    raise self._damaged(f"a folder of more than {_MAX_FOLDER} bytes")
            data = self._bytes_of(node.cluster, size)
        for at in range(0, len(data), _RECORD.size):
            if data[at] == _LAST:
                return
            yield data[at : at + _RECORD.size]

    def _listed(self, records: Iterator[bytes]) -> Iterator[tuple[str, Node]]:
        parts: list[bytes] = []
        for record in records:
            attributes = record[11]
            if record[0] == _GONE:
                parts = []
            elif attributes & _LONG_MASK == _LONG:
                parts = [*parts, record][-_MAX_PARTS:]
            else:
                if not attributes & _VOLUME:
                    yield _long(parts, record) or _short(record), self._node_of(record)
                parts = []

    def _node_of(self, record: bytes) -> Node:
        _, attributes, _, _, _, _, _, high, time, date, low, size = _RECORD.unpack(record)
        cluster = low | (high << 16 if self._bits == 32 else 0)
        mode = stat.S_IFDIR | 0o755 if attributes & _FOLDER else stat.S_IFREG | 0o644
        mode &= ~0o222 if attributes & _READ_ONLY else ~0
        return Node(cluster, Entry(mode=mode, size=0 if attributes & _FOLDER else size, mtime=_seconds(date, time)))


def _boot(disk: DiskSource) -> tuple[int, ...]:
    """Return the fields of the boot sector, with those checked that all else is counted in."""
    data = read(disk, 0, 512)
    fields = _BOOT.unpack_from(data)
    sector, per_cluster = fields[2:4]
    powers = all(value & (value - 1) == 0 for value in (sector, per_cluster))
    if data[-2:] != _END or not powers or not 512 <= sector <= 4096 or not per_cluster:
        raise ArtifactError("the EFI system partition has no FAT file system, or a damaged one")
    return fields


def _long(parts: list[bytes], record: bytes) -> str:
    """Return the long name that the records before a short one give; empty where they do not belong to it."""
    total = 0
    for byte in record[:11]:  # spec "ChkSum"
        total = ((total >> 1) + ((total & 1) << 7) + byte) & 0xFF
    text = b""
    for count, part in enumerate(reversed(parts), start=1):
        number, first, _, _, checksum, second, _, third = _PART.unpack(part)
        if checksum != total or number & ~_LAST_PART != count:
            return ""
        text += first + second + third
        if number & _LAST_PART:
            return str(text, "utf-16-le", "replace").split("\0")[0]
    return ""


def _short(record: bytes) -> str:
    raw = bytes([_GONE]) + record[1:11] if record[0] == _E5 else record[:11]
    name, extension = (part.decode(_CODE_PAGE).rstrip(" ") for part in (raw[:8], raw[8:]))
    name = name.lower() if record[12] & _LOWER_NAME else name
    extension = extension.lower() if record[12] & _LOWER_EXTENSION else extension
    return f"{name}.{extension}" if extension else name


def _seconds(date: int, time: int) -> int:
    """Return seconds since 1970 of a date and time, which are of no zone; 0 where they are none."""
    year, month, day = 1980 + (date >> 9), date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not day:
        return 0
    return calendar.timegm((year, month, day, time >> 11, time >> 5 & 63, (time & 31) * 2))
