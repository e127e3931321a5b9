"""A layer as one file: its tree and its volumes in a tar (:mod:`imagebuilder.direct.remote.members`), under zstd.

The same layer gives the same bytes, on any machine with the same zstd (RFC 8878). Owners, modes, times to the
nanosecond, extended attributes, hard links, whiteouts and opaque folders are in it. Reading trusts nothing: an archive
writes into an empty folder, below folders that it made itself, and never through a link.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn, Protocol, cast

import zstandard

from imagebuilder.content import CHUNK, cores
from imagebuilder.direct.remote import members
from imagebuilder.direct.remote.members import DEVICE, FILE, FOLDER, KINDS, LINK, PIPE, SYMLINK, Member, refused
from imagebuilder.direct.rootwriter import CREATE
from imagebuilder.direct.seals import walk
from imagebuilder.direct.tree import PREFIXES, REFUSED
from imagebuilder.sources.debtar import BLOCK

LEVEL = 3  # of zstd: above the speed of most networks already
WINDOW = 1 << 23  # bytes: what level 3 looks back at, and all the memory that reading takes
MEMBER_LIMIT = 500_000  # a base layer has 14,000
NAMES_LIMIT = 256 << 20  # bytes of all names; there they have 0.8 MB
END = bytes(2 * BLOCK)


class Output(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes, /) -> int:
        """Take all of some bytes."""


def write_archive(layer: Path, out: Output) -> int:
    """Write the archive of a layer's folder.

    Args:
        layer: has ``root`` and ``volumes``; all else in it is left out.
        out: gets the archive.

    Returns:
        Bytes of the archive unpacked.

    Raises:
        ArtifactError: something in it cannot be in an archive, such as a socket.
        OSError: it cannot be read, or ``out`` not be written.
    """
    total = 0
    # One thread or more: zstd's bytes are the same for every number but none.
    packer = zstandard.ZstdCompressor(level=LEVEL, threads=cores(), write_checksum=True)
    with packer.stream_writer(cast(IO[bytes], out), closefd=False) as stream:
        for member, path in _members(layer):
            for piece in _spelt(member, path):
                stream.write(piece)
                total += len(piece)
        stream.write(END)
    return total + len(END)


def _members(layer: Path) -> Iterator[tuple[Member, bytes]]:
    """Yield every member, and where its content is; a file's first name comes before its other ones."""
    base, first = os.fsencode(layer) + b"/", dict[tuple[int, int], bytes]()
    kinds = {kind: tag for tag, kind in KINDS.items()}
    for name, status in walk(layer):
        path, kind = base + name, kinds.get(stat.S_IFMT(status.st_mode), b"")
        target, xattrs = b"", tuple[tuple[str, bytes], ...]()
        if kind != FOLDER and status.st_nlink > 1:
            target = first.setdefault((status.st_dev, status.st_ino), name)
        if target not in (b"", name):
            kind = LINK
        else:
            target = os.readlink(path) if kind == SYMLINK else b""  # noqa: PTH115 - bytes: names need not be UTF-8
            xattrs = _attributes(path, name)
        yield Member(
            path=name, kind=kind, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid,
            mtime_ns=status.st_mtime_ns, size=status.st_size if kind == FILE else 0,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind == DEVICE else (0, 0),
            target=target, xattrs=xattrs,
        ), path  # fmt: skip


def _attributes(path: bytes, name: bytes) -> tuple[tuple[str, bytes], ...]:
    found = []
    for key in sorted(os.listxattr(path, follow_symlinks=False)):
        if key.startswith(PREFIXES) and key.rpartition(".")[2] in REFUSED and not name.startswith(b"volumes/"):
            raise refused(f"the attribute {key}", name)
        if members.kept(key, name):
            found.append((key, os.getxattr(path, key, follow_symlinks=False)))
    return tuple(found)


def _spelt(member: Member, path: bytes) -> Iterator[bytes]:
    yield members.encode(member)
    if member.size:
        left = member.size
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - bytes
            while left and (piece := stream.read(min(CHUNK, left))):
                yield piece
                left -= len(piece)
        if left:
            raise refused("a file that changes while it is read", member.path)
        yield bytes(-member.size % BLOCK)


def read_archive(archive: IO[bytes], folder: Path, *, unpacked: int, until: float = float("inf")) -> None:
    """Unpack an archive into a folder that has an empty ``root`` and an empty ``volumes``, and nobody else writes to.

    Args:
        archive: read from where it stands.
        folder: where to.
        unpacked: the bytes that it must have unpacked.
        until: when to give up, of the monotonic clock.

    Raises:
        ArtifactError: it is no archive of a layer; what was unpacked of it is of no use.
        TimeoutError: it takes too long.
        OSError: the file system does not take it.
    """
    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    try:
        with unpacker.stream_reader(archive, read_size=CHUNK, closefd=False) as stream:
            source = _Source(stream.read, unpacked, until)
            writer = _Writer(folder)
            while (front := source.take(BLOCK)) and (size := members.extended_size(front)) is not None:
                extended = source.padded(size)
                writer.write(members.decode(front, extended, source.take(BLOCK)), source)
            if source.take(BLOCK) != END[BLOCK:] or source.left or stream.read(1):
                raise refused("something after its end")
            writer.finish()
    except zstandard.ZstdError as error:
        raise refused(f"it is not compressed as they are ({error})") from error


class _Source:
    """The unpacked bytes of an archive: as many as were stated, within a time."""

    def __init__(self, read: Callable[[int], bytes], size: int, until: float) -> None:
        self._read, self.left, self._until = read, size, until

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        if size > self.left:
            raise refused("it is longer than was stated, or was cut off")
        if time.monotonic() > self._until:
            raise TimeoutError("unpacking takes too long")
        data = self._read(size)
        if len(data) != size:
            raise refused("it was cut off")
        self.left -= size
        return data

    def padded(self, size: int) -> bytes:
        """Return ``size`` bytes, and skip the zeros that fill their last block."""
        data = self.take(size)
        self.skip(size)
        return data

    def skip(self, size: int) -> None:
        """Skip the zeros behind a content of ``size`` bytes."""
        if self.take(-size % BLOCK).strip(b"\0"):
            raise refused("a padding that is not of zeros")


class _Writer:
    """Writes members: into folders that it made, each name once."""

    def __init__(self, folder: Path) -> None:
        self._base = os.fsencode(folder) + b"/"
        self._seen: dict[bytes, bytes] = {}
        self._folders: list[Member] = []
        self._names = 0

    def write(self, member: Member, source: _Source) -> None:
        """Write one member; a folder's owner, mode and time come at the end."""
        name, path = member.path, self._base + member.path
        self._names += len(name)
        if name in self._seen or len(self._seen) >= MEMBER_LIMIT or self._names > NAMES_LIMIT:
            raise refused("a name twice, or too many", name)
        if name not in members.FOLDERS and self._seen.get(name.rpartition(b"/")[0]) != FOLDER:
            raise refused("a name in a folder that is not there", name)
        self._seen[name] = member.kind
        if member.kind == LINK:
            if self._seen.get(member.target, FOLDER) == FOLDER or member.target == name:
                raise refused("a hard link to nothing before it", name)
            os.link(self._base + member.target, path, follow_symlinks=False)
            return
        if member.kind == FOLDER:
            self._folders.append(member)
            if name not in members.FOLDERS:
                os.mkdir(path, 0o700)  # noqa: PTH102 - bytes: names need not be UTF-8
            return
        self._make(member, path, source)
        _finish(member, path)

    def _make(self, member: Member, path: bytes, source: _Source) -> None:
        if member.kind == FILE:
            descriptor = os.open(path, CREATE, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as stream:
                left = member.size
                while left:
                    piece = source.take(min(CHUNK, left))
                    _write(stream, piece)
                    left -= len(piece)
            source.skip(member.size)
        elif member.kind == SYMLINK:
            os.symlink(member.target, path)  # noqa: PTH211
        elif member.kind == PIPE:
            os.mkfifo(path, 0o600)
        elif member.kind == DEVICE:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*member.device))
        else:
            _never(member)

    def finish(self) -> None:
        """Give the folders what they have, the innermost first: nothing more gets into them.

        Raises:
            ArtifactError: one that every layer has is not there.
        """
        if missing := [name for name in members.FOLDERS if name not in self._seen]:
            raise refused("a layer without it", missing[0])
        for member in reversed(self._folders):
            _finish(member, self._base + member.path)


def _write(stream: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _finish(member: Member, path: bytes) -> None:
    """Set owner, then mode, which a change of the owner takes bits from, then attributes, then times."""
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if member.kind != SYMLINK:
        os.chmod(path, member.mode)  # noqa: PTH101
    for name, value in member.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    os.utime(path, ns=(member.mtime_ns, member.mtime_ns), follow_symlinks=False)


def _never(member: Member) -> NoReturn:
    raise AssertionError(member.kind)  # members.decode lets no other kind through
