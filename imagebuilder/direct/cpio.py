"""Archives that the kernel unpacks as its first root file system.

Reference: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst, format "newc". Nothing of the host
is in an archive: numbers count up, everything is root's, and of one time.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from imagebuilder.errors import ArtifactError

_MAGIC = b"070701"
_ALIGN = 4  # bytes: where headers and contents begin
_NAME_LIMIT = 4096  # bytes with the zero at the end: the kernel's PATH_MAX; it skips longer names in silence
_SIZE_LIMIT = 1 << 32  # a field holds eight hexadecimal digits
_END = "TRAILER!!!"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A name in an archive.

    Attributes:
        name: below the root, without a slash before it; its folder comes earlier in the archive.
        mode: with the bits of the kind, as in ``st_mode``.
        data: of a file; the target of a symbolic link.
        device: major and minor number of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(name: str) -> Member:
    """Return a folder."""
    return Member(name=name, mode=stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, program: bool = False) -> Member:
    """Return a file, which all may read and, where it is a program, start."""
    return Member(name=name, mode=stat.S_IFREG | (0o755 if program else 0o644), data=data)


def symlink(name: str, target: str) -> Member:
    """Return a symbolic link."""
    return Member(name=name, mode=stat.S_IFLNK | 0o777, data=target.encode())


def archive(members: Iterable[Member], epoch: int) -> bytes:
    """Return the archive of these members, in this order.

    Args:
        members: what is in it.
        epoch: the time of all of them, in seconds since 1970.

    Raises:
        ArtifactError: a name or a content is too long for the format.
    """
    parts = [_packed(member, number, epoch) for number, member in enumerate(members, start=1)]
    return b"".join([*parts, _packed(Member(name=_END, mode=0), 0, 0)])


def _packed(member: Member, number: int, epoch: int) -> bytes:
    name = member.name.encode() + b"\0"
    if len(name) > _NAME_LIMIT or len(member.data) >= _SIZE_LIMIT:
        raise ArtifactError(f"{member.name[:80]} is too long for an initramfs")
    # ino, mode, uid, gid, nlink, mtime, filesize, two of the device it is on, two of the device it is, namesize, check
    fields = (
        number, member.mode, 0, 0, 1, epoch, len(member.data), 0, 0, *member.device, len(name), 0,
    )  # fmt: skip
    head = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(head + name) + _padded(member.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
