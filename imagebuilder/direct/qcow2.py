"""Writing compressed qcow2 images with threads, and reading their headers.

Reference: docs/interop/qcow2.txt of QEMU ("spec" below); sections are named where they matter. The images are
version 3 with 64 KiB clusters and zstd (compression type 1), which QEMU reads since 5.1.

The file is, in clusters: header, L1 table, data, L2 tables, refcount table, refcount blocks. Clusters that
are zero are not allocated. Compressed clusters lie packed one after another. A cluster that zstd cannot
shrink is stored as it is; since that has to start at a cluster's boundary, the room before it is kept for
compressed clusters that still fit. Data is placed in the order of the disk, so the same disk gives the same
file, whatever the number of threads. (Another version of zstd may give other bytes.)
"""

from __future__ import annotations

import array
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from imagebuilder import content
from imagebuilder.direct.clusters import CLUSTER, CLUSTER_BITS, SECTOR, Compress, disk_size, pour
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError

_MAGIC = b"QFI\xfb"
# Spec "Header", bytes 0 to 71: magic, version, backing file's offset and length, cluster bits, virtual size,
# encryption, L1 entries and offset, refcount table's offset and clusters, snapshots and their offset.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
# Bytes 72 to 103 and, as header length says 112, 104 to 111: incompatible, compatible and autoclear features,
# refcount order, header length, compression type, padding.
_HEADER_V3 = struct.Struct(">QQQII")
_COMPRESSION = struct.Struct(">B7x")
_HEADER_LENGTH = _HEADER.size + _HEADER_V3.size + _COMPRESSION.size
_INCOMPATIBLE_COMPRESSION = 1 << 3
_COMPRESSIONS = ("zlib", "zstd")  # by compression type

_L2_ENTRIES = CLUSTER // 8
_COPIED = 1 << 63  # spec "L1 table entry" and "L2 table entry": the refcount is exactly one
_COMPRESSED = 1 << 62
_SECTORS_SHIFT = 62 - (CLUSTER_BITS - 8)  # spec "Compressed Clusters Descriptor": x; sectors after the first
# 16 bits per refcount. No cluster comes near 65,535 references: the smallest zstd frame of 64 KiB has 19 bytes.
_REFCOUNT_ORDER = 4
_REFCOUNTS = CLUSTER // 2  # per refcount block

TOGETHER = 1 << 20  # bytes that are written at once
_ZERO_CLUSTER = bytes(CLUSTER)

_MAX_CLUSTER_BITS = 21  # spec "Header": QEMU's limit, 2 MiB
_MAX_L1_ENTRIES = (32 << 20) // 8  # spec "Header": QEMU's limit, 32 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a qcow2 header says.

    Attributes:
        version: 2 or 3.
        virtual_size: of the disk, in bytes.
        cluster_size: in bytes.
        compression: ``zlib`` or ``zstd``.
        l1_entries, l1_offset: of the active L1 table; the offset is in bytes of the file.
        refcount_offset: of the refcount table, in bytes of the file.
    """

    version: int
    virtual_size: int
    cluster_size: int
    compression: str
    l1_entries: int
    l1_offset: int
    refcount_offset: int


def write_qcow2(
    disk: DiskSource, out: Path, *, level: int = 1, threads: int | None = None, on_progress: OnProgress | None = None,
    lasting: bool = True,
) -> None:  # fmt: skip
    """Write a disk as a compressed qcow2 image; the file appears under its name only when whole.

    Args:
        disk: what to write, a multiple of 512 bytes.
        out: the image to make or replace.
        level: of zstd, 1 to 22.
        threads: that read and compress; by default one for each core. The result does not depend on it.
        on_progress: called from this thread with bytes done and bytes in all; holes do not count.
        lasting: see :func:`content.writing`.

    Raises:
        ArtifactError: the disk is empty, not a multiple of 512 bytes, or was cut short meanwhile.
    """
    size = disk_size(disk)
    with content.writing(out, lasting=lasting) as stream:
        image = _Image(stream, size)
        kind = f"zstd {level} {zstandard.ZSTD_VERSION} {zstandard.backend} {zstandard.__version__}"
        pour(
            disk, image, stream, lambda: _zstd(level), threads=threads, on_progress=on_progress, kind=kind,
            lasting=lasting,
        )  # fmt: skip
        image.finish()


def _zstd(level: int) -> Compress:
    """Return a thread's compressing function; a cluster that does not shrink stays as it is."""
    context = zstandard.ZstdCompressor(level=level)

    def compress(cluster: memoryview) -> bytes:
        blob = context.compress(cluster)
        return blob if len(blob) < CLUSTER else bytes(cluster)

    return compress


class _Image:
    """The file while it grows: places clusters, keeps their addresses and reference counts.

    Attributes:
        end: where the next byte goes when it fits no gap, in bytes of the file.
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._size = size
        self._l1_entries = -(-size // (CLUSTER * _L2_ENTRIES))
        self._l2: dict[int, array.array[int]] = {}  # by L1 index; a table exists when it has an entry
        self._refcounts: list[int] = []  # by cluster of the file
        self.end = CLUSTER + _round_up(8 * self._l1_entries)
        self._waiting: list[bytes] = []  # to be written, one after the other, from and to these bytes of the file
        self._waiting_start = self._waiting_end = 0
        self._gap = (0, 0)  # start and end of the room before the last uncompressed cluster
        self._refer(0, self.end)

    def add(self, index: int, blob: bytes) -> None:
        """Store the disk's cluster ``index``; a blob of 64 KiB is stored as it is, a shorter one is zstd."""
        if len(blob) == CLUSTER:
            start = _round_up(self.end)
            if start > self.end:
                self._gap = (self.end, start)
            self.end, entry = start + CLUSTER, _COPIED | start
        else:
            start = self._room(len(blob))
            further = (start + len(blob) - 1) // SECTOR - start // SECTOR
            entry = _COMPRESSED | further << _SECTORS_SHIFT | start
        self._refer(start, start + len(blob))
        self._write(start, blob)
        table, at = divmod(index, _L2_ENTRIES)
        if table not in self._l2:
            self._l2[table] = array.array("Q", _ZERO_CLUSTER)
        self._l2[table][at] = entry

    def finish(self) -> None:
        """Write tables and header."""
        self.end = _round_up(self.end)
        l1 = array.array("Q", bytes(8 * self._l1_entries))
        for index, table in self._l2.items():
            l1[index] = _COPIED | self.end
            self._append(_big_endian(table))
        refcount_offset, refcount_clusters = self._finish_refcounts()
        self._write(CLUSTER, _big_endian(l1))
        self._write(0, _HEADER.pack(
            _MAGIC, 3, 0, 0, CLUSTER_BITS, self._size, 0, self._l1_entries, CLUSTER,
            refcount_offset, refcount_clusters, 0, 0,
        ) + _HEADER_V3.pack(
            _INCOMPATIBLE_COMPRESSION, 0, 0, _REFCOUNT_ORDER, _HEADER_LENGTH,
        ) + _COMPRESSION.pack(_COMPRESSIONS.index("zstd")) + bytes(8))  # fmt: skip
        self._flush()

    def _finish_refcounts(self) -> tuple[int, int]:
        """Write refcount table and blocks, which count themselves too; return the table's offset and clusters."""
        used, blocks, clusters = self.end // CLUSTER, 0, 0
        while blocks * _REFCOUNTS < used + clusters + blocks:
            blocks += 1
            clusters = _round_up(8 * blocks) // CLUSTER
        offset = self.end
        first_block = offset + clusters * CLUSTER
        self._refer(offset, first_block + blocks * CLUSTER)
        table = array.array("Q", range(first_block, first_block + blocks * CLUSTER, CLUSTER))
        self._write(offset, _big_endian(table).ljust(clusters * CLUSTER, b"\0"))
        counts = array.array("H", self._refcounts)
        self._write(first_block, _big_endian(counts).ljust(blocks * CLUSTER, b"\0"))
        return offset, clusters

    def _room(self, length: int) -> int:
        """Take ``length`` bytes for a compressed cluster: in the gap if they fit, else at the end."""
        start, end = self._gap
        if length <= end - start:
            self._gap = (start + length, end)
            return start
        self.end += length
        return self.end - length

    def _append(self, cluster: bytes) -> None:
        self._refer(self.end, self.end + len(cluster))
        self._write(self.end, cluster)
        self.end += len(cluster)

    def _refer(self, start: int, end: int) -> None:
        """Count one reference to each cluster of the file that bytes ``start`` to ``end`` touch."""
        first, stop = start // CLUSTER, -(-end // CLUSTER)
        self._refcounts.extend([0] * (stop - len(self._refcounts)))
        for cluster in range(first, stop):
            self._refcounts[cluster] += 1

    def _write(self, offset: int, data: bytes) -> None:
        """Write bytes, with those before them where they follow on: clusters are small, and there are many."""
        if offset != self._waiting_end or offset - self._waiting_start >= TOGETHER:
            self._flush()
            self._waiting_start = offset
        self._waiting.append(data)
        self._waiting_end = offset + len(data)

    def _flush(self) -> None:
        self._stream.seek(self._waiting_start)
        self._stream.write(b"".join(self._waiting))
        self._waiting.clear()


def _round_up(size: int) -> int:
    return -(-size // CLUSTER) * CLUSTER


def _big_endian(numbers: array.array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def read_header(path: Path) -> Header:
    """Read and check the header of a qcow2 image of which nothing is known yet.

    Checked: magic, version, cluster size, feature bits that change how the file is read, and that the L1 and
    the refcount table lie within the file and are as long as the virtual size wants. Images with a backing
    file, encryption or an external data file are refused: an artifact is one file.

    Args:
        path: the file.

    Raises:
        ArtifactError: it is no qcow2 image, or one of those.
    """
    with path.open("rb") as stream:
        data = stream.read(_HEADER_LENGTH)
        return parse_header(data, os.fstat(stream.fileno()).st_size, name=path.name)


def parse_header(data: bytes, file_size: int, *, name: str = "the file") -> Header:
    """Parse the first bytes of a file; see :func:`read_header`.

    Args:
        data: the first 112 bytes, or fewer when the file is shorter.
        file_size: of the whole file, in bytes.
        name: of the file, for messages.

    Raises:
        ArtifactError: see :func:`read_header`.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ArtifactError(f"{name} is no qcow2 image")
    fields = _HEADER.unpack_from(data)
    _, version, backing, _, bits, size, encryption, l1_entries, l1_offset, refcount_offset, *_ = fields
    if version not in (2, 3):
        raise ArtifactError(f"{name} is a qcow2 image of version {version}; known are 2 and 3")
    compression = _parse_v3(data, name) if version == 3 else _COMPRESSIONS[0]
    if backing or encryption:
        raise ArtifactError(f"{name} has a backing file or is encrypted")
    if not 9 <= bits <= _MAX_CLUSTER_BITS:
        raise ArtifactError(f"{name} has clusters of 2^{bits} bytes")
    cluster = 1 << bits
    wanted = -(-size // (cluster * (cluster // 8)))
    if size == 0 or not wanted <= l1_entries <= _MAX_L1_ENTRIES:
        raise ArtifactError(f"{name} has {l1_entries} L1 entries for a disk of {size} bytes")
    for offset, length in ((l1_offset, 8 * l1_entries), (refcount_offset, cluster)):
        if offset % cluster or not cluster <= offset <= file_size - length:
            raise ArtifactError(f"{name} is cut short or damaged: a table at {offset} of {file_size} bytes")
    return Header(
        version=version, virtual_size=size, cluster_size=cluster, compression=compression,
        l1_entries=l1_entries, l1_offset=l1_offset, refcount_offset=refcount_offset,
    )  # fmt: skip


def _parse_v3(data: bytes, name: str) -> str:
    """Check the fields that version 3 adds; return the compression (spec "Additional fields")."""
    if len(data) < _HEADER.size + _HEADER_V3.size:
        raise ArtifactError(f"{name} is cut short")
    features, _, _, order, length = _HEADER_V3.unpack_from(data, _HEADER.size)
    if features & ~_INCOMPATIBLE_COMPRESSION:
        raise ArtifactError(f"{name} is in use, corrupt, or needs features {features:#x} that are not known")
    if order > 6 or length < _HEADER.size + _HEADER_V3.size or length % 8:
        raise ArtifactError(f"{name} has a damaged header")
    kind = data[_HEADER_LENGTH - _COMPRESSION.size] if min(length, len(data)) >= _HEADER_LENGTH else 0
    if kind >= len(_COMPRESSIONS) or bool(kind) != bool(features & _INCOMPATIBLE_COMPRESSION):
        raise ArtifactError(f"{name} has compression {kind}, which is not known or not announced")
    return _COMPRESSIONS[kind]
