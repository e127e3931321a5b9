"""Reading VMDK images of unknown origin that are one file: stream-optimised and monolithic sparse ones.

Reference: VMware's "Virtual Disk Format 5.0" technical note ("spec" below) and block/vmdk.c of QEMU. Order of trust:
header, or the footer where the header says so, descriptor, directory, then each table and grain when it is used.
"""

from __future__ import annotations

import array
import re
import struct
import sys
import zlib
from dataclasses import dataclass

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.clustered import Clustered, Place
from imagebuilder.verify.disks.source import SECTOR, checked_size, read

MAGIC = b"KDMV"
# Spec "Hosted Sparse Extent Header": magic, version, flags, capacity, grain size, descriptor's offset and size,
# entries per grain table, redundant directory, directory, overhead, clean, line ends, compression (1: deflate).
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_VERSIONS = (1, 2, 3)
_ZEROED, _COMPRESSED, _MARKERS = 1 << 2, 1 << 16, 1 << 17
_DEFLATE = 1
_AT_END = (1 << 64) - 1  # the footer says where the directory is
_FOOTER_AT = 2 * SECTOR  # before the end of the file; the end-of-stream marker follows it
_GRAIN = struct.Struct("<QI")  # spec "Grain Marker": first sector, bytes; the data follows
_MAX_GRAIN = 2048  # sectors; 128 in all files seen
_MAX_TABLE = 65536  # entries; 512 in all files seen
_MAX_DESCRIPTOR = 1 << 20  # bytes
_ZERO_GRAIN = 1  # spec "Zeroed-Grain Table Entry"
_CREATED = re.compile(rb'^createType\s*=\s*"(\w+)"', re.MULTILINE | re.IGNORECASE)
_PARENT = re.compile(rb"^parentCID\s*=\s*([0-9a-f]+)", re.MULTILINE | re.IGNORECASE)
_TYPES = (b"streamoptimized", b"monolithicsparse")
_NO_PARENT = b"ffffffff"
_HINT = "qemu-img convert -O vmdk -o subformat=streamOptimized IN OUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What a header says; places and sizes are in sectors."""

    flags: int
    capacity: int
    grain: int
    descriptor: tuple[int, int]
    entries: int
    directory: int


class Vmdk(Clustered):
    """The disk in a VMDK image.

    Raises:
        ArtifactError: it is none that is read: damaged, in several files, or with a parent.
    """

    def __init__(self, file: DiskSource) -> None:
        header = _header(file)
        _check_descriptor(file, header.descriptor)
        self._flags, self._sectors = header.flags, header.grain
        super().__init__(
            file, size=header.capacity * SECTOR, cluster=header.grain * SECTOR, tables=_tables(file, header),
            entries=header.entries, code="<I",
        )  # fmt: skip

    def _place(self, index: int, entry: int) -> Place | None:
        if self._flags & _ZEROED and entry == _ZERO_GRAIN:
            return None
        return Place(index, entry * SECTOR, 0, packed=bool(self._flags & _COMPRESSED))

    def _unpack(self, place: Place) -> bytes:
        first, length = _GRAIN.unpack(read(self._file, place.offset, _GRAIN.size))
        if first != place.number * self._sectors or not 0 < length <= 2 * self._bytes:
            raise ArtifactError(f"the VMDK is damaged: its grain {place.number} is not at byte {place.offset}")
        data = read(self._file, place.offset + _GRAIN.size, length)
        try:
            return zlib.decompressobj().decompress(data, self._bytes)
        except zlib.error as error:
            raise ArtifactError(f"the VMDK is damaged: its grain {place.number}: {error}") from error


def _header(file: DiskSource) -> _Header:
    """Return the header that counts: the last one where the first says so."""
    header = _parse(read(file, 0, SECTOR))
    if header.directory != _AT_END:
        return header
    footer = _parse(read(file, file.size // SECTOR * SECTOR - _FOOTER_AT, SECTOR))
    if footer.directory == _AT_END or (footer.capacity, footer.grain) != (header.capacity, header.grain):
        raise ArtifactError("the VMDK is cut short or damaged: it has no footer")
    return footer


def _parse(data: bytes) -> _Header:
    magic, version, flags, capacity, grain, *rest = _HEADER.unpack(data)
    at, length, entries, _, directory, _, _, _, compression = rest
    if magic != MAGIC:
        raise ArtifactError("the VMDK is cut short or damaged: it has no header, or no footer")
    if version not in _VERSIONS or (flags & _COMPRESSED and (compression != _DEFLATE or not flags & _MARKERS)):
        raise ArtifactError(f"the VMDK is of version {version} with compression {compression}, which is not read")
    if not 8 <= grain <= _MAX_GRAIN or grain & (grain - 1) or not 0 < entries <= _MAX_TABLE:
        raise ArtifactError(f"the VMDK is damaged: grains of {grain} sectors, tables of {entries}")
    checked_size(min(capacity, 1 << 55) * SECTOR)
    return _Header(
        flags=flags, capacity=capacity, grain=grain, descriptor=(at, length), entries=entries, directory=directory
    )


def _check_descriptor(file: DiskSource, descriptor: tuple[int, int]) -> None:
    """Refuse what is in more than this file (spec "The Descriptor")."""
    at, length = descriptor
    if not at:  # the footer's may be left out; a file of this kind without one is a part of a larger disk
        at, length = struct.unpack_from("<QQ", read(file, 0, SECTOR), 28)
    if length * SECTOR > _MAX_DESCRIPTOR:
        raise ArtifactError(f"the VMDK is damaged: its descriptor has {length} sectors")
    text = read(file, at * SECTOR, length * SECTOR) if at else b""
    created, parent = _CREATED.search(text), _PARENT.search(text)
    if created is None or created[1].lower() not in _TYPES:
        what = created[1].decode(errors="replace") if created else "without a descriptor"
        raise ArtifactError(f"a VMDK of the kind {what} is not read", hint=_HINT)
    if parent is not None and parent[1].lower() != _NO_PARENT:
        raise ArtifactError("the VMDK is a change to another disk, which is not in it", hint=_HINT)


def _tables(file: DiskSource, header: _Header) -> array.array[int]:
    """Return where the grain tables are in bytes, by the directory."""
    count = -(-header.capacity // (header.grain * header.entries))
    directory = array.array("I", read(file, header.directory * SECTOR, 4 * count))
    if sys.byteorder == "big":
        directory.byteswap()
    return array.array("Q", (sector * SECTOR for sector in directory))
