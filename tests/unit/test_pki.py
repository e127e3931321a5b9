"""The PKI of a cluster: what is made, how it looks, and what a renewal changes."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import re
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import VerificationError

from imagebuilder.errors import CertificateError, DataError, UsageError
from imagebuilder.pki.certificates import belong, names_of, spki
from imagebuilder.pki.changes import init, issue, renew
from imagebuilder.pki.cluster import Spec, check_node, check_san, check_server, specs, stated
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.listing import listing
from imagebuilder.pki.table import AUTHORITIES, CERTIFICATES, NODE_CERTIFICATES, render_markdown
from imagebuilder.pki.token import TOKEN, make_token
from tests.unit.pki_helpers import DAY, NOW, TERMS, at, files, leaf, made, verify

NAMES = [one.name.replace("{node}", "node-1") for one in (*CERTIFICATES, *NODE_CERTIFICATES)]
SERVER = "https://api.example.com:6443"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A PKI that no test changes."""
    return made(tmp_path_factory.mktemp("pki") / "pki", server=SERVER, apiserver=["10.0.2.2"], etcd=["etcd-1"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made(tmp_path_factory.mktemp("template") / "pki")


@pytest.fixture
def folder(template: Folder, tmp_path: Path) -> Folder:
    """A PKI of the test's own: a copy, which is quicker than a new one."""
    shutil.copytree(template.path, tmp_path / "pki")
    return Folder(tmp_path / "pki")


def spec_of(folder: Folder, name: str) -> Spec:
    return next(spec for spec in specs(folder.cluster()) if spec.name == name)


# --- what is made ---


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_is_good_for_its_purpose_and_for_no_other(shared: Folder, name: str) -> None:
    spec, certificate = spec_of(shared, name), leaf(shared, name)
    authority = leaf(shared, spec.authority)
    for usage in ("server", "client"):
        sans: list[x509.GeneralName] = [general(san) for san in spec.sans] if usage == "server" else []
        if usage in spec.usages:
            for san in sans or [None]:
                verify(certificate, authority, usage, name=san)
        else:
            with pytest.raises(VerificationError):
                verify(certificate, authority, usage, name=x509.DNSName("localhost"))
    for other in {one.name for one in AUTHORITIES} - {spec.authority}:
        with pytest.raises(VerificationError):
            verify(certificate, leaf(shared, other), spec.usages[-1], name=x509.DNSName("localhost"))


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.mark.parametrize("name", [*NAMES, *(one.name for one in AUTHORITIES)])
def test_what_every_certificate_has(shared: Folder, name: str) -> None:
    certificate, key = leaf(shared, name), shared.key(name)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    assert belong(key, certificate)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    assert 1 << 64 < certificate.serial_number <= 1 << 128
    assert certificate.not_valid_before_utc == NOW.replace(microsecond=0) - dt.timedelta(minutes=5)
    is_ca = name in {one.name for one in AUTHORITIES}
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == (3650 if is_ca else 365) * DAY
    critical = {type(one.value) for one in certificate.extensions if one.critical}
    assert critical == {x509.BasicConstraints, x509.KeyUsage}
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == ((True, 0) if is_ca else (False, None))
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (not is_ca, is_ca, is_ca)
    assert not usage.key_encipherment and not usage.key_agreement
    ids = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    issuer = certificate if is_ca else leaf(shared, spec_of(shared, name).authority)
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert ids.key_identifier == own.digest and ids.authority_cert_issuer is None


@pytest.mark.parametrize(
    ("name", "subject", "usages"),
    [
        ("apiserver", "CN=kube-apiserver", ["server"]),
        ("apiserver-kubelet-client", "CN=kube-apiserver-kubelet-client,O=kubeadm:cluster-admins", ["client"]),
        ("apiserver-etcd-client", "CN=kube-apiserver-etcd-client", ["client"]),
        ("front-proxy-client", "CN=front-proxy-client", ["client"]),
        ("etcd/server", "CN=kube-etcd", ["client", "server"]),
        ("etcd/peer", "CN=kube-etcd-peer", ["client", "server"]),
        ("etcd/healthcheck-client", "CN=kube-etcd-healthcheck-client", ["client"]),
        ("admin", "CN=kubernetes-admin,O=kubeadm:cluster-admins", ["client"]),
        ("super-admin", "CN=kubernetes-super-admin,O=system:masters", ["client"]),
        ("controller-manager", "CN=system:kube-controller-manager", ["client"]),
        ("scheduler", "CN=system:kube-scheduler", ["client"]),
        ("nodes/node-1/kubelet-client", "CN=system:node:node-1,O=system:nodes", ["client"]),
        ("nodes/node-1/kubelet", "CN=system:node:node-1,O=system:nodes", ["server"]),
    ],
)
def test_subjects_are_what_kubernetes_expects(shared: Folder, name: str, subject: str, usages: list[str]) -> None:
    certificate = leaf(shared, name)
    assert certificate.subject.rfc4514_string() == subject
    oids = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert sorted(oids[oid] for oid in extended) == usages


def test_the_table_above_is_whole() -> None:
    assert len(NAMES) == len(set(NAMES)) == 13


def test_names(shared: Folder) -> None:
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    always = ["localhost", "127.0.0.1", "::1"]
    assert sorted(names_of(leaf(shared, "apiserver"))) == sorted(
        [*service, *always, "10.96.0.1", "api.example.com", "10.0.2.2"]
    )
    assert sorted(names_of(leaf(shared, "etcd/server"))) == sorted([*always, "etcd-1"])
    assert names_of(leaf(shared, "nodes/node-1/kubelet")) == ["node-1", "node-1.example.com", "10.0.0.11"]
    assert [name for name in NAMES if names_of(leaf(shared, name))] == [
        "apiserver", "etcd/server", "etcd/peer", "nodes/node-1/kubelet",
    ]  # fmt: skip


def test_dual_stack_and_another_domain(tmp_path: Path) -> None:
    folder = made(tmp_path / "pki", node="", serviceCidrs=["10.128.0.0/16", "fd00:1::/112"], dnsDomain="k8s.example")
    assert {"10.128.0.1", "fd00:1::1", "kubernetes.default.svc.k8s.example"} <= set(names_of(leaf(folder, "apiserver")))


def test_only_the_owner_reads_what_is_secret(shared: Folder) -> None:
    for path in [shared.path, *shared.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif b"PRIVATE KEY" in path.read_bytes() or b"client-key-data" in path.read_bytes():
            assert mode == 0o600, path
            assert path.suffix in (".key", ".conf")
    assert sum(path.suffix == ".key" for path in shared.path.rglob("*")) == 13 + 3 + 2
    assert shared.exposed() == []


def test_a_kubeconfig_has_everything_inside(shared: Folder) -> None:
    found = sorted(path.relative_to(shared.path).as_posix() for path in shared.path.rglob("*.conf"))
    assert found == sorted(
        one.kubeconfig.replace("{node}", "node-1") for one in (*CERTIFICATES, *NODE_CERTIFICATES) if one.kubeconfig
    )
    text = (shared.path / "nodes/node-1/kubelet.conf").read_text()
    assert f'server: "{SERVER}"' in text and 'user: "system:node:node-1"' in text
    inside = {name: base64.b64decode(data) for name, data in re.findall(r"([\w-]+)-data: (\S+)", text)}
    assert inside["certificate-authority"] == (shared.path / "ca.crt").read_bytes()
    assert inside["client-certificate"] == (shared.path / "nodes/node-1/kubelet-client.crt").read_bytes()
    assert inside["client-key"] == (shared.path / "nodes/node-1/kubelet-client.key").read_bytes()


@pytest.mark.parametrize("name", ["sa", "package-signing"])
def test_a_key_pair_signs_and_verifies(shared: Folder, name: str) -> None:
    public = serialization.load_pem_public_key((shared.path / f"{name}.pub").read_bytes())
    key = shared.key(name)
    assert isinstance(public, ec.EllipticCurvePublicKey) and isinstance(key, ec.EllipticCurvePrivateKey)
    public.verify(key.sign(b"text", ec.ECDSA(hashes.SHA256())), b"text", ec.ECDSA(hashes.SHA256()))


def test_the_hash_of_the_authority_is_kubeadms(shared: Folder) -> None:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki(leaf(shared, "ca").public_key()))
    assert shared.cluster().caHash == f"sha256:{digest.finalize().hex()}"
    data = json.loads((shared.path / "cluster.json").read_text())
    assert (data["name"], data["server"], data["nodes"]) == (
        "demo", SERVER, {"node-1": ["10.0.0.11", "node-1.example.com"]},
    )  # fmt: skip


def test_the_page_names_every_file(shared: Folder) -> None:
    page = render_markdown()
    for one in (*AUTHORITIES, *CERTIFICATES, *NODE_CERTIFICATES):
        assert f"`{one.name.replace('{node}', '<node>')}.crt`" in page
    for path in shared.path.rglob("*.conf"):
        assert f"`{path.relative_to(shared.path).as_posix().replace('node-1', '<node>')}`" in page


# --- what is there is kept ---


def test_a_second_init_and_issue_change_nothing(folder: Folder) -> None:
    before = files(folder.path)
    done = [*init(folder, stated("demo"), at(5)), *issue(folder, "node-1", None, at(5))]
    assert {one.what for one in done} == {"kept"}
    assert files(folder.path) == before


def test_init_for_another_cluster_changes_nothing(folder: Folder) -> None:
    before = files(folder.path)
    for wanted, said in (
        (stated("other"), "name: demo, not other"),
        (stated("demo", server=SERVER), "server: https://127.0.0.1:6443, not https://api.example.com:6443"),
        (stated("demo", apiserver=["a.example"]), "apiserver: [], not ['a.example']"),
    ):
        with pytest.raises(UsageError) as caught:
            init(folder, wanted, TERMS)
        assert caught.value.context == said
    assert files(folder.path) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    mode = tmp_path.stat().st_mode
    with pytest.raises(UsageError, match="neither empty nor a PKI folder"):
        init(Folder(tmp_path), stated("demo"), TERMS)
    assert (files(tmp_path), tmp_path.stat().st_mode) == ({"letter.txt": b"dear"}, mode)


def test_init_makes_what_is_missing(folder: Folder) -> None:
    before = files(folder.path)
    for name in ("apiserver.crt", "scheduler.conf", "sa.pub", "etcd/peer.key", "etcd/peer.crt"):
        (folder.path / name).unlink()
    done = {one.name: one.what for one in init(folder, stated("demo"), TERMS)}
    assert [name for name, what in done.items() if what == "made"] == ["apiserver", "etcd/peer"]
    after = files(folder.path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        "apiserver.crt", "etcd/peer.key", "etcd/peer.crt",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ca", "etcd/ca", "front-proxy-ca"])
def test_a_lost_authority_is_never_made_again(folder: Folder, name: str) -> None:
    for suffix in (".crt", ".key"):
        (folder.path / f"{name}{suffix}").unlink()
    before = files(folder.path)
    with pytest.raises(CertificateError, match=r"ca\.crt is missing"):
        init(folder, stated("demo"), TERMS)
    assert files(folder.path) == before


@pytest.mark.parametrize("victim", ["ca", "etcd/ca"])
def test_the_wrong_key_of_an_authority_is_refused(folder: Folder, tmp_path: Path, victim: str) -> None:
    other = made(tmp_path / "other")
    (folder.path / f"{victim}.key").write_bytes((other.path / f"{victim}.key").read_bytes())
    before = files(folder.path)
    for run in (lambda: init(folder, stated("demo"), TERMS), lambda: renew(folder, [], None, False, TERMS)):
        with pytest.raises(CertificateError, match="is not the key of"):
            run()
    assert files(folder.path) == before


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_named(folder: Folder, data: bytes) -> None:
    (folder.path / "apiserver.crt").write_bytes(data)
    with pytest.raises(CertificateError, match=r"apiserver\.crt: no certificate"):
        listing(folder, NOW)
    with pytest.raises(CertificateError, match=r"apiserver\.crt: no certificate"):
        init(folder, stated("demo"), TERMS)


def test_a_damaged_cluster_file_is_named(folder: Folder) -> None:
    data = json.loads((folder.path / "cluster.json").read_text())
    (folder.path / "cluster.json").write_text(json.dumps(data | {"server": "http://x", "nods": {}}))
    with pytest.raises(DataError) as caught:
        listing(folder, NOW)
    assert 'nods: unknown key (did you mean "nodes"?)' in caught.value.context
    assert "no address of an API server" in caught.value.context


# --- nodes ---


def test_new_names_of_a_node_give_a_new_serving_certificate_only(folder: Folder) -> None:
    before = files(folder.path)
    done = {one.name: one.what for one in issue(folder, "node-1", ["10.0.0.12"], TERMS)}
    assert done == {"nodes/node-1/kubelet-client": "kept", "nodes/node-1/kubelet": "renewed"}
    assert names_of(leaf(folder, "nodes/node-1/kubelet")) == ["node-1", "10.0.0.12"]
    after = files(folder.path)
    assert {name for name in after if after[name] != before[name]} == {"cluster.json", "nodes/node-1/kubelet.crt"}


@pytest.mark.parametrize("name", ["", "Node", "a_b", "../x", "a/b", "-a", "a-", "a..b", "x" * 53, "a b", "nöde", "a\n"])
def test_bad_names_of_nodes(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "pki", node="")
    before = files(folder.path)
    with pytest.raises(UsageError):
        issue(folder, name, [], TERMS)
    assert files(folder.path) == before
    assert check_node("x" * 52) == "x" * 52


@pytest.mark.parametrize(
    "name", ["", "A.example", "10.0.0.256", "fe80::1%eth0", "a b", "*", "a.*.b", "https://x", "1.2.3"]
)
def test_bad_alternative_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_san(name)


def test_good_alternative_names() -> None:
    assert [check_san(name) for name in ("FD00::0001", "*.example.com", "10.0.2.2")] == [
        "fd00::1", "*.example.com", "10.0.2.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://a",
        "https://",
        "https://a:99999",
        "https://u:p@a",
        "https://a/x",
        "https://a?b",
        "a:6443",
        "https://[::1",
    ],
)
def test_bad_servers(url: str) -> None:
    with pytest.raises(UsageError):
        check_server(url)


@pytest.mark.parametrize("cidr", ["", "10.96.0.0", "10.96.0.1/12", "10.0.0.0/31", "x/8"])
def test_bad_service_networks(cidr: str) -> None:
    with pytest.raises(UsageError):
        stated("demo", serviceCidrs=[cidr])


@pytest.mark.parametrize("name", ["", "Demo", "a.b", "x" * 64, "-a", "../a"])
def test_bad_names_of_clusters(name: str) -> None:
    with pytest.raises(UsageError):
        stated(name)


# --- renewal ---


def test_nothing_is_renewed_early(folder: Folder) -> None:
    before = files(folder.path)
    assert renew(folder, [], 30, False, at(300)) == []
    assert files(folder.path) == before


def test_renewal_keeps_keys_and_authorities(folder: Folder) -> None:
    before = files(folder.path)
    done = renew(folder, [], 30, False, at(340))
    assert [one.name for one in done] == NAMES and {one.what for one in done} == {"renewed"}
    after = files(folder.path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{name}.crt" for name in NAMES} | {name for name in before if name.endswith(".conf")}
    for name in NAMES:
        assert leaf(folder, name).not_valid_after_utc > NOW + 700 * DAY
    _, rows = listing(folder, NOW + 340 * DAY)
    assert {row.status for row in rows} == {"ok"}


def test_renewal_with_new_keys(folder: Folder) -> None:
    before = files(folder.path)
    renew(folder, ["nodes/node-1"], None, False, at(1, new_keys=True))
    after = files(folder.path)
    names = {f"nodes/node-1/{name}" for name in ("kubelet.crt", "kubelet.key", "kubelet.conf", "kubelet-client.crt",
                                                 "kubelet-client.key")}  # fmt: skip
    assert {name for name in after if after[name] != before[name]} == names
    for name in ("nodes/node-1/kubelet", "nodes/node-1/kubelet-client"):
        key = folder.key(name)
        assert key is not None and belong(key, leaf(folder, name))
    assert after["nodes/node-1/kubelet-client.key"] in base64.b64decode(
        re.findall(r"client-key-data: (\S+)", after["nodes/node-1/kubelet.conf"].decode())[0]
    )


def test_expired_certificates_are_renewed(folder: Folder) -> None:
    assert {one.what for one in init(folder, stated("demo"), at(400))} == {"kept"}, "init says it, renew does it"
    kept = {one.name: one.detail for one in init(folder, stated("demo"), at(400))}
    assert kept["apiserver"] == "it expired on 2027-11-24 11:55 UTC"
    assert len(renew(folder, [], 0, False, at(400))) == len(NAMES)
    verify(leaf(folder, "admin"), leaf(folder, "ca"), "client", now=NOW + 401 * DAY)


def test_what_follows_cluster_json_no_more_is_renewed(tmp_path: Path) -> None:
    folder = made(tmp_path / "pki", apiserver=["old.example"])
    text = (folder.path / "cluster.json").read_text()
    (folder.path / "cluster.json").write_text(
        text.replace("old.example", "new.example").replace("127.0.0.1", "10.9.9.9")
    )
    done = renew(folder, [], 30, False, at(1))
    assert [one.name for one in done] == ["apiserver"]
    names = names_of(leaf(folder, "apiserver"))
    assert {"new.example", "10.9.9.9"} <= set(names) and "old.example" not in names
    assert 'server: "https://10.9.9.9:6443"' in (folder.path / "admin.conf").read_text()


def test_an_authority_is_renewed_only_when_asked_and_keeps_its_key(folder: Folder) -> None:
    before, old = files(folder.path), leaf(folder, "ca")
    with pytest.raises(UsageError, match="only with --ca"):
        renew(folder, ["ca"], None, False, at(1))
    assert files(folder.path) == before
    done = renew(folder, ["ca"], None, True, at(1))
    assert [(one.name, one.what) for one in done] == [("ca", "renewed")]
    new = leaf(folder, "ca")
    assert new.not_valid_after_utc - old.not_valid_after_utc == DAY and new.serial_number != old.serial_number
    assert (
        files(folder.path)["ca.key"] == before["ca.key"] and folder.cluster().caHash in before["cluster.json"].decode()
    )
    verify(leaf(folder, "apiserver"), new, "server", name=x509.DNSName("localhost"), now=NOW + 2 * DAY)
    assert base64.b64encode((folder.path / "ca.crt").read_bytes()) in (folder.path / "admin.conf").read_bytes()


def test_a_certificate_never_outlives_its_authority(folder: Folder) -> None:
    renew(folder, ["apiserver"], None, False, at(3600))
    assert leaf(folder, "apiserver").not_valid_after_utc == leaf(folder, "ca").not_valid_after_utc
    before = files(folder.path)
    with pytest.raises(CertificateError) as caught:
        renew(folder, ["apiserver"], None, False, at(3651))
    assert "it expired on 2036-11-21" in caught.value.context and "--ca" in caught.value.hint
    assert files(folder.path) == before
    with pytest.raises(CertificateError, match="cannot issue") as caught:
        issue(folder, "node-2", [], at(-1))
    assert "is the clock right?" in caught.value.context


def test_a_renewal_of_nothing_known(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'did you mean "apiserver"'):
        renew(folder, ["apisever"], None, False, TERMS)
    with pytest.raises(UsageError, match="is no PKI folder"):
        renew(Folder(tmp_path / "nowhere"), [], None, False, TERMS)
    assert not (tmp_path / "nowhere").exists()


def test_what_was_taken_away_on_purpose_is_not_renewed(folder: Folder) -> None:
    for path in folder.path.glob("super-admin.*"):
        path.unlink()
    assert "super-admin" not in [one.name for one in renew(folder, [], 30, False, at(400))]
    assert list(folder.path.glob("super-admin.*")) == []


def test_a_pair_that_does_not_belong_together_is_seen_and_renewed(folder: Folder) -> None:
    (folder.path / "scheduler.key").write_bytes((folder.path / "admin.key").read_bytes())
    _, rows = listing(folder, NOW)
    bad = [row for row in rows if row.status != "ok"]
    assert [(row.name, row.status, row.problems) for row in bad] == [
        ("scheduler", "wrong", ("it is not the certificate of its key",))
    ]
    assert [one.name for one in renew(folder, [], 30, False, at(1))] == ["scheduler"]
    assert {row.status for row in listing(folder, NOW + DAY)[1]} == {"ok"}


# --- the list ---


def test_the_list_counts_days(shared: Folder) -> None:
    cluster, rows = listing(shared, NOW)
    assert cluster.name == "demo" and len(rows) == 13 + 3 + 2
    by = {row.name: row for row in rows}
    assert (by["apiserver"].days, by["apiserver"].status, by["apiserver"].not_after) == (
        364, "ok", "2027-11-24T11:55:30Z",
    )  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{32}", by["package-signing"].key_id)
    later = {row.name: row for row in listing(shared, NOW + 340 * DAY)[1]}
    assert (later["apiserver"].days, later["apiserver"].status, later["ca"].status) == (24, "expiring", "ok")
    gone = {row.name: row for row in listing(shared, NOW + 400 * DAY)[1]}
    assert (gone["apiserver"].status, gone["apiserver"].days) == ("expired", -36)


def test_a_secret_that_others_may_read_is_said(folder: Folder) -> None:
    (folder.path / "etcd/server.key").chmod(0o640)
    (folder.path / "admin.conf").chmod(0o644)
    bad = [(row.name, row.kind) for row in listing(folder, NOW)[1] if row.status == "exposed"]
    assert bad == [("admin.conf", "file"), ("etcd/server.key", "file")]


# --- tokens ---


def test_a_token(tmp_path: Path) -> None:
    folder = made(tmp_path / "pki", server=SERVER)
    joining = make_token(folder, NOW)
    assert (joining.expires, joining.ca_hash) == ("2026-11-25T12:00:30Z", folder.cluster().caHash)
    manifest = json.loads((folder.path / "bootstrap-token.json").read_text())
    data = manifest["stringData"]
    token = f"{data['token-id']}.{data['token-secret']}"
    assert TOKEN.fullmatch(token) and data["token-id"] == joining.id
    assert manifest["metadata"] == {"name": f"bootstrap-token-{joining.id}", "namespace": "kube-system"}
    assert f"token: {token}\n" in (folder.path / "bootstrap.conf").read_text()
    for name in ("bootstrap-token.json", "bootstrap.conf"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
    assert make_token(folder, NOW).id != joining.id
