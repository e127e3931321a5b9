"""Unpacking the disk of an archive of unknown origin: the cloud's tar.gz, Vagrant's box, the OVA.

Read from front to back, once; names serve to find the disk, nothing is written under them. Formats: RFC 1952,
POSIX.1-1988 "ustar"; GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files", "Old GNU Format".
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imagebuilder.content import CHUNK
from imagebuilder.direct.sparse import nonzero_runs
from imagebuilder.errors import ArtifactError
from imagebuilder.publish.boxfile import GZIP, METADATA, Plain
from imagebuilder.sources.archive import BLOCK, FILE, FOLDER, MAX_PAX, PAX, PAX_RENAMES, parse_header, parse_number
from imagebuilder.sources.manifests import MalformedError
from imagebuilder.verify.disks.source import MAX_DISK

MAX_WRITTEN = 32 << 30  # bytes that are no zeros; a node's disk has 2 GiB of them
MAX_ENTRIES = 256
TAR, TAR_AT = b"ustar", 257
_MAX_PIECES = 1 << 20  # of a sparse file; a node's disk has 2,000
_SPARSE, _LONG_NAMES = b"S", (b"K", b"L")
_NUMBER = 12  # bytes of a number in a header
_PIECES_AT, _IN_HEADER, _MORE_AT, _REAL_SIZE_AT = 386, 4, 482, 483
_IN_EXTENSION, _EXTENSION_MORE_AT = 21, 504
# Names of disks that may be raw: those the formats fix. Others are known by what they start with.
_RAW_NAMES = ("disk.raw", "box.img")
_MAGICS = (b"QFI\xfb", b"KDMV")
_DESCRIPTION = ".ovf"
_HINT = "an archive is read when it holds one disk: a cloud's disk.raw in a tar.gz, a Vagrant box, an OVA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file in a tar: ``stored`` bytes follow, which are at ``pieces`` (offset, length) of its ``size`` bytes."""

    name: str
    stored: int
    size: int
    pieces: tuple[tuple[int, int], ...]


def is_archive(start: bytes) -> bool:
    """Tell by the first 512 bytes of a file whether it is a tar, or compressed as one may be."""
    return start.startswith(GZIP) or start[TAR_AT : TAR_AT + len(TAR)] == TAR


def unpack(path: Path, scratch: Path) -> tuple[str, Path]:
    """Unpack the disk of an archive into a new sparse file.

    Args:
        path: the archive.
        scratch: the folder for the file, which the caller removes.

    Returns:
        What the archive is (``tar.gz``, ``box`` or ``ova``), and the file.

    Raises:
        ArtifactError: it is none, is damaged, holds no disk or more than one, or one beyond all limits.
    """
    handle, name = tempfile.mkstemp(prefix="disk-", dir=scratch)
    try:
        with os.fdopen(handle, "wb") as out, path.open("rb") as stream:
            kind = _unpack(Plain(stream, path.stat().st_size), out)
    except BaseException as error:
        Path(name).unlink()
        if isinstance(error, MalformedError | zlib.error):
            raise ArtifactError(f"{path} is no archive with a disk: {error}", hint=_HINT) from error
        if isinstance(error, OSError):
            raise ArtifactError(
                f"{path} cannot be unpacked: {error.strerror or error}", hint=f"df {scratch}"
            ) from error
        raise
    return kind, Path(name)


def _unpack(tar: Plain, out: IO[bytes]) -> str:
    names, disk = [], ""
    for member in _members(tar):
        names.append(member.name)
        head = tar.read(min(member.stored, BLOCK))
        if not (head.startswith(_MAGICS) or member.name.rpartition("/")[2] in _RAW_NAMES):
            _skip(tar, member, len(head))
            continue
        if disk:
            raise MalformedError(f"it holds more than one disk: {disk!r} and {member.name!r}")
        disk = member.name
        _write(tar, member, head, out)
    while tar.read(CHUNK):  # to the end, where the checksum of a gzip stream is
        pass
    if not disk:
        raise MalformedError("no disk is in it")
    if METADATA in names:
        return "box"
    return "ova" if any(name.endswith(_DESCRIPTION) for name in names) else "tar.gz"


def _members(tar: Plain) -> Iterator[Member]:
    """Yield the files; the caller reads or skips each one's bytes before it asks for the next."""
    for _ in range(MAX_ENTRIES):
        block = tar.read(BLOCK)
        member = _member(block, tar)
        if member is None:
            return
        kind = block[156:157]
        if kind in (*FILE, _SPARSE):
            yield member
        elif kind in (*PAX, *_LONG_NAMES):
            if member.stored > MAX_PAX:
                raise MalformedError("a header of a tar is too large")
            if PAX_RENAMES.search(tar.read(member.stored)) and kind in PAX:
                raise MalformedError("a pax header renames or resizes an entry")
            _skip(tar, member, member.stored)
        elif kind != FOLDER or member.stored:
            raise MalformedError(f"{member.name!r} is neither a file nor a folder")
    raise MalformedError(f"more than {MAX_ENTRIES} entries")


def _member(block: bytes, tar: Plain) -> Member | None:
    """Return what a header says, reading those that follow it; None at the end of the archive."""
    header = parse_header(block)
    if header is None:
        return None
    if header.size > MAX_DISK:
        raise MalformedError(f"{header.name!r} has {header.size} bytes")
    if header.kind != _SPARSE:
        return Member(name=header.name, stored=header.size, size=header.size, pieces=((0, header.size),))
    pieces = _pieces(block, _PIECES_AT, _IN_HEADER)
    more, size = block[_MORE_AT], parse_number(block[_REAL_SIZE_AT : _REAL_SIZE_AT + _NUMBER])
    while more:
        extension = tar.read(BLOCK)
        if len(extension) < BLOCK or len(pieces) > _MAX_PIECES:
            raise MalformedError(f"the list of {header.name!r} is cut off, or too long")
        pieces += _pieces(extension, 0, _IN_EXTENSION)
        more = extension[_EXTENSION_MORE_AT]
    _check_pieces(pieces, header.size, size)
    return Member(name=header.name, stored=header.size, size=size, pieces=tuple(pieces))


def _pieces(block: bytes, at: int, count: int) -> list[tuple[int, int]]:
    """Return offset and length of the pieces that a block lists; those after the last are empty."""
    fields = [block[start : start + _NUMBER] for start in range(at, at + 2 * count * _NUMBER, _NUMBER)]
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [(parse_number(offset), parse_number(length)) for offset, length in pairs if offset.strip(b"\0")]


def _check_pieces(pieces: list[tuple[int, int]], stored: int, size: int) -> None:
    free = 0
    for offset, length in pieces:
        if offset < free:
            raise MalformedError("the pieces of a sparse file are not in order")
        free = offset + length
    if not free <= size <= MAX_DISK or sum(length for _, length in pieces) != stored:
        raise MalformedError(f"the pieces of a sparse file do not make up its {size} bytes")


def _write(tar: Plain, member: Member, head: bytes, out: IO[bytes]) -> None:
    """Write a disk, with a hole wherever it is zero; ``head`` is what was read of it.

    One piece is written while the next one is uncompressed.
    """
    out.truncate(member.size)
    written, running = 0, Future[int]()
    running.set_result(0)
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        for at, chunk in _chunks(tar, member, head):
            written = _added(written, running)
            running = pool.submit(_put, out, at, chunk)
        _added(written, running)
    tar.read(-member.stored % BLOCK)


def _added(written: int, running: Future[int]) -> int:
    """Return what has been written in all, when a piece is."""
    written += running.result()
    if written > MAX_WRITTEN:
        raise MalformedError(f"its disk has more than {MAX_WRITTEN >> 30} GiB that are not zero")
    return written


def _chunks(tar: Plain, member: Member, head: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what is stored of a file, with its place."""
    for offset, length in member.pieces:
        at = offset
        while at < offset + length:
            wanted = min(CHUNK, offset + length - at)
            # One piece, so that blocks of zeros stand where they will stand in the file.
            chunk, head = head[:wanted] + tar.read(max(wanted - len(head), 0)), head[wanted:]
            if not chunk:
                raise MalformedError(f"the tar is cut off in {member.name!r}")
            yield at, chunk
            at += len(chunk)


def _put(out: IO[bytes], at: int, chunk: bytes) -> int:
    """Write what is not zero; return how much that was."""
    written = 0
    for start, stop in nonzero_runs(chunk, len(chunk)):
        out.seek(at + start)
        written += out.write(memoryview(chunk)[start:stop])
    return written


def _skip(tar: Plain, member: Member, done: int) -> None:
    """Read over what is left of a file, of which ``done`` bytes were read, and over what fills its last block."""
    left = -(-member.stored // BLOCK) * BLOCK - done
    while left:
        piece = tar.read(min(CHUNK, left))
        if not piece:
            raise MalformedError(f"the tar is cut off in {member.name!r}")
        left -= len(piece)
