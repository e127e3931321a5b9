"""What is applied to a cluster once, with kubectl: the network's and the DNS server's objects.

After flannel's ``Documentation/kube-flannel.yml`` and Kubernetes' ``cluster/addons/dns/coredns``. The CNI configuration
is not among flannel's objects: it comes with each node's data package.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import yaml

from imagebuilder.datapackage.cluster import Cluster
from imagebuilder.datapackage.crosswise import dns_servers

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"
FILES = ("flannel.yaml", "coredns.yaml")


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_addons(cluster: Cluster) -> dict[str, bytes]:
    """Return the files for ``kubectl apply``, by name."""
    objects: dict[str, list[Object]] = {}
    if cluster.network == "flannel" and cluster.workers:
        objects["flannel.yaml"] = flannel(cluster)
    if "coredns" in cluster.addons:
        objects["coredns.yaml"] = coredns(cluster)
    return {name: yaml.dump_all(items, Dumper=_Dumper, sort_keys=False).encode() for name, items in objects.items()}


def flannel(cluster: Cluster) -> list[Object]:
    """Return flannel's objects: a flanneld on every node, with VXLAN between them."""
    space, name = "kube-flannel", "flannel"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    namespace = _named("v1", "Namespace", space)
    namespace["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "privileged"}
    network = {"Backend": {"Type": "vxlan"}} | _flannel_networks(cluster)
    config = _named("v1", "ConfigMap", "kube-flannel-cfg", space) | {"data": {"net-conf.json": json.dumps(network)}}
    daemon = _named("apps/v1", "DaemonSet", "kube-flannel-ds", space)
    daemon["spec"] = {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": _flannel_pod(cluster, name)},
    }
    return [namespace, *_account(name, space, name, rules), config, daemon]


def coredns(cluster: Cluster) -> list[Object]:
    """Return CoreDNS' objects."""
    space, name, labels = "kube-system", "coredns", {"k8s-app": "kube-dns"}
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    config = _named("v1", "ConfigMap", name, space) | {"data": {"Corefile": _corefile(cluster.dns_domain)}}
    deployment = _named("apps/v1", "Deployment", name, space)
    deployment["metadata"]["labels"] = labels
    deployment["spec"] = {
        "replicas": 2 if len(cluster.workers) > 1 else 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": _coredns_pod(cluster, name)},
    }
    service = _named("v1", "Service", "kube-dns", space)
    service["metadata"]["labels"] = labels | {"kubernetes.io/name": "CoreDNS"}
    addresses = dns_servers(cluster)
    service["spec"] = {
        "selector": labels, "clusterIP": addresses[0], "clusterIPs": addresses[:2],
        "ipFamilyPolicy": "PreferDualStack" if len(addresses) > 1 else "SingleStack",
        "ports": [_port("dns", "UDP", 53), _port("dns-tcp", "TCP", 53), _port("metrics", "TCP", 9153)],
    }  # fmt: skip
    return [*_account(name, space, "system:coredns", rules), config, deployment, service]


def _flannel_networks(cluster: Cluster) -> Object:
    found: Object = {}
    for cidr in cluster.pod_cidrs:
        six = ipaddress.ip_network(cidr).version == 6
        found |= {"EnableIPv6": True, "IPv6Network": cidr} if six else {"Network": cidr}
    return found if "Network" in found else found | {"EnableIPv4": False}


def _flannel_pod(cluster: Cluster, account: str) -> Object:
    plugin = {
        "name": "install-cni-plugin", "image": cluster.images.flannel_cni, "command": ["cp"],
        "args": ["-f", "/flannel", "/opt/cni/bin/flannel"],
        "volumeMounts": [{"name": "cni-plugin", "mountPath": "/opt/cni/bin"}],
    }  # fmt: skip
    volumes = [
        {"name": "run", "hostPath": {"path": "/run/flannel"}},
        {"name": "cni-plugin", "hostPath": {"path": "/opt/cni/bin"}},
        {"name": "flannel-cfg", "configMap": {"name": "kube-flannel-cfg"}},
        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
    ]
    return {
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": account,
        "initContainers": [plugin],
        "containers": [_flanneld(cluster)],
        "volumes": volumes,
    }


def _flanneld(cluster: Cluster) -> Object:
    def field(name: str, path: str) -> Object:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return {
        "name": "kube-flannel", "image": cluster.images.flannel, "command": ["/opt/bin/flanneld"],
        "args": ["--ip-masq", "--kube-subnet-mgr"],
        "resources": {"requests": {"cpu": "100m", "memory": "50Mi"}},
        "securityContext": {"privileged": False, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        "env": [
            field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
            # It makes the network that the service's own address needs, kube-proxy or none.
            {"name": "KUBERNETES_SERVICE_HOST", "value": cluster.api_host},
            {"name": "KUBERNETES_SERVICE_PORT", "value": str(cluster.api_port)},
        ],
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/flannel"},
            {"name": "flannel-cfg", "mountPath": "/etc/kube-flannel/"},
            {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
        ],
    }  # fmt: skip


def _coredns_pod(cluster: Cluster, account: str) -> Object:
    server = {
        "name": "coredns", "image": cluster.images.coredns, "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9153, "protocol": "TCP"},
        ],
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 60, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        },
    }  # fmt: skip
    return {
        "priorityClassName": "system-cluster-critical",
        "serviceAccountName": account,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [server],
        "dnsPolicy": "Default",
        "volumes": [{"name": "config-volume", "configMap": {"name": "coredns"}}],
    }


def _corefile(domain: str) -> str:
    reverse = "in-addr.arpa ip6.arpa"
    plugins = [
        "errors", "health {\n        lameduck 5s\n    }", "ready",
        f"kubernetes {domain} {reverse} {{\n        pods insecure\n        fallthrough {reverse}\n    }}",
        "prometheus :9153", "forward . /etc/resolv.conf {\n        max_concurrent 1000\n    }",
        "cache 30", "loop", "reload", "loadbalance",
    ]  # fmt: skip
    return ".:53 {\n" + "".join(f"    {plugin}\n" for plugin in plugins) + "}\n"


def _account(name: str, space: str, role: str, rules: list[Object]) -> list[Object]:
    """Return a service account and its rights."""
    binding = _named(f"{RBAC}/v1", "ClusterRoleBinding", role)
    binding["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
    binding["subjects"] = [{"kind": "ServiceAccount", "name": name, "namespace": space}]
    allowed = _named(f"{RBAC}/v1", "ClusterRole", role) | {"rules": rules}
    return [_named("v1", "ServiceAccount", name, space), allowed, binding]


def _named(version: str, kind: str, name: str, namespace: str = "") -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _port(name: str, protocol: str, number: int) -> Object:
    return {"name": name, "protocol": protocol, "port": number}
