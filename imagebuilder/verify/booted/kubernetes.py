"""kubelet: that it waits, becomes healthy with a data package of this run, and runs a pod."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from imagebuilder.verify.booted.answers import sections
from imagebuilder.verify.model import BootedCheck, Subject

CONFIG = "/var/lib/kubelet/config.yaml"
MANIFESTS = "/etc/kubernetes/manifests"
WANTED = "IB_KUBERNETES"  # set in the guest's shell: the version that was asked for, also of an image without manifest
_STATIC = "file"  # kubelet's word for a pod of a manifest in a folder


def versions(text: str, subject: Subject) -> Iterator[str]:
    """Judge the versions of kubelet and kubeadm against the manifest's, or the one that was asked for."""
    parts = sections(text)
    stated = str(subject.capability("kubelet") or parts.get("wanted", "")).removeprefix("v")
    for name in ("kubelet", "kubeadm"):
        found = re.search(r"v(\d+\.\d+\.\d+\S*)", parts.get(name, ""))
        if found is None:
            yield f"{name} does not say which version it is"
        elif stated and found[1] != stated and not found[1].startswith(f"{stated}."):
            yield f"{name} is {found[1]}, not {stated}"


def waits(text: str, _: Subject) -> Iterator[str]:
    """Judge kubelet before there is a data package: enabled, not running, and the node says so.

    An image that brings a configuration of its own has nothing to wait for: there it must run.
    """
    parts = sections(text)
    if parts.get("enabled") != "enabled":
        yield f"kubelet.service is {parts.get('enabled') or 'not there'}, not enabled"
    active = parts.get("active", "")
    if parts.get("config") == "there":
        if active != "active":
            yield f"there is a {CONFIG}, but kubelet is {active}"
        return
    if active != "inactive":
        yield f"kubelet is {active or 'unknown'} without a configuration, not inactive"
    if "kubelet not started" not in parts.get("said", ""):
        yield "the node does not report that kubelet was not started"


def healthy(text: str, _: Subject) -> Iterator[str]:
    """Judge kubelet's unit and its answer on /healthz."""
    parts = sections(text)
    if parts.get("active") != "active":
        yield f"kubelet.service is {parts.get('active') or 'not there'}"
    if not re.match(r"HTTP/1\.\d 200 ", parts.get("healthz", "")):
        yield f"/healthz says {parts.get('healthz', '').partition(chr(10))[0] or 'nothing'}"


def static_pods(text: str, _: Subject) -> Iterator[str]:
    """Judge whether every static manifest is a pod with all its containers running."""
    parts = sections(text)
    manifests = parts.get("manifests", "").split()
    if not manifests:
        yield f"there is no manifest in {MANIFESTS}"
    pods = [one for one in _items(parts, "pods", "items") if _source(one) == _STATIC]
    containers = _items(parts, "containers", "containers")
    running = {one.get("podSandboxId") for one in containers if one.get("state") == "CONTAINER_RUNNING"}
    ready = {_name(one) for one in pods if one.get("id") in running and one.get("state") == "SANDBOX_READY"}
    for name in sorted({_name(one) for one in pods} - ready):
        yield f"the static pod {name} does not run"
    if len(ready) < len(manifests):
        yield f"of {len(manifests)} static pods {len(ready)} run"


def agent_status(text: str, _: Subject) -> Iterator[str]:
    """Judge the agent's status (docs/data-package.md).

    It has found no package on a node whose configuration the image brought: that is well, too.
    """
    parts = sections(text)
    try:
        status = json.loads(parts.get("status", ""))
    except ValueError:
        status = None
    if not isinstance(status, dict):
        yield "imagebuilder-agent does not tell its status"
        return
    if status.get("code") == "E_NONE" and parts.get("config") == "there":
        return
    if status.get("code") != "OK":
        yield f"{status.get('code')}: {status.get('text')}"
    if status.get("watching"):
        yield "the agent still waits for kubelet"
    yield from (f"{one.get('code')}: {one.get('text')}" for one in status.get("problems") or [])


def _items(parts: dict[str, str], name: str, key: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(parts.get(name, ""))
    except ValueError:
        return []
    return list(found.get(key) or []) if isinstance(found, dict) else []


def _source(pod: dict[str, Any]) -> str:
    return str(pod.get("annotations", {}).get("kubernetes.io/config.source", ""))


def _name(pod: dict[str, Any]) -> str:
    return str(pod.get("metadata", {}).get("name", ""))


_HAS_CONFIG = f"echo '== config'; [ ! -e {CONFIG} ] || echo there"
# bash's own: neither curl nor wget is on every node.
HEALTHZ = (
    "timeout 10 bash -c 'exec 3<> /dev/tcp/127.0.0.1/10248 && "
    'printf "GET /healthz HTTP/1.0\\r\\n\\r\\n" >&3 && head -n 1 <&3\''
)

CHECKS = (
    BootedCheck(
        id="kubelet-version",
        proves="kubelet and kubeadm are of the version that the manifest states.",
        why="A kubelet newer than its API server, or older by more than three minors, is not supported.",
        link="https://kubernetes.io/releases/version-skew-policy/",
        fix="Bake with the version that is wanted: --kubernetes.",
        command=f'echo "== wanted"; echo "${{{WANTED}:-}}"; echo "== kubelet"; kubelet --version; '
        'echo "== kubeadm"; kubeadm version -o short',
        judge=versions,
    ),
    BootedCheck(
        id="kubelet-waits",
        proves="kubelet is enabled and waits for its configuration; where the image brings one, it runs.",
        why="A kubelet that starts without its data fails over and over, or joins as the wrong node.",
        link="https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/kubelet-integration/",
        fix="ConditionPathExists=/var/lib/kubelet/config.yaml in kubelet.service.",
        command=f"echo '== enabled'; systemctl is-enabled kubelet; echo '== active'; systemctl is-active kubelet; "
        f"{_HAS_CONFIG}; echo '== said'; journalctl -b -q -u node-report -o cat --no-pager",
        judge=waits,
        before=True,
    ),
    BootedCheck(
        id="kubelet-healthy",
        proves="kubelet becomes healthy with a data package.",
        why="This is what the image is for.",
        link="https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/",
        fix="journalctl -u kubelet -u imagebuilder-agent-net.",
        command=f"echo '== active'; systemctl is-active kubelet; echo '== healthz'; {HEALTHZ}",
        judge=healthy,
    ),
    BootedCheck(
        id="static-pod-runs",
        proves="Every static pod runs: of this run's package it is one, of an image that is on the node.",
        why="Kubelet, CRI, runc, CNI and the sandbox image work only together.",
        link="https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/",
        fix="crictl pods; journalctl -u kubelet -u containerd says where it stops.",
        command=f"echo '== manifests'; ls {MANIFESTS} | grep -E '\\.(ya?ml|json)$'; echo '== pods'; "
        "crictl pods -o json; echo '== containers'; crictl ps -a -o json",
        judge=static_pods,
    ),
    BootedCheck(
        id="agent-status",
        proves="The agent has applied the data package, and found nothing to complain of.",
        why="What differs between nodes reaches them only this way.",
        link="https://theupdateframework.github.io/specification/latest/",
        fix="imagebuilder-agent status and history; the codes are in docs/data-package.md.",
        command=f"{_HAS_CONFIG}; echo '== status'; imagebuilder-agent status --json",
        judge=agent_status,
    ),
)
