"""CRC32C as ext4 counts it (doc "checksums"): without the inversions at the start and the end."""

from __future__ import annotations

import struct

import google_crc32c

_ALL = 0xFFFFFFFF
_INODE = struct.Struct("<II")


def crc32c(seed: int, data: bytes) -> int:
    """Return the raw CRC32C of data, going on from ``seed``."""
    value: int = google_crc32c.extend(seed ^ _ALL, data)
    return value ^ _ALL


def file_system_seed(uuid: bytes) -> int:
    """Return what all checksums but the superblock's start from."""
    return crc32c(_ALL, uuid)


def inode_seed(seed: int, inode: int) -> int:
    """Return what the checksums of an inode and its blocks start from; the generation is 0 everywhere."""
    return crc32c(seed, _INODE.pack(inode, 0))


def superblock_checksum(data: bytes) -> int:
    """Return the checksum of a superblock without its last field."""
    return crc32c(_ALL, data)
