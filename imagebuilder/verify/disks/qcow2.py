"""Reading qcow2 images of unknown origin, versions 2 and 3.

Reference: docs/interop/qcow2.txt of QEMU ("spec" below). Order of trust: the header
(:func:`imagebuilder.direct.qcow2.parse_header`), then each entry of a table when it is used.
"""

from __future__ import annotations

import array
import sys
import zlib

import zstandard

from imagebuilder.direct.qcow2 import Header, parse_header
from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.clustered import Clustered, Place
from imagebuilder.verify.disks.source import SECTOR, read

HEADER = 112  # bytes that parse_header wants
_OFFSET = (1 << 56) - (1 << 9)  # spec "L1 table entry", "Standard Cluster Descriptor": bits 9 to 55
_COMPRESSED = 1 << 62
_ZERO = 1  # spec "Standard Cluster Descriptor": bit 0, of version 3
_MAX_WINDOW = 8 << 20  # bytes: more than any cluster; what a frame may make us keep
_ANY_WINDOW = -15  # raw deflate; QEMU writes windows of 2^12


class Qcow2(Clustered):
    """The disk in a qcow2 image.

    Raises:
        ArtifactError: it is none that is read: damaged, encrypted, with a backing file or features that are unknown.
    """

    def __init__(self, file: DiskSource) -> None:
        header = parse_header(read(file, 0, min(HEADER, file.size)), file.size, name="the disk image")
        self._version, self._compression = header.version, header.compression
        bits = header.cluster_size.bit_length() - 1
        self._sectors_at = 62 - (bits - 8)  # spec "Compressed Clusters Descriptor": x
        entries = header.cluster_size // 8
        super().__init__(
            file, size=header.virtual_size, cluster=header.cluster_size, tables=_tables(file, header),
            entries=entries, code=">Q",
        )  # fmt: skip

    def _place(self, index: int, entry: int) -> Place | None:
        if entry & _COMPRESSED:
            offset = entry & ((1 << self._sectors_at) - 1)
            sectors = (entry & (_COMPRESSED - 1)) >> self._sectors_at
            length = (sectors + 1) * SECTOR - offset % SECTOR
            return Place(index, offset, min(length, self._file.size - offset), packed=True)
        offset = entry & _OFFSET
        if not offset or (self._version > 2 and entry & _ZERO):
            return None
        if offset % self._bytes:
            raise ArtifactError(f"the qcow2 image is damaged: its cluster {index} is at byte {offset}")
        return Place(index, offset, self._bytes, packed=False)

    def _unpack(self, place: Place) -> bytes:
        data = read(self._file, place.offset, place.length)
        try:
            if self._compression == "zlib":
                return zlib.decompressobj(_ANY_WINDOW).decompress(data, self._bytes)
            # Not decompress(): it takes as much memory as the frame says, and knows one frame only.
            tool = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            return tool.stream_reader(data, read_across_frames=True).read(self._bytes)
        except (zlib.error, zstandard.ZstdError) as error:
            raise ArtifactError(f"the qcow2 image is damaged: its cluster {place.number}: {error}") from error


def _tables(file: DiskSource, header: Header) -> array.array[int]:
    """Return where the L2 tables are, by the L1 table."""
    table = array.array("Q", read(file, header.l1_offset, 8 * header.l1_entries))
    if sys.byteorder == "little":
        table.byteswap()
    for at, entry in enumerate(table):
        table[at] = entry & _OFFSET
        if table[at] % header.cluster_size:
            raise ArtifactError(f"the qcow2 image is damaged: its L2 table {at} is at byte {table[at]}")
    return table
