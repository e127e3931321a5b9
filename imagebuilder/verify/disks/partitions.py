"""Partition tables of disks of unknown origin: GPT and MBR.

References: UEFI specification 2.10, sections 5.2 (MBR) and 5.3 (GPT). Unlike ``imagebuilder.direct.gpt``, which
holds our own disks to the letter, this reads what any tool has made: one whole copy of a GPT is enough.
"""

from __future__ import annotations

import itertools
import struct
import uuid
import zlib
from collections.abc import Iterator

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.source import SECTOR, read
from imagebuilder.verify.model import Partition

BOOT_CODE = 440  # bytes of sector 0 before the disk signature and the records
_RECORDS_AT = 446
_RECORD = struct.Struct("<B3sB3sII")  # boot indicator, first CHS, type, last CHS, first sector, sectors
_RECORDS = 4
_MBR_END = b"\x55\xaa"
_GPT = 0xEE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_MAX_LOGICAL = 60  # what Linux shows of one extended partition at most
_INDICATORS = (0x00, 0x80)

# Signature, revision, header's size and CRC32, reserved, own sector, other one, first and last usable, disk GUID,
# entries' sector, count and size of entries, their CRC32.
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE = b"EFI PART"
_CRC_AT = 16
_ENTRY = struct.Struct("<16s16sQQQ72s")  # type GUID, unique GUID, first and last sector, attributes, name
_MAX_ENTRY = 4096  # bytes; 128 on every disk that was seen
_MAX_ENTRIES = 1024


def partitions(disk: DiskSource) -> tuple[str, tuple[Partition, ...]]:
    """Return the kind of the table (``gpt``, ``mbr``, or empty where there is none) and what is in it.

    Raises:
        ArtifactError: there is a table, and it is damaged.
    """
    mbr = read(disk, 0, SECTOR)
    if mbr[-2:] != _MBR_END:
        return "", ()
    records = _records(mbr)
    if any(kind == _GPT for _, kind, _, _ in records):
        return "gpt", _gpt(disk)
    # A boot sector of a file system ends in the same two bytes; what is in the place of records is text or code then.
    if any(indicator not in _INDICATORS for indicator, _, _, _ in records) or not any(kind for _, kind, *_ in records):
        return "", ()
    return "mbr", tuple(_mbr(disk, mbr))


def _records(sector: bytes) -> list[tuple[int, int, int, int]]:
    """Return indicator, type, first sector and sectors of the records in a sector."""
    found = (_RECORD.unpack_from(sector, _RECORDS_AT + at * _RECORD.size) for at in range(_RECORDS))
    return [(indicator, kind, first, count) for indicator, _, kind, _, first, count in found]


def _mbr(disk: DiskSource, mbr: bytes) -> Iterator[Partition]:
    signature = struct.unpack_from("<I", mbr, BOOT_CODE)[0]
    for number, (_, kind, first, count) in enumerate(_records(mbr), start=1):
        if not kind or not count:
            continue
        yield _partition(disk, number, kind, first, count, signature)
        if kind in _EXTENDED:
            yield from _logical(disk, first, signature)


def _logical(disk: DiskSource, base: int, signature: int) -> Iterator[Partition]:
    """Yield the partitions in an extended one: a chain of sectors, each with a partition and the next link."""
    at = base
    for number in range(5, 5 + _MAX_LOGICAL):
        sector = read(disk, at * SECTOR, SECTOR)
        if sector[-2:] != _MBR_END:
            raise ArtifactError(f"the partition table is damaged: sector {at} has no records")
        (_, kind, first, count), (_, following, link, _), *_ = _records(sector)
        if kind and count:
            yield _partition(disk, number, kind, at + first, count, signature)
        if following not in _EXTENDED:
            return
        at = base + link
    raise ArtifactError(f"the partition table is damaged: more than {_MAX_LOGICAL} logical partitions")


def _partition(disk: DiskSource, number: int, kind: int, first: int, count: int, signature: int) -> Partition:
    start, size = first * SECTOR, count * SECTOR
    _check_place(disk, number, start, size)
    # What Linux calls PARTUUID of an MBR.
    return Partition(number=number, type=f"0x{kind:02x}", start=start, size=size, uuid=f"{signature:08x}-{number:02x}")


def _check_place(disk: DiskSource, number: int, start: int, size: int) -> None:
    if start < SECTOR or size <= 0 or start + size > disk.size:
        raise ArtifactError(f"partition {number} of {size} bytes at {start} is not within the disk of {disk.size}")


def _gpt(disk: DiskSource) -> tuple[Partition, ...]:
    """Return what the primary table has, or, where that is not whole, the backup."""
    try:
        return _copy(disk, 1)
    except ArtifactError as error:
        try:
            return _copy(disk, disk.size // SECTOR - 1)
        except ArtifactError:
            raise error from None


def _copy(disk: DiskSource, lba: int) -> tuple[Partition, ...]:
    header = read(disk, lba * SECTOR, SECTOR)
    signature, _, size, crc, _, own, *_, array_lba, count, each, array_crc = _HEADER.unpack_from(header)
    if signature != _SIGNATURE or not _HEADER.size <= size <= SECTOR or own != lba:
        raise ArtifactError(f"sector {lba} holds no GPT header")
    if zlib.crc32(header[:_CRC_AT] + bytes(4) + header[_CRC_AT + 4 : size]) != crc:
        raise ArtifactError(f"the GPT header in sector {lba} is damaged")
    if each % _ENTRY.size or not _ENTRY.size <= each <= _MAX_ENTRY or count > _MAX_ENTRIES:
        raise ArtifactError(f"the GPT header in sector {lba} has {count} entries of {each} bytes")
    array = read(disk, array_lba * SECTOR, count * each)
    if zlib.crc32(array) != array_crc:
        raise ArtifactError(f"the GPT entries of the header in sector {lba} are damaged")
    found = tuple(_entries(disk, array, each))
    ordered = sorted(found, key=lambda partition: partition.start)
    for left, right in itertools.pairwise(ordered):
        if right.start < left.start + left.size:
            raise ArtifactError(f"partitions {left.number} and {right.number} lie over each other")
    return found


def _entries(disk: DiskSource, array: bytes, each: int) -> Iterator[Partition]:
    for number, at in enumerate(range(0, len(array), each), start=1):
        kind, guid, first, last, _, name = _ENTRY.unpack_from(array, at)
        if kind == bytes(len(kind)):  # unused
            continue
        start, size = first * SECTOR, (last - first + 1) * SECTOR
        _check_place(disk, number, start, size)
        yield Partition(
            number=number, type=str(uuid.UUID(bytes_le=kind)), start=start, size=size,
            uuid=str(uuid.UUID(bytes_le=guid)), name=name.decode("utf-16-le", "replace").split("\0")[0],
        )  # fmt: skip
