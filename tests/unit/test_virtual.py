"""A disk of pieces: reads like the bytes it stands for, from anywhere, and is never half right."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct.sparse import BLOCK, CHUNK
from imagebuilder.direct.virtual import FileSlice, Piece, RawFile, VirtualDisk, materialize, pieces_of_file, shifted
from imagebuilder.errors import ArtifactError

CONTENT = bytes(range(1, 252)) * 200
# Gaps and lengths of pieces one after another; a flag: in a file.
shapes = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000), st.booleans()), max_size=8)


def make(folder: Path, shape: list[tuple[int, int, bool]], tail: int) -> tuple[VirtualDisk, bytes]:
    """Return a disk and what it should read as."""
    (folder / "file").write_bytes(CONTENT)
    expected, pieces = bytearray(), []
    for number, (gap, length, in_file) in enumerate(shape):
        expected += bytes(gap)
        start = number * 100
        data = CONTENT[start : start + length]
        source = FileSlice(os.fsencode(folder / "file"), start) if in_file else data
        pieces.append(Piece(len(expected), length, source))
        expected += data
    expected += bytes(tail)
    return VirtualDisk(len(expected), reversed(pieces)), bytes(expected)


def read(disk: VirtualDisk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xff" * length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@settings(deadline=None)
@given(shape=shapes, tail=st.integers(0, 9000), data=st.data())
def test_any_part_reads_like_the_whole(shape: list[tuple[int, int, bool]], tail: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk, expected = make(Path(folder), shape, tail)
        offset = data.draw(st.integers(0, len(expected)))
        length = data.draw(st.integers(0, len(expected) - offset))
        assert read(disk, offset, length) == expected[offset : offset + length]


@settings(deadline=None)
@given(shape=shapes, tail=st.integers(0, 9000))
def test_extents_hold_all_data_and_lie_apart(shape: list[tuple[int, int, bool]], tail: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk, expected = make(Path(folder), shape, tail)
        rest, last = bytearray(expected), -BLOCK
        for start, end in disk.extents():
            assert last + BLOCK <= start < end <= disk.size
            rest[start:end] = bytes(end - start)
            last = end
        assert not any(rest)


@settings(max_examples=15, deadline=None)  # every example waits for the disk
@given(shape=shapes, tail=st.integers(0, 9000))
def test_materialized_is_the_disk(shape: list[tuple[int, int, bool]], tail: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk, expected = make(Path(folder), shape, tail)
        out = Path(folder, "disk.raw")
        materialize(disk, out)
        assert out.read_bytes() == expected
        with RawFile(out) as raw:
            assert raw.size == len(expected)
            buffer = bytearray(len(expected))
            raw.read_into(0, memoryview(buffer))
            assert buffer == expected
            materialize(raw, Path(folder, "again.raw"))
        assert Path(folder, "again.raw").read_bytes() == expected


def test_materialized_has_holes_and_reports_its_end(tmp_path: Path) -> None:
    disk = VirtualDisk(1 << 40, [Piece(1 << 39, 3 * CHUNK, bytes(2 * CHUNK) + b"x" * CHUNK)])
    calls: list[tuple[int, int]] = []
    materialize(disk, tmp_path / "disk.raw", lambda done, total: calls.append((done, total)))
    assert calls == [(CHUNK, 3 * CHUNK), (2 * CHUNK, 3 * CHUNK), (3 * CHUNK, 3 * CHUNK)]
    assert (tmp_path / "disk.raw").stat().st_size == 1 << 40
    assert (tmp_path / "disk.raw").stat().st_blocks * 512 <= 2 * CHUNK


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([Piece(0, 10, bytes(10)), Piece(9, 1, b"x")], id="over each other"),
        pytest.param([Piece(-1, 2, b"xx")], id="before the disk"),
        pytest.param([Piece(99, 2, b"xx")], id="behind the disk"),
    ],
)
def test_pieces_that_cannot_be_are_refused(pieces: list[Piece]) -> None:
    with pytest.raises(ArtifactError, match="lie over each other"):
        VirtualDisk(100, pieces)


def test_a_source_that_changed_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    disk = VirtualDisk(4096, [Piece(0, 101, FileSlice(os.fsencode(path), 0))])
    with pytest.raises(ArtifactError, match="file was cut short"):
        read(disk, 0, 4096)
    path.unlink()
    with pytest.raises(ArtifactError, match="file vanished"):
        read(disk, 0, 4096)
    path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="symbolic links"):
        read(disk, 0, 4096)


def test_pieces_of_a_file_leave_its_holes_out_and_can_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(9 * CHUNK)
        stream.seek(4 * CHUNK)
        stream.write(b"x" * BLOCK)
    name = os.fsencode(path)
    assert list(pieces_of_file(path)) == [Piece(4 * CHUNK, BLOCK, FileSlice(name, 4 * CHUNK))]
    assert list(shifted(pieces_of_file(path), 7)) == [Piece(4 * CHUNK + 7, BLOCK, FileSlice(name, 4 * CHUNK))]
