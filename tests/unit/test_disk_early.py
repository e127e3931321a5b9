"""What of a disk is made beside the layers: what is taken of it, what is made anew, and that nothing of it goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_runner import Failed, FakeRunner

from imagebuilder.direct import initramfs
from imagebuilder.direct.disk import DiskSpec, Early, begin
from imagebuilder.direct.layers import Layer
from imagebuilder.errors import ArtifactError, CommandError, HostError

SPEC = DiskSpec(
    size=2 << 30, seed="seed", arch="amd64", firmware=("bios", "uefi"), vendor="debian", epoch=1_700_000_000,
    kernel_arguments=(), drivers=("virtio_blk",),
)  # fmt: skip
KERNEL, OTHER = "boot/vmlinuz-6.1", "usr/lib/modules/6.1/modules.dep"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let an initramfs be the names of the layers that it is made from; return those that were made."""
    found: list[str] = []

    def small(layers: Sequence[Layer], tools: Sequence[Layer], kernel: str, *_: Any) -> bytes:
        found.append(" ".join([kernel, *(layer.id for layer in layers), *(layer.id for layer in tools[1:])]))
        return found[-1].encode()

    monkeypatch.setattr(initramfs, "small_initramfs", small)
    return found


def layer(tmp_path: Path, name: str, *files: str) -> Layer:
    found = Layer(id=name, path=tmp_path / name, info={})
    found.root.mkdir(parents=True)
    for file in files:
        (found.root / file).parent.mkdir(parents=True, exist_ok=True)
        (found.root / file).touch()
    return found


@pytest.fixture
def early(tmp_path: Path) -> Iterator[Early]:
    """What was begun, with boot loaders that cannot be made."""

    def fail(_: list[str]) -> str:
        raise Failed("mkfs.vfat: No space left on device")

    (tmp_path / "work").mkdir()
    with begin(SPEC, tmp_path / "work", FakeRunner({("/run/write-disk.sh",): fail}), tmp_path / "log") as begun:
        yield begun


def test_an_initramfs_of_the_base_is_taken_where_no_layer_changes_it(
    early: Early, tmp_path: Path, made: list[str]
) -> None:
    base, upper = layer(tmp_path, "base", KERNEL, OTHER), layer(tmp_path, "upper", "usr/lib/modules/5.10/modules.dep")
    early.start([base, layer(tmp_path, "tools")])
    assert early.initramfs([base, upper], "6.1") == b"6.1 base tools"
    assert made == ["6.1 base tools"]


@pytest.mark.parametrize(
    ("below", "above", "kernel", "expected"),
    [
        pytest.param([KERNEL, OTHER], [OTHER], "6.1", b"6.1 base upper tools", id="modules-above"),
        pytest.param([], [KERNEL, OTHER], "6.1", b"6.1 base upper tools", id="kernel-above"),
        pytest.param([KERNEL, OTHER], ["boot/initrd.img-6.1"], "6.1", b"", id="an-initramfs-above"),
        pytest.param([KERNEL, OTHER, "boot/initrd.img-6.1"], [], "6.1", b"", id="an-initramfs-below"),
        pytest.param([KERNEL, OTHER], [], "6.12", b"6.12 base upper tools", id="another-kernel"),
    ],
)
def test_what_a_layer_above_says_counts(
    early: Early, tmp_path: Path, made: list[str], below: list[str], above: list[str], kernel: str, expected: bytes
) -> None:
    base, upper = layer(tmp_path, "base", *below), layer(tmp_path, "upper", *above)
    early.start([base, layer(tmp_path, "tools")])
    assert early.initramfs([base, upper], kernel) == expected


def test_a_tree_for_which_none_can_be_made_is_refused_when_it_is_whole(early: Early, tmp_path: Path) -> None:
    base = layer(tmp_path, "base", KERNEL)
    early.start([base, layer(tmp_path, "tools")])
    with pytest.raises(ArtifactError, match=r"the root tree has no /lib/modules/6[.]1"):
        early.initramfs([base], "6.1")


def test_an_initramfs_that_must_be_there_is_not_made(early: Early, tmp_path: Path, made: list[str]) -> None:
    early.spec = dataclasses.replace(SPEC, drivers=())
    base = layer(tmp_path, "base", KERNEL, OTHER)
    early.start([base, layer(tmp_path, "tools")])
    with pytest.raises(ArtifactError, match="has no initramfs"):
        early.initramfs([base], "6.1")
    assert made == []


def test_boot_loaders_that_fail_are_said_where_they_are_taken(early: Early, tmp_path: Path, made: list[str]) -> None:
    base = layer(tmp_path, "base", KERNEL, OTHER)
    early.start([base, layer(tmp_path, "tools")])
    assert early.initramfs([base], "6.1")
    with pytest.raises(HostError, match="no space is left"):
        early.boot()


def test_nothing_goes_on_when_what_is_made_beside_it_fails(tmp_path: Path, made: list[str]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(_: list[str]) -> str:
        begun.set()
        threading.Event().wait(0.05)
        ended.set()
        return ""

    (tmp_path / "work").mkdir()
    runner = FakeRunner({("/run/write-disk.sh",): slow})
    with pytest.raises(CommandError), begin(SPEC, tmp_path / "work", runner, tmp_path / "log") as early:
        early.start([layer(tmp_path, "base", KERNEL, OTHER), layer(tmp_path, "tools")])
        begun.wait()
        raise CommandError("a step failed")
    assert ended.is_set()
