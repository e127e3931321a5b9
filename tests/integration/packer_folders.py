"""Folders for packer validate. ``render_for_test`` is the one place that decides how a folder is rendered.

Until the renderer renders every target, the common parts are stand-ins: the same names, as few lines as will do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

from imagebuilder import resources

SUM = "sha256:" + "0" * 64
CLOUD_IMAGE = {
    "url": "https://images.example.org/node.qcow2",
    "checksum_url": "",
    "format": "qcow2",
    "ssh_user": "build",
}
ISO = {"url": "https://images.example.org/node.iso", "checksum_url": "", "ssh_user": "build"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is known of a target: its builder and plugin, its kind of image, values for variables without a default."""

    builder: str
    plugin: str
    image: dict[str, Any]
    format: str = "none"
    values: dict[str, Any]


CASES = {
    "gce": Case(
        builder="googlecompute", plugin="hashicorp/googlecompute",
        image={"project": "debian-cloud", "family": "debian-13", "ssh_user": "build"},
        values={"project_id": "a-project"},
    ),
    "aws": Case(
        builder="amazon-ebs", plugin="hashicorp/amazon",
        image={"owner": "136693071363", "name": "debian-13-amd64-*", "ssh_user": "admin"},
        values={"region": "eu-central-1"},
    ),
    "azure": Case(
        builder="azure-arm", plugin="hashicorp/azure",
        image={"publisher": "almalinux", "offer": "almalinux-x86_64", "sku": "10-gen2", "version": "latest",
               "plan": True, "ssh_user": "build"},
        values={"managed_image_resource_group_name": "images", "gallery_name": "nodes",
                "gallery_resource_group": "images"},
    ),
    "openstack": Case(
        builder="openstack", plugin="hashicorp/openstack", image=CLOUD_IMAGE,
        values={"flavor": "m1.small", "networks": ["6f0c5a3c-6d1c-4a35-9c8e-3d7f0a4d7a52"]},
    ),
    "vsphere": Case(
        builder="vsphere-clone", plugin="vmware/vsphere", image=CLOUD_IMAGE,
        values={"vcenter_server": "vcenter.example.org", "vcenter_username": "builder",
                "vcenter_password": "not-a-word", "cluster": "one"},
    ),
    "proxmox": Case(
        builder="proxmox-clone", plugin="hashicorp/proxmox", image=CLOUD_IMAGE,
        values={"proxmox_url": "https://pve.example.org:8006/api2/json", "proxmox_username": "builder@pve",
                "proxmox_password": "not-a-word", "node": "pve1"},
    ),
    "raw": Case(builder="qemu", plugin="hashicorp/qemu", image=CLOUD_IMAGE, format="raw", values={}),
    "kubevirt": Case(builder="qemu", plugin="hashicorp/qemu", image=CLOUD_IMAGE, format="qcow2", values={}),
    "vagrant-libvirt": Case(builder="qemu", plugin="hashicorp/qemu", image=CLOUD_IMAGE, format="box", values={}),
    "vagrant-qemu": Case(builder="qemu", plugin="hashicorp/qemu", image=CLOUD_IMAGE, format="box", values={}),
    "virtualbox": Case(
        builder="virtualbox-iso", plugin="hashicorp/virtualbox", image={**ISO, "unattended": "preseed"}, format="ova",
        values={},
    ),
    "vagrant-virtualbox": Case(
        builder="virtualbox-iso", plugin="hashicorp/virtualbox", image={**ISO, "unattended": "kickstart"}, format="box",
        values={},
    ),
    "digitalocean": Case(
        builder="digitalocean", plugin="digitalocean/digitalocean", image={"slug": "debian-13-x64", "ssh_user": "root"},
        values={"api_token": "not-a-word"},
    ),
    "hcloud": Case(
        builder="hcloud", plugin="hetznercloud/hcloud", image={"image": "debian-13", "ssh_user": "root"},
        values={"hcloud_token": "not-a-word-" + "0" * 53},
    ),
}  # fmt: skip
UNATTENDED = {"preseed": ("preseed.cfg",), "kickstart": ("ks.cfg",), "autoinstall": ("user-data", "meta-data")}
SHARED = {
    "build_name": "debian-13-amd64-test-k1.35", "ssh_username": "build", "disk_size_gib": 8,
    "source_image_checksum": SUM, "source_image_url": "https://images.example.org/node", "output_directory": "output",
}  # fmt: skip
LOCALS = """
locals {
  stamp            = formatdate("YYYYMMDDhhmm", timestamp())
  image_name       = "node-${local.stamp}"
  labels           = { build = "debian-13-amd64-test-k1-35" }
  tags             = { build = "debian-13-amd64-test-k1.35" }
  build_password   = uuidv4()
  user_data        = "#cloud-config"
  meta_data        = "instance-id: build"
  shutdown_command = "poweroff"
}
"""


def render_for_test(
    target: str, packer: str, *, arch: str = "amd64", unattended: str = "", parts: Path | None = None
) -> dict[str, str]:
    """Return the folder of a target, by path, for ``packer``: "1.6" or "current"."""
    case = CASES[target]
    image = {**case.image, **({"unattended": unattended} if unattended else {})}
    context = {
        "packer": packer, "image": SimpleNamespace(**image),
        "target": SimpleNamespace(name=target, format=case.format, builder=case.builder),
        "cell": SimpleNamespace(os="debian", release="13", arch=arch, target=target),
    }  # fmt: skip
    env = _jinja(parts or resources.folder("packer"))
    sources = env.get_template(f"sources/{target}.pkr.hcl.j2").render(context)
    variables = env.get_template(f"variables/{target}.pkr.hcl.j2").render(context)
    shared = {name: value for name, value in SHARED.items() if f"var.{name}" in sources}
    for name, value in shared.items():
        kind = "number" if isinstance(value, int) else "string"
        variables += f'\nvariable "{name}" {{\n  type    = {kind}\n  default = {json.dumps(value)}\n}}\n'
    files = {"sources.pkr.hcl": sources, "variables.pkr.hcl": variables, "locals.pkr.hcl": LOCALS.lstrip()}
    files["build.pkr.hcl"] = f'build {{\n  sources = ["source.{case.builder}.node"]\n}}\n'
    if packer == "current":
        files["plugins.pkr.hcl"] = _plugins(case.plugin)
    else:
        files |= {f"seed/{name}": "x\n" for name in ("meta-data", "user-data", "key")}
    for name in UNATTENDED.get(image.get("unattended", ""), ()):
        part = f"unattended/{image['unattended']}.j2"
        files[f"unattended/{name}"] = "" if name == "meta-data" else env.get_template(part).render(context)
    return files


def _plugins(plugin: str) -> str:
    name = plugin.partition("/")[2]
    return (
        "packer {\n  required_plugins {\n"
        f'    {name} = {{\n      source  = "github.com/{plugin}"\n      version = ">= 1.0.0"\n    }}\n  }}\n}}\n'
    )


def _jinja(parts: Path) -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(parts), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    env.filters["hcl"] = lambda value: json.dumps(value).replace("${", "$${").replace("%{", "%%{")
    return env
