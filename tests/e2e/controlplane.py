"""A real control plane on this host, with the files of ``imagebuilder pki``: etcd, API server and what goes with it.

    with control_plane(tmp_path, build_programs(), host=FROM_GUEST, nodes={"node-1": ["10.0.2.15"]}) as plane:
        plane.apply("cluster-admins.json")
        ...  # boot a guest whose kubelet has plane.pki.path / "nodes/node-1/kubelet.conf"
        assert plane.get("/api/v1/nodes/node-1").status == 200

It listens on 127.0.0.1 only, which a guest in QEMU's user network reaches as 10.0.2.2. Nothing is left behind: the
programs end with the block, and also when this process is killed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.errors import BootError, DeadlineError
from imagebuilder.pki.changes import Terms, init, issue
from imagebuilder.pki.cluster import stated
from imagebuilder.pki.folder import Folder
from imagebuilder.process import Child, spawn, stop

HOST, FROM_GUEST = "127.0.0.1", "10.0.2.2"
SECONDS = 300.0  # three on a quiet machine; it may be a busy one
TAIL = 2000  # bytes of a log that an error shows
LEASES = ("kube-controller-manager", "kube-scheduler")
KUBE_SYSTEM = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
COLLECTIONS = {"Secret": "/api/v1/namespaces/{namespace}/secrets",
               "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    data: Any


@dataclass
class ControlPlane:
    """A control plane that runs.

    Attributes:
        pki: its certificates.
        port: of the API server, on 127.0.0.1.
        etcd: port of etcd.
        logs: a file for each program.
        children: the programs, by name, in the order in which they were started.
    """

    pki: Folder
    port: int
    etcd: int
    logs: Path
    children: dict[str, Child] = field(default_factory=dict)

    def request(
        self, method: str, path: str, body: object = None, *, user: str = "super-admin", pki: Folder | None = None,
        token: str = "", timeout: float = 30,
    ) -> Answer:  # fmt: skip
        """Ask the API server.

        Args:
            method: of HTTP.
            path: with the leading slash.
            body: plain data.
            user: name of the client certificate, as in ``table``; empty for none.
            pki: where the client certificate is from, if not from this cluster.
            token: a bearer token.
            timeout: in seconds.
        """
        context = ssl.create_default_context(cafile=self.pki.path / "ca.crt")
        if user:
            folder = (pki or self.pki).path
            context.load_cert_chain(folder / f"{user}.crt", folder / f"{user}.key")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        with contextlib.closing(http.client.HTTPSConnection(HOST, self.port, timeout=timeout, context=context)) as link:
            link.request(method, path, None if body is None else json.dumps(body), headers)
            answer = link.getresponse()
            data = answer.read()
        try:
            return Answer(answer.status, json.loads(data))
        except ValueError:
            return Answer(answer.status, data.decode())

    def get(self, path: str, **how: Any) -> Answer:
        """Ask for something."""
        return self.request("GET", path, **how)

    def post(self, path: str, body: object, **how: Any) -> Answer:
        """Make something."""
        return self.request("POST", path, body, **how)

    def apply(self, name: str) -> None:
        """Make the objects of a file of the PKI, as ``kubectl apply`` would on a new cluster."""
        data = json.loads((self.pki.path / name).read_bytes())
        for item in data["items"] if data["kind"] == "List" else [data]:
            path = COLLECTIONS[item["kind"]].format(namespace=item["metadata"].get("namespace", ""))
            answer = self.post(path, item)
            assert answer.status in (201, 409), answer

    def wait(self, what: str, true: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait until something is true.

        Raises:
            BootError: a program has ended.
            DeadlineError: it was not true in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            for name, child in self.children.items():
                if child.poll() is not None:
                    raise BootError(f"{name} ended with {child.returncode}", context=self._tail(name))
            with contextlib.suppress(OSError, http.client.HTTPException):
                if true():
                    return
            if time.monotonic() > deadline:
                context = "\n".join(f"{name}:\n{self._tail(name)}" for name in self.children)
                raise DeadlineError(f"{what}: not within {seconds:.0f} s", context=context)
            time.sleep(0.2)

    def _tail(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_bytes()[-TAIL:].decode(errors="replace")


@contextlib.contextmanager
def control_plane(
    work: Path,
    programs: Mapping[str, Path],
    *,
    host: str = HOST,
    nodes: Mapping[str, Sequence[str]] = {},
    seconds: float = SECONDS,
) -> Iterator[ControlPlane]:
    """Run a control plane: ready, and its controllers hold their leases, when the block begins.

    Args:
        work: an empty folder, for the PKI, the data and the logs.
        programs: as ``build_programs`` returns them.
        host: how kubeconfigs name this host.
        nodes: names, each with further names and addresses, that get certificates.
        seconds: how long that may take.

    Raises:
        BootError: a program ended.
        DeadlineError: it took too long.
    """
    port, client, peer = _free_ports(3)
    folder, terms = Folder(work / "pki"), Terms(now=dt.datetime.now(dt.UTC))
    init(folder, stated("e2e", server=f"https://{host}:{port}", apiserver=[FROM_GUEST]), terms)
    for node, sans in nodes.items():
        issue(folder, node, sans, terms)
    plane = ControlPlane(folder, port, client, work / "logs")
    plane.logs.mkdir()
    try:
        _start(plane, programs, "etcd", _etcd(folder.path, work / "etcd", client, peer))
        _start(plane, programs, "kube-apiserver", _apiserver(folder.path, port, client))
        plane.wait("the API server is ready", lambda: plane.get("/readyz").status == 200, seconds)
        _start(plane, programs, "kube-controller-manager", _controller_manager(folder.path, port))
        _start(plane, programs, "kube-scheduler", _scheduler(folder.path, port))
        plane.wait("leases are held", lambda: all(holder(plane, name) for name in LEASES), seconds)
        yield plane
    finally:
        for child in reversed(plane.children.values()):
            stop(child)


def holder(plane: ControlPlane, lease: str) -> str:
    """Return who holds a lease of kube-system, or an empty string."""
    answer = plane.get(f"{KUBE_SYSTEM}/{lease}")
    return str(answer.data["spec"].get("holderIdentity", "")) if answer.status == 200 else ""


def _start(plane: ControlPlane, programs: Mapping[str, Path], name: str, flags: Mapping[str, object]) -> None:
    argv = [programs[name], *(f"--{flag}={value}" for flag, value in flags.items())]
    with (plane.logs / f"{name}.log").open("wb") as log:
        plane.children[name] = spawn(argv, cwd=plane.logs, stdout=log)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


def _etcd(pki: Path, data: Path, client: int, peer: int) -> dict[str, object]:
    at, between = f"https://{HOST}:{client}", f"https://{HOST}:{peer}"
    return {
        "name": "e2e", "data-dir": data, "log-level": "warn", "unsafe-no-fsync": "true",
        "listen-client-urls": at, "advertise-client-urls": at,
        "listen-peer-urls": between, "initial-advertise-peer-urls": between, "initial-cluster": f"e2e={between}",
        "cert-file": pki / "etcd/server.crt", "key-file": pki / "etcd/server.key",
        "peer-cert-file": pki / "etcd/peer.crt", "peer-key-file": pki / "etcd/peer.key",
        "trusted-ca-file": pki / "etcd/ca.crt", "peer-trusted-ca-file": pki / "etcd/ca.crt",
        "client-cert-auth": "true", "peer-client-cert-auth": "true",
    }  # fmt: skip


def _apiserver(pki: Path, port: int, etcd: int) -> dict[str, object]:
    return {
        "bind-address": HOST, "secure-port": port, "advertise-address": FROM_GUEST, "allow-privileged": "true",
        "etcd-servers": f"https://{HOST}:{etcd}", "etcd-cafile": pki / "etcd/ca.crt",
        "etcd-certfile": pki / "apiserver-etcd-client.crt", "etcd-keyfile": pki / "apiserver-etcd-client.key",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "apiserver.crt", "tls-private-key-file": pki / "apiserver.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-client-certificate": pki / "apiserver-kubelet-client.crt",
        "kubelet-client-key": pki / "apiserver-kubelet-client.key",
        "proxy-client-cert-file": pki / "front-proxy-client.crt",
        "proxy-client-key-file": pki / "front-proxy-client.key",
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "requestheader-allowed-names": "front-proxy-client", "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group", "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "service-account-key-file": pki / "sa.pub", "service-account-signing-key-file": pki / "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-cluster-ip-range": "10.96.0.0/12", "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction", "enable-bootstrap-token-auth": "true",
    }  # fmt: skip


def _controller_manager(pki: Path, port: int) -> dict[str, object]:
    # The kubeconfig may name the host as a guest sees it; here it is 127.0.0.1.
    return {
        "kubeconfig": pki / "controller-manager.conf", "master": f"https://{HOST}:{port}", "secure-port": 0,
        "cluster-signing-cert-file": pki / "ca.crt", "cluster-signing-key-file": pki / "ca.key",
        "root-ca-file": pki / "ca.crt", "service-account-private-key-file": pki / "sa.key",
        "use-service-account-credentials": "true",
        "controllers": "*,bootstrap-signer-controller,token-cleaner-controller",
    }  # fmt: skip


def _scheduler(pki: Path, port: int) -> dict[str, object]:
    return {"kubeconfig": pki / "scheduler.conf", "master": f"https://{HOST}:{port}", "secure-port": 0}
