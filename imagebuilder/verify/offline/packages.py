"""The package database: whole, held, and what the manifest says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagebuilder.errors import ArtifactError
from imagebuilder.profiles import load_profile
from imagebuilder.verify.inventory import DPKG_STATUS, MAX_STATUS, installed_packages
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import DEBIAN, REDHAT, names, paths, settings
from imagebuilder.verify.tree import Tree, read, text

# What dpkg --audit accepts (dpkg(1), "Package states"): installed, held or not; removed, with settings that stay.
SOUND = ("install ok installed", "hold ok installed", "deinstall ok config-files")


def package_states(root: Tree) -> Iterator[tuple[str, str]]:
    """Yield each package of dpkg's status file with its ``Status``.

    Raises:
        ArtifactError: the file is larger than one can be.
    """
    for paragraph in (read(root, DPKG_STATUS, MAX_STATUS) or b"").decode("utf-8", "replace").split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Status): *(.*)$", paragraph))
        if fields:
            yield fields.get("Package", "(a package without a name)"), fields.get("Status", "")


def database_debian(image: Image) -> Found:
    """Look whether every package is whole, and no change is half written."""
    states = list(package_states(image.root))
    if not states:
        yield f"{DPKG_STATUS} has no package"
    yield from (f"{name} is in state: {state}" for name, state in states if state not in SOUND)
    yield from (f"{path} is a change that dpkg did not end" for path in paths(image.root, "/var/lib/dpkg/updates"))
    if text(image.root, "/var/lib/dpkg/triggers/Unincorp").strip():
        yield "/var/lib/dpkg/triggers/Unincorp names triggers that did not run"


def database_redhat(image: Image) -> Found:
    """Look whether the database of rpm can be read, and no transaction is open."""
    if not installed_packages(image.root):
        yield "rpm's database has no package"
    for folder in ("/var/lib/dnf", "/var/lib/rpm", "/usr/lib/sysimage/rpm"):
        for name in names(image.root, folder):
            is_left = name.startswith(("transaction-", "__db.")) or name.endswith(("-wal", "-journal"))
            if is_left and read(image.root, f"{folder}/{name}"):
                yield f"{folder}/{name} is of a transaction that did not end"


def wanted_holds(image: Image) -> list[str]:
    """Return the packages of the profile's list that are installed."""
    subject = image.subject
    profile = load_profile(subject.os, release=subject.release, arch=subject.arch, target=subject.target or "qemu")
    installed = {package.name for package in installed_packages(image.root)}
    if not installed:
        raise ArtifactError("the image has no package database")
    return sorted(installed & set(profile.hold))


def holds_debian(image: Image) -> Found:
    """Look whether kernel, runtime and Kubernetes are held (dpkg's selection ``hold``)."""
    held = {name for name, state in package_states(image.root) if state.startswith("hold ")}
    return (f"{name} is not held" for name in wanted_holds(image) if name not in held)


def holds_redhat(image: Image) -> Found:
    """Look whether they are locked: dnf 4's list has a NEVRA a line, dnf 5's a table with names."""
    lines = [*settings(image.root, "/etc/dnf/plugins/versionlock.list"),
             *settings(image.root, "/etc/yum/pluginconf.d/versionlock.list")]  # fmt: skip
    named = re.findall(r'(?m)^name\s*=\s*"([^"]+)"', text(image.root, "/etc/dnf/versionlock.toml"))
    for name in wanted_holds(image):
        if name not in named and not any(re.match(rf"{re.escape(name)}-\d", line) for line in lines):
            yield f"{name} is not locked"


def as_stated(image: Image) -> Found:
    """Compare the installed packages with the manifest's.

    Raises:
        ArtifactError: the manifest lists no packages.
    """
    stated = (image.subject.manifest or {}).get("packages")
    if not isinstance(stated, list) or not stated:
        raise ArtifactError("the manifest lists no packages")
    installed = {(one.name, one.arch): one.version for one in installed_packages(image.root)}
    wanted = {(str(one.get("name")), str(one.get("arch"))): str(one.get("version")) for one in stated}
    for key in sorted(installed.keys() | wanted.keys()):
        here, there = installed.get(key), wanted.get(key)
        if here != there:
            yield f"{key[0]} is {here or 'not installed'}, the manifest says {there or 'nothing of it'}"


CHECKS = (
    OfflineCheck(
        id="dpkg-sound",
        proves="dpkg has every package whole: none half installed, none unconfigured, no trigger left.",
        why="The next package that is installed on the node fails at what was left.",
        link="https://man7.org/linux/man-pages/man1/dpkg.1.html",
        fix="dpkg --configure -a, in the step that installs the package.",
        families=DEBIAN,
        run=database_debian,
    ),
    OfflineCheck(
        id="rpm-sound",
        proves="rpm's database can be read, and no transaction is open.",
        why="The next package that is installed on the node fails at what was left.",
        link="https://rpm.org/docs/4.20.x/man/rpmdb.8",
        fix="rpm --rebuilddb, after the step that installs packages.",
        families=REDHAT,
        run=database_redhat,
    ),
    OfflineCheck(
        id="held-by-dpkg",
        proves="Kernel, runtime and Kubernetes packages are held.",
        why="An upgrade on a live node restarts its pods, or breaks the pair of versions that was tested.",
        link="https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/install-kubeadm/",
        fix="apt-mark hold PACKAGE; the list is `hold` of the profile.",
        families=DEBIAN,
        run=holds_debian,
    ),
    OfflineCheck(
        id="locked-by-dnf",
        proves="Kernel, runtime and Kubernetes packages are locked at their version.",
        why="An upgrade on a live node restarts its pods, or breaks the pair of versions that was tested.",
        link="https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/install-kubeadm/",
        fix="dnf versionlock add PACKAGE; the list is `hold` of the profile.",
        families=REDHAT,
        run=holds_redhat,
    ),
    OfflineCheck(
        id="packages-as-stated",
        proves="The installed packages, with their versions, are those of the manifest.",
        why="A list of packages that is not true hides what is vulnerable.",
        link="https://slsa.dev/spec/v1.0/provenance",
        fix="Bake again; what a --script installs belongs into --package.",
        run=as_stated,
        stated=True,
    ),
)
