"""Makes what is missing in a PKI folder, and renews what is old. What is there and good is kept."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from cryptography import x509

from imagebuilder.errors import CertificateError, UsageError
from imagebuilder.pki import certificates as certs
from imagebuilder.pki import kubeconfig
from imagebuilder.pki.checks import authority_problems, leaf_problems
from imagebuilder.pki.cluster import INFO, Cluster, Spec, check_node, check_san, node_specs, specs
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.table import AUTHORITIES, CA_DAYS, CLUSTER, KEY_PAIRS, LEAF_DAYS, Authority
from imagebuilder.strict import did_you_mean

ADMINS = "cluster-admins.json"
Old: TypeAlias = Callable[[Spec, Sequence[x509.Certificate]], bool]
What = Literal["made", "kept", "renewed", "requested"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What happened to a file or a pair of files.

    Attributes:
        name: path in the folder, without extension where it is a pair.
        what: ``requested``: there is a ``.csr`` that an outside signer has to answer.
        detail: until when it is valid, or what is wrong with what was kept.
    """

    name: str
    what: What
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How certificates are made.

    Attributes:
        now: the time.
        days: how long a certificate is valid.
        ca_days: how long an authority is.
        new_keys: whether a renewed certificate gets a new key.
    """

    now: dt.datetime
    days: int = LEAF_DAYS
    ca_days: int = CA_DAYS
    new_keys: bool = False


def init(folder: Folder, wanted: Mapping[str, Any], terms: Terms) -> list[Done]:
    """Make a PKI, or what is missing of it.

    Args:
        folder: is made, unless it is there.
        wanted: as ``cluster.stated`` returns it.
        terms: how certificates are made.

    Raises:
        UsageError: the folder is for another cluster, or holds something else.
        CertificateError: a file in it is damaged, or an authority has expired.
    """
    with folder.changing(create=True):
        if folder.has(INFO):
            _agree(folder, wanted)
        done = [_authority(folder, one, terms) for one in AUTHORITIES]
        done += [_key_pair(folder, one.name) for one in KEY_PAIRS]
        cluster, what = _cluster(folder, wanted)
        done.append(Done(name=INFO, what=what))
        done += _certificates(folder, specs(cluster), terms, lambda spec, chain: False)
        write_kubeconfigs(folder)
        return done


def issue(folder: Folder, node: str, sans: Sequence[str] | None, terms: Terms) -> list[Done]:
    """Make the certificates of a node, or what is missing of them.

    Args:
        folder: of a PKI.
        node: its name.
        sans: DNS names and addresses of its kubelet beside the name; None keeps those that are known.
        terms: how certificates are made.

    Raises:
        UsageError: a name is none.
        CertificateError: a file is damaged, or the authority has expired.
    """
    check_node(node)
    names = None if sans is None else tuple(dict.fromkeys(check_san(name) for name in sans if name != node))
    with folder.changing():
        cluster = _sound(folder)
        known = cluster.nodes.get(node)
        if known is None or (names is not None and names != known):
            cluster = cluster.model_copy(update={"nodes": {**cluster.nodes, node: names or ()}})
            _write_cluster(folder, cluster)
        done = _certificates(folder, node_specs(cluster, node), terms, partial(_other_names, folder))
        write_kubeconfigs(folder)
        return done


def renew(folder: Folder, names: Sequence[str], within: int | None, authorities: bool, terms: Terms) -> list[Done]:
    """Issue certificates anew.

    Args:
        folder: of a PKI.
        names: certificates, or folders of them (``nodes/node-1``); all by default.
        within: only what expires within so many days, or is not as it must be; None: whatever is named.
        authorities: also authorities, which keep their keys.
        terms: how certificates are made.

    Returns:
        What was renewed or requested; nothing about what was left alone.

    Raises:
        UsageError: a name is not known, or is an authority's without ``authorities``.
        CertificateError: a file is damaged, or an authority has expired or has no key here.
    """
    with folder.changing():
        cluster = _sound(folder)
        chosen = _choose(names, [spec.name for spec in specs(cluster)], authorities)
        limit = dt.timedelta.max if within is None else dt.timedelta(days=within)

        def old(spec: Spec, chain: Sequence[x509.Certificate]) -> bool:
            expires = chain[0].not_valid_after_utc - terms.now < limit
            return expires or _other_names(folder, spec, chain) or bool(problems(folder, spec, chain, terms.now))

        due = _due(folder, [one for one in AUTHORITIES if one.name in chosen], bool(names), limit, terms)
        done = [_renew_authority(folder, one, terms) for one in due]
        # What somebody took away on purpose (super-admin) is not made again, unless it is named.
        found = [spec for spec in specs(cluster) if names or folder.has(f"{spec.name}.crt")]
        done += _certificates(folder, [spec for spec in found if spec.name in chosen], terms, old)
        write_kubeconfigs(folder)  # an authority that was renewed is in all of them
        return [one for one in done if one.what != "kept"]


def problems(folder: Folder, spec: Spec, chain: Sequence[x509.Certificate], now: dt.datetime) -> list[str]:
    """Return what is wrong with a certificate of the folder, one line each."""
    issuer = issuer_of(folder, spec.authority).certificate
    return leaf_problems(chain, spec, issuer, folder.key(spec.name), now)


def _other_names(folder: Folder, spec: Spec, chain: Sequence[x509.Certificate]) -> bool:
    """Return whether a certificate has other names than it is to have; an outside signer may add some."""
    wanted, found = set(spec.sans), set(certs.names_of(chain[0]))
    outside = issuer_of(folder, spec.authority).key is None
    return not wanted <= found if outside else wanted != found


def _choose(names: Sequence[str], known: Sequence[str], authorities: bool) -> set[str]:
    mine = {one.name for one in AUTHORITIES}
    if not names:
        return {*known, *(mine if authorities else ())}
    chosen = set()
    for name in names:
        found = {one for one in (*known, *mine) if one == name or (one.startswith(f"{name}/") and one not in mine)}
        if not found:
            raise UsageError(
                f'there is no certificate "{name}"{did_you_mean(name, known)}', hint="imagebuilder pki list"
            )
        if found & mine and not authorities:
            raise UsageError(f"{name} is an authority; it is renewed only with --ca", hint=f"pki renew {name} --ca")
        chosen |= found
    return chosen


def _cluster(folder: Folder, wanted: Mapping[str, Any]) -> tuple[Cluster, What]:
    """Return what ``cluster.json`` says, after writing it where it is not there."""
    if folder.has(INFO):
        return folder.cluster(), "kept"
    fields = {key: value for key, value in wanted.items() if key not in ("apiserver", "etcd")}
    sans = {key: wanted[key] for key in ("apiserver", "etcd") if key in wanted}
    ca_hash = certs.spki_hash(issuer_of(folder, CLUSTER).certificate)
    cluster = Cluster.model_validate({**fields, "sans": sans, "caHash": ca_hash})
    _write_cluster(folder, cluster)
    return cluster, "made"


def _agree(folder: Folder, wanted: Mapping[str, Any]) -> None:
    """Check that a folder is for what is wanted, before anything in it is changed.

    Raises:
        UsageError: ``cluster.json`` says something else.
    """
    cluster = _sound(folder)
    said = {**cluster.model_dump(mode="json"), **cluster.sans.model_dump(mode="json")}
    if different := [key for key, value in wanted.items() if said[key] != value]:
        lines = "\n".join(f"{key}: {said[key]}, not {wanted[key]}" for key in different)
        hint = f"edit {folder.path / INFO}, then: imagebuilder pki renew --dir {folder.path}; or take another folder"
        raise UsageError(f"{folder.path} is there and says something else", context=lines, hint=hint)


def _sound(folder: Folder) -> Cluster:
    """Return what ``cluster.json`` says, after a look at the authorities: all are there, and nodes know the first.

    Raises:
        CertificateError: that is not so.
    """
    cluster = folder.cluster()
    found = {one.name: issuer_of(folder, one.name).certificate for one in AUTHORITIES}
    if cluster.caHash != certs.spki_hash(found[CLUSTER]):
        raise CertificateError(f"{folder.path / INFO} is of another authority than ca.crt", hint="restore ca.crt")
    return cluster


def _write_cluster(folder: Folder, cluster: Cluster) -> None:
    folder.write(INFO, json.dumps(cluster.model_dump(mode="json"), indent=2) + "\n", secret=False)


def _authority(folder: Folder, one: Authority, terms: Terms) -> Done:
    """Make an authority; one that was imported, or whose key is kept elsewhere, has a certificate only."""
    chain, key = folder.chain(one.name), folder.key(one.name)
    if chain:
        issuer_of(folder, one.name)
        missing = "" if key is not None else "its key is not here: requests go to an outside signer"
        return Done(name=one.name, what="kept", detail=missing)
    if key is None:
        key = certs.new_key()
        folder.write_key(one.name, key)
    certificate = certs.authority(one.common_name, key, terms.now, terms.ca_days)
    folder.write_chain(one.name, [certificate])
    return Done(name=one.name, what="made", detail=until(certificate))


def _due(
    folder: Folder, chosen: Sequence[Authority], named: bool, limit: dt.timedelta, terms: Terms
) -> list[Authority]:
    """Return the authorities to renew; those that are renewed elsewhere are left out, unless they were named.

    Raises:
        CertificateError: one that was named is renewed elsewhere.
    """
    due = []
    for one in chosen:
        issuer = issuer_of(folder, one.name)
        if issuer.certificate.not_valid_after_utc - terms.now >= limit:
            continue
        if issuer.key is not None and issuer.certificate.subject == issuer.certificate.issuer:
            due.append(one)
        elif named:
            hint = f"imagebuilder pki import-ca {one.name} --certificate NEW.crt --dir {folder.path}"
            raise CertificateError(f"{one.name} can be renewed only where it was made", hint=hint)
    return due


def _renew_authority(folder: Folder, one: Authority, terms: Terms) -> Done:
    """Give an authority a longer life. The key stays, so everything that it issued stays good."""
    issuer = issuer_of(folder, one.name)
    assert issuer.key is not None
    certificate = certs.authority_again(issuer.certificate, issuer.key, terms.now, terms.ca_days)
    folder.write_chain(one.name, [certificate])
    return Done(name=one.name, what="renewed", detail=until(certificate))


def issuer_of(folder: Folder, name: str) -> certs.Issuer:
    """Return an authority of the folder.

    Raises:
        CertificateError: it is not there, or its key is another one's.
    """
    chain, key = folder.chain(name), folder.key(name)
    if not chain:
        raise CertificateError(f"{folder.path / name}.crt is missing", hint="restore it from a backup")
    if key is not None and not certs.belong(key, chain[0]):
        raise CertificateError(f"{folder.path / name}.key is not the key of {name}.crt", hint="restore the right one")
    return certs.Issuer(name=name, certificate=chain[0], key=key)


def _key_pair(folder: Folder, name: str) -> Done:
    """Make a key and its public half; without the key, a public half that is there stays."""
    key = folder.key(name)
    if key is None and folder.has(f"{name}.pub"):
        return Done(name=name, what="kept", detail="the public half only")
    what: What = "kept" if key is not None else "made"
    if key is None:
        key = certs.new_key()
        folder.write_key(name, key)
    _write_changed(folder, f"{name}.pub", certs.public_pem(key), secret=False)
    return Done(name=name, what=what)


def _certificates(folder: Folder, wanted: Sequence[Spec], terms: Terms, old: Old) -> list[Done]:
    """Issue, or request, what is missing or ``old``; when one of them cannot be issued, none is."""
    chains = {spec.name: folder.chain(spec.name) for spec in wanted}
    todo = {spec.name for spec in wanted if not (chain := chains[spec.name]) or old(spec, chain)}
    for name in sorted({spec.authority for spec in wanted if spec.name in todo}):
        issuer = issuer_of(folder, name)
        if issuer.key is not None and (wrong := authority_problems(issuer.certificate, terms.now)):
            hint = f"imagebuilder pki renew {name} --ca --dir {folder.path}"
            raise CertificateError(f"{name} cannot issue certificates", context="\n".join(wrong), hint=hint)
    return [
        (_issue(folder, spec, terms) if spec.name in todo else _kept(folder, spec, chains[spec.name] or [], terms))
        for spec in wanted
    ]


def _kept(folder: Folder, spec: Spec, chain: Sequence[x509.Certificate], terms: Terms) -> Done:
    wrong = problems(folder, spec, chain, terms.now)
    return Done(name=spec.name, what="kept", detail="; ".join(wrong) or until(chain[0]))


def _issue(folder: Folder, spec: Spec, terms: Terms) -> Done:
    issuer, key = issuer_of(folder, spec.authority), folder.key(spec.name)
    there = folder.has(f"{spec.name}.crt")
    if issuer.key is None:
        return _request(folder, spec, terms)
    if key is None or (there and terms.new_keys):
        key = certs.new_key()
        folder.write_key(spec.name, key, pending=there)
    certificate = certs.issue(spec, key.public_key(), issuer, terms.now, terms.days)
    folder.write_chain(spec.name, [certificate])
    return Done(name=spec.name, what="renewed" if there else "made", detail=until(certificate))


def _request(folder: Folder, spec: Spec, terms: Terms) -> Done:
    """Write a request for an outside signer; the pair that is in use stays until the answer is imported."""
    in_use = folder.has(f"{spec.name}.crt")
    pending, waiting = folder.key(spec.name, pending=True), folder.request(spec.name)
    key = pending or (None if in_use and terms.new_keys else folder.key(spec.name))
    if key is None:
        key = certs.new_key()
        folder.write_key(spec.name, key, pending=in_use)
    request = certs.request(spec, key)
    if waiting is None or not certs.same_request(waiting, request):
        folder.write(f"{spec.name}.csr", certs.request_pem(request), secret=False)
    return Done(name=spec.name, what="requested", detail=f"{spec.name}.csr")


def write_kubeconfigs(folder: Folder) -> None:
    """Write the files that follow from others: kubeconfigs, and the bindings of our groups."""
    cluster = folder.cluster()
    authority = certs.chain_pem([issuer_of(folder, CLUSTER).certificate])
    for spec in specs(cluster):
        chain, key = folder.chain(spec.name), folder.key(spec.name)
        if spec.kubeconfig and chain and key and certs.belong(key, chain[0]):
            text = kubeconfig.with_certificate(
                cluster, authority, spec.common_name, certs.chain_pem(chain), certs.key_pem(key)
            )
            _write_changed(folder, spec.kubeconfig, text.encode(), secret=True)
    _write_changed(folder, ADMINS, json.dumps(kubeconfig.bindings(), indent=2).encode() + b"\n", secret=False)


def _write_changed(folder: Folder, name: str, data: bytes, *, secret: bool) -> None:
    if folder.text(name) != data:
        folder.write(name, data, secret=secret)


def until(certificate: x509.Certificate) -> str:
    """Return the end of a certificate, for people."""
    return f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
