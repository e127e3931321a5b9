"""The small initramfs: the archive's format, the order of drivers, and what is in the whole."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.direct import cpio, initramfs, kernelmodules
from imagebuilder.direct.cpio import Member, archive
from imagebuilder.direct.initramfs import small_initramfs
from imagebuilder.direct.kernelmodules import load_order, module_name, read_index
from imagebuilder.direct.layers import Layer
from imagebuilder.errors import ArtifactError
from imagebuilder.targets import load_target, target_names

KERNEL, EPOCH = "6.1.0-1-cloud-amd64", 1_700_000_000
ELF = b"\x7fELF"


def unpacked(data: bytes) -> list[tuple[Member, dict[str, int]]]:
    """Read an archive as the kernel's init/initramfs.c does; with each member, its numbers."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        names = ("ino", "mode", "uid", "gid", "nlink", "mtime", "size", "major", "minor", "rmajor", "rminor", "name")
        fields = {name: int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i, name in enumerate(names)}
        begin = at + 110
        name = data[begin : begin + fields["name"]]
        assert name.endswith(b"\0")
        content = (begin + fields["name"] + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert data[content:] == b""
            return found
        member = Member(
            name=name[:-1].decode(), mode=fields["mode"], data=data[content : content + fields["size"]],
            device=(fields["rmajor"], fields["rminor"]),
        )  # fmt: skip
        found.append((member, fields))
        at = (content + fields["size"] + 3) & ~3


NAMES = st.text("ab/.-_\u00e9\U0001f427", min_size=1, max_size=9)
MEMBERS = st.builds(
    Member, name=NAMES, mode=st.integers(0, 0o177777), data=st.binary(max_size=99),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20)),
)  # fmt: skip


@settings(max_examples=50)
@given(st.lists(MEMBERS, max_size=4))
def test_what_goes_into_an_archive_comes_out_of_it(members: list[Member]) -> None:
    found = unpacked(archive(members, EPOCH))
    assert [member for member, _ in found] == members
    assert [fields["ino"] for _, fields in found] == list(range(1, len(members) + 1))
    assert {(fields["uid"], fields["gid"], fields["mtime"]) for _, fields in found} <= {(0, 0, EPOCH)}


@pytest.mark.parametrize(("name", "data"), [("n" * 4096, b""), ("n", b"long")], ids=["name", "content"])
def test_what_the_format_cannot_hold_is_refused(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "_SIZE_LIMIT", 4)
    with pytest.raises(ArtifactError, match="too long for an initramfs"):
        archive([cpio.file(name, data)], EPOCH)


# --- the order of drivers

DEP = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/xen-blkfront.ko.xz:
kernel/fs/jbd2/jbd2.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
kernel/crypto/crc32c-intel.ko:
kernel/crypto/crc32c_generic.ko:
kernel/net/later.ko:
"""
SOFT = (
    "# softdep none pre: at-all\nsoftdep ext4 pre: crypto-crc32c no-such post: later\nsoftdep jbd2 pre: crypto-crc32c\n"
    "softdep later before-any-part\nsoftdep\n"
)
ALIAS = (
    "alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\nalias pci:v*d* virtio_blk\nalias half\n"
    "alias nvme_pci nvme\n"
)
INDEX = read_index(DEP, "kernel/drivers/nvme/host/nvme.ko\n\n", SOFT, ALIAS)


@pytest.mark.parametrize(
    ("names", "loaded"),
    [
        pytest.param(["virtio_blk"], ["virtio", "virtio_ring", "virtio_blk"], id="needs-first"),
        pytest.param(["virtio_blk", "virtio"], ["virtio", "virtio_ring", "virtio_blk"], id="each-once"),
        pytest.param(["xen_blkfront"], ["xen_blkfront"], id="dash-in-the-file"),
        pytest.param(["xen-blkfront"], ["xen_blkfront"], id="dash-in-the-list"),
        pytest.param(["nvme"], [], id="in-the-kernel"),
        pytest.param(["ext4"], ["crc32c_intel", "crc32c_generic", "jbd2", "ext4", "later"], id="soft-by-an-alias"),
        pytest.param([], [], id="none"),
    ],
)
def test_drivers_are_loaded_after_what_they_need(names: list[str], loaded: list[str]) -> None:
    assert [module_name(path) for path in load_order(INDEX, names)] == loaded


def test_all_drivers_that_the_kernel_lacks_are_named() -> None:
    with pytest.raises(ArtifactError, match="no driver ahci, mptspi") as caught:
        load_order(INDEX, ["ahci", "virtio", "mptspi"])
    assert "initramfs_modules" in caught.value.hint


@pytest.mark.parametrize("path", ["/etc/shadow", "kernel/../../../etc/shadow"])
@pytest.mark.parametrize("line", ["{}:", "kernel/a.ko: {}"])
def test_an_index_that_leads_elsewhere_is_refused(path: str, line: str) -> None:
    with pytest.raises(ArtifactError, match="not among the kernel's modules"):
        read_index(line.format(path))


def test_an_index_with_a_hole_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"the module a needs b, which modules\.dep does not have"):
        load_order(read_index("kernel/a.ko: kernel/b.ko\n"), ["a"])


def test_modules_that_need_each_other_end_the_search_too() -> None:
    index = read_index("a.ko: b.ko\nb.ko: a.ko\n", "", "softdep a pre: a\nsoftdep b post: a\n")
    assert sorted(load_order(index, ["a", "b"])) == ["a.ko", "b.ko"]


def test_a_list_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernelmodules, "_LIMIT", 2)
    with pytest.raises(ArtifactError, match="more than 2 modules are needed"):
        load_order(INDEX, ["virtio_blk"])


@settings(max_examples=50)
@given(st.data())
def test_any_kernel_s_drivers_are_loaded_in_an_order_that_works(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    direct = [data.draw(st.sets(st.integers(0, number - 1))) if number else set() for number in range(count)]
    closure: list[set[int]] = []
    for needed in direct:
        closure.append(needed | {far for near in needed for far in closure[near]})
    # depmod writes what has to be loaded first at the end: here a higher number needs lower ones.
    lines = [
        f"m{at}.ko: {' '.join(f'm{n}.ko' for n in sorted(needed, reverse=True))}" for at, needed in enumerate(closure)
    ]
    wanted = data.draw(st.lists(st.integers(0, count - 1)))
    loaded = [int(path[1:-3]) for path in load_order(read_index("\n".join(lines)), [f"m{at}" for at in wanted])]
    assert set(loaded) == set(wanted) | {far for at in wanted for far in closure[at]}
    assert len(loaded) == len(set(loaded))
    for place, at in enumerate(loaded):
        assert direct[at] <= set(loaded[:place])


# --- the whole


def layer(tmp_path: Path, name: str, files: Mapping[str, bytes]) -> Layer:
    found = Layer(id=name, path=tmp_path / name, info={})
    for path, data in files.items():
        (found.root / path).parent.mkdir(parents=True, exist_ok=True)
        (found.root / path).write_bytes(data)
    return found


def tree(**changes: bytes | None) -> dict[str, bytes]:
    """Return a kernel's modules, some of them compressed; ``changes`` by the name of a file."""
    files: dict[str, bytes | None] = {
        "modules.dep": DEP.encode(), "modules.softdep": SOFT.encode(), "modules.alias": ALIAS.encode(),
        "modules.builtin": b"kernel/drivers/nvme/host/nvme.ko\n",
    }  # fmt: skip
    for line in DEP.splitlines():
        path = line.partition(":")[0]
        data = ELF + path.encode() + b"~signed~"
        files[path] = lzma.compress(data) if path.endswith(".xz") else data
    for name, change in changes.items():
        files[next(path for path in files if path.endswith(name.replace("__", ".")))] = change
    return {f"usr/lib/modules/{KERNEL}/{path}": data for path, data in files.items() if data is not None}


DRIVERS = ("virtio_blk", "xen_blkfront", "nvme")
Make = Callable[..., bytes]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def run(files: Mapping[str, bytes] | None = None, drivers: tuple[str, ...] = DRIVERS, **upper: bytes) -> bytes:
        layers = [layer(tmp_path, "base", tree() if files is None else files), layer(tmp_path, "site", upper)]
        tools = [layers[0], layer(tmp_path, "tools", {"usr/bin/busybox": ELF + b"busybox"})]
        return small_initramfs(layers, tools, KERNEL, drivers, EPOCH)

    return run


def contents(data: bytes) -> dict[str, Member]:
    return {member.name: member for member, _ in unpacked(zstandard.ZstdDecompressor().decompress(data))}


def test_the_initramfs_has_what_its_script_starts_and_loads(make: Make) -> None:
    found = contents(make())
    assert found["init"].data == initramfs.SCRIPT.read_bytes()
    assert found["init"].mode == found["bin/busybox"].mode == stat.S_IFREG | 0o755
    assert found["dev/console"].device == (5, 1)
    assert found["bin/insmod"].data == b"busybox"
    assert stat.S_ISLNK(found["bin/insmod"].mode)
    order = found["modules/order"].data.decode().split()
    assert order == ["virtio", "virtio_ring", "virtio_blk", "xen_blkfront"]
    assert {name for name in found if name.endswith(".ko")} == {f"modules/{name}.ko" for name in order}
    assert found["modules/xen_blkfront.ko"].data == ELF + b"kernel/drivers/block/xen-blkfront.ko.xz~signed~"


def test_every_folder_comes_before_what_is_in_it(make: Make) -> None:
    seen = [""]
    for name in contents(make()):
        assert name.rpartition("/")[0] in seen
        seen.append(name)


def test_the_script_finds_every_program_that_it_calls() -> None:
    words = {word for line in initramfs.SCRIPT.read_text().splitlines() for word in line.replace("$(", " ").split()}
    asked = {"mount", "insmod", "findfs", "switch_root", "sleep", "cat", "setsid", "cttyhack", "reboot", "sh"}
    assert asked == set(initramfs.APPLETS) & words == set(initramfs.APPLETS)


def test_the_same_kernel_and_list_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    first = make()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    assert make() == first
    assert make(drivers=("virtio_blk",)) != first


def test_a_module_of_an_upper_layer_counts(make: Make) -> None:
    path = f"usr/lib/modules/{KERNEL}/kernel/drivers/virtio/virtio.ko"
    assert contents(make(**{path: ELF + b"newer"}))["modules/virtio.ko"].data == ELF + b"newer"


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.ZstdCompressor().compress, lzma.compress], ids=["gz", "zst", "xz"]
)
def test_modules_are_unpacked_whatever_they_are_packed_with(
    make: Make, pack: Any, request: pytest.FixtureRequest
) -> None:
    end = request.node.callspec.id
    files = {
        f"usr/lib/modules/{KERNEL}/modules.dep": f"a.ko.{end}:\n".encode(),
        f"usr/lib/modules/{KERNEL}/a.ko.{end}": pack(ELF + b"packed"),
    }
    assert contents(make(files, ("a",)))["modules/a.ko"].data == ELF + b"packed"


BLK, XEN = "virtio_blk__ko", "blkfront__ko__xz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"modules__dep": None}, "has no modules.dep", id="no-index"),
        pytest.param({BLK: None}, r"names kernel/drivers/block/virtio_blk\.ko, which is not there", id="missing"),
        pytest.param({BLK: b"text"}, r"virtio_blk\.ko is none, or too large", id="no-module"),
        pytest.param({XEN: lzma.compress(ELF)[:-9] + bytes(9)}, r"xz is damaged", id="damaged"),
        pytest.param({XEN: b"\xfd7zXZ\0"}, r"xz is none, or too large", id="cut-off"),
        pytest.param({XEN: lzma.compress(ELF + bytes(1 << 20))}, r"xz is none, or too large", id="a-bomb"),
        pytest.param({BLK: ELF + bytes(1 << 20)}, "is larger than 0 MiB", id="large"),
    ],
)
def test_a_module_that_is_not_as_it_should_be_is_named(
    make: Make, changes: dict[str, bytes | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "_FILE_LIMIT", 1 << 16)
    with pytest.raises(ArtifactError, match=message):
        make(tree(**changes))


def test_a_link_among_the_modules_leads_nowhere(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / f"base/root/usr/lib/modules/{KERNEL}"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(ELF)
    (folder / "a.ko").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"names a\.ko, which is not there"):
        make({f"usr/lib/modules/{KERNEL}/modules.dep": b"a.ko:\n"}, ("a",))


def test_a_tree_without_modules_is_refused(make: Make) -> None:
    with pytest.raises(ArtifactError, match=f"no /lib/modules/{KERNEL}"):
        make({})


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "has no /usr/bin/busybox"), ({"usr/bin/busybox": b"#!/bin/sh\n"}, "is no program")],
    ids=["none", "a-script"],
)
def test_without_a_busybox_there_is_no_initramfs(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    base, tools = layer(tmp_path, "base", tree()), layer(tmp_path, "tools", files)
    with pytest.raises(ArtifactError, match=message):
        small_initramfs([base], [base, tools], KERNEL, DRIVERS, EPOCH)


def test_an_initramfs_has_an_upper_bound(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "_TOTAL_LIMIT", 100)
    with pytest.raises(ArtifactError, match="would be larger than") as caught:
        make()
    assert caught.value.hint == "--initramfs stock"


@pytest.mark.parametrize("name", target_names())
def test_every_list_of_drivers_has_the_root_s_own_file_system(name: str) -> None:
    drivers = load_target(name).initramfs_modules
    assert drivers == "most" or "ext4" in drivers
