"""Folders for packer validate. ``render_for_test`` is the one place that decides how a folder is made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from imagebuilder.cells import all_cells, plan_request
from imagebuilder.model import BuildRequest, Cell
from imagebuilder.packer.folder import write_folder
from imagebuilder.packer.render import Item, Supplies, render_folder
from imagebuilder.process import RealRunner
from imagebuilder.targets import load_target, target_names

CHECKSUM = "sha256:" + "0" * 64
PREFERRED = ("debian", "alma", "ubuntu", "centos", "fedora", "rocky", "rhel")
# Values for the variables that a user must set.
VALUES: dict[str, dict[str, Any]] = {
    "gce": {"project_id": "a-project"},
    "aws": {"region": "eu-central-1"},
    "azure": {
        "managed_image_resource_group_name": "images", "gallery_name": "nodes", "gallery_resource_group": "images",
    },
    "openstack": {"flavor": "m1.small", "networks": ["6f0c5a3c-6d1c-4a35-9c8e-3d7f0a4d7a52"]},
    "vsphere": {
        "vcenter_server": "vcenter.example.org", "vcenter_username": "builder", "vcenter_password": "not-a-word",
        "cluster": "one",
    },
    "proxmox": {
        "proxmox_url": "https://pve.example.org:8006/api2/json", "proxmox_username": "builder@pve",
        "proxmox_password": "not-a-word", "node": "pve1",
    },
    "digitalocean": {"api_token": "not-a-word"},
    "hcloud": {"hcloud_token": "not-a-word-" + "0" * 53},
}  # fmt: skip
TARGETS = tuple(name for name in target_names() if "packer" in load_target(name).engines)


@functools.cache
def cells() -> tuple[Cell, ...]:
    """Return every cell that Packer can make."""
    return tuple(cell for cell, why in all_cells() if not why["packer"])


def chosen() -> list[Cell]:
    """Return one cell per target, architecture and family of answers that an installer is given."""
    found: dict[tuple[str, str, str], Cell] = {}
    for cell in sorted(cells(), key=lambda cell: (PREFERRED.index(cell.os), -float(cell.release))):
        image = plan_request(request(cell)).profile.source_images
        kind = load_target(cell.target).source_kind.replace("-", "_")
        found.setdefault((cell.target, cell.arch, getattr(getattr(image, kind), "unattended", "")), cell)
    return [found[key] for key in sorted(found)]


def request(cell: Cell) -> BuildRequest:
    """Return what a user asks for who wants this cell from Packer."""
    return BuildRequest(os=cell.os, release=cell.release, arch=cell.arch, target=cell.target, engine="packer")


def files_of(cell: Cell) -> dict[str, Item]:
    """Return what is in the folder of a cell that a user gets, for both Packers."""
    return render_folder(plan_request(request(cell)), Supplies(checksum=CHECKSUM))


def render_for_test(cell: Cell, packer: str, folder: Path) -> Path:
    """Write the folder of a cell as a user gets it, for ``packer``: "1.6" or "current"; return where it is."""
    write_folder(folder, files_of(cell), name=str(cell))
    if packer == "current":
        return folder
    work = folder.with_name("work")
    RealRunner().run(["sh", folder / "packer-1.6/prepare.sh", work])
    return work
