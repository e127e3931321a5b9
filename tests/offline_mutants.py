"""For each offline check, images that are broken in just one way: that check fails, and all others pass.

The paths are those of a real image, and what is changed is taken from the image at hand: the same list serves for the
small one in memory and for an artifact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from imagebuilder.verify.model import DiskFacts, Image, Partition
from imagebuilder.verify.offline.node import METADATA, STORE
from imagebuilder.verify.tree import Changed, Entry, Tree, file, folder, link, resolve

Changes = Mapping[str, tuple[Entry, bytes] | None]
Change = Callable[[Tree], Changes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One way to break an image.

    Attributes:
        check: the id of the one that must fail.
        what: what is wrong, in a word or two.
        said: what the check says, in part.
        change: of the tree, and which.
        on: the tree.
        disk: the change of the disk.
        family: whose images can be broken in this way; empty means all.
    """

    check: str
    what: str
    said: str
    change: Change = lambda _: {}
    on: Literal["root", "esp"] = "root"
    disk: Callable[[DiskFacts], DiskFacts] = lambda disk: disk
    family: str = ""

    @property
    def id(self) -> str:
        return f"{self.check}: {self.what}"


def apply(mutant: Mutant, image: Image) -> Image:
    """Return an image that is broken in this way, and in no other."""
    image = replace(image, disk=mutant.disk(image.disk))
    if mutant.on == "esp":
        assert image.esp is not None
        return replace(image, esp=Changed(image.esp, mutant.change(image.esp)))
    return replace(image, root=Changed(image.root, _with_folders(image.root, mutant.change(image.root))))


def _with_folders(tree: Tree, changes: Changes) -> Changes:
    parents = {path[:at] for path, change in changes.items() if change for at in range(1, len(path)) if path[at] == "/"}
    return {**{path: folder() for path in parents if tree.entry(path) is None}, **changes}


def put(path: str, content: str | bytes = "x\n", mode: int = 0o644, uid: int = 0) -> Change:
    """Write a file that is new, or other than it was."""
    return lambda _: {path: file(content, mode=mode, uid=uid)}


def ln(path: str, target: str) -> Change:
    return lambda _: {path: link(target)}


def gone(path: str) -> Change:
    """Remove what a path leads to, or one of the paths that a pattern of its last part fits."""
    return lambda tree: {_there(tree, path)[0]: None}


def edit(path: str, old: str, new: str, *, count: int = 1) -> Change:
    """Replace the first match of a pattern in a file; ``count`` 0 is all of them."""

    def change(tree: Tree) -> Changes:
        at, entry = _there(tree, path)
        data = tree.content(at, entry.size)
        edited, done = re.subn(old.encode(), new.encode(), data, count=count, flags=re.MULTILINE)
        assert done, f"{path} has no {old}"
        return {at: (replace(entry, size=len(edited)), edited)}

    return change


def append(path: str, line: str) -> Change:
    return edit(path, r"\Z", line.replace("\\", "\\\\"))


def owned(path: str, **changes: int) -> Change:
    """Change the owner or the mode of a file."""

    def change(tree: Tree) -> Changes:
        at, entry = _there(tree, path)
        return {at: (replace(entry, **changes), tree.content(at, entry.size))}  # type: ignore[arg-type]

    return change


def menu(word: str) -> Change:
    """Give the kernel one more argument."""
    return lambda tree: edit(MENU if resolve(tree, MENU) else ENTRIES, " ro ", f" ro {word} ")(tree)


def _there(tree: Tree, path: str) -> tuple[str, Entry]:
    top, _, name = path.rpartition("/")
    if "*" in name:
        real = resolve(tree, top)
        name = next(one for one in tree.names(real[0] if real else top) if re.fullmatch(name.replace("*", ".*"), one))
    found = resolve(tree, f"{top}/{name}")
    assert found is not None, f"there is no {path}"
    return found


def smallest_blob(tree: Tree) -> Changes:
    """Remove the configuration of the pause image: the small blob that names its entry point, or nothing."""
    blobs = {name: tree.content(f"{STORE}/{name}", 1000) for name in tree.names(STORE)}
    manifest = next(data for data in blobs.values() if b'"layers"' in data and _of_pause(data, blobs))
    config = re.search(rb'"config": ?\{"digest": ?"sha256:([0-9a-f]{64})', manifest)
    assert config is not None
    return {f"{STORE}/{config[1].decode()}": None}


def _of_pause(manifest: bytes, blobs: Mapping[str, bytes]) -> bool:
    parts = [blobs.get(one.decode(), b"") for one in re.findall(rb"sha256:([0-9a-f]{64})", manifest)]
    return any(b'"architecture"' in part and b"busybox" not in part for part in parts)


def swap_partition(disk: DiskFacts) -> DiskFacts:
    more = Partition(number=9, type="0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", start=0, size=1 << 20)
    return replace(disk, partitions=(*disk.partitions, more))


MENU, ENTRIES = "/boot/grub/grub.cfg", "/boot/loader/entries/*.conf"
SYSTEM, WANTS = "/etc/systemd/system", "/etc/systemd/system/sysinit.target.wants"
CONTAINERD, STATUS = "/etc/containerd/config.toml", "/var/lib/dpkg/status"
# Made here, so that no scanner takes this file for a leak.
RANDOM = "q7Xk2mPz9RvL4tNc8WbY"
PEM = "-----BEGIN {}PRIVATE" + " KEY-----\n" + "MHcCAQEEIBk3dQ8" * 4 + "\n-----END {}PRIVATE" + " KEY-----\n"
JWT = ".".join(["eyJhbGciOiJSUzI1NiIs", "eyJpc3MiOiJrdWJlcm5ldGVzIn0", RANDOM])

MUTANTS = (
    Mutant(check="bios-code", what="no boot code", said="no boot code of GRUB",
           disk=lambda disk: replace(disk, boot_code=bytes(440))),
    Mutant(check="bios-code", what="no room for GRUB's core", said="no BIOS boot partition",
           disk=lambda disk: replace(disk, partitions=disk.partitions[1:])),
    Mutant(check="efi-loader", what="no GRUB beside shim", said="not beside it", on="esp", change=gone("/EFI/BOOT/grubx64.efi")),
    Mutant(check="efi-loader", what="no loader", said="no EFI program", on="esp", change=gone("/EFI/BOOT/BOOTX64.EFI")),
    Mutant(check="efi-loader", what="loader is no program", said="no EFI program", on="esp",
           change=put("/EFI/BOOT/BOOTX64.EFI", "#!/bin/sh\n")),
    Mutant(check="efi-loader", what="GRUB looks elsewhere", said="does not name", on="esp",
           change=lambda tree: edit(f"/EFI/{next(name for name in tree.names('/EFI') if name != 'BOOT')}/grub.cfg",
                                    "[0-9a-f]{8}-", "00000000-")(tree)),
    Mutant(check="kernel-files", what="kernel without initramfs", said="9.9.9 has no initramfs",
           change=lambda tree: {"/boot/vmlinuz-9.9.9": file(bytes(0x202) + b"HdrS"),
                                "/usr/lib/modules/9.9.9/modules.dep": file(
                                    "".join(f"kernel/{name}.ko: \n" for name in ("overlay", "br_netfilter", "nft_compat", "ip_set")))}),
    Mutant(check="kernel-files", what="initramfs of zeros", said="is none: no archive begins with 000000000000",
           change=lambda tree: {_there(tree, "/boot/initr*-*")[0]: file(bytes(64))}),
    Mutant(check="kernel-files", what="kernel is no kernel", said="is no kernel", change=edit("/boot/vmlinuz-*", "HdrS", "HdrX")),
    Mutant(check="boot-menu", what="root by device", said="name of a device",
           change=edit(MENU, "root=UUID=[0-9a-f-]+", "root=/dev/vda3"), family="debian"),
    Mutant(check="boot-menu", what="root by device in an entry", said="name of a device",
           change=edit(ENTRIES, "root=UUID=[0-9a-f-]+", "root=/dev/vda3"), family="redhat"),
    Mutant(check="boot-menu", what="other root", said="/etc/fstab has", change=edit(MENU, "root=UUID=[0-9a-f]{8}", "root=UUID=00000000"),
           family="debian"),
    Mutant(check="boot-menu", what="initramfs is not there", said="is not there", change=edit(MENU, "initrd.img-", "initrd.img-old-"),
           family="debian"),
    Mutant(check="boot-menu", what="no menu", said="names no kernel",
           change=lambda tree: {_there(tree, MENU if resolve(tree, MENU) else ENTRIES)[0]: None}),
    Mutant(check="fstab", what="by device", said="mounts /data from /dev/vdb1", change=append("/etc/fstab", "/dev/vdb1 /data ext4 rw 0 2\n")),
    Mutant(check="no-swap", what="a line in fstab", said="/etc/fstab has swap", change=append("/etc/fstab", "UUID=1-2 none swap sw 0 0\n")),
    Mutant(check="no-swap", what="a file", said="/swapfile is there", change=put("/swapfile", mode=0o600)),
    Mutant(check="no-swap", what="a partition", said="partition 9 is for swap", disk=swap_partition),
    Mutant(check="no-swap", what="zram", said="swap in memory", change=put("/etc/systemd/zram-generator.conf", "[zram0]\n")),
    Mutant(check="no-cgroup-v1", what="kernel argument", said="unified_cgroup_hierarchy=0",
           change=menu("systemd.unified_cgroup_hierarchy=0")),
    Mutant(check="root-grows", what="no partition to grow", said="nothing grows", change=gone("/usr/lib/repart.d/50-root.conf"),
           family="debian"),
    Mutant(check="root-grows", what="no program to grow", said="nothing grows", change=gone("/usr/libexec/imagebuilder/grow-part"),
           family="redhat"),
    Mutant(check="root-grows", what="file system stays small", said="no x-systemd.growfs",
           change=edit("/etc/fstab", ",x-systemd.growfs", ""), family="debian"),
    Mutant(check="modules-listed", what="one not named", said="br_netfilter",
           change=edit("/etc/modules-load.d/imagebuilder.conf", "^br_netfilter$", "# br_netfilter")),
    Mutant(check="modules-there", what="one missing", said="no module br_netfilter",
           change=lambda tree: edit(f"/lib/modules/{_there(tree, '/lib/modules/*')[0].rpartition('/')[2]}/modules.dep",
                                    "/br_netfilter.ko", "/br_netfilter_x.ko")(tree)),
    Mutant(check="sysctl-files", what="a later file", said="net.ipv4.ip_forward is 0, not 1",
           change=put("/usr/lib/sysctl.d/95-late.conf", "net/ipv4/ip_forward = 0\n")),
    Mutant(check="sysctl-files", what="one not set", said="kernel.panic is not set",
           change=edit("/etc/sysctl.d/90-imagebuilder.conf", "^kernel.panic = 10$", "")),
    Mutant(check="sysctl-files", what="hidden file", said="vm.overcommit_memory is not set",
           change=ln("/etc/sysctl.d/90-imagebuilder.conf", "/dev/null")),
    Mutant(check="node-programs", what="no openssl", said="no program openssl", change=gone("/usr/bin/openssl")),
    Mutant(check="ssh-keys-only", what="passwords", said="passwordauthentication yes",
           change=put("/etc/ssh/sshd_config.d/10-early.conf", "PasswordAuthentication yes\n")),
    Mutant(check="ssh-keys-only", what="root's password", said="permitrootlogin yes",
           change=put("/etc/ssh/sshd_config.d/10-early.conf", "PermitRootLogin=yes\n")),
    Mutant(check="network-networkd", what="all interfaces", said="interfaces of pods", family="debian",
           change=edit("/etc/systemd/network/80-imagebuilder-dhcp.network", "^Name=.*$", "Name=*")),
    Mutant(check="network-networkd", what="no DHCP", said="DHCP=yes", family="debian",
           change=edit("/etc/systemd/network/80-imagebuilder-dhcp.network", "^DHCP=.*$", "")),
    Mutant(check="network-manager", what="uuid", said="of one machine", family="redhat",
           change=append("/etc/NetworkManager/system-connections/imagebuilder-dhcp.nmconnection", "[connection]\nuuid=1-2\n")),
    Mutant(check="network-manager", what="pods' interfaces", said="manages cali*", family="redhat",
           change=edit("/etc/NetworkManager/conf.d/90-imagebuilder.conf", "interface-name:cali.;", "")),
    Mutant(check="apparmor-set", what="switched off", said="apparmor=0", change=menu("apparmor=0"), family="debian"),
    Mutant(check="apparmor-set", what="not in lsm=", said="without apparmor", change=menu("lsm=yama,bpf"), family="debian"),
    Mutant(check="apparmor-set", what="not enabled", said="not enabled", family="debian",
           change=lambda _: {f"{WANTS}/apparmor.service": None}),
    Mutant(check="apparmor-set", what="no parser", said="no program apparmor_parser", change=gone("/usr/sbin/apparmor_parser"),
           family="debian"),
    Mutant(check="selinux-set", what="permissive", said="SELINUX=permissive", family="redhat",
           change=edit("/etc/selinux/config", "^SELINUX=enforcing", "SELINUX=permissive")),
    Mutant(check="selinux-set", what="switched off", said="enforcing=0", change=menu("enforcing=0"), family="redhat"),
    Mutant(check="os-as-stated", what="other release", said="of release 11",
           change=edit("/etc/os-release", '^VERSION_ID=.*$', 'VERSION_ID="11"')),
    Mutant(check="os-as-stated", what="other system", said="it is arch", change=edit("/etc/os-release", "^ID=.*$", "ID=arch")),
    Mutant(check="setuid-known", what="a new one", said="/opt/tool has mode 4755", change=put("/opt/tool", mode=0o4755)),
    Mutant(check="world-writable-known", what="a file", said="/etc/open has mode 666", change=put("/etc/open", mode=0o666)),
    Mutant(check="world-writable-known", what="a folder", said="/srv/all has mode 777",
           change=lambda _: {"/srv/all": folder(mode=0o777)}),
    Mutant(check="node-units", what="not enabled", said="kubelet.service is not enabled", change=lambda _: {f"{WANTS}/kubelet.service": None}),
    Mutant(check="node-units", what="masked", said="docker.service is masked", change=ln(f"{SYSTEM}/docker.service", "/dev/null")),
    Mutant(check="units-known", what="a new one", said="avahi-daemon.service",
           change=ln(f"{SYSTEM}/multi-user.target.wants/avahi-daemon.service", "/usr/lib/systemd/system/avahi-daemon.service")),
    Mutant(check="no-own-updates", what="not masked", said="unattended-upgrades.service is not masked", family="debian",
           change=lambda _: {f"{SYSTEM}/unattended-upgrades.service": None}),
    Mutant(check="no-own-updates", what="timer not masked", said="dnf-makecache.timer is not masked", family="redhat",
           change=lambda _: {f"{SYSTEM}/dnf-makecache.timer": None}),
    Mutant(check="no-firewall", what="enabled", said="firewalld.service",
           change=ln(f"{SYSTEM}/multi-user.target.wants/firewalld.service", "/usr/lib/systemd/system/firewalld.service")),
    Mutant(check="swap-units-off", what="not masked", said="swap.target is not masked", change=lambda _: {f"{SYSTEM}/swap.target": None}),
    Mutant(check="swap-units-off", what="a unit", said="dev-vdb1.swap", change=put(f"{SYSTEM}/dev-vdb1.swap", "[Swap]\nWhat=/dev/vdb1\n")),
    Mutant(check="node-programs-kubernetes", what="no kubectl", said="no program kubectl", change=gone("/usr/bin/kubectl")),
    Mutant(check="node-programs-kubernetes", what="not executable", said="no program kubelet",
           change=put("/usr/bin/kubelet", mode=0o644)),
    Mutant(check="cni-plugins", what="no loopback", said="/opt/cni/bin/loopback", change=gone("/opt/cni/bin/loopback")),
    Mutant(check="containerd-settings", what="own cgroups", said="SystemdCgroup",
           change=edit(CONTAINERD, "SystemdCgroup = true", "SystemdCgroup = false")),
    Mutant(check="containerd-settings", what="no drop-ins", said="drop-ins are not read", change=edit(CONTAINERD, "^imports.*$", "")),
    Mutant(check="containerd-settings", what="no registries", said="config_path", change=edit(CONTAINERD, "^config_path.*$", "")),
    Mutant(check="containerd-settings", what="version", said="has version 1", change=edit(CONTAINERD, r"^version = \d", "version = 1")),
    Mutant(check="containerd-settings", what="a bad drop-in", said="is no TOML", change=put("/etc/containerd/conf.d/a.toml", "= 1\n")),
    Mutant(check="containerd-settings", what="no SELinux", said="not confined", family="redhat",
           change=edit(CONTAINERD, "enable_selinux = true", "enable_selinux = false")),
    Mutant(check="pause-image-named", what="another", said="pause:3.6", change=edit(CONTAINERD, "pause:[0-9.]+", "pause:3.6")),
    Mutant(check="pause-image-stored", what="a part missing", said="not all stored", change=smallest_blob),
    Mutant(check="pause-image-stored", what="unknown", said="does not have", change=edit(METADATA, r"k8s\.io(?!/)", "k8s.i0", count=0)),  # also in pages that bolt has given up
    Mutant(check="pause-image-stored", what="not pinned", said="not pinned", change=edit(METADATA, "cri-containerd.pinned", "cri-containerd.pinnex", count=0)),
    Mutant(check="crictl-settings", what="another socket", said="runtime-endpoint",
           change=edit("/etc/crictl.yaml", "^runtime-endpoint:.*$", "runtime-endpoint: unix:///run/dockershim.sock")),
    Mutant(check="crictl-settings", what="no file", said="(none)", change=gone("/etc/crictl.yaml")),
    Mutant(check="docker-settings", what="own cgroups", said="exec-opts",
           change=edit("/etc/docker/daemon.json", "cgroupdriver=systemd", "cgroupdriver=cgroupfs")),
    Mutant(check="docker-settings", what="logs without limit", said="max-size", change=edit("/etc/docker/daemon.json", "max-size", "max-sise")),
    Mutant(check="kubelet-unit", what="does not wait", said="ConditionPathExists=/var/lib/kubelet/config.yaml",
           change=edit(f"{SYSTEM}/kubelet.service", "^ConditionPathExists=/.*$", "")),
    Mutant(check="kubelet-unit", what="a drop-in resets", said="After=containerd.service",
           change=put(f"{SYSTEM}/kubelet.service.d/20-x.conf", "[Unit]\nAfter=\nAfter=imagebuilder-agent-local.service\n")),
    Mutant(check="kubelet-unit", what="starts nothing", said="which is no program", change=gone("/usr/libexec/imagebuilder/kubelet-start")),
    Mutant(check="agent-files", what="no agent", said="there is no /usr/lib/imagebuilder/agent.py", change=gone("/usr/lib/imagebuilder/agent.py")),
    Mutant(check="agent-files", what="of somebody", said="others than root", change=owned("/usr/sbin/imagebuilder-agent", uid=1000)),
    Mutant(check="trust-is-public", what="no key", said="no public key", change=put("/etc/imagebuilder/trust.d/a.pem", "a key\n")),
    Mutant(check="image-facts", what="other version", said="has kubelet 1.2.3",
           change=edit("/usr/lib/imagebuilder/image.json", '"kubelet": "[0-9.]+"', '"kubelet": "1.2.3"')),
    Mutant(check="image-facts", what="none", said="is missing", change=gone("/usr/lib/imagebuilder/image.json")),
    Mutant(check="no-node-data", what="a kubeconfig", said="kubelet.conf", change=put("/etc/kubernetes/kubelet.conf", "kind: Config\n")),
    Mutant(check="no-node-data", what="an agent's state", said="state.json", change=put("/var/lib/imagebuilder/state.json", "{}\n")),
    Mutant(check="dpkg-sound", what="to be installed again", said="openssl is in state: install reinstreq installed", family="debian",
           change=edit(STATUS, r"^(Package: openssl\nStatus: install )ok", r"\1reinstreq")),
    Mutant(check="dpkg-sound", what="half written", said="did not end", change=put("/var/lib/dpkg/updates/0001"), family="debian"),
    Mutant(check="dpkg-sound", what="triggers", said="did not run", family="debian",
           change=put("/var/lib/dpkg/triggers/Unincorp", "ldconfig libc6\n")),
    Mutant(check="rpm-sound", what="open transaction", said="did not end", family="redhat", change=put("/var/lib/rpm/rpmdb.sqlite-journal")),
    Mutant(check="held-by-dpkg", what="one free", said="containerd is not held", family="debian",
           change=edit(STATUS, r"^(Package: containerd\nStatus: )hold", r"\1install")),
    Mutant(check="locked-by-dnf", what="one free", said="docker-ce is not locked", family="redhat",
           change=edit("/etc/dnf/plugins/versionlock.list", "^docker-ce-0:.*$", "")),
    Mutant(check="packages-as-stated", what="other version", said="openssl is 0.9.8", family="debian",
           change=edit(STATUS, r"^(Package: openssl\n(?:\S.*\n| .*\n)*?Version: ).*$", r"\g<1>0.9.8")),
    Mutant(check="packages-as-stated", what="other version in rpm's", said="openssl is 9.5.1", family="redhat",
           change=edit("/var/lib/rpm/rpmdb.sqlite", r"(openssl\x00)3", r"\g<1>9")),
    Mutant(check="packages-as-stated", what="one more", said="nmap is 7.0, the manifest says nothing", family="debian",
           change=append(STATUS, "Package: nmap\nStatus: install ok installed\nArchitecture: amd64\nVersion: 7.0\n\n")),
    Mutant(check="no-build-user", what="the user", said="has the user packer",
           change=append("/etc/passwd", "packer:x:1001:1001::/var/packer:/bin/bash\n")),
    Mutant(check="no-build-user", what="its home", said="home of nobody", change=lambda _: {"/home/packer": folder()}),
    Mutant(check="no-build-user", what="a second root", said="rights of root", change=append("/etc/passwd", "toor:x:0:0::/:/bin/sh\n")),
    Mutant(check="no-passwords", what="a hash", said="a password of root", change=edit("/etc/shadow", "^root:[*]:", f"root:$y$j9T${RANDOM}:")),
    Mutant(check="no-passwords", what="locked hash", said="a password of root", change=edit("/etc/shadow", "^root:[*]:", f"root:!$6${RANDOM}:")),
    Mutant(check="no-passwords", what="empty", said="an empty password of root", change=edit("/etc/shadow", "^root:[*]:", "root::")),
    Mutant(check="no-passwords", what="in the copy", said="/etc/shadow- has", change=put("/etc/shadow-", "packer:$6$x:1::::::\n", mode=0o640)),
    Mutant(check="no-left-sudoers", what="a rule", said="rule for packer", change=put("/etc/sudoers.d/packer", "packer ALL=(ALL) NOPASSWD: ALL\n")),
    Mutant(check="no-authorized-keys", what="root's", said="/root/.ssh/authorized_keys", change=put("/root/.ssh/authorized_keys", "ssh-ed25519 A\n")),
    Mutant(check="no-host-keys", what="one", said="ssh_host_ed25519_key.pub", change=put("/etc/ssh/ssh_host_ed25519_key.pub")),
    Mutant(check="no-histories", what="root's", said="/root/.bash_history", change=put("/root/.bash_history", "ls\n")),
    Mutant(check="no-identity", what="machine-id", said="has an id", change=put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")),
    Mutant(check="no-identity", what="no file", said="to be there", change=gone("/etc/machine-id")),
    Mutant(check="no-identity", what="a seed", said="random-seed", change=put("/var/lib/systemd/random-seed")),
    Mutant(check="no-hostname", what="a name", said="builder-7", change=put("/etc/hostname", "builder-7\n")),
    Mutant(check="no-hostname", what="in hosts", said="builder-7", change=append("/etc/hosts", "127.0.1.1 builder-7\n")),
    Mutant(check="no-temporary-files", what="an upload", said="/tmp/upload.sh", change=put("/tmp/upload.sh")),
    Mutant(check="no-proxy", what="apt's", said="90proxy sets", change=put("/etc/apt/apt.conf.d/90proxy", 'Acquire::http::Proxy "http://192.0.2.1:3128";\n')),
    Mutant(check="no-proxy", what="everybody's", said="/etc/environment sets", change=put("/etc/environment", "https_proxy=http://192.0.2.1:3128\n")),
    Mutant(check="no-proxy", what="a service's", said="docker.service.d",
           change=put(f"{SYSTEM}/docker.service.d/proxy.conf", '[Service]\nEnvironment="HTTP_PROXY=http://192.0.2.1:3128"\n')),
    Mutant(check="no-build-repository", what="a folder", said="build machine's", family="debian",
           change=put("/etc/apt/sources.list.d/build.list", "deb file:/srv/repository ./\n")),
    Mutant(check="no-build-repository", what="unsigned", said="unsigned", family="redhat",
           change=put("/etc/yum.repos.d/x.repo", "[x]\nbaseurl=https://example.org\ngpgcheck=0\n")),
    Mutant(check="no-build-repository", what="the step's", said="of the build",
           change=put("/etc/apt/sources.list.d/imagebuilder-kubernetes.sources", "Types: deb\n")),
    Mutant(check="no-resolver", what="the build's", said="/etc/resolv.conf names", change=put("/etc/resolv.conf", "nameserver 192.0.2.1\n")),
    Mutant(check="no-resolver", what="a copy", said=".bak names", change=put("/etc/.resolv.conf.systemd-resolved.bak", "nameserver 192.0.2.1\n")),
    Mutant(check="no-logs", what="a log", said="/var/log/dpkg.log has", change=put("/var/log/dpkg.log")),
    Mutant(check="no-logs", what="a journal", said="system.journal has", change=put("/var/log/journal/0123/system.journal")),
    Mutant(check="no-package-caches", what="lists", said="_Packages has", change=put("/var/lib/apt/lists/x_Packages"), family="debian"),
    Mutant(check="no-package-caches", what="metadata", said="x.solv has", change=put("/var/cache/dnf/x.solv"), family="redhat"),
    Mutant(check="no-leases", what="a lease", said="dhclient.leases", change=put("/var/lib/dhcp/dhclient.leases")),
    Mutant(check="no-leases", what="a card's name", said="70-persistent-net.rules", change=put("/etc/udev/rules.d/70-persistent-net.rules")),
    Mutant(check="no-installer-state", what="cloud-init's", said="/var/lib/cloud/instance", change=put("/var/lib/cloud/instance")),
    *(
        Mutant(check="no-secrets", what=what, said=f"{path}:{line}: {kind}", change=put(path, content, mode=0o600))
        for what, path, line, kind, content in (
            ("a key in PEM", "/root/.key", 2, "private key", "\n" + PEM.format("", "")),
            ("an RSA key among programs", "/usr/share/x/key.pem", 1, "private key", PEM.format("RSA ", "RSA ")),
            ("an OpenSSH key", "/etc/x/id", 1, "private key", PEM.format("OPENSSH ", "OPENSSH ")),
            ("a service account", "/opt/sa.json", 1, "private key",
             '{"private_key": "' + PEM.format("", "").replace("\n", "\\n") + '"}'),
            ("AWS", "/root/.aws", 2, "AWS secret key",
             "[default]\naws_access_key_id = AKI" + "AQ3EGRIPZ7X2LMNOP\nkey = wJalrXUtnFEMI/K7MDENG+bPxRfiCY3xAmPlE9z7\n"),
            ("GitHub", "/usr/share/x.py", 1, "GitHub token", "gh" + "p_" + RANDOM * 2),
            ("GitLab", "/srv/x", 1, "GitLab token", "glp" + "at-" + RANDOM),
            ("Slack", "/srv/x", 1, "Slack token", "xo" + "xb-1234567890-" + RANDOM),
            ("a service account's token", "/srv/x", 1, "JWT", JWT),
            ("a kubeconfig", "/srv/config", 3, "key of a kubeconfig", f"kind: Config\nusers:\n  client-key-data: {RANDOM * 3}\n"),
            ("a token", "/etc/x.yaml", 1, "token", f"token: {RANDOM}\n"),
            ("a bootstrap token", "/etc/kubeadm.yaml", 2, "bootstrap token", "bootstrapTokens:\n- 9f3k2p.q7xk2mpz9rvl4tnc\n"),
            ("a password", "/etc/x.conf", 1, "password", f"db_password = \"{RANDOM}\"\n"),
            ("a password of curl's", "/etc/x.url", 1, "password in an address", "https://me:hunter22@example.org/\n"),
            ("a registry", "/root/.docker/config.json", 1, "login of a registry", '{"auths": {"r.example": {"auth": "bWU6aHVudGVyMjI="}}}'),
            ("a hash", "/etc/x.cfg", 1, "hash of a password", f"rootpw --iscrypted $6$abc${RANDOM * 2}\n"),
        )
    ),
)  # fmt: skip
