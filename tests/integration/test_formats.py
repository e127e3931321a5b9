"""Disks and images of ours, judged by the programs that will read them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import IO, Any, BinaryIO, cast

import pytest

from imagebuilder import process
from imagebuilder.direct.formats import FORMATS
from imagebuilder.direct.gpt import MIB, Layout, Partition, bios_boot_pieces, gpt_pieces, layout, parse_gpt
from imagebuilder.direct.qcow2 import CLUSTER, read_header
from imagebuilder.direct.virtual import RawFile
from imagebuilder.process import RealRunner

pytestmark = pytest.mark.integration

SIZE = 96 * MIB
GRUB = Path("/usr/lib/grub/i386-pc")


def needs(program: str) -> str:
    """Return the program's path, or skip naming it."""
    path = process.find(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return str(path)


def run(*words: str | Path) -> str:
    return RealRunner().run(words, capture=True, timeout=120).stdout


def put(stream: IO[bytes], pieces: list[tuple[int, bytes]]) -> None:
    for offset, data in pieces:
        stream.seek(offset)
        stream.write(data)


def write(raw: Path, out: Path, name: str = "qcow2") -> None:
    with RawFile(raw) as disk:
        FORMATS[name].writer(disk, out)


@pytest.fixture
def plan() -> Layout:
    return layout(SIZE, "integration")


@pytest.fixture
def disk(tmp_path: Path, plan: Layout) -> Path:
    """A partitioned disk with text, noise and zeros in its root partition."""
    path = tmp_path / "disk.raw"
    random = Random(1)
    with path.open("w+b") as stream:
        stream.truncate(SIZE)
        put(stream, gpt_pieces(plan))
        position = plan.root.offset
        for number in range(60):
            stream.seek(position)
            stream.write([b"some text " * 20000, random.randbytes(150_000), bytes(100_000)][number % 3])
            position += random.choice([1, 70, 200, 900]) * 512
    return path


def damaged(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 8)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.qemu])
def test_qemu_reads_every_format_as_the_same_disk(name: str, disk: Path, tmp_path: Path) -> None:
    qemu_img = needs("qemu-img")
    out = tmp_path / f"image{FORMATS[name].extension}"
    write(disk, out, name)
    qemu = FORMATS[name].qemu
    # A fixed VHD begins with the disk itself: its format has to be named.
    info = json.loads(run(qemu_img, "info", *(["-f", qemu] if qemu == "vpc" else []), "--output=json", out))
    assert (info["format"], info["virtual-size"]) == (qemu, SIZE)
    run(qemu_img, "compare", "-f", "raw", "-F", qemu, disk, out)


def test_qemu_finds_no_fault_in_a_vmdk_image(disk: Path, tmp_path: Path) -> None:
    qemu_img = needs("qemu-img")
    write(disk, tmp_path / "image.vmdk", "vmdk")
    assert "No errors" in run(qemu_img, "check", "-f", "vmdk", tmp_path / "image.vmdk")
    info = json.loads(run(qemu_img, "info", "--output=json", tmp_path / "image.vmdk"))
    assert info["format-specific"]["data"]["create-type"] == "streamOptimized"


def test_gnu_tar_unpacks_the_disk_sparse(disk: Path, tmp_path: Path) -> None:
    tar = needs("tar")
    write(disk, tmp_path / "image.tar.gz", "tar.gz")
    (tmp_path / "unpacked").mkdir()
    run(tar, "-C", tmp_path / "unpacked", "-xzf", tmp_path / "image.tar.gz")
    assert (tmp_path / "unpacked/disk.raw").read_bytes() == disk.read_bytes()


def test_gnu_tar_unpacks_an_ova(disk: Path, tmp_path: Path) -> None:
    tar, qemu_img = needs("tar"), needs("qemu-img")
    write(disk, tmp_path / "image.ova", "ova")
    run(tar, "-C", tmp_path, "-xf", tmp_path / "image.ova")
    run(qemu_img, "compare", "-f", "raw", "-F", "vmdk", disk, tmp_path / "image-disk001.vmdk")


def test_qemu_finds_no_fault_and_no_leak_in_a_qcow2_image(disk: Path, tmp_path: Path) -> None:
    qemu_img = needs("qemu-img")
    out = tmp_path / "image.qcow2"
    write(disk, out)
    report = json.loads(run(qemu_img, "check", "-f", "qcow2", "--output=json", out))
    assert report["check-errors"] == 0
    assert report.get("leaks", 0) == report.get("corruptions", 0) == 0
    assert report["image-end-offset"] == out.stat().st_size
    # 60 pieces of at most 200,000 bytes; both kinds of cluster have to be there for the check to mean much.
    assert 0 < report["compressed-clusters"] < report["allocated-clusters"] < 60 * 5


def test_header_says_what_qemu_says(disk: Path, tmp_path: Path) -> None:
    qemu_img = needs("qemu-img")
    out = tmp_path / "image.qcow2"
    write(disk, out)
    info = json.loads(run(qemu_img, "info", "--output=json", out))
    header = read_header(out)
    assert (header.virtual_size, header.cluster_size) == (info["virtual-size"], info["cluster-size"])
    assert header.compression == info["format-specific"]["data"]["compression-type"] == "zstd"
    assert info["format-specific"]["data"]["corrupt"] is False


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_header_of_an_image_that_qemu_wrote_is_read(compression: str, disk: Path, tmp_path: Path) -> None:
    qemu_img = needs("qemu-img")
    out = tmp_path / "image.qcow2"
    options = f"compression_type={compression},cluster_size=128k"
    run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", "-o", options, disk, out)
    header = read_header(out)
    assert (header.virtual_size, header.cluster_size, header.compression) == (SIZE, 128 << 10, compression)


def test_image_grows_and_takes_writes_in_qemu(disk: Path, tmp_path: Path) -> None:
    qemu_img, qemu_io = needs("qemu-img"), needs("qemu-io")
    out = tmp_path / "image.qcow2"
    write(disk, out)
    run(qemu_img, "resize", "-f", "qcow2", out, "8G")
    writes = [f"write -P 0x5a {offset} {3 * CLUSTER}" for offset in (0, 66 * MIB + 512, 7 << 30)]
    run(qemu_io, "-f", "qcow2", *(word for write in writes for word in ("-c", write)), out)
    reads = [write.replace("write", "read") for write in writes]
    said = run(qemu_io, "-f", "qcow2", *(word for read in reads for word in ("-c", read)), out)
    assert "verification failed" not in said
    report = json.loads(run(qemu_img, "check", "-f", "qcow2", "--output=json", out))
    assert report["check-errors"] == report.get("leaks", 0) == report.get("corruptions", 0) == 0


def as_sfdisk_says(partition: Partition) -> dict[str, Any]:
    return {
        "start": partition.first_lba,
        "size": partition.size // 512,
        "type": str(partition.type_guid).upper(),
        "uuid": str(partition.guid).upper(),
        "name": partition.name,
    }


def test_sfdisk_reads_the_table_as_it_was_meant(disk: Path, plan: Layout) -> None:
    table = json.loads(run(needs("sfdisk"), "-J", disk))["partitiontable"]
    assert (table["label"], table["id"]) == ("gpt", str(plan.disk_guid).upper())
    assert (table["firstlba"], table["lastlba"]) == (34, SIZE // 512 - 34)
    said = [{key: value for key, value in part.items() if key != "node"} for part in table["partitions"]]
    assert said == [as_sfdisk_says(partition) for partition in plan.partitions]


def test_sfdisk_verifies_both_copies_of_the_table(disk: Path) -> None:
    command = [needs("sfdisk"), "--verify", str(disk)]
    whole = "\n".join(RealRunner().run(command, timeout=120).tail)
    assert "No errors detected" in whole
    assert "corrupt" not in whole
    damaged(disk, SIZE - 512)
    assert "backup GPT table is corrupt" in "\n".join(RealRunner().run(command, timeout=120).tail)


def test_sgdisk_verifies_the_table(disk: Path) -> None:
    assert "No problems found" in run(needs("sgdisk"), "--verify", disk)


def test_table_that_sfdisk_wrote_is_read(tmp_path: Path, plan: Layout) -> None:
    sfdisk = needs("sfdisk")
    path = tmp_path / "foreign.raw"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
    lines = [f"label: gpt\nlabel-id: {plan.disk_guid}\nfirst-lba: 34\n"] + [
        f"start={part.first_lba}, size={part.size // 512}, type={part.type_guid}, uuid={part.guid}, name={part.name}\n"
        for part in plan.partitions
    ]
    RealRunner().run([sfdisk, path], stdin="".join(lines).encode(), timeout=120)
    with path.open("rb") as stream:
        table = parse_gpt(stream)
    assert (table.disk_guid, table.partitions) == (plan.disk_guid, plan.partitions)


def test_grub_images_of_this_host_are_taken(disk: Path, plan: Layout, tmp_path: Path) -> None:
    mkimage = needs("grub-mkimage")
    if not (GRUB / "boot.img").exists():
        pytest.skip(f"{GRUB}/boot.img is not installed (package grub-pc-bin)")
    core = tmp_path / "core.img"
    modules = ["biosdisk", "part_gpt", "ext2", "search", "search_fs_uuid", "normal", "configfile", "linux"]
    run(mkimage, "-O", "i386-pc", "-p", "/boot/grub", "-o", core, *modules)
    with disk.open("r+b") as stream:
        put(stream, bios_boot_pieces(plan, (GRUB / "boot.img").read_bytes(), core.read_bytes()))
        assert parse_gpt(cast(BinaryIO, stream)).partitions == plan.partitions
        stream.seek(plan.bios.offset)
        embedded = stream.read(core.stat().st_size)
    assert embedded[:500] == core.read_bytes()[:500]
    assert embedded[512:] == core.read_bytes()[512:]
