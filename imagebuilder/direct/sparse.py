"""Reading and copying files that are mostly holes, see lseek(2) on SEEK_DATA and SEEK_HOLE."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from imagebuilder.errors import ArtifactError

BLOCK = 4096  # bytes: the block of ext4 and the page of the kernel; what a hole is made of
CHUNK = 1 << 20  # bytes per read: large enough that system calls do not count

_ZERO_BLOCK = bytes(BLOCK)
_ZERO_CHUNK = bytes(CHUNK)

OnProgress = Callable[[int, int], None]  # called with bytes done and bytes in all


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data: ascending, disjoint ``(start, end)`` in bytes, ``end`` exclusive.

    What lies between is a hole and reads as zeros; an extent may hold zeros too. A file system that knows no
    holes gives one extent. The descriptor's position moves: read with ``os.pread``.

    Args:
        fd: a descriptor open for reading.
        size: bytes of the file to look at.
    """
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= size:
            return
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, position


def copy_sparse(source: Path, stream: BinaryIO, offset: int, *, on_progress: OnProgress | None = None) -> int:
    """Copy a file into a stream, leaving out everything that is zero.

    Blocks of 4 KiB of the source that are zero are skipped, so the target has to read as zeros there already,
    and has to be as long as it shall be (``truncate`` first).

    Args:
        source: the file to copy.
        stream: a seekable target.
        offset: where in the target the source's first byte goes, in bytes.
        on_progress: called with bytes done and bytes in all after each piece; holes do not count.

    Returns:
        How many bytes were written.

    Raises:
        ArtifactError: the source became shorter meanwhile.
    """
    written = done = 0
    with source.open("rb", buffering=0) as file:
        fd = file.fileno()
        extents = list(data_extents(fd, os.fstat(fd).st_size))
        total = sum(end - start for start, end in extents)
        for position, end in extents:
            while position < end:
                chunk = os.pread(fd, min(CHUNK, end - position), position)
                if not chunk:
                    raise ArtifactError(f"{source} was cut short while it was copied")
                for start, stop in _nonzero_runs(chunk):
                    stream.seek(offset + position + start)
                    stream.write(memoryview(chunk)[start:stop])
                    written += stop - start
                position += len(chunk)
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done, total)
    return written


def _nonzero_runs(chunk: bytes) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of the parts of at most 1 MiB that hold blocks with a byte that is not zero."""
    if _ZERO_CHUNK.startswith(chunk):
        return
    run_start = None
    for start in range(0, len(chunk), BLOCK):
        # Compares in place, without copying the block; only the last block can be short.
        zero = chunk.startswith(_ZERO_BLOCK[: len(chunk) - start], start)
        if zero and run_start is not None:
            yield run_start, start
            run_start = None
        elif not zero and run_start is None:
            run_start = start
    if run_start is not None:
        yield run_start, len(chunk)
