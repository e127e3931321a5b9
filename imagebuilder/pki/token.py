"""Bootstrap tokens: what a node without a certificate joins with.

Format: kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens. The token is in files of mode 0600 only; it
is never printed, and a later one takes the files' place.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import secrets
import string
from dataclasses import dataclass

from imagebuilder.pki.certificates import chain_pem
from imagebuilder.pki.changes import issuer_of
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.kubeconfig import BOOTSTRAPPERS, with_token
from imagebuilder.pki.table import CLUSTER

TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")
ALPHABET = string.ascii_lowercase + string.digits
HOURS = 24  # kubeadm's
MANIFEST, KUBECONFIG = "bootstrap-token.json", "bootstrap.conf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """What is known of a token in public.

    Attributes:
        id: its public half.
        expires: as in ``2026-11-24T00:00:00Z``.
        ca_hash: what a node checks the API server's authority with.
        manifest: path of the Secret for the API server.
        kubeconfig: path of the kubeconfig that a kubelet joins with.
    """

    id: str
    expires: str
    ca_hash: str
    manifest: str
    kubeconfig: str


def make_token(folder: Folder, now: dt.datetime, hours: int = HOURS) -> Joining:
    """Make a token and write its two files.

    Raises:
        UsageError: the folder is no PKI.
        CertificateError: its authority is damaged.
    """
    with folder.changing():
        cluster = folder.cluster()
        authority = issuer_of(folder, CLUSTER).certificate
        identity, secret = _letters(6), _letters(16)
        expires = f"{now + dt.timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
        manifest = json.dumps(_secret(identity, secret, expires), indent=2) + "\n"
        folder.write(MANIFEST, manifest, secret=True)
        folder.write(KUBECONFIG, with_token(cluster, chain_pem([authority]), f"{identity}.{secret}"), secret=True)
        return Joining(
            id=identity, expires=expires, ca_hash=cluster.caHash,
            manifest=str(folder.path / MANIFEST), kubeconfig=str(folder.path / KUBECONFIG),
        )  # fmt: skip


def _letters(count: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def _secret(identity: str, secret: str, expires: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": f"bootstrap-token-{identity}", "namespace": "kube-system"},
        "stringData": {
            "description": "made by imagebuilder pki token",
            "token-id": identity,
            "token-secret": secret,
            "expiration": expires,
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": BOOTSTRAPPERS,
        },
    }
