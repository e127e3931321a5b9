"""Says what is in a PKI folder, and what is wrong with it."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

from imagebuilder.pki.certificates import public_pem, spki
from imagebuilder.pki.changes import issuer_of, problems
from imagebuilder.pki.checks import authority_problems
from imagebuilder.pki.cluster import Cluster, specs
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.table import AUTHORITIES, KEY_PAIRS

WITHIN = 30  # days: kubeadm's tools warn as early
KEY_ID = 32  # hex digits: how data packages name a key
Status = Literal["ok", "expiring", "expired", "missing", "wrong", "exposed"]
BAD: tuple[Status, ...] = ("expired", "wrong", "exposed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A certificate or a key.

    Attributes:
        name: path of its files in the folder, without extension.
        kind: ``authority``, ``certificate`` or ``key``; ``file``: a secret that others may read.
        status: ``expiring``: within the days asked for; ``wrong``, ``missing``: see ``problems``.
        subject, issuer: names, as RFC 4514 writes them.
        not_after: the end, as in ``2026-11-24T00:00:00Z``.
        days: until then, rounded down; negative once it has expired.
        key_here: whether its key is in the folder.
        requested: whether a request waits for an outside signer.
        key_id: of a key without a certificate: the first digits of its public half's hash.
        problems: what is wrong, one line each.
    """

    name: str
    kind: Literal["authority", "certificate", "key", "file"]
    status: Status
    subject: str = ""
    issuer: str = ""
    not_after: str = ""
    days: int | None = None
    key_here: bool = True
    requested: bool = False
    key_id: str = ""
    problems: tuple[str, ...] = ()


def listing(folder: Folder, now: dt.datetime, within: int = WITHIN) -> tuple[Cluster, list[Row]]:
    """Return what the folder is for, and a row for everything that the table wants in it.

    Raises:
        UsageError: the folder is no PKI.
        CertificateError: a file in it is damaged.
    """
    cluster = folder.cluster()
    rows = []
    for one in AUTHORITIES:
        chain = [issuer_of(folder, one.name).certificate]
        rows.append(_row(folder, one.name, "authority", chain, authority_problems(chain[0], now), now, within))
    for spec in specs(cluster):
        leaf = folder.chain(spec.name)
        wrong = problems(folder, spec, leaf, now) if leaf else []
        rows.append(_row(folder, spec.name, "certificate", leaf, wrong, now, within))
    rows += [_key_row(folder, one.name) for one in KEY_PAIRS]
    return cluster, rows + [
        Row(name=name, kind="file", status="exposed", problems=("others may read it",)) for name in folder.exposed()
    ]


def _row(
    folder: Folder,
    name: str,
    kind: Literal["authority", "certificate"],
    chain: Sequence[x509.Certificate] | None,
    wrong: Sequence[str],
    now: dt.datetime,
    within: int,
) -> Row:
    requested = folder.has(f"{name}.csr")
    if not chain:
        said = f"{name}.csr waits for its signer" if requested else "imagebuilder pki init makes it"
        return Row(name=name, kind=kind, status="missing", requested=requested, problems=(said,))
    leaf = chain[0]
    left = leaf.not_valid_after_utc - now
    status: Status = "ok" if left.days >= within else "expiring"
    if wrong:
        status = "expired" if left < dt.timedelta(0) else "wrong"
    return Row(
        name=name, kind=kind, status=status, requested=requested, problems=tuple(wrong),
        subject=leaf.subject.rfc4514_string(), issuer=leaf.issuer.rfc4514_string(),
        not_after=f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}", days=left.days, key_here=folder.has(f"{name}.key"),
    )  # fmt: skip


def _key_row(folder: Folder, name: str) -> Row:
    key, public = folder.key(name), folder.text(f"{name}.pub")
    if key is None:
        status: Status = "missing" if public is None else "ok"
        return Row(name=name, kind="key", status=status, key_here=False)
    if public != public_pem(key):
        return Row(name=name, kind="key", status="wrong", problems=(f"{name}.pub is not its public half",))
    return Row(
        name=name, kind="key", status="ok", key_id=hashlib.sha256(spki(key.public_key())).hexdigest()[:KEY_ID]
    )  # fmt: skip
