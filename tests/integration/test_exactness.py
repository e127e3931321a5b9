"""The same image, byte for byte, wherever and however it is baked: every format, twice, the second time from a lock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinybake
from tinybake import What
from tinydistro import World, marks, serving

from imagebuilder.content import sha256_file
from imagebuilder.direct.virtual import RawFile
from imagebuilder.verify.diff import file_changes
from imagebuilder.verify.disks.partitions import partitions
from imagebuilder.verify.disks.qcow2 import Qcow2
from imagebuilder.verify.disks.systems import find_root

pytestmark = marks
# Target and format: those of the targets, and the formats that only clouds without a file of their own take.
FORMATS = {
    "qcow2": ("qemu", ""), "raw": ("raw", ""), "ova": ("vsphere", ""), "vmdk": ("raw", "vmdk"), "vhd": ("raw", "vhd"),
    "tar.gz": ("raw", "tar.gz"), "libvirt-box": ("vagrant-libvirt", ""), "virtualbox-box": ("vagrant-virtualbox", ""),
}  # fmt: skip
HERE = {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "USER": "somebody"}
# Another host name, in a namespace of its own, and another umask.
OTHER_HOST = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && umask 077 && exec "$@"', "sh")
OTHER_CLOCK = 20 * 365 * 86400  # seconds by which the second one's clock is ahead


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("tiny")) as made:
        yield made


def run(world: World, what: What, arguments: list[str | Path], wrapper: tuple[str, ...] = ()) -> None:
    with tinybake.baking(world.folder, arguments, what, wrapper=wrapper) as child:
        said, _ = child.communicate(timeout=tinybake.SECONDS)
        assert child.returncode == 0, said.decode()


def artifact(out: Path) -> Path:
    (path,) = out.glob("*/tiny-*")
    return path


@pytest.fixture(scope="module")
def here(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format, one after the other with one cache, and the lock of the first."""
    place, made = tmp_path_factory.mktemp("here"), {}
    cache = ["--cache-dir", place / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HERE.items():
            patch.setenv(name, value)
        for name, (target, kind) in FORMATS.items():
            run(world, What(format=kind), ["--target", target, *cache, "--output", place / name])
            made[name] = artifact(place / name)
        run(world, What(verb="lock"), ["--target", "qemu", *cache, "--output", place / "imagebuilder.lock"])
    return made | {"lock": place / "imagebuilder.lock"}


@pytest.fixture(scope="module")
def elsewhere(world: World, here: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format, in another order, in other folders, as on another machine; the qcow2 first, from the lock."""
    place, made = tmp_path_factory.mktemp("a folder, elsewhere: far away"), {}
    (place / "home").mkdir()
    (place / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ELSEWHERE, "HOME": str(place / "home"), "TMPDIR": str(place / "scratch")}.items():
            patch.setenv(name, value)
        for name in ("qcow2", *reversed([name for name in FORMATS if name != "qcow2"])):
            target, kind = FORMATS[name]
            what = What(format=kind, clock=OTHER_CLOCK)
            more = ["--locked", here["lock"]] if name == "qcow2" else []
            arguments = ["--target", target, "--cache-dir", place / "c", "--output", place / name, "--jobs", "1", *more]
            run(world, what, arguments, OTHER_HOST)
            made[name] = artifact(place / name)
    return made


def differences(one: Path, other: Path) -> str:
    """Return which files of two qcow2 disks differ, or that none does.

    Their EFI partitions are stand-ins, which ``open_image`` does not take: only the roots are opened.
    """
    with RawFile(one) as before, RawFile(other) as after:
        trees = [find_root(disk, partitions(disk)[1]) for disk in (Qcow2(before), Qcow2(after))]
        changes = [f"{change.path}: {change.what}" for change in file_changes(*trees)]
    return "\n".join(changes) or "no file is different: only where and how they lie on the disk"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_the_same_bytes_elsewhere(here: dict[str, Path], elsewhere: dict[str, Path], name: str) -> None:
    same = sha256_file(here[name]) == sha256_file(elsewhere[name])
    assert same, differences(here["qcow2"], elsewhere["qcow2"])  # the disk in all of them has these files


def test_a_comparison_that_fails_names_the_file(world: World, here: dict[str, Path], tmp_path: Path) -> None:
    step = world.folder / "provision/steps/site/10-site.sh"
    before = step.read_text()
    try:
        step.write_text(before + "echo other > /etc/kept\n")
        cache = here["lock"].parent / "cache"
        run(world, What(), ["--target", "qemu", "--cache-dir", cache, "--output", tmp_path / "out"])
    finally:
        step.write_text(before)
    changed = artifact(tmp_path / "out")
    assert sha256_file(changed) != sha256_file(here["qcow2"])
    assert "/etc/kept: content" in differences(here["qcow2"], changed).splitlines()
