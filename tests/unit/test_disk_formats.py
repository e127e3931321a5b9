"""VMDK, OVF, OVA, VHD and the sparse tar: what stands in them, read by parsers of the tests' own."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.content import sha256_bytes
from imagebuilder.direct import ovf
from imagebuilder.direct.archives import sparse_header
from imagebuilder.direct.clusters import CLUSTER
from imagebuilder.direct.formats import FORMATS, Subject
from imagebuilder.direct.vhd import footer, geometry
from imagebuilder.direct.virtual import RawFile
from imagebuilder.direct.vmdk import descriptor
from imagebuilder.errors import ArtifactError

SUBJECT = Subject(name="debian-13", seed="ab" * 32)
SIZE = 700 * CLUSTER + 512 * 3  # more than one grain table, and no whole grains
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


def write(name: str, raw: Path, out: Path, *told: Any, subject: Subject) -> None:
    with RawFile(raw) as disk:
        FORMATS[name].writer(disk, out, *told, subject=subject)


def make_disk(path: Path, at: tuple[int, ...] = (0, 3, 511, 512, 699, 700), size: int = SIZE) -> Path:
    random = Random(7)
    with path.open("wb") as stream:
        stream.truncate(size)
        for index in at:
            stream.seek(index * CLUSTER)
            stream.write(random.randbytes(min(900, size - index * CLUSTER)))
    return path


def read_vmdk(data: bytes) -> bytes:
    """Read a stream-optimised VMDK from front to back, by its markers, as VirtualBox does."""
    magic, version, flags, capacity, grain, at, length, entries, _, directory, overhead = struct.unpack_from(
        "<4sIIQQQQIQQQ", data
    )
    assert (magic, version, flags, grain, at, length, entries) == (b"KDMV", 3, 0x30001, 128, 1, 20, 512)
    assert directory == 2**64 - 1 and data[73:79] == b"\n \r\n\x01\0"
    assert b'createType="streamOptimized"' in data[512 : 512 * 21]
    disk, grains, tables, position = bytearray(capacity * 512), {}, {}, overhead * 512
    while True:
        value, size, kind = struct.unpack_from("<QII", data, position)
        if size:
            content = zlib.decompress(data[position + 12 : position + 12 + size])
            assert len(content) == CLUSTER
            grains[value // 128] = position // 512
            disk[value * 512 : value * 512 + CLUSTER] = content[: max(0, len(disk) - value * 512)]
            position += -(-(12 + size) // 512) * 512
            continue
        start = position + 512
        if kind == 1:
            tables[start // 512] = struct.unpack_from("<512I", data, start)
        elif kind == 2:
            listed, found = struct.unpack_from(f"<{-(-len(disk) // (512 * CLUSTER))}I", data, start), start // 512
        elif kind == 3:
            assert struct.unpack_from("<Q", data, start + 56) == (found,), "the footer leads to the directory"
        elif kind == 0:
            break
        position = start + value * 512
    assert position + 512 == len(data)
    entries_found = {
        number * 512 + slot: sector
        for number, place in enumerate(listed)
        if place
        for slot, sector in enumerate(tables[place])
        if sector
    }
    assert entries_found == grains, "the tables and the markers agree"
    return bytes(disk)


def test_vmdk_holds_the_disk_and_leaves_zeros_out(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw")
    write("vmdk", raw, tmp_path / "disk.vmdk", subject=SUBJECT)
    data = (tmp_path / "disk.vmdk").read_bytes()
    assert read_vmdk(data) == raw.read_bytes()
    assert len(data) < 100_000


@settings(max_examples=25, deadline=None)
@given(
    at=st.lists(st.integers(0, 1100), max_size=12, unique=True).map(lambda found: tuple(sorted(found))),
    size=st.integers(1, 1200 * 128),
)
def test_any_disk_is_read_back_from_vmdk(
    at: tuple[int, ...], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("vmdk")
    raw = make_disk(folder / "raw", tuple(one for one in at if one * CLUSTER < size * 512), size * 512)
    write("vmdk", raw, folder / "vmdk", subject=SUBJECT)
    assert read_vmdk((folder / "vmdk").read_bytes()) == raw.read_bytes()


@pytest.mark.parametrize("name", ["vmdk", "ova", "vhd", "tar.gz"])
def test_the_same_disk_and_seed_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    sparse = make_disk(tmp_path / "sparse.raw")
    dense = tmp_path / "dense.raw"
    dense.write_bytes(sparse.read_bytes())  # without holes
    for raw in (sparse, dense):
        write(name, raw, tmp_path / raw.stem, subject=SUBJECT)
    assert (tmp_path / "sparse").read_bytes() == (tmp_path / "dense").read_bytes()
    if name != "tar.gz":
        write(name, sparse, tmp_path / "other", subject=Subject(name="debian-13", seed="cd"))
        assert (tmp_path / "other").read_bytes() != (tmp_path / "sparse").read_bytes()


@pytest.mark.parametrize("name", ["vmdk", "ova", "vhd", "tar.gz"])
@pytest.mark.parametrize("size", [0, 511])
def test_file_that_is_no_disk_is_refused_and_nothing_appears(name: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(size))
    with pytest.raises(ArtifactError, match="no disk"):
        write(name, tmp_path / "raw", tmp_path / "out" / "file", subject=SUBJECT)
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("name", FORMATS)
def test_progress_ends_at_its_total(name: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    raw = make_disk(tmp_path / "disk.raw")
    write(name, raw, tmp_path / "out", lambda done, total: calls.append((done, total)), subject=SUBJECT)
    assert calls[-1][0] == calls[-1][1] > 0


def test_the_descriptor_states_size_and_an_id_that_stands_for_a_disk() -> None:
    text = descriptor(8 << 30, "seed")
    assert 'RDONLY 16777216 SPARSE "' in text
    assert text.isascii() and len(text) < 20 * 512
    cid = text.split("\nCID=")[1][:8]
    assert int(cid, 16) not in (0xFFFFFFFF, 0xFFFFFFFE) and "parentCID=ffffffff" in text
    assert descriptor(8 << 30, "other").split("\nCID=")[1][:8] != cid


def machine(name: str = "debian-13") -> ovf.Machine:
    return ovf.Machine(name=name, disk="box-disk001.vmdk", disk_uuid="u", file_size=5, capacity=8 << 30)


@pytest.mark.parametrize("hardware", [ovf.VIRTUALBOX, ovf.VMWARE])
def test_the_description_is_whole(hardware: ovf.Hardware) -> None:
    tree = ElementTree.fromstring(ovf.render(machine(), hardware))
    file, disk = tree.find(f".//{OVF}File"), tree.find(f".//{OVF}Disk")
    assert file is not None and disk is not None
    assert (file.get(f"{OVF}href"), file.get(f"{OVF}size")) == ("box-disk001.vmdk", "5")
    assert (disk.get(f"{OVF}capacity"), disk.get(f"{OVF}fileRef")) == (str(8 << 30), file.get(f"{OVF}id"))
    items = tree.findall(f".//{OVF}Item")
    ids = [item.findtext(f"{RASD}InstanceID") for item in items]
    assert len(set(ids)) == len(items) == 5
    hard_disk = next(item for item in items if item.findtext(f"{RASD}ResourceType") == "17")
    assert hard_disk.findtext(f"{RASD}Parent") in ids
    assert hard_disk.findtext(f"{RASD}HostResource") == f"ovf:/disk/{disk.get(f'{OVF}diskId')}"
    for item in items:
        names = [child.tag for child in item]
        assert names == sorted(names), "DSP0243: in the order of their names"


def test_names_are_escaped_in_the_description() -> None:
    tree = ElementTree.fromstring(ovf.render(machine('a"<&>b'), ovf.VIRTUALBOX))
    system = tree.find(f"{OVF}VirtualSystem")
    assert system is not None and system.get(f"{OVF}id") == 'a"<&>b'


def test_ova_has_the_description_first_and_true_checksums(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw")
    write("ova", raw, tmp_path / "x.ova", subject=SUBJECT)
    with tarfile.open(tmp_path / "x.ova") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert list(files) == ["debian-13.ovf", "debian-13.mf", "debian-13-disk001.vmdk"]
    assert (tmp_path / "x.ova").read_bytes()[257:263] == b"ustar\0"
    sums = [line.split("= ") for line in files["debian-13.mf"].decode().splitlines()]
    assert sums == [[f"SHA256({n})", sha256_bytes(files[n])] for n in ("debian-13.ovf", "debian-13-disk001.vmdk")]
    assert read_vmdk(files["debian-13-disk001.vmdk"]) == raw.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "x.ova"]


def test_vhd_is_the_disk_rounded_up_with_a_footer(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw")
    write("vhd", raw, tmp_path / "x.vhd", subject=SUBJECT)
    data = (tmp_path / "x.vhd").read_bytes()
    assert (len(data) - 512) % (1 << 20) == 0
    assert data[:SIZE] == raw.read_bytes() and not any(data[SIZE:-512])
    end = data[-512:]
    assert end[:8] == b"conectix" and struct.unpack_from(">Q", end, 48) == (len(data) - 512,)
    assert struct.unpack_from(">I", end, 60) == (2,), "fixed"
    stated = struct.unpack_from(">I", end, 64)[0]
    assert stated == ~(sum(end) - sum(end[64:68])) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("gib", "expected"), [(1, (2080, 16, 63)), (8, (16644, 16, 63)), (200, (65535, 16, 255)), (4096, (65535, 16, 255))]
)
def test_vhd_geometry_is_that_of_the_specification(gib: int, expected: tuple[int, int, int]) -> None:
    cylinders, heads, track = geometry(gib << 21)
    assert (heads, track) == expected[1:]
    assert cylinders * heads * track <= gib << 21
    assert len(footer(gib << 30, "x")) == 512


def test_the_tar_is_read_by_pythons_own_reader(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", tuple(range(0, 700, 9)))  # more pieces than a header and two blocks hold
    write("tar.gz", raw, tmp_path / "x.tar.gz", subject=SUBJECT)
    assert (tmp_path / "x.tar.gz").read_bytes()[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.size, member.mtime, member.uid) == ("disk.raw", SIZE, 0, 0)
        assert member.issparse()
        file = archive.extractfile(member)
        assert file is not None and file.read() == raw.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 3)), max_size=60), st.integers(0, 9))
def test_any_list_of_pieces_is_read_back(steps: list[tuple[int, int]], hole: int) -> None:
    pieces, end = [], 0
    for gap, length in steps:
        pieces.append(((end + gap) * 512, length * 512))
        end += gap + length
    size = (end + hole) * 512
    header = sparse_header(pieces, size)
    data = header + bytes(sum(length for _, length in pieces)) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = archive.getmembers()
    assert member.size == size
    assert [piece for piece in member.sparse if piece[1]] == pieces  # type: ignore[attr-defined]
