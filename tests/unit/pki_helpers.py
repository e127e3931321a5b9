"""What the tests of the PKI share: folders with a cluster in them, and an independent verifier."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store

from imagebuilder.pki.certificates import Key, chain_pem, key_pem
from imagebuilder.pki.changes import Terms, init, issue
from imagebuilder.pki.cluster import stated
from imagebuilder.pki.folder import Folder

NOW = dt.datetime(2026, 11, 24, 12, 0, 30, 500, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
OTHER_USAGES = (
    "content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only", "key_encipherment",
)  # fmt: skip
TERMS = Terms(now=NOW)


def at(days: float, **changes: object) -> Terms:
    """The terms some days later."""
    return Terms(now=NOW + days * DAY, **changes)  # type: ignore[arg-type]


def made(path: Path, *, node: str = "node-1", **wanted: object) -> Folder:
    """A finished PKI with one node."""
    folder = Folder(path)
    init(folder, stated("demo", **wanted), TERMS)
    if node:
        issue(folder, node, ["10.0.0.11", "node-1.example.com"], TERMS)
    return folder


def leaf(folder: Folder, name: str) -> x509.Certificate:
    chain = folder.chain(name)
    assert chain is not None
    return chain[0]


def files(path: Path) -> dict[str, bytes]:
    """Every file of a folder, but for its lock."""
    found = [one for one in path.rglob("*") if one.is_file() and one.name != ".pki.lock"]
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in found}


def new_ca(
    kind: str = "ec", *, name: str = "Company CA", days: tuple[float, float] = (-1, 3650), ca: bool = True,
    sign: bool = True, path_length: int | None = None, parent: tuple[x509.Certificate, Key] | None = None,
) -> tuple[x509.Certificate, Key]:  # fmt: skip
    """An authority as other programs make them; with what can be wrong with it."""
    key: Key = (
        rsa.generate_private_key(65537, int(kind[3:] or 2048)) if kind.startswith("rsa")
        else ec.generate_private_key(ec.SECP384R1() if kind == "ec384" else ec.SECP256R1())
    )  # fmt: skip
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, key) if parent is None else (parent[0].subject, parent[1])
    usage = dict.fromkeys(OTHER_USAGES, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + days[0] * DAY)
        .not_valid_after(NOW + days[1] * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=sign, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return builder.sign(signer, hashes.SHA256()), key


def outside_answer(
    request: x509.CertificateSigningRequest, ca: tuple[x509.Certificate, Key], *, days: float = 90,
    start: float = -0.5, drop: type[x509.ExtensionType] | None = None, subject: str = "",
) -> x509.Certificate:  # fmt: skip
    """What a signer elsewhere makes of a request: the extensions that were asked for, without one of them."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]) if subject else request.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca[0].subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + start * DAY)
        .not_valid_after(NOW + days * DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca[1].public_key()), critical=False)
    )
    for one in request.extensions:
        if drop is None or not isinstance(one.value, drop):
            builder = builder.add_extension(one.value, critical=one.critical)
    return builder.sign(ca[1], hashes.SHA256())


def verify(
    certificate: x509.Certificate, authority: x509.Certificate, usage: str, *, name: x509.GeneralName | None = None,
    between: list[x509.Certificate] | None = None, now: dt.datetime = NOW,
) -> None:  # fmt: skip
    """Verify with cryptography's own verifier, the rules of the Web's PKI; raises when it says no."""
    ee = ExtensionPolicy.webpki_defaults_ee()
    if usage == "client":  # the Web wants names in them; the API server takes the subject
        ee = ee.may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    builder = PolicyBuilder().store(Store([authority])).time(now)
    builder = builder.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ee)
    if usage == "client":
        builder.build_client_verifier().verify(certificate, between or [])
    else:
        assert isinstance(name, x509.DNSName | x509.IPAddress)
        builder.build_server_verifier(name).verify(certificate, between or [])


def pem(pair: tuple[x509.Certificate, Key]) -> tuple[bytes, bytes]:
    return chain_pem([pair[0]]), key_pem(pair[1])
