"""A small ISO 9660 image with Rock Ridge names, the same bytes every time.

ECMA-119 (ISO 9660) says what the descriptors and records are; IEEE P1281 (SUSP) and P1282 (RRIP 1.09) how names of any
length in lower case lie beside the short ones. Only what a seed disk needs: one volume, folders of at most one sector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from imagebuilder.errors import UsageError

SECTOR = 2048  # bytes
FIRST = 20  # sectors: 16 are the system's own, then volume descriptor, terminator, and two path tables
PATH_TABLE = 18
_DATE = bytes((80, 1, 1, 0, 0, 0, 0))  # 1980-01-01 00:00 UTC, in every record: no clock in the bytes
_NO_DATE = b"0" * 16 + b"\0"
_FOLDER_MODE, _FILE_MODE = 0o040500, 0o100400  # for root only


@dataclass(kw_only=True, slots=True)
class _Node:
    """A file or folder.

    Attributes:
        name: empty for the root.
        data: of a file; None for a folder.
        number: a folder's, in the path table, from 1.
        sector: where it begins.
    """

    name: str
    parent: _Node | None
    data: bytes | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    number: int = 1
    sector: int = 0

    @property
    def size(self) -> int:
        return SECTOR if self.data is None else len(self.data)

    @property
    def plain(self) -> bytes:
        """The name for those who do not know Rock Ridge."""
        text = "".join(char if char.isascii() and char.isalnum() else "_" for char in self.name.upper())
        if self.data is None:
            return text[:31].encode()
        stem, dot, suffix = self.name.upper().rpartition(".")
        stem, suffix = (stem, suffix) if dot else (suffix, "")
        stem, suffix = (
            "".join(char if char.isascii() and char.isalnum() else "_" for char in part) for part in (stem, suffix)
        )
        return f"{stem[:20]}.{suffix[:8]};1".encode()


def iso9660(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return an image.

    Args:
        label: of the volume, at most 32 characters; Linux and cloud-init compare it without regard to case.
        files: contents by path below the root, like ``openstack/latest/user_data``.

    Raises:
        UsageError: a name or a number of files that such an image has no place for.
    """
    root = _tree(files)
    folders = _folders(root)
    every = [child for folder in folders for child in folder.children.values() if child.data is not None]
    at = FIRST
    for node in (*folders, *every):
        node.sector = at
        at += max(1, -(-node.size // SECTOR))
    image = bytearray(at * SECTOR)
    tables = [_path_table(folders, "little"), _path_table(folders, "big")]
    _put(image, 16, _descriptor(label, root, at, len(tables[0])))
    _put(image, 17, b"\xffCD001\x01")
    for index, table in enumerate(tables):
        _put(image, PATH_TABLE + index, table)
    for folder in folders:
        _put(image, folder.sector, _records(folder))
    for node in every:
        image[node.sector * SECTOR : node.sector * SECTOR + node.size] = node.data or b""
    return bytes(image)


def _put(image: bytearray, sector: int, data: bytes) -> None:
    if len(data) > SECTOR:
        raise UsageError("too many files for one folder of a small ISO 9660 image")
    image[sector * SECTOR : sector * SECTOR + len(data)] = data


def _tree(files: Mapping[str, bytes]) -> _Node:
    root = _Node(name="", parent=None)
    for path, data in sorted(files.items()):
        node = root
        *folders, name = PurePosixPath(path).parts
        for part in folders:
            node = node.children.setdefault(part, _Node(name=part, parent=node))
        node.children[name] = _Node(name=name, parent=node, data=data)
    return root


def _folders(root: _Node) -> list[_Node]:
    """Return the folders in the path table's order: level by level, by name (ECMA-119, 6.9.1)."""
    found, level = [root], [root]
    while level:
        level = [child for node in level for child in _sorted(node) if child.data is None]
        found += level
    for number, node in enumerate(found, start=1):
        node.number = number
    return found


def _sorted(folder: _Node) -> list[_Node]:
    return sorted(folder.children.values(), key=lambda node: node.plain)


def _both(number: int, size: int) -> bytes:
    """Return a number in both byte orders (ECMA-119, 7.2.3 and 7.3.3)."""
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")


def _records(folder: _Node) -> bytes:
    start = b"SP\x07\x01\xbe\xef\x00" + _extension() if folder.parent is None else b""
    records = _record(folder, b"\0", start + _posix(folder)) + _record(folder.parent or folder, b"\1", _posix(folder))
    for node in _sorted(folder):
        name = node.name.encode()
        records += _record(node, node.plain, _posix(node) + b"NM" + bytes((5 + len(name), 1, 0)) + name)
    return records


def _extension() -> bytes:
    """Return the entry by which Linux knows that Rock Ridge follows (SUSP, 5.5)."""
    name = b"RRIP_1991A"
    return b"ER" + bytes((8 + len(name), 1, len(name), 0, 0, 1)) + name


def _posix(node: _Node) -> bytes:
    """Return the entry with mode, links, owner and group (RRIP 1.09, 4.1.1)."""
    mode, links = (_FOLDER_MODE, 2) if node.data is None else (_FILE_MODE, 1)
    return b"PX\x24\x01" + _both(mode, 4) + _both(links, 4) + _both(0, 4) + _both(0, 4)


def _record(node: _Node, name: bytes, system_use: bytes) -> bytes:
    """Return a directory record (ECMA-119, 9.1)."""
    body = _both(node.sector, 4) + _both(node.size, 4) + _DATE + bytes((2 if node.data is None else 0, 0, 0))
    body += _both(1, 2) + bytes((len(name),)) + name + (b"" if len(name) % 2 else b"\0") + system_use
    body += b"\0" * (len(body) % 2)  # with the two bytes in front, a record has an even length
    if len(body) + 2 > 255:
        raise UsageError(f"{node.name}: the name is too long for an ISO 9660 image")
    return bytes((len(body) + 2, 0)) + body


def _path_table(folders: list[_Node], order: str) -> bytes:
    """Return a path table (ECMA-119, 9.4)."""
    table = b""
    for folder in folders:
        name = folder.plain or b"\0"
        sector = folder.sector.to_bytes(4, "little" if order == "little" else "big")
        parent = (folder.parent or folder).number.to_bytes(2, "little" if order == "little" else "big")
        table += bytes((len(name), 0)) + sector + parent + name + b"\0" * (len(name) % 2)
    return table


def _descriptor(label: str, root: _Node, sectors: int, table: int) -> bytes:
    """Return the primary volume descriptor (ECMA-119, 8.4)."""
    fields = (
        b"\x01CD001\x01\0",
        b"LINUX".ljust(32),
        label.encode("ascii").ljust(32),
        bytes(8),
        _both(sectors, 4),
        bytes(32),
        _both(1, 2), _both(1, 2), _both(SECTOR, 2),
        _both(table, 4),
        PATH_TABLE.to_bytes(4, "little"), bytes(4),
        (PATH_TABLE + 1).to_bytes(4, "big"), bytes(4),
        _record(root, b"\0", b""),
        b" " * 128,  # volume set
        b" " * 128, b" " * 128,  # publisher, preparer
        b"IMAGEBUILDER".ljust(128),
        b" " * 37 * 3,  # files with copyright, abstract, bibliography
        _NO_DATE * 4,
        b"\x01\0",
    )  # fmt: skip
    return b"".join(fields)
