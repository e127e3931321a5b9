"""Reads and writes bolt databases, the format of containerd's metadata; the whole file is in memory.

Format: go.etcd.io/bbolt, ``internal/common/page.go``, ``meta.go`` and ``bucket.go``; numbers are little-endian.
Two meta pages take turns, so that the newer one with a right checksum counts. A bucket is a tree of pages; a small one
lies in its parent's value, behind its header. No checksum guards the other pages: every offset is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from imagebuilder.errors import ArtifactError

_PAGE = struct.Struct("<QHHI")  # id, flags, count of elements, overflow
_META = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root, sequence, free list, end, transaction
_BRANCH = struct.Struct("<IIQ")  # position from this element, key's size, page
_LEAF = struct.Struct("<IIII")  # flags, position from this element, key's size, value's size
_BUCKET = struct.Struct("<QQ")  # root page, sequence
_BRANCH_PAGE, _LEAF_PAGE, _META_PAGE, _FREE_PAGE, _IS_BUCKET = 0x01, 0x02, 0x04, 0x10, 0x01
_MAGIC, _VERSION = 0xED0CDAED, 2
_PAGE_SIZES = range(512, (64 << 10) + 1)
_SIZE = 4096  # bytes of the pages that are written
_INLINE = _SIZE // 4  # bytes of the largest bucket that lies in its parent (bucket.go, "inlineable")
_MOST_DEEP = 16  # buckets within each other; containerd has eight


@dataclass(kw_only=True, slots=True)
class Bucket:
    """Values and buckets by name, and the last number that the bucket gave out."""

    sequence: int = 0
    items: dict[bytes, bytes | Bucket] = field(default_factory=dict)


def lookup(data: bytes, keys: Sequence[bytes]) -> bytes | None:
    """Return the value at the end of a path of buckets; None where a part of the path is missing.

    Args:
        data: of the database.
        keys: names of buckets, then of the value.

    Raises:
        ArtifactError: it is no bolt database, or is damaged.
    """
    try:
        size, root = _newest(data)
        value = _BUCKET.pack(root, 0)
        for number, key in enumerate(keys):
            wanted = _IS_BUCKET if number < len(keys) - 1 else 0
            found = next(
                (one for flags, name, one in _elements(data, size, value) if (flags, name) == (wanted, key)), None
            )
            if found is None:
                return None
            value = found
    except struct.error as error:
        raise ArtifactError(f"the bolt database is damaged: {error}") from error
    return value


def read(data: bytes) -> Bucket:
    """Return all that is in a database.

    Raises:
        ArtifactError: it is no bolt database, or is damaged.
    """
    left = len(data)  # an element takes more than a byte: what has more than that leads to itself

    def bucket(value: bytes, depth: int) -> Bucket:
        nonlocal left
        found = Bucket(sequence=_BUCKET.unpack_from(value)[1])
        for flags, name, one in _elements(data, size, value):
            left -= 1
            if left < 0 or depth > _MOST_DEEP:
                raise ArtifactError("the bolt database is damaged: a bucket is in itself")
            found.items[name] = bucket(one, depth + 1) if flags & _IS_BUCKET else one
        return found

    try:
        size, root = _newest(data)
        return bucket(_BUCKET.pack(root, 0), 0)
    except struct.error as error:
        raise ArtifactError(f"the bolt database is damaged: {error}") from error


def write(root: Bucket) -> bytes:
    """Return a database with just this in it: the same content is the same bytes.

    A bucket is one page, with as many after it as it takes; bolt divides it when it next changes it.
    """
    pages = bytearray(3 * _SIZE)  # two meta pages, a list of free pages that is empty

    def place(items: Sequence[tuple[int, bytes, bytes]]) -> int:
        number = len(pages) // _SIZE
        page = _packed(number, items)
        pages.extend(page.ljust(-(-len(page) // _SIZE) * _SIZE, b"\0"))
        return number

    def elements(bucket: Bucket) -> list[tuple[int, bytes, bytes]]:
        found = []
        for name, value in sorted(bucket.items.items()):
            whole = packed(value) if isinstance(value, Bucket) else value
            found.append((_IS_BUCKET if isinstance(value, Bucket) else 0, name, whole))
        return found

    def packed(bucket: Bucket) -> bytes:
        items = elements(bucket)
        page = _packed(0, items)
        if len(page) <= _INLINE and not any(flags for flags, _, _ in items):
            return _BUCKET.pack(0, bucket.sequence) + page
        return _BUCKET.pack(place(items), bucket.sequence)

    top = place(elements(root))
    _PAGE.pack_into(pages, 2 * _SIZE, 2, _FREE_PAGE, 0, 0)
    for number in (0, 1):
        meta = _META.pack(_MAGIC, _VERSION, _SIZE, 0, top, root.sequence, 2, len(pages) // _SIZE, number)
        page = _PAGE.pack(number, _META_PAGE, 0, 0) + meta + struct.pack("<Q", _fnv(meta))
        pages[number * _SIZE : number * _SIZE + len(page)] = page
    return bytes(pages)


def _packed(number: int, items: Sequence[tuple[int, bytes, bytes]]) -> bytes:
    """Return a leaf page of flags, names and values."""
    head, body = bytearray(), bytearray()
    for index, (flags, name, value) in enumerate(items):
        head += _LEAF.pack(flags, (len(items) - index) * _LEAF.size + len(body), len(name), len(value))
        body += name + value
    overflow = max(0, _PAGE.size + len(head) + len(body) - 1) // _SIZE
    return _PAGE.pack(number, _LEAF_PAGE, len(items), overflow) + head + body


def _newest(data: bytes) -> tuple[int, int]:
    """Return the size of pages and the root page of the newer of the two meta pages."""
    best: tuple[int, int, int] | None = None
    first = struct.unpack_from("<I", data, _PAGE.size + 8)[0]
    for at in (0, first if first in _PAGE_SIZES else 4096):
        if len(data) < at + _PAGE.size + _META.size + 8:
            continue
        body = data[at + _PAGE.size : at + _PAGE.size + _META.size]
        magic, version, size, _, root, _, _, _, transaction = _META.unpack(body)
        (checksum,) = struct.unpack_from("<Q", data, at + _PAGE.size + _META.size)
        if (magic, version, checksum) == (_MAGIC, _VERSION, _fnv(body)) and size in _PAGE_SIZES:
            best = max(best or (0, 0, 0), (transaction + 1, size, root))
    if best is None:
        raise ArtifactError("it is no bolt database: neither meta page is right")
    return best[1], best[2]


def _fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _elements(data: bytes, size: int, bucket: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield flags, key and value of all that is in a bucket."""
    root, _ = _BUCKET.unpack_from(bucket)
    if not root:  # it is here
        yield from _leaf(bucket[_BUCKET.size :])
        return
    todo, left = [root], len(data)
    while todo:
        start = todo.pop() * size
        if start + size > len(data):
            raise ArtifactError("the bolt database is damaged: a page is outside of it")
        _, flags, count, overflow = _PAGE.unpack_from(data, start)
        left -= (1 + overflow) * size
        if left < 0:
            raise ArtifactError("the bolt database is damaged: a page is used twice")
        page = data[start : start + (1 + overflow) * size]
        if flags == _BRANCH_PAGE:
            todo += [_BRANCH.unpack_from(page, _PAGE.size + index * _BRANCH.size)[2] for index in range(count)]
        else:
            yield from _leaf(page)


def _leaf(page: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    _, flags, count, _ = _PAGE.unpack_from(page)
    if flags != _LEAF_PAGE:
        raise ArtifactError(f"the bolt database is damaged: a page has the flags {flags:#x}")
    for at in range(_PAGE.size, _PAGE.size + count * _LEAF.size, _LEAF.size):
        flags, position, key, value = _LEAF.unpack_from(page, at)
        start = at + position
        if start + key + value > len(page):
            raise ArtifactError("the bolt database is damaged: a value reaches out of its page")
        yield flags, page[start : start + key], page[start + key : start + key + value]
