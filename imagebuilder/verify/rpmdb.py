"""The packages of an rpm database, from its bytes: SQLite with one header blob per package.

The blob is rpm's header without its magic: counts of entries and of data bytes, 16 bytes for each entry (tag, type,
offset, count), the data; all numbers big-endian (https://rpm-software-management.github.io/rpm/manual/format_header.html).
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.model import Package

PATHS = ("/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite")
MAX_BYTES = 512 << 20  # of the database; a node has some 30 MiB
_MAX_PACKAGES = 20_000
_MAX_STEPS = 50_000  # times 1000 instructions of SQLite's machine: a database cannot keep us busy
_NAME, _VERSION, _RELEASE, _EPOCH, _SIZE, _ARCH, _LONG_SIZE = 1000, 1001, 1002, 1003, 1009, 1022, 5009
_INT32, _INT64, _STRING = 4, 5, 6
_WANTED = {_NAME: _STRING, _VERSION: _STRING, _RELEASE: _STRING, _ARCH: _STRING, _EPOCH: _INT32, _SIZE: _INT32,
           _LONG_SIZE: _INT64}  # fmt: skip
_KEYS = "gpg-pubkey"  # keys are in the database too, and are no packages


def parse_rpmdb(data: bytes) -> tuple[Package, ...]:
    """Return the packages of a database, by name.

    Raises:
        ArtifactError: it is no such database, or is damaged.
    """
    # A database that was in WAL mode cannot be opened from memory: bytes 18 and 19 of SQLite's header say so.
    plain = data[:18] + b"\x01\x01" + data[20:]
    try:
        with closing(sqlite3.connect(":memory:")) as database:
            left = iter(range(_MAX_STEPS))
            database.deserialize(plain)
            database.set_progress_handler(lambda: next(left, None) is None, 1000)
            table = database.execute("SELECT count(*) FROM sqlite_master WHERE name='Packages' AND type='table'")
            if table.fetchone() != (1,):
                raise ArtifactError("the rpm database has no table of packages")
            rows = database.execute("SELECT blob FROM Packages").fetchmany(_MAX_PACKAGES)
    except (sqlite3.Error, OverflowError) as error:
        raise ArtifactError(f"the rpm database cannot be read: {error}") from error
    packages = [parse_header(row[0]) for row in rows]
    return tuple(sorted((one for one in packages if one.name != _KEYS), key=lambda one: (one.name, one.version)))


def parse_header(blob: object) -> Package:
    """Return the package that a header is of.

    Raises:
        ArtifactError: it is no header, or has no name and version.
    """
    if not isinstance(blob, bytes) or len(blob) < 8:
        raise ArtifactError("a package of the rpm database has no header")
    entries, size = struct.unpack_from(">II", blob)
    start = 8 + 16 * entries
    if start + size > len(blob):
        raise ArtifactError("a header of the rpm database is cut short")
    data, tags = blob[start : start + size], {}
    for tag, kind, offset, count in struct.iter_unpack(">IIII", blob[8:start]):
        if _WANTED.get(tag) == kind and count:
            tags[tag] = _value(data, kind, offset)
    return _package(tags)


def _value(data: bytes, kind: int, offset: int) -> str | int:
    if kind == _STRING:
        end = data.find(b"\0", offset)
        if end < 0:
            raise ArtifactError("a text in the rpm database has no end")
        return data[offset:end].decode("utf-8", "replace")
    width = 4 if kind == _INT32 else 8
    if offset + width > len(data):
        raise ArtifactError("a number in the rpm database lies outside of its header")
    return int.from_bytes(data[offset : offset + width], "big")


def _package(tags: Mapping[int, str | int]) -> Package:
    if not {_NAME, _VERSION, _RELEASE} <= tags.keys():
        raise ArtifactError("a package of the rpm database has no name or no version")
    epoch = f"{tags[_EPOCH]}:" if _EPOCH in tags else ""
    version = f"{epoch}{tags[_VERSION]}-{tags[_RELEASE]}"
    size = int(tags.get(_LONG_SIZE, tags.get(_SIZE, 0)))
    return Package(name=str(tags[_NAME]), version=version, arch=str(tags.get(_ARCH, "")), size=size)
