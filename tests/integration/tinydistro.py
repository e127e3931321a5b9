"""A distribution of our own that is baked in about a second: real archive, apt, sandbox and disk; stand-in programs.

Its packages come from a local archive with its own key, its kubelet from a stand-in for dl.k8s.io. What configures
packages and writes boot loaders in the image is a script on top of busybox; everything of ours is the real thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_archive import Deb, Key, LocalArchive, missing_tools, publish
from local_servers import ELF, Site

from imagebuilder import process, resources

VERSION = "1.35.8"
BUSYBOX = process.find("busybox")
CONTAINERD = "/debian/pool/main/containerd_1.7.24-1_amd64.deb"
KUBELET = f"/binaries/release/v{VERSION}/bin/linux/amd64/kubelet"

# dash and its library: busybox's own shell takes its applets before programs of the same name.
SHELL = {"bin/sh": "/bin/dash", **{path[1:]: path for path in (
    "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6",
)}}  # fmt: skip
MISSING = [
    *missing_tools(),
    *([] if BUSYBOX else ["busybox"]),
    *(path for path in SHELL.values() if not Path(path).is_file()),
    *([] if process.find("unshare") else ["unshare"]),
]
marks = [
    pytest.mark.bake,
    pytest.mark.skipif(os.geteuid() != 0, reason="the direct engine needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}"),
]
ENV = b'#!/usr/bin/busybox sh\nexec /usr/bin/busybox env "$@"\n'
TAR = b"#!/usr/bin/busybox sh\nexec /usr/bin/busybox tar -xpf - -C /\n"  # GNU's options are not known to it
DPKG_DEB = b"#!/bin/sh\nexec busybox ar -p $2 data.tar\n"
# Configures: what was unpacked is installed. And a line for each, as from the real one.
DPKG = b"""#!/bin/sh
set -eu
[ -e /usr/bin/rm ] || /usr/bin/busybox --install -s /usr/bin 2> /dev/null || true
[ "$1" != --audit ] || exit 0
for word in "$@"; do
    case $word in -*) ;; *) echo "Setting up $word ..." ;; esac
done
sed -i 's/^Status: install ok unpacked/Status: install ok installed/' /var/lib/dpkg/status
"""
MKIMAGE = b"""#!/bin/sh
while [ "$1" != -o ]; do shift; done
cp /usr/lib/grub/i386-pc/core "$2"
"""
NOTHING = b"#!/bin/sh\n"
TOOLS = {
    "usr/bin/grub-mkimage": MKIMAGE, "usr/bin/mkfs.vfat": NOTHING, "usr/bin/mmd": NOTHING, "usr/bin/mcopy": NOTHING,
    "usr/lib/grub/i386-pc/boot.img": bytes(510) + b"\x55\xaa",
    "usr/lib/grub/i386-pc/core": bytes(510) + b"\x20\x08" + b"core" * 9999,
}  # fmt: skip

STEPS = {
    "base/10-kernel.sh": "printf initramfs > /boot/initrd.img-1",
    "runtime/10-install.sh": (
        "cd /run/imagebuilder/repository\n"
        "for deb in *.deb; do dpkg-deb --fsys-tarfile $deb | tar; done\n"
        "(echo; sed '/^Package:/a Status: install ok installed' Packages) >> /var/lib/dpkg/status"
    ),
    "kubernetes/10-kubelet.sh": (
        'cp "${IB_KUBERNETES_PAYLOAD:?}/kubelet" /usr/bin/\ncp "${IB_PAUSE_ARCHIVE:?}" /usr/lib/pause.tar\n'
        "mkdir -p /var/lib/containerd/store\necho image > /var/lib/containerd/store/blob"
    ),
    "site/10-site.sh": "echo more >> /var/lib/containerd/store/blob\nrm /etc/gone",
}

PROFILE = """
title = "Tiny"
family = "debian"
init = "systemd"
package_format = "deb"
default_release = "1"
architectures = ["amd64"]
hold = []
kernel = {{ cloud = "linux", generic = "linux" }}
paths = {{ kubelet_defaults = "/etc/default/kubelet", cni_bin = "/opt/cni/bin" }}
packages = {{ base = ["init"], runtime = ["docker.io", "containerd"], tools = ["tools"] }}
[repositories]
[releases.1]
suite = "tiny"
eol = "2050-01-01"
containerd = "1.7.24"
[bootstrap]
keyring = "{keyring}"
components = ["main"]
[components.kubernetes]
sources = ["binaries"]
programs = ["kubelet"]
[components.docker]
sources = ["distro"]
"""


def packages() -> list[Deb]:
    """Return the distribution's packages; some hundred files in all."""
    assert BUSYBOX is not None
    many = {f"usr/share/data/{number:03d}": f"{number}\n".encode() * 400 for number in range(150)}
    shell = {inside: Path(path).read_bytes() for inside, path in SHELL.items()}
    programs = {**shell, "usr/bin/env": ENV, "usr/bin/tar": TAR, "usr/bin/busybox": BUSYBOX.read_bytes()}
    return [
        Deb(name="base-files", fields={"Essential": "yes"}, files={"etc/gone": b"x", "etc/kept": b"y"}),
        Deb(name="busybox", fields={"Essential": "yes"}, files=programs),
        Deb(name="dpkg", fields={"Essential": "yes"}, files={"usr/bin/dpkg": DPKG, "usr/bin/dpkg-deb": DPKG_DEB}),
        Deb(name="apt", fields={"Depends": "dpkg"}),
        Deb(name="init", fields={"Depends": "data"}),
        Deb(name="data", files=many),
        Deb(name="linux", files={"boot/vmlinuz-1": b"kernel"}),
        Deb(name="tools", fields={"Depends": "dpkg"}, files=TOOLS),
        Deb(name="docker.io", version="26.1.5", fields={"Depends": "containerd"}),
        Deb(name="containerd", version="1.7.24-1", files={"usr/bin/containerd": bytes(300_000)}),
        Deb(name="catatonit", files={"usr/bin/catatonit": b"\x7fELF a pause"}),
    ]


def write_provision(folder: Path) -> None:
    """Write the steps of this module beside the real runner and library."""
    own = resources.folder("provision")
    for name in ("run-steps.sh", "lib.sh", "family/debian.sh", "init/systemd.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(own / name, folder / name)
    for name, text in STEPS.items():
        inputs = " ".join(sorted({word for word in ("IB_KUBERNETES_PAYLOAD", "IB_PAUSE_ARCHIVE") if word in text}))
        header = ["#!/bin/sh", "# title: A step", "# why: A test", "# families: debian", "# phase: build"]
        header += [f"# inputs: {inputs}"] if inputs else []
        (folder / "steps" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "steps" / name).write_text("\n".join([*header, "set -eu", text, ""]))


@dataclass
class World:
    """The distribution, served, and the folder that has what a bake is told of it."""

    site: Site
    key: Key
    folder: Path
    archive: LocalArchive = field(init=False)
    kubelet: bytes = field(init=False)

    def __post_init__(self) -> None:
        profiles = self.folder / "profiles"
        profiles.mkdir(parents=True)
        (profiles / "tiny.toml").write_text(PROFILE.format(keyring=self.key.keyring))
        write_provision(self.folder / "provision")
        self.kubelet = ELF + b"kubelet" * 9999
        self.site.serve(f"/binaries/release/stable-{VERSION.rpartition('.')[0]}.txt", f"v{VERSION}".encode())
        self.site.serve(KUBELET, self.kubelet)
        self.site.serve(f"{KUBELET}.sha256", hashlib.sha256(self.kubelet).hexdigest().encode())
        self.serve()

    def serve(self, debs: Iterable[Deb] | None = None) -> None:
        """Serve the distribution as it is at first, whatever was served instead."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        self.archive = publish(self.site, self.key, packages() if debs is None else debs, work)
        self.routes = dict(self.site.routes)
        (self.folder / "world.json").write_text(json.dumps(self.told()))

    def restore(self) -> None:
        """Serve again what was served at first."""
        self.site.routes.clear()
        self.site.routes.update(self.routes)

    def sign(self, release: str) -> None:
        """Serve another Release file, signed."""
        self.site.serve("/debian/dists/tiny/InRelease", self.key.clearsign(release))

    def told(self) -> dict[str, Any]:
        """Return what :mod:`tinybake` reads."""
        return {
            "profiles": str(self.folder / "profiles"),
            "provision": str(self.folder / "provision"),
            "mirrors": {
                "tiny": self.archive.url,
                "binaries": f"{self.site.url}/binaries",
                "registry.k8s.io": self.site.url,  # has nothing: the image is composed
            },
        }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[World]:
    """Serve the distribution from a folder of its own."""
    site, key = Site(), Key("tiny")
    try:
        yield World(site=site, key=key, folder=folder)
    finally:
        site.close()
        key.close()
