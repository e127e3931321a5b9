"""File systems of ours, judged by e2fsprogs: clean, with the content of their source, and able to grow."""

from __future__ import annotations

import os
import re
import stat
import struct
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.content import sha256_file
from imagebuilder.direct.ext4.geometry import geometry
from imagebuilder.direct.ext4.layout import lay_out
from imagebuilder.direct.ext4.superblock import Identity
from imagebuilder.direct.tree import merge
from imagebuilder.direct.virtual import VirtualDisk, materialize
from imagebuilder.errors import ArtifactError
from imagebuilder.process import RealRunner

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, device nodes and capabilities need root"),
    pytest.mark.skipif(process.find("e2fsck") is None, reason="e2fsck is not installed"),
]

EPOCH = 1_700_000_000
UUID = uuid.UUID("0c6b2a7e-7f43-4ce5-9d14-3a3f4b5c6d7e")
MIB = 1 << 20
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
# POSIX ACL as getxattr gives it: version 2; user::rwx, user:1000:r-x, group::r-x, mask::r-x, other::---
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *item)
    for item in ((1, 7, 0xFFFFFFFF), (2, 5, 1000), (4, 5, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)
Fill = Callable[[Path], None]


def empty(root: Path) -> None:
    """Leave it empty."""


def small_files(root: Path) -> None:
    for number in range(3000):
        path = root / f"d{number % 40}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d\n" % number * (number % 2000))


def large_directory(root: Path) -> None:
    (root / "d").mkdir()
    for number in range(10_000):
        (root / "d" / f"entry with a longer name {number}").touch()


def names(root: Path) -> None:
    top = os.fsencode(root)
    for name in (b"\xff\xfe\x80", b"n" * 255, "\N{SNOWMAN}".encode() * 85, b"new\nline", b" ", b"-", b"\\"):
        with open(top + b"/" + name, "wb") as stream:
            stream.write(name)


def deep(root: Path) -> None:
    for _ in range(400):
        root = root / "deep"
        root.mkdir()
    (root / "bottom").write_text("here")


def links(root: Path) -> None:
    for length in (1, 59, 60, 61, 1000, 4000):
        os.symlink("x" * length, root / f"symlink-{length}")
    (root / "a").write_text("linked")
    for number in range(300):
        os.link(root / "a", root / f"b{number}")
    os.symlink("a", root / "s")
    os.link(root / "s", root / "s2", follow_symlinks=False)


def nodes(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)
    os.link(root / "null", root / "null2")


def attributes(root: Path) -> None:
    for name in ("few", "many", "large"):
        (root / name).write_text(name)
    (root / "dir").mkdir()
    os.setxattr(root / "few", "security.capability", CAPABILITY)
    os.setxattr(root / "few", "user.empty", b"")
    os.setxattr(root / "dir", "system.posix_acl_access", ACL)
    os.setxattr(root / "dir", "system.posix_acl_default", ACL)
    os.setxattr(root / "large", "user.large", bytes(range(256)) * 12)
    for number in range(40):
        os.setxattr(root / "many", f"user.{'n' * (number % 7)}{number}", b"v" * number)
    os.symlink("few", root / "link")
    os.setxattr(root / "link", "trusted.of-a-link", b"yes", follow_symlinks=False)


def sparse(root: Path, size: int = 3 << 30) -> None:
    with (root / "sparse").open("wb") as stream:
        for number in range(400):  # more extents than one block of the tree has room for
            stream.seek(number * 2 * MIB + 17)
            stream.write(b"data %d" % number)
        stream.truncate(size)
    with (root / "hole").open("wb") as stream:
        stream.truncate(1 << 40)


CASES: list[tuple[Fill, int]] = [
    (empty, 8), (small_files, 200), (large_directory, 300), (names, 64), (deep, 64), (links, 64), (nodes, 64),
    (attributes, 64), (sparse, 600),
]  # fmt: skip


def write(root: Path, out: Path, mebibytes: int) -> Path:
    """Write a folder as a file system."""
    identity = Identity(uuid=UUID, label="root", epoch=EPOCH)
    size = mebibytes * MIB
    materialize(VirtualDisk(size, lay_out(merge([root]), size, identity)), out)
    return out


def check(image: Path) -> str:
    """Let e2fsck look at everything; return what it says."""
    found = RealRunner().run(["e2fsck", "-fn", image], check=False, timeout=300)
    assert found.returncode == 0, "\n".join(found.tail)
    return "\n".join(found.tail)


def debugfs(image: Path, request: str) -> str:
    found = RealRunner().run(["debugfs", "-R", request, image], capture=True, timeout=300)
    return found.stdout


@pytest.mark.parametrize(("fill", "mebibytes"), CASES, ids=[fill.__name__ for fill, _ in CASES])
def test_e2fsck_finds_nothing_and_the_content_is_that_of_the_source(fill: Fill, mebibytes: int, tmp_path: Path) -> None:
    root, back = tmp_path / "root", tmp_path / "back"
    root.mkdir()
    back.mkdir()
    fill(root)
    image = write(root, tmp_path / "image", mebibytes)
    said = check(image)
    for word in ("NOT", "fixed", "WARNING", "? no"):
        assert word not in said
    if fill not in (nodes, sparse):
        debugfs(image, f"rdump / {back}")
        expected = facts(root)
        found = facts(back)
        assert found.pop(b"lost+found")[0] == stat.S_IFDIR | 0o700
        assert found == expected


def facts(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return what rdump keeps of a tree."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = folder + b"/" + name
            status = os.lstat(path)
            what: object = None
            if stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                what = sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            found[path[len(top) + 1 :]] = (status.st_mode, status.st_uid, status.st_gid, what)
    return found


def test_two_runs_give_the_same_bytes_whatever_the_host_did_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for fill in (small_files, links, nodes, attributes):
        fill(root)
    first = sha256_file(write(root, tmp_path / "first", 200))
    RealRunner().run(["cp", "-a", root, tmp_path / "copy"])
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (EPOCH + 10**6, EPOCH + 10**6), follow_symlinks=False)
    assert sha256_file(write(tmp_path / "copy", tmp_path / "second", 200)) == first


def test_links_and_nodes_are_what_they_were(tmp_path: Path) -> None:
    for fill in (links, nodes):
        fill(tmp_path)
    image = write(tmp_path, tmp_path.with_suffix(".img"), 64)
    assert re.search(r"Links: 301 ", debugfs(image, "stat /b7"))
    assert re.search(r"Inode: (\d+)", debugfs(image, "stat /a")) is not None
    assert debugfs(image, "stat /a").split()[1] == debugfs(image, "stat /b299").split()[1]
    assert "Device major/minor number: 01:03" in debugfs(image, "stat /null2")
    assert "(hex 103:11170)" in debugfs(image, "stat /block")
    assert "Type: FIFO" in debugfs(image, "stat /fifo")
    assert "Type: socket" in debugfs(image, "stat /socket")
    image.unlink()


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("few", "security.capability", CAPABILITY),
        ("large", "user.large", bytes(range(256)) * 12),
        ("many", "user.nnn17", b"v" * 17),
        ("dir", "system.posix_acl_access", ACL),
        ("dir", "system.posix_acl_default", ACL),
        ("link", "trusted.of-a-link", b"yes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attributes_are_what_they_were(path: str, name: str, value: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    attributes(root)
    image = write(root, tmp_path / "image", 64)
    debugfs(image, f"ea_get -f {tmp_path / 'value'} /{path} {name}")
    if "acl" in name:  # debugfs gives 0 as the id of entries that have none, the kernel -1
        value = value.replace(b"\xff" * 4, bytes(4))
    assert (tmp_path / "value").read_bytes() == value


def test_a_sparse_file_reads_as_it_was_and_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    sparse(root, 801 * MIB)
    image = write(root, tmp_path / "image", 600)
    said = debugfs(image, "stat /sparse")
    assert f"Size: {801 * MIB}" in said
    blocks = re.search(r"Blockcount: (\d+)", said)
    assert blocks and 400 * 2048 < int(blocks[1]) <= 400 * 2048 + 3 * 8, "the data, and two or three nodes"
    assert "Blockcount: 0" in debugfs(image, "stat /hole")
    debugfs(image, f"dump -p /sparse {tmp_path / 'back'}")
    RealRunner().run(["cmp", root / "sparse", tmp_path / "back"], timeout=300)


def test_a_disk_is_filled_to_the_brim_and_no_further(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with (root / "big").open("wb") as stream:
        stream.truncate(150 * MIB)
    free = re.search(r"Free blocks: +(\d+)", tune2fs(write(root, tmp_path / "image", 200)))
    assert free
    os.truncate(root / "big", 150 * MIB + int(free[1]) * 4096)
    image = write(root, tmp_path / "image", 200)
    check(image)
    assert re.search(r"Free blocks: +0\n", tune2fs(image))
    os.truncate(root / "big", 150 * MIB + int(free[1]) * 4096 + 1)
    with pytest.raises(ArtifactError, match="does not fit") as caught:
        write(root, tmp_path / "other", 200)
    assert caught.value.hint
    assert not (tmp_path / "other").exists()


def tune2fs(image: Path) -> str:
    return RealRunner().run(["tune2fs", "-l", image], capture=True).stdout


def test_tune2fs_says_what_was_meant(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    lines = [line.partition(":") for line in tune2fs(write(root, tmp_path / "image", 2000)).splitlines()]
    said = {key: value.strip() for key, _, value in lines}
    assert said["Filesystem features"].split() == [
        "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg",
        "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
    ]  # fmt: skip
    expected = {
        "Filesystem volume name": "root", "Filesystem UUID": str(UUID), "Directory Hash Seed": str(UUID),
        "Filesystem state": "clean", "Default mount options": "user_xattr acl", "Block size": "4096",
        "Inode size": "256", "Reserved block count": str(2000 * MIB // 4096 // 100), "Journal inode": "8",
        "Maximum mount count": "-1", "Flex block group size": "16", "Checksum type": "crc32c", "First inode": "11",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected


@pytest.mark.parametrize("mebibytes", [8, 127, 129, 700, 2048, 2100, 9000])
def test_sizes_and_places_are_those_of_mke2fs(mebibytes: int, tmp_path: Path) -> None:
    """The same geometry, so that what tools expect of a file system of that size holds.

    Only where a flexible group has but one group, mke2fs leaves room between its bitmaps.
    """
    root = tmp_path / "root"
    root.mkdir()
    ours = write(root, tmp_path / "ours", mebibytes)
    theirs = tmp_path / "theirs"
    with theirs.open("wb") as stream:
        stream.truncate(mebibytes * MIB)
    features = "^metadata_csum_seed,^orphan_file"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "1", "-O", features]
    RealRunner().run([*argv, theirs])

    def places(image: Path) -> list[str]:
        said = RealRunner().run(["dumpe2fs", image], capture=True).stdout
        wanted = (
            "Inode count", "Block count", "Reserved block count", "Overhead", "Reserved GDT", "Blocks per group",
            "Inodes per group", "Inode blocks per group", "Flex", "Group descriptor size", "Total journal blocks",
            *(("superblock at", "bitmap at", "Inode table at") if geometry(mebibytes * MIB).groups % 16 != 1 else ()),
        )  # fmt: skip
        return [re.sub(r",? csum.*", "", line) for line in said.splitlines() if any(word in line for word in wanted)]

    assert places(ours) == places(theirs)


def test_resize2fs_grows_it_and_shrinks_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    small_files(root)
    image = write(root, tmp_path / "image", 200)
    for size in ("9G", "500M"):
        with image.open("r+b") as stream:
            stream.truncate(max(image.stat().st_size, 9 << 30))
        RealRunner().run(["resize2fs", image, size], timeout=300)
        check(image)
    assert debugfs(image, "cat /d7/f7") == "7\n" * 7
