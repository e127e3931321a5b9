"""The partition table of an image: where things are, and the bytes of GPT, protective MBR and BIOS boot code.

References: UEFI specification 2.10, section 5.2.3 (protective MBR) and 5.3 (GUID Partition Table); the
Discoverable Partitions Specification for the root types; GRUB 2.06 ``include/grub/i386/pc/boot.h`` and
``grub-core/boot/i386/pc/diskboot.S`` for what GRUB's two images want patched.
"""

from __future__ import annotations

import io
import itertools
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from imagebuilder.errors import ArtifactError, DataError

SECTOR = 512  # bytes per logical block; every target of ours shows 512-byte sectors
MIB = 1 << 20
ALIGNMENT = MIB  # bytes: what partitioning tools align to, a multiple of every known erase block and stripe

BIOS_BOOT_START = MIB
BIOS_BOOT_SIZE = MIB  # bytes: GRUB's core.img is about 130 KiB
ESP_START = 2 * MIB
ESP_SIZE = 64 * MIB  # bytes: shim and GRUB are about 5 MiB; FAT32 needs 65,525 clusters, so 33 MiB at least
ROOT_START = ESP_START + ESP_SIZE
MIN_SIZE = ROOT_START + 2 * MIB  # bytes: 1 MiB of root, 1 MiB for the backup table

# Of every identifier below. Changing it changes every image.
NAMESPACE = uuid.UUID("9b1d5c0e-6a3f-5f43-8a53-2f1c7be0d6a4")

BIOS_BOOT_TYPE = uuid.UUID("21686148-6449-6E6F-744E-656564454649")
ESP_TYPE = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
ROOT_TYPES = {
    "amd64": uuid.UUID("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    "arm64": uuid.UUID("B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
}

# GPT header (UEFI 5.3.2, table 5.5): signature, revision, header size, header CRC32, reserved, own LBA, other
# LBA, first and last usable LBA, disk GUID, entries' LBA, count and size of entries, entries' CRC32.
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
_CRC_AT = 16  # byte offset of the header's CRC32, which counts as zero while it is computed
# GPT entry (UEFI 5.3.3, table 5.6): type GUID, unique GUID, first and last LBA, attributes, name.
_ENTRY = struct.Struct("<16s16sQQQ72s")
_ENTRIES = 128  # UEFI 5.3.1 reserves 16,384 bytes for the array, so no table is smaller
_ARRAY_SECTORS = _ENTRIES * _ENTRY.size // SECTOR
_FIRST_USABLE = 2 + _ARRAY_SECTORS  # after the MBR, the header and the array

_MBR_TABLE_AT = 440  # bytes before it are boot code; then disk signature, 2 unknown bytes, 4 records, 55 AA
_MBR_RECORDS_AT = 446
_MBR_RECORD = struct.Struct("<B3sB3sII")  # boot indicator, first CHS, type, last CHS, first LBA, sectors
_MBR_GPT_TYPE = 0xEE
_MBR_END = b"\x55\xaa"

_BOOT_CORE_LBA_AT = 0x5C  # GRUB_BOOT_MACHINE_KERNEL_SECTOR in boot.img: u64, where core.img starts
_BOOT_DRIVE_CHECK_AT = 0x66  # GRUB_BOOT_MACHINE_DRIVE_CHECK: a jump that two NOPs turn off
_CORE_BLOCKLIST = struct.Struct("<QHH")  # the last 12 bytes of core.img's first sector: LBA, sectors, segment
_CORE_BLOCKLIST_AT = SECTOR - _CORE_BLOCKLIST.size
_CORE_SEGMENT = 0x820  # GRUB_BOOT_MACHINE_KERNEL_SEG + 0x20: where the sectors after the first are loaded


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """One GPT entry; both LBAs count sectors of 512 bytes and are inclusive."""

    name: str
    type_guid: uuid.UUID
    guid: uuid.UUID
    first_lba: int
    last_lba: int

    @property
    def offset(self) -> int:
        """Return where it starts, in bytes from the start of the disk."""
        return self.first_lba * SECTOR

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        return (self.last_lba - self.first_lba + 1) * SECTOR


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where everything is on a disk of ours.

    Attributes:
        size: of the disk, in bytes.
        root_uuid: of the root file system (not of its partition).
        esp_serial: volume serial of the ESP's FAT, 32 bits; ``mkfs.vfat -i`` wants it in hex.
    """

    size: int
    disk_guid: uuid.UUID
    root_uuid: uuid.UUID
    esp_serial: int
    bios: Partition
    esp: Partition
    root: Partition

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Return the partitions in the order of their numbers, which is that of their offsets."""
        return (self.bios, self.esp, self.root)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A partition table as it was read from a disk of ``size`` bytes."""

    size: int
    disk_guid: uuid.UUID
    partitions: tuple[Partition, ...]


def layout(size: int, seed: str, *, arch: str = "amd64") -> Layout:
    """Lay out a disk: BIOS boot 1 MiB, EFI system partition 64 MiB, root the rest.

    Args:
        size: of the disk in bytes, a multiple of 1 MiB.
        seed: what the identifiers derive from: same seed, same identifiers.
        arch: ``amd64`` or ``arm64``; decides the type of the root partition.

    Raises:
        DataError: the size is too small or not a multiple of 1 MiB, or the architecture is unknown.
    """
    if arch not in ROOT_TYPES:
        raise DataError(f"no root partition type for {arch}", hint=f"one of: {', '.join(ROOT_TYPES)}")
    if size % ALIGNMENT:
        raise DataError(f"a disk of {size} bytes is not a multiple of 1 MiB")
    if size < MIN_SIZE:
        raise DataError(f"a disk of {size // MIB} MiB is too small: at least {MIN_SIZE // MIB} MiB")

    def derived(what: str) -> uuid.UUID:
        return uuid.uuid5(NAMESPACE, f"{what}:{seed}")

    def partition(name: str, type_guid: uuid.UUID, start: int, end: int) -> Partition:
        return Partition(
            name=name, type_guid=type_guid, guid=derived(f"partition-{name}"),
            first_lba=start // SECTOR, last_lba=end // SECTOR - 1,
        )  # fmt: skip

    return Layout(
        size=size,
        disk_guid=derived("disk"),
        root_uuid=derived("filesystem-root"),
        esp_serial=derived("filesystem-esp").time_low,
        bios=partition("bios", BIOS_BOOT_TYPE, BIOS_BOOT_START, BIOS_BOOT_START + BIOS_BOOT_SIZE),
        esp=partition("esp", ESP_TYPE, ESP_START, ROOT_START),
        root=partition("root", ROOT_TYPES[arch], ROOT_START, size - ALIGNMENT),
    )


def gpt_pieces(layout: Layout) -> list[tuple[int, bytes]]:
    """Return protective MBR, primary and backup GPT (UEFI 5.2.3 and 5.3) as offsets and bytes.

    The MBR's boot code (bytes 0 to 439) is not among them: see :func:`bios_boot_pieces`.
    """
    last = layout.size // SECTOR - 1
    array = b"".join(_entry(partition) for partition in layout.partitions).ljust(_ENTRIES * _ENTRY.size, b"\0")
    backup_array = last - _ARRAY_SECTORS
    return [
        (_MBR_TABLE_AT, _protective_mbr(last)),
        (SECTOR, _header(layout, array, own=1, other=last, array_lba=2) + array),
        (backup_array * SECTOR, array + _header(layout, array, own=last, other=1, array_lba=backup_array)),
    ]


def _protective_mbr(last_lba: int) -> bytes:
    """Return bytes 440 to 511 of the MBR: one record of type EE over the whole disk (UEFI table 5.4)."""
    sectors = min(last_lba, 0xFFFFFFFF)
    record = _MBR_RECORD.pack(0, b"\x00\x02\x00", _MBR_GPT_TYPE, b"\xff\xff\xff", 1, sectors)
    return bytes(_MBR_RECORDS_AT - _MBR_TABLE_AT) + record + bytes(3 * len(record)) + _MBR_END


def _entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le")
    ids = (partition.type_guid.bytes_le, partition.guid.bytes_le)
    return _ENTRY.pack(*ids, partition.first_lba, partition.last_lba, 0, name)


def _last_usable(last_lba: int) -> int:
    """Return the last sector for partitions: before the backup array and the backup header."""
    return last_lba - _ARRAY_SECTORS - 1


def _header(layout: Layout, array: bytes, *, own: int, other: int, array_lba: int) -> bytes:
    usable = (_FIRST_USABLE, _last_usable(max(own, other)))
    header = bytearray(_HEADER.pack(
        _SIGNATURE, _REVISION, _HEADER.size, 0, 0, own, other, *usable,
        layout.disk_guid.bytes_le, array_lba, _ENTRIES, _ENTRY.size, zlib.crc32(array),
    ))  # fmt: skip
    struct.pack_into("<I", header, _CRC_AT, zlib.crc32(header))
    return bytes(header).ljust(SECTOR, b"\0")


def bios_boot_pieces(layout: Layout, boot_img: bytes, core_img: bytes) -> list[tuple[int, bytes]]:
    """Return what makes a disk start GRUB on a BIOS, as offsets and bytes: boot.img's code, core.img.

    Does what ``grub-bios-setup`` does with its embedding area, without asking a kernel about disks. The MBR's
    partition table is not among it.

    Args:
        layout: where the BIOS boot partition is.
        boot_img: ``/usr/lib/grub/i386-pc/boot.img``, 512 bytes.
        core_img: what ``grub-mkimage -O i386-pc`` made.

    Raises:
        DataError: one of the two is not such an image, or core.img does not fit the partition.
    """
    if len(boot_img) != SECTOR or boot_img[-2:] != _MBR_END:
        raise DataError(f"boot.img of {len(boot_img)} bytes is not a boot sector of {SECTOR} bytes")
    if len(core_img) <= SECTOR or _CORE_BLOCKLIST.unpack_from(core_img, _CORE_BLOCKLIST_AT)[2] != _CORE_SEGMENT:
        raise DataError(f"core.img of {len(core_img)} bytes was not made by grub-mkimage -O i386-pc")
    if len(core_img) > layout.bios.size:
        message = f"core.img of {len(core_img)} bytes does not fit the BIOS boot partition"
        raise DataError(f"{message} of {layout.bios.size} bytes", hint="leave GRUB modules out of core.img")
    lba = layout.bios.first_lba
    boot = bytearray(boot_img)
    struct.pack_into("<Q", boot, _BOOT_CORE_LBA_AT, lba)
    boot[_BOOT_DRIVE_CHECK_AT : _BOOT_DRIVE_CHECK_AT + 2] = b"\x90\x90"
    core = bytearray(core_img) + bytes(-len(core_img) % SECTOR)
    _CORE_BLOCKLIST.pack_into(core, _CORE_BLOCKLIST_AT, lba + 1, len(core) // SECTOR - 1, _CORE_SEGMENT)
    return [(0, bytes(boot[:_MBR_TABLE_AT])), (layout.bios.offset, bytes(core))]


def parse_gpt(stream: BinaryIO) -> Table:
    """Read a partition table and believe nothing that is not checked.

    Checked, in this order: the MBR; then for the primary and the backup header signature, revision, sizes,
    CRC32, position, the array's CRC32; that both say the same; that every partition lies within the usable
    sectors and overlaps no other. Reads at most 33 KiB, whatever the disk says.

    Args:
        stream: a seekable disk.

    Raises:
        ArtifactError: the disk has no whole and consistent GPT of the usual 128 entries.
    """
    size = stream.seek(0, io.SEEK_END)
    last = size // SECTOR - 1
    if size % SECTOR or last < 2 * _FIRST_USABLE:
        raise ArtifactError(f"a disk of {size} bytes holds no partition table")
    mbr = _read(stream, 0, SECTOR)
    if mbr[-2:] != _MBR_END or _MBR_RECORD.unpack_from(mbr, _MBR_RECORDS_AT)[2] != _MBR_GPT_TYPE:
        raise ArtifactError("the disk has no protective MBR")
    primary = _parse_copy(stream, own=1, other=last, array_lba=2, last=last)
    backup = _parse_copy(stream, own=last, other=1, array_lba=last - _ARRAY_SECTORS, last=last)
    if primary != backup:
        raise ArtifactError("the primary and the backup partition table differ")
    disk_guid, array = primary
    return Table(size=size, disk_guid=disk_guid, partitions=_parse_entries(array, last))


def _read(stream: BinaryIO, lba: int, length: int) -> bytes:
    stream.seek(lba * SECTOR)
    data = stream.read(length)
    if len(data) != length:
        raise ArtifactError(f"the disk ends at sector {lba}")
    return data


def _parse_copy(stream: BinaryIO, *, own: int, other: int, array_lba: int, last: int) -> tuple[uuid.UUID, bytes]:
    """Return disk GUID and entry array of the header at ``own``; every other field has one right value."""
    header = _read(stream, own, SECTOR)[: _HEADER.size]
    fields = _HEADER.unpack(header)
    zeroed = header[:_CRC_AT] + bytes(4) + header[_CRC_AT + 4 :]
    if fields[:3] != (_SIGNATURE, _REVISION, _HEADER.size) or fields[3] != zlib.crc32(zeroed):
        raise ArtifactError(f"sector {own} holds no GPT header, or a damaged one")
    if fields[5:9] != (own, other, _FIRST_USABLE, _last_usable(last)):
        raise ArtifactError(f"the GPT header in sector {own} is for a disk of another size")
    if fields[10:13] != (array_lba, _ENTRIES, _ENTRY.size):
        raise ArtifactError(f"the GPT header in sector {own} has an entry array of an unusual place or size")
    array = _read(stream, array_lba, _ENTRIES * _ENTRY.size)
    if fields[13] != zlib.crc32(array):
        raise ArtifactError(f"the GPT entries of the header in sector {own} are damaged")
    return uuid.UUID(bytes_le=fields[9]), array


def _parse_entries(array: bytes, last: int) -> tuple[Partition, ...]:
    partitions = []
    for type_guid, guid, first, end, _, name in _ENTRY.iter_unpack(array):
        if type_guid == bytes(16):  # an unused entry
            continue
        if not _FIRST_USABLE <= first <= end <= _last_usable(last):
            raise ArtifactError(f"a partition from sector {first} to {end} lies outside of the usable sectors")
        text = name.decode("utf-16-le", "replace").split("\0")[0]
        ids = {"type_guid": uuid.UUID(bytes_le=type_guid), "guid": uuid.UUID(bytes_le=guid)}
        partitions.append(Partition(name=text, **ids, first_lba=first, last_lba=end))
    ordered = sorted(partitions, key=lambda partition: partition.first_lba)
    for left, right in itertools.pairwise(ordered):
        if right.first_lba <= left.last_lba:
            raise ArtifactError(f"partitions {left.name!r} and {right.name!r} overlap")
    return tuple(partitions)
