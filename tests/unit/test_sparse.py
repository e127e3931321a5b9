"""What copying of sparse files promises."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.sparse import BLOCK, CHUNK, copy_sparse, data_extents
from imagebuilder.errors import ArtifactError

pieces = st.lists(
    st.tuples(st.integers(0, 3 * CHUNK), st.binary(min_size=1, max_size=3 * BLOCK)), min_size=0, max_size=6
)


def disk(path: Path, size: int, writes: list[tuple[int, bytes]]) -> bytes:
    """Make a sparse file and return what it reads as."""
    with path.open("wb") as stream:
        for offset, data in writes:
            stream.seek(offset)
            stream.write(data)
        stream.truncate(size)
    return path.read_bytes()


def extents(path: Path, size: int) -> list[tuple[int, int]]:
    with path.open("rb") as stream:
        return list(data_extents(stream.fileno(), size))


class CountingStream(io.BytesIO):
    """Remembers which ranges were written."""

    def __init__(self, initial: bytes) -> None:
        super().__init__(initial)
        self.ranges: list[tuple[int, int]] = []

    def write(self, data: object, /) -> int:
        start = self.tell()
        count = super().write(data)  # type: ignore[arg-type]
        self.ranges.append((start, start + count))
        return count


@given(writes=pieces, size=st.integers(0, 4 * CHUNK), offset=st.sampled_from([0, 512, CHUNK]))
def test_copy_reads_like_the_source(writes: list[tuple[int, bytes]], size: int, offset: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        expected = disk(source, size, writes)
        target.touch()
        with target.open("r+b") as stream:
            stream.truncate(offset + size)
            copy_sparse(source, stream, offset)
        copied = target.read_bytes()
        assert copied[offset:] == expected
        assert not any(copied[:offset])


@given(writes=pieces, size=st.integers(0, 4 * CHUNK))
def test_extents_are_ascending_disjoint_and_hold_all_data(writes: list[tuple[int, bytes]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        content = bytearray(disk(path, size, writes))
        position = 0
        for start, end in extents(path, size):
            assert position <= start < end <= size
            content[start:end] = bytes(end - start)
            position = end
        assert not any(content), "there is data outside of the extents"


def test_only_blocks_with_data_are_written(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    size = 2 * CHUNK + 100
    zeros_on_disk = (0, bytes(size))
    disk(source, size, [zeros_on_disk, (BLOCK, b"a"), (3 * BLOCK, b"b" * BLOCK), (size - 1, b"c")])
    target = CountingStream(bytes(size))
    written = copy_sparse(source, target, 0)
    expected = [(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK), (2 * CHUNK, size)]
    assert target.ranges == expected
    assert written == sum(end - start for start, end in expected)


def test_neighbouring_blocks_are_one_write(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    disk(source, 8 * BLOCK, [(BLOCK, b"x" * 5 * BLOCK)])
    target = CountingStream(bytes(8 * BLOCK))
    copy_sparse(source, target, 0)
    assert target.ranges == [(BLOCK, 6 * BLOCK)]


def test_holes_are_not_data(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"x" * BLOCK)
    assert extents(path, 1 << 40) == [(1 << 39, (1 << 39) + BLOCK)]


def test_extents_end_at_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    disk(path, 4 * BLOCK, [(0, b"x" * 4 * BLOCK)])
    assert extents(path, BLOCK + 1) == [(0, BLOCK + 1)]


def test_data_behind_the_size_asked_for_is_no_extent(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    disk(path, 32 * BLOCK, [(16 * BLOCK, b"x" * BLOCK)])
    assert extents(path, 8 * BLOCK) == []


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    disk(source, 8 * CHUNK, [(0, b"x" * 2 * CHUNK)])
    calls: list[tuple[int, int]] = []
    copy_sparse(source, io.BytesIO(), 0, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(CHUNK, 2 * CHUNK), (2 * CHUNK, 2 * CHUNK)]


def test_source_cut_short_meanwhile_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    disk(source, 2 * CHUNK, [(0, b"x" * 2 * CHUNK)])
    with pytest.raises(ArtifactError, match="cut short"):
        copy_sparse(source, io.BytesIO(), 0, on_progress=lambda *_: os.truncate(source, 0))
