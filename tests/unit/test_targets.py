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
    assert target.packages("ubuntu", "debian") == ("qemu-guest-agent",)
    assert target.packages("debian", "redhat") == ("qemu-guest-agent",)
    assert target.architectures == ("amd64", "arm64")
    assert target.cloud_init is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('"raw"', '"vdi"', "format: input should be 'raw', 'qcow2', 'vmdk'", id="format"),
        pytest.param('"raw"', '"none"', "a file has an extension", id="extension-of-nothing"),
        pytest.param('extension = "img"', "", "a file has an extension", id="no-extension"),
        pytest.param('"raw"', '"box"', "has a box_provider", id="no-provider"),
        pytest.param('"cloud-image"', '"cloud"', "source_kind: input should be 'aws', 'gce'", id="source-kind"),
        pytest.param('["direct"]', '["packer"]', "packer needs builder, plugin and plugin_version", id="no-builder"),
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
    assert "gce" in caught.value.hint


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


WITHOUT_CLOUD_DRIVERS = {"raw", "vsphere", "proxmox", "virtualbox", "vagrant-virtualbox"}  # AHCI, VMware, real hardware
FAMILIES = {"debian": "debian", "ubuntu": "debian", "fedora": "redhat", "centos": "redhat"}


def test_these_are_the_targets() -> None:
    assert set(target_names()) == {
        "gce", "aws", "azure", "openstack", "vsphere", "proxmox", "qemu", "raw", "vagrant-libvirt", "vagrant-qemu",
        "vagrant-virtualbox", "virtualbox", "digitalocean", "hcloud", "kubevirt",
    }  # fmt: skip


@pytest.mark.parametrize("name", target_names())
def test_every_target_of_ours_loads(name: str) -> None:
    target = load_target(name)
    profile = load_profile("debian", release="", arch="amd64", target=name)
    assert target.kernel in profile.kernel
    assert "packer" in target.engines
    assert ("direct" in target.engines) is (target.format != "none")
    assert target.summary.endswith(".")
    assert (target.kernel == "generic") is (name in WITHOUT_CLOUD_DRIVERS)
    assert target.plugin.startswith("github.com/")
    assert target.plugin_version.startswith(">= ")
    assert target.packer_artifact == "image" or target.format != "none"
    lines = (resources.folder("targets") / f"{name}.toml").read_text().splitlines()
    assert len(lines) <= 64


@pytest.mark.parametrize("name", target_names())
def test_cloud_init_is_installed_where_it_is_wanted(name: str) -> None:
    target = load_target(name)
    for os, family in FAMILIES.items():
        there = "cloud-init" in target.packages(os, family)
        assert there or not target.cloud_init
        assert target.cloud_init or not there or name == "gce"  # whose guest agent does its work, but not on Fedora


def test_azure_knows_the_names_of_its_agent() -> None:
    azure = load_target("azure")
    agents = {os: azure.packages(os, family)[1] for os, family in FAMILIES.items()}
    assert agents == {"debian": "waagent", "ubuntu": "walinuxagent", "fedora": "WALinuxAgent", "centos": "WALinuxAgent"}


def test_boxes_have_a_provider_each() -> None:
    boxes = {name: load_target(name) for name in target_names() if name.startswith("vagrant-")}
    assert {f"vagrant-{target.box_provider}" for target in boxes.values()} == set(boxes)
    for target in boxes.values():
        assert (target.format, target.extension, target.cloud_init) == ("box", "box", False)
        assert all({"sudo", "rsync"} <= set(target.packages(family)) for family in ("debian", "redhat"))
