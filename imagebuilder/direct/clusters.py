"""A disk in clusters of 64 KiB: read and compressed by threads, handed out in the order of the disk."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import IO, Protocol, Self, TypeAlias

from imagebuilder.content import cores
from imagebuilder.direct.kept import Blobs, kept
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource, VirtualDisk
from imagebuilder.errors import ArtifactError

SECTOR = 512  # bytes: the unit of all disk formats
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS  # bytes: QEMU's default for qcow2, and what every VMDK reader takes as a grain

_BATCH = 64  # clusters per task: 4 MiB, so that handing over tasks costs nothing next to compressing
_AHEAD = 2  # tasks waiting per thread: bounds the memory to 4 + (1 + 2) x 4 MiB per thread
_MOST = 16  # threads: more do not help the one that writes; 256 MiB at most
_FLUSH = 32 << 20  # bytes per round of flushing: a tenth of a second at 300 MB/s
_ZERO_CLUSTER = bytes(CLUSTER)

Compress: TypeAlias = Callable[[memoryview], bytes]
Work: TypeAlias = Callable[[range], Blobs]


def disk_size(disk: DiskSource) -> int:
    """Return the size of a disk.

    Raises:
        ArtifactError: it is empty, or not a multiple of 512 bytes.
    """
    if disk.size == 0 or disk.size % SECTOR:
        raise ArtifactError(f"a disk of {disk.size} bytes is no disk: not a multiple of {SECTOR} bytes")
    return disk.size


def batches(disk: DiskSource) -> Iterator[range]:
    """Yield the clusters that a disk's data touches, each once, as ascending ranges of at most ``_BATCH``."""
    free = 0  # clusters before this one were yielded
    for start, end in disk.extents():
        first, stop = max(start // CLUSTER, free), -(-end // CLUSTER)
        while first < stop:  # each ends at a multiple: a longer extent before it does not move the others
            end = min(first - first % _BATCH + _BATCH, stop)
            yield range(first, end)
            first = end
        free = max(free, stop)


class Compressor:
    """Reads clusters and compresses them; any number of threads may call it.

    Args:
        disk: what to read.
        make: makes a thread's own compressing function.
    """

    def __init__(self, disk: DiskSource, make: Callable[[], Compress]) -> None:
        self._disk, self._make = disk, make
        self._local = threading.local()

    def __call__(self, batch: range) -> Blobs:
        """Return index and compressed bytes of each cluster that is not zero."""
        buffer, compress = self._tools()
        view, blobs = memoryview(buffer), []
        self._read(batch, view[: len(batch) * CLUSTER])
        for at, index in enumerate(batch):
            # Compares in place: a slice would copy, and hold up the other threads for it.
            if not buffer.startswith(_ZERO_CLUSTER, at * CLUSTER):
                blobs.append((index, compress(view[at * CLUSTER : (at + 1) * CLUSTER])))
        return blobs

    def _tools(self) -> tuple[bytearray, Compress]:
        """Return this thread's buffer (new memory per batch costs page faults) and its compressing function."""
        if not hasattr(self._local, "tools"):
            self._local.tools = bytearray(_BATCH * CLUSTER), self._make()
        tools: tuple[bytearray, Compress] = self._local.tools
        return tools

    def _read(self, batch: range, view: memoryview) -> None:
        start, stop = batch.start * CLUSTER, min(batch.stop * CLUSTER, self._disk.size)
        self._disk.read_into(start, view[: stop - start])
        view[stop - start :] = bytes(len(view) - (stop - start))  # the disk may end within a cluster


def in_order(work: Work, todo: Iterable[range], threads: int | None) -> Iterator[tuple[range, Blobs]]:
    """Yield batches with their compressed clusters in order, working on a bounded number ahead.

    Without ``threads``, there is one for each core that may be used.
    """
    coming, threads = iter(todo), threads or min(cores(), _MOST)
    with ThreadPoolExecutor(threads, thread_name_prefix="clusters") as pool:
        running: deque[tuple[range, Future[Blobs]]] = deque()
        for batch in itertools.islice(coming, threads * (1 + _AHEAD)):
            running.append((batch, pool.submit(work, batch)))
        while running:
            batch, future = running.popleft()
            blobs = future.result()
            for following in itertools.islice(coming, 1):
                running.append((following, pool.submit(work, following)))
            yield batch, blobs


class Flusher:
    """Sends what was written to the disk meanwhile, so that the fsync at the end finds little left to do.

    The kernel reports a write error to one fsync only, so every round's result is looked at.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._fd = stream.fileno()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._running: Future[None] = Future()
        self._running.set_result(None)
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            self._running.result()

    def nudge(self, end: int) -> None:
        """Start another round when there is enough for one and the last one has ended.

        Raises:
            OSError: the last one failed.
        """
        if end - self._sent >= _FLUSH and self._running.done():
            self._running.result()
            self._sent, self._running = end, self._pool.submit(os.fdatasync, self._fd)


class Image(Protocol):
    """A format's file while it grows; ``end`` is how far it has been written."""

    @property
    def end(self) -> int:
        """Return the bytes written so far."""

    def add(self, index: int, blob: bytes) -> None:
        """Store the disk's cluster ``index``; clusters come in the order of the disk."""


def pour(
    disk: DiskSource, image: Image, stream: IO[bytes], make: Callable[[], Compress], *, threads: int | None,
    on_progress: OnProgress | None, kind: str = "", lasting: bool = True,
) -> None:  # fmt: skip
    """Put every cluster of a disk that is not zero, compressed, into the image that ``stream`` holds.

    ``kind`` says how clusters are compressed, and by which version of what: clusters of layers are then kept for the
    next disk, see :mod:`imagebuilder.direct.kept`. What is not ``lasting`` is not sent to the disk.

    Raises:
        ArtifactError: what the disk is made from changed meanwhile.
    """
    work: Work = Compressor(disk, make)
    if kind and isinstance(disk, VirtualDisk):
        work = partial(kept(disk, disk.layers, kind, CLUSTER).of, make=work)
    todo = list(batches(disk))
    total, done = sum(len(batch) for batch in todo) * CLUSTER, 0
    with Flusher(stream) if lasting else contextlib.nullcontext() as flusher:
        for batch, blobs in in_order(work, todo, threads):
            for index, blob in blobs:
                image.add(index, blob)
            if flusher:
                flusher.nudge(image.end)
            done += len(batch) * CLUSTER
            if on_progress is not None:
                on_progress(done, total)
