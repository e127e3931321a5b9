"""What the partition table promises: round trips, identifiers, GRUB's patches, and no trust in foreign disks."""

from __future__ import annotations

import io
import itertools
import struct
import uuid
import zlib
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.gpt import (
    ESP_TYPE,
    MIB,
    MIN_SIZE,
    SECTOR,
    Layout,
    Table,
    bios_boot_pieces,
    gpt_pieces,
    layout,
    parse_gpt,
)
from imagebuilder.errors import ArtifactError, DataError

SMALL = layout(MIN_SIZE, "seed")
LAST = MIN_SIZE // SECTOR - 1
BOOT_IMG = bytes(range(256)) + bytes(254) + b"\x55\xaa"


def core_img(size: int) -> bytes:
    """Return something that ends its first sector as GRUB's core.img does."""
    return (b"\xcc" * (SECTOR - 2) + struct.pack("<H", 0x820)).ljust(size, b"\xdd")


class Disk(io.RawIOBase):
    """A disk in memory that keeps only the sectors that were written."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0
        self.sectors: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any, /) -> int:
        end = max(self.position, min(self.position + len(buffer), self.size))
        data = self[self.position : end]
        buffer[: len(data)] = data
        self.position = end
        return len(data)

    def write(self, data: Any, /) -> int:
        assert self.position + len(data) <= self.size, "the disk would grow"
        for at, value in enumerate(data, self.position):
            self.sectors.setdefault(at // SECTOR, bytearray(SECTOR))[at % SECTOR] = value
        self.position += len(data)
        return len(data)

    def __getitem__(self, part: slice) -> bytes:
        first, last = part.start // SECTOR, -(-part.stop // SECTOR)
        data = b"".join(self.sectors.get(lba, bytes(SECTOR)) for lba in range(first, last))
        return data[part.start - first * SECTOR : part.stop - first * SECTOR]

    def __setitem__(self, start: int, data: bytes) -> None:
        self.seek(start)
        self.write(data)


def put(stream: Disk, pieces: list[tuple[int, bytes]]) -> None:
    for offset, data in pieces:
        stream[offset] = data


def disk(plan: Layout = SMALL) -> Disk:
    stream = Disk(plan.size)
    put(stream, gpt_pieces(plan))
    return stream


def parse(stream: Disk) -> Table:
    return parse_gpt(cast(BinaryIO, stream))


def boot(stream: Disk, boot_img: bytes, core: bytes) -> None:
    put(stream, bios_boot_pieces(SMALL, boot_img, core))


def seal(stream: Disk, lba: int, at: int, value: bytes) -> None:
    """Change a header and make its CRC32 right again, as an attacker would."""
    header = bytearray(stream[lba * SECTOR : lba * SECTOR + 92])
    header[at : at + len(value)] = value
    header[16:20] = bytes(4)
    header[16:20] = struct.pack("<I", zlib.crc32(header))
    stream[lba * SECTOR] = bytes(header)


def with_entry(number: int, entry: bytes) -> Disk:
    """Return a disk on which both copies agree on a changed entry, all checksums right."""
    stream = disk()
    for array_lba in (2, LAST - 32):
        stream[array_lba * SECTOR + number * 128] = entry
    for lba in (1, LAST):
        seal(stream, lba, 88, struct.pack("<I", zlib.crc32(stream[2 * SECTOR : 34 * SECTOR])))
    return stream


@given(mebibytes=st.integers(MIN_SIZE // MIB, 1 << 24), seed=st.text(max_size=20))
def test_what_is_written_is_read_again(mebibytes: int, seed: str) -> None:
    plan = layout(mebibytes * MIB, seed)
    table = parse(disk(plan))
    assert (table.size, table.disk_guid, table.partitions) == (plan.size, plan.disk_guid, plan.partitions)


@given(mebibytes=st.integers(MIN_SIZE // MIB, 1 << 24))
def test_partitions_follow_one_another_aligned_up_to_the_backup_table(mebibytes: int) -> None:
    plan = layout(mebibytes * MIB, "seed")
    assert [(part.offset, part.size) for part in plan.partitions] == [
        (MIB, MIB),
        (2 * MIB, 64 * MIB),
        (66 * MIB, (mebibytes - 67) * MIB),
    ]


def test_same_seed_gives_the_same_identifiers_whatever_the_size() -> None:
    larger = layout(MIN_SIZE + MIB, "seed")
    assert (larger.disk_guid, larger.root_uuid, larger.esp_serial) == (
        SMALL.disk_guid,
        SMALL.root_uuid,
        SMALL.esp_serial,
    )


def test_identifiers_stay_as_they_were_released() -> None:
    assert SMALL.disk_guid == uuid.UUID("7f1c5118-3061-5b01-a439-70167afcb653")
    assert SMALL.root_uuid == uuid.UUID("132cef56-cafb-5107-894e-0938659e362e")
    assert f"{SMALL.esp_serial:08x}" == "fb95e041"


def test_another_seed_gives_other_identifiers_and_none_twice() -> None:
    ids: list[uuid.UUID | int] = []
    for plan in (SMALL, layout(MIN_SIZE, "other")):
        ids += [plan.disk_guid, plan.root_uuid, plan.esp_serial, *(part.guid for part in plan.partitions)]
    assert len(set(ids)) == len(ids) == 12
    assert all(0 <= value < 1 << 32 for value in ids if isinstance(value, int))


@pytest.mark.parametrize(
    ("arch", "type_guid"),
    [
        ("amd64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
        ("arm64", "b921b045-1df0-41c3-af44-4c6f280d3fae"),
    ],
)
def test_root_has_the_discoverable_type_of_its_architecture(arch: str, type_guid: str) -> None:
    assert layout(MIN_SIZE, "seed", arch=arch).root.type_guid == uuid.UUID(type_guid)


@pytest.mark.parametrize(
    ("size", "arch", "message"),
    [
        pytest.param(MIN_SIZE - MIB, "amd64", "too small", id="too small"),
        pytest.param(0, "amd64", "too small", id="nothing"),
        pytest.param(-MIB, "amd64", "too small", id="negative"),
        pytest.param(MIN_SIZE + SECTOR, "amd64", "multiple of 1 MiB", id="unaligned"),
        pytest.param(MIN_SIZE, "s390x", "s390x", id="unknown architecture"),
    ],
)
def test_layouts_that_cannot_be_are_refused(size: int, arch: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        layout(size, "seed", arch=arch)


def test_bytes_are_where_the_specification_wants_them() -> None:
    data = disk()
    assert data[440:446] == bytes(6)
    assert data[446:462] == struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, LAST)
    assert data[462:512] == bytes(48) + b"\x55\xaa"
    for own, other, array in ((1, LAST, 2), (LAST, 1, LAST - 32)):
        header = data[own * SECTOR : (own + 1) * SECTOR]
        assert header[:16] == b"EFI PART" + struct.pack("<II", 0x10000, 92)
        assert struct.unpack_from("<QQQQ", header, 24) == (own, other, 34, LAST - 33)
        assert struct.unpack_from("<QII", header, 72) == (array, 128, 128)
        assert header[92:] == bytes(SECTOR - 92)
    esp = data[2 * SECTOR + 128 : 2 * SECTOR + 256]
    assert esp[:16] == ESP_TYPE.bytes_le
    assert struct.unpack_from("<QQQ", esp, 32) == (4096, 135167, 0)
    assert esp[56:].rstrip(b"\0") == b"e\0s\0p"


def test_protective_record_of_a_disk_beyond_2_tib_says_its_maximum() -> None:
    stream = disk(layout(3 << 40, "seed"))
    assert stream[458:462] == b"\xff\xff\xff\xff"


def test_boot_code_and_partition_table_lie_apart() -> None:
    pieces = sorted([*gpt_pieces(SMALL), *bios_boot_pieces(SMALL, BOOT_IMG, core_img(1000))])
    assert all(at + len(data) <= following for (at, data), (following, _) in itertools.pairwise(pieces))
    assert pieces[-1][0] + len(pieces[-1][1]) == SMALL.size


def test_grub_images_are_patched_at_their_places_only() -> None:
    stream = disk()
    table = stream[440:SECTOR]
    core = core_img(3 * SECTOR + 1)
    boot(stream, BOOT_IMG, core)
    code = bytearray(BOOT_IMG[:440])
    code[0x5C:0x68] = struct.pack("<Q", 2048) + BOOT_IMG[0x64:0x66] + b"\x90\x90"
    assert stream[0:SECTOR] == bytes(code) + table
    patched = stream[2048 * SECTOR : 2052 * SECTOR]
    assert patched[:500] == core[:500]
    assert patched[500:512] == struct.pack("<QHH", 2049, 3, 0x820)
    assert patched[512:] == core[512:].ljust(3 * SECTOR, b"\0")


def test_core_that_fills_its_partition_is_taken() -> None:
    stream = disk()
    boot(stream, BOOT_IMG, core_img(MIB))
    assert stream[2 * MIB - 1 : 2 * MIB + 1] == b"\xdd\0"


@pytest.mark.parametrize(
    ("boot_img", "core", "message"),
    [
        pytest.param(BOOT_IMG[:-1], core_img(1024), "boot.img of 511", id="short boot.img"),
        pytest.param(BOOT_IMG + b"\0", core_img(1024), "boot.img of 513", id="long boot.img"),
        pytest.param(bytes(SECTOR), core_img(1024), "not a boot sector", id="boot.img without signature"),
        pytest.param(BOOT_IMG, b"", "core.img of 0", id="empty core.img"),
        pytest.param(BOOT_IMG, core_img(SECTOR), "core.img of 512", id="core.img of one sector"),
        pytest.param(BOOT_IMG, bytes(1024), "grub-mkimage -O i386-pc", id="core.img for something else"),
        pytest.param(BOOT_IMG, core_img(MIB + 1), "does not fit", id="core.img too large"),
    ],
)
def test_images_that_are_not_grubs_are_refused_and_nothing_is_written(
    boot_img: bytes, core: bytes, message: str
) -> None:
    stream, untouched = disk(), disk()
    with pytest.raises(DataError, match=message):
        boot(stream, boot_img, core)
    assert stream.sectors == untouched.sectors


@given(data=st.data())
def test_any_flipped_bit_in_a_checked_part_is_found(data: st.DataObject) -> None:
    checked = [(446 + 4, 446 + 5), (510, 512), (SECTOR, SECTOR + 92), (2 * SECTOR, 34 * SECTOR)]
    checked += [((LAST - 32) * SECTOR, LAST * SECTOR + 92)]
    start, end = data.draw(st.sampled_from(checked))
    at, bit = data.draw(st.integers(start, end - 1)), data.draw(st.integers(0, 7))
    stream = disk()
    stream[at] = bytes([stream[at : at + 1][0] ^ 1 << bit])
    with pytest.raises(ArtifactError):
        parse(stream)


@given(content=st.binary(max_size=40 * SECTOR))
def test_garbage_is_an_artifact_error(content: bytes) -> None:
    for size in (len(content), MIN_SIZE):
        stream = Disk(size)
        stream[0] = content
        with pytest.raises(ArtifactError):
            parse(stream)


@given(entry=st.binary(min_size=128, max_size=128).filter(lambda entry: any(entry[:16])))
def test_any_entry_with_right_checksums_is_parsed_within_the_disk_or_refused(entry: bytes) -> None:
    try:
        table = parse(with_entry(3, entry))
    except ArtifactError:
        return
    assert all(34 <= part.first_lba <= part.last_lba <= LAST - 33 for part in table.partitions)


def entry_of(first: int, last: int) -> bytes:
    return struct.pack("<16s16sQQQ72s", ESP_TYPE.bytes_le, bytes(16), first, last, 0, b"x\0")


def test_entries_changed_in_both_copies_without_their_checksums_are_refused() -> None:
    stream = disk()
    for array_lba in (2, LAST - 32):
        stream[array_lba * SECTOR + 3 * 128] = entry_of(34, 2047)
    with pytest.raises(ArtifactError, match="entries of the header in sector 1 are damaged"):
        parse(stream)


def test_entry_between_the_others_is_read() -> None:
    added = parse(with_entry(3, entry_of(34, 2047))).partitions[3]
    assert (added.name, added.first_lba, added.last_lba) == ("x", 34, 2047)


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        pytest.param(34, 2048, "overlap", id="overlaps the next"),
        pytest.param(5000, 5001, "overlap", id="within another"),
        pytest.param(33, 2047, "outside", id="in the primary table"),
        pytest.param(LAST - 33, LAST - 32, "outside", id="in the backup table"),
        pytest.param(2047, 34, "outside", id="ends before it starts"),
        pytest.param(1 << 63, (1 << 64) - 1, "outside", id="beyond everything"),
    ],
)
def test_partitions_out_of_place_are_refused(first: int, last: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse(with_entry(3, entry_of(first, last)))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        pytest.param(8, struct.pack("<I", 0x20000), "no GPT header", id="revision"),
        pytest.param(12, struct.pack("<I", 0xFFFFFFFF), "no GPT header", id="header size"),
        pytest.param(24, struct.pack("<Q", 7), "another size", id="own LBA"),
        pytest.param(32, struct.pack("<Q", LAST - 1), "another size", id="backup LBA"),
        pytest.param(48, struct.pack("<Q", 1 << 63), "another size", id="last usable LBA"),
        pytest.param(72, struct.pack("<Q", 1 << 63), "unusual place", id="array LBA"),
        pytest.param(80, struct.pack("<I", 0xFFFFFFFF), "unusual place", id="number of entries"),
        pytest.param(84, struct.pack("<I", 0), "unusual place", id="size of entries"),
        pytest.param(56, bytes(16), "differ", id="disk GUID of one copy"),
    ],
)
def test_header_that_lies_with_a_right_checksum_is_refused(at: int, value: bytes, message: str) -> None:
    lying = disk()
    seal(lying, 1, at, value)
    with pytest.raises(ArtifactError, match=message):
        parse(lying)


@pytest.mark.parametrize("change", [-SECTOR, -1, 1, SECTOR, MIB])
def test_disk_cut_short_or_grown_is_refused(change: int) -> None:
    stream = disk()
    stream.size += change
    with pytest.raises(ArtifactError):
        parse(stream)
