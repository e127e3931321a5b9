"""A small image in memory that passes every offline check: the recipe's own files, and what packages would bring."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from imagebuilder import resources
from imagebuilder.direct.gpt import BIOS_BOOT_TYPE, ESP_TYPE, ROOT_TYPES
from imagebuilder.verify.expected import load_expected
from imagebuilder.verify.model import DiskFacts, Image, Partition, Subject
from imagebuilder.verify.offline.node import METADATA, PLUGINS, PROGRAMS, STORE
from imagebuilder.verify.offline.people import VAGRANT
from imagebuilder.verify.offline.system import NODE_PROGRAMS
from imagebuilder.verify.offline.units import OWN_UPDATES
from imagebuilder.verify.tree import Entry, file, folder, in_memory, link

Files = dict[str, tuple[Entry, bytes]]

ROOT_UUID = "feb47274-dd40-54c5-94b6-d50b0bf89a6c"
PAUSE = "registry.k8s.io/pause:3.10.1"
KERNELS = {"debian": "6.12.118+deb13-cloud-amd64", "redhat": "5.14.0-611.el9.x86_64"}
RELEASES = {"debian": ("debian", "13"), "redhat": ("centos", "9")}
PACKAGES = {
    "debian": (("containerd", "1.7.24~ds1-6+b1"), ("docker.io", "26.1.5"), ("openssl", "3.5.1-1"), ("runc", "1.1.15")),
    "redhat": (("containerd.io", "2.2.0-1.el9"), ("docker-ce", "29.0.0-1.el9"), ("kernel-core", "5.14.0-611.el9"),
               ("openssl", "3.5.1-3.el9")),
}  # fmt: skip
HELD = {"debian": ("containerd", "docker.io", "runc"), "redhat": ("containerd.io", "docker-ce", "kernel-core")}
COMMON = ("ssh", "containerd", "kubelet", "agent", "node-report", "network", "docker", "time")
SERVICES = {"debian": (*COMMON, "grow-root", "apparmor"), "redhat": (*COMMON, "grow-part")}
PROGRAM = file("\x7fELF\0", mode=0o755)
USERS = "root:x:0:0:root:/root:/bin/bash\nsshd:x:990:65534::/run/sshd:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"


def good_image(family: str = "debian", target: str = "qemu") -> Image:
    """Return the image of a family."""
    os, release = RELEASES[family]
    subject = Subject(
        path=Path("x.qcow2"), name="x", family=family, os=os, release=release, target=target, arch="amd64",
        firmware=("bios", "uefi"), manifest=manifest(family), expected=load_expected(family, os, target, release),
    )  # fmt: skip
    files = {**system(family), **services(family), **node(family), **packages(family)}
    if target.startswith("vagrant"):
        files |= vagrant()
    return Image(subject=subject, disk=disk(), root=in_memory(files), esp=in_memory(esp(family)))


def manifest(family: str) -> Mapping[str, Any]:
    return {
        "cell": {"os": RELEASES[family][0], "release": RELEASES[family][1], "arch": "amd64", "target": "qemu"},
        "capabilities": {
            "kubelet": "1.35.8", "runtimes": ["containerd", "docker"], "init": "systemd", "arch": "amd64",
            "pauseImage": PAUSE,
        },
        "packages": [{"name": name, "version": version, "arch": ARCH[family]} for name, version in PACKAGES[family]],
    }  # fmt: skip


ARCH = {"debian": "amd64", "redhat": "x86_64"}


def disk() -> DiskFacts:
    """The disk that the direct engine lays out."""
    mib, parts = 1 << 20, ((str(BIOS_BOOT_TYPE), 1), (str(ESP_TYPE), 64), (str(ROOT_TYPES["amd64"]), 8000))
    return DiskFacts(
        format="qcow2", size=8 << 30, table="gpt", boot_code=b"\xebc\x90" + bytes(380) + b"GRUB \0Geom\0",
        partitions=tuple(
            Partition(number=number, type=kind, start=number * mib, size=size * mib, uuid=f"8a2cf848-{number:028}")
            for number, (kind, size) in enumerate(parts, start=1)
        ),
    )  # fmt: skip


def esp(family: str) -> Files:
    """The EFI system partition: shim, the GRUB that it starts, and where that looks."""
    shim = b"MZ" + "grubx64.efi".encode("utf-16-le")
    return {
        "/EFI/BOOT/BOOTX64.EFI": file(shim),
        "/EFI/BOOT/grubx64.efi": file("MZ"),
        f"/EFI/{RELEASES[family][0]}/grub.cfg": file(
            f"search --no-floppy --fs-uuid --set=root {ROOT_UUID}\nset prefix=($root)/boot/grub\n"
        ),
    }


def boot(family: str) -> Files:
    """Kernel, initramfs, modules and menu: GRUB's own form, or entries of the Boot Loader Specification."""
    kernel, modules = KERNELS[family], f"/usr/lib/modules/{KERNELS[family]}"
    initramfs = f"/boot/initrd.img-{kernel}" if family == "debian" else f"/boot/initramfs-{kernel}.img"
    found = (
        "fs/overlayfs/overlay",
        "net/bridge/br_netfilter",
        "net/netfilter/nft_compat",
        "net/netfilter/ipset/ip_set",
    )
    arguments = f"root=UUID={ROOT_UUID} ro quiet console=ttyS0"
    if family == "debian":
        menu = f'menuentry "Linux" {{\n  linux /boot/vmlinuz-{kernel} {arguments}\n  initrd {initramfs}\n}}\n'
        menus = {"/boot/grub/grub.cfg": file(menu)}
    else:
        entry = f"title CentOS\nlinux /boot/vmlinuz-{kernel}\ninitrd {initramfs}\noptions {arguments}\n"
        menus = {"/boot/grub2/grub.cfg": file("blscfg\n"), f"/boot/loader/entries/{kernel}.conf": file(entry)}
    return {
        **menus,
        f"/boot/vmlinuz-{kernel}": file(bytes(0x202) + b"HdrS"),
        initramfs: file(b"\x28\xb5\x2f\xfd" + bytes(60)),
        f"{modules}/modules.dep": file("".join(f"kernel/{name}.ko.xz: kernel/x.ko.xz\n" for name in found)),
        f"{modules}/modules.builtin": file("kernel/fs/ext4/ext4.ko\n"),
    }  # fmt: skip


def system(family: str) -> Files:
    """The operating system: boot, programs, accounts, settings."""
    os, release = RELEASES[family]
    provision = resources.folder("provision")
    files = {
        **boot(family), **{f"/usr/bin/{name}": PROGRAM for name in (*NODE_PROGRAMS, "systemd-repart", "growpart")},
        **dict.fromkeys(("/dev/null", "/usr/local/bin", "/home", "/var/log/journal", "/srv"), folder()),
        **{f"/{name}": link(f"usr/{name}") for name in ("bin", "sbin", "lib")},
        "/tmp": folder(mode=0o1777), "/var/tmp": folder(mode=0o1777), "/root": folder(mode=0o700),
        "/usr/bin/su": file("\x7fELF\0", mode=0o4755),
        "/etc/fstab": file(f"UUID={ROOT_UUID} / ext4 rw,x-systemd.growfs 0 1\nUUID=46D6-EF14 /boot/efi vfat ro 0 0\n"),
        "/usr/lib/os-release": file(f'ID={os}\nVERSION_ID="{release}"\n'),
        "/etc/os-release": link("../usr/lib/os-release"),
        "/etc/machine-id": file(), "/etc/hosts": file("127.0.0.1 localhost\n::1 localhost ip6-localhost\n"),
        "/etc/resolv.conf": link("../run/systemd/resolve/stub-resolv.conf"), "/etc/environment": file(),
        "/etc/passwd": file(USERS), "/etc/group": file("root:x:0:\n"),
        "/etc/shadow": file("root:*:20785:0:99999:7:::\nsshd:!*:20785::::::\n", mode=0o640),
        "/etc/gshadow": file("root:*::\nadm:::\n", mode=0o640),
        "/etc/modules-load.d/imagebuilder.conf": file("overlay\nbr_netfilter\n"),
        "/usr/lib/sysctl.d/50-default.conf": file("kernel.pid_max = 4194304\n# net.ipv4.ip_forward = 0\n"),
        "/etc/sysctl.d/90-imagebuilder.conf": file((provision / "files/sysctl.conf").read_bytes()),
        "/etc/ssh/sshd_config": file("Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"),
        "/var/log/wtmp": file(), "/var/log/journal": folder(mode=0o2755),
    }  # fmt: skip
    if family == "debian":
        return {**files, "/usr/sbin/apparmor_parser": PROGRAM,
                "/etc/apt/sources.list": file("deb http://mirror.example/debian trixie main\n")}  # fmt: skip
    return {
        **files,
        "/etc/selinux/config": file("# enforcing - policy is enforced\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"),
        "/etc/selinux/targeted/policy/policy.33": file("\x8c\xff\0"),
        "/etc/yum.repos.d/centos.repo": file("[baseos]\ngpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY\n"),
    }  # fmt: skip


def services(family: str) -> Files:
    """The recipe's services as it installs them, units of packages, and the links that enable and mask them."""
    files: Files = {}
    etc, lib = "/etc/systemd/system", "/usr/lib/systemd/system"
    for name in SERVICES[family]:
        for top in (base := resources.folder("provision") / f"services/{name}/systemd", base / family):
            for path in (top / "root").rglob("*"):
                if path.is_file():
                    files[f"/{path.relative_to(top / 'root')}"] = file(
                        path.read_bytes(), mode=path.stat().st_mode & 0o755
                    )
            for unit in (top / "enable").read_text().split() if (top / "enable").exists() else ():
                own = f"{etc}/{unit}" in files
                if not own:  # its package has it
                    files[f"{lib}/{unit}"] = file("[Service]\nExecStart=/usr/bin/true\n")
                files[f"{etc}/{'sysinit' if own else 'multi-user'}.target.wants/{unit}"] = link(
                    f"{etc if own else lib}/{unit}"
                )
    if family == "debian":
        files |= {f"{lib}/apparmor.service": file("[Unit]\n"),
                  f"{etc}/sysinit.target.wants/apparmor.service": link(f"{lib}/apparmor.service")}  # fmt: skip
    return files | {f"{etc}/{unit}": link("/dev/null") for unit in ("swap.target", *OWN_UPDATES[family])}


def node(family: str) -> Files:
    """Kubernetes' part."""
    provision, (os, release) = resources.folder("provision"), RELEASES[family]
    config = (provision / f"files/containerd/config-v{2 if family == 'debian' else 3}.toml").read_text()
    facts = (provision / "files/agent/image.json").read_text()
    for name, value in {
        "PAUSE_IMAGE": PAUSE, "SELINUX": "false" if family == "debian" else "true", "ARCH": "amd64", "INIT": "systemd",
        "ID": f"{os}-{release}-amd64-k1.35", "KUBELET": "1.35.8", "RUNTIMES": '"containerd", "docker"',
    }.items():  # fmt: skip
        config, facts = config.replace(f"@{name}@", value), facts.replace(f"@{name}@", value)
    return {
        **{f"/usr/bin/{name}": PROGRAM for name in (*PROGRAMS, "docker", "dockerd")},
        **{f"/opt/cni/bin/{name}": PROGRAM for name in PLUGINS},
        **store(),
        "/etc/containerd/config.toml": file(config), "/etc/containerd/conf.d": folder(),
        "/etc/crictl.yaml": file((provision / "files/crictl.yaml").read_bytes()),
        "/etc/docker/daemon.json": file((provision / "files/docker-daemon.json").read_bytes()),
        "/usr/lib/imagebuilder/agent.py": file("print()\n"), "/usr/lib/imagebuilder/image.json": file(facts),
        "/usr/sbin/imagebuilder-agent": file("#!/usr/bin/python3\n", mode=0o755),
        "/etc/imagebuilder/trust.d/site.pem": file(
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
        ),
        "/etc/kubernetes/manifests": folder(), "/var/lib/kubelet": folder(mode=0o700),
    }  # fmt: skip


def store() -> Files:
    """containerd's store with the pause image: its blobs, and the metadata that names it."""
    blobs = {}

    def blob(value: object) -> dict[str, Any]:
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"{STORE}/{digest}"] = file(data, mode=0o444)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    manifest = blob({"config": blob({"architecture": "amd64"}), "layers": [blob("a layer")]})
    other = {"digest": "sha256:" + "0" * 64, "platform": {"architecture": "arm64"}}
    index = blob({"manifests": [other, {**manifest, "platform": {"architecture": "amd64"}}]})
    image = {b"target": {b"digest": index["digest"].encode()}, b"labels": {b"io.cri-containerd.pinned": b"pinned"}}
    names = {b"imagebuilder.example/hello:1": {b"target": {}}, PAUSE.encode(): image}
    return {**blobs, METADATA: file(bolt({b"v1": {b"k8s.io": {b"images": names}}}))}


def packages(family: str) -> Files:
    """The package database, with what is held."""
    if family == "redhat":
        locks = "".join(f"{name}-0:{version}.*\n" for name, version in PACKAGES[family] if name in HELD[family])
        return {"/var/lib/rpm/rpmdb.sqlite": file(rpmdb(PACKAGES[family])),
                "/etc/dnf/plugins/versionlock.list": file(locks)}  # fmt: skip
    paragraphs = [
        f"Package: {name}\nStatus: {'hold' if name in HELD[family] else 'install'} ok installed\nInstalled-Size: 9\n"
        f"Architecture: amd64\nVersion: {version}\nDescription: x\n"
        for name, version in PACKAGES[family]
    ]
    return {"/var/lib/dpkg/status": file("\n".join(paragraphs) + "\n"), "/var/lib/dpkg/updates": folder(),
            "/var/lib/dpkg/triggers/Unincorp": file()}  # fmt: skip


def vagrant() -> Files:
    """The user of Vagrant's boxes, as the recipe makes it."""
    key = (resources.folder("provision") / "files/vagrant.pub").read_bytes()
    return {
        "/etc/passwd": file(USERS + "vagrant:x:1000:1000::/home/vagrant:/bin/bash\n"),
        "/etc/shadow": file("root:*:20785:0:99999:7:::\nvagrant:*:20785:0:99999:7:::\n", mode=0o640),
        "/etc/sudoers.d/vagrant": file("vagrant ALL=(ALL) NOPASSWD: ALL\n", mode=0o440),
        f"/home/{VAGRANT}/.ssh/authorized_keys": file(key, mode=0o600, uid=1000),
        "/usr/bin/sudo": file("\x7fELF\0", mode=0o4755),
    }


def bolt(tree: Mapping[bytes, Any], page_size: int = 4096) -> bytes:
    """Return a bolt database: buckets of more than a page as pages below a branch, smaller ones in their parent."""
    pages: list[bytes] = [b"", b"", struct.pack("<QHHI", 2, 0x10, 0, 0)]

    def leaf(items: list[tuple[int, bytes, bytes]], number: int) -> bytes:
        head, body = b"", b""
        for index, (flags, key, value) in enumerate(items):
            at = (len(items) - index) * 16 + len(body)
            head, body = head + struct.pack("<IIII", flags, at, len(key), len(value)), body + key + value
        data = struct.pack("<QHHI", number, 0x02, len(items), max(0, (16 + len(head + body) - 1) // page_size))
        return data + head + body

    def add(items: list[tuple[int, bytes, bytes]]) -> int:
        number = len(pages)
        data = leaf(items, number)
        count = -(-len(data) // page_size)
        pages.extend(
            (data.ljust(count * page_size, b"\0"))[at : at + page_size] for at in range(0, len(data), page_size)
        )
        return number

    def elements(bucket: Mapping[bytes, Any]) -> list[tuple[int, bytes, bytes]]:
        return [
            (0, key, value) if isinstance(value, bytes) else (1, key, build(value))
            for key, value in sorted(bucket.items())
        ]

    def build(bucket: Mapping[bytes, Any]) -> bytes:
        items = elements(bucket)
        if len(leaf(items, 0)) < page_size // 4:
            return struct.pack("<QQ", 0, 0) + leaf(items, 0)
        halves = [items[: len(items) // 2], items[len(items) // 2 :]]
        children = [(half[0][1], add(half)) for half in halves if half]
        head, body = b"", b""
        for index, (key, child) in enumerate(children):
            head += struct.pack("<IIQ", (len(children) - index) * 16 + len(body), len(key), child)
            body += key
        pages.append(struct.pack("<QHHI", len(pages), 0x01, len(children), 0) + head + body)
        return struct.pack("<QQ", len(pages) - 1, 0)

    root = add(elements(tree))
    for number in (0, 1):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, page_size, 0, root, 0, 2, len(pages), 7 + number)
        check = 0xCBF29CE484222325
        for byte in meta:
            check = ((check ^ byte) * 0x100000001B3) % (1 << 64)
        pages[number] = struct.pack("<QHHI", number, 0x04, 0, 0) + meta + struct.pack("<Q", check)
    return b"".join(page.ljust(page_size, b"\0") for page in pages)


def rpmdb(found: tuple[tuple[str, str], ...]) -> bytes:
    """Return an rpm database with these packages, ``version-release`` each."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB)")
        for name, full in found:
            version, release = full.split("-", 1)
            tags, data, entries = ((1000, name), (1001, version), (1002, release), (1022, "x86_64")), b"", b""
            for tag, value in tags:
                entries += struct.pack(">IIII", tag, 6, len(data), 1)
                data += value.encode() + b"\0"
            blob = struct.pack(">II", len(tags), len(data)) + entries + data
            database.execute("INSERT INTO Packages (blob) VALUES (?)", (blob,))
        database.commit()
        return database.serialize()
