"""Root trees as the packages or an image's publisher left them, for each kind of system that the recipe serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakeroot import FakeRoot, write_program
from local_archive import Key

from imagebuilder import resources
from imagebuilder.steps import load_steps, select


def pem(key: Any) -> bytes:
    """Return a key of cryptography's, public or private, as PEM."""
    if hasattr(key, "public_key"):
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


TRUSTED = pem(ec.generate_private_key(ec.SECP256R1()).public_key())
PROVISION = resources.folder("provision")
PAUSE = "registry.k8s.io/pause:3.10"
ENV = {
    "IB_BASE_PACKAGES": "systemd chrony",
    "IB_RUNTIME_PACKAGES": "docker.io containerd",
    "IB_INITRAMFS_MODULES": "virtio_blk ext4",
    "IB_MASKED_SERVICES": "fstrim.timer dpkg-db-backup.timer",
    "IB_MASKED_GENERATORS": "systemd-cryptsetup-generator",
    "IB_PAUSE_IMAGE": PAUSE,
    "IB_AGENT": "/materials/agent.py",
    "IB_IMAGE_ID": "debian-13-amd64-k1.35",
    "IB_ARCH": "amd64",
    "IB_PAUSE_ARCHIVE": "/materials/pause.tar",
    "IB_KUBERNETES_VERSION": "1.35.8",
    "IB_KUBERNETES_PAYLOAD": "/materials/kubernetes",
    "IB_CRICTL_PAYLOAD": "/materials/crictl",
    "IB_CNI_PAYLOAD": "/materials/cni",
    "IB_KUBELET_DEFAULTS": "/etc/default/kubelet",
    "IB_HOLD_PACKAGES": "kubelet docker.io not-installed",
    "IB_GUEST_PACKAGES": "qemu-guest-agent",
    "IB_SITE_PACKAGES": "vim-tiny",
    "IB_SITE_OVERLAYS": "/materials/overlays",
    "IB_SITE_SCRIPTS": "/materials/scripts",
    "IB_SITE_TRUST": "/materials/trust",
    "IB_SITE_IMAGES": "/materials/images",
}


@dataclass(frozen=True, kw_only=True)
class System:
    """A kind of system: its family, whether a machine runs, the facts of its cell, its kernels, what lies in it."""

    family: str
    kernels: tuple[str, ...]
    facts: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @property
    def machine(self) -> bool:
        """Return whether the image is built in a machine that runs."""
        return "vm_build" in self.facts

    @property
    def steps(self) -> list[str]:
        """Return the files of its steps, in order."""
        return [f"{step.key}.sh" for step in select(load_steps(), self.family, "qemu", self.facts)]


BUILD_TRACES = {  # of any build
    "etc/fstab": "/dev/a / ext4 rw 0 1\n/dev/b none swap sw 0 0\n",
    "etc/hostname": "builder\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/ssh/ssh_host_ed25519_key": "secret\n",
    "var/log/syslog": "the build's own\n",
    "var/log/old.gz": "older\n",
    "root/.ssh/authorized_keys": "key\n",
    "tmp-trace": "",
    "swapfile": "",
}
MACHINE_TRACES = {  # of an installer, cloud-init and the build in a machine
    "etc/cloud/cloud.cfg.d/99-installer.cfg": "",
    "etc/cloud/cloud.cfg.d/90_dpkg.cfg": "the distribution's\n",
    "etc/sudoers.d/90-cloud-init-users": "builder ALL=(ALL) NOPASSWD: ALL\n",
    "etc/ssh/sshd_config.d/50-cloud-init.conf": "PasswordAuthentication yes\n",
    "etc/udev/rules.d/70-persistent-net.rules": "",
    "etc/lvm/devices/system.devices": "",
    "home/builder/.ssh/authorized_keys": "key of the build\n",
    "root/anaconda-ks.cfg": "",
    "var/lib/cloud/data/instance-id": "i-1\n",
    "var/lib/docker/engine-id": "1\n",
    "var/log/cloud-init.log": "",
    "var/log/installer/log": "",
    "cloud-init-status": "2",
}
APPARMOR = {
    "etc/apparmor.d/confines": "profile a /usr/bin/a {\n}\n",
    "etc/apparmor.d/complains": "profile b /usr/bin/b flags=(attach_disconnected,complain) {\n}\n",
}
SYSTEMS = {
    "debian": System(
        family="debian",
        kernels=("6.1.0-56-cloud-amd64",),
        facts=("guest_packages", "stock_initramfs", "small_initramfs"),  # no cell is both: each of the two has a step
        texts=APPARMOR,
    ),
    "ubuntu": System(
        family="debian",
        kernels=("6.8.0-40-generic", "6.8.0-45-generic"),
        facts=("vm_build", "guest_packages", "no_cloud_init", "repositories", "vagrant", "stock_initramfs"),
        texts={
            **MACHINE_TRACES,
            **APPARMOR,
            "etc/apparmor.d/allows": "profile c /usr/bin/c flags=(unconfined) {\n  userns,\n}\n",
            "etc/sysctl.d/10-apparmor.conf": "kernel.apparmor_restrict_unprivileged_userns = 1\n",
            "etc/default/motd-news": "ENABLED=1\n",
            "etc/netplan/50-cloud-init.yaml": "network:\n",
            "etc/netplan/90-default.yaml": "the distribution's\n",
            "etc/systemd/system/ufw.service": "",
            "etc/systemd/system/motd-news.timer": "",
            "etc/apt/apt.conf.d/90cloud-init-aptproxy": "",
            "etc/apt/sources.list.d/ubuntu.sources": "the distribution's\n",
            "var/lib/snapd/state.json": "",
        },
        packages=("snapd", "linux-image-6.8.0-40-generic", "linux-image-6.8.0-45-generic", "curl", "gpg"),
    ),
    "redhat": System(
        family="redhat",
        kernels=("5.14.0-503.el9.x86_64", "5.14.0-570.el9_6.x86_64"),
        facts=("vm_build", "guest_packages", "repositories", "vagrant", "subscription", "stock_initramfs"),
        env={
            "IB_KUBELET_DEFAULTS": "/etc/sysconfig/kubelet",
            "IB_RHSM_ORGANIZATION": "123",
            "IB_RHSM_ACTIVATION_KEY": "secret",
            "IB_INITRAMFS_MODULES": "virtio_blk no_such_driver",
        },
        texts={
            **MACHINE_TRACES,
            "boot/vmlinuz-0-rescue-0123456789abcdef0123456789abcdef": "",
            "etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection": "[connection]\nuuid=1\n",
            "etc/sysconfig/network-scripts/ifcfg-eth0": "UUID=1\n",
            "etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=targeted\n",
            "etc/yum.repos.d/redhat.repo": "the distribution's\n",
            "var/lib/NetworkManager/secret_key": "1\n",
        },
        packages=("kernel-core-5.14.0-503.el9.x86_64", "kernel-core-5.14.0-570.el9_6.x86_64", "kernel-core"),
    ),
}


def materials(folder: Path) -> None:
    """Write what the engine would bind into the sandbox."""
    (folder / "kubernetes").mkdir(parents=True)
    for name in ("kubelet", "kubeadm", "kubectl"):
        write_program(folder / "kubernetes" / name, '[ "$*" = --version ] || exec refuse "$@"; echo Kubernetes v1.35.8')
    for name in ("loopback", "bridge", "host-local", "portmap"):
        (folder / "cni").mkdir(exist_ok=True)
        write_program(folder / "cni" / name, "true")
    (folder / "cni/payload.json").write_text("{}")
    for name in ("crictl", "images", "scripts", "trust", "overlays/00/etc/kubernetes/manifests"):
        (folder / name).mkdir(parents=True)
    write_program(folder / "crictl/crictl", "true")
    (folder / "trust/00-demo.pem").write_bytes(TRUSTED)
    (folder / "pause.tar").touch()
    (folder / "agent.py").write_bytes(resources.agent().read_bytes())
    (folder / "images/00.tar").touch()
    write_program(folder / "scripts/00-site.sh", 'test "$(pwd)" = / || exit 1\ntouch -d @1 /etc/site')
    (folder / "overlays/00/etc/kubernetes/manifests/pod.yaml").write_text("kind: Pod\n")
    (folder / "overlays/00/etc/kubernetes/manifests/pod.yaml").chmod(0o664)


def make_root(folder: Path, system: System) -> FakeRoot:
    """Make the tree of a system, with traces of a build in it."""
    made = FakeRoot.make(folder, PROVISION, {**ENV, **system.env}, family=system.family, machine=system.machine)
    materials(made.path / "materials")
    for kernel in system.kernels:
        modules = folder / "modules" / kernel
        modules.mkdir()
        for name in ("overlay", "br_netfilter", "nft_compat", "ip_set", "virtio_blk"):
            (modules / name).touch()
        (made.path / f"boot/vmlinuz-{kernel}").touch()
    (made.path / "running").write_text(f"{system.kernels[-1]}\n")
    for name, text in {**BUILD_TRACES, **system.texts}.items():
        (made.path / name).parent.mkdir(parents=True, exist_ok=True)
        (made.path / name).write_text(text)
    for name in system.packages:
        (made.path / "packages" / name).write_text("1.0")
    for path in ("etc/systemd/system", "etc/apt/apt.conf.d"):
        (made.path / path).mkdir(parents=True, exist_ok=True)
    for unit in PROVISION.glob("services/*/systemd/**/enable"):
        for name in unit.read_text().split():
            (made.path / "units" / name).touch()
    if system.machine:
        for name in ("docker.service", "containerd.service", "kubelet.service"):
            (made.path / "active" / name).touch()
    return made


def repositories(system: System, good: Key, other: Key) -> tuple[dict[str, bytes], str]:
    """Return key files, as a server or the upload gives them, and the value of IB_REPOSITORIES that goes with them.

    The file of the first holds another key too, which must not be trusted.
    """
    files = {"kubernetes.key": other.armored + good.armored, "docker.gpg": other.keyring.read_bytes()}
    suites = ("/|", "noble|stable,edge") if system.family == "debian" else ("|", "|")
    where = ("https://keys.example/kubernetes.key", "/materials/keys/docker.gpg")
    prints = (good.fingerprint, other.fingerprint)
    words = [
        f"{name}|https://packages.example/{name}/?arch=$basearch*|{suite}|{key}|{fingerprint}"
        for name, suite, key, fingerprint in zip(("kubernetes", "docker-ce"), suites, where, prints, strict=True)
    ]
    return files, "\n".join(words)


def give_repositories(root: FakeRoot, files: Mapping[str, bytes], words: str) -> None:
    """Let a tree's steps find these keys, and ask for these repositories."""
    for name, data in files.items():
        (root.path / "materials/keys").mkdir(exist_ok=True)
        (root.path / "materials/keys" / name).write_bytes(data)
    root.env = {**root.env, "IB_REPOSITORIES": words}
