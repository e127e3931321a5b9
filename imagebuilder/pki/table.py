"""The one list of all certificates, kubeconfigs and keys of a cluster: data, and the page made from it.

Names and subjects are those of kubeadm (cmd/kubeadm/app/phases/certs/certlist.go and phases/kubeconfig), so that its
documentation holds for these files as well. Everything is ECDSA P-256; an imported authority may be RSA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Usage = Literal["server", "client"]
Names = Literal["", "apiserver", "etcd", "node"]

CLUSTER, ETCD, FRONT_PROXY = "ca", "etcd/ca", "front-proxy-ca"
CA_DAYS, LEAF_DAYS = 3650, 365  # kubeadm's: ten years and one
SKEW_MINUTES = 5  # how far a certificate begins in the past: clocks of nodes are late
NODE = "{node}"  # stands for the node's name, in names and subjects


@dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """A certificate authority.

    Attributes:
        name: path of its files in the folder, without extension.
        common_name: of its subject.
        why: what is signed with it, for the documentation.
    """

    name: str
    common_name: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """A certificate that an authority issues.

    Attributes:
        name: path of ``.crt`` and ``.key`` in the folder, without extension.
        authority: name of the authority.
        common_name, organization: of its subject; the API server takes them as user and group.
        usages: extended key usages.
        names: which subject alternative names it has.
        kubeconfig: path of the kubeconfig with this certificate inside, or empty.
        why: who shows it to whom, for the documentation.
    """

    name: str
    authority: str
    common_name: str
    organization: str = ""
    usages: tuple[Usage, ...] = ("client",)
    names: Names = ""
    kubeconfig: str = ""
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A key without a certificate: ``.key``, and ``.pub`` for those who check its signatures."""

    name: str
    why: str


AUTHORITIES = (
    Authority(name=CLUSTER, common_name="kubernetes", why="Everything that talks to the API server or to a kubelet."),
    Authority(name=ETCD, common_name="etcd-ca", why="etcd trusts nothing else: who has it has the cluster's data."),
    Authority(
        name=FRONT_PROXY,
        common_name="front-proxy-ca",
        why="What an extension API server believes about users: never the cluster's own authority.",
    ),
)

CERTIFICATES = (
    Certificate(
        name="apiserver", authority=CLUSTER, common_name="kube-apiserver", usages=("server",), names="apiserver",
        why="The API server, to everyone.",
    ),
    Certificate(
        name="apiserver-kubelet-client", authority=CLUSTER,
        common_name="kube-apiserver-kubelet-client", organization="kubeadm:cluster-admins",
        why="The API server, to a kubelet: logs, exec, port-forward.",
    ),
    Certificate(
        name="front-proxy-client", authority=FRONT_PROXY, common_name="front-proxy-client",
        why="The API server, to extension API servers.",
    ),
    Certificate(
        name="apiserver-etcd-client", authority=ETCD, common_name="kube-apiserver-etcd-client",
        why="The API server, to etcd.",
    ),
    Certificate(
        name="etcd/server", authority=ETCD, common_name="kube-etcd", usages=("server", "client"), names="etcd",
        why="etcd, to its clients; as a client where its own gateway calls it.",
    ),
    Certificate(
        name="etcd/peer", authority=ETCD, common_name="kube-etcd-peer", usages=("server", "client"), names="etcd",
        why="etcd, to the other members.",
    ),
    Certificate(
        name="etcd/healthcheck-client", authority=ETCD, common_name="kube-etcd-healthcheck-client",
        why="A liveness probe, to etcd.",
    ),
    Certificate(
        name="admin", authority=CLUSTER, common_name="kubernetes-admin", organization="kubeadm:cluster-admins",
        kubeconfig="admin.conf", why="People; has rights once `cluster-admins.json` is applied, and can lose them.",
    ),
    Certificate(
        name="super-admin", authority=CLUSTER, common_name="kubernetes-super-admin", organization="system:masters",
        kubeconfig="super-admin.conf",
        why="The first steps and emergencies: its rights cannot be taken away. Keep it offline.",
    ),
    Certificate(
        name="controller-manager", authority=CLUSTER, common_name="system:kube-controller-manager",
        kubeconfig="controller-manager.conf", why="The controller manager, to the API server.",
    ),
    Certificate(
        name="scheduler", authority=CLUSTER, common_name="system:kube-scheduler", kubeconfig="scheduler.conf",
        why="The scheduler, to the API server.",
    ),
)  # fmt: skip

NODE_CERTIFICATES = (
    Certificate(
        name=f"nodes/{NODE}/kubelet-client", authority=CLUSTER,
        common_name=f"system:node:{NODE}", organization="system:nodes",
        kubeconfig=f"nodes/{NODE}/kubelet.conf", why="A kubelet, to the API server.",
    ),
    Certificate(
        name=f"nodes/{NODE}/kubelet", authority=CLUSTER,
        common_name=f"system:node:{NODE}", organization="system:nodes", usages=("server",), names="node",
        why="A kubelet, to the API server and to metrics collectors.",
    ),
)  # fmt: skip

KEY_PAIRS = (
    KeyPair(name="sa", why="Signs the tokens of service accounts; the API server checks them with the public half."),
    KeyPair(
        name="package-signing",
        why="Signs data packages; images carry the public half. It is needed where packages are made, never on a node.",
    ),
)

NAMES_TEXT = {
    "": "",
    "apiserver": "`kubernetes`, `kubernetes.default[.svc[.<DNS domain>]]`, `localhost`, `127.0.0.1`, `::1`, the first "
    "address of each service CIDR, the host of the API server's URL, `sans.apiserver` of `cluster.json`",
    "etcd": "`localhost`, `127.0.0.1`, `::1`, `sans.etcd` of `cluster.json`",
    "node": "the node's name, its `nodes` entry in `cluster.json`",
}


def render_markdown() -> str:
    """Return the table as Markdown."""
    lines = ["## Authorities", "", "| Files | Subject | What is signed with it |", "|---|---|---|"]
    lines += [f"| `{one.name}.crt`, `.key` | `CN={one.common_name}` | {one.why} |" for one in AUTHORITIES]
    for title, certificates in (("Certificates of the cluster", CERTIFICATES), ("Of each node", NODE_CERTIFICATES)):
        lines += ["", f"## {title}", "", "| Files | Authority | Subject | Usage | Names | Who shows it to whom |"]
        lines += ["|---|---|---|---|---|---|", *(_row(one) for one in certificates)]
    lines += ["", "## Keys without a certificate", "", "| Files | What for |", "|---|---|"]
    lines += [f"| `{pair.name}.key`, `{pair.name}.pub` | {pair.why} |" for pair in KEY_PAIRS]
    return "\n".join(lines).replace(NODE, "<node>") + "\n"


def _row(one: Certificate) -> str:
    files = f"`{one.name}.crt`, `.key`" + (f", inside `{one.kubeconfig}`" if one.kubeconfig else "")
    subject = f"`CN={one.common_name}`" + (f" `O={one.organization}`" if one.organization else "")
    cells = (files, f"`{one.authority}`", subject, ", ".join(one.usages), NAMES_TEXT[one.names], one.why)
    return f"| {' | '.join(cells)} |".replace("  ", " ")
