"""Bytes of a disk of unknown origin: every place that it names is looked at before it is read."""

from __future__ import annotations

from collections.abc import Iterator

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError

MAX_DISK = 256 << 30  # bytes of a disk, whatever it was packed in: no node image is near it
SECTOR = 512  # bytes: the unit of all disk formats


def read(disk: DiskSource, offset: int, length: int) -> bytes:
    """Return ``length`` bytes at ``offset``.

    Raises:
        ArtifactError: the disk does not reach that far.
    """
    if offset < 0 or length < 0 or offset + length > disk.size:
        raise ArtifactError(f"it is cut short or damaged: {length} bytes at {offset}, of {disk.size}")
    data = bytearray(length)
    disk.read_into(offset, memoryview(data))
    return bytes(data)


def checked_size(size: int) -> int:
    """Return the size of a disk.

    Raises:
        ArtifactError: it is none, or beyond every limit.
    """
    if not SECTOR <= size <= MAX_DISK:
        raise ArtifactError(f"a disk of {size} bytes is not read (at least {SECTOR}, at most {MAX_DISK >> 30} GiB)")
    return size


class Window:
    """A part of a disk, as a disk: ``size`` bytes from ``start`` on.

    Raises:
        ArtifactError: it does not lie within the disk.
    """

    def __init__(self, disk: DiskSource, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > disk.size:
            raise ArtifactError(f"a part of {size} bytes at {start} does not lie within the disk of {disk.size}")
        self._disk, self._start, self._size = disk, start, size

    @property
    def size(self) -> int:
        """Return the bytes of the part."""
        return self._size

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield where the part has data; see :class:`DiskSource`."""
        for first, last in self._disk.extents():
            start, end = max(first - self._start, 0), min(last - self._start, self._size)
            if start < end:
                yield start, end

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; see :class:`DiskSource`."""
        if offset < 0 or offset + len(view) > self._size:
            raise ArtifactError(f"it is cut short or damaged: {len(view)} bytes at {offset}, of {self._size}")
        self._disk.read_into(self._start + offset, view)
