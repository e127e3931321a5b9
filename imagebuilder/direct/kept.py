"""Compressed clusters, kept beside the layer whose files they hold: the next disk with that layer takes them.

What a batch of clusters holds follows from pieces of files, and those from the layer: it is sealed, and what is kept
lies in its folder and goes with it. A name covers the pieces, their places, and how they were compressed. A file begins
with the SHA-256 of the rest, which is compared at each use: damage costs time, nothing else. Nothing is synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from imagebuilder.content import content_id
from imagebuilder.direct.layers import Layer
from imagebuilder.direct.virtual import FileSlice, VirtualDisk

FOLDER = "clusters"  # in the layer's, beside what its seal covers
LIMIT = 8 << 20  # bytes of a file: a batch has 4 MiB
_DIGEST = hashlib.sha256().digest_size
_COUNT, _ENTRY = struct.Struct("<H"), struct.Struct("<HI")  # entries; of each its place in the batch, and its bytes

Blobs: TypeAlias = list[tuple[int, bytes]]  # a cluster of the disk, and its bytes in the image


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Where the clusters of a disk are kept.

    Attributes:
        disk: all of whose clusters have ``size`` bytes.
        folders: of the layers, by the start of their files' names.
        kind: how clusters are compressed, by what, in which version.
    """

    disk: VirtualDisk
    folders: dict[bytes, Path]
    kind: str
    size: int

    def of(self, batch: range, make: Callable[[range], Blobs]) -> Blobs:
        """Return a batch's clusters: those that are kept, or what ``make`` makes of it."""
        path = self._path(batch)
        if path is None:
            return make(batch)
        found = _read(path, batch)
        if found is None:
            found = make(batch)
            _write(path, batch, found)
        return found

    def _path(self, batch: range) -> Path | None:
        """Return where a batch is kept; None where not all of it is of one layer."""
        start = batch.start * self.size
        owner: tuple[bytes, Path] | None = None
        pieces: list[list[int | str]] = []
        for offset, length, source, skip in self.disk.between(start, batch.stop * self.size):
            if not isinstance(source, FileSlice):
                return None
            found = next((item for item in self.folders.items() if source.path.startswith(item[0])), None)
            if found is None or owner not in (None, found):
                return None
            owner = found
            name = source.path.removeprefix(found[0]).decode("latin-1")  # a cache may lie elsewhere the next time
            pieces.append([offset - start, length, name, source.start + skip])
        return owner[1] / FOLDER / content_id([self.kind, len(batch), pieces]) if owner else None


def kept(disk: VirtualDisk, layers: Sequence[Layer], kind: str, size: int) -> Kept:
    """Return where a disk's clusters are kept.

    Args:
        disk: whose clusters are written.
        layers: that it is made from, as long as it is used; nothing is kept of those that are not to be written to.
        kind: how clusters are compressed, by what, in which version.
        size: bytes of a cluster.
    """
    own = [layer for layer in layers if layer.writable]
    for layer in own:
        with contextlib.suppress(OSError):
            (layer.path / FOLDER).mkdir(exist_ok=True)
    folders = {os.fsencode(layer.path) + b"/": layer.path for layer in own if (layer.path / FOLDER).is_dir()}
    return Kept(disk=disk, folders=folders, kind=kind, size=size)


def _read(path: Path, batch: range) -> Blobs | None:
    """Return what a file keeps; None where it is not there, or not as it was written."""
    try:
        with path.open("rb") as stream:
            data = stream.read(LIMIT)
    except OSError:
        return None
    body = memoryview(data)[_DIGEST:]
    if hashlib.sha256(body).digest() != data[:_DIGEST]:
        return None
    try:
        (count,), blobs = _COUNT.unpack_from(body), []
        position = _COUNT.size + count * _ENTRY.size
        for number in range(count):
            at, length = _ENTRY.unpack_from(body, _COUNT.size + number * _ENTRY.size)
            blobs.append((batch[at], bytes(body[position : position + length])))
            position += length
    except (struct.error, IndexError):
        return None
    return blobs if position == len(body) else None


def _write(path: Path, batch: range, blobs: Blobs) -> None:
    """Keep a batch; where that does not succeed, it is made again the next time."""
    parts = [_COUNT.pack(len(blobs)), *(_ENTRY.pack(index - batch.start, len(blob)) for index, blob in blobs)]
    parts += [blob for _, blob in blobs]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with contextlib.suppress(OSError):
        # A file without a name (open(2), O_TMPFILE): whatever ends us leaves nothing of it.
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines([digest.digest(), *parts])
            stream.flush()
            path.unlink(missing_ok=True)  # one that is damaged
            # With a folder's descriptor, which an absolute path does not need, it is linkat(2) and follows the link.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
