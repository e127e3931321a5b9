"""The package file: a gzip member around a USTAR archive, both spelt in exactly one way.

A reader knows from the manifest what each following byte that is not content must be, and refuses everything else:
no link, device, extension header, second name or hidden byte can get past it. RFC 1952; POSIX.1-2017, pax, "ustar
Interchange Format". Specified in ``docs/data-package.md``. Nothing here reads or writes files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import gzips
from imagebuilder.datapackage.manifest import MAX_MANIFEST, Manifest, check_paths, parse_manifest
from imagebuilder.errors import PackageError

SUFFIX = ".ibdata"
MAX_PACKED = 1 << 20  # bytes
MAX_UNPACKED = 4 << 20  # bytes of the archive
MAX_ENTRIES = 256  # with manifest and signature
MAX_SIGNATURE = 72  # bytes: DER of two 256 bit integers
MANIFEST, SIGNATURE, FILES = "manifest.json", "manifest.sig", "files"

LEVEL = 9  # 16 KB is all that EC2 takes
BLOCK, RECORD = 512, 10240  # bytes: tar's own
_NAME, _PREFIX = 100, 155  # bytes of a header's two name fields
_SIZE = slice(124, 136)  # the size field: 11 octal digits and a NUL
_GZIP_HEADER, _GZIP_TRAILER = 10, 8  # bytes
_GZIP_START = b"\x1f\x8b\x08\0\0\0\0\0"  # deflate, no flag, no time; the last two bytes of the header are free


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package that was read: whole, and as its manifest says; not yet trusted.

    Attributes:
        manifest_bytes: what the signature is over.
        files: content by absolute path, in the manifest's order. Secrets are among them.
    """

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    files: Mapping[str, bytes]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name in front of what is said against its content."""
    try:
        yield
    except PackageError as error:
        said = f"{path}: {error.message.removeprefix(f'{error.code}: ')}"
        raise PackageError(error.code, said, context=error.context, hint=error.hint) from error


def pack(manifest: Manifest, files: Mapping[str, bytes], signature: bytes) -> bytes:
    """Return the package file: the same bytes for the same input, every time.

    Args:
        manifest: whose files are those of ``files``.
        files: content by absolute path.
        signature: DER, over the manifest's bytes.

    Raises:
        PackageError: a reader would refuse it.
    """
    entries = [(MANIFEST, manifest.to_bytes()), (SIGNATURE, signature)]
    check_paths([file.path for file in manifest.files])
    if {file.path for file in manifest.files} != set(files):
        raise PackageError("E_FORMAT", "the manifest names other files")
    entries += [(FILES + file.path, files[file.path]) for file in manifest.files]
    stream = io.BytesIO()
    with gzips.Writer(stream, LEVEL) as writer:
        writer.write(archive(entries))
    packed = stream.getvalue()
    unpack(packed)
    return packed


def archive(entries: list[tuple[str, bytes]]) -> bytes:
    """Return a USTAR archive of regular files: no owner, no time, mode 0600."""
    parts = []
    for name, data in entries:
        parts += [header(name, len(data)), data, bytes(-len(data) % BLOCK)]
    whole = b"".join(parts)
    return whole + bytes(_end(len(whole)) - len(whole))


def header(name: str, size: int) -> bytes:
    """Return the header of a regular file.

    Raises:
        PackageError: E_PATH, the name cannot be split as USTAR needs it.
    """
    front, back = _split(name)
    fields = b"".join((
        back.encode().ljust(_NAME, b"\0"), b"0000600\0", b"0000000\0" * 2, b"%011o\0" % size, b"00000000000\0",
        b" " * 8, b"0", bytes(100), b"ustar\00000", bytes(80), front.encode().ljust(_PREFIX, b"\0"), bytes(12),
    ))  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def unpack(data: bytes) -> Package:
    """Return the package in these bytes; at most 4 MiB are unpacked, and nothing is believed.

    Raises:
        PackageError: E_SIZE, E_FORMAT, E_PATH or E_DIGEST.
    """
    reader = _Reader(_gunzip(data))
    manifest_bytes = reader.entry(MANIFEST, MAX_MANIFEST)
    manifest = parse_manifest(manifest_bytes)
    signature = reader.entry(SIGNATURE, MAX_SIGNATURE)
    if len(manifest.files) + 2 > MAX_ENTRIES:
        raise PackageError("E_SIZE", f"more than {MAX_ENTRIES} entries")
    files = {}
    for file in manifest.files:
        content = reader.entry(FILES + file.path, MAX_UNPACKED)
        if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
            raise PackageError("E_DIGEST", f"{file.path} is not what the manifest says")
        files[file.path] = content
    reader.end()
    return Package(manifest=manifest, manifest_bytes=manifest_bytes, signature=signature, files=files)


def _gunzip(data: bytes) -> bytes:
    if len(data) > MAX_PACKED:
        raise PackageError("E_SIZE", f"the package is larger than {MAX_PACKED >> 20} MiB")
    if not data.startswith(_GZIP_START):
        raise PackageError("E_FORMAT", "this is no data package: it does not begin as one")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflate.decompress(data[_GZIP_HEADER:], MAX_UNPACKED + 1)
    except zlib.error as error:
        raise PackageError("E_FORMAT", "the package is damaged", context=str(error)) from error
    if len(whole) > MAX_UNPACKED:
        raise PackageError("E_SIZE", f"the package is larger than {MAX_UNPACKED >> 20} MiB when unpacked")
    trailer = zlib.crc32(whole).to_bytes(4, "little") + len(whole).to_bytes(4, "little")
    if not inflate.eof or inflate.unused_data != trailer:
        raise PackageError("E_FORMAT", "the package is cut short, damaged, or has something behind its end")
    return whole


class _Reader:
    """Takes entries off an archive, each of which must be the one that is expected."""

    def __init__(self, whole: bytes) -> None:
        self._whole, self._at = whole, 0

    def entry(self, name: str, limit: int) -> bytes:
        """Return the content of the next entry."""
        head = self._take(BLOCK)
        size = int(head[_SIZE][:11], 8) if re.fullmatch(rb"[0-7]{11}\0", head[_SIZE]) else -1
        if size < 0 or head != header(name, size):
            raise PackageError("E_FORMAT", f"the next entry is not the regular file {name}")
        if size > limit:
            raise PackageError("E_SIZE", f"{name} is larger than {limit} bytes")
        content = self._take(size)
        if any(self._take(-size % BLOCK)):
            raise PackageError("E_FORMAT", f"{name} is not padded with zeros")
        return content

    def end(self) -> None:
        """Require what ends an archive, and nothing else."""
        if len(self._whole) != _end(self._at) or any(self._whole[self._at :]):
            raise PackageError("E_FORMAT", "the archive has more than the manifest names, or does not end as it must")

    def _take(self, count: int) -> bytes:
        if count > len(self._whole) - self._at:
            raise PackageError("E_FORMAT", "the archive is cut short")
        self._at += count
        return self._whole[self._at - count : self._at]


def _end(length: int) -> int:
    """Return the length of an archive whose entries have this length: two empty blocks more, in whole records."""
    return -(-(length + 2 * BLOCK) // RECORD) * RECORD


def _split(name: str) -> tuple[str, str]:
    """Return prefix and name: the shortest prefix that leaves a name that fits."""
    if len(name) <= _NAME:
        return "", name
    for at, char in enumerate(name):
        if char == "/" and at <= _PREFIX and len(name) - at - 1 <= _NAME:
            return name[:at], name[at + 1 :]
    raise PackageError("E_PATH", f"{name} does not fit into a tar header")
