"""Reads Vagrant boxes of unknown origin.

Order of trust: the gzip stream within its caps, the tar's structure (plain files, each name once, nothing outside),
then ``metadata.json``, then that what it promises is there. Nothing is unpacked. Formats: RFC 1952, POSIX.1-1988
"ustar", developer.hashicorp.com/vagrant/docs/boxes/format.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from imagebuilder.content import CHUNK
from imagebuilder.errors import ArtifactError
from imagebuilder.publish.boxnames import ARCHITECTURES, PROVIDER
from imagebuilder.sources.archive import BLOCK, FILE, FOLDER, MAX_PAX, PAX, PAX_RENAMES, Header, parse_header
from imagebuilder.sources.manifests import MalformedError

MAX_PACKED = 64 << 30  # bytes: larger than any box that could be downloaded
MAX_UNPACKED = 64 << 30
MAX_RATIO = 1100  # deflate cannot do better than 1032: more is damage
MAX_ENTRIES = 64  # a box has about six files
MAX_TEXT = 1 << 20  # bytes of a small file that is read
MAX_NAME = 200
GZIP = b"\x1f\x8b"
QCOW2 = b"QFI\xfb"
METADATA, INFO = "metadata.json", "info.json"
_HEAD = 16  # bytes of a large file that are kept, to see what it is
_HINT = "a box is a tar.gz with metadata.json, as vagrant package or imagebuilder bake --target vagrant-... make it"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxInfo:
    """What a box is.

    Attributes:
        provider: as in its metadata.
        arch: as in its metadata, or empty.
        files: sizes of its files by name.
        info: its ``info.json``: what people are told.
    """

    provider: str
    arch: str
    files: Mapping[str, int]
    info: Mapping[str, str]


def read_box(path: Path) -> BoxInfo:
    """Return what a box is, having read all of it.

    Raises:
        ArtifactError: it is no box, is damaged, or holds what a box must not hold.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            if not path.is_file() or size > MAX_PACKED:
                raise ArtifactError(f"{path} is no file of at most {MAX_PACKED >> 30} GiB", hint=_HINT)
            return _box(Plain(stream, size))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", hint=f"ls -l {path}") from error
    except (MalformedError, zlib.error) as error:
        raise ArtifactError(f"{path} is no box: {error}", hint=_HINT) from error


class Plain:
    """The tar inside a file of ``size`` bytes, read once from front to back, uncompressed when it is gzip.

    Reading it raises MalformedError or zlib.error where the stream is damaged, or unpacks to more than a box can hold.
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._cap = stream, min(MAX_UNPACKED, max(1, size) * MAX_RATIO)
        start = stream.read(len(GZIP))
        stream.seek(0)
        # 16: with a gzip header.
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if start == GZIP else None
        self._buffer, self._read = bytearray(), 0

    def read(self, length: int) -> bytes:
        """Return the next bytes; fewer only at the end."""
        while len(self._buffer) < length and (piece := self._piece()):
            self._buffer += piece
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _piece(self) -> bytes:
        if self._inflate is None:
            data = self._stream.read(CHUNK)
        else:
            data = b""
            while not data and not self._inflate.eof:
                packed = self._inflate.unconsumed_tail or self._stream.read(CHUNK)
                if not packed:
                    raise MalformedError("the gzip stream is cut off")
                data = self._inflate.decompress(packed, CHUNK)
        self._read += len(data)
        if self._read > self._cap:
            raise MalformedError("it unpacks to more than a box can hold")
        return data


def _box(tar: Plain) -> BoxInfo:
    files: dict[str, int] = {}
    kept: dict[str, bytes] = {}
    for header, name in _entries(tar):
        if name in files:
            raise MalformedError(f"{name!r} is there twice")
        files[name] = header.size
        wanted = header.size if name in (METADATA, INFO) else min(header.size, _HEAD)
        if wanted > MAX_TEXT:
            raise MalformedError(f"{name} is larger than {MAX_TEXT >> 20} MiB")
        kept[name] = tar.read(wanted)
        _skip(tar, header, wanted)
    while tar.read(CHUNK):  # to the end, where the checksum of a gzip stream is
        pass
    metadata = _object(METADATA, kept)
    provider, arch = metadata.get("provider"), metadata.get("architecture", "")
    if not isinstance(provider, str) or not PROVIDER.fullmatch(provider):
        raise MalformedError(f"{METADATA} names no provider")
    if arch not in ("", *ARCHITECTURES):
        raise MalformedError(f"{METADATA} has the architecture {arch!r} (known: {', '.join(sorted(ARCHITECTURES))})")
    if provider == "libvirt":
        _check_libvirt(metadata, kept)
    if provider == "virtualbox" and not any(name.endswith(".ovf") for name in files):
        raise MalformedError("a box for virtualbox must hold an .ovf description")
    info = _object(INFO, kept) if INFO in kept else {}
    return BoxInfo(
        provider=provider, arch=arch, files=files,
        info={key: value for key, value in info.items() if isinstance(value, str)},
    )  # fmt: skip


def _entries(tar: Plain) -> Iterator[tuple[Header, str]]:
    """Yield the files; the caller reads or skips each one's bytes before it asks for the next."""
    for _ in range(MAX_ENTRIES):
        header = parse_header(tar.read(BLOCK))
        if header is None:
            return
        if header.kind in PAX:
            if header.size > MAX_PAX or PAX_RENAMES.search(tar.read(header.size)):
                raise MalformedError("a pax header renames or resizes an entry")
            _skip(tar, header, header.size)
            continue
        name = _safe_name(header)
        if header.kind in FILE:
            yield header, name
        elif header.size:
            raise MalformedError(f"the folder {name!r} has a size")
    raise MalformedError(f"more than {MAX_ENTRIES} entries")


def _skip(tar: Plain, header: Header, read: int) -> None:
    left = -(-header.size // BLOCK) * BLOCK - read
    while left:
        piece = tar.read(min(CHUNK, left))
        if not piece:
            raise MalformedError(f"the tar is cut off in {header.name!r}")
        left -= len(piece)


def _safe_name(header: Header) -> str:
    if header.kind not in (*FILE, FOLDER):
        raise MalformedError(f"{header.name!r} is neither a file nor a folder")
    name = header.name.removeprefix("./").rstrip("/")
    if header.name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise MalformedError(f"{header.name!r} leads outside")
    if len(name) > MAX_NAME or not name.isprintable():
        raise MalformedError("a name is too long, or not printable")
    return name


def _object(name: str, kept: Mapping[str, bytes]) -> dict[str, Any]:
    if name not in kept:
        raise MalformedError(f"it has no {name}")
    try:
        value = json.loads(kept[name])
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{name} is no JSON") from error
    if not isinstance(value, dict):
        raise MalformedError(f"{name} is no JSON object")
    return value


def _check_libvirt(metadata: Mapping[str, Any], kept: Mapping[str, bytes]) -> None:
    """Check what vagrant-libvirt refuses only at ``vagrant up`` (its action/handle_box_image.rb)."""
    disks = metadata.get("disks") or []
    if not disks:
        size = metadata.get("virtual_size")
        if metadata.get("format") != "qcow2" or not isinstance(size, int) or size < 1:
            raise MalformedError(f'{METADATA} must have "format": "qcow2" and "virtual_size" in GiB')
    names = [disk.get("path") if isinstance(disk, dict) else None for disk in disks] if disks else ["box.img"]
    for name in names:
        if not isinstance(name, str) or not kept.get(name, b"").startswith(QCOW2):
            raise MalformedError(f"{name} is not there, or is no qcow2 disk")
