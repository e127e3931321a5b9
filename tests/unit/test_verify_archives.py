"""Disks in archives: tars of any tool are unpacked into sparse files, and what lies is an error within its bounds."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import tarfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct.archives import sparse_header
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks import archives
from imagebuilder.verify.disks.archives import unpack

MIB = 1 << 20
QCOW2 = b"QFI\xfb" + Random(1).randbytes(5000)


def tar(
    *files: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE, **pax: str
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.pax_headers = len(data), kind, pax
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def unpacked(folder: Path, data: bytes) -> tuple[str, bytes]:
    (folder / "archive").write_bytes(data)
    kind, path = unpack(folder / "archive", folder)
    try:
        return kind, path.read_bytes()
    finally:
        path.unlink()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([("disk.raw", b"x" * 5000)], "tar.gz"),
        ([("./disk.raw", b"x" * 1024)], "tar.gz"),
        ([("metadata.json", b"{}"), ("box.img", QCOW2), ("Vagrantfile", b"")], "box"),
        ([("box.ovf", b""), ("metadata.json", b"{}"), ("d.vmdk", b"KDMV" + bytes(9))], "box"),
        ([("a.ovf", b""), ("a.mf", b""), ("a-disk001.vmdk", b"KDMV" + bytes(600))], "ova"),
    ],
)
def test_the_disk_is_found(files: list[tuple[str, bytes]], kind: str, pack: object, tmp_path: Path) -> None:
    disk = max((data for _, data in files), key=len)
    assert unpacked(tmp_path, pack(tar(*files))) == (kind, disk)  # type: ignore[operator]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_extended_headers_are_read_over(form: int, tmp_path: Path) -> None:
    data = tar(
        ("n" * 300 if form == tarfile.GNU_FORMAT else "x", b"1"), ("disk.raw", b"2" * 99), form=form, comment="x"
    )
    assert unpacked(tmp_path, data) == ("tar.gz", b"2" * 99)


def test_sizes_in_base_256_are_read(tmp_path: Path) -> None:
    data = bytearray(tar(("disk.raw", b"2" * 99)))
    data[124:136] = b"\x80" + (99).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert unpacked(tmp_path, bytes(data)) == ("tar.gz", b"2" * 99)


def test_what_is_zero_takes_no_room(tmp_path: Path) -> None:
    sparse = sparse_header([(8 * MIB, 512), (100 * MIB, 512)], 4 << 30) + b"a" * 512 + b"b" * 512 + bytes(1024)
    dense = tar(("disk.raw", bytes(20 * MIB) + b"end" + bytes(20 * MIB)))
    for data, size, at, wanted in ((sparse, 4 << 30, 100 * MIB, b"b"), (dense, 40 * MIB + 3, 20 * MIB, b"e")):
        (tmp_path / "archive").write_bytes(gzip.compress(data))
        _, path = unpack(tmp_path / "archive", tmp_path)
        state = path.stat()
        assert (state.st_size, state.st_blocks * 512 < MIB) == (size, True)
        with path.open("rb") as stream:
            stream.seek(at)
            assert stream.read(1) == wanted
        path.unlink()


def header(pieces: list[tuple[int, int]], size: int) -> bytes:
    return sparse_header(pieces, size) + bytes(4096)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no disk", id="nothing"),
        pytest.param(bytes(1024), "no disk", id="empty tar"),
        pytest.param(tar(("readme", b"x")), "no disk", id="no disk"),
        pytest.param(tar(("a", QCOW2), ("b", QCOW2)), "more than one", id="two disks"),
        pytest.param(tar(("disk.raw", b""), kind=tarfile.SYMTYPE), "neither", id="a link"),
        pytest.param(tar(("disk.raw", b"x" * 9999))[:4000], "cut off", id="cut in the disk"),
        pytest.param(tar(("readme", b"x" * 9999))[:4000], "cut off", id="cut in another"),
        pytest.param(gzip.compress(tar(("disk.raw", b"x" * 9999)))[:-9], "cut off", id="cut gzip"),
        pytest.param(gzip.compress(tar(("disk.raw", b"x")))[:-8] + bytes(8), "check", id="gzip's checksum"),
        pytest.param(b"x" * 1024, "not a tar", id="no tar"),
        pytest.param(tar(*((f"f{at}", b"") for at in range(300))), "more than 256", id="many entries"),
        pytest.param(tar(("x", b"1"), form=tarfile.PAX_FORMAT, path="disk.raw"), "renames", id="pax that renames"),
        pytest.param(header([(0, 512), (0, 512)], 4096), "in order", id="pieces over each other"),
        pytest.param(header([(0, 8192)], 4096), "make up", id="pieces outside"),
        pytest.param(header([], 1 << 60), "make up", id="endless"),
        pytest.param(header([(0, 512)] * 9, 1 << 60), "in order", id="pieces again"),
    ],
)
def test_archives_that_lie_are_refused_and_leave_nothing(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        unpack(tmp_path / "archive", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_a_disk_with_too_much_that_is_not_zero_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_WRITTEN", MIB)
    (tmp_path / "archive").write_bytes(gzip.compress(tar(("disk.raw", b"x" * (2 * MIB)))))
    with pytest.raises(ArtifactError, match="not zero"):
        unpack(tmp_path / "archive", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_a_full_disk_is_an_error_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(archives, "_write", full)
    (tmp_path / "archive").write_bytes(tar(("disk.raw", b"x")))
    with pytest.raises(ArtifactError, match="No space left") as caught:
        unpack(tmp_path / "archive", tmp_path)
    assert caught.value.hint.startswith("df ")


@given(
    damage=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8), packed=st.booleans()
)
@settings(max_examples=150)
def test_any_damage_gives_a_disk_or_an_error_and_ends(
    damage: list[tuple[int, int]], packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    pieces = [(at * 1024, 512) for at in range(40)]
    data = sparse_header(pieces, 1 << 20) + bytes(range(256)) * 80 + bytes(1024)
    broken = bytearray(gzip.compress(data) if packed else data)
    for at, value in damage:
        broken[at % len(broken)] = value
        if not packed:  # the checksum is made to hold: what is behind it shall be seen
            struct.pack_into("8s", broken, 148, b" " * 8)
            struct.pack_into("8s", broken, 148, b"%06o\0 " % sum(broken[:512]))
    (folder / "archive").write_bytes(broken)
    with contextlib.suppress(ArtifactError):
        unpack(folder / "archive", folder)
