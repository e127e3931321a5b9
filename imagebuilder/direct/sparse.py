"""Finding what is not zero in files that are mostly holes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from imagebuilder.content import data_extents
from imagebuilder.errors import ArtifactError

BLOCK = 4096  # bytes: the block of ext4 and the page of the kernel; what a hole is made of
CHUNK = 1 << 20  # bytes per read: large enough that system calls do not count

_ZERO_BLOCK = bytes(BLOCK)
_ZERO_CHUNK = bytes(CHUNK)

OnProgress = Callable[[int, int], None]  # called with bytes done and bytes in all


def nonzero_runs(chunk: bytes | bytearray, length: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of the parts that hold blocks with a byte that is not zero.

    Args:
        chunk: at least ``length`` bytes.
        length: how many of them to look at.
    """
    run_start = None
    for start in range(0, length, BLOCK):
        # Compares in place, without copying the block; only the last block can be short.
        zero = chunk.startswith(_ZERO_BLOCK[: length - start], start)
        if zero and run_start is not None:
            yield run_start, start
            run_start = None
        elif not zero and run_start is None:
            run_start = start
    if run_start is not None:
        yield run_start, length


def nonzero_grains(path: bytes, size: int) -> list[tuple[int, int]]:
    """Return where a file has data: ``(start, end)``, in whole MiB except at its end.

    What counts is the content, not how the file system below keeps it: the same file gives the same answer on
    any host. Holes are only skipped.

    Args:
        path: the file.
        size: bytes of it to look at.

    Raises:
        ArtifactError: the file is shorter.
    """
    found: list[tuple[int, int]] = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        free = 0  # grains before this byte were looked at
        for first, end in data_extents(fd, size):
            for start in range(max(first // CHUNK * CHUNK, free), end, CHUNK):
                grain = os.pread(fd, min(CHUNK, size - start), start)
                if len(grain) < min(CHUNK, size - start):
                    raise ArtifactError(f"{os.fsdecode(path)} was cut short while it was read")
                free = start + CHUNK
                if _ZERO_CHUNK.startswith(grain):
                    continue
                if found and found[-1][1] == start:
                    start = found.pop()[0]
                found.append((start, min(free, size)))
    finally:
        os.close(fd)
    return found
