"""Extended attributes in the inode and in one block after it (doc "attributes")."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from imagebuilder.direct.ext4.checksum import crc32c
from imagebuilder.direct.ext4.geometry import BLOCK
from imagebuilder.errors import ArtifactError

MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")  # struct ext4_xattr_entry: name's length and index, value's offset, inode, size, hash
_HEADER = struct.Struct("<IIIII12x")  # struct ext4_xattr_header: magic, references, blocks, hash, checksum
_BLOCK_NUMBER = struct.Struct("<Q")
_IN_INODE_MAGIC = struct.Struct("<I")  # struct ext4_xattr_ibody_header
_END = bytes(4)  # of a list of entries
# Doc "attributes", the table of name prefixes; the longest that fits is taken.
_PREFIXES = (
    ("system.posix_acl_access", 2), ("system.posix_acl_default", 3), ("user.", 1), ("trusted.", 4), ("security.", 6),
    ("system.", 7),
)  # fmt: skip
_ACL_INDEXES = (2, 3)
# POSIX ACLs: linux/posix_acl_xattr.h has a version (2) and entries of tag, permissions, id; on disk (fs/ext4/acl.h)
# the version is 1, and only entries of named users and groups have an id.
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_SHORT = struct.Struct("<HH")
_ACL_NAMED = (0x02, 0x08)  # ACL_USER, ACL_GROUP

Attribute = tuple[int, bytes, bytes]  # index, rest of the name, value


def split(xattrs: Sequence[tuple[str, bytes]], room: int, path: bytes) -> tuple[bytes, list[Attribute]]:
    """Return what goes into the inode, and the attributes that have to go into a block.

    Args:
        xattrs: names and values as the kernel of this host gives them.
        room: bytes after the inode's own fields.
        path: of the file, for messages.
    """
    inside: list[Attribute] = []
    outside: list[Attribute] = []
    free = room - _IN_INODE_MAGIC.size - len(_END)
    for attribute in sorted((_attribute(name, value, path) for name, value in xattrs), key=_order):
        need = _size(attribute)
        if need <= free:
            inside.append(attribute)
            free -= need
        else:
            outside.append(attribute)
    if not inside:
        return b"", outside
    return _IN_INODE_MAGIC.pack(MAGIC) + _packed(inside, room - _IN_INODE_MAGIC.size, 0)[0], outside


def block(attributes: Sequence[Attribute], number: int, seed: int, path: bytes) -> bytes:
    """Return the block ``number`` with attributes.

    Raises:
        ArtifactError: they do not fit.
    """
    if sum(map(_size, attributes)) > BLOCK - _HEADER.size - len(_END):
        raise ArtifactError(f"the extended attributes of /{path.decode(errors='replace')} do not fit one block")
    body, hashes = _packed(attributes, BLOCK - _HEADER.size, _HEADER.size)
    total = 0
    for value in hashes:
        total = ((total << 16) ^ (total >> 16) ^ value) & 0xFFFFFFFF
    bare = _HEADER.pack(MAGIC, 1, 1, total, 0)
    checksum = crc32c(crc32c(seed, _BLOCK_NUMBER.pack(number)), bare + body)
    return _HEADER.pack(MAGIC, 1, 1, total, checksum) + body


def _attribute(name: str, value: bytes, path: bytes) -> Attribute:
    for prefix, index in _PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix).encode(errors="surrogateescape")
            return index, rest, _disk_acl(value) if index in _ACL_INDEXES else value
    what = f"/{path.decode(errors='replace')} has the extended attribute {name}"
    raise ArtifactError(f"{what}, which ext4 has no place for", hint=f"setfattr -x {name} on the file")


def _disk_acl(value: bytes) -> bytes:
    packed = [_ACL_HEADER.pack(1)]
    for tag, permissions, owner in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        named = tag in _ACL_NAMED
        packed.append(_ACL_ENTRY.pack(tag, permissions, owner) if named else _ACL_SHORT.pack(tag, permissions))
    return b"".join(packed)


def _order(attribute: Attribute) -> tuple[int, int, bytes]:
    """The order that the kernel searches a block in."""
    index, name, _ = attribute
    return index, len(name), name


def _size(attribute: Attribute) -> int:
    _, name, value = attribute
    return _ENTRY.size + _padded(len(name)) + _padded(len(value))


def _padded(length: int) -> int:
    return -(-length // 4) * 4


def _packed(attributes: Sequence[Attribute], room: int, base: int) -> tuple[bytes, list[int]]:
    """Return entries from the start and values from the end of ``room`` bytes, and the entries' hashes.

    Args:
        attributes: that fit.
        room: bytes.
        base: what is added to the offsets of values.
    """
    body, hashes = bytearray(room), list[int]()
    at, end = 0, room
    for index, name, value in attributes:
        end -= _padded(len(value))
        body[end : end + len(value)] = value
        hashes.append(_hash(name, value))
        offset = base + end if value else 0
        _ENTRY.pack_into(body, at, len(name), index, offset, 0, len(value), hashes[-1])
        body[at + _ENTRY.size : at + _ENTRY.size + len(name)] = name
        at += _ENTRY.size + _padded(len(name))
    return bytes(body), hashes


def _hash(name: bytes, value: bytes) -> int:
    """fs/ext4/xattr.c, ext4_xattr_hash_entry()."""
    total = 0
    for byte in name:
        total = ((total << 5) ^ (total >> 27) ^ byte) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", value.ljust(_padded(len(value)), b"\0")):
        total = ((total << 16) ^ (total >> 16) ^ word) & 0xFFFFFFFF
    return total
