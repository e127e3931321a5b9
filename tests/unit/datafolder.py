"""A PKI folder and a cluster.toml to make packages from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imagebuilder.content import write_atomic
from tests.vectors.make import key, public

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g me@example"
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: hello}\nspec: {containers: []}\n"
HEAD = 'name = "demo"\nkubernetes = "1.35"\napi_server = "https://192.0.2.1:6443"\n'
NODES = """
[[nodes]]
name = "node-1"
role = "standalone"
manifests = ["hello.yaml"]

[[nodes]]
name = "worker-1"
role = "worker"
"""


def make_folder(folder: Path) -> Path:
    """Write ``pki/`` and ``hello.yaml``; return the folder."""
    pki = folder / "pki"
    private = key("signing").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(pki / "package-signing.key", private, mode=0o600)
    write_atomic(pki / "package-signing.pub", public("signing"))
    write_atomic(pki / "ca.crt", authority())
    write_atomic(pki / "nodes/worker-1/kubelet.conf", "SECRET kubeconfig\n", mode=0o600)
    write_atomic(folder / "hello.yaml", POD)
    return folder


def authority() -> bytes:
    """The certificate of an authority, in PEM."""
    made, name = ec.derive_private_key(7, ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder(name, name, made.public_key(), 1, NOW, NOW + timedelta(days=3650))
    return builder.sign(made, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_cluster(folder: Path, text: str = HEAD + NODES) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path
