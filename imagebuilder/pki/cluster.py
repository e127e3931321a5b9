"""``cluster.json``: what a PKI folder is for, and what the certificates of its cluster are to hold.

    {"apiVersion": "imagebuilder/v1", "kind": "Cluster", "name": "demo", "server": "https://10.0.0.1:6443",
     "caHash": "sha256:<hex of the SPKI of ca.crt>", "serviceCidrs": ["10.96.0.0/12"], "dnsDomain": "cluster.local",
     "sans": {"apiserver": ["api.example.com"], "etcd": []}, "nodes": {"node-1": ["10.0.0.11"]}}

It may be edited; ``imagebuilder pki renew`` then issues anew what no longer follows it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from imagebuilder.errors import DataError, UsageError
from imagebuilder.pki.table import CERTIFICATES, NODE, NODE_CERTIFICATES, Certificate, Usage
from imagebuilder.strict import Strict, validate

INFO = "cluster.json"
SERVER = "https://127.0.0.1:6443"  # for nodes that stand alone: nothing has to be there
SERVICE_CIDR = "10.96.0.0/12"  # kubeadm's default
DNS_DOMAIN = "cluster.local"
LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
CLUSTER = re.compile(LABEL)
DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*")
MAX_DOMAIN = 253  # RFC 1123
MAX_NODE = 64 - len("system:node:")  # X.520 ub-common-name: the certificate's subject has both
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_cluster(name: str) -> str:
    """Return a cluster's name.

    Raises:
        UsageError: it is not a DNS label.
    """
    if not CLUSTER.fullmatch(name):
        raise UsageError(f'"{name}" is no name for a cluster: lower-case letters, digits and -, at most 63')
    return name


def check_domain(name: str) -> str:
    """Return a DNS name.

    Raises:
        UsageError: it is none of lower-case labels.
    """
    if not DOMAIN.fullmatch(name) or len(name) > MAX_DOMAIN:
        raise UsageError(f'"{name}" is no DNS name: labels of lower-case letters, digits and -, joined by dots')
    return name


def check_node(name: str) -> str:
    """Return a node's name.

    Raises:
        UsageError: it is no DNS name, or does not fit a certificate's subject.
    """
    if len(check_domain(name)) > MAX_NODE:
        raise UsageError(f'"{name}" is too long for a node: system:node:<name> may have 64 characters')
    return name


def check_san(name: str) -> str:
    """Return a DNS name (``*.`` may lead) or an IP address in its one spelling.

    Raises:
        UsageError: it is neither.
    """
    try:
        if "%" not in name:  # a zone means something on one machine only
            return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    if re.fullmatch(r"[0-9.]+", name):  # 10.0.0.256 would pass as a DNS name
        raise UsageError(f'"{name}" is no IP address')
    check_domain(name.removeprefix("*."))
    return name


def check_server(url: str) -> str:
    """Return the address of an API server.

    Raises:
        UsageError: it is not ``https://host[:port]``.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f'"{url}" is no address of an API server', hint="--server https://10.0.0.1:6443")
    check_san(parts.hostname or "")
    return url.rstrip("/")


def check_cidr(text: str) -> str:
    """Return a network of services.

    Raises:
        UsageError: it is none, or has no room for a service.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f'"{text}" is no CIDR: {error}', hint=f"--service-cidr {SERVICE_CIDR}") from error
    if network.num_addresses < 4:
        raise UsageError(f"{text} has no room for services")
    return str(network)


def _valued(check: Callable[[str], str]) -> AfterValidator:
    """Return a check for pydantic, which wants a ValueError."""

    def run(value: str) -> str:
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(error.message) from error

    return AfterValidator(run)


San = Annotated[str, _valued(check_san)]
Sans = Annotated[tuple[San, ...], Field(strict=False)]


class ExtraNames(Strict):
    """Names beyond those that a certificate always has."""

    apiserver: Sans = ()
    etcd: Sans = ()


class Cluster(Strict):
    """What ``cluster.json`` holds."""

    apiVersion: Literal["imagebuilder/v1"] = "imagebuilder/v1"  # noqa: N815 - as in our other files
    kind: Literal["Cluster"] = "Cluster"
    name: Annotated[str, _valued(check_cluster)]
    server: Annotated[str, _valued(check_server)] = SERVER
    caHash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]  # noqa: N815
    serviceCidrs: Annotated[  # noqa: N815
        tuple[Annotated[str, _valued(check_cidr)], ...], Field(strict=False, min_length=1, max_length=2)
    ] = (SERVICE_CIDR,)
    dnsDomain: Annotated[str, _valued(check_domain)] = DNS_DOMAIN  # noqa: N815
    sans: ExtraNames = ExtraNames()
    nodes: dict[Annotated[str, _valued(check_node)], Sans] = Field(default_factory=dict)


def parse_cluster(data: bytes, where: str) -> Cluster:
    """Return what ``cluster.json`` holds.

    Raises:
        DataError: it is not of its schema; all that is wrong is said at once.
    """
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    return validate(raw, Cluster, where)


def stated(name: str, **values: Any) -> dict[str, Any]:
    """Return a cluster as it was asked for on a command line: values that are None are not stated.

    Raises:
        UsageError: one of them is not what it must be.
    """
    checks: dict[str, Callable[[Any], Any]] = {
        "server": check_server,
        "dnsDomain": check_domain,
        "serviceCidrs": lambda texts: _each(check_cidr, texts),
        "apiserver": lambda texts: _each(check_san, texts),
        "etcd": lambda texts: _each(check_san, texts),
    }
    good = {key: checks[key](value) for key, value in values.items() if value is not None}
    return {"name": check_cluster(name), **good}


def _each(check: Callable[[str], str], texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(check(text) for text in texts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """A certificate to be: an entry of the table, filled in for a cluster.

    Attributes:
        name: path of its files in the folder, without extension.
        authority: name of the authority.
        common_name, organization: of its subject.
        usages: extended key usages.
        sans: DNS names and IP addresses.
        kubeconfig: path of the kubeconfig with it inside, or empty.
    """

    name: str
    authority: str
    common_name: str
    organization: str
    usages: tuple[Usage, ...]
    sans: tuple[str, ...]
    kubeconfig: str


def specs(cluster: Cluster) -> list[Spec]:
    """Return every certificate of a cluster, those of its nodes last."""
    nodes = [spec for node in sorted(cluster.nodes) for spec in node_specs(cluster, node)]
    return [_spec(entry, cluster) for entry in CERTIFICATES] + nodes


def node_specs(cluster: Cluster, node: str) -> list[Spec]:
    """Return the certificates of one node."""
    return [_spec(entry, cluster, node) for entry in NODE_CERTIFICATES]


def _spec(entry: Certificate, cluster: Cluster, node: str = "") -> Spec:
    return Spec(
        name=entry.name.replace(NODE, node),
        authority=entry.authority,
        common_name=entry.common_name.replace(NODE, node),
        organization=entry.organization,
        usages=entry.usages,
        sans=tuple(dict.fromkeys(_sans(entry, cluster, node))),
        kubeconfig=entry.kubeconfig.replace(NODE, node),
    )


def _sans(entry: Certificate, cluster: Cluster, node: str) -> list[str]:
    if entry.names == "apiserver":
        service = "kubernetes.default.svc"
        first = [str(ipaddress.ip_network(cidr)[1]) for cidr in cluster.serviceCidrs]
        inside = ["kubernetes", "kubernetes.default", service, f"{service}.{cluster.dnsDomain}"]
        host = check_san(urlsplit(cluster.server).hostname or "")
        return [*inside, *LOOPBACK, *first, host, *cluster.sans.apiserver]
    if entry.names == "etcd":
        return [*LOOPBACK, *cluster.sans.etcd]
    return [node, *cluster.nodes[node]] if entry.names == "node" else []
