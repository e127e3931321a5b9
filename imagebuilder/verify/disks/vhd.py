"""Finding the disk in a VHD of unknown origin.

Reference: Microsoft's "Virtual Hard Disk Image Format Specification" 1.0, "Hard Disk Footer Format".
"""

from __future__ import annotations

import struct

from imagebuilder.direct.virtual import DiskSource
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks.source import SECTOR, Window, checked_size, read

COOKIE = b"conectix"
_FIXED, _KINDS = 2, {3: "dynamic", 4: "differencing"}
_SIZE_AT, _KIND_AT, _CHECKSUM_AT = 48, 60, 64


def fixed_disk(file: DiskSource) -> Window:
    """Return the disk in a fixed VHD: all before the footer.

    Raises:
        ArtifactError: it is not fixed, or damaged.
    """
    footer = read(file, file.size - SECTOR, SECTOR) if file.size > SECTOR else b""
    if not footer.startswith(COOKIE):
        raise ArtifactError("the VHD is cut short or damaged: it has no footer")
    kind, checksum = struct.unpack_from(">II", footer, _KIND_AT)
    (size,) = struct.unpack_from(">Q", footer, _SIZE_AT)
    if checksum != ~(sum(footer) - sum(footer[_CHECKSUM_AT : _CHECKSUM_AT + 4])) & 0xFFFFFFFF:
        raise ArtifactError("the VHD is damaged: its footer does not have the checksum that it states")
    if kind != _FIXED:
        raise ArtifactError(
            f"a {_KINDS.get(kind, 'strange')} VHD is not read, as no cloud takes it",
            hint="qemu-img convert -O vpc -o subformat=fixed,force_size IN OUT",
        )
    if size != file.size - SECTOR:
        raise ArtifactError(f"the VHD is cut short or damaged: a disk of {size} bytes in a file of {file.size}")
    return Window(file, 0, checked_size(size))
