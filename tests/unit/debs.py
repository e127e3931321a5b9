"""Debian packages in memory, right and wrong ones: headers as deb(5) and GNU tar's manual have them."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Mapping

BLOCK = 512


def header(
    name: bytes, *, kind: bytes = b"0", size: int = 0, target: bytes = b"", mode: int = 0o644, uid: int = 0,
    gid: int = 0, mtime: int = 1_700_000_000, magic: bytes = b"ustar  \0", prefix: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a header, its sum right."""
    block = bytearray(BLOCK)
    fields = (
        (0, name[:100]), (100, b"%07o\0" % mode), (108, b"%07o\0" % uid), (116, b"%07o\0" % gid),
        (124, b"%011o\0" % size), (136, b"%011o\0" % mtime), (148, b" " * 8), (156, kind), (157, target[:100]),
        (257, magic), (345, prefix),
    )  # fmt: skip
    for at, data in fields:
        block[at : at + len(data)] = data
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def entry(name: bytes, data: bytes = b"", **more: object) -> bytes:
    """Return a file with its content; a long name or target as GNU tar writes it."""
    target = more.get("target", b"")
    assert isinstance(target, bytes)
    long = b""
    for text, kind in ((target, b"K"), (name, b"L")):
        if len(text) > 100:
            long += header(b"././@LongLink", kind=kind, size=len(text) + 1) + padded(text + b"\0")
    return long + header(name, size=len(data), **more) + padded(data)  # type: ignore[arg-type]


def tar(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(2 * BLOCK)


def folder(name: bytes, mode: int = 0o755) -> bytes:
    return entry(name, kind=b"5", mode=mode)


def symlink(name: bytes, target: bytes) -> bytes:
    return entry(name, kind=b"2", target=target, mode=0o777)


def link(name: bytes, target: bytes) -> bytes:
    return entry(name, kind=b"1", target=target)


def control(text: str, **files: str) -> bytes:
    """Return a control archive."""
    found = {"control": text, **files}
    return tar(folder(b"./"), *(entry(b"./" + name.encode(), data.encode()) for name, data in found.items()))


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an ar archive."""
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)


COMPRESS: Mapping[str, object] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def deb(control_tar: bytes, data_tar: bytes, compression: str = ".xz") -> bytes:
    """Return a package."""
    pack = COMPRESS[compression]
    assert callable(pack)
    return ar(
        [
            ("debian-binary", b"2.0\n"),
            (f"control.tar{compression}", pack(control_tar)),
            (f"data.tar{compression}", pack(data_tar)),
        ]
    )
