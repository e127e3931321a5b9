"""The files of a node, in upstream's formats.

KubeletConfiguration: kubelet.config.k8s.io/v1beta1. Kubeconfig: client-go's v1. CNI: network configuration lists of
specification 1.0.0. containerd: ``hosts.toml`` of its registry host namespace. docker: ``daemon.json``.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imagebuilder import resources
from imagebuilder.datapackage.cluster import Cluster, Node, Registry
from imagebuilder.datapackage.crosswise import ca_path, dns_servers
from imagebuilder.datapackage.format import MAX_UNPACKED
from imagebuilder.datapackage.pkifiles import Pki, bootstrap_token, read
from imagebuilder.errors import DataError

KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
KUBECONFIG, BOOTSTRAP = "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"
CA = "/etc/kubernetes/pki/ca.crt"
SERVING_CERTIFICATE, SERVING_KEY = "/var/lib/kubelet/pki/kubelet.crt", "/var/lib/kubelet/pki/kubelet.key"
MANIFESTS = "/etc/kubernetes/manifests"
CNI = "/etc/cni/net.d"
DEFAULTS = {"debian": "/etc/default/kubelet", "redhat": "/etc/sysconfig/kubelet"}
CONTAINERD = "unix:///run/containerd/containerd.sock"
DOCKER_HUB = "docker.io"
SECRET, PUBLIC = "0600", "0644"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is some ten times as fast, and not everywhere


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of a node."""

    data: bytes
    mode: str = PUBLIC


def render(cluster: Cluster, node: Node, pki: Pki) -> dict[str, File]:
    """Return a node's files, by path.

    Raises:
        HostError: a file that goes in is missing.
        DataError: one is not what it must be.
    """
    files: dict[str, File] = {}
    serving = pki.serving(node.name)
    if serving is not None:
        files[SERVING_CERTIFICATE] = File(data=serving[0])
        files[SERVING_KEY] = File(data=serving[1], mode=SECRET)
    if node.role == "worker":
        files |= _credentials(cluster, node, pki)
    files[KUBELET_CONFIG] = _yaml(kubelet_configuration(cluster, node, serves=serving is not None))
    files |= _arguments(node) | _network(cluster, node) | _registries(cluster) | _static_pods(node)
    return files


def kubelet_configuration(cluster: Cluster, node: Node, *, serves: bool) -> dict[str, Any]:
    """Return a kubelet's configuration.

    Args:
        cluster: that it belongs to.
        node: that it is.
        serves: whether it has a certificate to serve with; else it makes one itself.
    """
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "systemd",
        "containerRuntimeEndpoint": CONTAINERD,
        "staticPodPath": MANIFESTS,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "readOnlyPort": 0,
    }
    if node.family == "debian":  # the family whose resolver is systemd's; its stub is of no use to a pod
        config["resolvConf"] = "/run/systemd/resolve/resolv.conf"
    if serves:
        config |= {"tlsCertFile": SERVING_CERTIFICATE, "tlsPrivateKeyFile": SERVING_KEY}
    anonymous, webhook = {"enabled": False}, {"enabled": node.role == "worker"}
    if node.role == "standalone":  # nobody to ask, and so no way in: there is no client's CA
        return config | {
            "authentication": {"anonymous": anonymous, "webhook": webhook},
            "authorization": {"mode": "AlwaysAllow"},
        }
    config |= {
        "authentication": {"anonymous": anonymous, "webhook": webhook, "x509": {"clientCAFile": CA}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": dns_servers(cluster),
        "clusterDomain": cluster.dns_domain,
        "rotateCertificates": True,
    }
    if node.taints:
        config["registerWithTaints"] = [_taint(taint) for taint in node.taints]
    return config


def flannel_conflist() -> dict[str, Any]:
    """Return the CNI configuration of a node whose network flanneld makes."""
    return {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def bridge_conflist(cidrs: tuple[str, ...]) -> dict[str, Any]:
    """Return the CNI configuration of a node whose pods are behind a bridge of its own."""
    every = {4: "0.0.0.0/0", 6: "::/0"}
    routes = [{"dst": every[ipaddress.ip_network(cidr).version]} for cidr in cidrs]
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": cidr}] for cidr in cidrs], "routes": routes},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }  # fmt: skip


def hosts_toml(name: str, registry: Registry) -> str:
    """Return what containerd reads of a registry's mirrors."""
    server = registry.server or ("https://registry-1.docker.io" if name == DOCKER_HUB else f"https://{name}")
    lines = [] if name == "_default" else [f'server = "{server}"']
    for mirror in registry.mirrors:
        lines += ["", f'[host."{mirror}"]', 'capabilities = ["pull", "resolve"]']
        lines += [f'ca = "{ca_path(name)}"'] if registry.ca_file else []
    return "\n".join([*lines, ""]).lstrip("\n")


def docker_daemon(registry: Registry) -> dict[str, Any]:
    """Return docker's configuration: the image's own, which the package's replaces, and mirrors of Docker Hub."""
    config: dict[str, Any] = json.loads((resources.folder("provision") / "files" / "docker-daemon.json").read_text())
    plain = [mirror.removeprefix("http://").split("/")[0] for mirror in registry.mirrors if mirror.startswith("http:")]
    config["registry-mirrors"] = list(registry.mirrors)
    return config | ({"insecure-registries": plain} if plain else {})


def bootstrap_kubeconfig(cluster: Cluster, token: str) -> dict[str, Any]:
    """Return the kubeconfig with which a kubelet asks for its first certificate."""
    context = {"cluster": cluster.name, "user": "kubelet-bootstrap"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster.name, "cluster": {"server": cluster.api_server, "certificate-authority": CA}}],
        "users": [{"name": "kubelet-bootstrap", "user": {"token": token}}],
        "contexts": [{"name": "bootstrap", "context": context}],
        "current-context": "bootstrap",
    }


def _credentials(cluster: Cluster, node: Node, pki: Pki) -> dict[str, File]:
    ca = pki.ca()
    if node.bootstrap is None:
        return {CA: File(data=ca), KUBECONFIG: File(data=pki.kubeconfig(node.name), mode=SECRET)}
    config = bootstrap_kubeconfig(cluster, bootstrap_token(node, ca, pki.folder))
    return {CA: File(data=ca), BOOTSTRAP: _yaml(config, SECRET)}


def _arguments(node: Node) -> dict[str, File]:
    """What a kubelet takes on its command line only; the image's unit adds the rest."""
    if node.role == "standalone":
        words = []
    else:
        words = [f"--hostname-override={node.name}"]
        if node.labels:
            words.append("--node-labels=" + ",".join(f"{key}={value}" for key, value in sorted(node.labels.items())))
    if node.addresses:
        words.append(f"--node-ip={','.join(node.addresses)}")
    text = f'KUBELET_EXTRA_ARGS="{" ".join(words)}"\n'
    return {DEFAULTS[node.family]: File(data=text.encode())} if words else {}


def _network(cluster: Cluster, node: Node) -> dict[str, File]:
    if cluster.network == "none":
        return {}
    if node.role == "standalone":
        return {f"{CNI}/10-bridge.conflist": _json(bridge_conflist(cluster.pod_cidrs))}
    return {f"{CNI}/10-flannel.conflist": _json(flannel_conflist())}


def _registries(cluster: Cluster) -> dict[str, File]:
    files = {}
    for name, registry in cluster.registries.items():
        files[f"/etc/containerd/certs.d/{name}/hosts.toml"] = File(data=hosts_toml(name, registry).encode())
        if registry.ca_file:
            files[ca_path(name)] = File(data=read(registry.ca_file, ""))
    hub = cluster.registries.get(DOCKER_HUB)
    return files | ({"/etc/docker/daemon.json": _json(docker_daemon(hub))} if hub else {})


def _static_pods(node: Node) -> dict[str, File]:
    files: dict[str, File] = {}
    pods: dict[tuple[str, str], Path] = {}
    for path in map(Path, node.manifests):
        data = read(path, "the paths of manifests are relative to cluster.toml", MAX_UNPACKED)
        pod = _pod(path, data)
        if pod in pods:
            raise DataError(f"{path} and {pods[pod]} are both the pod {'/'.join(pod)}")
        pods[pod] = path
        # 0600: the environment of a pod may hold passwords
        files[f"{MANIFESTS}/{path.name}"] = File(data=data, mode=SECRET)
    return files


def _pod(path: Path, data: bytes) -> tuple[str, str]:
    """Return namespace and name of a static pod.

    Raises:
        DataError: it is none; a kubelet would pass over it in silence.
    """
    try:
        match list(yaml.load_all(data, LOADER)):
            case [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": str(name), **more}, "spec": dict()}]:
                return str(more.get("namespace", "default")), name
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not YAML", context=str(error)) from error
    raise DataError(f"{path} is not one Pod of apiVersion v1 with a name", hint="static pods are one document a file")


def _taint(text: str) -> dict[str, str]:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


def _yaml(value: Mapping[str, Any], mode: str = PUBLIC) -> File:
    return File(data=yaml.safe_dump(dict(value), sort_keys=False).encode(), mode=mode)


def _json(value: Mapping[str, Any]) -> File:
    return File(data=(json.dumps(value, indent=2) + "\n").encode())
