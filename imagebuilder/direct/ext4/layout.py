"""Lays a tree out as an ext4 file system: a list of pieces, no content of files in memory."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from itertools import count

from imagebuilder.direct.ext4 import attributes, directories, extents, superblock
from imagebuilder.direct.ext4.blocks import HINT, Allocator
from imagebuilder.direct.ext4.checksum import file_system_seed, inode_seed
from imagebuilder.direct.ext4.extents import Extent
from imagebuilder.direct.ext4.geometry import BLOCK, INODE_SIZE, geometry, has_superblock
from imagebuilder.direct.ext4.groups import groups
from imagebuilder.direct.ext4.inodes import FAST_SYMLINK, FLAG_EXTENTS, ROOM, Inode, device_body, is_device
from imagebuilder.direct.ext4.superblock import FIRST_INODE, JOURNAL_INODE, RESIZE_INODE, Identity
from imagebuilder.direct.sparse import nonzero_grains
from imagebuilder.direct.tree import Entry
from imagebuilder.direct.virtual import FileSlice, Piece
from imagebuilder.errors import ArtifactError

ROOT_INODE = 2
LOST_AND_FOUND = b"lost+found"
LOST_BLOCKS = 4  # so that e2fsck need not find room for names when there is none (mklost+found(8))
MAX_LINKS = 65000  # fs/ext4/ext4.h, EXT4_LINK_MAX; a directory with more says 1 (dir_nlink)
SPARSE_FROM = 256 << 20  # bytes: of larger files the zeros are looked for; reading smaller ones twice costs more
LARGE = 64 << 10  # bytes: of files below that a node has many, which together take a tenth of its disk
_NANO = 1_000_000_000
_Runs = list[tuple[int, int]]


def lay_out(tree: Sequence[Entry], size: int, identity: Identity) -> list[Piece]:
    """Return a file system of ``size`` bytes that holds ``tree``, as pieces.

    Args:
        tree: as :func:`imagebuilder.direct.tree.merge` returns it.
        size: bytes of the partition.
        identity: of the file system.

    Raises:
        ArtifactError: the tree does not fit, or holds what ext4 cannot.
    """
    return _Layout(tree, size, identity).pieces()


class _Layout:
    """Numbers inodes in the order of paths, and hands out blocks: journal, files, then directories.

    Of the files the large ones of the lowest layer come first: what changes little, and most of all, stays in its place
    when a layer above it changes, or hides a small file of it.
    """

    def __init__(self, tree: Sequence[Entry], size: int, identity: Identity) -> None:
        self._geometry = geometry(size)
        self._identity = identity
        self._seed = file_system_seed(identity.uuid.bytes)
        self._newest = identity.epoch * _NANO
        self._blocks = Allocator(self._geometry)
        self._pieces: list[Piece] = []
        self._entries = list(tree)
        if not any(entry.path == LOST_AND_FOUND for entry in tree):
            self._entries.append(_lost_and_found(len(tree)))
        self._inodes = self._numbers()
        self._names = self._children()
        self._used = max(self._inodes)
        if self._used > self._geometry.inodes:
            what = f"the root tree has {self._used} inodes; the file system has {self._geometry.inodes}"
            raise ArtifactError(what, hint=HINT)
        self._table = bytearray(self._used * INODE_SIZE)
        self._directories = [0] * self._geometry.groups

    def pieces(self) -> list[Piece]:
        resize_block = self._blocks.one()
        for block, data in superblock.resize_blocks(self._geometry, resize_block):
            self._put(block, data)
        journal = self._special(resize_block)
        links = self._links()
        for place, entry in sorted(enumerate(self._entries), key=lambda item: _rank(item[1])):
            if entry.link == place and not stat.S_ISDIR(entry.mode):
                self._other(place, entry, links[place])
        for place, entry in enumerate(self._entries):
            if stat.S_ISDIR(entry.mode):
                self._directory(place, entry)
        self._finish(journal)
        return self._pieces

    def _numbers(self) -> list[int]:
        """Return the inode of every entry."""
        free, numbers = count(FIRST_INODE), [ROOT_INODE]
        for place, entry in enumerate(self._entries[1:], start=1):
            numbers.append(next(free) if entry.link == place else numbers[entry.link])
        return numbers

    def _children(self) -> dict[int, list[directories.Name]]:
        """Return the names in every directory."""
        names: dict[int, list[directories.Name]] = {}
        for place, entry in enumerate(self._entries):
            if place:
                kind = directories.KINDS[stat.S_IFMT(entry.mode)]
                name = entry.path.rpartition(b"/")[2]
                names.setdefault(entry.parent, []).append((name, self._inodes[place], kind))
        return names

    def _links(self) -> list[int]:
        """Return how many names lead to each entry."""
        links = [0] * len(self._entries)
        for entry in self._entries:
            links[entry.link] += 1
        return links

    def _directory(self, place: int, entry: Entry) -> None:
        inode, kind = self._inodes[place], directories.KINDS[stat.S_IFDIR]
        names = self._names.get(place, [])
        own = [(b".", inode, kind), (b"..", self._inodes[entry.parent], kind)]
        blocks = directories.split([*own, *names], LOST_BLOCKS if entry.path == LOST_AND_FOUND else 1)
        below = sum(1 for name in names if name[2] == kind)
        seed = inode_seed(self._seed, inode)
        runs = self._blocks.take(len(blocks))
        self._put_runs(runs, directories.packed(blocks, seed))
        links = 2 + below if 2 + below < MAX_LINKS else 1
        self._file_inode(place, entry, _extents(runs), links, len(blocks) * BLOCK)
        self._directories[(inode - 1) // self._geometry.inodes_per_group] += 1

    def _other(self, place: int, entry: Entry, links: int) -> None:
        if links > MAX_LINKS:
            raise ArtifactError(f"/{entry.path.decode(errors='replace')} has {links} names; ext4 has {MAX_LINKS}")
        mode = entry.mode
        if stat.S_ISREG(mode):
            self._file_inode(place, entry, self._content(entry), links, entry.size)
        elif stat.S_ISLNK(mode) and len(entry.target) >= FAST_SYMLINK:
            runs = self._blocks.take(1)
            self._put_runs(runs, entry.target.ljust(BLOCK, b"\0"))
            self._file_inode(place, entry, _extents(runs), links, len(entry.target))
        else:
            body = device_body(entry.rdev) if is_device(mode) else entry.target.ljust(extents.ROOT_SIZE, b"\0")
            self._write_inode(place, entry, Inode(
                mode=mode, links=links, size=len(entry.target), body=body, mtime_ns=0, created=0
            ))  # fmt: skip

    def _content(self, entry: Entry) -> list[Extent]:
        """Plan where a file's content goes; it is read later."""
        grains = nonzero_grains(entry.host, entry.size) if entry.size >= SPARSE_FROM else [(0, entry.size)]
        found: list[Extent] = []
        for start, end in grains:
            logical = start // BLOCK
            for block, length in self._blocks.take(-(-(end - start) // BLOCK)):
                at = logical * BLOCK
                size = min(length * BLOCK, end - at)
                self._pieces.append(Piece(block * BLOCK, size, FileSlice(entry.host, at)))
                found.append(Extent(logical, block, length))
                logical += length
        return found

    def _file_inode(self, place: int, entry: Entry, found: Sequence[Extent], links: int, size: int) -> None:
        seed = inode_seed(self._seed, self._inodes[place])
        body, nodes = extents.root(found, self._blocks.one, seed)
        for block, data in nodes:
            self._put(block, data)
        self._write_inode(place, entry, Inode(
            mode=entry.mode, links=links, size=size, flags=FLAG_EXTENTS, body=body,
            blocks=len(nodes) + sum(extent.length for extent in found), mtime_ns=0, created=0,
        ))  # fmt: skip

    def _write_inode(self, place: int, entry: Entry, inode: Inode) -> None:
        inode.uid, inode.gid = entry.uid, entry.gid
        inode.mtime_ns, inode.created = min(entry.mtime_ns, self._newest), self._identity.epoch
        if entry.xattrs:
            inode.inside, rest = attributes.split(entry.xattrs, ROOM, entry.path)
            if rest:
                inode.attributes = self._blocks.one()
                inode.blocks += 1
                self._put(inode.attributes, attributes.block(rest, inode.attributes, self._seed, entry.path))
        self._store(self._inodes[place], inode)

    def _store(self, number: int, inode: Inode) -> None:
        packed = inode.packed(inode_seed(self._seed, number))
        self._table[(number - 1) * INODE_SIZE : number * INODE_SIZE] = packed

    def _special(self, resize_block: int) -> bytes:
        """Write the inodes of the journal and of room for growth; return i_block of the journal."""
        mode, newest, created = stat.S_IFREG | 0o600, self._newest, self._identity.epoch
        size = self._geometry.journal_blocks
        found = _extents(self._blocks.take(size))
        body, nodes = extents.root(found, self._blocks.one, inode_seed(self._seed, JOURNAL_INODE))
        for block, data in [*nodes, (found[0].start, superblock.journal_superblock(self._geometry, self._identity))]:
            self._put(block, data)
        self._store(JOURNAL_INODE, Inode(
            mode=mode, size=size * BLOCK, blocks=size + len(nodes), flags=FLAG_EXTENTS, body=body, mtime_ns=newest,
            created=created,
        ))  # fmt: skip
        self._store(RESIZE_INODE, Inode(
            mode=mode, size=superblock.resize_size(), blocks=superblock.resize_total(self._geometry),
            body=superblock.resize_body(resize_block), mtime_ns=newest, created=created,
        ))  # fmt: skip
        return body

    def _finish(self, journal: bytes) -> None:
        """Write what counts everything else."""
        form = self._geometry
        size = form.inodes_per_group * INODE_SIZE
        for group in range(-(-len(self._table) // size)):
            part = bytes(self._table[group * size : (group + 1) * size])
            self._pieces.append(Piece(form.inode_table(group) * BLOCK, len(part), part))
        made = groups(form, self._blocks.cursor, self._used, self._directories, self._seed)
        for block, data in made.bitmaps:
            self._put(block, data)
        for group in filter(has_superblock, range(form.groups)):
            start = form.group_start(group)
            data = superblock.superblock(form, self._identity, made.free_blocks, self._used, journal, group)
            at = superblock.PRIMARY_AT if group == 0 else start * BLOCK
            self._pieces.append(Piece(at, len(data), data))
            self._pieces.append(Piece((start + 1) * BLOCK, len(made.descriptors), made.descriptors))

    def _put(self, block: int, data: bytes) -> None:
        self._pieces.append(Piece(block * BLOCK, len(data), data))

    def _put_runs(self, runs: _Runs, data: bytes) -> None:
        at = 0
        for block, length in runs:
            self._put(block, data[at : at + length * BLOCK])
            at += length * BLOCK


def _rank(entry: Entry) -> tuple[bool, int, int]:
    """Return what files are put in order by; those that are equal stay in the order of paths."""
    return entry.size < LARGE, -entry.layer, -entry.size


def _extents(runs: _Runs) -> list[Extent]:
    return list(_numbered(runs))


def _numbered(runs: _Runs) -> Iterator[Extent]:
    logical = 0
    for block, length in runs:
        yield Extent(logical, block, length)
        logical += length


def _lost_and_found(place: int) -> Entry:
    return Entry(LOST_AND_FOUND, 0, stat.S_IFDIR | 0o700, 0, 0, 1 << 62, 0, 0, b"", (), place, b"")
