"""The proof of the PKI: a real control plane runs with it, and knows everyone by the right name."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imagebuilder.datapackage.addons import render_addons
from imagebuilder.datapackage.crosswise import load_cluster
from imagebuilder.errors import ToolMissingError, UnreachableError, UnresolvableError
from imagebuilder.pki.changes import init
from imagebuilder.pki.cluster import specs, stated
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.kubeconfig import BOOTSTRAPPERS
from imagebuilder.pki.token import make_token
from tests.e2e.conftest import ROOT
from tests.e2e.controlplane import LEASES, ControlPlane, control_plane, holder
from tests.e2e.controlplane_programs import build_programs
from tests.unit.pki_helpers import TERMS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]  # a cold build of the programs takes minutes
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    try:
        programs = build_programs()
    except (ToolMissingError, UnreachableError, UnresolvableError) as error:
        pytest.skip(f"no programs of a control plane: {error}")
    with control_plane(tmp_path_factory.mktemp("plane"), programs, nodes={"node-1": ["10.0.2.15"]}) as running:
        yield running
        assert all(child.poll() is None for child in running.children.values()), "all of it still runs"
    assert all(child.poll() is not None for child in running.children.values())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), 5)


def who(plane: ControlPlane, **how: object) -> tuple[str, set[str]]:
    answer = plane.post(REVIEWS, REVIEW, **how)
    assert answer.status == 201, answer
    info = answer.data["status"]["userInfo"]
    return info["username"], set(info["groups"]) - {"system:authenticated"}


def node(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def test_the_api_server_is_ready_and_its_controllers_lead(plane: ControlPlane) -> None:
    answer = plane.get("/readyz?verbose", user="admin")
    assert answer.status == 200 and "[+]etcd ok" in answer.data and "readyz check passed" in answer.data
    assert all(holder(plane, name) for name in LEASES)
    assert plane.get("/version").data["gitVersion"].startswith("v1.35.")


def test_everyone_is_known_by_the_right_name(plane: ControlPlane) -> None:
    """User and groups of every client certificate of the cluster's authority are what the table says."""
    mine = [spec for spec in specs(plane.pki.cluster()) if spec.authority == "ca" and "client" in spec.usages]
    assert len(mine) == 6
    for spec in mine:
        assert who(plane, user=spec.name) == (spec.common_name, {spec.organization} - {""})


def test_an_administrator_has_rights_once_the_bindings_are_there(plane: ControlPlane) -> None:
    assert plane.get("/api/v1/nodes", user="admin").status == 403
    assert plane.get("/api/v1/nodes", user="super-admin").status == 200
    plane.apply("cluster-admins.json")
    plane.wait("the bindings count", lambda: plane.get("/api/v1/nodes", user="admin").status == 200)


def test_a_kubelet_may_be_itself_and_nobody_else(plane: ControlPlane) -> None:
    kubelet = "nodes/node-1/kubelet-client"
    assert plane.post("/api/v1/nodes", node("node-1"), user=kubelet).status == 201
    refused = plane.post("/api/v1/nodes", node("node-2"), user=kubelet)
    assert refused.status == 403 and 'node "node-1" is not allowed to modify node "node-2"' in refused.data["message"]
    assert plane.get("/api/v1/nodes/node-1", user=kubelet).status == 200
    assert plane.get("/api/v1/secrets", user=kubelet).status == 403


def test_other_authorities_are_refused(plane: ControlPlane, tmp_path: Path) -> None:
    foreign = Folder(tmp_path / "pki")
    init(foreign, stated("e2e"), TERMS)
    assert plane.post(REVIEWS, REVIEW, user="super-admin", pki=foreign).status == 401
    for name in ("front-proxy-client", "etcd/server", "apiserver-etcd-client"):
        assert plane.post(REVIEWS, REVIEW, user=name).status == 401
    nobody = plane.post(REVIEWS, REVIEW, user="")
    assert nobody.status == 403 and 'User "system:anonymous" cannot create' in nobody.data["message"]
    stranger = ssl.create_default_context(cafile=foreign.path / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", plane.port), 30) as link,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.wrap_socket(link, server_hostname="127.0.0.1")


@pytest.mark.parametrize(("user", "good"), [("etcd/healthcheck-client", True), ("super-admin", False), ("", False)])
def test_etcd_believes_its_own_authority_only(plane: ControlPlane, user: str, good: bool) -> None:
    context = ssl.create_default_context(cafile=plane.pki.path / "etcd/ca.crt")
    if user:
        context.load_cert_chain(plane.pki.path / f"{user}.crt", plane.pki.path / f"{user}.key")
    link = http.client.HTTPSConnection("127.0.0.1", plane.etcd, timeout=30, context=context)
    refused = pytest.raises((ssl.SSLError, ConnectionError))  # an alert, or its end of the line when we still write
    with contextlib.closing(link), contextlib.nullcontext() if good else refused:
        link.request("GET", "/health")
        assert json.loads(link.getresponse().read())["health"] == "true"


@pytest.mark.parametrize("name", ["127.0.0.1", "10.0.2.2", "10.96.0.1", "localhost", "kubernetes.default.svc"])
def test_the_api_server_is_believed_under_its_names(plane: ControlPlane, name: str) -> None:
    context = ssl.create_default_context(cafile=plane.pki.path / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", plane.port), 30) as link,
        context.wrap_socket(link, server_hostname=name),
    ):
        pass


def test_a_service_accounts_token_is_signed_with_our_key(plane: ControlPlane) -> None:
    account = "/api/v1/namespaces/kube-system/serviceaccounts/token-cleaner"
    plane.wait("the controllers' accounts are there", lambda: plane.get(account).status == 200)
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    token = plane.post(f"{account}/token", asked).data["status"]["token"]
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header["alg"] == "ES256"
    name, groups = who(plane, user="", token=token)
    assert name == "system:serviceaccount:kube-system:token-cleaner" and "system:serviceaccounts" in groups


def test_a_node_joins_with_a_token_and_gets_its_certificate(plane: ControlPlane) -> None:
    """What a kubelet does with bootstrap.conf: the controller manager signs with our authority."""
    joining = make_token(plane.pki, dt.datetime.now(dt.UTC))
    plane.apply("cluster-admins.json")
    plane.apply("bootstrap-token.json")
    secret = json.loads((plane.pki.path / "bootstrap-token.json").read_text())["stringData"]["token-secret"]
    token = f"{joining.id}.{secret}"
    plane.wait("the token counts", lambda: plane.post(REVIEWS, REVIEW, user="", token=token).status == 201)
    assert who(plane, user="", token=token) == (
        f"system:bootstrap:{joining.id}", {"system:bootstrappers", BOOTSTRAPPERS},
    )  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.ORGANIZATION_NAME, "system:nodes"), (NameOID.COMMON_NAME, "system:node:node-9")]
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    spec = {
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
        "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
    }  # fmt: skip
    body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "spec": spec}
    made = plane.post(REQUESTS, body | {"metadata": {"name": "node-9"}}, user="", token=token)
    assert made.status == 201, made

    def signed() -> str:
        return str(plane.get(f"{REQUESTS}/node-9").data["status"].get("certificate", ""))

    plane.wait("the request is approved and signed", lambda: bool(signed()))
    certificate = x509.load_pem_x509_certificate(base64.b64decode(signed()))
    authority = plane.pki.chain("ca")
    assert authority is not None
    certificate.verify_directly_issued_by(authority[0])
    assert certificate.subject.rfc4514_string() == "CN=system:node:node-9,O=system:nodes"


def collection(plane: ControlPlane, item: dict[str, Any]) -> str:
    """Return where objects of this kind are made: as the API server says, and as kubectl finds out."""
    version = item["apiVersion"]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    (found,) = (
        one for one in plane.get(base).data["resources"] if one["kind"] == item["kind"] and "/" not in one["name"]
    )
    return f"{base}/namespaces/{item['metadata']['namespace']}/{found['name']}" if found["namespaced"] else (
        f"{base}/{found['name']}"
    )  # fmt: skip


def test_the_addons_are_taken_without_a_word_and_their_pods_are_made(plane: ControlPlane) -> None:
    linux = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "linux", "labels": {"kubernetes.io/os": "linux"}}}
    assert plane.post("/api/v1/nodes", linux).status == 201
    files = render_addons(load_cluster(ROOT / "examples/cluster/cluster.toml"))
    assert set(files) == {"flannel.yaml", "coredns.yaml"}
    for name, data in files.items():
        for item in yaml.safe_load_all(data):
            answer = plane.post(f"{collection(plane, item)}?fieldValidation=Strict", item)
            assert answer.status == 201, (name, item["kind"], answer)

    def made(space: str, start: str) -> bool:
        found = plane.get(f"/api/v1/namespaces/{space}/pods").data["items"]
        return any(pod["metadata"]["name"].startswith(start) for pod in found)

    plane.wait("flannel's pod is made for the node", lambda: made("kube-flannel", "kube-flannel-ds-"))
    plane.wait("the pod of the DNS server is made", lambda: made("kube-system", "coredns-"))
