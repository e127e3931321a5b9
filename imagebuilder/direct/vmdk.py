"""Writing stream-optimised VMDK images with threads: what OVF packages and VirtualBox boxes carry.

Reference: VMware's "Virtual Disk Format 5.0" technical note ("spec" below) and block/vmdk.c of QEMU. The file is:
header, descriptor, then per 32 MiB of the disk its grains and their table, then directory, footer, end of stream.
Grains are 64 KiB, compressed with zlib, and each has a marker in front that says where it belongs, so that the
file can be read from front to back. Grains that are zero are left out. The same disk and seed give the same file.
"""

from __future__ import annotations

import array
import struct
import sys
import uuid
import zlib
from pathlib import Path
from typing import IO

from imagebuilder import content
from imagebuilder.direct.clusters import CLUSTER, SECTOR, Compress, disk_size, pour
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource

# Spec "Hosted Sparse Extent Header": magic, version, flags, capacity, grain size, descriptor's offset and size,
# entries per grain table, redundant directory, directory, overhead, clean, line ends, compression (1: deflate).
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MAGIC, _VERSION = b"KDMV", 3
_FLAGS = 1 << 0 | 1 << 16 | 1 << 17  # line ends are there to be checked, grains are compressed, markers are there
_LINE_ENDS = b"\n \r\n"
_AT_END = (1 << 64) - 1  # the footer says where the directory is
_GRAIN = struct.Struct("<QI")  # spec "Grain Marker": first sector, bytes; the data follows
_MARKER = struct.Struct("<QII496x")  # spec "Metadata Marker": sectors that follow, 0, type
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)

_TABLE_ENTRIES = 512
_DESCRIPTOR_SECTORS = 20
_OVERHEAD = CLUSTER // SECTOR  # sectors before the first grain: one grain, as VMware's own tools do it
_HEADS, _TRACK = 255, 63  # the geometry that every BIOS takes; of no meaning to a GPT
_EXTENT = "disk.vmdk"  # of no meaning: the extent is this file itself, whatever its name
_NO_CID = (0xFFFFFFFF, 0xFFFFFFFE)  # spec "CID": these stand for "none"
_NAMES = uuid.UUID("6f7e8b8e-6a0c-5c1e-9b43-0c1d5d0f5f5a")  # the space of our disks' UUIDs


def image_uuid(seed: str) -> uuid.UUID:
    """Return the UUID of the disk that ``seed`` gives, which VirtualBox wants."""
    return uuid.uuid5(_NAMES, seed)


def write_vmdk(
    disk: DiskSource,
    out: Path,
    *,
    seed: str,
    level: int = 1,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
    lasting: bool = True,
) -> None:
    """Write a disk as a stream-optimised VMDK; the file appears under its name only when whole.

    Args:
        disk: what to write, a multiple of 512 bytes.
        out: the image to make or replace.
        seed: what the identifiers in it are derived from.
        level: of zlib, 1 to 9.
        threads: that read and compress; by default one for each core. The result does not depend on it.
        on_progress: called from this thread with bytes done and bytes in all; holes do not count.
        lasting: see :func:`content.writing`.

    Raises:
        ArtifactError: the disk is empty, not a multiple of 512 bytes, or was cut short meanwhile.
    """
    size = disk_size(disk)
    with content.writing(out, lasting=lasting) as stream:
        image = _Image(stream, size, seed)
        pour(
            disk,
            image,
            stream,
            lambda: _zlib(level),
            threads=threads,
            on_progress=on_progress,
            kind=f"zlib {level} {zlib.ZLIB_RUNTIME_VERSION}",
            lasting=lasting,
        )
        image.finish()


def _zlib(level: int) -> Compress:
    return lambda cluster: zlib.compress(cluster, level)


class _Image:
    """The file while it grows, front to back.

    Attributes:
        end: bytes written.
    """

    def __init__(self, stream: IO[bytes], size: int, seed: str) -> None:
        self._stream = stream
        self._capacity = -(-size // SECTOR)
        self.end = 0
        tables = -(-size // (CLUSTER * _TABLE_ENTRIES))
        self._directory = array.array("I", bytes(4 * tables))
        self._at = 0  # the table that grains go to
        self._table = _empty_table()
        self._write(self._header(_AT_END))
        self._write(descriptor(size, seed).encode().ljust(_DESCRIPTOR_SECTORS * SECTOR, b"\0"))
        self._write(bytes(_OVERHEAD * SECTOR - self.end))

    def add(self, index: int, blob: bytes) -> None:
        """Store the disk's grain ``index``, compressed; grains come in the order of the disk."""
        at, entry = divmod(index, _TABLE_ENTRIES)
        if at != self._at:
            self._finish_table()
            self._at = at
        self._table[entry] = self.end // SECTOR
        self._write(_GRAIN.pack(index * (CLUSTER // SECTOR), len(blob)) + blob)

    def finish(self) -> None:
        """Write the last table, the directory and the footer."""
        self._finish_table()
        directory = _little_endian(self._directory)
        directory = directory.ljust(-(-len(directory) // SECTOR) * SECTOR, b"\0")
        self._write(_MARKER.pack(len(directory) // SECTOR, 0, _DIRECTORY))
        start = self.end // SECTOR
        self._write(directory)
        self._write(_MARKER.pack(1, 0, _FOOTER) + self._header(start) + _MARKER.pack(0, 0, _END))

    def _header(self, directory: int) -> bytes:
        return _HEADER.pack(
            _MAGIC, _VERSION, _FLAGS, self._capacity, CLUSTER // SECTOR, 1, _DESCRIPTOR_SECTORS, _TABLE_ENTRIES,
            0, directory, _OVERHEAD, 0, _LINE_ENDS, 1,
        )  # fmt: skip

    def _finish_table(self) -> None:
        """Write the table of the grains before, unless there were none."""
        if any(self._table):
            table = _little_endian(self._table)
            self._write(_MARKER.pack(len(table) // SECTOR, 0, _TABLE))
            self._directory[self._at] = self.end // SECTOR
            self._write(table)
            self._table = _empty_table()

    def _write(self, data: bytes) -> None:
        padded = -(-len(data) // SECTOR) * SECTOR
        self._stream.write(data.ljust(padded, b"\0") if padded > len(data) else data)
        self.end += padded


def descriptor(size: int, seed: str) -> str:
    """Return the text that describes the disk (spec "The Descriptor")."""
    cid = int(content.content_id(["vmdk", seed])[:8], 16)
    cid = 0 if cid in _NO_CID else cid
    cylinders = min(-(-size // (SECTOR * _HEADS * _TRACK)), 65535)
    return f"""\
# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY {size // SECTOR} SPARSE "{_EXTENT}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{_HEADS}"
ddb.geometry.sectors = "{_TRACK}"
ddb.uuid.image = "{image_uuid(seed)}"
ddb.uuid.parent = "{uuid.UUID(int=0)}"
ddb.uuid.modification = "{uuid.UUID(int=0)}"
ddb.uuid.parentmodification = "{uuid.UUID(int=0)}"
"""


def _empty_table() -> array.array[int]:
    return array.array("I", bytes(4 * _TABLE_ENTRIES))


def _little_endian(numbers: array.array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
