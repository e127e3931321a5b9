"""What the layout of a file system promises, seen by a second, much simpler reader."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import uuid
from pathlib import Path

import pytest
from ext4_reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct.ext4 import extents
from imagebuilder.direct.ext4.blocks import Allocator
from imagebuilder.direct.ext4.extents import Extent
from imagebuilder.direct.ext4.geometry import BLOCK, GROUP_BLOCKS, geometry, has_superblock
from imagebuilder.direct.ext4.inodes import Inode
from imagebuilder.direct.ext4.layout import lay_out
from imagebuilder.direct.ext4.superblock import Identity
from imagebuilder.direct.tree import Entry, merge
from imagebuilder.direct.virtual import VirtualDisk
from imagebuilder.errors import ArtifactError

EPOCH = 1_700_000_000
IDENTITY = Identity(uuid=uuid.UUID(int=0x1234 << 64 | 5), label="root", epoch=EPOCH)
MIB = 1 << 20
SIZE = 16 * MIB

names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)
safe = names.filter(lambda name: name not in (b".", b"..", b"lost+found"))
trees = st.recursive(
    st.one_of(st.integers(0, 40_000), st.binary(min_size=1, max_size=100).filter(lambda target: b"\0" not in target)),
    lambda below: st.dictionaries(safe, below, max_size=6),
    max_leaves=25,
).filter(lambda tree: isinstance(tree, dict))


def make(folder: bytes, tree: object, number: int = 0) -> None:
    """Make files of a size, symbolic links to bytes, and directories."""
    assert isinstance(tree, dict)
    for name, value in tree.items():
        path = folder + b"/" + name
        number += 1
        if isinstance(value, int):
            with open(path, "wb") as stream:
                stream.write((b"%d " % number * value)[:value])
        elif isinstance(value, bytes):
            os.symlink(value, path)
        else:
            os.mkdir(path)
            make(path, value, number * 100)


def read(tree: list[Entry], size: int = SIZE) -> Reader:
    pieces = lay_out(tree, size, IDENTITY)
    buffer = bytearray(b"\xff" * size)
    VirtualDisk(size, pieces).read_into(0, memoryview(buffer))
    return Reader(bytes(buffer))


def check_accounts(found: Reader) -> None:
    """Every block and inode is counted once, and all counters agree."""
    files = {file.number: file for file in found.walk().values()} | {8: found.file(8)}
    owned = [block for file in files.values() for block in file.own]
    assert len(owned) == len(set(owned)), "a block with two owners"
    used = set().union(*(found.used(group) for group in range(found.groups)))
    assert set(owned) <= used
    assert found.free_blocks == found.blocks - len(used)
    form = geometry(found.blocks * BLOCK)
    fixed = {block for start, end in form.fixed() for block in range(start, end)}
    assert fixed <= used
    assert len(used - fixed - set(owned)) == 1, "only the resize inode's block"
    assert found.inodes - found.free_inodes == 10 + len(set(files) - {2, 8})


@settings(deadline=None, max_examples=25)
@given(shape=trees)
def test_random_trees_read_as_they_were(shape: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(os.fsencode(folder), shape)
        tree = merge([Path(folder)])
        found = read(tree)
        files = found.walk()
        assert files.keys() - {b"lost+found"} == {entry.path for entry in tree}
        for entry in tree:
            file = files[entry.path]
            assert file.mode == entry.mode
            if stat.S_ISREG(entry.mode):
                assert found.content(file) == Path(os.fsdecode(entry.host)).read_bytes()
            elif stat.S_ISLNK(entry.mode):
                inside = file.size < 60
                assert entry.target == (file.body[: file.size] if inside else found.content(file))
            else:
                below = [other for other in tree if other.parent == tree.index(entry) and other.path]
                extra = 0 if entry.path else 1
                assert file.links == 2 + extra + sum(stat.S_ISDIR(other.mode) for other in below)
        check_accounts(found)


def entry(path: bytes, mode: int, **changes: object) -> Entry:
    plain = Entry(path, 0, mode, 0, 0, 0, 0, 0, b"", (), 0, b"")
    return plain._replace(**changes)  # type: ignore[arg-type]


ROOT = entry(b"", stat.S_IFDIR | 0o755)


def test_owner_times_and_devices_are_in_the_inode() -> None:
    tree = [
        ROOT,
        entry(b"new", stat.S_IFIFO | 0o640, uid=70_000, gid=80_000, mtime_ns=(EPOCH + 9) * 10**9, link=1),
        entry(b"null", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), link=2, mtime_ns=5 * 10**9 + 7),
        entry(b"old", stat.S_IFBLK, rdev=os.makedev(259, 70_000), link=3, mtime_ns=-10 * 10**9),
    ]
    files = read(tree).walk()
    new, null, old = (files[name].raw for name in (b"new", b"null", b"old"))
    assert struct.unpack_from("<H", new, 2)[0] | struct.unpack_from("<H", new, 0x78)[0] << 16 == 70_000
    assert struct.unpack_from("<H", new, 0x18)[0] | struct.unpack_from("<H", new, 0x7A)[0] << 16 == 80_000
    assert struct.unpack_from("<III", new, 8) == (EPOCH,) * 3, "nothing is younger than the epoch"
    assert struct.unpack_from("<III", null, 8) == (5,) * 3
    assert struct.unpack_from("<III", null, 0x84) == (7 << 2,) * 3
    assert struct.unpack_from("<i", old, 8)[0] == -10
    assert {struct.unpack_from("<I", raw, 0x90)[0] for raw in (new, null, old)} == {EPOCH}
    assert struct.unpack_from("<II", null, 40) == (0x103, 0)
    assert struct.unpack_from("<II", old, 40) == (0, 70_000 & 0xFF | 259 << 8 | (70_000 & ~0xFF) << 12)


def test_hard_links_are_one_inode(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "d").mkdir()
    for name in ("b", "d/c"):
        os.link(tmp_path / "a", tmp_path / name)
    files = read(merge([tmp_path])).walk()
    assert files[b"a"].number == files[b"b"].number == files[b"d/c"].number
    assert files[b"a"].links == 3


def test_a_lost_and_found_of_the_tree_is_kept(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "x").write_text("kept")
    found = read(merge([tmp_path]))
    files = found.walk()
    assert found.content(files[b"lost+found/x"]) == b"kept"
    assert (files[b"lost+found"].size, files[b""].links) == (4 * BLOCK, 3)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 340, 341, 1361, 340 * 4 + 1, 340 * 340])
def test_extent_trees_hold_every_extent(count: int) -> None:
    wanted = [Extent(3 * number, 2 * number + 7, 2) for number in range(count)]
    free = iter(range(1 << 30, 1 << 31))
    body, blocks = extents.root(wanted, lambda: next(free), 99)
    nodes = dict(blocks)

    def below(node: bytes) -> list[Extent]:
        _, entries, most, depth, _ = struct.unpack_from("<HHHHI", node)
        assert entries <= most == (4 if node is body else 340)
        if depth:
            children = [struct.unpack_from("<IIH", node, 12 + 12 * at) for at in range(entries)]
            for first, child, _ in children:
                assert below(nodes[child])[0].logical == first
            return [extent for _, child, _ in children for extent in below(nodes[child])]
        found = [struct.unpack_from("<IHHI", node, 12 + 12 * at) for at in range(entries)]
        return [Extent(logical, high << 32 | low, length) for logical, length, high, low in found]

    assert len(body) == 60
    assert below(body) == wanted


@given(mebibytes=st.integers(8, 1 << 21))
@settings(deadline=None, max_examples=40)
def test_fixed_places_lie_apart_and_within_the_disk(mebibytes: int) -> None:
    form = geometry(mebibytes * MIB)
    last = 0
    for start, end in form.fixed():
        assert last <= start < end <= form.blocks
        last = end
    assert form.blocks <= mebibytes * MIB // BLOCK < form.blocks + GROUP_BLOCKS
    tables = sum(end - start for start, end in form.fixed())
    assert tables == sum(map(form.super_blocks, range(form.groups))) + form.groups * (2 + form.table_blocks)
    assert form.inodes_per_group <= 8 * BLOCK


def test_copies_of_the_superblock_are_where_sparse_super_says() -> None:
    assert [group for group in range(130) if has_superblock(group)] == [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]


def test_blocks_are_handed_out_once_and_in_order() -> None:
    form = geometry(600 * MIB)
    blocks = Allocator(form)
    runs = [run for count in (1, 40_000, 3, 0, 50_000) for run in blocks.take(count)]
    taken = [block for start, length in runs for block in range(start, start + length)]
    assert len(taken) == 90_004
    assert taken == sorted(set(taken))
    free = [block for start, end in form.free() for block in range(start, end)]
    assert taken == free[:90_004]
    assert max(length for _, length in runs) <= 32768
    assert blocks.cursor == taken[-1] + 1


@pytest.mark.parametrize("size", [7 * MIB, 1 << 45], ids=["too small", "too large"])
def test_sizes_that_are_not_made_are_refused(size: int) -> None:
    with pytest.raises(ArtifactError, match=r"too (small|large)") as caught:
        geometry(size)
    assert "size_gib" in caught.value.hint


def test_a_tree_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as stream:
        stream.truncate(SIZE)
    with pytest.raises(ArtifactError, match="does not fit a root partition of 16 MiB") as caught:
        lay_out(merge([tmp_path]), SIZE, IDENTITY)
    assert "size_gib" in caught.value.hint
    many = [ROOT, *(entry(b"%d" % number, stat.S_IFIFO, link=number) for number in range(1, 1100))]
    with pytest.raises(ArtifactError, match="has 1110 inodes; the file system has 1024"):
        lay_out(many, SIZE, IDENTITY)


@pytest.mark.parametrize(
    ("xattrs", "message"),
    [
        ((("user.big", b"x" * 5000),), "do not fit one block"),
        ((("os2.name", b"x"),), "has the extended attribute os2.name"),
    ],
)
def test_attributes_that_ext4_cannot_hold_are_refused(xattrs: tuple[tuple[str, bytes], ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        lay_out([ROOT, entry(b"f", stat.S_IFIFO, link=1, xattrs=xattrs)], SIZE, IDENTITY)


def test_an_inode_is_256_bytes_whatever_it_says() -> None:
    made = Inode(mode=0xFFFF, size=1 << 44, blocks=1 << 40, links=65000, mtime_ns=1 << 70, created=1 << 40)
    assert len(made.packed(1)) == 256


def test_a_lower_layers_large_files_stay_in_their_place_when_a_layer_above_changes(tmp_path: Path) -> None:
    base, upper, other = (tmp_path / name for name in ("base", "upper", "other"))
    for folder in (base, upper, other):
        (folder / "etc").mkdir(parents=True)
    for name, size in (("a", 80_000), ("etc/z", 300_000), ("etc/motd", 20), ("etc/rc", 10)):
        (base / name).write_bytes(b"x" * size)
    (upper / "etc/program").write_bytes(b"x" * 400_000)
    (other / "etc/program").write_bytes(b"x" * 500_000)
    (other / "etc/motd").write_bytes(b"x" * 5000)
    (other / "new").mkdir()

    def places(top: Path) -> dict[str, int]:
        pieces = lay_out(merge([top, base]), SIZE, IDENTITY)
        named = (
            (os.fsdecode(piece.source.path), piece.offset) for piece in pieces if not isinstance(piece.source, bytes)
        )
        return {str(Path(name).relative_to(tmp_path)): offset for name, offset in named}

    one, two = places(upper), places(other)
    large = ["base/etc/z", "base/a"]
    assert [one[name] for name in large] == [two[name] for name in large] == sorted(one[name] for name in large)
    assert one["upper/etc/program"] == two["other/etc/program"] > one["base/a"]
    assert max(one[name] for name in (*large, "upper/etc/program")) < one["base/etc/motd"] < one["base/etc/rc"]
