"""Writing fixed VHD disks, as Azure takes them: the raw disk with a footer of 512 bytes.

Reference: Microsoft's "Virtual Hard Disk Image Format Specification" 1.0, "Hard Disk Footer Format". Azure wants the
disk to be a multiple of 1 MiB, and looks at "Current Size" alone.
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

from imagebuilder import content
from imagebuilder.direct.clusters import disk_size
from imagebuilder.direct.sparse import OnProgress
from imagebuilder.direct.virtual import DiskSource, copy_data

MIB = 1 << 20
# Cookie, features (2: always set), version 1.0, data offset (none: fixed), time, creator, its version, its host,
# original and current size, geometry, type (2: fixed), checksum, UUID, saved state.
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_NAMES = uuid.UUID("0bb0c8a4-3f50-5b0e-8f0c-6f8f4d6a7a11")
_NO_OFFSET = (1 << 64) - 1
_CHECKSUM_AT = 64
_CREATOR = b"win "  # QEMU takes the size, and not the geometry, only from creators that it knows (block/vpc.c)


def write_vhd(
    disk: DiskSource, out: Path, *, seed: str, on_progress: OnProgress | None = None, lasting: bool = True
) -> None:  # fmt: skip
    """Write a disk as a fixed VHD, itself sparse; the file appears under its name only when whole.

    Raises:
        ArtifactError: the disk is empty, not a multiple of 512 bytes, or was cut short meanwhile.
    """
    size = -(-disk_size(disk) // MIB) * MIB
    with content.writing(out, lasting=lasting) as stream:
        stream.truncate(size)
        copy_data(disk, stream, on_progress)
        stream.seek(size)
        stream.write(footer(size, seed))


def footer(size: int, seed: str) -> bytes:
    """Return the footer of a fixed disk of ``size`` bytes; times are zero, and the UUID follows from ``seed``."""
    data = bytearray(_FOOTER.pack(
        b"conectix", 2, 0x00010000, _NO_OFFSET, 0, _CREATOR, 0x00010000, b"Wi2k", size, size, *geometry(size // 512),
        2, 0, uuid.uuid5(_NAMES, seed).bytes, 0,
    ))  # fmt: skip
    struct.pack_into(">I", data, _CHECKSUM_AT, ~sum(data) & 0xFFFFFFFF)
    return bytes(data)


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track, by the algorithm of the specification's appendix."""
    total = min(sectors, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        track, heads = 255, 16
    else:
        track = 17
        heads = max(4, -(-(total // track) // 1024))
        if total // track >= heads * 1024 or heads > 16:
            track, heads = 31, 16
        if total // track >= heads * 1024:
            track, heads = 63, 16
    return total // track // heads, heads, track
