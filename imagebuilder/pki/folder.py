"""The folder of a PKI: what lies where, with which mode, and how a pair of files is replaced as one.

    cluster.json                             what the folder is for
    <name>.key  <name>.crt  <name>.pub       as ``table`` names them: ca, etcd/ca, apiserver, nodes/<node>/kubelet, ...
    *.conf                                   kubeconfigs with their certificate inside
    <name>.csr                               a request that waits for an outside signer
    <name>.key.new  <name>.crt.new           a pair that is being replaced

Keys and kubeconfigs have mode 0600, folders 0700. Every file appears whole or not at all. Whatever a killed run
left is finished or removed by the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509

from imagebuilder.content import locked, write_atomic
from imagebuilder.errors import CertificateError, UsageError
from imagebuilder.pki.certificates import Key, belong, chain_pem, key_pem, load_chain, load_key, load_request
from imagebuilder.pki.cluster import INFO, Cluster, parse_cluster
from imagebuilder.pki.table import AUTHORITIES

LOCK = ".pki.lock"
OURS = (LOCK, INFO, *(f"{one.name}.crt" for one in AUTHORITIES))  # one of them is in every folder of ours
SECRET, PUBLIC, PRIVATE_FOLDER = 0o600, 0o644, 0o700
OTHERS = 0o077  # mode bits of everybody else
SECRETS = ("*.key", "*.key.new", "*.conf", "bootstrap-token.json")
NEXT = ".new"


class Folder:
    """A folder with the keys and certificates of one cluster."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def changing(self, *, create: bool = False) -> Iterator[None]:
        """Hold the folder's lock for a change, after finishing what a killed run left.

        Raises:
            UsageError: the folder holds something else, or is not there and not to be made.
        """
        if not create:
            self.require()
        elif self.path.exists() and not self._ours() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(f"{self.path} is neither empty nor a PKI folder", hint="--dir with a new folder")
        self.path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        self.path.chmod(PRIVATE_FOLDER)
        with locked(self.path / LOCK):
            self._recover()
            yield

    def require(self) -> None:
        """Check that there is a PKI.

        Raises:
            UsageError: there is none.
        """
        if not self._ours():
            hint = f"imagebuilder pki init --cluster demo --dir {self.path}"
            raise UsageError(f"{self.path} is no PKI folder", hint=hint)

    def cluster(self) -> Cluster:
        """Return what the folder is for.

        Raises:
            UsageError: ``init`` has not run, or not to its end.
            DataError: ``cluster.json`` is not of its schema.
        """
        self.require()
        data = self._read(INFO)
        if data is None:
            hint = f"imagebuilder pki init --cluster demo --dir {self.path}"
            raise UsageError(f"{self.path} has no {INFO} yet", hint=hint)
        return parse_cluster(data, str(self.path / INFO))

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return (self.path / name).exists()

    def key(self, name: str, *, pending: bool = False) -> Key | None:
        """Return a key, or None where there is none; ``pending``: the one that is to come.

        Raises:
            CertificateError: the file is no key.
        """
        file = f"{name}.key{NEXT if pending else ''}"
        data = self._read(file)
        return None if data is None else load_key(data, str(self.path / file))

    def chain(self, name: str) -> list[x509.Certificate] | None:
        """Return a certificate and what lies between it and its authority, or None where there is none.

        Raises:
            CertificateError: the file is no certificate.
        """
        data = self._read(f"{name}.crt")
        return None if data is None else load_chain(data, str(self.path / f"{name}.crt"))

    def request(self, name: str) -> x509.CertificateSigningRequest | None:
        """Return a request that waits, or None where there is none.

        Raises:
            CertificateError: the file is no request.
        """
        data = self._read(f"{name}.csr")
        return None if data is None else load_request(data, str(self.path / f"{name}.csr"))

    def text(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        return self._read(name)

    def write(self, name: str, data: bytes | str, *, secret: bool) -> None:
        """Write a file."""
        path = self.path / name
        for folder in reversed(path.relative_to(self.path).parents[:-1]):
            (self.path / folder).mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
        write_atomic(path, data, mode=SECRET if secret else PUBLIC)

    def write_key(self, name: str, key: Key, *, pending: bool = False) -> None:
        """Write a key; ``pending``: beside the one that is in use."""
        self.write(f"{name}.key{NEXT if pending else ''}", key_pem(key), secret=True)

    def write_chain(self, name: str, chain: Sequence[x509.Certificate]) -> None:
        """Write the certificate of a key that is there, or that is pending; then that key replaces the other one.

        Two files cannot be renamed at once. The new certificate lies aside when the key is renamed, so that whoever
        comes after a power cut between the two knows how to go on.
        """
        pending = self.key(name, pending=True)
        if pending is not None and belong(pending, chain[0]):
            self.write(f"{name}.crt{NEXT}", chain_pem(chain), secret=False)
            self.remove(f"{name}.csr")
            self._swap(name)
            return
        self.remove(f"{name}.csr")
        self.write(f"{name}.crt", chain_pem(chain), secret=False)
        self.remove(f"{name}.key{NEXT}")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def exposed(self) -> list[str]:
        """Return the secrets that others than the owner may read."""
        found = {path for pattern in SECRETS for path in self.path.rglob(pattern)}
        return sorted(path.relative_to(self.path).as_posix() for path in found if path.stat().st_mode & OTHERS)

    def _ours(self) -> bool:
        return any(self.has(name) for name in OURS)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _swap(self, name: str) -> None:
        """Put a pair in its place: the key first, if that has not happened yet."""
        path = self.path / f"{name}.key{NEXT}"
        if path.exists():
            path.replace(self.path / f"{name}.key")
        (self.path / f"{name}.crt{NEXT}").replace(self.path / f"{name}.crt")

    def _recover(self) -> None:
        """Finish or remove what a killed run left."""
        for part in self.path.rglob(".*.part"):
            part.unlink(missing_ok=True)
        for path in self.path.rglob(f"*.crt{NEXT}"):
            name = path.relative_to(self.path).as_posix().removesuffix(f".crt{NEXT}")
            waiting, key = load_chain(path.read_bytes(), str(path)), self.key(name, pending=True) or self.key(name)
            if key is None or not belong(key, waiting[0]):
                raise CertificateError(f"{path} does not match its key", hint=f"rm {path}")
            self._swap(name)
            self.remove(f"{name}.csr")
        for path in self.path.rglob(f"*.key{NEXT}"):
            name = path.relative_to(self.path).as_posix().removesuffix(f".key{NEXT}")
            if not self.has(f"{name}.csr"):
                path.unlink()
