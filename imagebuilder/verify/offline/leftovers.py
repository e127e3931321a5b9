"""What the build may have left: its proxies, repositories, resolver, logs, caches, leases, and its cloud."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import below, paths, settings
from imagebuilder.verify.tree import Tree

_PROXY = re.compile(
    r"""(?ix) ^ (export\s+ | (Default)?Environment\s*=\s* | \s*["'])* (https?|ftp|all)_proxy ["']? \s* [=:] \s* ["']? \w
    | ^ Acquire (::|\s*\{).* \bproxy\b .* \w+:// | ^ proxy \s* = \s* \w+:// | \bproxy\s*=\s*\w+://"""
)
_PROXY_FILES = (
    ("/etc", "environment"), ("/etc", "profile"), ("/etc", "bash.bashrc"), ("/etc", "bashrc"), ("/etc", "wgetrc"),
    ("/etc", "yum.conf"), ("/etc/apt", "apt.conf"), ("/etc/apt/apt.conf.d", "*"), ("/etc/dnf", "dnf.conf"),
    ("/etc/yum.repos.d", "*"), ("/etc/profile.d", "*"), ("/etc/default", "*"), ("/etc/sysconfig", "*"),
    ("/etc/systemd", "system.conf"), ("/etc/systemd/system.conf.d", "*"), ("/root", ".curlrc"), ("/root", ".wgetrc"),
    ("/root", ".bashrc"), ("/root", ".profile"), ("/etc/environment.d", "*"),
)  # fmt: skip
_REPOSITORIES = (("/etc/apt", "sources.list"), ("/etc/apt/sources.list.d", "*"), ("/etc/yum.repos.d", "*.repo"))
# sources.list(5), dnf.conf(5): what only the machine of the build has, and what is taken without a signature.
_LOCAL = re.compile(
    r"(?i)\b(file|copy|cdrom):|//(localhost|127\.|\[::1\])|trusted\s*[:=]\s*yes|gpgcheck\s*=\s*(0|no|false)\b"
)
_KEY = re.compile(r"(?i)^\s*(gpgkey|signed-by)\b")  # keys are files
_OURS = (
    "/etc/apt/sources.list.d/imagebuilder-*", "/etc/apt/keyrings/imagebuilder-*", "/etc/yum.repos.d/imagebuilder-*",
    "/etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-*", "/etc/apt/apt.conf.d/99mmdebstrap",
    "/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
)  # fmt: skip
_CACHES = ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/dnf", "/var/cache/yum", "/var/cache/libdnf5")
_LEASES = (
    ("/var/lib/dhcp", "*"), ("/var/lib/dhclient", "*"), ("/var/lib/systemd/network", "*"),
    ("/run/systemd/netif/leases", "*"), ("/var/lib/NetworkManager", "*.lease"), ("/var/lib/NetworkManager", "*.state"),
    ("/etc/netplan", "*installer*"), ("/etc/netplan", "50-cloud-init.yaml"), ("/etc/netplan", "01-netcfg.yaml"),
    ("/etc/network/interfaces.d", "50-cloud-init"), ("/etc/udev/rules.d", "70-persistent*"),
    ("/etc/sysconfig/network-scripts", "ifcfg-e*"),
)  # fmt: skip
_INSTALLER = (
    ("/var/lib/cloud", "*"), ("/root", "*-ks.cfg"), ("/etc/cloud/cloud.cfg.d", "99-installer.cfg"),
    ("/etc/cloud/cloud.cfg.d", "*subiquity*"),
    ("/etc/cloud/cloud.cfg.d", "*curtin*"), ("/etc/cloud", "ds-identify.cfg"),
    ("/etc/ssh/sshd_config.d", "50-cloud-init.conf"), ("/etc/sudoers.d", "90-cloud-init-users"),
    ("/var/lib/waagent", "*"), ("/var/lib/rhsm", "*"), ("/etc/pki/entitlement", "*"), ("/etc/pki/consumer", "*"),
)  # fmt: skip


def _each(root: Tree, places: tuple[tuple[str, str], ...]) -> Iterator[str]:
    return (path for folder, pattern in places for path in paths(root, folder, pattern))


def proxies(image: Image) -> Found:
    """Look for proxies in the settings of shells, services and package managers; the address is not repeated."""
    drop_ins = [
        path for folder in paths(image.root, "/etc/systemd/system", "*.d") for path in paths(image.root, folder)
    ]
    for path in (*_each(image.root, _PROXY_FILES), *drop_ins):
        if any(_PROXY.search(line) for line in settings(image.root, path)):
            yield f"{path} sets a proxy"


def repositories(image: Image) -> Found:
    """Look for repositories that only the build had, and for those that are not signed."""
    for path in _each(image.root, _REPOSITORIES):
        for line in settings(image.root, path):
            if not _KEY.match(line) and _LOCAL.search(line):
                yield f"{path} has a repository of the build machine's, or an unsigned one"
                break
    for pattern in _OURS:
        yield from (f"{path} is of the build" for path in paths(image.root, *pattern.rsplit("/", 1)))


def resolver(image: Image) -> Found:
    """Look for name servers, also in the copies that packages keep of the file."""
    for path in paths(image.root, "/etc", "*resolv.conf*"):
        if any(line.startswith("nameserver") for line in settings(image.root, path)):
            yield f"{path} names a server"


def logs(image: Image) -> Found:
    """Look for logs that are not empty."""
    return (
        f"{path} has {entry.size} bytes"
        for path, entry in below(image.root, "/var/log")
        if entry.is_file and entry.size
    )


def caches(image: Image) -> Found:
    """Look for what the package manager can fetch again."""
    for folder in _CACHES:
        for path, entry in below(image.root, folder):
            if entry.is_file and entry.size:
                yield f"{path} has {entry.size} bytes"


def leases(image: Image) -> Found:
    """Look for leases and network settings of the machine of the build."""
    return (f"{path} is there" for path in _each(image.root, _LEASES))


def installers(image: Image) -> Found:
    """Look for the state of cloud-init, of installers and of subscriptions."""
    return (f"{path} is there" for path in _each(image.root, _INSTALLER))


CHECKS = (
    OfflineCheck(
        id="no-proxy",
        proves="No proxy is set.",
        why="The build's proxy is not reached from the node: everything that fetches hangs. It may hold a password.",
        link="https://manpages.debian.org/trixie/apt/apt-transport-http.1.en.html",
        fix="Unset it after the build; what the site wants comes with its overlay, and a waiver.",
        run=proxies,
    ),
    OfflineCheck(
        id="no-build-repository",
        proves="Every repository is one that a node reaches, and is signed.",
        why="One of the build machine's makes every update fail; an unsigned one installs what anybody sends.",
        link="https://manpages.debian.org/trixie/apt/apt-secure.8.en.html",
        fix="pkg_repositories_forget, and no [trusted=yes].",
        run=repositories,
    ),
    OfflineCheck(
        id="no-resolver",
        proves="No file names a name server: DHCP brings it.",
        why="The build's server does not answer on the node, or tells the network of the build.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd-resolved.service.html",
        fix="resolver_default, as in provision/family; remove the copies beside it.",
        run=resolver,
    ),
    OfflineCheck(
        id="no-logs",
        proves="Logs and journal are empty.",
        why="They hold names, addresses and commands of the build, and look as if they were of the node.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd-journald.service.html",
        fix="See provision/steps/site/90-clean.sh.",
        run=logs,
    ),
    OfflineCheck(
        id="no-package-caches",
        proves="Package lists and caches are empty.",
        why="They are the largest part of what can be fetched again, and old at the first use.",
        link="https://manpages.debian.org/trixie/apt/apt-get.8.en.html",
        fix="pkg_clean, after the last package.",
        run=caches,
    ),
    OfflineCheck(
        id="no-leases",
        proves="No DHCP lease and no network setting of the build machine is there.",
        why="A node asks for the address of that machine first; settings by MAC address fit no card.",
        link="https://datatracker.ietf.org/doc/html/rfc2131#section-3.2",
        fix="network_forget; see provision/steps/site/05-network.sh.",
        run=leases,
    ),
    OfflineCheck(
        id="no-installer-state",
        proves="No state of cloud-init, of an installer or of a subscription is there.",
        why="A node that finds it takes itself for the machine of the build, and skips its first boot.",
        link="https://docs.cloud-init.io/en/latest/reference/cli.html#clean",
        fix="cloud-init clean --logs; see provision/steps/site/88-machine.sh.",
        run=installers,
    ),
)
