"""What is written for a disk and beside it: fstab, GRUB's configuration, and the folder of the artifact."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import bake
from imagebuilder.bake import LOGS_KEPT, new_file, new_log, publish, stamp_of, unchanged
from imagebuilder.content import sha256_bytes, sha256_file
from imagebuilder.direct import gpt
from imagebuilder.direct.disk import DiskSpec, find_kernel, fstab, grub_cfg, own_initramfs, volumes, write_boot_files
from imagebuilder.direct.layers import Layer
from imagebuilder.errors import ArtifactError

GIB = 1 << 30
LAYOUT = gpt.layout(2 * GIB, "seed", arch="amd64")
SPEC = DiskSpec(
    size=2 * GIB, seed="seed", arch="amd64", firmware=("bios", "uefi"), vendor="debian", epoch=1_700_000_000,
    kernel_arguments=("console=tty0", "console=ttyS0,115200n8"),
)  # fmt: skip


def test_fstab_names_file_systems_by_what_identifies_them() -> None:
    esp = f"{LAYOUT.esp_serial:08X}"
    root_line, esp_line = fstab(LAYOUT).splitlines()
    assert root_line.split() == [
        f"UUID={LAYOUT.root_uuid}", "/", "ext4", "rw,discard,errors=remount-ro,x-systemd.growfs", "0", "1",
    ]  # fmt: skip
    assert esp_line.split() == [f"UUID={esp[:4]}-{esp[4:]}", "/boot/efi", "vfat", "umask=0077,noauto,nofail", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "serial"),
    [
        ((), False),
        (("quiet", "console=tty0"), False),
        (("console=ttyS0,115200n8",), True),
        (SPEC.kernel_arguments, True),
    ],
    ids=["none", "screen", "serial", "both"],
)
def test_grub_boots_the_one_kernel_without_a_menu(arguments: tuple[str, ...], serial: bool) -> None:
    text = grub_cfg(LAYOUT, "6.1.0-1-amd64", arguments)
    lines = [shlex.split(line) for line in text.splitlines()]
    assert ["linux", "/boot/vmlinuz-6.1.0-1-amd64", f"root=UUID={LAYOUT.root_uuid}", "ro", *arguments] in lines
    assert ["initrd", "/boot/initrd.img-6.1.0-1-amd64"] in lines
    assert ["search", "--no-floppy", "--fs-uuid", "--set=root", str(LAYOUT.root_uuid)] in lines
    assert "set timeout=0\n" in text
    assert ("serial --unit=0" in text) is serial
    assert text.count("{") == text.count("}") == 1


def test_two_disks_of_one_stack_get_the_same_texts_and_another_stack_others() -> None:
    other = gpt.layout(2 * GIB, "another seed", arch="amd64")
    assert fstab(LAYOUT) == fstab(gpt.layout(2 * GIB, "seed", arch="amd64")) != fstab(other)


def test_boot_files_can_be_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        (tmp_path / "upper").mkdir()
        write_boot_files(tmp_path / "upper", SPEC, LAYOUT, "6.1")
    finally:
        os.umask(before)
    assert {path.stat().st_mtime for path in tmp_path.glob("upper/**/*")} == {SPEC.epoch}
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "upper": 0o755, "upper/etc": 0o755, "upper/etc/fstab": 0o644, "upper/boot": 0o755, "upper/boot/efi": 0o755,
        "upper/boot/grub": 0o755, "upper/boot/grub/grub.cfg": 0o644,
    }  # fmt: skip


def make_layers(tmp_path: Path, *files: tuple[str, ...]) -> list[Layer]:
    """Make layers with these files below ``/boot``."""
    found = []
    for number, names in enumerate(files):
        layer = Layer(id=str(number), path=tmp_path / str(number), info={})
        (layer.root / "boot").mkdir(parents=True)
        layer.volumes.mkdir()
        for name in names:
            (layer.root / "boot" / name).touch()
        found.append(layer)
    return found


def test_the_kernel_is_found_in_whatever_layer_it_is(tmp_path: Path) -> None:
    stack = make_layers(tmp_path, ("vmlinuz-6.1", "initrd.img-6.1"), (), ("initrd.img-6.1",))
    assert find_kernel(stack) == find_kernel(stack[:1]) == "6.1"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param([("config-6.1",)], "one kernel; found: none", id="none"),
        pytest.param([("vmlinuz-6.1",), ("vmlinuz-6.12",)], "found: vmlinuz-6.1, vmlinuz-6.12", id="two"),
    ],
)
def test_a_tree_without_exactly_one_kernel_is_refused(
    tmp_path: Path, files: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        find_kernel(make_layers(tmp_path, *files))
    assert caught.value.hint


def test_a_tree_without_the_initramfs_that_it_must_have_is_refused(tmp_path: Path) -> None:
    stack = make_layers(tmp_path, ("vmlinuz-6.1", "initrd.img-6.12"))
    with pytest.raises(ArtifactError, match=r"kernel 6\.1 has no initramfs") as caught:
        own_initramfs(SPEC, stack, [], "6.1")
    assert caught.value.hint


def test_an_initramfs_that_is_in_the_tree_stays(tmp_path: Path) -> None:
    stack = make_layers(tmp_path, ("vmlinuz-6.1",), ("initrd.img-6.1",))
    assert own_initramfs(dataclasses.replace(SPEC, drivers=("virtio_blk",)), stack, [], "6.1") == b""


def test_the_initramfs_is_put_beside_the_kernel(tmp_path: Path) -> None:
    write_boot_files(tmp_path, SPEC, LAYOUT, "6.1", b"initramfs")
    path = tmp_path / "boot/initrd.img-6.1"
    assert (path.read_bytes(), path.stat().st_mode & 0o777, path.stat().st_mtime) == (b"initramfs", 0o644, SPEC.epoch)


def test_volumes_are_put_where_they_belong(tmp_path: Path) -> None:
    (layer,) = make_layers(tmp_path, ())
    assert volumes(layer) == {}
    (layer.volumes / "containerd").mkdir()
    (layer.volumes / "unknown").mkdir()
    assert volumes(layer) == {"/var/lib/containerd": layer.volumes / "containerd"}


def put(folder: Path, content: bytes = b"disk", artifact_id: str = "1") -> bake.BakeResult:
    """Publish an artifact as the recipe does."""
    folder.mkdir(exist_ok=True)
    (folder / ".new").write_bytes(content)
    manifest: dict[str, Any] = {"artifact": {"format": "raw"}, "id": "node"}
    return publish(folder, folder / "node.raw", artifact_id, manifest)


def test_what_is_published_is_whole_and_checks(tmp_path: Path) -> None:
    result = put(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".stamp", "SHA256SUMS", "manifest.json", "node.raw"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == result.manifest
    assert result.manifest["artifact"] == {
        "format": "raw", "id": "1", "file": "node.raw", "size": 4, "sha256": sha256_bytes(b"disk"),
    }  # fmt: skip
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: sha256_file(tmp_path / name) for name in ("node.raw", "manifest.json")}
    again = unchanged(tmp_path, "1")
    assert again is not None
    assert (again.artifact, again.manifest, again.unchanged) == (result.artifact, result.manifest, True)


def rewrite(folder: Path) -> None:
    (folder / "node.raw").write_bytes(b"evil")


def replace(folder: Path) -> None:
    stat = (folder / "node.raw").stat()
    (folder / "other").write_bytes(b"evil")
    os.utime(folder / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (folder / "other").replace(folder / "node.raw")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(rewrite, id="rewritten"),
        pytest.param(replace, id="replaced with the old time"),
        pytest.param(lambda folder: os.truncate(folder / "node.raw", 3), id="cut"),
        pytest.param(lambda folder: os.utime(folder / "node.raw", (1, 1)), id="touched"),
        pytest.param(lambda folder: (folder / "node.raw").unlink(), id="removed"),
        pytest.param(lambda folder: (folder / "manifest.json").unlink(), id="no manifest"),
        pytest.param(lambda folder: (folder / "manifest.json").write_text("{"), id="half a manifest"),
        pytest.param(lambda folder: (folder / "manifest.json").write_text("[]"), id="another manifest"),
        pytest.param(lambda folder: (folder / "SHA256SUMS").unlink(), id="no checksums"),
        pytest.param(lambda folder: (folder / ".stamp").unlink(), id="no stamp"),
        pytest.param(lambda folder: (folder / ".stamp").write_text("null"), id="another stamp"),
    ],
)
def test_a_folder_that_was_touched_is_baked_again(tmp_path: Path, change: Callable[[Path], object]) -> None:
    put(tmp_path)
    change(tmp_path)
    assert unchanged(tmp_path, "1") is None


def test_another_artifact_is_baked(tmp_path: Path) -> None:
    assert unchanged(tmp_path / "nothing there", "1") is None
    put(tmp_path)
    assert unchanged(tmp_path, "2") is None


def test_the_manifest_comes_last_and_the_old_one_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a publication breaks off: a folder with a manifest is whole."""
    put(tmp_path, b"old")
    writes: list[str] = []

    class Killed(Exception):
        pass

    def check() -> None:
        if (tmp_path / "manifest.json").exists():
            sums = [line.split("  ") for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
            assert all(digest == sha256_file(tmp_path / name) for digest, name in sums)

    def dying(real: Callable[..., None], after: int) -> Callable[..., None]:
        def write_atomic(path: Path, data: bytes | str, **options: Any) -> None:
            check()
            if len(writes) == after:
                raise Killed
            real(path, data, **options)
            writes.append(path.name)
            check()

        return write_atomic

    real = bake.write_atomic
    for after in range(3):
        writes.clear()
        monkeypatch.setattr(bake, "write_atomic", dying(real, after))
        with pytest.raises(Killed):
            put(tmp_path, f"new {after}".encode(), "2")
        assert unchanged(tmp_path, "2") is None
    writes.clear()
    monkeypatch.setattr(bake, "write_atomic", dying(real, 99))
    put(tmp_path, b"new", "2")
    assert writes.index("SHA256SUMS") < writes.index("manifest.json")
    assert unchanged(tmp_path, "2") is not None


def test_nothing_half_written_stays_beside_an_artifact(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "..new.abc.part").touch()  # of a bake that was killed while it wrote
    (tmp_path / ".mine.part").touch()
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path) as new:
        assert not (tmp_path / "..new.abc.part").exists()
        new.write_bytes(b"half")
        raise KeyboardInterrupt
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".mine.part", ".stamp", "SHA256SUMS", "manifest.json", "node.raw"]
    assert unchanged(tmp_path, "1") is not None


def test_a_stamp_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"1234")
    (tmp_path / "disk").chmod(0)
    assert stamp_of(tmp_path / "disk", "1")["size"] == 4


def test_the_last_logs_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "cache/logs"
    made = []
    for number in range(LOGS_KEPT + 5):
        path = new_log(folder, f"plan-{number}")
        path.touch()
        os.utime(path, (number, number))
        made.append(path)
    (folder / "notes.txt").touch()
    assert LOGS_KEPT == 20
    assert sorted(folder.glob("*.log")) == sorted(made[-LOGS_KEPT:])
    assert (folder / "notes.txt").exists()


def test_logs_that_another_bake_drops_meanwhile_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [tmp_path / "gone.log"])
    assert not new_log(tmp_path, "plan").exists()
