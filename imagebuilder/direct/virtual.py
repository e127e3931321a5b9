"""A disk that is nowhere whole: pieces in memory and in files, read on demand.

What writes a format takes a :class:`DiskSource`: this disk, or a raw file (:class:`RawFile`).
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, Self

from imagebuilder import content
from imagebuilder.direct.sparse import BLOCK, CHUNK, OnProgress, nonzero_runs
from imagebuilder.errors import ArtifactError

if TYPE_CHECKING:
    from imagebuilder.direct.layers import Layer


class DiskSource(Protocol):
    """A disk of which any part can be read, from any number of threads."""

    @property
    def size(self) -> int:
        """Return the bytes of the disk."""

    def extents(self) -> Iterable[tuple[int, int]]:
        """Return ascending, disjoint ``(start, end)`` in bytes; what lies between reads as zeros."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what the disk holds from ``offset`` on.

        Raises:
            ArtifactError: what the disk is made from became shorter or vanished meanwhile.
        """


class FileSlice(NamedTuple):
    """Bytes of a file from ``start`` on."""

    path: bytes
    start: int


class Piece(NamedTuple):
    """``length`` bytes at ``offset`` of a disk (or of a partition)."""

    offset: int
    length: int
    source: bytes | FileSlice


def shifted(pieces: Iterable[Piece], by: int) -> Iterator[Piece]:
    """Yield pieces of a partition as pieces of the disk on which it starts at ``by``."""
    return (Piece(piece.offset + by, piece.length, piece.source) for piece in pieces)


def pieces_of_file(path: Path) -> Iterator[Piece]:
    """Yield the parts of a file that are no holes, at their own offsets."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in content.data_extents(file.fileno(), size):
            yield Piece(start, end - start, FileSlice(os.fsencode(path), start))


class VirtualDisk:
    """A disk made of pieces; what no piece covers is zero."""

    def __init__(self, size: int, pieces: Iterable[Piece], layers: Sequence[Layer] = ()) -> None:
        """Put the pieces in order.

        Args:
            size: bytes of the disk.
            pieces: in any order, none over another, all within the disk.
            layers: those whose files are in it, in whose folders something may be kept for the next disk.

        Raises:
            ArtifactError: they are not.
        """
        self._size = size
        self.layers = layers
        ordered = sorted((piece for piece in pieces if piece.length), key=lambda piece: piece.offset)
        self._starts = [piece.offset for piece in ordered]
        self._ends = [piece.offset + piece.length for piece in ordered]
        self._sources = [piece.source for piece in ordered]
        for start, end in itertools.pairwise([0, *itertools.chain(*zip(self._starts, self._ends, strict=True)), size]):
            if end < start:
                raise ArtifactError(f"two parts of the disk lie over each other, or outside of it, at byte {end}")

    @property
    def size(self) -> int:
        """Return the bytes of the disk."""
        return self._size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield where the pieces are; those less than a block apart as one."""
        first = last = None
        for start, end in zip(self._starts, self._ends, strict=True):
            if first is None or last is None:
                first = start
            elif start - last >= BLOCK:
                yield first, last
                first = start
            last = end
        if first is not None and last is not None:
            yield first, last

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes | FileSlice, int]]:
        """Yield offset, length and source of what lies between two places, and how much of the source is before."""
        for at in range(max(bisect_right(self._starts, start) - 1, 0), bisect_left(self._starts, stop)):
            begin, end = max(start, self._starts[at]), min(stop, self._ends[at])
            if begin < end:
                yield begin, end - begin, self._sources[at], begin - self._starts[at]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what the disk holds from ``offset`` on; see :class:`DiskSource`."""
        stop, position = offset + len(view), offset
        at = max(bisect_right(self._starts, offset) - 1, 0)
        starts, ends, sources = self._starts, self._ends, self._sources
        while position < stop:
            while at < len(ends) and ends[at] <= position:
                at += 1
            start = min(starts[at], stop) if at < len(starts) else stop
            if start > position:
                view[position - offset : start - offset] = bytes(start - position)
                position = start
            elif position < stop:
                end = min(ends[at], stop)
                _fill(view[position - offset : end - offset], sources[at], position - starts[at])
                position = end


def _fill(view: memoryview, source: bytes | FileSlice, skip: int) -> None:
    """Read one piece, from its byte ``skip`` on."""
    if isinstance(source, bytes):
        view[:] = memoryview(source)[skip : skip + len(view)]
        return
    try:
        fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ArtifactError(f"{os.fsdecode(source.path)} vanished while the disk was written") from error
    try:
        _read_all(fd, view, source.start + skip, source.path)
    finally:
        os.close(fd)


def _read_all(fd: int, view: memoryview, offset: int, path: bytes) -> None:
    while len(view):
        done = os.preadv(fd, [view], offset)
        if done == 0:
            raise ArtifactError(f"{os.fsdecode(path)} was cut short while it was read, near byte {offset}")
        view, offset = view[done:], offset + done


class RawFile:
    """A raw disk in a file; its holes are not read. Use it as a context, or close it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Return the bytes of the file."""
        return self._size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield where the file has data."""
        return content.data_extents(self._file.fileno(), self._size)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; see :class:`DiskSource`."""
        _read_all(self._file.fileno(), view, offset, os.fsencode(self._path))


def materialize(
    disk: DiskSource, out: Path, on_progress: OnProgress | None = None, *, lasting: bool = True
) -> None:  # fmt: skip
    """Write a disk as a raw file with a hole wherever a block is zero; it appears only when whole.

    Args:
        disk: what to write.
        out: the file to make or replace.
        on_progress: called with bytes done and bytes in all; holes do not count.
        lasting: see :func:`content.writing`.

    Raises:
        ArtifactError: see :meth:`DiskSource.read_into`.
    """
    with content.writing(out, lasting=lasting) as stream:
        stream.truncate(disk.size)
        copy_data(disk, stream, on_progress)


def copy_data(disk: DiskSource, stream: IO[bytes], on_progress: OnProgress | None = None) -> None:
    """Copy what is not zero into a file that reads as zeros, at the same offsets; see :func:`materialize`."""
    buffer = bytearray(CHUNK)
    extents = list(disk.extents())
    done, total = 0, sum(end - start for start, end in extents)
    for first, end in extents:
        for position in range(first, end, CHUNK):
            view = memoryview(buffer)[: min(CHUNK, end - position)]
            disk.read_into(position, view)
            for start, stop in nonzero_runs(buffer, len(view)):
                stream.seek(position + start)
                stream.write(view[start:stop])
            done += len(view)
            if on_progress is not None:
                on_progress(done, total)
