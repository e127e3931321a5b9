"""Authorities that exist, and signers elsewhere: what is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from imagebuilder.errors import CertificateError, UsageError
from imagebuilder.pki.certificates import Key, belong, chain_pem, names_of
from imagebuilder.pki.changes import init, issue, renew
from imagebuilder.pki.cluster import specs, stated
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.listing import listing
from imagebuilder.pki.outside import import_authority, take_in
from tests.unit.pki_helpers import NOW, TERMS, at, files, leaf, made, new_ca, outside_answer, pem, verify

LOCALHOST = x509.DNSName("localhost")
Pair = tuple[x509.Certificate, Key]


@pytest.fixture(scope="module")
def rsa_ca() -> Pair:
    return new_ca("rsa")


@pytest.fixture(scope="module")
def ec_ca() -> Pair:
    return new_ca("ec384")


def take(folder: Folder, name: str, pair: Pair, *, key: bool = True) -> None:
    certificate, secret = pem(pair)
    import_authority(folder, name, ("ca.crt", certificate), ("ca.key", secret) if key else None, NOW)


@pytest.fixture
def outside(tmp_path: Path, ec_ca: Pair) -> Folder:
    """A PKI whose cluster authority has its key elsewhere."""
    folder = Folder(tmp_path / "pki")
    take(folder, "ca", ec_ca, key=False)
    init(folder, stated("demo"), TERMS)
    issue(folder, "node-1", ["10.0.0.11"], TERMS)
    return folder


def answer(folder: Folder, name: str, ca: Pair, **changes: object) -> bytes:
    request = folder.request(name)
    assert request is not None
    return chain_pem([outside_answer(request, ca, **changes)])  # type: ignore[arg-type]


def pending(folder: Folder) -> list[str]:
    return sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*.csr"))


# --- authorities ---


@pytest.mark.parametrize("kind", ["rsa_ca", "ec_ca"])
def test_an_authority_that_exists_issues_our_certificates(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    pair: Pair = request.getfixturevalue(kind)
    folder = Folder(tmp_path / "pki")
    take(folder, "ca", pair)
    assert (folder.path / "ca.key").stat().st_mode & 0o777 == 0o600
    done = {one.name: one.what for one in init(folder, stated("demo"), TERMS)}
    assert (done["ca"], done["etcd/ca"], done["apiserver"]) == ("kept", "made", "made")
    assert pending(folder) == []
    certificate = leaf(folder, "apiserver")
    assert certificate.issuer == pair[0].subject
    verify(certificate, pair[0], "server", name=LOCALHOST)
    assert certificate.signature_hash_algorithm is not None
    assert certificate.signature_hash_algorithm.name == {"rsa_ca": "sha256", "ec_ca": "sha384"}[kind]
    assert {row.status for row in listing(folder, NOW)[1]} == {"ok"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"ca": False}, "basic constraints do not say CA"),
        ({"sign": False}, "may not sign certificates"),
        ({"days": (-10, -1)}, "it expired on 2026-11-23"),
        ({"days": (1, 10)}, "it is not valid before 2026-11-25"),
        ({"kind": "rsa1024"}, "has 1024 bits; 2048 are the least"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_an_authority_is_refused(tmp_path: Path, bad: dict[str, object], said: str) -> None:
    with pytest.raises(CertificateError) as caught:
        take(Folder(tmp_path / "pki"), "ca", new_ca(**bad))  # type: ignore[arg-type]
    assert said in caught.value.context
    assert not (tmp_path / "pki").exists()


def test_keys_that_do_not_fit_are_refused(tmp_path: Path, ec_ca: Pair) -> None:
    certificate, secret = pem(ec_ca)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    encrypted = ec_ca[1].private_bytes(encoding, form, serialization.BestAvailableEncryption(b"secret"))
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption())
    for key, said in (
        (pem(new_ca())[1], "is not the key of"), (encrypted, "is encrypted"), (ed, "neither RSA nor EC"),
        (certificate, "no private key"), (b"", "no private key"),
    ):  # fmt: skip
        with pytest.raises(CertificateError, match=said):
            import_authority(Folder(tmp_path / "pki"), "ca", ("ca.crt", certificate), ("ca.key", key), NOW)
    for data, said in (
        (secret, "no certificate"),
        (certificate * 2, "2 certificates, not one"),
        (b"x" * 99999, "larger"),
    ):
        with pytest.raises(CertificateError, match=said):
            import_authority(Folder(tmp_path / "pki"), "ca", ("ca.crt", data), None, NOW)
    with pytest.raises(UsageError, match=r'did you mean "etcd/ca"'):
        import_authority(Folder(tmp_path / "pki"), "etcd", ("ca.crt", certificate), None, NOW)
    assert not (tmp_path / "pki").exists()


def test_a_cluster_keeps_its_authorities(tmp_path: Path, ec_ca: Pair) -> None:
    folder = made(tmp_path / "pki")
    before = files(folder.path)
    with pytest.raises(UsageError, match="has another ca already"):
        take(folder, "ca", ec_ca)
    assert files(folder.path) == before


def test_the_same_authority_twice_is_kept_and_its_key_may_come_later(outside: Folder, ec_ca: Pair) -> None:
    before = files(outside.path)
    take(outside, "ca", ec_ca, key=False)
    assert files(outside.path) == before
    take(outside, "ca", ec_ca)
    done = {one.name: one.what for one in init(outside, stated("demo"), TERMS)}
    assert (done["apiserver"], done["nodes/node-1/kubelet"]) == ("made", "made")
    assert pending(outside) == []
    assert (outside.path / "apiserver.key").read_bytes() == before["apiserver.key"]


def test_an_authority_that_was_renewed_elsewhere(outside: Folder, ec_ca: Pair) -> None:
    from imagebuilder.pki.certificates import authority_again

    later = authority_again(ec_ca[0], ec_ca[1], at(100).now, 3650)
    done = import_authority(outside, "ca", ("new.crt", chain_pem([later])), None, at(100).now)
    assert done.what == "renewed" and leaf(outside, "ca") == later
    with pytest.raises(CertificateError, match="only where it was made"):
        renew(outside, ["ca"], None, True, TERMS)
    assert [one.name for one in renew(outside, [], 36500, True, TERMS) if one.name.endswith("ca")] == [
        "etcd/ca", "front-proxy-ca",
    ]  # fmt: skip


# --- an outside signer ---


def test_requests_ask_for_what_the_certificate_must_have(outside: Folder) -> None:
    mine = [spec.name for spec in specs(outside.cluster()) if spec.authority == "ca"]
    assert pending(outside) == sorted(f"{name}.csr" for name in mine) and len(mine) == 8
    for spec in specs(outside.cluster()):
        request = outside.request(spec.name)
        if request is not None:
            key = outside.key(spec.name)
            assert request.is_signature_valid and key is not None
            assert request.public_key() == key.public_key()
            assert sorted(names_of(request)) == sorted(spec.sans)
            assert f"CN={spec.common_name}" in request.subject.rfc4514_string()
            assert request.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert not (outside.path / "admin.conf").exists()
    row = next(row for row in listing(outside, NOW)[1] if row.name == "apiserver")
    assert (row.status, row.requested, row.problems) == ("missing", True, ("apiserver.csr waits for its signer",))


def test_requests_are_written_once(outside: Folder) -> None:
    before = files(outside.path)
    done = [*init(outside, stated("demo"), TERMS), *issue(outside, "node-1", None, TERMS)]
    assert {one.what for one in done} == {"kept", "requested"}
    assert files(outside.path) == before
    issue(outside, "node-1", ["10.0.0.12"], TERMS)
    request = outside.request("nodes/node-1/kubelet")
    assert request is not None and "10.0.0.12" in names_of(request)


def test_answers_are_taken_in(outside: Folder, ec_ca: Pair) -> None:
    given = {name: answer(outside, name.removesuffix(".csr"), ec_ca) for name in pending(outside)}
    done = take_in(outside, given, NOW)
    assert {one.what for one in done} == {"made"} and len(done) == 8
    assert pending(outside) == []
    assert {row.status for row in listing(outside, NOW)[1]} == {"ok"}
    verify(leaf(outside, "nodes/node-1/kubelet"), ec_ca[0], "server", name=x509.DNSName("node-1"))
    assert "client-key-data" in (outside.path / "nodes/node-1/kubelet.conf").read_text()
    assert {one.what for one in init(outside, stated("demo"), TERMS)} == {"kept"}


def test_an_answer_over_another_authority(outside: Folder, ec_ca: Pair) -> None:
    between = new_ca(name="Department CA", parent=ec_ca, path_length=0)
    chain = answer(outside, "apiserver", between) + chain_pem([between[0], ec_ca[0]])
    take_in(outside, {"apiserver.pem": chain}, NOW)
    found = outside.chain("apiserver")
    assert found is not None and [one.subject for one in found[1:]] == [between[0].subject]
    verify(found[0], ec_ca[0], "server", name=LOCALHOST, between=found[1:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop": x509.ExtendedKeyUsage}, "it is not for a TLS server"),
        ({"drop": x509.SubjectAlternativeName}, "it lacks the names kubernetes, kubernetes.default,"),
        ({"subject": "somebody"}, "its subject is CN=somebody, not CN=kube-apiserver"),
        ({"days": -0.1}, "it expired on"),
        ({"start": 2}, "it is not valid before"),
    ],
    ids=["purpose", "names", "subject", "expired", "early"],
)
def test_an_answer_that_is_not_what_was_asked_for(
    outside: Folder, ec_ca: Pair, changes: dict[str, object], said: str
) -> None:
    before = files(outside.path)
    good = answer(outside, "scheduler", ec_ca)
    with pytest.raises(CertificateError, match="nothing was imported") as caught:
        take_in(outside, {"bad.crt": answer(outside, "apiserver", ec_ca, **changes), "good.crt": good}, NOW)
    assert f"bad.crt: for apiserver: {said}" in caught.value.context
    assert "good.crt" not in caught.value.context
    assert files(outside.path) == before


def test_answers_of_another_signer_or_for_another_key(outside: Folder, ec_ca: Pair, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    take(other, "ca", ec_ca, key=False)
    init(other, stated("demo"), TERMS)
    short = new_ca(name="No more below", parent=ec_ca, path_length=0)
    below = new_ca(name="Below", parent=short)
    impostor = new_ca(name="Company CA")
    no_ca = new_ca(name="A leaf", ca=False, parent=ec_ca)
    for data, said in (
        (answer(outside, "apiserver", impostor), "it was not issued by CN=Company CA"),
        (answer(other, "apiserver", ec_ca), "no key in"),
        (answer(outside, "apiserver", below) + chain_pem([below[0], short[0]]), "allows 0 authorities below it"),
        (answer(outside, "apiserver", no_ca) + chain_pem([no_ca[0]]), "CN=A leaf: it is no authority"),
        (chain_pem([ec_ca[0]]), "no key in"),
    ):
        with pytest.raises(CertificateError) as caught:
            take_in(outside, {"x.crt": data}, NOW)
        assert said in caught.value.context
    with pytest.raises(CertificateError, match=r"x\.crt: no certificate"):
        take_in(outside, {"x.crt": b"junk"}, NOW)
    twice = {name: answer(outside, "apiserver", ec_ca) for name in ("a.crt", "b.crt")}
    with pytest.raises(CertificateError) as caught:
        take_in(outside, twice, NOW)
    assert "another file is for the same" in caught.value.context


@pytest.mark.parametrize("new_keys", [False, True])
def test_a_renewal_elsewhere_leaves_the_old_pair_in_use(outside: Folder, ec_ca: Pair, new_keys: bool) -> None:
    take_in(outside, {name: answer(outside, name.removesuffix(".csr"), ec_ca) for name in pending(outside)}, NOW)
    before = files(outside.path)
    for _ in range(2):  # the second time, the same request waits
        done = renew(outside, ["apiserver"], None, False, at(1, new_keys=new_keys))
        assert [(one.what, one.detail) for one in done] == [("requested", "apiserver.csr")]
    waiting = files(outside.path)
    assert {name for name in waiting if waiting[name] != before.get(name)} == (
        {"apiserver.csr", "apiserver.key.new"} if new_keys else {"apiserver.csr"}
    )
    init(outside, stated("demo"), TERMS)
    assert files(outside.path) == waiting, "another command does not disturb what waits"
    done = take_in(outside, {"new.crt": answer(outside, "apiserver", ec_ca, days=200)}, NOW)
    assert [(one.name, one.what) for one in done] == [("apiserver", "renewed")]
    after, key = files(outside.path), outside.key("apiserver")
    assert (after["apiserver.key"] == before["apiserver.key"]) is not new_keys
    assert key is not None and belong(key, leaf(outside, "apiserver"))
    assert after.keys() == before.keys()
