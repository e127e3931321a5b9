"""Disks that the readers are tried on: made by the writers of this project, and a FAT by a writer of the tests' own."""

from __future__ import annotations

import os
import stat
import struct
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

from imagebuilder.direct import gpt
from imagebuilder.direct.ext4.layout import lay_out
from imagebuilder.direct.ext4.superblock import Identity
from imagebuilder.direct.tree import Entry, merge
from imagebuilder.direct.virtual import Piece, VirtualDisk, shifted

MIB = 1 << 20
EPOCH = 1_700_000_000
IDENTITY = Identity(uuid=uuid.UUID(int=0x1234 << 64 | 5), label="root", epoch=EPOCH)
ROOT_SIZE = 16 * MIB
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


def make_tree(folder: Path) -> Path:
    """Make a small root with what readers stumble over: holes, long and odd names, links of every length."""
    for name in ("etc/deep/er/still", "usr/bin", "empty", "many"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/hostname").write_text("node\n")
    (folder / "etc/empty").write_bytes(b"")
    (folder / "etc/deep/er/still/file").write_bytes(Random(3).randbytes(70_000))
    with (folder / "usr/bin/holes").open("wb") as stream:
        stream.write(b"start")
        stream.seek(3 * MIB)
        stream.write(b"end")
    for length in (1, 59, 60, 61, 1000):
        os.symlink("x" * length, folder / f"usr/link{length}")
    os.link(folder / "etc/hostname", folder / "etc/same")
    (folder / "usr/bin/su").write_bytes(b"su")
    (folder / "usr/bin/su").chmod(0o4755)
    Path(os.fsdecode(os.fsencode(folder) + b"/etc/\xff\xfe")).write_text("odd")
    (folder / "etc" / ("n" * 255)).write_text("long")
    for number in range(300):
        (folder / f"many/a file with number {number}").write_text(str(number))
    return folder


def root_pieces(folder: Path, size: int = ROOT_SIZE) -> list[Piece]:
    return lay_out(merge([folder]), size, IDENTITY)


def content(disk: VirtualDisk) -> bytearray:
    data = bytearray(disk.size)
    disk.read_into(0, memoryview(data))
    return data


def ext4(entries: Iterable[Entry]) -> bytearray:
    """Return an ext4 of a root folder and these; a path's parent is the root."""
    root = Entry(b"", 0, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, b"", (), 0, b"")
    return content(VirtualDisk(ROOT_SIZE, lay_out([root, *entries], ROOT_SIZE, IDENTITY)))


def whole_disk(folder: Path, size: int = 96 * MIB, esp: bytes = b"") -> VirtualDisk:
    """Return a disk as bakes make them: GPT, EFI system partition, root."""
    layout = gpt.layout(size, "seed")
    tables = [Piece(at, len(data), data) for at, data in gpt.gpt_pieces(layout)]
    esp = esp or fat_image({"EFI/BOOT/BOOTX64.EFI": b"MZ" * 3000}, 16, 32 * MIB)
    root = shifted(root_pieces(folder, layout.root.size), layout.root.offset)
    return VirtualDisk(size, [*tables, Piece(layout.esp.offset, len(esp), esp), *root])


def fat_image(files: Mapping[str, bytes], bits: int, size: int) -> bytes:
    """Return a FAT with long names for all; clusters are of one sector for FAT12 and 32, of four for FAT16."""
    sector, per_cluster = 512, 4 if bits == 16 else 1
    total, reserved, entries = size // sector, 32 if bits == 32 else 1, 0 if bits == 32 else 512
    fat_sectors = -(-(total // per_cluster + 2) * bits // 8 // sector) + 1
    data_at = reserved + 2 * fat_sectors + entries * 32 // sector
    image, cluster_bytes, end = bytearray(size), sector * per_cluster, (1 << min(bits, 28)) - 1
    links = {0: end, 1: end}

    def store(data: bytes) -> int:
        first = max(links) + 1
        count = max(1, -(-len(data) // cluster_bytes))
        for at in range(count):
            links[first + at] = first + at + 1 if at < count - 1 else end
            start = data_at * sector + (first + at - 2) * cluster_bytes
            part = data[at * cluster_bytes : (at + 1) * cluster_bytes]
            image[start : start + len(part)] = part
        return first

    def folder(prefix: str) -> bytes:
        records, names = (
            b"",
            dict.fromkeys(path.removeprefix(prefix).split("/")[0] for path in files if path.startswith(prefix)),
        )
        for number, name in enumerate(names):
            path = prefix + name
            data = files.get(path)
            place = store(folder(path + "/") if data is None else data) if data != b"" else 0
            records += fat_records(name, number, 0x10 if data is None else 0x20, place, len(data or b""))
        return records

    root = folder("")
    root_cluster = store(root) if bits == 32 else 0
    if bits != 32:
        start = (reserved + 2 * fat_sectors) * sector
        image[start : start + len(root)] = root
    head = struct.pack(
        "<3s8sHBHBHHBHHHIIIHHI", b"\xeb\x3c\x90", b"tests", sector, per_cluster, reserved, 2, entries, 0, 0xF8,
        0 if bits == 32 else fat_sectors, 63, 255, 0, total, fat_sectors if bits == 32 else 0, 0, 0, root_cluster,
    )  # fmt: skip
    image[: len(head)] = head
    image[510:512] = b"\x55\xaa"
    table = sum(value << number * bits for number, value in links.items()).to_bytes(fat_sectors * sector, "little")
    for copy in range(2):
        start = (reserved + copy * fat_sectors) * sector
        image[start : start + len(table)] = table
    return bytes(image)


def fat_records(name: str, number: int, attributes: int, cluster: int, size: int) -> bytes:
    """Return the records of one file: those of its long name, then the short one."""
    short = b"%-8d%-3s" % (number, b"EXT")
    checksum = 0
    for byte in short:
        checksum = ((checksum >> 1) + ((checksum & 1) << 7) + byte) & 0xFF
    units = (name + "\0").encode("utf-16-le").ljust(-(-len(name + "\0") // 13) * 26, b"\xff")
    parts = [units[at : at + 26] for at in range(0, len(units), 26)]
    records = b"".join(
        struct.pack("<B10sBBB12sH4s", at | (0x40 if at == len(parts) else 0), part[:10], 0x0F, 0, checksum,
                    part[10:22], 0, part[22:])
        for at, part in reversed(list(enumerate(parts, start=1)))
    )  # fmt: skip
    return records + struct.pack(
        "<11sBBBHHHHHHHI", short, attributes, 0, 0, 0, 0, 0, cluster >> 16, 0x6000, 0x5821, cluster & 0xFFFF, size
    )
