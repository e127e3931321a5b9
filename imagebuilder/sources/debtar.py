"""The tar archive inside a Debian package, read with distrust: what it lists, and where each content lies.

Format: deb(5), "data.tar": old-style, ustar, and GNU's long names; nothing else is there. GNU tar's manual, "Basic Tar
Format". Nothing is unpacked here. A verified index says who made a package, not that its tar is harmless: a
member that would leave the root, a device, a pipe or an owner of the builder's is refused, whatever the index says.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, Protocol

from imagebuilder.errors import ArtifactError

BLOCK = 512
MEMBER_LIMIT = 200_000  # the largest package that we meet (a kernel) lists 6,000
NAMES_LIMIT = 64 << 20  # bytes of all names and targets together; there they are 0.6 MB
PATH_LIMIT, NAME_LIMIT = 4095, 255  # PATH_MAX and NAME_MAX of Linux, limits.h
DEPTH_LIMIT = 128  # folders that a path leads through; nested modules of a web application have 30
OWNER_LIMIT = 99  # higher ids are given at installation: Debian's policy, section 9.2.2
NOBODY = 65534  # the one that is fixed, too
TIME_LIMIT = 1 << 33  # seconds since 1970, year 2242
ANOTHER_WAY = "--root-builder mmdebstrap"  # unpacks with dpkg itself


class Data(Protocol):
    """Bytes in memory or of a mapped file."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, key: slice, /) -> bytes:
        """Return some of them."""


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    LINK = "link"


class Member(NamedTuple):
    """A member of the archive.

    Attributes:
        path: below the root, without a slash before it; the root is empty.
        mode: permission bits.
        mtime: seconds since 1970.
        offset, size: of a file's content in the archive, in bytes.
        target: of a symbolic link as it is; of a hard link another member's path.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    offset: int
    size: int
    target: bytes


_KINDS = {b"0": Kind.FILE, b"\0": Kind.FILE, b"1": Kind.LINK, b"2": Kind.SYMLINK, b"5": Kind.FOLDER}


def members(data: Data) -> Iterator[Member]:
    """Yield what the archive lists, in its order.

    Raises:
        ArtifactError: it is no tar archive, not whole, or lists what no package may have.
    """
    position, count, names = 0, 0, 0
    seen: dict[bytes, Kind] = {}
    long: dict[bytes, bytes] = {}
    while position + BLOCK <= len(data):
        header = data[position : position + BLOCK]
        if not header.strip(b"\0"):
            break
        kind, size = _checked(header), _number(header[124:136])
        start = position + BLOCK
        if size > len(data) - start:
            raise _bad("a member is longer than the archive")
        position = start + -(-size // BLOCK) * BLOCK
        count += 1
        if count > MEMBER_LIMIT:
            raise _bad(f"it lists more than {MEMBER_LIMIT} members")
        if kind in (b"L", b"K"):  # GNU tar: the name, or the target, of the member that follows
            long[kind] = _long(data, start, size, kind in long)
            continue
        member = _member(header, kind, start, size, long)
        long.clear()
        _known(member, seen)
        names += len(member.path) + len(member.target)
        if names > NAMES_LIMIT:
            raise _bad(f"its names have more than {NAMES_LIMIT} bytes")
        yield member
    else:
        raise _bad("it has no end")
    if long:
        raise _bad("a long name belongs to no member")


def _known(member: Member, seen: dict[bytes, Kind]) -> None:
    """Refuse a second member of a name, and a hard link to anything but a file before it."""
    if member.path in seen:
        raise _bad("it lists a name twice", member.path)
    if member.kind is Kind.LINK and seen.get(member.target) not in (Kind.FILE, Kind.LINK):
        raise _bad("a hard link leads to no file before it", member.path)
    seen[member.path] = member.kind


def _bad(why: str, path: bytes = b"") -> ArtifactError:
    where = f": {path[:200]!r}" if path else ""
    return ArtifactError(f"the package's archive cannot be used: {why}{where}", hint=ANOTHER_WAY)


def _checked(header: bytes) -> bytes:
    """Return the type of a header whose sum is right."""
    total = sum(header) - sum(header[148:156]) + 8 * 0x20
    if _number(header[148:156]) != total:
        raise _bad("a header's sum is wrong")
    return header[156:157]


def _number(field: bytes) -> int:
    """Return a number: octal digits between blanks, or base 256 where the first bit is set (GNU tar, "Extensions")."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise _bad("a number is negative or too large")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise _bad("a number is not octal")
    return int(digits or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _long(data: Data, start: int, size: int, again: bool) -> bytes:
    if again or size > PATH_LIMIT + 1:
        raise _bad("a long name is too long, or comes twice")
    return _text(data[start : start + size])


def _member(header: bytes, tag: bytes, start: int, size: int, long: dict[bytes, bytes]) -> Member:
    name, target = _text(header[:100]), _text(header[157:257])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = prefix + b"/" + name
    raw, target = long.get(b"L", name), long.get(b"K", target)
    path, kind = checked_path(raw), _KINDS.get(tag)
    if kind is None:
        raise _bad(f"a member is of the type {tag!r}: no file, folder or link", path)
    if kind is not Kind.FILE and size:
        raise _bad("something that is no file has a content", path)
    if kind is not Kind.FOLDER and (not path or raw.endswith(b"/")):
        raise _bad("a name that ends with a slash is no folder", path)
    if kind is Kind.SYMLINK and (not target or len(target) > PATH_LIMIT or target.count(b"/") > DEPTH_LIMIT):
        raise _bad("a symbolic link leads nowhere, or too far", path)
    uid, gid = _number(header[108:116]), _number(header[116:124])
    if any(owner > OWNER_LIMIT and owner != NOBODY for owner in (uid, gid)):
        raise _bad(f"the owner {uid}:{gid} is not one that every system has", path)
    mtime = _number(header[136:148])
    if mtime > TIME_LIMIT:
        raise _bad("it is from a time that no file system knows", path)
    return Member(
        path, kind, _number(header[100:108]) & 0o7777, uid, gid, mtime, start, size,
        checked_path(target) if kind is Kind.LINK else target if kind is Kind.SYMLINK else b"",
    )  # fmt: skip


def checked_path(name: bytes) -> bytes:
    """Return a member's name as a path below the root.

    Raises:
        ArtifactError: it is none, or leads out of the root.
    """
    path = name.removeprefix(b"./").removesuffix(b"/")
    if path in (b"", b"."):
        if name.strip(b"./"):
            raise _bad("a name is empty", name)
        return b""
    parts = path.split(b"/")
    if len(path) > PATH_LIMIT or len(parts) > DEPTH_LIMIT:
        raise _bad("a name is too long", name)
    if any(part in (b"", b".", b"..") or len(part) > NAME_LIMIT for part in parts):
        raise _bad("a name leads out of the root, or is none", name)
    if b"\n" in path or b"\0" in path:
        raise _bad("a name has a line break", name)  # dpkg's lists have one name a line
    return path
