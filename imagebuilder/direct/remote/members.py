"""The members of a layer's archive: a tar that is spelt in exactly one way.

POSIX.1-2017, pax, "pax Extended Header" and "ustar Interchange Format"; extended attributes as star and GNU tar write
them (SCHILY.xattr). Each member is an extended header, a header, and its content. What a reader has understood it
spells again, and compares: there is no second spelling, and no byte that means nothing. No I/O in here.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from imagebuilder.direct.tree import PREFIXES
from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debtar import BLOCK, DEPTH_LIMIT, NAME_LIMIT, PATH_LIMIT, TIME_LIMIT

FOLDERS = (b"root", b"volumes")  # what a layer has; all else is below them
SIZE_LIMIT = 1 << 33  # bytes of a file: what 11 octal digits can say, 8 GiB
OWNER_LIMIT = 1 << 21  # 7 octal digits
EXTENDED_LIMIT = 1 << 20  # bytes of an extended header: xattr(7) lets an attribute have 64 KiB
DIGITS = 19  # of the longest number in an extended header; more is not read
NANO = 1_000_000_000
XATTR = b"SCHILY.xattr."
ATTRIBUTES = ("user.", "trusted.overlay.", "security.capability", "system.posix_acl_")
OPAQUE = tuple(f"{prefix}opaque" for prefix in PREFIXES)
WHITEOUT = (0, 0)  # the character device by which overlayfs hides a name
# Devices that a root tree is made with: null, zero, full, random, urandom, tty, console, ptmx (devices.txt of Linux).
DEVICES = (WHITEOUT, (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))

FILE, LINK, SYMLINK, DEVICE, FOLDER, PIPE = b"0", b"1", b"2", b"3", b"5", b"6"
KINDS = {
    FILE: stat.S_IFREG, SYMLINK: stat.S_IFLNK, DEVICE: stat.S_IFCHR, FOLDER: stat.S_IFDIR, PIPE: stat.S_IFIFO,
}  # fmt: skip


class Member(NamedTuple):
    """A name in the archive.

    Attributes:
        path: ``root`` or ``volumes``, or below one of them.
        kind: its typeflag.
        mode: permission bits.
        mtime_ns: nanoseconds since 1970.
        size: bytes of a file.
        device: major and minor number of a device.
        target: of a symbolic link as it is; of a hard link another member's path.
        xattrs: extended attributes, by name; a hard link has none of its own.
    """

    path: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()


def refused(why: str, path: bytes = b"") -> ArtifactError:
    """Return the error of a member, or of a file, that an archive cannot have."""
    return ArtifactError(f"a layer's archive cannot have this: {why}{f': {path[:200]!r}' if path else ''}")


def kept(name: str, path: bytes) -> bool:
    """Tell whether an archive carries an extended attribute of a file at ``path``.

    What a kernel's security module adds, and overlayfs's notes about the folders of one machine (origin, impure, uuid),
    belong to that machine. A volume may hold overlays of its own.
    """
    if name.startswith(PREFIXES) and not path.startswith(b"volumes/"):
        return name in OPAQUE
    return name.startswith(ATTRIBUTES)


def check(member: Member) -> None:
    """Refuse a member that is not one of a layer's.

    Raises:
        ArtifactError: it is not.
    """
    path = member.path
    _check_path(path)
    if path in FOLDERS and member.kind != FOLDER:
        raise refused("what a layer's folder is called is no folder", path)
    if member.kind not in (*KINDS, LINK):
        raise refused("it is no file, folder, link or device", path)
    if member.kind == DEVICE and member.device not in DEVICES:
        raise refused("a device that a root tree is not made with", path)
    if member.kind == LINK:
        _check_path(member.target)
    if member.kind == SYMLINK and (not 0 < len(member.target) <= PATH_LIMIT or b"\0" in member.target):
        raise refused("a symbolic link leads nowhere, or too far", path)
    if not (0 <= member.size < SIZE_LIMIT and 0 <= member.mtime_ns < TIME_LIMIT * NANO):
        raise refused("its size or its time is out of bounds", path)
    if not (0 <= member.uid < OWNER_LIMIT and 0 <= member.gid < OWNER_LIMIT and 0 <= member.mode <= 0o7777):
        raise refused("its owner or its mode is out of bounds", path)
    if member.kind == SYMLINK and member.mode != 0o777:  # Linux knows no other
        raise refused("its mode is out of bounds", path)
    names = [name for name, _ in member.xattrs]
    if len(set(names)) < len(names) or any(not kept(name, path) or "=" in name or "\0" in name for name in names):
        raise refused("an extended attribute that does not belong there", path)
    only = ((member.size, FILE), (member.device != (0, 0), DEVICE), (member.target, LINK + SYMLINK))
    if any(value and member.kind not in kinds for value, kinds in only) or (names and member.kind == LINK):
        raise refused("it says something that its kind does not have", path)


def encode(member: Member) -> bytes:
    """Return the headers of a member: the one spelling that there is.

    Raises:
        ArtifactError: it cannot be a member.
    """
    check(member)
    records = [(b"path", member.path)]
    if member.target:
        records.append((b"linkpath", member.target))
    seconds, fraction = divmod(member.mtime_ns, NANO)
    records.append((b"mtime", b"%d.%09d" % (seconds, fraction)))
    records += [(XATTR + name.encode("utf-8", "surrogateescape"), value) for name, value in sorted(member.xattrs)]
    extended = b"".join(_record(key, value) for key, value in records)
    if len(extended) > EXTENDED_LIMIT:
        raise refused("its names and attributes are too long", member.path)
    front = _header(b"x", b"pax", 0, 0, 0, len(extended), 0, (0, 0))
    back = _header(
        member.kind, member.path[:100], member.mode, member.uid, member.gid, member.size, seconds, member.device
    )
    return b"".join((front, extended, bytes(-len(extended) % BLOCK), back))


def extended_size(header: bytes) -> int | None:
    """Return the bytes of the extended header that this header begins; None at the archive's end.

    Raises:
        ArtifactError: it begins none.
    """
    if header == bytes(BLOCK):
        return None
    size = _octal(header[124:135])
    if header[156:157] != b"x" or not 0 < size <= EXTENDED_LIMIT:
        raise refused("a header that begins no member")
    return size


def decode(front: bytes, extended: bytes, header: bytes) -> Member:
    """Return the member that these headers spell.

    Args:
        front: the first header.
        extended: what it announces, without the padding.
        header: the second one.

    Raises:
        ArtifactError: they are not as :func:`encode` writes them.
    """
    path, target, mtime, xattrs = b"", b"", -1, list[tuple[str, bytes]]()
    for key, value in _records(extended):
        if key == b"path":
            path = value
        elif key == b"linkpath":
            target = value
        elif key == b"mtime":
            mtime = _nanoseconds(value)
        elif key.startswith(XATTR):
            xattrs.append((key.removeprefix(XATTR).decode("utf-8", "surrogateescape"), value))
    found = Member(
        path=path, kind=header[156:157], mode=_octal(header[100:107]), uid=_octal(header[108:115]),
        gid=_octal(header[116:123]), mtime_ns=mtime, size=_octal(header[124:135]),
        device=(_octal(header[329:336]), _octal(header[337:344])), target=target, xattrs=tuple(xattrs),
    )  # fmt: skip
    if encode(found) != front + extended + bytes(-len(extended) % BLOCK) + header:
        raise refused("a header that is not spelt as they are", path)
    return found


def _check_path(path: bytes) -> None:
    parts = path.split(b"/")
    if parts[0] not in FOLDERS or len(path) > PATH_LIMIT or len(parts) > DEPTH_LIMIT:
        raise refused("a name outside of the layer, or one that is too long", path)
    if any(part in (b"", b".", b"..") or len(part) > NAME_LIMIT for part in parts) or b"\0" in path:
        raise refused("a name that leads elsewhere, or is none", path)


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``<length> <key>=<value>`` and a line break; the length counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + DIGITS + 1].partition(b" ")
        if not space or not digits.isdigit() or len(data) - position < int(digits):
            raise refused("a record that is longer than its header")
        record = data[position + len(digits) + 1 : position + int(digits)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise refused("a record that is none")
        yield key, value[:-1]
        position += int(digits)


def _nanoseconds(text: bytes) -> int:
    seconds, _, fraction = text.partition(b".")
    if len(text) > DIGITS + 1 or not seconds.isdigit() or not fraction.isdigit() or len(fraction) != 9:
        raise refused("a time that is none")
    return int(seconds) * NANO + int(fraction)


def _octal(field: bytes) -> int:
    if not field or field.strip(b"01234567"):
        raise refused("a number that is not octal")
    return int(field, 8)


def _header(
    kind: bytes, name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, device: tuple[int, int]
) -> bytes:  # fmt: skip
    fields = b"".join((
        name.ljust(100, b"\0"), b"%07o\0%07o\0%07o\0" % (mode, uid, gid), b"%011o\0%011o\0" % (size, mtime), b" " * 8,
        kind, bytes(100), b"ustar\00000", bytes(64), b"%07o\0%07o\0" % device, bytes(167),
    ))  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]
