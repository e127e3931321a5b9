"""The bytes of an inode (doc "inodes")."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache

from imagebuilder.direct.ext4.checksum import crc32c
from imagebuilder.direct.ext4.geometry import BLOCK, INODE_SIZE

# struct ext4_inode: mode, owner, size, atime, ctime, mtime, dtime, group, links, sectors, flags, version, i_block,
# generation, attributes' block, size's high bits, obsolete, then high bits of sectors, attributes' block, owner and
# group, checksum, reserved; then the part behind 128 bytes: its size, checksum's high bits, the extra bits of ctime,
# mtime, atime, crtime with its extra bits, version's high bits, project.
_INODE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII")
EXTRA_SIZE = _INODE.size - 128
ROOM = INODE_SIZE - _INODE.size  # bytes for extended attributes
_CHECKSUM_LOW, _CHECKSUM_HIGH = 0x7C, 0x82  # where the two halves of the checksum are
FLAG_EXTENTS = 0x80000
FAST_SYMLINK = 60  # bytes of target from which on it does not fit i_block (doc "ifork")
SECTORS_PER_BLOCK = BLOCK // 512
# Seconds that 34 bits hold (doc "inodes", timestamps).
_FIRST_SECOND, _LAST_SECOND = -(1 << 31), (1 << 34) - (1 << 31) - 1
_NANO = 1_000_000_000


@dataclass(kw_only=True, slots=True)
class Inode:
    """What an inode says.

    Attributes:
        mtime_ns: of content and attributes, in nanoseconds since 1970.
        created: the same, in seconds.
        blocks: that it takes in all.
        body: i_block.
        attributes: block of attributes, or 0.
        inside: attributes in the inode itself.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    links: int = 1
    mtime_ns: int
    created: int
    blocks: int = 0
    flags: int = 0
    body: bytes = bytes(60)
    attributes: int = 0
    inside: bytes = b""

    def packed(self, seed: int) -> bytes:
        """Return its 256 bytes.

        Args:
            seed: of the inode's checksums.
        """
        time, extra = _time(self.mtime_ns)
        created, created_extra = _time(self.created * _NANO)
        sectors = self.blocks * SECTORS_PER_BLOCK
        data = bytearray(_INODE.pack(
            self.mode, self.uid & 0xFFFF, self.size & 0xFFFFFFFF, time, time, time, 0, self.gid & 0xFFFF, self.links,
            sectors & 0xFFFFFFFF, self.flags, 0, self.body, 0, self.attributes & 0xFFFFFFFF, self.size >> 32, 0,
            sectors >> 32, self.attributes >> 32, self.uid >> 16, self.gid >> 16, 0, 0,
            EXTRA_SIZE, 0, extra, extra, extra, created, created_extra, 0, 0,
        ) + self.inside.ljust(ROOM, b"\0"))  # fmt: skip
        checksum = crc32c(seed, bytes(data))
        data[_CHECKSUM_LOW : _CHECKSUM_LOW + 2] = (checksum & 0xFFFF).to_bytes(2, "little")
        data[_CHECKSUM_HIGH : _CHECKSUM_HIGH + 2] = (checksum >> 16).to_bytes(2, "little")
        return bytes(data)


@lru_cache(4096)  # the files of a package share their times
def _time(nanoseconds: int) -> tuple[int, int]:
    """Return seconds' low 32 bits, and nanoseconds with the seconds' two high bits."""
    seconds, rest = divmod(nanoseconds, _NANO)
    seconds = min(max(seconds, _FIRST_SECOND), _LAST_SECOND)
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, rest << 2 | (seconds - signed) >> 32 & 3


def device_body(rdev: int) -> bytes:
    """Return i_block of a device node (fs/ext4/inode.c, ext4_do_update_inode(); linux/kdev_t.h)."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major < 256 and minor < 256:
        return struct.pack("<I", major << 8 | minor).ljust(60, b"\0")
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12).ljust(60, b"\0")


def is_device(mode: int) -> bool:
    """Tell whether a mode is that of a device node."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
