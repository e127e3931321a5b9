"""Disks in clusters that two levels of tables lead to: what qcow2 and VMDK have in common."""

from __future__ import annotations

import array
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.source import checked_size, read

KEPT = 32 << 20  # bytes of unpacked clusters, and as many of tables, that are kept; 512 clusters of 64 KiB
_KEPT_LEAST = 4


class Place(NamedTuple):
    """Where a cluster of the disk is in the file; ``length`` is 0 where only the file there says it."""

    number: int
    offset: int
    length: int
    packed: bool


class Clustered(ABC):
    """A disk of which clusters are found, unpacked and kept for a while.

    Args:
        file: that the disk is in.
        size: of the disk, in bytes.
        cluster: bytes of each.
        tables: of the file, where each table of the second level is in bytes; 0 means that all its clusters are zero.
        entries: of each such table.
        code: of one entry, as :mod:`array` has it, with the byte order of the file before it (``>Q``).

    Raises:
        ArtifactError: the disk is too large, or more tables are named than the file has room for.
    """

    def __init__(
        self, file: DiskSource, *, size: int, cluster: int, tables: Sequence[int], entries: int, code: str
    ) -> None:
        self._file, self._size, self._bytes = file, checked_size(size), cluster
        self._tables, self._entries, self._code = tables, entries, code
        table = entries * array.array(code[1]).itemsize
        # Else a small file could lead to one table a million times, and to a day of looking at it.
        if sum(1 for offset in tables if offset) * table > file.size:
            raise ArtifactError("the disk image is damaged: it names more tables than it has room for")
        self._table = lru_cache(max(KEPT // table, _KEPT_LEAST))(self._read_table)
        self._unpacked = lru_cache(max(KEPT // cluster, _KEPT_LEAST))(self._checked_cluster)

    @property
    def size(self) -> int:
        """Return the bytes of the disk."""
        return self._size

    @abstractmethod
    def _place(self, index: int, entry: int) -> Place | None:
        """Return where an entry of a table leads; None where the cluster is zero. Nothing is read for it."""

    @abstractmethod
    def _unpack(self, place: Place) -> bytes:
        """Return a packed cluster."""

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield where there are clusters; see :class:`DiskSource`."""
        first = last = 0
        for index in self._found():
            start, end = index * self._bytes, min((index + 1) * self._bytes, self._size)
            if start > last:
                if last > first:
                    yield first, last
                first = start
            last = end
        if last > first:
            yield first, last

    def _found(self) -> Iterator[int]:
        count = -(-self._size // self._bytes)
        for number, offset in enumerate(self._tables):
            if not offset:
                continue
            for index, entry in enumerate(self._table(number), number * self._entries):
                if entry and index < count and self._place(index, entry) is not None:
                    yield index

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; see :class:`DiskSource`."""
        if offset < 0 or offset + len(view) > self._size:
            raise ArtifactError(f"the disk has {self._size} bytes; {len(view)} were wanted at {offset}")
        position = 0
        while position < len(view):
            index, skip = divmod(offset + position, self._bytes)
            part = view[position : position + self._bytes - skip]
            place = self._find(index)
            if place is None:
                part[:] = bytes(len(part))
            elif place.packed:
                part[:] = memoryview(self._unpacked(place))[skip : skip + len(part)]
            else:
                self._read_plain(place.offset + skip, part)
            position += len(part)

    def _find(self, index: int) -> Place | None:
        number, slot = divmod(index, self._entries)
        if not self._tables[number]:
            return None
        entry = self._table(number)[slot]
        return self._place(index, entry) if entry else None

    def _read_table(self, number: int) -> array.array[int]:
        table = array.array(self._code[1])
        table.frombytes(read(self._file, self._tables[number], self._entries * table.itemsize))
        if (self._code[0] == ">") != (sys.byteorder == "big"):
            table.byteswap()
        return table

    def _checked_cluster(self, place: Place) -> bytes:
        data = self._unpack(place)
        if len(data) != self._bytes:
            raise ArtifactError(f"the disk image is damaged: its cluster {place.number} does not unpack to a whole one")
        return data

    def _read_plain(self, offset: int, part: memoryview) -> None:
        left = self._file.size - offset
        if left <= 0:
            raise ArtifactError(f"the disk image is cut short or damaged: it has nothing at byte {offset}")
        # QEMU leaves the end of the last cluster out of the file, and reads zeros there.
        self._file.read_into(offset, part[:left])
        part[left:] = bytes(max(len(part) - left, 0))
