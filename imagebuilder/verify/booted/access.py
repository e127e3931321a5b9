"""Who gets in: sockets, passwords, and what the kernel lets a program do. And the node's own network and time."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from imagebuilder.verify.booted.answers import sections
from imagebuilder.verify.model import BootedCheck, Subject

DEBIAN, REDHAT = frozenset({"debian"}), frozenset({"redhat"})
# What stands beside the family's own module: capabilities, and limits of ptrace.
LSM = ("capability", "yama")
_OWN_LINKS = re.compile(r"(lo|docker|cni|veth|br-|cali|flannel|vxlan|kube)")  # not the machine's, but its pods'


def open_sockets(text: str) -> tuple[str, ...]:
    """Return what listens on more than loopback, as ``proto/port``, sorted.

    Args:
        text: of ``ss -Hltunp``: protocol, state, two queues, local address with its port, and more.
    """
    found = set()
    for line in text.split("\n"):
        words = line.split()
        if len(words) < 5 or words[0] not in ("tcp", "udp"):
            continue
        address, _, port = words[4].rpartition(":")
        if not _is_loopback(address.partition("%")[0].strip("[]")):
            found.add(f"{words[0]}/{port}")
    return tuple(sorted(found, key=lambda one: (one[:3], one[4:].zfill(5))))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False  # "*": all of both families
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def sockets(text: str, subject: Subject) -> Iterator[str]:
    """Judge what listens on more than loopback against the family's list."""
    if not open_sockets(text):
        yield "ss lists no socket, not even the one of the connection that asks"
    lines = text.split("\n")
    for one in open_sockets(text):
        if not any(fnmatchcase(one, pattern) for pattern in subject.expected.sockets):
            proto, _, port = one.partition("/")
            users = {user for line in lines if re.match(rf"{proto}\s.*:{port}\s", line)
                     for user in re.findall(r'\(\("([^"]*)"', line)}  # fmt: skip
            yield f"{one} is open ({', '.join(sorted(users)) or 'of nobody known'})"


def passwords(text: str, _: Subject) -> Iterator[str]:
    """Judge accounts, ``name state`` a line: the guest tells what kind of password it is, never the hash."""
    accounts = dict(line.split(" ", 1) for line in text.split("\n") if " " in line)
    if "root" not in accounts:
        yield "/etc/shadow has no root"
    for name, state in accounts.items():
        if state != "locked":
            yield f"{name} can log in with {'no password' if state == 'empty' else 'a password'}"


def apparmor(text: str, _: Subject) -> Iterator[str]:
    """Judge whether AppArmor is on and has profiles that enforce."""
    parts = sections(text)
    if parts.get("enabled") != "Y":
        yield "AppArmor is not enabled"
    if "(enforce)" not in parts.get("profiles", ""):
        yield "no AppArmor profile is enforced"


def selinux(text: str, _: Subject) -> Iterator[str]:
    """Judge what getenforce says."""
    if text.strip() != "Enforcing":
        yield f"SELinux is {text.strip() or 'not there'}, not Enforcing"


def lsm(text: str, subject: Subject) -> Iterator[str]:
    """Judge the kernel's list of security modules."""
    found = text.strip().split(",")
    wanted = (*LSM, "selinux" if subject.family == "redhat" else "apparmor")
    yield from (f"the kernel runs without {name} (it has {', '.join(found)})" for name in wanted if name not in found)


def address(text: str, _: Subject) -> Iterator[str]:
    """Judge the addresses of the machine's own cards, as ``ip -j -4 addr`` has them."""
    links = [link for link in json.loads(text or "[]") if not _OWN_LINKS.match(link.get("ifname", ""))]
    held = [one for link in links for one in link.get("addr_info", []) if one.get("scope") == "global"]
    if not held:
        yield "no card has an address"
    elif not any(one.get("dynamic") for one in held):
        yield f"no address is leased by DHCP ({', '.join(str(one.get('local')) for one in held)})"


def route(text: str, _: Subject) -> Iterator[str]:
    """Judge the default routes, as ``ip -j -4 route show default`` has them."""
    if not any(one.get("gateway") for one in json.loads(text or "[]")):
        yield "there is no default route"


def resolver(text: str, _: Subject) -> Iterator[str]:
    """Judge the name servers of resolv.conf, and those behind systemd's stub where it is the one."""
    parts = sections(text)
    servers = {name: re.findall(r"^nameserver\s+(\S+)", part, re.MULTILINE) for name, part in parts.items()}
    if not servers.get("resolv"):
        yield "/etc/resolv.conf names no server"
    elif all(_is_loopback(one) for one in servers["resolv"]) and all(
        _is_loopback(one) for one in servers.get("upstream", [])
    ):
        yield "the local resolver knows no server to ask"


def time_sync(text: str, _: Subject) -> Iterator[str]:
    """Judge services that keep time, ``name state`` a line."""
    states = dict(line.split(" ", 1) for line in text.split("\n") if " " in line)
    if "active" not in states.values():
        yield f"none of {', '.join(states) or 'the known services'} is active"


_SHADOW = """while IFS=: read -r name hash _; do
    case $hash in '') state=empty ;; [!*]*) state=locked ;; *) state=password ;; esac
    echo "$name $state"
done < /etc/shadow""".replace("[!*]*", "'!'*|'*'*")  # not a pattern: these two characters

CHECKS = (
    BootedCheck(
        id="sockets-known",
        proves="Nothing listens on more than loopback but what is on the family's list.",
        why="An open port that nobody stated is one that nobody guards.",
        link="https://www.cisecurity.org/benchmark/distribution_independent_linux",
        fix="Bind the service to 127.0.0.1, switch it off, or add the port to the family's list.",
        command="ss -Hltunp",
        judge=sockets,
    ),
    BootedCheck(
        id="passwords-locked",
        proves="No account has a password, or an empty one.",
        why="A password in an image is the same on all nodes, and was the hole in image-builder's images.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2024-9486",
        fix="passwd --lock NAME, or delete the account.",
        command=_SHADOW,
        judge=passwords,
    ),
    BootedCheck(
        id="apparmor-enforces",
        proves="AppArmor is enabled, and has profiles that it enforces.",
        why="Without it a container's runtime/default profile confines nothing.",
        link="https://kubernetes.io/docs/tutorials/security/apparmor/",
        fix="Remove apparmor=0 from the kernel's line, and enable apparmor.service.",
        families=DEBIAN,
        command="echo '== enabled'; cat /sys/module/apparmor/parameters/enabled; "
        "echo '== profiles'; cat /sys/kernel/security/apparmor/profiles",
        judge=apparmor,
    ),
    BootedCheck(
        id="selinux-enforcing",
        proves="SELinux enforces its policy.",
        why="A container that breaks out is held by the policy only where it is enforced.",
        link="https://docs.redhat.com/en/documentation/red_hat_enterprise_linux/9/html/using_selinux/",
        fix="SELINUX=enforcing in /etc/selinux/config, labels restored, and no selinux=0 on the kernel's line.",
        families=REDHAT,
        command="getenforce",
        judge=selinux,
    ),
    BootedCheck(
        id="lsm-list",
        proves="The kernel runs with the security modules of the family.",
        why="A list on the kernel's line that leaves one out switches it off without a word.",
        link="https://docs.kernel.org/admin-guide/LSM/index.html",
        fix="Name it in lsm= on the kernel's line.",
        command="cat /sys/kernel/security/lsm",
        judge=lsm,
    ),
    BootedCheck(
        id="address-by-dhcp",
        proves="A card of the machine has an address that DHCP leased.",
        why="An image that carries an address of its own collides with the next node.",
        link="https://www.rfc-editor.org/rfc/rfc2131",
        fix="networkctl status, or nmcli device, says who configures the card.",
        command="ip -j -4 addr show scope global",
        judge=address,
    ),
    BootedCheck(
        id="default-route",
        proves="The machine has a default route.",
        why="Without one it reaches neither registries nor its API server.",
        link="https://www.rfc-editor.org/rfc/rfc2132#section-3.5",
        fix="Let the DHCP client take the router option.",
        command="ip -j -4 route show default",
        judge=route,
    ),
    BootedCheck(
        id="resolver-configured",
        proves="Names are resolved by a server that the network gave.",
        why="A resolv.conf of the build host names servers that no node reaches.",
        link="https://kubernetes.io/docs/tasks/administer-cluster/dns-custom-nameservers/",
        fix="Link /etc/resolv.conf to systemd-resolved's, or let NetworkManager write it.",
        command="echo '== resolv'; cat /etc/resolv.conf; echo '== upstream'; cat /run/systemd/resolve/resolv.conf",
        judge=resolver,
    ),
    BootedCheck(
        id="time-kept",
        proves="A service that keeps time is active.",
        why="Certificates and leases are checked against the clock.",
        link="https://chrony-project.org/documentation.html",
        fix="Enable chrony.",
        command="for name in chrony chronyd systemd-timesyncd ntpsec; do "
        'echo "$name $(systemctl is-active $name)"; done',
        judge=time_sync,
    ),
)
