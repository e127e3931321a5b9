"""Units of systemd, as their files say (systemd.unit(5))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from imagebuilder.verify.inventory import enabled_units
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import matches, names, paths, settings
from imagebuilder.verify.tree import Tree, resolve

UNIT_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
NODE_UNITS = (
    "containerd.service", "kubelet.service", "docker.service", "node-report.service",
    "imagebuilder-agent-local.service", "imagebuilder-agent-net.service", "imagebuilder-agent-watch.service",
)  # fmt: skip
FAMILY_UNITS = {
    "debian": ("ssh.service", "chrony.service", "systemd-networkd.service", "systemd-resolved.service"),
    "redhat": ("sshd.service", "chronyd.service", "NetworkManager.service"),
}
OWN_UPDATES = {
    "debian": (
        "apt-daily.timer", "apt-daily-upgrade.timer", "apt-daily.service", "apt-daily-upgrade.service",
        "unattended-upgrades.service",
    ),
    "redhat": ("dnf-makecache.timer", "dnf-automatic.timer", "dnf-automatic-install.timer"),
}  # fmt: skip
FIREWALLS = ("firewalld.service", "ufw.service", "nftables.service", "iptables.service")


def is_masked(root: Tree, unit: str) -> bool:
    """Tell whether a unit cannot be started: its file in /etc is a link to /dev/null, or empty."""
    entry = root.entry(f"/etc/systemd/system/{unit}")
    return entry is not None and (entry.target == "/dev/null" if entry.is_link else entry.is_file and not entry.size)


def unit_file(root: Tree, unit: str) -> str:
    """Return the path of a unit's file, the first that counts; empty where there is none."""
    template = "@".join((unit.split("@")[0], "." + unit.rpartition(".")[2])) if "@" in unit else unit
    for name in dict.fromkeys((unit, template)):
        for folder in UNIT_FOLDERS:
            found = resolve(root, f"{folder}/{name}")
            if found and found[1].is_file:
                return found[0]
    return ""


def unit_settings(root: Tree, unit: str) -> dict[str, list[str]]:
    """Return what a unit's file and its drop-ins say: ``Section.Key`` to all its values, an empty one resets."""
    found: dict[str, list[str]] = {}
    drop_ins = {path.rsplit("/", 1)[1]: path for top in UNIT_FOLDERS[::-1] for path in paths(root, f"{top}/{unit}.d")}
    for path in (unit_file(root, unit), *(drop_ins[name] for name in sorted(drop_ins) if name.endswith(".conf"))):
        section = ""
        for line in settings(root, path) if path else ():
            key, equals, value = line.partition("=")
            if line.startswith("["):
                section = line.strip("[]")
            elif equals and not value.strip():
                found[f"{section}.{key.strip()}"] = []
            elif equals:
                found.setdefault(f"{section}.{key.strip()}", []).append(value.strip())
    return found


def effective_units(root: Tree) -> list[str]:
    """Return the units that are enabled and can start."""
    return [unit for unit in enabled_units(root) if not is_masked(root, unit)]


def has_docker(image: Image) -> bool:
    """Tell whether the image should have docker: the manifest says so, or there is none."""
    return "docker" in (image.subject.capability("runtimes") or ("docker",))


def not_enabled(root: Tree, wanted: Iterable[str]) -> Iterator[str]:
    """Yield a line for every unit that would not start at boot."""
    enabled = set(enabled_units(root))
    for unit in wanted:
        if is_masked(root, unit):
            yield f"{unit} is masked"
        elif not unit_file(root, unit):
            yield f"there is no unit {unit}"
        elif unit not in enabled:
            yield f"{unit} is not enabled"


def node_units(image: Image) -> Found:
    """Look for the units that make a node."""
    wanted = [*NODE_UNITS, *FAMILY_UNITS[image.subject.family]]
    return not_enabled(image.root, (unit for unit in wanted if unit != "docker.service" or has_docker(image)))


def known_units(image: Image) -> Found:
    """Compare the enabled units with the family's list."""
    for unit in effective_units(image.root):
        if unit not in FIREWALLS and not matches(unit, image.subject.expected.units):
            yield f"{unit} is enabled, and not on the list of the family"


def own_updates(image: Image) -> Found:
    """Look for timers and services that install on their own."""
    for unit in OWN_UPDATES[image.subject.family]:
        if not is_masked(image.root, unit):
            yield f"{unit} is not masked"


def firewalls(image: Image) -> Found:
    """Look for a firewall of the distribution's that starts at boot."""
    for unit in effective_units(image.root):
        if unit in FIREWALLS:
            yield f"{unit} is enabled"


def swap_units(image: Image) -> Found:
    """Look whether systemd can start swap."""
    if not is_masked(image.root, "swap.target"):
        yield "swap.target is not masked"
    for folder in UNIT_FOLDERS:
        for name in names(image.root, folder):
            if fnmatchcase(name, "*.swap") and not is_masked(image.root, name):
                yield f"{folder}/{name} is a unit of swap"


CHECKS = (
    OfflineCheck(
        id="node-units",
        proves="The units that make a node are enabled: containerd, kubelet, docker, agent, SSH, time, network.",
        why="A unit that is installed and not enabled is missing on every node, and nothing says so.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemctl.html#enable%20UNIT%E2%80%A6",
        fix="Enable it in a step: service_enable UNIT, or the list `enable` of provision/services/NAME.",
        run=node_units,
    ),
    OfflineCheck(
        id="units-known",
        proves="No unit is enabled that the family's list does not name.",
        why="What a package enables by itself runs on every node: it costs boot time, and may listen.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd.preset.html",
        fix="Mask what the node does not need; add what it needs to `units` in verification/, with the reason.",
        run=known_units,
    ),
    OfflineCheck(
        id="no-own-updates",
        proves="Nothing fetches or installs packages on its own.",
        why="An update in the background restarts containerd under running pods, or changes tested versions.",
        link="https://github.com/kubernetes-sigs/image-builder/issues/2077",
        fix="service_mask UNIT, as in provision/steps/base/10-no-surprises.sh.",
        run=own_updates,
    ),
    OfflineCheck(
        id="no-firewall",
        proves="No firewall of the distribution starts at boot.",
        why="It drops traffic of pods, and flushes the rules of kube-proxy when it reloads.",
        link="https://kubernetes.io/docs/reference/networking/ports-and-protocols/",
        fix="service_mask UNIT, as in provision/steps/base/62-firewall.sh.",
        run=firewalls,
    ),
    OfflineCheck(
        id="swap-units-off",
        proves="swap.target is masked, and there is no unit of swap.",
        why="A generator finds swap on disks that are attached later; masked, it cannot be started.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd.swap.html",
        fix="service_mask swap.target, as in provision/steps/base/50-no-swap.sh.",
        run=swap_units,
    ),
)
