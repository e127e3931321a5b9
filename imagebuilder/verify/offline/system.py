"""The operating system's part of a node: kernel settings, programs, network, SSH, and what confines programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from imagebuilder.verify.booted.system import SYSCTL
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import (
    DEBIAN,
    REDHAT,
    drop_ins,
    kernel_arguments,
    matches,
    missing_programs,
    names,
    paths,
    settings,
)
from imagebuilder.verify.offline.units import effective_units
from imagebuilder.verify.tree import Tree, text, walk

LOADED = ("overlay", "br_netfilter")
NEEDED = (*LOADED, "nft_compat", "ip_set")  # the last two are kube-proxy's and network add-ons'
NODE_PROGRAMS = (
    "python3", "openssl", "ip", "conntrack", "socat", "ethtool", "iptables", "ebtables", "nft", "modprobe", "sysctl",
    "sshd", "chronyd", "auditd", "jq",
)  # fmt: skip
# sshd_config(5): the first value that is found counts. What must be said, and what must not.
_SSH_WANTED = {"passwordauthentication": "no", "kbdinteractiveauthentication": "no"}
_SSH_REFUSED = {"permitrootlogin": "yes", "permitemptypasswords": "yes"}
_DHCP = frozenset({"DHCP=yes", "DHCP=true", "DHCP=ipv4"})
_STICKY, _SET_ID, _OTHERS = 0o1000, 0o6000, 0o002


def modules_loaded(image: Image) -> Found:
    """Look which modules modules-load.d names."""
    listed = {line for path in drop_ins(image.root, "modules-load.d") for line in settings(image.root, path)}
    return (f"no file of /etc/modules-load.d names {name}" for name in LOADED if name not in listed)


def modules_there(image: Image) -> Found:
    """Look whether each kernel has the modules that a node needs, as files or built in."""
    versions = names(image.root, "/lib/modules")
    if not versions:
        yield "there is no /lib/modules"
    for version in versions:
        folder = f"/lib/modules/{version}"
        lists = text(image.root, f"{folder}/modules.dep") + text(image.root, f"{folder}/modules.builtin")
        found = {match[1].replace("-", "_") for match in re.finditer(r"(?m)^\S*?([\w-]+)\.ko[.\w]*:?", lists)}
        yield from (f"the kernel {version} has no module {name}" for name in NEEDED if name not in found)


def kernel_settings(root: Tree) -> dict[str, str]:
    """Return the kernel parameters that systemd-sysctl sets at boot, as sysctl.d(5) has it: the last one counts."""
    found: dict[str, str] = {}
    for path in drop_ins(root, "sysctl.d"):
        for line in settings(root, path):
            name, equals, value = line.partition("=")
            if equals:
                found[_dotted(name.strip().removeprefix("-"))] = " ".join(value.split())
    return found


def _dotted(name: str) -> str:
    """Return a parameter's name with dots; where its first separator is a slash, slashes and dots are swapped."""
    first = re.search(r"[./]", name)
    return name.translate(str.maketrans("./", "/.")) if first and first[0] == "/" else name


def sysctl(image: Image) -> Found:
    """Compare the kernel parameters with those of a node."""
    found = kernel_settings(image.root)
    for name, wanted in SYSCTL.items():
        # A pattern counts where the name itself is not given.
        value = found.get(name) or next((one for key, one in found.items() if fnmatchcase(name, key)), None)
        if value != wanted:
            yield f"{name} is {value}, not {wanted}" if value else f"{name} is not set in sysctl.d"


def node_programs(image: Image) -> Found:
    """Look for the programs that kubelet, kube-proxy, the agent and people call."""
    return missing_programs(image.root, NODE_PROGRAMS)


def ssh_settings(root: Tree, path: str = "/etc/ssh/sshd_config", depth: int = 2) -> Iterator[tuple[str, str]]:
    """Yield the settings of sshd in the order in which it reads them, those for some users only left out."""
    for line in settings(root, path):
        key, _, value = line.replace("=", " ", 1).partition(" ")
        if key.lower() == "match":
            return
        if key.lower() == "include" and depth:
            for pattern in value.split():
                folder, _, name = pattern.rpartition("/")
                for one in paths(root, folder or "/etc/ssh", name):
                    yield from ssh_settings(root, one, depth - 1)
        elif key.lower() != "include":
            yield key.lower(), value.strip().strip('"').lower()


def ssh(image: Image) -> Found:
    """Look whether sshd takes keys only."""
    found: dict[str, str] = {}
    for key, value in ssh_settings(image.root):
        found.setdefault(key, value)
    for key, wanted in _SSH_WANTED.items():
        if found.get(key) != wanted:
            yield f"sshd has {key} {found.get(key, '(not set, which is yes)')}, not {wanted}"
    yield from (f"sshd has {key} {value}" for key, value in _SSH_REFUSED.items() if found.get(key) == value)


def network_debian(image: Image) -> Found:
    """Look for a network file of systemd-networkd that asks for an address on Ethernet cards, and on nothing else."""
    files = [list(settings(image.root, path)) for path in paths(image.root, "/etc/systemd/network", "*.network")]
    asked = [lines for lines in files if {line.replace(" ", "") for line in lines} & _DHCP]
    if not asked:
        yield "no file of /etc/systemd/network has DHCP=yes"
    for lines in asked:
        patterns = " ".join(line.partition("=")[2] for line in lines if line.startswith("Name=")).split()
        if any(fnmatchcase(link, pattern) for link in ("veth1", "cali1", "cni0") for pattern in patterns or ["*"]):
            yield "a network file takes the interfaces of pods too: Name= is to name Ethernet cards only"


def network_redhat(image: Image) -> Found:
    """Look whether NetworkManager leaves pods' interfaces alone, and has no identity of one machine."""
    files = paths(image.root, "/etc/NetworkManager/conf.d", "*.conf")
    unmanaged = " ".join(line for path in files for line in settings(image.root, path) if "unmanaged-devices" in line)
    yield from (
        f"NetworkManager manages {link}*, the interfaces of a network add-on"
        for link in ("cali", "veth", "cni", "flannel") if f"interface-name:{link}*" not in unmanaged
    )  # fmt: skip
    for path in paths(image.root, "/etc/NetworkManager/system-connections"):
        lines = [line.replace(" ", "") for line in settings(image.root, path)]
        yield from (
            f"{path} has {line}: it is of one machine" for line in lines if re.match(r"(uuid|mac-address)=", line)
        )


def apparmor(image: Image) -> Found:
    """Look whether AppArmor is switched on."""
    if "apparmor.service" not in effective_units(image.root):
        yield "apparmor.service is not enabled"
    yield from missing_programs(image.root, ["apparmor_parser"])
    for word in kernel_arguments(image.root):
        key, _, value = word.partition("=")
        if word == "apparmor=0" or (key == "security" and value != "apparmor"):
            yield f"the boot menu has {word}"
        elif key == "lsm" and "apparmor" not in value.split(","):
            yield f"the boot menu has {word}, without apparmor"


def selinux(image: Image) -> Found:
    """Look whether SELinux enforces, with a policy."""
    said = dict(
        line.replace(" ", "").split("=", 1) for line in settings(image.root, "/etc/selinux/config") if "=" in line
    )
    if said.get("SELINUX") != "enforcing":
        yield f"/etc/selinux/config has SELINUX={said.get('SELINUX', '')}, not enforcing"
    kind = said.get("SELINUXTYPE", "targeted")
    if not paths(image.root, f"/etc/selinux/{kind}/policy", "policy.*"):
        yield f"there is no policy in /etc/selinux/{kind}/policy"
    for word in kernel_arguments(image.root):
        if word in ("selinux=0", "enforcing=0"):
            yield f"the boot menu has {word}"


def identity(image: Image) -> Found:
    """Compare /etc/os-release with what the image is said to be."""
    said = {
        key: value.strip("\"'")
        for key, _, value in (line.partition("=") for line in settings(image.root, "/etc/os-release"))
    }
    subject = image.subject
    names_of = {subject.os, *({"almalinux"} if subject.os == "alma" else ())}
    if said.get("ID") not in names_of:
        yield f"/etc/os-release says it is {said.get('ID') or 'nothing'}, not {subject.os}"
    version = said.get("VERSION_ID", "")
    if subject.release and version != subject.release and not version.startswith(f"{subject.release}."):
        yield f"/etc/os-release says it is of release {version or 'none'}, not {subject.release}"


def setuid(image: Image) -> Found:
    """Look for files with the set-uid or set-gid bit that nobody stated."""
    for path, entry in walk(image.root):
        if entry.is_file and entry.mode & _SET_ID and not matches(path, image.subject.expected.setuid):
            yield f"{path} has mode {entry.mode & 0o7777:o} and belongs to {entry.uid}:{entry.gid}"


def world_writable(image: Image) -> Found:
    """Look for what anyone may write; in folders with the sticky bit, a file is its owner's all the same."""
    for path, entry in walk(image.root):
        sticky = entry.is_folder and entry.mode & _STICKY
        if entry.is_link or sticky or not entry.mode & _OTHERS:
            continue
        if not matches(path, image.subject.expected.world_writable):
            yield f"{path} has mode {entry.mode & 0o7777:o}"


CHECKS = (
    OfflineCheck(
        id="modules-listed",
        proves="overlay and br_netfilter are loaded at boot.",
        why="containerd's snapshots need overlay; without br_netfilter bridged traffic of pods is not filtered.",
        link="https://kubernetes.io/docs/setup/production-environment/container-runtimes/",
        fix="Name them in a file of /etc/modules-load.d, as provision/steps/base/30-kernel-modules.sh does.",
        run=modules_loaded,
    ),
    OfflineCheck(
        id="modules-there",
        proves="Each kernel has the modules overlay, br_netfilter, nft_compat and ip_set.",
        why="A kernel for clouds, or EL10 without kernel-modules-extra, lacks some: kube-proxy then fails on the node.",
        link="https://github.com/kubernetes/kops/issues/18724",
        fix="Install the kernel's package of extra modules.",
        run=modules_there,
    ),
    OfflineCheck(
        id="sysctl-files",
        proves="The files of sysctl.d, in the order in which systemd reads them, set what a node needs.",
        why="A package's file that is read later wins, silently; /etc/sysctl.conf is not read by systemd at all.",
        link="https://www.freedesktop.org/software/systemd/man/latest/sysctl.d.html",
        fix="Put the value into /etc/sysctl.d/90-imagebuilder.conf, or remove the later file.",
        run=sysctl,
    ),
    OfflineCheck(
        id="node-programs",
        proves="The programs that kubelet, kube-proxy and the agent call are there: python3, openssl, conntrack...",
        why="kubeadm's preflight and kube-proxy fail without them; the agent cannot check a data package.",
        link="https://github.com/kubernetes/kubeadm/issues/1641",
        fix="Add the package to `base` of the profile.",
        run=node_programs,
    ),
    OfflineCheck(
        id="ssh-keys-only",
        proves="sshd takes keys, no passwords, and has no root login by password.",
        why="Build credentials that stayed and password logins together were a root access to every node.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2024-9486",
        fix="PasswordAuthentication no, in a file that sshd reads first.",
        run=ssh,
    ),
    OfflineCheck(
        id="network-networkd",
        proves="Ethernet cards get an address by DHCP, and interfaces of pods are left alone.",
        why="An image without a data source must be reachable; a network manager that takes veths breaks pods.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd.network.html",
        fix="See provision/services/network.",
        families=DEBIAN,
        run=network_debian,
    ),
    OfflineCheck(
        id="network-manager",
        proves="NetworkManager leaves the interfaces of network add-ons alone, and no connection is of one machine.",
        why="It takes routes of pods away; a uuid or MAC address of the build machine fits no node.",
        link="https://docs.tigera.io/calico/latest/operations/troubleshoot/troubleshooting",
        fix="See provision/services/network, and network_forget.",
        families=REDHAT,
        run=network_redhat,
    ),
    OfflineCheck(
        id="apparmor-set",
        proves="AppArmor is enabled, and no kernel argument takes it away.",
        why="It confines containers; a node without it runs pods that ask for a profile not at all.",
        link="https://kubernetes.io/docs/tutorials/security/apparmor/",
        fix="Enable apparmor.service; remove apparmor=0, or add apparmor to lsm=.",
        families=DEBIAN,
        run=apparmor,
    ),
    OfflineCheck(
        id="selinux-set",
        proves="SELinux enforces, with a policy, and no kernel argument takes it away.",
        why="It confines containers: permissive, a process that gets out of its container may do everything.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2024-21626",
        fix="SELINUX=enforcing, with container-selinux; see provision/steps/runtime/15-selinux.sh.",
        families=REDHAT,
        run=selinux,
    ),
    OfflineCheck(
        id="os-as-stated",
        proves="The operating system and its release are those that the image is said to have.",
        why="A source that was replaced, or an upgrade to another release, makes an image of something else.",
        link="https://www.freedesktop.org/software/systemd/man/latest/os-release.html",
        fix="Bake from the right source; or say the right --os.",
        run=identity,
    ),
    OfflineCheck(
        id="setuid-known",
        proves="No file has the set-uid or set-gid bit that the family's list does not name.",
        why="Each of them runs with rights that its caller has not: one hole is a root access for any user.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2021-4034",
        fix="Remove the bit or the package; or add the file to `setuid` in verification/, with the reason.",
        run=setuid,
    ),
    OfflineCheck(
        id="world-writable-known",
        proves="Nobody but its owner writes a file or a folder, save folders with the sticky bit and the list.",
        why="A file that anyone may write and root reads gives anyone what root has.",
        link="https://cwe.mitre.org/data/definitions/732.html",
        fix="chmod o-w; or add it to `world_writable` in verification/, with the reason.",
        run=world_writable,
    ),
)
