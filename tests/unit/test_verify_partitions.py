"""Which partitions a disk has, and which of them is the root: tables of any tool, and those that lie."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import pytest
from disk_images import MIB, content, ext4, fat_image, make_tree, root_pieces, whole_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk

from imagebuilder.direct.virtual import VirtualDisk
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks import open_image
from imagebuilder.verify.disks.partitions import partitions
from imagebuilder.verify.disks.systems import find_esp, find_root

SECTOR = 512


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ext4 with an /etc, of 16 MiB."""
    return bytes(content(VirtualDisk(16 * MIB, root_pieces(make_tree(tmp_path_factory.mktemp("tree"))))))


@pytest.fixture(scope="module")
def gpt_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes(content(whole_disk(make_tree(tmp_path_factory.mktemp("gpt")))))


def record(kind: int, first: int, count: int, indicator: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", indicator, b"", kind, b"", first, count)


def mbr(*records: bytes) -> bytes:
    return (bytes(440) + struct.pack("<IH", 0xDEADBEEF, 0) + b"".join(records)).ljust(510, b"\0") + b"\x55\xaa"


def mbr_disk(*parts: tuple[int, bytes]) -> bytearray:
    """Return a disk with partitions of a type and a content, each from a whole MiB on."""
    data, records, at = bytearray(), [], MIB
    for kind, body in parts:
        records.append(record(kind, at // SECTOR, len(body) // SECTOR))
        data += body.ljust(-(-len(body) // MIB) * MIB, b"\0")
        at = MIB + len(data)
    return bytearray(mbr(*records).ljust(MIB, b"\0") + data)


def read(data: bytes | bytearray) -> list[tuple[int, str, int, int]]:
    return [(one.number, one.type, one.start, one.size) for one in partitions(MemoryDisk(data))[1]]


def etc(data: bytes | bytearray) -> bytes:
    disk = MemoryDisk(data)
    return find_root(disk, partitions(disk)[1]).content("/etc/hostname", 99)


def test_an_mbr_is_read_with_its_logical_partitions() -> None:
    data = bytearray(64 * SECTOR)
    data[:SECTOR] = mbr(record(0x83, 1, 5, 0x80), record(0, 0, 0), record(0x05, 10, 40))
    data[10 * SECTOR : 11 * SECTOR] = mbr(record(0x83, 1, 3), record(0x05, 20, 10))
    data[30 * SECTOR : 31 * SECTOR] = mbr(record(0x82, 2, 4))
    table, found = partitions(MemoryDisk(data))
    assert table == "mbr"
    assert [(one.number, one.type, one.start // SECTOR, one.size // SECTOR) for one in found] == [
        (1, "0x83", 1, 5), (3, "0x05", 10, 40), (5, "0x83", 11, 3), (6, "0x82", 32, 4),
    ]  # fmt: skip
    assert found[0].uuid == "deadbeef-01", "as Linux names it"


@pytest.mark.parametrize(
    ("links", "message"),
    [
        pytest.param([mbr(record(0x83, 1, 3), record(0x05, 0, 10))], "more than 60", id="in a circle"),
        pytest.param([mbr(record(0x83, 1, 3), record(0x05, 1 << 20, 10))], "cut short", id="outside"),
        pytest.param([bytes(SECTOR)], "no records", id="to nothing"),
        pytest.param([mbr(record(0x83, 1, 3000))], "partition 5", id="a partition outside"),
    ],
)
def test_logical_partitions_that_lie_are_refused(links: list[bytes], message: str) -> None:
    data = bytearray(64 * SECTOR)
    data[:SECTOR] = mbr(record(0x05, 10, 40))
    data[10 * SECTOR : 11 * SECTOR] = links[0]
    with pytest.raises(ArtifactError, match=message):
        read(data)


@pytest.mark.parametrize("found", [record(0x83, 1, 1000), record(0x83, 100, 1), record(0x83, 0, 5)])
def test_partitions_outside_of_the_disk_are_refused(found: bytes) -> None:
    with pytest.raises(ArtifactError, match="not within the disk"):
        read(mbr(found) + bytes(63 * SECTOR))


def test_the_backup_is_taken_where_the_first_table_is_damaged(gpt_disk: bytes) -> None:
    wanted = read(gpt_disk)
    assert [number for number, *_ in wanted] == [1, 2, 3]
    for at in (SECTOR + 16, SECTOR + 40, 2 * SECTOR + 20, SECTOR):
        broken = bytearray(gpt_disk)
        broken[at] ^= 0xFF
        assert read(broken) == wanted
        broken[-SECTOR] ^= 0xFF
        with pytest.raises(ArtifactError, match="sector 1"):
            read(broken)


def resealed(data: bytes, at: int, form: str, value: int) -> bytearray:
    """Change a field of the first header, and have its checksum hold; the backup is gone."""
    changed = bytearray(data)
    struct.pack_into(form, changed, SECTOR + at, value)
    struct.pack_into("<I", changed, SECTOR + 16, 0)
    struct.pack_into("<I", changed, SECTOR + 16, zlib.crc32(changed[SECTOR : SECTOR + 92]))
    changed[-SECTOR:] = bytes(SECTOR)
    return changed


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        pytest.param(80, "<I", 1 << 31, id="count"), pytest.param(84, "<I", 100, id="odd entries"),
        pytest.param(84, "<I", 1 << 20, id="large entries"), pytest.param(72, "<Q", 1 << 60, id="array outside"),
        pytest.param(24, "<Q", 7, id="another place"), pytest.param(12, "<I", 1000, id="header's size"),
        pytest.param(88, "<I", 5, id="entries' checksum"),
    ],
)  # fmt: skip
def test_gpt_headers_that_lie_are_refused(gpt_disk: bytes, at: int, form: str, value: int) -> None:
    with pytest.raises(ArtifactError, match=r"sector 1|cut short"):
        read(resealed(gpt_disk, at, form, value))


def test_partitions_over_each_other_are_refused(gpt_disk: bytes) -> None:
    data = bytearray(gpt_disk)
    struct.pack_into("<Q", data, 2 * SECTOR + 128 + 32, 2500)  # the second starts within the first
    array = zlib.crc32(data[2 * SECTOR : 2 * SECTOR + 128 * 128])
    with pytest.raises(ArtifactError, match="1 and 2 lie over"):
        read(resealed(data, 88, "<I", array))


def test_the_largest_ext4_with_an_etc_is_the_root(root: bytes) -> None:
    boot = bytes(ext4([])) + bytes(20 * MIB)  # larger, and without /etc
    small = root.replace(b"node\n", b"late\n")
    assert (
        etc(mbr_disk((0x83, boot), (0x83, root + bytes(MIB)), (0x83, small), (0x82, small + bytes(9 * MIB))))
        == b"node\n"
    )


def test_a_file_system_without_a_table_is_the_root(root: bytes, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(root)
    with open_image(tmp_path / "disk", tmp_path) as found:
        assert (found.facts.table, found.facts.partitions, found.esp) == ("", (), None)
        assert found.root.content("/etc/hostname", 9) == b"node\n"


@pytest.mark.parametrize(
    ("kind", "at", "magic", "name"),
    [
        (0x83, 0, b"XFSB", "XFS"),
        (0x83, 0x10040, b"_BHRfS_M", "btrfs"),
        (0x83, 0, b"LUKS\xba\xbe", "LUKS"),
        (0x8E, 512, b"LABELONE", "LVM"),
        (0x83, 512, b"LABELONE", "LVM"),
        (0x8E, 0, b"", "LVM"),
        (0x83, 0, b"", "nothing known"),
        (0x07, 0, b"NTFS", "no partition is for Linux"),
    ],
)
def test_roots_that_are_not_read_are_named(kind: int, at: int, magic: bytes, name: str) -> None:
    data = mbr_disk((kind, bytes(at) + magic + bytes(MIB - at - len(magic))))
    with pytest.raises(ArtifactError, match=name):
        etc(data)
    if kind == 0x83:
        with pytest.raises(ArtifactError, match=name if magic else "no root"):
            etc(data[MIB:])


def test_a_damaged_ext4_is_no_reason_to_take_another(root: bytes) -> None:
    broken = bytearray(root)
    broken[1024 + 0x28] ^= 1
    with pytest.raises(ArtifactError, match="damaged"):
        etc(mbr_disk((0x83, bytes(broken)), (0x83, root)))


def test_the_efi_partition_of_an_mbr_is_found() -> None:
    esp = fat_image({"EFI/BOOT/BOOTX64.EFI": b"MZ"}, 12, MIB)
    disk = MemoryDisk(mbr_disk((0xEF, esp)))
    tree = find_esp(disk, partitions(disk)[1])
    assert tree is not None and tree.content("/efi/boot/bootx64.efi", 2) == b"MZ"
    disk = MemoryDisk(mbr_disk((0xEF, bytes(MIB))))
    with pytest.raises(ArtifactError, match="no FAT"):
        find_esp(disk, partitions(disk)[1])


@given(
    sectors=st.lists(st.binary(min_size=66, max_size=66), min_size=1, max_size=8),
    fill=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=40),
)
@settings(max_examples=200)
def test_any_table_gives_partitions_within_the_disk_or_an_error(
    sectors: list[bytes], fill: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(bytes(446) + sector[:-2] + b"\x55\xaa" for sector in sectors))
    data += bytes(64 * SECTOR)
    for at, value in fill:
        data[at % len(data)] = value
    with contextlib.suppress(ArtifactError):
        for _, _, start, size in read(data):
            assert 0 < start < start + size <= len(data)
