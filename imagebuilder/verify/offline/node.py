"""Kubernetes' part: runtimes, their settings and images, kubelet, and the agent."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from imagebuilder.direct.bolt import lookup
from imagebuilder.errors import ArtifactError
from imagebuilder.verify.booted.runtime import containerd_config, sandbox
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import is_program, missing_programs, paths
from imagebuilder.verify.offline.units import has_docker, unit_settings
from imagebuilder.verify.tree import Tree, read, resolve, text

PROGRAMS = ("kubelet", "kubeadm", "kubectl", "containerd", "runc", "crictl")
PLUGINS = ("bridge", "host-local", "loopback", "portmap")
CONTAINERD = "/etc/containerd/config.toml"
SOCKET = "unix:///run/containerd/containerd.sock"
STORE = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"
METADATA = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"
_METADATA_LIMIT = 64 << 20  # bytes; that of a node with two images has 128 KiB
_BLOB_LIMIT = 1 << 20  # bytes of an index or a manifest; the longest that registries take is 4 MiB
_CRICTL_LIMIT = 64 << 10  # bytes: YAML is slow to read, and three lines are what is there
_MAX_BLOBS = 1000  # looked at for one image: an index, its manifests, their configurations and layers
FACTS = "/usr/lib/imagebuilder/image.json"
TRUST = "/etc/imagebuilder/trust.d"
_AGENT = ("/usr/lib/imagebuilder/agent.py", "/usr/sbin/imagebuilder-agent")
_PUBLIC = re.compile(r"\A-----BEGIN PUBLIC KEY-----\n[\w+/=\n]+-----END PUBLIC KEY-----\s*\Z")


def programs(image: Image) -> Found:
    """Look for the programs of Kubernetes and its runtimes."""
    return missing_programs(image.root, (*PROGRAMS, *(("docker", "dockerd") if has_docker(image) else ())))


def cni_plugins(image: Image) -> Found:
    """Look for the CNI plugins at the one place where every add-on expects them."""
    return (
        f"there is no program /opt/cni/bin/{name}"
        for name in PLUGINS
        if not is_program(image.root, f"/opt/cni/bin/{name}")
    )


def containerd_settings(image: Image) -> Found:
    """Look at containerd's configuration: its version, its cgroup driver, where drop-ins and registries are."""
    source = text(image.root, CONTAINERD)
    if not source.strip():
        yield f"there is no {CONTAINERD}"
        return
    yield from containerd_config(source, image.subject)
    config = _toml(source)
    if "/etc/containerd/conf.d/*.toml" not in config.get("imports", []):
        yield "its imports have no /etc/containerd/conf.d/*.toml: drop-ins are not read"
    if "/etc/containerd/certs.d" not in source:
        yield "its config_path is not /etc/containerd/certs.d: registries cannot be configured"
    if image.subject.family == "redhat" and not re.search(r"(?m)^\s*enable_selinux\s*=\s*true", source):
        yield "it has no enable_selinux = true: containers are not confined"
    for path in paths(image.root, "/etc/containerd/conf.d", "*.toml"):
        if not _toml(text(image.root, path)):
            yield f"{path} is no TOML, or empty: containerd does not start"


def _toml(source: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(source)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def pause_named(image: Image) -> Found:
    """Compare the sandbox image of containerd with the manifest's."""
    named = sandbox(_toml(text(image.root, CONTAINERD)))
    stated = image.subject.capability("pauseImage")
    if not named:
        yield f"{CONTAINERD} names no sandbox image"
    elif stated and named != stated:
        yield f"{CONTAINERD} names {named}, the manifest says {stated}"


def pause_stored(image: Image) -> Found:
    """Look for the pause image in containerd's store: its name, pinned, and the blobs of its manifest for this machine.

    The path of buckets is that of containerd's metadata/buckets.go; ``k8s.io`` is the namespace of CRI.
    """
    name = str(image.subject.capability("pauseImage") or sandbox(_toml(text(image.root, CONTAINERD))))
    if not name:
        yield "nobody says which image is the pause image"
        return
    data = read(image.root, METADATA, _METADATA_LIMIT)
    bucket = (b"v1", b"k8s.io", b"images", name.encode())
    digest = lookup(data, (*bucket, b"target", b"digest")) if data else None
    if not data or digest is None:
        yield f"containerd's store does not have {name}"
    elif not _is_whole(image.root, digest.decode("utf-8", "replace"), image.subject.arch):
        yield f"{name} is known, but its parts for {image.subject.arch} are not all stored"
    elif lookup(data, (*bucket, b"labels", b"io.cri-containerd.pinned")) != b"pinned":
        yield f"{name} is not pinned: kubelet removes it when the disk fills"


def _is_whole(root: Tree, digest: str, arch: str) -> bool:
    """Tell whether a manifest, or an index's one for an architecture, is stored with its configuration and layers."""
    todo, seen = [_digest({"digest": digest})], 0
    manifest: Mapping[str, Any] = {}
    while todo and seen < _MAX_BLOBS:
        seen += 1
        document = _object(root, f"{STORE}/{todo.pop()}")
        if "layers" in document:
            manifest = document
            break
        todo += [
            _digest(one) for one in document.get("manifests", [])
            if isinstance(one, dict) and one.get("platform", {}).get("architecture", arch) == arch
        ]  # fmt: skip
    parts = [manifest.get("config"), *manifest.get("layers", [])]
    return bool(manifest) and all(resolve(root, f"{STORE}/{_digest(one)}") is not None for one in parts)


def _digest(descriptor: object) -> str:
    value = descriptor.get("digest") if isinstance(descriptor, dict) else None
    return value.removeprefix("sha256:") if isinstance(value, str) and "/" not in value else "-"


def _object(root: Tree, path: str) -> dict[str, Any]:
    """Return a file's JSON object; empty where it is none, or too large for one."""
    found = resolve(root, path)
    if found is None or found[1].size > _BLOB_LIMIT:
        return {}
    try:
        value = json.loads(root.content(found[0], _BLOB_LIMIT))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def crictl(image: Image) -> Found:
    """Look whether crictl asks containerd."""
    try:
        said = yaml.safe_load(read(image.root, "/etc/crictl.yaml", _CRICTL_LIMIT) or b"")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ArtifactError(f"/etc/crictl.yaml is no YAML: {error}") from error
    for key in ("runtime-endpoint", "image-endpoint"):
        value = said.get(key) if isinstance(said, dict) else None
        if value != SOCKET:
            yield f"/etc/crictl.yaml has {key} {value or '(none)'}, not {SOCKET}"


def docker(image: Image) -> Found:
    """Look at the settings of docker."""
    if not has_docker(image):
        return
    said = _object(image.root, "/etc/docker/daemon.json")
    if "native.cgroupdriver=systemd" not in said.get("exec-opts", []):
        yield "/etc/docker/daemon.json does not leave cgroups to systemd (exec-opts)"
    if not said.get("log-opts", {}).get("max-size"):
        yield "/etc/docker/daemon.json does not limit the logs of containers (log-opts, max-size)"


def kubelet(image: Image) -> Found:
    """Look whether kubelet waits for its configuration, for the agent and for containerd."""
    said = unit_settings(image.root, "kubelet.service")
    if not said:
        yield "there is no unit kubelet.service"
        return
    conditions, after = said.get("Unit.ConditionPathExists", []), " ".join(said.get("Unit.After", [])).split()
    for path in ("/var/lib/kubelet/config.yaml", "!/var/lib/imagebuilder/journal.json"):
        if path not in conditions:
            yield f"kubelet.service has no ConditionPathExists={path}"
    for unit in ("containerd.service", "imagebuilder-agent-local.service"):
        if unit not in after:
            yield f"kubelet.service has no After={unit}"
    for line in said.get("Service.ExecStart", ["(nothing)"]):
        if not is_program(image.root, line.split()[0].lstrip("-+!:@")):
            yield f"kubelet.service starts {line.split()[0]}, which is no program"


def agent(image: Image) -> Found:
    """Look for the files of the agent, which only root may write, and for the folder of keys it trusts."""
    for path in _AGENT:
        found = resolve(image.root, path)
        if found is None or not found[1].is_file or not found[1].size:
            yield f"there is no {path}"
        elif found[1].uid or found[1].mode & 0o022:
            yield f"{path} can be written by others than root"
        elif not path.endswith(".py") and not is_program(image.root, path):
            yield f"{path} cannot be executed"
    trust = image.root.entry(TRUST)
    if trust is None or not trust.is_folder:
        yield f"there is no folder {TRUST}"


def trust(image: Image) -> Found:
    """Look at the keys of data packages: public ones, nothing else."""
    for path in paths(image.root, TRUST):
        if not _PUBLIC.match(text(image.root, path)):
            yield f"{path} is no public key in PEM"


def facts(image: Image) -> Found:
    """Compare what the image says of itself, to the agent, with the manifest."""
    subject, said = image.subject, _object(image.root, FACTS)
    if said.get("kind") != "ImageFacts":
        yield f"{FACTS} is missing, or no ImageFacts"
        return
    wanted: dict[str, Any] = {"arch": subject.arch}
    if subject.manifest is not None:
        version = str(subject.capability("kubelet") or "").split(".")
        wanted |= {name: subject.capability(name) for name in ("kubelet", "runtimes", "init")}
        wanted["id"] = f"{subject.os}-{subject.release}-{subject.arch}-k{'.'.join(version[:2])}"
    yield from (
        f"{FACTS} has {name} {said.get(name)}, not {value}" for name, value in wanted.items() if said.get(name) != value
    )


def no_node_data(image: Image) -> Iterator[str]:
    """Look for what belongs to one node: certificates and kubeconfigs of a cluster."""
    folders = (("/etc/kubernetes", "*.conf"), ("/etc/kubernetes/pki", "*.key"), ("/etc/kubernetes/pki/etcd", "*.key"),
               ("/var/lib/kubelet/pki", "*"), ("/var/lib/etcd", "*"), ("/var/lib/imagebuilder", "*"))  # fmt: skip
    return (f"{path} is of one node" for folder, name in folders for path in paths(image.root, folder, name))


CHECKS = (
    OfflineCheck(
        id="node-programs-kubernetes",
        proves="kubelet, kubeadm, kubectl, containerd, runc, crictl and docker are there and can be executed.",
        why="A builder whose sources match no branch installs nothing, and nothing complains until the node is there.",
        link="https://github.com/kubernetes-sigs/image-builder/issues/1554",
        fix="imagebuilder plan says from which source each comes.",
        run=programs,
    ),
    OfflineCheck(
        id="cni-plugins",
        proves="The basic CNI plugins are in /opt/cni/bin.",
        why="Every network add-on expects them there; a distribution's package puts them elsewhere.",
        link="https://www.cni.dev/plugins/current/",
        fix="See provision/steps/runtime/40-cni.sh.",
        run=cni_plugins,
    ),
    OfflineCheck(
        id="containerd-settings",
        proves="containerd's configuration leaves cgroups to systemd, and reads conf.d and certs.d.",
        why="Two cgroup drivers on one node make it unstable under load; a version that does not fit is ignored.",
        link="https://github.com/containerd/containerd/blob/main/docs/cri/config.md",
        fix="See provision/files/containerd; containerd config dump says what it understood.",
        run=containerd_settings,
    ),
    OfflineCheck(
        id="pause-image-named",
        proves="containerd's sandbox image is the one that the manifest states.",
        why="With another than kubelet's, the collection of unused images may remove it, and no pod starts.",
        link="https://github.com/kubernetes/kubernetes/issues/81756",
        fix="kubeadm config images list names it; see provision/steps/kubernetes/05-containerd.sh.",
        run=pause_named,
    ),
    OfflineCheck(
        id="pause-image-stored",
        proves="The pause image is in containerd's store, with all its parts for this machine.",
        why="Every pod starts with it: without it the first one waits for a registry.",
        link="https://kubernetes.io/docs/concepts/containers/images/#pre-pulled-images",
        fix="See provision/steps/kubernetes/40-pause-image.sh.",
        run=pause_stored,
    ),
    OfflineCheck(
        id="crictl-settings",
        proves="crictl asks containerd's socket.",
        why="Without the file it warns and tries other sockets, at every call.",
        link="https://github.com/kubernetes-sigs/cri-tools/blob/master/docs/crictl.md",
        fix="See provision/files/crictl.yaml.",
        run=crictl,
    ),
    OfflineCheck(
        id="docker-settings",
        proves="docker leaves cgroups to systemd and limits its logs.",
        why="Two cgroup drivers make a node unstable; logs without a limit fill its disk.",
        link="https://docs.docker.com/engine/logging/configure/",
        fix="See provision/files/docker-daemon.json.",
        run=docker,
    ),
    OfflineCheck(
        id="kubelet-unit",
        proves="kubelet waits for its configuration, the agent and containerd.",
        why="Without a configuration it restarts without end; before the agent it would run another node's.",
        link="https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/kubelet-integration/",
        fix="See provision/services/kubelet.",
        run=kubelet,
    ),
    OfflineCheck(
        id="agent-files",
        proves="The agent that applies data packages is there, and only root may write it.",
        why="Without it a node never gets its configuration; who may write it is root at the next boot.",
        link="https://cwe.mitre.org/data/definitions/732.html",
        fix="See provision/steps/kubernetes/35-agent.sh.",
        run=agent,
    ),
    OfflineCheck(
        id="trust-is-public",
        proves="What data packages are trusted for is public keys, and nothing else.",
        why="A private key in an image signs packages for every node that it runs on.",
        link="https://cwe.mitre.org/data/definitions/321.html",
        fix="Give --trust the public half: openssl pkey -in KEY -pubout.",
        run=trust,
    ),
    OfflineCheck(
        id="image-facts",
        proves="What the image tells the agent of itself is what the manifest says.",
        why="By it the agent refuses packages that are not for this image.",
        link="https://kubernetes.io/releases/version-skew-policy/",
        fix="See provision/files/agent/image.json.",
        run=facts,
    ),
    OfflineCheck(
        id="no-node-data",
        proves="No certificate, kubeconfig or state of one node is in the image.",
        why="All nodes of the image would be that node.",
        link="https://kubernetes.io/docs/reference/access-authn-authz/node/",
        fix="Bring them with a data package; remove what a trial run left.",
        run=no_node_data,
    ),
)
