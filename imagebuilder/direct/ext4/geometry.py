"""Sizes and places of an ext4 file system that follow from its size alone, as ``mke2fs`` chooses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imagebuilder.errors import ArtifactError

BLOCK = 4096  # bytes
GROUP_BLOCKS = 8 * BLOCK  # blocks per group: what one bitmap of one block covers
INODE_SIZE = 256  # bytes
INODES_PER_BLOCK = BLOCK // INODE_SIZE
INODE_RATIO = 16384  # bytes of disk per inode (mke2fs.conf)
DESCRIPTOR_SIZE = 64  # bytes, with the feature 64bit
FLEX_GROUPS = 16  # whose bitmaps and inode tables lie together (doc "blockgroup", flexible block groups)
FLEX_BITS = FLEX_GROUPS.bit_length() - 1
GROWTH = 1024  # times: for how much larger a file system descriptors are reserved (mke2fs(8), resize=)
MAX_BLOCKS = 1 << 32
# Blocks of the file system, blocks of the journal: e2fsprogs, ext2fs_default_journal_size().
_JOURNALS = ((32768, 1024), (1 << 18, 4096), (1 << 19, 8192), (1 << 22, 16384), (1 << 23, 32768), (1 << 24, 65536),
             (1 << 25, 131072))  # fmt: skip
_LARGEST_JOURNAL = 262144
MIN_BLOCKS = 2048  # below that mke2fs makes no journal


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Where what is, in blocks from the start of the file system.

    Attributes:
        blocks: of the file system; what a last group too small for its own tables would hold is left out.
        groups: block groups.
        inodes_per_group: fills whole blocks.
        table_blocks: per group, of inodes.
        descriptor_blocks: of all group descriptors.
        reserved_blocks: after them, kept for more descriptors.
        journal_blocks: of the journal.
    """

    blocks: int
    groups: int
    inodes_per_group: int
    table_blocks: int
    descriptor_blocks: int
    reserved_blocks: int
    journal_blocks: int

    @property
    def inodes(self) -> int:
        """Return the number of all inodes."""
        return self.groups * self.inodes_per_group

    def group_start(self, group: int) -> int:
        """Return a group's first block."""
        return group * GROUP_BLOCKS

    def group_end(self, group: int) -> int:
        """Return the block after a group's last."""
        return min((group + 1) * GROUP_BLOCKS, self.blocks)

    def super_blocks(self, group: int) -> int:
        """Return how many blocks superblock, descriptors and what is reserved for them take in a group."""
        return 1 + self.descriptor_blocks + self.reserved_blocks if has_superblock(group) else 0

    def block_bitmap(self, group: int) -> int:
        """Return the block of a group's block bitmap."""
        return self._tables(group) + group % FLEX_GROUPS

    def inode_bitmap(self, group: int) -> int:
        """Return the block of a group's inode bitmap."""
        return self._tables(group) + self._together(group) + group % FLEX_GROUPS

    def inode_table(self, group: int) -> int:
        """Return the first block of a group's inode table."""
        return self._tables(group) + 2 * self._together(group) + group % FLEX_GROUPS * self.table_blocks

    def fixed(self) -> Iterator[tuple[int, int]]:
        """Yield the runs ``(start, end)`` of all blocks named above, ascending and apart."""
        for group in range(self.groups):
            start = self.group_start(group)
            end = start + self.super_blocks(group)
            if group % FLEX_GROUPS == 0:
                end += self._together(group) * (2 + self.table_blocks)
            if end > start:
                yield start, end

    def free(self) -> Iterator[tuple[int, int]]:
        """Yield the runs ``(start, end)`` between them."""
        last = 0
        for start, end in self.fixed():
            if start > last:
                yield last, start
            last = end
        if last < self.blocks:
            yield last, self.blocks

    def _tables(self, group: int) -> int:
        """Return where the tables of the group's flexible group begin."""
        first = group - group % FLEX_GROUPS
        return self.group_start(first) + self.super_blocks(first)

    def _together(self, group: int) -> int:
        """Return how many groups there are in the group's flexible group."""
        first = group - group % FLEX_GROUPS
        return min(FLEX_GROUPS, self.groups - first)


def has_superblock(group: int) -> bool:
    """Tell whether a group has a copy of the superblock (doc "blockgroup", sparse_super)."""
    return group <= 1 or any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def geometry(size: int) -> Geometry:
    """Return the geometry of a file system on ``size`` bytes.

    Raises:
        ArtifactError: it is too small or too large for what is written here.
    """
    blocks = size // BLOCK
    if not MIN_BLOCKS <= blocks < MAX_BLOCKS:
        what = f"a root partition of {size >> 20} MiB is too {'small' if blocks < MIN_BLOCKS else 'large'}"
        raise ArtifactError(what, hint="choose another size_gib in the target")
    inodes = blocks * BLOCK // INODE_RATIO
    while True:
        found = _of_blocks(blocks, inodes)
        # e2fsprogs, ext2fs_initialize(): a last group needs room for its tables, and 50 blocks more.
        last = found.groups - 1
        rest = found.group_end(last) - found.group_start(last)
        if last == 0 or rest >= 2 + found.table_blocks + found.super_blocks(last) + 50:
            return found
        blocks -= rest


def _of_blocks(blocks: int, inodes: int) -> Geometry:
    groups = -(-blocks // GROUP_BLOCKS)
    per_group = -(-inodes // groups)
    table_blocks = -(-per_group // INODES_PER_BLOCK)
    per_block = BLOCK // DESCRIPTOR_SIZE
    descriptor_blocks = -(-groups // per_block)
    most = min(blocks * GROWTH, MAX_BLOCKS - 1)
    most_groups = -(-most // GROUP_BLOCKS)
    reserved = -(-most_groups // per_block) - descriptor_blocks
    return Geometry(
        blocks=blocks, groups=groups, inodes_per_group=table_blocks * INODES_PER_BLOCK, table_blocks=table_blocks,
        descriptor_blocks=descriptor_blocks, reserved_blocks=max(0, min(reserved, BLOCK // 4)),
        journal_blocks=next((size for limit, size in _JOURNALS if blocks < limit), _LARGEST_JOURNAL),
    )  # fmt: skip
