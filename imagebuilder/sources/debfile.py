"""A Debian package file, read with distrust: its two archives, decompressed with a limit.

Format: deb(5): an ar archive (names of at most 15 bytes) of ``debian-binary``, ``control.tar`` and ``data.tar``, the
latter compressed with xz, gzip or zstd, or not at all. Members whose names begin with an underscore are for others.
"""

from __future__ import annotations

import lzma
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from imagebuilder.content import CHUNK
from imagebuilder.errors import ArtifactError, CommandError
from imagebuilder.process import Runner
from imagebuilder.sources.debtar import Data, Kind, Member, members

MAGIC = b"!<arch>\n"
HEADER = 60  # bytes
MEMBERS = 16  # a package has three
UNPACKED_LIMIT = 4 << 30  # bytes of a decompressed archive; the largest that we meet (a kernel) has 0.5 GB
CONTROL_LIMIT = 32 << 20  # bytes; linux-libc-dev's has 0.6 MB
XZ_MEMORY = 256 << 20  # bytes; xz -9, the most that deb(5)'s compressors take, decompresses in 65 MiB


class Part(NamedTuple):
    """One of a package's two archives: how it is compressed, and where it lies in the file, in bytes."""

    compression: str
    offset: int
    size: int


class Decompressor(Protocol):
    """What lzma and zlib have in common."""

    @property
    def eof(self) -> bool:
        """Return whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """Return what follows the stream."""


def parts(stream: IO[bytes]) -> dict[str, Part]:
    """Return the archives ``control`` and ``data`` of a package.

    Raises:
        ArtifactError: it is no package file of the format 2.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(len(MAGIC)) != MAGIC:
        raise _bad("it is no ar archive")
    found: dict[str, Part] = {}
    position, number = len(MAGIC), 0
    while position < size:
        number += 1
        name, length = _member(stream, position)
        start = position + HEADER
        if number > MEMBERS or length > size - start:
            raise _bad("it has too many members, or one that is longer than the file")
        if number == 1 and (name != "debian-binary" or not stream.read(min(length, 4)).startswith(b"2.")):
            raise _bad("it is not of the format 2")
        kind, _, compression = name.partition(".tar")
        if kind in ("control", "data"):
            if kind in found or compression not in COMPRESSIONS:
                raise _bad(f"the member {name} comes twice, or is of an unknown compression")
            found[kind] = Part(compression, start, length)
        elif number > 1 and not name.startswith("_"):
            raise _bad(f"there is no member {name!r} in packages")
        position = start + length + length % 2
    if found.keys() != {"control", "data"}:
        raise _bad("one of its archives is missing")
    return found


def _bad(why: str) -> ArtifactError:
    return ArtifactError(f"the package file cannot be used: {why}")


def _member(stream: IO[bytes], position: int) -> tuple[str, int]:
    stream.seek(position)
    header = stream.read(HEADER)
    digits = header[48:58].strip()
    if len(header) != HEADER or header[58:] != b"`\n" or not digits.isdigit():
        raise _bad("a member's header is wrong")
    return header[:16].decode("latin-1").rstrip().removesuffix("/"), int(digits)


def unpack(path: Path, part: Part, out: IO[bytes], runner: Runner, *, limit: int = UNPACKED_LIMIT) -> None:
    """Write a decompressed archive to ``out``.

    Args:
        path: the package file.
        part: the archive in it.
        out: a real file, at its beginning.
        runner: runs zstd, where a package needs it.
        limit: bytes that it may have.

    Raises:
        ArtifactError: it is damaged, or longer than the limit.
        CommandError: zstd failed.
    """
    with path.open("rb") as stream:
        stream.seek(part.offset)
        COMPRESSIONS[part.compression](stream, part.size, out, limit, runner)


def control_files(path: Path, part: Part, scratch: Path, runner: Runner) -> bytes:
    """Return a package's decompressed control archive.

    Args:
        path: the package file.
        part: the archive in it.
        scratch: a file's name to use on the way.
        runner: runs zstd, where a package needs it.

    Raises:
        ArtifactError, CommandError: as in :func:`unpack`.
    """
    with scratch.open("w+b") as out:
        unpack(path, part, out, runner, limit=CONTROL_LIMIT)
    data = scratch.read_bytes()
    scratch.unlink()
    return data


def control_text(path: Path, scratch: Path, runner: Runner) -> str:
    """Return a package's control file (deb-control(5)), as ``dpkg-deb --field`` prints it.

    Args:
        path: the package file.
        scratch: a file's name to use on the way.
        runner: runs zstd, where a package needs it.

    Raises:
        ArtifactError, CommandError: as in :func:`unpack`; or it has no such file.
    """
    with path.open("rb") as stream:
        data = control_files(path, parts(stream)["control"], scratch, runner)
    for member in members(data):
        if member.path == b"control" and member.kind is Kind.FILE:
            return data[member.offset : member.offset + member.size].decode("utf-8", "replace")
    raise _bad("it has no control file")


def extract(paths: Sequence[Path], tree: Path, scratch: Path, runner: Runner) -> None:
    """Unpack packages into one new folder, for somebody to take files from: owners, modes and times are not kept.

    Links are made when all files are written, in folders that are none: nothing is ever written through one.

    Args:
        paths: the package files.
        tree: the folder, which is not there yet.
        scratch: a file's name to use on the way.
        runner: runs zstd, where a package needs it.

    Raises:
        ArtifactError, CommandError: as in :func:`unpack`; or two things are in one place.
    """
    tree.mkdir(parents=True)
    links: list[Member] = []
    try:
        for path in paths:
            with path.open("rb") as stream, scratch.open("w+b") as out:
                unpack(path, parts(stream)["data"], out, runner)
                out.flush()
                with mmap.mmap(out.fileno(), 0, prot=mmap.PROT_READ) as data:
                    links += _write(data, tree)
        for link in links:
            place = _place(tree, link.path)
            if place.parent.resolve() != tree.resolve() / place.parent.relative_to(tree):
                raise _bad("a link lies behind another one")
            if link.kind is Kind.SYMLINK:
                place.symlink_to(os.fsdecode(link.target))
            else:
                os.link(_place(tree, link.target), place, follow_symlinks=False)
    except (OSError, ValueError) as error:  # ValueError: of an empty archive
        raise _bad(f"it does not make a tree with the others: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def _write(data: Data, tree: Path) -> list[Member]:
    """Write folders and files of an archive; return its links."""
    links = []
    for member in members(data):
        place = _place(tree, member.path)
        (place if member.kind is Kind.FOLDER else place.parent).mkdir(parents=True, exist_ok=True)
        if member.kind is Kind.FILE:
            with place.open("xb") as out:
                out.write(data[member.offset : member.offset + member.size])
        elif member.kind is not Kind.FOLDER:
            links.append(member)
    return links


def _place(tree: Path, path: bytes) -> Path:
    return tree / os.fsdecode(path)


def _stored(stream: IO[bytes], size: int, out: IO[bytes], limit: int, runner: Runner) -> None:
    if size > limit:
        raise _bad("an archive is too large")
    copy_stored(stream, size, out)


def copy_stored(stream: IO[bytes], size: int, out: IO[bytes]) -> None:
    """Copy ``size`` bytes, or all that there are."""
    while size > 0 and (data := stream.read(min(CHUNK, size))):
        size -= len(data)
        out.write(data)


def _xz(stream: IO[bytes], size: int, out: IO[bytes], limit: int, runner: Runner) -> None:
    machine = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def step(data: bytes) -> tuple[bytes, bytes]:
        return machine.decompress(data, CHUNK), b""

    try:
        _pump(stream, size, out, limit, machine, step, lambda: machine.needs_input)
    except lzma.LZMAError as error:
        raise _bad(f"an archive is damaged: {error}") from error


def _gzip(stream: IO[bytes], size: int, out: IO[bytes], limit: int, runner: Runner) -> None:
    machine = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def step(data: bytes) -> tuple[bytes, bytes]:
        return machine.decompress(data, CHUNK), machine.unconsumed_tail

    try:
        _pump(stream, size, out, limit, machine, step, lambda: True)
    except zlib.error as error:
        raise _bad(f"an archive is damaged: {error}") from error


def _pump(
    stream: IO[bytes],
    size: int,
    out: IO[bytes],
    limit: int,
    machine: Decompressor,
    step: Callable[[bytes], tuple[bytes, bytes]],
    hungry: Callable[[], bool],
) -> None:
    """Move bytes through a decompressor, a piece at a time, to the end of its one stream."""
    rest = b""
    while not machine.eof:
        if not rest and hungry():
            rest = stream.read(min(CHUNK, size))
            size -= len(rest)
            if not rest:
                raise _bad("an archive ends too soon")
        data, rest = step(rest)
        limit -= len(data)
        if limit < 0:
            raise _bad("an archive is too large once it is decompressed")
        out.write(data)
    if machine.unused_data.strip(b"\0") or rest or size > 0:
        raise _bad("something follows an archive's end")


def _zstd(stream: IO[bytes], size: int, out: IO[bytes], limit: int, runner: Runner) -> None:
    packed, whole = Path(f"{out.name}.zst"), Path(f"{out.name}.whole")
    try:
        with packed.open("wb") as copy:
            _stored(stream, size, copy, limit, runner)
        # The kernel ends it at the limit, whatever the frame says of itself.
        runner.run(["prlimit", f"--fsize={limit}", "zstd", "-q", "-d", "-o", whole, packed], timeout=600)
        with whole.open("rb") as plain:
            _stored(plain, whole.stat().st_size, out, limit, runner)
    except CommandError as error:
        raise _bad("an archive is damaged, or too large") from error
    finally:
        for path in (packed, whole):
            path.unlink(missing_ok=True)


COMPRESSIONS: Mapping[str, Callable[[IO[bytes], int, IO[bytes], int, Runner], None]] = {
    "": _stored,
    ".gz": _gzip,
    ".xz": _xz,
    ".zst": _zstd,
}
