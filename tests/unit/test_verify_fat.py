"""Reading a FAT of anyone: every name and byte comes back, and what lies is an error, not a hang."""

from __future__ import annotations

import contextlib
import struct
from random import Random

import pytest
from disk_images import fat_image
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.fat import Fat
from imagebuilder.verify.tree import walk

FILES = {
    "EFI/BOOT/BOOTX64.EFI": Random(1).randbytes(70_001),
    "EFI/BOOT/grubx64.efi": b"",
    "EFI/debian/grub.cfg": b"search\n",
    "a name with spaces, and of more than twice thirteen characters.txt": b"long",
    "\u00fcml\u00e4ut.cfg": b"u",
    **{f"many/file{number}": str(number).encode() for number in range(120)},
}
SIZES = {12: 1 << 20, 16: 16 << 20, 32: 36 << 20}


@pytest.fixture(scope="module", params=SIZES)
def image(request: pytest.FixtureRequest) -> bytes:
    return fat_image(FILES, request.param, SIZES[request.param])


def open_fat(data: bytes | bytearray) -> Fat:
    return Fat(MemoryDisk(data))


def changed(image: bytes, at: int, form: str, *values: int) -> bytearray:
    data = bytearray(image)
    struct.pack_into(form, data, at, *values)
    return data


def test_every_file_comes_back_as_it_was_put_there(image: bytes) -> None:
    tree = open_fat(image)
    found = {path[1:]: tree.content(path, 1 << 20) for path, entry in walk(tree) if entry.is_file}
    assert found == FILES
    entry = tree.entry("/EFI/BOOT/BOOTX64.EFI")
    assert entry is not None and (entry.size, entry.mode) == (70_001, 0o100644)
    assert tree.content("/EFI/BOOT/BOOTX64.EFI", 3) == FILES["EFI/BOOT/BOOTX64.EFI"][:3]


def test_the_kind_follows_from_the_number_of_clusters() -> None:
    for bits, size in SIZES.items():
        assert open_fat(fat_image(FILES, bits, size))._bits == bits


def test_names_are_found_whatever_their_case_and_shown_as_they_are(image: bytes) -> None:
    tree = open_fat(image)
    assert tree.content("/efi/DEBIAN/Grub.CFG", 99) == b"search\n"
    assert tree.names("/efi") == ["BOOT", "debian"]
    assert tree.names("/EFI") == ["BOOT", "debian"], "the same folder by another spelling is no second path"
    assert tree.entry("/efi/none") is None and tree.names("/efi/debian/grub.cfg") == []


def test_time_is_that_of_the_record(image: bytes) -> None:
    entry = open_fat(image).entry("/EFI/debian/grub.cfg")
    assert entry is not None and entry.mtime == 1704110400, "2024-01-01 12:00"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        pytest.param(b"BOOTX64 EFI\x20\x00", "BOOTX64.EFI", id="as it is"),
        pytest.param(b"BOOTX64 EFI\x20\x18", "bootx64.efi", id="in lower case"),
        pytest.param(b"README     \x20\x10", "README", id="without extension"),
        pytest.param(b"\x05A      TXT\x20\x00", "\u03c3A.TXT", id="0xE5 as the first byte"),
    ],
)
def test_short_names_are_read(record: bytes, name: str) -> None:
    data = bytearray(fat_image({"x": b"1"}, 12, 1 << 20))
    at = data.index(b"0       EXT")
    data[at : at + len(record)] = record  # the long name before it no longer has its checksum
    assert open_fat(data).names("/") == [name]


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        pytest.param(510, "<H", 0, id="no signature"),
        pytest.param(11, "<H", 500, id="sector"),
        pytest.param(11, "<H", 0, id="sector of nothing"),
        pytest.param(13, "<B", 3, id="cluster"),
        pytest.param(13, "<B", 0, id="cluster of nothing"),
        pytest.param(14, "<H", 0, id="no reserved sectors"),
        pytest.param(16, "<B", 0, id="no FAT"),
        pytest.param(16, "<B", 200, id="more FATs than disk"),
        pytest.param(32, "<I", 1 << 30, id="larger than the disk"),
        pytest.param(32, "<I", 0, id="of no size"),
    ],
)
def test_boot_sectors_that_lie_are_refused(image: bytes, at: int, form: str, value: int) -> None:
    with pytest.raises(ArtifactError):
        open_fat(changed(image, at, form, value))


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        pytest.param(26, "<H", 1, "cluster 1 of", id="cluster 1"),
        pytest.param(26, "<H", 0xFFF0, "cluster", id="cluster outside"),
        pytest.param(28, "<I", 0xFFFFFFFF, "would give|has clusters for", id="larger than its clusters"),
    ],
)
def test_files_that_lie_are_refused(at: int, form: str, value: int, message: str) -> None:
    image = fat_image({"x": b"1"}, 12, 1 << 20)
    tree = open_fat(changed(image, image.index(b"0       EXT") + at, form, value))
    with pytest.raises(ArtifactError, match=message):
        tree.content("/x", 1 << 33)


def test_a_folder_in_itself_and_chains_without_end_are_refused() -> None:
    image = fat_image({"f/x": b"1", "g/y": b"2"}, 12, 1 << 20)
    first = image.index(b"0       EXT")
    root = image.index(b"0       EXT", first + 1) if image[first + 11] != 0x10 else first
    loop = bytearray(image)
    inner = image.index(b"0       EXT", root + 11)
    struct.pack_into("<B", loop, inner + 11, 0x10)
    struct.pack_into("<H", loop, inner + 26, struct.unpack_from("<H", image, root + 26)[0])
    with pytest.raises(ArtifactError, match=r"too$"):
        list(walk(open_fat(loop)))
    chain = bytearray(image)
    start = struct.unpack_from("<H", image, root + 26)[0]
    at = 512 + start * 3 // 2
    pair = int.from_bytes(chain[at : at + 2], "little")
    pair = pair & 0xF | start << 4 if start % 2 else pair & 0xF000 | start
    chain[at : at + 2] = pair.to_bytes(2, "little")
    with pytest.raises(ArtifactError, match=r"no end|more than"):
        list(walk(open_fat(chain)))


@given(
    damage=st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), min_size=1), bits=st.sampled_from([12, 32])
)
@settings(max_examples=150)
def test_any_damage_gives_a_value_or_an_error_and_ends(damage: list[tuple[int, int]], bits: int) -> None:
    broken = bytearray(MADE[bits])
    for at, value in damage:
        broken[at % 600 if at % 3 == 0 else at] = value
    with contextlib.suppress(ArtifactError):
        tree = open_fat(broken)
        for path, _ in walk(tree):
            tree.content(path, 70_000)


SMALL = {name: data for name, data in FILES.items() if "many" not in name}
MADE = {bits: fat_image(SMALL, bits, SIZES[bits]) for bits in (12, 32)}
