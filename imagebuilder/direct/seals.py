"""Seals: what tells that a layer is still as it was made.

A seal has two values over everything below a layer's folders. The *stamp* covers names, kinds, owners, sizes and
times, and is taken at each use: no file is read for it. The *content* covers the bytes of the files as well, by
their CRC-32: it finds damage, not malice. Whoever can write into the cache could write the seal too.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebuilder.content import CHUNK
from imagebuilder.model import plain

SEAL = "seal"  # the key of layer.json
FOLDERS = ("root", "volumes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """Two values of 64 hex digits; see the module's docstring."""

    stamp: str
    content: str


def stamp_of(layer: Path) -> str:
    """Return the stamp of a layer's folder; no file in it is read.

    Raises:
        OSError: it is not there, or something in it cannot be looked at.
    """
    digest = hashlib.sha256()
    for name, status in walk(layer):
        digest.update(_line(name, status))
    return digest.hexdigest()


def seal_of(layer: Path) -> Seal:
    """Return the seal of a layer's folder; all that is in it is read.

    Raises:
        OSError: it is not there, or something in it cannot be read.
    """
    stamp, content = hashlib.sha256(), hashlib.sha256()
    base = os.fsencode(layer)
    for name, status in walk(layer):
        line = _line(name, status)
        stamp.update(line)
        path = os.path.join(base, name)  # noqa: PTH118 - bytes: names need not be UTF-8
        content.update(line + _content(path, status) + b"\0")
    return Seal(stamp=stamp.hexdigest(), content=content.hexdigest())


def damage_of(layer: Path, info: Mapping[str, Any], *, full: bool = False) -> str:
    """Return what is wrong with a layer's folder, or an empty string.

    Args:
        layer: its folder.
        info: its info, with the seal. A layer made before there were seals has none, and is taken as it is.
        full: read all files too.
    """
    kept = info.get(SEAL)
    if kept is None:
        return ""
    try:
        found = plain(seal_of(layer)) if full else {"stamp": stamp_of(layer)}
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    same = isinstance(kept, dict) and all(kept.get(name) == value for name, value in found.items())
    return "" if same else "its files are not as they were made"


def walk(layer: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield path in the layer and status of everything in its folders, parents first, by name; no link is followed."""
    base = os.fsencode(layer)
    todo = [folder.encode() for folder in reversed(FOLDERS)]
    yield from ((name, os.lstat(os.path.join(base, name))) for name in reversed(todo))  # noqa: PTH118
    while todo:
        folder = todo.pop()
        with os.scandir(os.path.join(base, folder)) as entries:  # noqa: PTH118
            found = sorted((folder + b"/" + entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
        yield from found
        todo.extend(name for name, status in reversed(found) if stat.S_ISDIR(status.st_mode))


def _line(name: bytes, status: os.stat_result) -> bytes:
    # What a folder itself takes, and its number of links, differ between file systems.
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    values = (status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev)
    return b"%s\0%s\n" % (name, ",".join(map(str, values)).encode())


def _content(path: bytes, status: os.stat_result) -> bytes:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)  # noqa: PTH115 - bytes
    if not stat.S_ISREG(status.st_mode):
        return b""
    crc = 0
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - bytes
        while chunk := stream.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return b"%08x" % crc
