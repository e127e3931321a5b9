"""Reads OCI image layout archives of unknown origin.

Order of trust: the tar's structure (plain files and folders, each name once, nothing outside), then every
blob's hash, then index, manifest and configuration, whose sizes and hashes must be those of blobs that are
there. Nothing is unpacked. Header format: POSIX.1-1988 "ustar", pubs.opengroup.org/onlinepubs/9799919799,
utilities/pax.html.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imagebuilder.content import CHUNK, sha256_bytes
from imagebuilder.errors import ArtifactError, UntrustedError, UsageError
from imagebuilder.sources import references
from imagebuilder.sources.manifests import (
    INDEXES,
    MAX_DOCUMENT,
    Descriptor,
    MalformedError,
    Manifest,
    parse_index,
    parse_manifest,
    parse_platform,
)  # fmt: skip

BLOCK = 512  # bytes: a tar's unit
MAX_ARCHIVE = 32 << 30  # bytes: the size of a node's disk
MAX_ENTRIES = 4096  # an image has about 100 layers at most
MAX_PAX = 64 << 10  # bytes of a pax header
FILE, FOLDER, PAX = (b"0", b"\0"), b"5", (b"x", b"g")
PAX_RENAMES = re.compile(rb"^[0-9]+ (?:path|size|linkpath|GNU\.sparse[^=]*)=", re.MULTILINE)
_OCTAL = re.compile(rb"[0-7]+")
BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveInfo:
    """What an archive holds: one element of each tuple per image, in the order of the index.

    Attributes:
        references: names, in full.
        digests: digests of the manifests.
        arch: the architecture of all images.
        sizes: bytes of configuration and layers.
    """

    references: tuple[str, ...]
    digests: tuple[str, ...]
    arch: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """One tar header."""

    name: str
    kind: bytes
    size: int


def inspect_archive(path: Path) -> ArchiveInfo:
    """Read an OCI archive, verifying the hash of every blob in it.

    Raises:
        ArtifactError: it is no such archive, is not whole, or mixes architectures.
        UntrustedError: a blob's bytes are not those of its name.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not path.is_file() or size > MAX_ARCHIVE:
                raise ArtifactError(f"{path} is no file of at most {MAX_ARCHIVE >> 30} GiB")
            return _Archive(path.name, stream, size).info()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except MalformedError as error:
        raise ArtifactError(f"{path} is no OCI archive: {error}", hint=_HINT) from error


_HINT = "make one with: skopeo copy docker://NAME oci-archive:FILE:NAME"


def parse_header(block: bytes) -> Header | None:
    """Return a tar header, or None for the block of zeros that ends an archive.

    Raises:
        MalformedError: it is no ustar header, or uses what an OCI archive has no need of.
    """
    if not block.strip(b"\0"):
        return None
    if len(block) < BLOCK:
        raise MalformedError("the tar is cut off")
    if block[:2] == b"\x1f\x8b" or block[:4] == b"\x28\xb5\x2f\xfd":
        raise MalformedError("it is compressed; uncompress it first")
    stated = block[148:156].strip(b"\0 ")
    if not _OCTAL.fullmatch(stated) or sum(block[:148]) + sum(block[156:]) + 8 * ord(" ") != int(stated, 8):
        raise MalformedError("not a tar")
    name, prefix = _field(block[:100]), _field(block[345:500]) if block[257:262] == b"ustar" else ""
    full = f"{prefix}/{name}" if prefix else name
    return Header(name=full, kind=block[156:157], size=parse_number(block[124:136]))


class _Archive:
    """One open archive."""

    def __init__(self, name: str, stream: IO[bytes], size: int) -> None:
        self._name, self._stream, self._size = name, stream, size
        self._members = dict(self._scan())
        for member, (offset, length) in self._members.items():
            if blob := BLOB.fullmatch(member):
                self._verify(blob.group(1), offset, length)

    def info(self) -> ArchiveInfo:
        """Return what the index leads to."""
        if "oci-layout" not in self._members or "index.json" not in self._members:
            raise MalformedError("it has no oci-layout and index.json (older docker save?)")
        found = [
            (_reference(item), digest, manifest, arch)
            for item in parse_index(self._document("index.json"))
            for digest, manifest, arch in self._images(item)
        ]
        if not found:
            raise MalformedError("it holds no image")
        arches = sorted({arch for *_, arch in found})
        if len(arches) > 1:
            raise ArtifactError(f"{self._name} holds images of several architectures: {', '.join(arches)}")
        return ArchiveInfo(
            references=tuple(reference for reference, *_ in found),
            digests=tuple(digest for _, digest, *_ in found),
            arch=arches[0],
            sizes=tuple(manifest.size for _, _, manifest, _ in found),
        )

    def _images(self, item: Descriptor, depth: int = 0) -> Iterator[tuple[str, Manifest, str]]:
        """Yield digest, manifest and architecture; of an index below, the images that are there."""
        data = self._blob(item)
        if item.media_type in INDEXES:
            if depth:
                raise MalformedError("an index in an index in an index")
            for below in parse_index(data):
                if _member(below.digest) in self._members and below.os not in ("unknown",):
                    yield from self._images(below, depth + 1)
            return
        manifest = parse_manifest(data)
        system, arch = parse_platform(self._blob(manifest.config))
        if system != "linux":
            raise ArtifactError(f"{self._name} holds an image for {system}, not for linux")
        for layer in manifest.layers:
            self._present(layer)
        yield item.digest, manifest, arch

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, offset and size of the files."""
        offset, seen = 0, set[str]()
        for _ in range(MAX_ENTRIES):
            self._stream.seek(offset)
            header = parse_header(self._stream.read(BLOCK))
            if header is None:
                return
            start = offset + BLOCK
            offset = start + (header.size + BLOCK - 1) // BLOCK * BLOCK
            if start + header.size > self._size:
                raise MalformedError(f"the tar is cut off in {header.name!r}")
            if header.kind in PAX:
                if header.size > MAX_PAX or PAX_RENAMES.search(self._stream.read(header.size)):
                    raise MalformedError("a pax header renames or resizes an entry")
                continue
            name = _safe_name(header)
            if name in seen:
                raise MalformedError(f"{name!r} is there twice")
            seen.add(name)
            if header.kind in FILE:
                yield name, (start, header.size)
        raise MalformedError(f"more than {MAX_ENTRIES} entries")

    def _verify(self, digest: str, offset: int, length: int) -> None:
        actual = hashlib.sha256()
        self._stream.seek(offset)
        while length and (piece := self._stream.read(min(CHUNK, length))):
            actual.update(piece)
            length -= len(piece)
        if actual.hexdigest() != digest:
            raise UntrustedError(
                f"{self._name} holds a blob whose bytes are not those of its name",
                context=f"name sha256 {digest}\nbytes sha256 {actual.hexdigest()}",
            )

    def _document(self, name: str) -> bytes:
        offset, length = self._members[name]
        if length > MAX_DOCUMENT:
            raise MalformedError(f"{name} is larger than {MAX_DOCUMENT} bytes")
        self._stream.seek(offset)
        return self._stream.read(length)

    def _present(self, item: Descriptor) -> str:
        name = _member(item.digest)
        if name not in self._members:
            raise ArtifactError(f"{self._name} is not whole: {item.digest} is missing")
        if self._members[name][1] != item.size:
            raise MalformedError(f"{item.digest} has another size than its descriptor says")
        return name

    def _blob(self, item: Descriptor) -> bytes:
        data = self._document(self._present(item))
        if f"sha256:{sha256_bytes(data)}" != item.digest:  # hashed before; the file may have changed since
            raise UntrustedError(f"{self._name} changed while it was read")
        return data


def _member(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _reference(item: Descriptor) -> str:
    names: Mapping[str, str] = item.annotations
    name = next((names[key] for key in NAME_ANNOTATIONS if "/" in names.get(key, "")), "")
    if not name:
        raise MalformedError("an image in it has no name (annotation io.containerd.image.name)")
    try:
        return references.parse(name).name
    except UsageError as error:
        raise MalformedError(error.message) from error


def _safe_name(header: Header) -> str:
    if header.kind not in (*FILE, FOLDER):
        raise MalformedError(f"{header.name!r} is neither a file nor a folder")
    name = header.name.removeprefix("./").rstrip("/")
    if header.name.startswith("/") or ".." in name.split("/"):
        raise MalformedError(f"{header.name!r} leads outside")
    if name.startswith("blobs/") and header.kind in FILE and not BLOB.fullmatch(name):
        raise MalformedError(f"{name!r} is no sha256 blob")
    return name


def _field(data: bytes) -> str:
    try:
        return data.partition(b"\0")[0].decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("a name is not UTF-8") from None


def parse_number(data: bytes) -> int:
    """Return a number of a tar header: octal, or base 256 where that is too short (GNU tar, "Extensions").

    Raises:
        MalformedError: it is neither.
    """
    if data[:1] == b"\x80":
        return int.from_bytes(data[1:], "big")
    digits = data.strip(b"\0 ")
    if not _OCTAL.fullmatch(digits):
        raise MalformedError("a size in a tar header is not octal")
    return int(digits, 8)
