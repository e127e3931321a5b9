"""Reading an ext4 of anyone: what our writer put there comes back, and what lies is an error, not a hang."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path

import pytest
from disk_images import CAPABILITY, EPOCH, ROOT_SIZE, content, ext4, make_tree, root_pieces
from ext4_reader import BLOCK, Reader
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_disk import MemoryDisk

from imagebuilder.direct.ext4.extents import Extent, root
from imagebuilder.direct.tree import Entry
from imagebuilder.direct.virtual import VirtualDisk
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.disks import ext4 as reader
from imagebuilder.verify.disks import folders
from imagebuilder.verify.disks.ext4 import Ext4
from imagebuilder.verify.disks.ext4map import Blocks, extents
from imagebuilder.verify.tree import walk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def image(folder: Path) -> bytes:
    return bytes(content(VirtualDisk(ROOT_SIZE, root_pieces(folder))))


def open_ext4(data: bytes | bytearray) -> Ext4:
    return Ext4(MemoryDisk(data))


def table_at(image: bytes) -> int:
    """Where the inodes of the first group are, in bytes."""
    return int(struct.unpack_from("<I", image, BLOCK + 8)[0]) * BLOCK


def changed(image: bytes, at: int, form: str, *values: int) -> bytearray:
    data = bytearray(image)
    struct.pack_into(form, data, at, *values)
    return data


def inode_at(image: bytes, path: bytes) -> int:
    return table_at(image) + (Reader(image).walk()[path].number - 1) * 256


def test_every_file_comes_back_as_it_was_put_there(folder: Path, image: bytes) -> None:
    tree = open_ext4(image)
    found = dict(walk(tree))
    wanted = {os.fsencode(path)[len(os.fsencode(folder)) :] for path in folder.rglob("*")}
    assert {path.encode("utf-8", "surrogateescape") for path in found} == wanted | {b"/", b"/lost+found"}
    for path, entry in found.items():
        if path in ("/", "/lost+found"):
            continue
        source = Path(os.fsdecode(os.fsencode(folder) + path.encode("utf-8", "surrogateescape")))
        state = source.lstat()
        assert (entry.mode, entry.uid, entry.gid) == (state.st_mode, state.st_uid, state.st_gid)
        assert entry.mtime == min(int(state.st_mtime), EPOCH)
        if entry.is_file:
            assert tree.content(path, 1 << 30) == source.read_bytes()
            assert tree.content(path, 5) == source.read_bytes()[:5]
            assert entry.size == state.st_size
        if entry.is_link:
            assert entry.target == os.readlink(source)
        if entry.is_folder:
            assert tree.names(path) == sorted(tree.names(path))
    assert len(tree.names("/many")) == 300


@pytest.mark.parametrize("path", ["/etc/none", "/etc/hostname/x", "/none/none/none", "/etc/..", "/.", "relative"])
def test_nothing_is_where_nothing_is(image: bytes, path: str) -> None:
    tree = open_ext4(image)
    assert (tree.entry(path), tree.names(path), tree.content(path, 9)) == (None, [], b"")


@pytest.mark.parametrize("path", ["/etc/hostname", "//etc//hostname", "etc/hostname"])
def test_slashes_too_many_do_not_matter(image: bytes, path: str) -> None:
    assert open_ext4(image).content(path, 99) == b"node\n"
    assert open_ext4(image).names("/etc/") == open_ext4(image).names("/etc")


def test_content_of_what_is_no_file_is_empty(image: bytes) -> None:
    tree = open_ext4(image)
    assert [tree.content(path, 9) for path in ("/", "/etc", "/usr/link1", "/etc/empty")] == [b""] * 4


@pytest.mark.parametrize("before", [0, 1, 4], ids=["in the inode", "after another", "in a block"])
def test_file_capabilities_are_found_wherever_they_are(before: int) -> None:
    others = tuple((f"user.a{number}", b"v" * 60) for number in range(before))
    file = Entry(b"ping", 0, stat.S_IFREG | 0o755, 0, 0, 0, 0, 0, b"",
                 (*others, ("security.capability", CAPABILITY)), 1, b"/dev/null")  # fmt: skip
    entry = open_ext4(ext4([file])).entry("/ping")
    assert entry is not None and entry.capability == CAPABILITY


def test_devices_and_times_before_and_long_after_1970_are_read() -> None:
    plain = Entry(b"", 0, stat.S_IFCHR | 0o666, 70_000, 80_000, 0, 0, os.makedev(1, 3), b"", (), 1, b"")
    names = {b"old": -10, b"null": 5}
    tree = open_ext4(ext4([
        plain._replace(path=name, mtime_ns=mtime * 10**9, link=at) for at, (name, mtime) in enumerate(names.items(), 1)
    ]))  # fmt: skip
    for name, mtime in names.items():
        entry = tree.entry(f"/{name.decode()}")
        assert entry is not None
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (stat.S_IFCHR | 0o666, 70_000, 80_000, mtime)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        pytest.param(1024 + 0x38, "<H", 0xEF54, "no ext4", id="no magic"),
        pytest.param(1024 + 0x60, "<I", 0x10 | 0x2C2, "features 0x10", id="meta_bg"),
        pytest.param(1024 + 0x60, "<I", 0x4 | 0x2C2, "not unmounted", id="journal"),
        pytest.param(1024 + 0x18, "<I", 20, "blocks of", id="block size"),
        pytest.param(1024 + 0x04, "<I", 1 << 31, "blocks of", id="larger than the disk"),
        pytest.param(1024 + 0x14, "<I", 1, "blocks of", id="first block"),
        pytest.param(1024 + 0x20, "<I", 0, "groups of", id="no blocks in a group"),
        pytest.param(1024 + 0x20, "<I", 1, "inodes in", id="a million groups"),
        pytest.param(1024 + 0x28, "<I", 0, "groups of", id="no inodes in a group"),
        pytest.param(1024 + 0x58, "<H", 100, "inodes of", id="inode size"),
        pytest.param(1024 + 0xFE, "<H", 3, "descriptors of", id="descriptor size"),
        pytest.param(BLOCK + 8, "<I", 1 << 30, "outside", id="inode table outside"),
        pytest.param(1024 + 0x4C, "<I", 0, "not supported", id="revision 0"),
    ],
)
def test_superblocks_that_lie_are_refused(image: bytes, at: int, form: str, value: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_ext4(changed(image, at, form, value))


@pytest.mark.parametrize(
    ("path", "at", "form", "value", "message"),
    [
        pytest.param(b"etc", 0, "<H", 0, "no kind", id="free inode"),
        pytest.param(b"etc", 4, "<I", 1 << 31, "a folder of", id="endless folder"),
        pytest.param(b"etc", 4, "<I", 0, "a folder of", id="folder of nothing"),
        pytest.param(b"etc", 4, "<I", 5000, "a folder of", id="folder of half a block"),
        pytest.param(b"etc", 40, "<H", 0, "extents that is none", id="no extents"),
        pytest.param(b"etc", 46, "<H", 6, "deep", id="deep"),
        pytest.param(b"etc", 46, "<H", 1, r"block \d+ of 4096", id="extents that are an index"),
        pytest.param(b"etc", 42, "<H", 200, "none", id="more extents than room"),
        pytest.param(b"etc", 60, "<I", 1 << 30, "an extent of", id="extent outside"),
        pytest.param(b"etc", 56, "<H", 0, "an extent of", id="extent of nothing"),
        pytest.param(b"etc", 32, "<I", 0, "block map", id="block map"),
        pytest.param(b"etc", 32, "<I", 0x80800, "encrypted", id="encrypted"),
        pytest.param(b"usr/link1", 4, "<I", 5000, "symbolic link of", id="long link"),
        pytest.param(b"usr/link1", 4, "<I", 0, "symbolic link of", id="link to nothing"),
        pytest.param(b"etc/hostname", 104, "<I", 3, "attributes", id="attributes that are none"),
        pytest.param(b"etc/hostname", 104, "<I", 1 << 30, "block", id="attributes outside"),
    ],
)
def test_inodes_that_lie_are_refused(image: bytes, path: bytes, at: int, form: str, value: int, message: str) -> None:
    tree = open_ext4(changed(image, inode_at(image, path) + at, form, value))
    with pytest.raises(ArtifactError, match=message):
        for name, _ in walk(tree):
            tree.content(name, 99)


@pytest.mark.parametrize(
    ("at", "form", "values", "message"),
    [
        pytest.param(0, "<I", (2,), "too$", id="a folder in itself"),
        pytest.param(0, "<I", (1 << 30,), "inode", id="no such inode"),
        pytest.param(4, "<H", (0,), "an entry of 0 bytes", id="an entry without length"),
        pytest.param(4, "<H", (6,), "an entry of 6 bytes", id="an entry too short for its name"),
        pytest.param(4, "<H", (0xFFFC,), "an entry of", id="an entry beyond its block"),
        pytest.param(6, "<B", (0,), "without a name", id="no name"),
        pytest.param(8, "<B", (ord("/"),), "with the name", id="a slash in a name"),
        pytest.param(8, "<B", (0,), "with the name", id="a NUL in a name"),
        pytest.param(8, "<3s", (b"usr",), "two files", id="a name twice"),
    ],
)
def test_folders_that_lie_are_refused(image: bytes, at: int, form: str, values: tuple[int, ...], message: str) -> None:
    reader = Reader(image)
    names = next(iter(reader.file(2).blocks.values())) * BLOCK
    tree = open_ext4(changed(image, image.index(b"\x03\x02etc", names) - 6 + at, form, *values))
    with pytest.raises(ArtifactError, match=message):
        list(walk(tree))


def test_names_and_depth_are_bounded(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="more than 100 names"):
        patch.setattr(folders, "MAX_NAMES", 100)
        list(walk(open_ext4(image)))
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="too long ones"):
        patch.setattr(folders, "MAX_CHARACTERS", 1000)
        list(walk(open_ext4(image)))
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="long symbolic links"):
        patch.setattr(reader, "_MAX_TARGETS", 900)
        list(walk(open_ext4(image)))
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="too deep"):
        patch.setattr(folders, "MAX_PATH", 10)
        list(walk(open_ext4(image)))
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="at once"):
        patch.setattr(folders, "MAX_CONTENT", 10)
        open_ext4(image).content("/usr/bin/holes", 11)


def test_a_file_that_says_it_is_endless_gives_what_was_asked_for(image: bytes) -> None:
    tree = open_ext4(changed(image, inode_at(image, b"etc/hostname") + 108, "<I", 0xFFFF))
    entry = tree.entry("/etc/hostname")
    assert entry is not None and entry.size > 1 << 40
    assert tree.content("/etc/hostname", 9000) == b"node\n".ljust(9000, b"\0")


@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 100)), max_size=500),
)
@settings(max_examples=50)
def test_all_extents_of_a_deep_tree_are_found(steps: list[tuple[int, int]]) -> None:
    wanted, logical = [], 0
    for gap, length in steps:
        wanted.append(Extent(logical + gap, 7 * logical + 9, length))
        logical += gap + length
    free = iter(range(1 << 20, 1 << 21))
    body, nodes = root(wanted, lambda: next(free), 99)
    found = list(extents(body, Blocks(dict(nodes).__getitem__, 1 << 22)))
    assert [(one.logical, one.start, one.length) for one in found] == [(e.logical, e.start, e.length) for e in wanted]


def test_a_tree_of_extents_in_a_circle_ends(image: bytes) -> None:
    node = struct.pack("<HHHHI", 0xF30A, 4, 4, 5, 0) + b"".join(
        struct.pack("<IIHH", at, 7, 0, 0) for at in range(4)
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="where 4 was stated"):
        list(extents(node, Blocks(lambda _: node, 100)))


@pytest.fixture(scope="module")
def places(image: bytes) -> list[int]:
    """Where meaning is: superblock, descriptors, the first inodes, those of /etc and of a link, folders, attributes."""
    reader = Reader(image)
    inodes = [inode_at(image, name) for name in (b"etc", b"usr/link1000", b"etc/hostname")]
    blocks = [
        block * BLOCK for number in (2, reader.walk()[b"etc"].number) for block in reader.file(number).blocks.values()
    ]
    ranges = (
        (1024, 1024),
        (BLOCK, 64),
        (table_at(image), 4000),
        *((at, 256) for at in inodes),
        *((at, 200) for at in blocks),
    )
    return [at for start, length in ranges for at in range(start, start + length)]


@given(st.data())
@settings(max_examples=200)
def test_any_damage_gives_a_value_or_an_error_and_ends(image: bytes, places: list[int], data: st.DataObject) -> None:
    broken = bytearray(image)
    for at, value in data.draw(st.lists(st.tuples(st.sampled_from(places), st.integers(0, 255)), min_size=1)):
        broken[at] = value
    with contextlib.suppress(ArtifactError):
        tree = open_ext4(broken)
        for path, _ in walk(tree):
            tree.content(path, 70_000)
