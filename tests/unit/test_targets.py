"""Targets: strict data, and the ones that we ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.errors import DataError, UsageError
from imagebuilder.profiles import load_profile
from imagebuilder.targets import load_target, target_names

GOOD = """
title = "Toy"
summary = "A disk."
format = "raw"
extension = "img"
size_gib = 4
firmware = ["uefi"]
kernel = "cloud"
consoles = ["ttyS0"]
initramfs_modules = ["virtio_blk"]
engines = ["direct"]
source_kind = "cloud-image"
guest_packages = { debian = ["qemu-guest-agent"] }
"""


def test_good_target_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(GOOD)
    target = load_target("toy", folder=tmp_path)
    assert (target.name, target.size_gib, target.firmware) == ("toy", 4, ("uefi",))
    assert target.initramfs_modules == ("virtio_blk",)
    assert target.packages("debian") == ("qemu-guest-agent",)
    assert target.packages("redhat") == ()
    assert target.cloud_init is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('"raw"', '"vdi"', "format: input should be 'raw', 'qcow2'", id="format"),
        pytest.param("= 4", '= "4"', "size_gib: input should be a valid integer", id="no-conversion"),
        pytest.param("= 4", "= 1", "size_gib: input should be greater than or equal to 2", id="too-small"),
        pytest.param('["uefi"]', '["efi"]', "firmware.0: input should be 'bios' or 'uefi'", id="firmware"),
        pytest.param('["uefi"]', "[]", "firmware: tuple should have at least 1 item", id="no-firmware"),
        pytest.param("firmware", "firmwares", 'firmwares: unknown key (did you mean "firmware"?)', id="key"),
        pytest.param('["virtio_blk"]', '"some"', "initramfs_modules", id="modules"),
        pytest.param('"img"', '".img"', "extension", id="extension"),
    ],
)
def test_bad_target_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "toy.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(DataError) as caught:
        load_target("toy", folder=tmp_path)
    assert message in caught.value.context


def test_unknown_target_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("qmeu")
    assert 'did you mean "qemu"' in caught.value.message
    assert "qemu, raw" in caught.value.hint


def test_qemu_boots_on_virtio_with_a_serial_console() -> None:
    target = load_target("qemu")
    assert (target.format, target.extension, target.size_gib, target.kernel) == ("qcow2", "qcow2", 8, "cloud")
    assert target.consoles == ("tty0", "ttyS0,115200")
    assert target.firmware == ("bios", "uefi")
    assert {"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4"} <= set(target.initramfs_modules)
    assert "ahci" not in target.initramfs_modules
    assert not target.cloud_init


def test_raw_takes_any_hardware() -> None:
    target = load_target("raw")
    assert (target.format, target.kernel, target.initramfs_modules) == ("raw", "generic", "most")


@pytest.mark.parametrize("name", target_names())
def test_every_target_of_ours_loads(name: str) -> None:
    target = load_target(name)
    profile = load_profile("debian", release="", arch="amd64", target=name)
    assert target.kernel in profile.kernel
    assert "direct" in target.engines
    assert target.summary.endswith(".")
    lines = (resources.folder("targets") / f"{name}.toml").read_text().splitlines()
    assert len(lines) <= 64
