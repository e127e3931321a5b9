"""Readers of disks, judged by disks that other programs made: e2fsprogs, QEMU, dosfstools, mtools, util-linux, tar."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from test_ext4 import CAPABILITY, attributes, deep, large_directory, links, names, nodes, small_files, sparse

from imagebuilder import process
from imagebuilder.content import sha256_file
from imagebuilder.direct.virtual import RawFile, materialize
from imagebuilder.errors import ArtifactError
from imagebuilder.process import RealRunner
from imagebuilder.verify.disks import open_image
from imagebuilder.verify.disks.ext4 import Ext4
from imagebuilder.verify.disks.fat import Fat
from imagebuilder.verify.tree import Tree, walk

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, device nodes and capabilities need root"),
]

MIB = 1 << 20
LARGEST = 64 * MIB  # of a file that is compared whole


def run(*words: str | Path) -> str:
    """Run a program, or skip naming it where it is not installed."""
    if process.find(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    return RealRunner().run(words, capture=True, timeout=300).stdout


def odd_files(root: Path) -> None:
    """Fill a root with files as the writer of ours is tried on, but for those of endless size."""
    for fill in (names, links, nodes, attributes, deep):
        fill(root)
    sparse(root, 900 * MIB)
    with (root / "sparse").open("r+b") as stream:  # mke2fs 1.47.0 -O inline_data loses a hole at the end
        stream.seek(900 * MIB - 1)
        stream.write(b"x")
    for length in (0, 1, 59, 60, 61, 100, 150, 5000):
        (root / f"file-{length}").write_bytes(Random(length).randbytes(length))
    (root / "few-names").mkdir()
    for number in range(5):
        (root / "few-names" / str(number)).touch()


def fewer_files(root: Path) -> None:
    odd_files(root)
    for name in ("large", "many", "symlink-4000"):  # what must fit one block, and does not where blocks are small
        (root / name).unlink()


def many_files(root: Path) -> None:
    for fill in (small_files, large_directory):
        fill(root)


def compare(tree: Tree, root: Path) -> None:
    """Hold every file of a tree against that of a folder."""
    found = {os.fsencode(path.encode("utf-8", "surrogateescape")): entry for path, entry in walk(tree)}
    top = os.fsencode(root)
    wanted = {path[len(top) :] for folder, inner, files in os.walk(top) for path in (
        os.path.join(folder, name) for name in (*inner, *files))}  # fmt: skip
    assert found.keys() - {b"/", b"/lost+found"} == wanted
    for path in wanted:
        entry, state = found[path], os.lstat(top + path)
        assert (entry.mode, entry.uid, entry.gid) == (state.st_mode, state.st_uid, state.st_gid), path
        assert entry.mtime == int(state.st_mtime), path
        if entry.is_link:
            assert os.fsencode(entry.target) == os.readlink(top + path)
        if entry.is_file:
            assert entry.size == state.st_size
            with open(top + path, "rb") as stream:
                same = stream.read(LARGEST) == tree.content(path.decode("utf-8", "surrogateescape"), LARGEST)
            assert same, path


@pytest.mark.parametrize(
    ("fill", "options"),
    [
        pytest.param(odd_files, "", id="as it comes"),
        pytest.param(many_files, "", id="many files"),
        pytest.param(fewer_files, "-b 1024", id="blocks of 1 KiB"),
        pytest.param(many_files, "-b 1024 -N 20000", id="blocks of 1 KiB, many files"),
        pytest.param(fewer_files, "-b 2048 -O ^64bit,^metadata_csum", id="32 bits"),
        pytest.param(odd_files, "-I 128 -O ^resize_inode", id="inodes of 128 bytes"),
        pytest.param(odd_files, "-I 1024 -O inline_data", id="content in the inode"),
        pytest.param(odd_files, "-O inline_data,ea_inode,large_dir,metadata_csum_seed,mmp", id="all that is new"),
        pytest.param(odd_files, "-O ^flex_bg,sparse_super2,bigalloc -C 65536", id="blocks in clusters"),
        pytest.param(many_files, "-F -b 65536 -N 20000", id="blocks of 64 KiB"),
    ],
)
def test_any_ext4_is_read_as_its_source(fill: Callable[[Path], None], options: str, tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    fill(root)
    run("mkfs.ext4", "-q", *options.split(), "-d", root, image, "1400M")
    with RawFile(image) as disk:
        tree = Ext4(disk)
        compare(tree, root)
        if fill is not many_files:
            found = tree.entry("/few")
            assert found is not None and found.capability == CAPABILITY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param("-t ext2", "block map", id="ext2"),
        pytest.param("-t ext3", "block map", id="ext3"),
        pytest.param("-t ext4 -O meta_bg,^resize_inode", "features 0x10", id="meta_bg"),
        pytest.param("-t ext4 -O journal_dev", "features 0x8", id="a journal's device"),
    ],
)
def test_file_systems_that_are_not_read_are_refused(options: str, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("x")
    source = [] if "journal_dev" in options else ["-d", root]
    run("mke2fs", "-q", *options.split(), *source, tmp_path / "image", "64M")
    with RawFile(tmp_path / "image") as disk, pytest.raises(ArtifactError, match=message):
        list(walk(Ext4(disk)))


def test_a_journal_that_was_not_replayed_is_refused(tmp_path: Path) -> None:
    run("mke2fs", "-q", "-t", "ext4", tmp_path / "image", "64M")
    run("debugfs", "-w", "-R", "feature needs_recovery", tmp_path / "image")
    with RawFile(tmp_path / "image") as disk, pytest.raises(ArtifactError, match="not unmounted"):
        Ext4(disk)


@pytest.mark.parametrize(("bits", "size"), [(12, "4M"), (16, "64M"), (32, "64M")])
def test_any_fat_is_read_as_its_source(bits: int, size: str, tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    for number, name in enumerate((
        "EFI/BOOT/BOOTX64.EFI", "EFI/debian/grub.cfg", "lower", "UPPER.TXT", "Mixed Case and long.configuration",
        "thirteen.char", "twenty-six.characters.long", "\u00fcmlaut", "empty",
    )):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(Random(number).randbytes(50_000 * number % 170_000) if name != "empty" else b"")
    for number in range(200):
        (root / "EFI" / f"file number {number}").write_bytes(b"%d" % number)
    RealRunner().run(["truncate", "-s", size, image])
    run("mkfs.vfat", "-F", str(bits), *(["-s", "1"] if bits == 32 else []), image)
    for path in root.iterdir():
        run("env", "LC_ALL=C.UTF-8", "mcopy", "-s", "-i", image, path, "::/")
    with RawFile(image) as disk:
        tree = Fat(disk)
        found = {path[1:]: tree.content(path, MIB) for path, entry in walk(tree) if entry.is_file}
    wanted = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {name.lower(): data for name, data in found.items()} == {name.lower(): data for name, data in wanted.items()}
    assert len({*found} - {*wanted}) == 0, "names have the case that they were given"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with an MBR: an EFI system partition, a partition without /etc, an extended one with the root in it."""
    folder = tmp_path_factory.mktemp("raw")
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("node\n")
    many_files(root)
    run("mkfs.ext4", "-q", "-d", root, folder / "ext4", "200M")
    run("mkfs.vfat", "-C", folder / "fat", "8192")
    run("mkfs.ext4", "-q", folder / "other", "300M")
    disk = folder / "disk"
    with disk.open("wb") as stream:
        stream.truncate(600 * MIB + 512 * 3)
    (folder / "table").write_text("label: dos\n,8M,ef\n,300M,83\n,,05\n,210M,83\n,,82\n")
    run("sh", "-c", f"sfdisk -q {disk} < {folder / 'table'}")
    places = [line.split() for line in run("sfdisk", "-d", disk).replace(",", " ").replace("=", " ").splitlines()]
    starts = {int(words[0].removeprefix(str(disk))): int(words[3]) for words in places if words and "start" in words}
    for number, name in ((1, "fat"), (2, "other"), (5, "ext4")):
        run("dd", f"if={folder / name}", f"of={disk}", f"seek={starts[number]}", "bs=512", "conv=notrunc,sparse")
    return disk


def test_an_mbr_of_sfdisk_is_read_and_its_root_is_found(raw: Path, tmp_path: Path) -> None:
    with open_image(raw, tmp_path) as found:
        assert found.facts.table == "mbr"
        assert [(one.number, one.type) for one in found.facts.partitions] == [
            (1, "0xef"), (2, "0x83"), (3, "0x05"), (5, "0x83"), (6, "0x82"),
        ]  # fmt: skip
        stated = run("sfdisk", "-d", raw)
        for one in found.facts.partitions:
            assert f"start={one.start // 512:>12}, size={one.size // 512:>12}" in stated
        assert found.esp is not None and found.esp.names("/") == []
        compare(found.root, raw.parent / "root")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("qcow2", "", id="qcow2"),
        pytest.param("qcow2", "-o compat=0.10", id="qcow2 version 2"),
        pytest.param("qcow2", "-c", id="qcow2, zlib"),
        pytest.param("qcow2", "-c -o compat=0.10", id="qcow2 version 2, zlib"),
        pytest.param("qcow2", "-c -o compression_type=zstd", id="qcow2, zstd"),
        pytest.param("qcow2", "-o cluster_size=512", id="qcow2, clusters of 512 bytes"),
        pytest.param("qcow2", "-c -o cluster_size=2M,compression_type=zstd", id="qcow2, clusters of 2 MiB"),
        pytest.param("qcow2", "-o preallocation=metadata", id="qcow2, preallocated"),
        pytest.param("vmdk", "-o subformat=streamOptimized", id="vmdk"),
        pytest.param("vmdk", "-o subformat=monolithicSparse", id="vmdk, monolithic"),
        pytest.param("vmdk", "-o subformat=monolithicSparse,zeroed_grain=on", id="vmdk, zeroed grains"),
        pytest.param("vpc", "-o subformat=fixed,force_size", id="vhd"),
    ],
)
def test_any_format_of_qemu_gives_the_same_disk(raw: Path, kind: str, options: str, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    run("qemu-img", "convert", "-O", kind, *options.split(), raw, image)
    with open_image(image, tmp_path) as found:
        assert found.facts.format == {"vpc": "vhd"}.get(kind, kind)
        assert found.root.content("/etc/hostname", 9) == b"node\n"
        materialize(found.disk, back)
    run("truncate", "-s", str(raw.stat().st_size), back)
    assert sha256_file(back) == sha256_file(raw)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vpc", "-o subformat=dynamic", "dynamic VHD"), ("vmdk", "-o subformat=monolithicFlat", "several files"),
        ("vmdk", "-o subformat=twoGbMaxExtentSparse", "several files"), ("vhdx", "", "VHDX"), ("vdi", "", "VDI"),
        ("qcow2", "-o extended_l2=on", "features"), ("qcow2", "-o data_file=data", "features"),
        ("qed", "", "QED"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read_are_refused(
    raw: Path, kind: str, options: str, message: str, tmp_path: Path
) -> None:
    options = options.replace("data_file=data", f"data_file={tmp_path / 'data'}")
    run("qemu-img", "convert", "-O", kind, *options.split(), raw, tmp_path / "image")
    with pytest.raises(ArtifactError, match=message), open_image(tmp_path / "image", tmp_path):
        pass


@pytest.mark.parametrize(
    "form", ["--format=oldgnu -S", "--format=gnu -S", "--format=gnu", "--format=ustar", "--format=pax"]
)
@pytest.mark.parametrize("packed", ["-z", ""])
def test_a_disk_in_a_tar_is_the_same_disk(raw: Path, form: str, packed: str, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").symlink_to(raw)
    run("tar", "-C", tmp_path, "-h", *form.split(), *packed.split(), "-cf", tmp_path / "image", "disk.raw")
    (tmp_path / "scratch").mkdir()
    with open_image(tmp_path / "image", tmp_path / "scratch") as found:
        assert (found.packed, found.facts.format, found.facts.size) == ("tar.gz", "raw", raw.stat().st_size)
        materialize(found.disk, tmp_path / "back")
        (inside,) = (path for path in (tmp_path / "scratch").rglob("*") if path.is_file())
        assert inside.stat().st_blocks * 512 < 1.2 * raw.stat().st_blocks * 512, "holes are holes"
    assert sha256_file(tmp_path / "back") == sha256_file(raw)
    assert list((tmp_path / "scratch").iterdir()) == []
