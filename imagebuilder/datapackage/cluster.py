"""``cluster.toml``: a cluster and its nodes, from which the data packages are made.

The models are the schema (``imagebuilder schema cluster``); what one key means for another is checked in
:mod:`imagebuilder.datapackage.crosswise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from imagebuilder.compat import Range, minor_of, parse_version
from imagebuilder.datapackage.manifest import LABEL
from imagebuilder.errors import UsageError
from imagebuilder.strict import Strict, Strings

FILE_NAME = "cluster.toml"
DEFAULT_VALIDITY = 365  # days
MAX_VALIDITY = 3650  # days

_DOMAIN = rf"^{LABEL}(\.{LABEL})*$"
_IMAGE = r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9._-]{1,128})?(@sha256:[0-9a-f]{64})?$"
_URL = r"^https?://[A-Za-z0-9._~:\[\]@%/-]+$"
_TAINT = r"^[A-Za-z0-9./_-]+(=[A-Za-z0-9._-]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$"
_REGISTRY = r"^(_default|[a-z0-9.-]+(:[0-9]{1,5})?)$"

NodeName = Annotated[str, Field(pattern=_DOMAIN, max_length=52)]  # system:node:<name> fits a certificate's subject
Taints = Annotated[tuple[Annotated[str, Field(pattern=_TAINT)], ...], Field(strict=False)]
Cidrs = Annotated[tuple[str, ...], Field(strict=False, max_length=2)]


def _range(value: Any) -> Any:
    """Return a minor as the range that it is."""
    if not isinstance(value, str):
        return value
    try:
        minor = minor_of(value)
    except UsageError as error:
        raise ValueError(error.message) from error
    major, number = parse_version(minor)
    return {"minimum": value, "below": f"{major}.{number + 1}"}


Versions = Annotated[Range, BeforeValidator(_range, json_schema_input_type=str | Range)]


class Selectors(Strict):
    """Which machine a node is. Each that is given must hold one of the machine's own values."""

    hostname: Strings = Field(default=(), description="Names that the machine may have at boot.")
    uuid: Strings = Field(default=(), description="UUIDs of the machine, as DMI has them.")
    serial: Strings = Field(default=(), description="Serial numbers of the machine, as DMI has them.")
    mac: Strings = Field(default=(), description="Hardware addresses of its network interfaces.")


class Bootstrap(Strict):
    """How a worker asks for a certificate, where it does not bring its own."""

    token_file: Annotated[Path, Field(strict=False)] | None = Field(
        default=None,
        description="File with a bootstrap token, or kubeconfig with one; by default bootstrap.conf of the PKI folder.",
    )
    ca_hash: str = Field(
        default="",
        description="What the cluster's CA must be: sha256:<hex>, as kubeadm's --discovery-token-ca-cert-hash.",
        pattern=r"^(sha256:[0-9a-f]{64})?$",
    )


class Node(Strict):
    """A node: one machine, one data package."""

    name: NodeName = Field(description="Its name, also in the cluster.")
    role: Literal["standalone", "worker"] = Field(
        description="standalone: static pods and no API server; worker: a node of the cluster."
    )
    arch: Literal["amd64", "arm64"] | None = Field(default=None, description="Architecture that the image must have.")
    family: Literal["debian", "redhat"] = Field(default="debian", description="Family of the image's system.")
    addresses: Strings = Field(default=(), description="Its addresses, at most one of each family.", max_length=2)
    labels: Mapping[str, str] = Field(default={}, description="Labels of a worker.")
    taints: Taints = Field(default=(), description="Taints of a worker, as kubectl writes them.")
    manifests: Strings = Field(default=(), description="Static pods: YAML files, relative to this file.")
    selectors: Selectors = Field(default=Selectors(), description="Which machine it is.")
    bootstrap: Bootstrap | None = Field(default=None, description="A token, in the place of a client certificate.")


class Registry(Strict):
    """Where the images of one registry come from instead."""

    mirrors: Strings = Field(description="Addresses to try, in this order, before the registry.", min_length=1)
    server: str = Field(default="", description="The registry's own address, where it is not its name.")
    ca_file: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="Authority that signs the mirrors' certificates, in PEM."
    )
    plain_http: bool = Field(default=False, description="Allow mirrors whose address begins with http://.")


class Proxy(Strict):
    """Proxies for the container runtimes."""

    http: str = Field(default="", description="For http.", pattern=rf"({_URL})|^$")
    https: str = Field(default="", description="For https.", pattern=rf"({_URL})|^$")
    no: Strings = Field(default=(), description="Names and networks without one; the cluster's own are added.")


class Images(Strict):
    """Images that the addons run."""

    flannel: str = Field(default="ghcr.io/flannel-io/flannel:v0.28.9", description="flanneld.", pattern=_IMAGE)
    flannel_cni: str = Field(
        default="ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel3",
        description="The CNI plugin that reads what flanneld found.",
        pattern=_IMAGE,
    )
    coredns: str = Field(
        default="registry.k8s.io/coredns/coredns:v1.14.2", description="The cluster's DNS server.", pattern=_IMAGE
    )


class Cluster(Strict):
    """What ``cluster.toml`` holds. Relative paths are relative to the file."""

    name: str = Field(description="Name of the cluster.", pattern=rf"^{LABEL}$")
    kubernetes: Versions = Field(description="Versions of kubelet that the packages are for: a minor, or a range.")
    api_server: str = Field(
        default="", description="Address of the API server as the nodes see it: https://host:port.",
        pattern=r"^(https://[A-Za-z0-9.:\[\]-]+)?$",
    )  # fmt: skip
    pod_cidrs: Cidrs = Field(default=("10.244.0.0/16",), description="Networks of pods, one of a family.", min_length=1)
    service_cidrs: Cidrs = Field(
        default=("10.96.0.0/12",), description="Networks of services, one of a family.", min_length=1
    )
    dns_domain: str = Field(default="cluster.local", description="Domain of the cluster.", pattern=_DOMAIN)
    dns_servers: Strings = Field(
        default=(), description="Addresses of the cluster's DNS; by default the tenth of each service network.",
        max_length=3,
    )  # fmt: skip
    network: Literal["flannel", "none"] = Field(
        default="flannel", description="flannel, and a bridge on standalone nodes; or none: it is made elsewhere."
    )
    addons: Annotated[tuple[Literal["coredns"], ...], Field(strict=False)] = Field(
        default=(), description="What to write for kubectl apply besides flannel."
    )
    validity_days: int = Field(
        default=DEFAULT_VALIDITY, description="Days that a package can be applied in.", ge=1, le=MAX_VALIDITY
    )
    ssh_authorized_keys: Strings = Field(default=(), description="Keys that may log in as root.")
    proxy: Proxy = Field(default=Proxy(), description="Proxies.")
    registries: Mapping[Annotated[str, Field(pattern=_REGISTRY)], Registry] = Field(
        default={}, description="Mirrors, by registry; docker.io is Docker Hub, _default every other."
    )
    images: Images = Field(default=Images(), description="Images of the addons.")
    nodes: Annotated[tuple[Node, ...], Field(strict=False)] = Field(description="The nodes.", min_length=1)

    @property
    def api_host(self) -> str:
        """Return the host of the API server's address, or an empty string."""
        return urlsplit(self.api_server).hostname or ""

    @property
    def api_port(self) -> int:
        """Return the port of the API server's address."""
        return urlsplit(self.api_server).port or 443

    @property
    def workers(self) -> list[Node]:
        """Return the nodes that have an API server."""
        return [node for node in self.nodes if node.role == "worker"]
