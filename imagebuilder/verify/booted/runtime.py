"""containerd and docker, as they themselves say that they are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from imagebuilder.verify.booted.answers import sections
from imagebuilder.verify.model import BootedCheck, Subject

RUNC = "io.containerd.runc.v2"
DEPTH = 12  # of tables in containerd's configuration; the deepest that it writes has 7
# For the shell: what kubeadm of the guest's own version wants; without a version it would ask the network for one.
KUBEADM_IMAGES = 'kubeadm config images list --kubernetes-version "$(kubelet --version | cut -d" " -f2)"'
DRIVERS = ("overlay2", "overlayfs")  # docker's own, and containerd's snapshotter, docker's default since 29


def containerd_config(text: str, _: Subject) -> Iterator[str]:
    """Judge what ``containerd config dump`` has merged: TOML, in containerd's version 2 or 3."""
    config = _toml(text)
    if config is None:
        yield "containerd does not read its configuration"
        return
    if config.get("version") not in (2, 3):
        yield f"its configuration has version {config.get('version')}, not 2 or 3"
    runtimes = {name: one for table in _tables(config, "runtimes") for name, one in table.items()}
    runc = {name: one for name, one in runtimes.items() if isinstance(one, dict) and one.get("runtime_type") == RUNC}
    if not runc:
        yield f"no runtime is of type {RUNC}"
    for name, one in runc.items():
        if one.get("options", {}).get("SystemdCgroup") is not True:
            yield f"the runtime {name} does not leave cgroups to systemd (SystemdCgroup)"


def sandbox(config: Mapping[str, Any]) -> str:
    """Return the image of pods' sandboxes: ``sandbox_image`` in version 2, ``pinned_images.sandbox`` in 3."""
    for table in _tables(config, "io.containerd.grpc.v1.cri"):
        if image := table.get("sandbox_image"):
            return str(image)
    return next((str(table["sandbox"]) for table in _tables(config, "pinned_images") if "sandbox" in table), "")


def pause_image(text: str, subject: Subject) -> Iterator[str]:
    """Judge whether containerd, kubeadm and the manifest name one image, and that it is there."""
    parts = sections(text)
    configured = sandbox(_toml(parts.get("config", "")) or {})
    wanted = [line for line in parts.get("kubeadm", "").split("\n") if "/pause:" in line]
    if not configured:
        yield "containerd's configuration names no sandbox image"
        return
    if not wanted:
        yield "kubeadm does not name the pause image of its version"
    yield from (f"containerd takes {configured}, kubeadm wants {one}" for one in wanted if one != configured)
    stated = subject.capability("pauseImage")
    if stated and stated != configured:
        yield f"containerd takes {configured}, the manifest says {stated}"
    images = [
        one for one in _object(parts.get("images", "")).get("images", []) if configured in (one.get("repoTags") or [])
    ]
    if not images:
        yield f"{configured} is not in the image: the first pod waits for a registry"
    elif not images[0].get("pinned", True):  # older versions of the CRI do not tell
        yield f"{configured} is not pinned: it may be deleted when the disk fills"


def cri_answers(text: str, subject: Subject) -> Iterator[str]:
    """Judge ``crictl version``, after the state of the unit."""
    parts = sections(text)
    if parts.get("unit") != "active":
        yield f"containerd.service is {parts.get('unit') or 'not there'}"
    said = dict(line.split(":", 1) for line in parts.get("version", "").split("\n") if ":" in line)
    if said.get("RuntimeName", "").strip() != "containerd":
        yield "no containerd answers on the socket that crictl.yaml names"
        return
    stated, found = subject.capability("containerd"), said.get("RuntimeVersion", "").strip().removeprefix("v")
    # The manifest has the package's version, such as 1.7.24~ds1-6+deb13u1; containerd tells the upstream part.
    if stated and not stated.removeprefix("v").startswith(found.partition("~")[0].partition("+")[0]):
        yield f"containerd {found} runs, the manifest says {stated}"


def cri_conditions(text: str, _: Subject) -> Iterator[str]:
    """Judge the conditions of ``crictl info``: RuntimeReady, NetworkReady, and what a version adds."""
    conditions = {one.get("type"): one for one in _object(text).get("status", {}).get("conditions", [])}
    for name in ("RuntimeReady", "NetworkReady"):
        if name not in conditions:
            yield f"containerd does not say whether it is {name}"
    for name, one in conditions.items():
        if one.get("status") is not True:
            yield f"{name} is not true: {one.get('message') or one.get('reason')}"


def docker(text: str, subject: Subject) -> Iterator[str]:
    """Judge ``docker info``; an image whose manifest has no docker need not have it."""
    if "docker" not in (subject.capability("runtimes") or ["docker"]):
        return
    info = _object(text)
    if not info.get("ServerVersion"):
        errors = info.get("ServerErrors") or ["docker does not answer"]
        yield from (str(error) for error in errors)
        return
    if info.get("Driver") not in DRIVERS:
        yield f"docker stores images with {info.get('Driver')}, not {DRIVERS[0]}"
    if info.get("CgroupDriver") != "systemd":
        yield f"docker's cgroup driver is {info.get('CgroupDriver')}, not systemd"
    if info.get("CgroupVersion") != "2":
        yield f"docker sees cgroup version {info.get('CgroupVersion')}, not 2"


def _toml(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text) or None
    except tomllib.TOMLDecodeError:
        return None


def _object(text: str) -> Mapping[str, Any]:
    """Return a JSON object; an empty one when this is none, so that the judges say what they miss."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tables(config: Mapping[str, Any], name: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield every table of this name: where they are differs between the versions of the configuration."""
    for key, value in config.items() if depth < DEPTH else ():
        if isinstance(value, dict):
            if key == name:
                yield value
            yield from _tables(value, name, depth + 1)


CHECKS = (
    BootedCheck(
        id="containerd-config",
        proves="containerd itself reads its configuration, and its runtimes leave cgroups to systemd.",
        why="Two managers of one cgroup tree take each other's limits away; kubelet's driver is systemd.",
        link="https://kubernetes.io/docs/setup/production-environment/container-runtimes/#containerd-systemd",
        fix="SystemdCgroup = true in the runtime's options, in the configuration of containerd's own version.",
        command="containerd config dump",
        judge=containerd_config,
    ),
    BootedCheck(
        id="pause-image-agreed",
        proves="containerd's sandbox image is in the image, and the one that kubeadm wants and the manifest states.",
        why="Otherwise the first pod of every node waits for a registry, or is collected as garbage.",
        link="https://kubernetes.io/docs/setup/production-environment/container-runtimes/#override-pause-image-containerd",
        fix="Set containerd's sandbox image to what kubeadm config images list names, and preload it.",
        command=f"echo '== config'; containerd config dump; echo '== kubeadm'; {KUBEADM_IMAGES}; "
        "echo '== images'; crictl images -o json",
        judge=pause_image,
    ),
    BootedCheck(
        id="cri-answers",
        proves="containerd runs, in the version that the manifest states, and answers on the CRI socket.",
        why="It is what kubelet talks to.",
        link="https://kubernetes.io/docs/concepts/containers/cri/",
        fix="journalctl -u containerd; the CRI plugin must not be in disabled_plugins.",
        command="echo '== unit'; systemctl is-active containerd; echo '== version'; crictl version",
        judge=cri_answers,
    ),
    BootedCheck(
        id="cri-ready",
        proves="containerd says that runtime and pod network are ready, and finds nothing deprecated.",
        why="A node whose network is not ready takes no pods.",
        link="https://github.com/containerd/containerd/blob/main/docs/cri/config.md",
        fix="crictl info names the condition and its reason; CNI plugins belong into /opt/cni/bin.",
        command="crictl info -o json",
        judge=cri_conditions,
    ),
    BootedCheck(
        id="docker-answers",
        proves="Where the image has docker, it answers, with overlay2, the systemd driver and cgroup v2.",
        why="What runs beside kubelet must not fight it for cgroups.",
        link="https://docs.docker.com/engine/storage/drivers/select-storage-driver/",
        fix="journalctl -u docker, and /etc/docker/daemon.json.",
        command="docker info --format '{{json .}}'",
        judge=docker,
    ),
)
