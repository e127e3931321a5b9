"""What one key of ``cluster.toml`` means for another; every problem is found before anything is made."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from imagebuilder.compat import parse_version
from imagebuilder.datapackage.cluster import Cluster, Node, Registry
from imagebuilder.datapackage.manifest import LABEL
from imagebuilder.strict import label, read_toml, validate, wrong

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

POD_PREFIX = {4: 24, 6: 64}  # flannel's default per node: SubnetLen, IPv6SubnetLen
SERVICE_PREFIX = {4: 12, 6: 108}  # kube-apiserver takes 20 bits at most

_KEY_TYPES = re.compile(
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_WORD = re.compile(r"[!-~]{1,1024}")
_DOMAIN = re.compile(rf"{LABEL}(\.{LABEL})*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SELECTORS = {"hostname": _DOMAIN, "uuid": _UUID, "serial": _WORD, "mac": _MAC}
_NO_PROXY = re.compile(r"[A-Za-z0-9.*:/\[\]_-]+")
_MIRROR = re.compile(r"(?P<scheme>https?)://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")
# kubelet sets no other label of these names: IsKubeletLabel, pkg/kubelet/apis/well_known_labels.go
_OWN_LABELS = {
    "kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region", "node.kubernetes.io/instance-type",
}  # fmt: skip
_OWN_PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")


def load_cluster(path: Path) -> Cluster:
    """Return what ``cluster.toml`` says, with absolute paths.

    Raises:
        DataError: it cannot be read, does not follow the schema, or contradicts itself; all is said at once.
    """
    where = label(path)
    cluster = validate(read_toml(path), Cluster, where)
    problems = [f"{where}: {problem}" for problem in find_problems(cluster)]
    if problems:
        raise wrong(where, problems)
    folder = path.absolute().parent
    registries = {
        name: registry.model_copy(update={"ca_file": registry.ca_file and folder / registry.ca_file})
        for name, registry in cluster.registries.items()
    }
    nodes = tuple(_absolute(node, folder) for node in cluster.nodes)
    return cluster.model_copy(update={"registries": registries, "nodes": nodes})


def find_problems(cluster: Cluster) -> list[str]:
    """Return a line for everything that does not fit together."""
    versions = cluster.kubernetes
    problems = []
    if parse_version(versions.minimum) >= parse_version(versions.below):
        problems.append(f"kubernetes: no version is >= {versions.minimum} and < {versions.below}")
    problems += [*_networks(cluster), *_nodes(cluster), *_access(cluster)]
    for name, registry in cluster.registries.items():
        problems += [f"registries.{name}: {problem}" for problem in _registry(registry)]
    for at, node in enumerate(cluster.nodes):
        problems += [f"nodes.{at} ({node.name}): {problem}" for problem in _node(node, cluster)]
    return problems


def dns_servers(cluster: Cluster) -> list[str]:
    """Return the addresses of the cluster's DNS."""
    return list(cluster.dns_servers) or [str(ipaddress.ip_network(cidr)[10]) for cidr in cluster.service_cidrs]


def ca_path(name: str) -> str:
    """Return where the authority of a registry's mirrors is on a node."""
    return f"/etc/containerd/certs.d/{name}/ca.crt"


def _absolute(node: Node, folder: Path) -> Node:
    bootstrap = node.bootstrap
    if bootstrap is not None and bootstrap.token_file is not None:
        bootstrap = bootstrap.model_copy(update={"token_file": folder / bootstrap.token_file})
    manifests = tuple(str(folder / name) for name in node.manifests)
    return node.model_copy(update={"manifests": manifests, "bootstrap": bootstrap})


def _networks(cluster: Cluster) -> Iterator[str]:
    found: list[tuple[str, Network]] = []
    for key, cidrs in (("pod_cidrs", cluster.pod_cidrs), ("service_cidrs", cluster.service_cidrs)):
        networks = []
        for cidr in cidrs:
            try:
                networks.append(ipaddress.ip_network(cidr))
            except ValueError as error:
                yield f"{key}: {error}"
        if len({network.version for network in networks}) < len(networks):
            yield f"{key}: two networks of one family"
        found += [(key, network) for network in networks]
    pods, services = ([net for name, net in found if name == key] for key in ("pod_cidrs", "service_cidrs"))
    for network in pods:
        yield from (
            f"pod_cidrs: {network} and service_cidrs: {other} overlap" for other in services if _overlap(network, other)
        )
        if network.prefixlen > POD_PREFIX[network.version] and cluster.network == "flannel":
            yield f"pod_cidrs: {network} has no room for a node's /{POD_PREFIX[network.version]}"
    for network in services:
        if not SERVICE_PREFIX[network.version] <= network.prefixlen <= network.max_prefixlen - 4:
            yield f"service_cidrs: {network} is too large or too small (/{SERVICE_PREFIX[network.version]} to /{network.max_prefixlen - 4})"  # noqa: E501
    yield from _dns(cluster, services)
    host = _address(cluster.api_host)
    yield from (f"api_server: {host} lies within {key}: {net}" for key, net in found if host and host in net)


def _dns(cluster: Cluster, services: list[Network]) -> Iterator[str]:
    for server in cluster.dns_servers:
        address = _address(server)
        if address is None:
            yield f'dns_servers: "{server}" is no address'
        elif cluster.addons and not any(address in network for network in services):
            yield f"dns_servers: {server} lies outside service_cidrs, where the addon coredns is to be"
    if cluster.addons and not cluster.workers:
        yield "addons: there is no worker to run them"


def _nodes(cluster: Cluster) -> Iterator[str]:
    yield from (f'nodes: the name "{name}" is there twice' for name in _twice(node.name for node in cluster.nodes))
    for address in _twice(address for node in cluster.nodes for address in node.addresses):
        yield f"nodes: the address {address} is there twice"
    for key in ("uuid", "serial", "mac"):
        values = (value.lower() for node in cluster.nodes for value in getattr(node.selectors, key))
        yield from (f"nodes: the {key} {value} selects two nodes" for value in _twice(values))
    if cluster.workers and not cluster.api_server:
        yield "api_server: missing, but there are workers"
    try:
        port = urlsplit(cluster.api_server).port
    except ValueError:
        port = 0
    if port == 0:
        yield f'api_server: "{cluster.api_server}" has no such port'


def _access(cluster: Cluster) -> Iterator[str]:
    for at, key in enumerate(cluster.ssh_authorized_keys):
        words = key.split(" ", 2)
        if len(words) < 2 or not _KEY_TYPES.fullmatch(words[0]) or not _is_blob(words[1], words[0]):
            yield f"ssh_authorized_keys.{at}: this is no public key of OpenSSH, without options ({key[:20]!r}...)"
        elif not key.isascii() or not key.isprintable():
            yield f"ssh_authorized_keys.{at}: only printable ASCII"
    for name in cluster.proxy.no:
        if not _NO_PROXY.fullmatch(name):
            yield f'proxy.no: "{name}" is no name, address or network'


def _registry(registry: Registry) -> Iterator[str]:
    for url in (*registry.mirrors, *([registry.server] if registry.server else [])):
        found = _MIRROR.fullmatch(url)
        if not found:
            yield f'"{url}" is no address like https://host[:port][/path]'
        elif found["scheme"] == "http" and not registry.plain_http:
            yield f"{url} is not encrypted; plain_http = true allows that"


def _node(node: Node, cluster: Cluster) -> Iterator[str]:
    taken = [ipaddress.ip_network(cidr) for cidr in (*cluster.pod_cidrs, *cluster.service_cidrs) if _is_network(cidr)]
    addresses = []
    for text in node.addresses:
        address = _address(text)
        if address is None or address.is_unspecified or address.is_loopback or address.is_multicast:
            yield f'addresses: "{text}" is no address of a machine'
            continue
        addresses.append(address)
        yield from (f"addresses: {text} lies within {network}" for network in taken if address in network)
    if len({address.version for address in addresses}) < len(addresses):
        yield "addresses: two of one family"
    for key, pattern in _SELECTORS.items():
        for value in getattr(node.selectors, key):
            if not pattern.fullmatch(value.lower()):
                yield f'selectors.{key}: "{value}" is none'
    names = [Path(name).name for name in node.manifests]
    yield from (f'manifests: two files are named "{name}"' for name in _twice(names))
    yield from (f'manifests: "{name}" must end in .yaml or .json' for name in names if not _is_manifest(name))
    if node.role == "standalone" and (node.labels or node.taints or node.bootstrap):
        yield "labels, taints and bootstrap are for workers: a standalone node has no API server to tell them to"
    for key, value in node.labels.items():
        problem = _label_problem(key, value)
        if problem:
            yield f"labels: {problem}"


def _label_problem(key: str, value: str) -> str:
    prefix, _, name = key.rpartition("/")
    if not _LABEL_NAME.fullmatch(name) or ("/" in key and not _DOMAIN.fullmatch(prefix)):
        return f'"{key}" is no name of a label'
    if value and not _LABEL_NAME.fullmatch(value):
        return f'"{value}" is no value of a label'
    kubernetes = any(prefix == domain or prefix.endswith(f".{domain}") for domain in ("kubernetes.io", "k8s.io"))
    own = key in _OWN_LABELS or any(prefix == one or prefix.endswith(f".{one}") for one in _OWN_PREFIXES)
    if kubernetes and not own:
        return f'"{key}" is one that a kubelet must not set; use kubectl label'
    return ""


def _twice(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def _is_manifest(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.(yaml|yml|json)", name) is not None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_blob(text: str, kind: str) -> bool:
    """Tell whether this is base64 of a key that begins with its own type (RFC 4253, section 6.6)."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return data.startswith(len(kind).to_bytes(4, "big") + kind.encode())
