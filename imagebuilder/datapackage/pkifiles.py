"""What a data package takes from a PKI folder: files, in kubeadm's layout, as ``imagebuilder pki`` writes them."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imagebuilder.datapackage.cluster import Cluster, Node
from imagebuilder.errors import DataError, HostError
from imagebuilder.strict import wrong

MAX_FILE = 256 << 10  # bytes; a certificate has 1 KB, a kubeconfig 4
CA, INFO, BOOTSTRAP = "ca.crt", "cluster.json", "bootstrap.conf"
_TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")  # bootstrap tokens, kubeadm's and the API server's


class Pki:
    """A PKI folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, cluster: Cluster) -> None:
        """Refuse a folder that was made for another cluster, or whose certificates name other addresses.

        Raises:
            DataError: ``cluster.json`` says something else than ``cluster.toml``.
            HostError: it cannot be read.
        """
        path = self.folder / INFO
        if not path.is_file():
            return  # made by another tool
        try:
            said = json.loads(read(path, ""))
        except ValueError as error:
            raise DataError(f"{path} is not JSON", context=str(error)) from error
        said = said if isinstance(said, dict) else {}
        pairs: list[tuple[str, str, Any]] = [("name", "name", cluster.name)]
        if cluster.workers:
            pairs += [
                ("api_server", "server", cluster.api_server),
                ("service_cidrs", "serviceCidrs", list(cluster.service_cidrs)),
                ("dns_domain", "dnsDomain", cluster.dns_domain),
            ]
        lines = [
            f"cluster.toml has {ours} = {value!r}, {path} has {theirs} = {said[theirs]!r}"
            for ours, theirs, value in pairs
            if said.get(theirs, value) != value
        ]
        if lines:
            raise wrong(str(path), lines)

    def ca(self) -> bytes:
        """Return the certificate of the cluster's authority, in PEM."""
        return read(self.folder / CA, f"imagebuilder pki init --dir {self.folder}")

    def kubeconfig(self, node: str) -> bytes:
        """Return the kubeconfig with a node's own client certificate."""
        return read(self.folder / "nodes" / node / "kubelet.conf", self._issue(node))

    def serving(self, node: str) -> tuple[bytes, bytes] | None:
        """Return certificate and key that a kubelet serves with, or None where none was issued.

        Raises:
            HostError: one of the two is missing.
        """
        certificate, key = (self.folder / "nodes" / node / name for name in ("kubelet.crt", "kubelet.key"))
        if not certificate.exists() and not key.exists():
            return None
        return read(certificate, self._issue(node)), read(key, self._issue(node))

    def _issue(self, node: str) -> str:
        return f"imagebuilder pki issue {node} --dir {self.folder}"


def bootstrap_token(node: Node, ca: bytes, folder: Path) -> str:
    """Return a worker's bootstrap token, when the authority is the one that is pinned.

    Args:
        node: the worker.
        ca: the authority's certificate, in PEM.
        folder: of the PKI, whose own token is taken unless the node names a file.

    Raises:
        HostError: the file cannot be read, or others may read it.
        DataError: it holds no token, or the authority is another one.
    """
    assert node.bootstrap is not None
    hint = f"imagebuilder pki token --dir {folder}"
    path = node.bootstrap.token_file or folder / BOOTSTRAP
    text = _token(read(path, hint).decode(errors="replace"))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise HostError(f"{path} may be read by others", hint=f"chmod 600 {path}")
    if not _TOKEN.fullmatch(text):
        raise DataError(f"{path} holds no bootstrap token", hint=hint)
    found = ca_hash(ca)
    if node.bootstrap.ca_hash not in ("", found):
        lines = f"pki folder   {found}\ncluster.toml {node.bootstrap.ca_hash}"
        raise DataError(f"{node.name}: the cluster's CA is not the one that ca_hash pins", context=lines)
    return text


def _token(text: str) -> str:
    """Return the token in a file: it alone, or that of a kubeconfig's first user."""
    try:
        match yaml.safe_load(text):
            case {"kind": "Config", "users": [{"user": {"token": str(token)}}, *_]}:
                return token
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # it is not shown: there is a secret in it
    return text.strip()


def ca_hash(ca: bytes) -> str:
    """Return what kubeadm calls the hash of a CA: sha256 of its SubjectPublicKeyInfo.

    Raises:
        DataError: this is no certificate.
    """
    try:
        key = x509.load_pem_x509_certificate(ca).public_key()
    except ValueError as error:
        raise DataError("ca.crt is no certificate in PEM") from error
    return f"sha256:{hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()}"


def read(path: Path, hint: str, limit: int = MAX_FILE) -> bytes:
    """Return a small file: of at most ``limit`` bytes.

    Raises:
        HostError: it cannot be read.
        DataError: it is not small.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint=hint) from error
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit >> 10} KiB", hint=hint)
    return data
