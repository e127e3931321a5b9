"""What reading of sparse files promises."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.content import data_extents, sha256_bytes, sha256_file
from imagebuilder.direct.sparse import BLOCK, CHUNK, nonzero_grains, nonzero_runs
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


@given(writes=pieces, size=st.integers(0, 4 * CHUNK))
def test_a_checksum_is_that_of_what_is_read_holes_or_not(writes: list[tuple[int, bytes]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        assert sha256_bytes(disk(path, size, writes)) == sha256_file(path)


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the page cache fills up with zeros, and everything else is thrown out of it."""
    read: list[int] = []

    class Counted(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            read.append(super().readinto(buffer))
            return read[-1]

    content = disk(tmp_path / "disk", 40 * CHUNK, [(20 * CHUNK, b"x" * BLOCK)])
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counted(path))
    assert sha256_file(tmp_path / "disk") == sha256_bytes(content)
    assert sum(read) <= CHUNK


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(bytes(3 * BLOCK + 5), [], id="zeros"),
        pytest.param(bytes(BLOCK) + b"a" + bytes(BLOCK), [(BLOCK, 2 * BLOCK)], id="a byte"),
        pytest.param(bytes(BLOCK) + b"b" * (2 * BLOCK + 7), [(BLOCK, 3 * BLOCK + 7)], id="neighbours are one run"),
        pytest.param(b"c" + bytes(2 * BLOCK - 1) + b"d", [(0, BLOCK), (2 * BLOCK, 2 * BLOCK + 1)], id="two"),
    ],
)
def test_runs_are_blocks_with_data(content: bytes, runs: list[tuple[int, int]]) -> None:
    assert list(nonzero_runs(content, len(content))) == runs
    assert list(nonzero_runs(bytearray(content + b"more"), len(content))) == runs


@settings(deadline=None)
@given(writes=pieces, size=st.integers(0, 4 * CHUNK))
def test_grains_depend_on_content_alone(writes: list[tuple[int, bytes]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sparse, full = Path(folder, "sparse"), Path(folder, "full")
        content = disk(sparse, size, writes)
        full.write_bytes(content)
        grains = nonzero_grains(os.fsencode(sparse), size)
        assert grains == nonzero_grains(os.fsencode(full), size)
        for start, end in grains:
            assert start % CHUNK == 0 and (end % CHUNK == 0 or end == size)
        wanted = {at for at in range(0, size, CHUNK) if any(content[at : at + CHUNK])}
        assert {at for start, end in grains for at in range(start, end, CHUNK)} == wanted


def test_grains_of_a_file_that_is_shorter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * BLOCK)
    with pytest.raises(ArtifactError, match="cut short"):
        nonzero_grains(os.fsencode(tmp_path / "file"), 2 * BLOCK)


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
