"""Checks certificates that are there, or come from outside: each problem is a line. Rules: RFC 5280, section 6."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from imagebuilder.pki.certificates import USAGES, Key, belong, extension_of, names_of, subject_of
from imagebuilder.pki.cluster import Spec

MIN_RSA = 2048  # bits; NIST SP 800-57


def authority_problems(certificate: x509.Certificate, now: dt.datetime) -> list[str]:
    """Return why a certificate cannot be an authority, one line each."""
    lines = _time_problems(certificate, now)
    constraints = extension_of(certificate, x509.BasicConstraints)
    usage = extension_of(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        lines.append("it is no authority: its basic constraints do not say CA")
    if usage is not None and not usage.key_cert_sign:
        lines.append("it may not sign certificates: its key usage does not say so")
    if not certificate.subject.rdns:
        lines.append("it has no subject")
    public = certificate.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < MIN_RSA:
            lines.append(f"its RSA key has {public.key_size} bits; {MIN_RSA} are the least")
    elif not isinstance(public, ec.EllipticCurvePublicKey):
        lines.append("its key is neither RSA nor EC")
    return lines


def leaf_problems(
    chain: Sequence[x509.Certificate], spec: Spec, issuer: x509.Certificate, key: Key | None, now: dt.datetime
) -> list[str]:
    """Return why a certificate is not good for its purpose, one line each.

    Args:
        chain: the certificate, then the authorities between it and ``issuer``, in order.
        spec: what it must be; further names are allowed.
        issuer: the authority that is trusted.
        key: what it must be the certificate of; None where the key is not here.
        now: when it must be valid.
    """
    leaf = chain[0]
    lines = [] if key is None or belong(key, leaf) else ["it is not the certificate of its key"]
    lines += _time_problems(leaf, now) + _chain_problems(chain, issuer, now)
    constraints = extension_of(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        lines.append("it is an authority itself")
    usage, extended = extension_of(leaf, x509.KeyUsage), extension_of(leaf, x509.ExtendedKeyUsage)
    if usage is not None and not usage.digital_signature:
        lines.append("its key usage does not allow signatures, which TLS needs")
    for wanted in spec.usages:
        if extended is None or USAGES[wanted] not in extended:
            lines.append(f"it is not for a TLS {wanted}: its extended key usage does not say so")
    if _identity(leaf.subject) != _identity(subject_of(spec)):
        lines.append(f"its subject is {leaf.subject.rfc4514_string()}, not {subject_of(spec).rfc4514_string()}")
    if missing := [name for name in spec.sans if name not in names_of(leaf)]:
        lines.append(f"it lacks the names {', '.join(missing)}")
    return lines


def _chain_problems(chain: Sequence[x509.Certificate], issuer: x509.Certificate, now: dt.datetime) -> list[str]:
    """Follow a chain to the trusted authority; every step is signed by the next one, an authority."""
    lines: list[str] = []
    for below, above in zip(chain, [*chain[1:], issuer], strict=True):
        try:
            below.verify_directly_issued_by(above)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return [*lines, f"it was not issued by {above.subject.rfc4514_string()}"]
    for depth, between in enumerate(chain[1:]):
        lines += [f"{between.subject.rfc4514_string()}: {line}" for line in authority_problems(between, now)]
        lines += _length_problems(between, depth)
    return lines + _length_problems(issuer, len(chain) - 1)


def _length_problems(certificate: x509.Certificate, between: int) -> list[str]:
    constraints = extension_of(certificate, x509.BasicConstraints)
    allowed = constraints.path_length if constraints is not None else None
    if allowed is None or between <= allowed:
        return []
    return [f"{certificate.subject.rfc4514_string()} allows {allowed} authorities below it; there are {between}"]


def _time_problems(certificate: x509.Certificate, now: dt.datetime) -> list[str]:
    if now > certificate.not_valid_after_utc:
        return [f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"]
    if now < certificate.not_valid_before_utc:
        return [f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is the clock right?"]
    return []


def _identity(name: x509.Name) -> list[list[str]]:
    """Return what the API server takes from a subject: the user and the groups."""
    kinds = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    return [sorted(str(one.value) for one in name.get_attributes_for_oid(kind)) for kind in kinds]
