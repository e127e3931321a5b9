"""What comes from outside: an authority that exists, and certificates that an outside signer made of our requests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from cryptography import x509

from imagebuilder.errors import CertificateError, UsageError
from imagebuilder.pki.certificates import Key, belong, load_chain, load_key, spki
from imagebuilder.pki.changes import Done, issuer_of, until, write_kubeconfigs
from imagebuilder.pki.checks import authority_problems, leaf_problems
from imagebuilder.pki.cluster import INFO, Spec, specs
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.table import AUTHORITIES
from imagebuilder.strict import did_you_mean


def import_authority(
    folder: Folder, name: str, certificate: tuple[str, bytes], key: tuple[str, bytes] | None, now: dt.datetime
) -> Done:
    """Take an authority that exists, RSA or EC, before ``init``; or a renewed one with the same key, at any time.

    Args:
        folder: is made, unless it is there.
        name: of the authority, as ``table`` has it.
        certificate: the file's name and its bytes, PEM.
        key: the same; without it, certificates come from an outside signer.
        now: when it must be valid.

    Raises:
        UsageError: there is no such authority, or another one is there already.
        CertificateError: it is no authority, it is not valid now, or the key is another one's.
    """
    known = [one.name for one in AUTHORITIES]
    if name not in known:
        raise UsageError(f'there is no authority "{name}"{did_you_mean(name, known)}')
    chain = load_chain(certificate[1], certificate[0])
    if len(chain) != 1:
        hint = "give the one certificate that clients are to trust"
        raise CertificateError(f"{certificate[0]}: {len(chain)} certificates, not one", hint=hint)
    if wrong := authority_problems(chain[0], now):
        raise CertificateError(f"{certificate[0]} cannot be an authority", context="\n".join(wrong))
    given = None if key is None else load_key(key[1], key[0])
    if given is not None and key is not None and not belong(given, chain[0]):
        raise CertificateError(f"{key[0]} is not the key of {certificate[0]}", hint="openssl pkey -pubout shows both")
    with folder.changing(create=True):
        return _take_authority(folder, name, chain[0], given)


def _take_authority(folder: Folder, name: str, certificate: x509.Certificate, key: Key | None) -> Done:
    old, old_key = folder.chain(name), folder.key(name)
    other = old is not None and (old[0].subject, spki(old[0].public_key())) != (
        certificate.subject, spki(certificate.public_key())
    )  # fmt: skip
    if other or (old_key is not None and not belong(old_key, certificate)):
        hint = "a cluster keeps its authorities; take another folder for another one"
        raise UsageError(f"{folder.path} has another {name} already", hint=hint)
    if key is not None and old_key is None:
        folder.write_key(name, key)
    if old is not None and old[0] == certificate:
        return Done(name=name, what="kept", detail=until(certificate))
    folder.write_chain(name, [certificate])
    if folder.has(INFO):
        write_kubeconfigs(folder)
    return Done(name=name, what="made" if old is None else "renewed", detail=until(certificate))


def take_in(folder: Folder, files: Mapping[str, bytes], now: dt.datetime) -> list[Done]:
    """Take certificates that an outside signer made of our requests: all of them, or none.

    Args:
        folder: of a PKI.
        files: name and bytes of each: PEM, the certificate first, then the authorities between it and ours.
        now: when they must be valid.

    Raises:
        CertificateError: one is not good for its purpose; the context has a line for each problem.
    """
    with folder.changing():
        known, lines = specs(folder.cluster()), []
        taken: dict[str, list[x509.Certificate]] = {}
        for where, data in files.items():
            chain = load_chain(data, where)
            match = next(((spec, key) for spec in known if (key := _key_of(folder, spec, chain[0]))), None)
            if match is None:
                lines.append(f"{where}: no key in {folder.path} belongs to it")
                continue
            spec, key = match
            issuer = issuer_of(folder, spec.authority).certificate
            chain = [one for one in chain if one != issuer]  # clients have the authority already
            wrong = leaf_problems(chain, spec, issuer, key, now) if chain else ["it is the authority itself"]
            if spec.name in taken and taken[spec.name] != chain:
                wrong.append("another file is for the same")
            lines += [f"{where}: for {spec.name}: {line}" for line in wrong]
            taken[spec.name] = chain
        if lines:
            raise CertificateError("nothing was imported", context="\n".join(lines))
        renewed = {name for name in taken if folder.has(f"{name}.crt")}
        for name, chain in taken.items():
            folder.write_chain(name, chain)
        write_kubeconfigs(folder)
        return [
            Done(name=name, what="renewed" if name in renewed else "made", detail=until(chain[0]))
            for name, chain in taken.items()
        ]


def _key_of(folder: Folder, spec: Spec, certificate: x509.Certificate) -> Key | None:
    """Return the key, in use or to come, that a certificate belongs to."""
    for pending in (True, False):
        key = folder.key(spec.name, pending=pending)
        if key is not None and belong(key, certificate):
            return key
    return None
