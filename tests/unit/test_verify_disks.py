"""Opening any artifact: every format that we write, and others make, gives the same disk; what lies is an error."""

from __future__ import annotations

import contextlib
import itertools
import struct
import zlib
from pathlib import Path

import pytest
import zstandard
from disk_images import MIB, content, make_tree, whole_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk

from imagebuilder.direct.formats import FORMATS, Subject
from imagebuilder.direct.gpt import layout
from imagebuilder.direct.virtual import RawFile, VirtualDisk
from imagebuilder.errors import ArtifactError
from imagebuilder.publish.boxes import BoxSpec, pack_box
from imagebuilder.verify.disks import open_image
from imagebuilder.verify.disks.qcow2 import Qcow2
from imagebuilder.verify.disks.source import Window
from imagebuilder.verify.disks.vmdk import Vmdk
from imagebuilder.verify.tree import walk

SUBJECT = Subject(name="debian-13", seed="ab" * 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[VirtualDisk, Path]:
    """A disk, and a folder for the files that it is written to."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tree").mkdir()
    disk = whole_disk(make_tree(folder / "tree"))
    for name, row in FORMATS.items():
        row.writer(disk, folder / f"disk.{name}", subject=SUBJECT)
    for provider, name in (("libvirt", "qcow2"), ("virtualbox", "vmdk"), ("qemu", "qcow2")):
        box = BoxSpec(provider=provider, name="debian", arch="amd64", virtual_size=disk.size, seed="ab")
        description = "<Envelope/>" if provider == "virtualbox" else ""
        pack_box(box, folder / f"disk.{name}", folder / f"{provider}.box", description=description)
    return disk, folder


def whole(disk: object, size: int) -> bytes:
    data = bytearray(size)
    disk.read_into(0, memoryview(data))  # type: ignore[attr-defined]
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "form", "packed"),
    [
        ("disk.raw", "raw", ""), ("disk.qcow2", "qcow2", ""), ("disk.vmdk", "vmdk", ""), ("disk.vhd", "vhd", ""),
        ("disk.ova", "vmdk", "ova"), ("disk.tar.gz", "raw", "tar.gz"), ("libvirt.box", "qcow2", "box"),
        ("virtualbox.box", "vmdk", "box"), ("qemu.box", "qcow2", "box"),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_disk(
    made: tuple[VirtualDisk, Path], name: str, form: str, packed: str, tmp_path: Path
) -> None:
    disk, folder = made
    nameless = tmp_path / "artifact"
    nameless.symlink_to(folder / name)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_image(nameless, scratch) as found:
        assert (found.facts.format, found.packed, found.facts.size) == (form, packed, disk.size)
        assert whole(found.disk, disk.size) == content(disk)
        tables = [(one.number, one.name, one.start, one.size) for one in found.facts.partitions]
        parts = layout(disk.size, "seed").partitions
        assert tables == [(at, one.name, one.offset, one.size) for at, one in enumerate(parts, start=1)]
        assert [(one.uuid, one.type) for one in found.facts.partitions] == [
            (str(one.guid), str(one.type_guid)) for one in parts
        ]
        assert (found.facts.table, len(found.facts.boot_code)) == ("gpt", 440)
        assert found.root.content("/etc/hostname", 99) == b"node\n"
        assert found.esp is not None and found.esp.names("/efi/boot") == ["BOOTX64.EFI"]
        rest = content(disk)
        for start, end in found.disk.extents():
            rest[start:end] = bytes(end - start)
        assert not rest.strip(b"\0"), "what no extent covers is zero"
    assert list(scratch.iterdir()) == [], "what was unpacked is gone"


@pytest.mark.parametrize("name", ["disk.qcow2", "disk.vmdk"])
def test_parts_that_begin_and_end_anywhere_are_read(made: tuple[VirtualDisk, Path], name: str) -> None:
    disk, folder = made
    wanted = content(disk)
    kind = Qcow2 if name.endswith("qcow2") else Vmdk
    with RawFile(folder / name) as file:
        found = kind(file)
        for start, length in ((0, 1), (65535, 2), (MIB - 7, 70_001), (disk.size - 3, 3), (66 * MIB + 1000, 3 * MIB)):
            part = bytearray(length)
            found.read_into(start, memoryview(part))
            assert part == wanted[start : start + length]
        with pytest.raises(ArtifactError):
            found.read_into(disk.size - 3, memoryview(bytearray(4)))


CLUSTER = 512


def qcow2(*clusters: tuple[bytes, int], kind: int = 0, bits: int = 9, more: bytes = b"") -> bytes:
    """Return a qcow2 with a table of these: what is stored, if anything, and flags of the entry that leads to it."""
    cluster = 1 << bits
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIB7x", b"QFI\xfb", 3, 0, 0, bits, 64 * cluster, 0, 1, cluster, cluster, 1, 0, 0,
        8 if kind else 0, 0, 0, 4, 112, kind,
    )  # fmt: skip
    entries, data = list[int](), b""
    for body, flags in clusters:
        at = 3 * cluster + len(data)
        if body and flags & PACKED:
            flags |= ((at + len(body) - 1) // 512 - at // 512) << 62 - (bits - 8)
        else:
            body = body.ljust(-(-len(body) // cluster) * cluster, b"\0")
        entries.append(flags | (at if body else 0))
        data += body
    table = struct.pack(f">{len(entries)}Q", *entries)
    parts = (head, struct.pack(">Q", ALLOCATED | 2 * cluster), table)
    return b"".join(part.ljust(cluster, b"\0") for part in parts) + data + more


PACKED, ALLOCATED = 1 << 62, 1 << 63
TEXT = bytes(range(256)) * 2


def deflated(data: bytes) -> bytes:
    tool = zlib.compressobj(9, zlib.DEFLATED, -12)
    return tool.compress(data) + tool.flush()


def test_clusters_of_every_kind_are_read() -> None:
    image = qcow2((TEXT, ALLOCATED), (b"", 0), (b"", 1), (TEXT, ALLOCATED | 1), (TEXT[::-1], ALLOCATED))
    disk = Qcow2(MemoryDisk(image))
    zero = bytes(CLUSTER)
    assert whole(disk, 6 * CLUSTER) == TEXT + zero + zero + zero + TEXT[::-1] + zero
    assert list(disk.extents()) == [(0, CLUSTER), (4 * CLUSTER, 5 * CLUSTER)]


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        pytest.param(0, deflated, id="zlib"),
        pytest.param(1, lambda data: zstandard.compress(data), id="zstd"),
        pytest.param(
            1, lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data), id="zstd, no size"
        ),
        pytest.param(1, lambda data: zstandard.compress(data[:99]) + zstandard.compress(data[99:]), id="two frames"),
    ],
)
def test_clusters_that_are_packed_are_read(kind: int, pack: object) -> None:
    packed = pack(TEXT)  # type: ignore[operator]
    for more in (b"", b"of the next one" * 99):  # a file may end within a sector
        assert whole(Qcow2(MemoryDisk(qcow2((packed, PACKED), kind=kind, more=more))), CLUSTER) == TEXT


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(qcow2((b"", ALLOCATED | 1 << 30)), "nothing at byte", id="cluster outside"),
        pytest.param(qcow2((b"", PACKED | 1 << 30)), "cut short", id="packed cluster outside"),
        pytest.param(qcow2((deflated(TEXT[:99]), PACKED)), "whole one", id="too little in a cluster"),
        pytest.param(qcow2((b"\xff" * 99, PACKED)), "cluster 0", id="no deflate"),
        pytest.param(qcow2((b"\xff" * 99, PACKED), kind=1), "cluster 0", id="no zstd"),
        pytest.param(qcow2((b"", ALLOCATED | 3 * 512), bits=12), "at byte", id="not at a cluster"),
    ],
)
def test_entries_that_lie_are_refused(image: bytes, message: str) -> None:
    disk = Qcow2(MemoryDisk(image))
    with pytest.raises(ArtifactError, match=message):
        whole(disk, CLUSTER)


def test_a_cluster_that_unpacks_to_a_bomb_takes_one_cluster_of_memory() -> None:
    bomb = zstandard.compress(bytes(200 << 20), 19)[:CLUSTER]  # its frame states 200 MiB
    assert whole(Qcow2(MemoryDisk(qcow2((bomb, PACKED), kind=1))), CLUSTER) == bytes(CLUSTER)


def test_a_table_that_all_lead_to_is_refused() -> None:
    image = bytearray(qcow2((TEXT, ALLOCATED)))
    struct.pack_into(">Q", image, 24, 10_000 * 64 * CLUSTER)
    struct.pack_into(">I", image, 36, 10_000)
    image[CLUSTER : CLUSTER + 8 * 10_000] = struct.pack(">Q", 2 * CLUSTER) * 10_000
    with pytest.raises(ArtifactError, match="more tables than"):
        Qcow2(MemoryDisk(image))


def test_a_disk_beyond_all_limits_is_refused() -> None:
    image = bytearray(qcow2((TEXT, ALLOCATED), bits=16))
    struct.pack_into(">Q", image, 24, 300 << 30)
    struct.pack_into(">I", image, 36, 600)
    with pytest.raises(ArtifactError, match="256 GiB"):
        Qcow2(MemoryDisk(image))


def vmdk_bytes(folder: Path) -> bytearray:
    return bytearray((folder / "disk.vmdk").read_bytes())


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        pytest.param(4, "<I", 9, "version 9", id="version"),
        pytest.param(12, "<Q", 1 << 62, "GiB", id="endless"),
        pytest.param(20, "<Q", 100, "grains of 100", id="grain"),
        pytest.param(44, "<I", 0, "tables of 0", id="no entries"),
        pytest.param(77, "<H", 9, "compression 9", id="compression"),
        pytest.param(36, "<Q", 1 << 20, "descriptor has", id="descriptor"),
        pytest.param(512, "<8s", b"########", None, id="nothing of meaning"),
    ],
)
def test_vmdk_headers_that_lie_are_refused(
    made: tuple[VirtualDisk, Path], at: int, form: str, value: object, message: str | None
) -> None:
    data = vmdk_bytes(made[1])
    struct.pack_into(form, data, at, value)
    if message is None:
        Vmdk(MemoryDisk(data))
        return
    if at == 36:  # the footer's counts
        struct.pack_into(form, data, len(data) - 1024 + at, value)
    with pytest.raises(ArtifactError, match=message):
        Vmdk(MemoryDisk(data))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"streamOptimized", b"twoGbMaxExtentF", "kind twoGb"),
        (b"parentCID=ffffffff", b"parentCID=12345678", "change to another disk"),
        (b"createType", b"creatxType", "without a descriptor"),
    ],
)
def test_vmdks_of_several_files_are_refused(
    made: tuple[VirtualDisk, Path], old: bytes, new: bytes, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        Vmdk(MemoryDisk(vmdk_bytes(made[1]).replace(old, new, 1)))


def test_a_grain_in_another_ones_place_is_refused(made: tuple[VirtualDisk, Path]) -> None:
    data = vmdk_bytes(made[1])
    data[65536] ^= 1  # the marker of the first grain
    with pytest.raises(ArtifactError, match="grain 0 is not at"):
        whole(Vmdk(MemoryDisk(data)), 512)


@pytest.mark.parametrize(
    "name", ["disk.raw", "disk.qcow2", "disk.vmdk", "disk.vhd", "disk.ova", "disk.tar.gz", "qemu.box"]
)
@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.7])
def test_what_is_cut_short_is_refused(made: tuple[VirtualDisk, Path], name: str, part: float, tmp_path: Path) -> None:
    data = (made[1] / name).read_bytes()
    (tmp_path / "short").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ArtifactError), open_image(tmp_path / "short", tmp_path) as found:
        for path, _ in walk(found.root):
            found.root.content(path, 1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bzip2"), (b"PK\x03\x04", "zip"),
        (b"vhdxfile", "VHDX"), (b"COWD", "VMware"), (b"# Disk DescriptorFile\n", "several files"),
        (b"<<< Oracle VM VirtualBox Disk Image >>>", "VDI"), (b"", "no root file system"), (b"conectix", "no footer"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read_are_named(start: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(start.ljust(MIB, b"\0"))
    with pytest.raises(ArtifactError, match=message), open_image(tmp_path / "file", tmp_path):
        pass


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArtifactError, match="no file"), open_image(path, tmp_path):
            pass


def test_a_dynamic_vhd_is_refused_with_the_way_to_a_fixed_one(tmp_path: Path, made: tuple[VirtualDisk, Path]) -> None:
    data = bytearray((made[1] / "disk.vhd").read_bytes())
    struct.pack_into(">I", data, len(data) - 512 + 60, 3)
    struct.pack_into(">I", data, len(data) - 512 + 64, 0)
    struct.pack_into(">I", data, len(data) - 512 + 64, ~sum(data[-512:]) & 0xFFFFFFFF)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ArtifactError, match="dynamic VHD") as caught, open_image(tmp_path / "x", tmp_path):
        pass
    assert "subformat=fixed" in caught.value.hint
    data[-1] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ArtifactError, match="checksum"), open_image(tmp_path / "x", tmp_path):
        pass


@given(st.data())
@settings(max_examples=200)
def test_any_damage_to_tables_gives_a_disk_or_an_error_and_ends(
    made: tuple[VirtualDisk, Path], images: dict[type, bytes], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([Qcow2, Vmdk]))
    broken = bytearray(images[kind])
    end = len(broken)
    places = {
        Qcow2: (range(112), range(65536, 65544), range(end - 3 * 65536, end - 3 * 65536 + 4000)),
        Vmdk: (range(80), range(512, 700), range(65536, 65552), range(end - 4096, end)),
    }[kind]
    where = st.sampled_from([at for part in places for at in part])
    for at, value in data.draw(st.lists(st.tuples(where, st.integers(0, 255)), min_size=1, max_size=6)):
        broken[at] = value
    with contextlib.suppress(ArtifactError):
        disk = kind(MemoryDisk(broken))
        for start, stop in itertools.islice(disk.extents(), 50):
            assert 0 <= start < stop <= disk.size
            whole(Window(disk, start, stop - start), min(stop - start, MIB))


@pytest.fixture(scope="module")
def images(made: tuple[VirtualDisk, Path]) -> dict[type, bytes]:
    return {Qcow2: (made[1] / "disk.qcow2").read_bytes(), Vmdk: (made[1] / "disk.vmdk").read_bytes()}
