"""Makes and checks certificates; no files are touched here. Formats: RFC 5280 (X.509), RFC 5480 (elliptic curves)."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imagebuilder.errors import CertificateError
from imagebuilder.pki.cluster import Spec
from imagebuilder.pki.table import SKEW_MINUTES

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Hash: TypeAlias = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
SERIAL_BITS = 128
MAX_CHAIN = 5  # certificates in a file: the leaf, and authorities between it and ours
MAX_PEM = 1 << 16  # bytes; five RSA certificates take 10 KiB
USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
HASHES: dict[int, Hash] = {384: hashes.SHA384(), 521: hashes.SHA512()}  # by bits of the curve


@dataclass(frozen=True, kw_only=True, slots=True)
class Issuer:
    """An authority; without a key, certificates come from an outside signer."""

    name: str
    certificate: x509.Certificate
    key: Key | None


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """Return a key as PKCS #8 PEM, which Go and OpenSSL read alike."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: Key) -> bytes:
    """Return the public half of a key as SPKI PEM."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip


def spki(key: CertificatePublicKeyTypes) -> bytes:
    """Return a public key as SPKI DER: equal keys have equal bytes."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def belong(key: Key, certificate: x509.Certificate) -> bool:
    """Return whether a key is a certificate's."""
    return spki(key.public_key()) == spki(certificate.public_key())


def spki_hash(certificate: x509.Certificate) -> str:
    """Return kubeadm's hash of an authority, as ``--discovery-token-ca-cert-hash`` takes it."""
    return "sha256:" + hashlib.sha256(spki(certificate.public_key())).hexdigest()


def chain_pem(chain: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as PEM."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)


def request_pem(request: x509.CertificateSigningRequest) -> bytes:
    """Return a request as PEM."""
    return request.public_bytes(serialization.Encoding.PEM)


def load_key(data: bytes, where: str) -> Key:
    """Return a key from PEM.

    Raises:
        CertificateError: it is none, encrypted, or of a kind that certificates here cannot be signed with.
    """
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as error:
        hint = f"openssl pkey -in {where} -out decrypted.key"
        raise CertificateError(f"{where}: the key is encrypted", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{where}: no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateError(f"{where}: the key is neither RSA nor EC")
    return key


def load_chain(data: bytes, where: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, in its order, each parsed to its end.

    Raises:
        CertificateError: there is none, one is damaged, or there are too many.
    """
    if len(data) > MAX_PEM:
        raise CertificateError(f"{where}: larger than {MAX_PEM >> 10} KiB: no certificate")
    try:
        chain = x509.load_pem_x509_certificates(data)
        for one in chain:
            _ = one.extensions, one.public_key(), one.subject, one.issuer  # these are parsed only when they are asked
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError(f"{where}: no certificate in PEM that can be read", context=str(error)) from error
    if len(chain) > MAX_CHAIN:
        raise CertificateError(f"{where}: {len(chain)} certificates; {MAX_CHAIN} at most")
    return chain


def load_request(data: bytes, where: str) -> x509.CertificateSigningRequest:
    """Return a certificate signing request from PEM.

    Raises:
        CertificateError: it is none.
    """
    try:
        return x509.load_pem_x509_csr(data)
    except ValueError as error:
        raise CertificateError(f"{where}: no certificate signing request") from error


def authority(common_name: str, key: Key, now: dt.datetime, days: int) -> x509.Certificate:
    """Return a self-signed authority that signs leaves only."""
    name, public = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), key.public_key()
    subject_key = x509.SubjectKeyIdentifier.from_public_key(public)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(ca=True), True),
        (subject_key, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key), False),
    ]
    start = _start(now)
    builder = _builder(name, name, public, start, start + dt.timedelta(days=days), extensions)
    return builder.sign(key, _hash(key))


def authority_again(old: x509.Certificate, key: Key, now: dt.datetime, days: int) -> x509.Certificate:
    """Return a self-signed authority for another period. All that its certificates refer to stays: key, name, id."""
    extensions = [(one.value, one.critical) for one in old.extensions]
    start = _start(now)
    builder = _builder(old.subject, old.subject, key.public_key(), start, start + dt.timedelta(days=days), extensions)
    return builder.sign(key, _hash(key))


def issue(
    spec: Spec, public_key: CertificatePublicKeyTypes, issuer: Issuer, now: dt.datetime, days: int
) -> x509.Certificate:
    """Return a certificate; it never outlives its issuer, which must be valid and have its key."""
    assert issuer.key is not None
    start = max(_start(now), issuer.certificate.not_valid_before_utc)
    end = min(_start(now) + dt.timedelta(days=days), issuer.certificate.not_valid_after_utc)
    extensions = [
        *_extensions(spec),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (_authority_key(issuer.certificate), False),
    ]
    builder = _builder(subject_of(spec), issuer.certificate.subject, public_key, start, end, extensions)
    return builder.sign(issuer.key, _hash(issuer.key))


def request(spec: Spec, key: Key) -> x509.CertificateSigningRequest:
    """Return a request for an outside signer, with all extensions that the certificate is to have."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_of(spec))
    for extension, critical in _extensions(spec):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, _hash(key))


def same_request(one: x509.CertificateSigningRequest, other: x509.CertificateSigningRequest) -> bool:
    """Return whether two requests ask for the same: their bytes differ, as EC signatures do each time."""
    same = one.subject == other.subject and list(one.extensions) == list(other.extensions)
    return same and spki(one.public_key()) == spki(other.public_key())


def names_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the DNS names and IP addresses of a certificate or a request."""
    names = extension_of(holder, x509.SubjectAlternativeName)
    if names is None:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def subject_of(spec: Spec) -> x509.Name:
    """Return the subject of a certificate to be."""
    organization = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, spec.organization)] if spec.organization else []
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, spec.common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: CertificatePublicKeyTypes,
    start: dt.datetime,
    end: dt.datetime,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        subject_name=subject, issuer_name=issuer, public_key=public, not_valid_before=start, not_valid_after=end,
        serial_number=1 + secrets.randbits(SERIAL_BITS),
    )  # fmt: skip
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder


def _extensions(spec: Spec) -> list[tuple[x509.ExtensionType, bool]]:
    """Return the extensions of a leaf, and whether each is critical; key identifiers are the signer's to add."""
    found: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(ca=False), True),
        (x509.ExtendedKeyUsage([USAGES[usage] for usage in spec.usages]), False),
    ]
    if spec.sans:
        found.append((x509.SubjectAlternativeName([_general(name) for name in spec.sans]), False))
    return found


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return what a key is for. RFC 5480, section 3: an EC key encrypts nothing."""
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _authority_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = extension_of(certificate, x509.SubjectKeyIdentifier)
    if own is not None:
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    public = certificate.public_key()
    assert isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def extension_of(
    holder: x509.Certificate | x509.CertificateSigningRequest, kind: type[_Extension]
) -> _Extension | None:
    """Return an extension, or None where there is none."""
    try:
        return holder.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _hash(key: Key) -> Hash:
    bits = key.curve.key_size if isinstance(key, ec.EllipticCurvePrivateKey) else 0
    return HASHES.get(bits, hashes.SHA256())


def _start(now: dt.datetime) -> dt.datetime:
    return now.replace(microsecond=0) - dt.timedelta(minutes=SKEW_MINUTES)
