"""Files for kubectl and the components: kubeconfigs, and objects that a new API server is told once.

Formats: kubernetes.io/docs/reference/config-api/kubeconfig.v1, and the API's own objects as JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from imagebuilder.pki.cluster import Cluster

BOOTSTRAPPERS = "system:bootstrappers:kubeadm:default-node-token"  # kubeadm's group of nodes that are to join
RBAC = "rbac.authorization.k8s.io"
BINDINGS = {  # kubeadm's own (cmd/kubeadm/app/phases): name -> cluster role, group
    "kubeadm:cluster-admins": ("cluster-admin", "kubeadm:cluster-admins"),
    "kubeadm:kubelet-bootstrap": ("system:node-bootstrapper", BOOTSTRAPPERS),
    "kubeadm:node-autoapprove-bootstrap": (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        BOOTSTRAPPERS,
    ),
    "kubeadm:node-autoapprove-certificate-rotation": (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "system:nodes",
    ),
}
TEMPLATE = """\
apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: {server}
    certificate-authority-data: {authority}
users:
- name: {user}
  user:
{credentials}
contexts:
- name: {context}
  context:
    cluster: {cluster}
    user: {user}
current-context: {context}
"""


def with_certificate(cluster: Cluster, authority: bytes, user: str, certificate: bytes, key: bytes) -> str:
    """Return a kubeconfig with everything inside it; the arguments are PEM."""
    return _render(
        cluster, authority, user, {"client-certificate-data": _b64(certificate), "client-key-data": _b64(key)}
    )


def with_token(cluster: Cluster, authority: bytes, token: str) -> str:
    """Return the kubeconfig that a kubelet joins with."""
    return _render(cluster, authority, "tls-bootstrap-token-user", {"token": token})


def bindings() -> dict[str, Any]:
    """Return what gives the groups in our certificates and tokens their rights: a List for ``kubectl apply``."""
    items = [
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
        }
        for name, (role, group) in BINDINGS.items()
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _render(cluster: Cluster, authority: bytes, user: str, credentials: Mapping[str, str]) -> str:
    quoted = {  # JSON strings are YAML strings
        "cluster": json.dumps(cluster.name), "server": json.dumps(cluster.server), "user": json.dumps(user),
        "context": json.dumps(f"{user}@{cluster.name}"),
    }  # fmt: skip
    lines = "\n".join(f"    {name}: {value}" for name, value in credentials.items())
    return TEMPLATE.format(**quoted, authority=_b64(authority), credentials=lines)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
