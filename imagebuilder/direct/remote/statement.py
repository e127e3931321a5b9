"""What is said of a layer's archive, and who says so.

A layer's id covers what it was made *from*, so nothing can tell from the id that an archive is that layer. A statement
can: it names the id, the layer's info with its seal, and the archive's sha256 and sizes, and is signed with Ed25519
(RFC 8032) or ECDSA over P-256 and SHA-256 (FIPS 186-5). Signed is the canonical JSON without the signature.

Order of trust: the statement's size, its form, a signature of a key that is trusted, the id that was asked for. Only
then is the archive asked for, and of that no byte is unpacked before all of it has the sha256 that is stated.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from imagebuilder.content import canonical_json
from imagebuilder.direct.seals import SEAL
from imagebuilder.errors import DataError, HostError, UntrustedError

API_VERSION, KIND = "imagebuilder/v1", "Layer"
MAX_STATEMENT = 1 << 20  # bytes; that of a runtime layer with 150 packages has 20 KB
MAX_ARCHIVE = 4 << 30  # bytes; S3 takes 5 GB at once; a base layer has 100 MB
MAX_UNPACKED = 16 << 30  # bytes; there 0.25 GB
MAX_KEY_FILE = 16 << 10  # bytes
KEYS_HINT = "openssl genpkey -algorithm ed25519 -out layers.key && openssl pkey -in layers.key -pubout -out layers.pub"

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What is said of an archive.

    Attributes:
        layer: the layer's id.
        info: the layer's ``layer.json``, with its seal.
        sha256: of the archive.
        size: bytes of the archive, and ``unpacked`` of what is in it.
    """

    layer: str
    info: Mapping[str, Any]
    sha256: str
    size: int
    unpacked: int

    def document(self) -> dict[str, Any]:
        """Return it as plain data, without a signature."""
        archive = {"sha256": self.sha256, "size": self.size, "unpacked": self.unpacked}
        return {
            "apiVersion": API_VERSION, "kind": KIND, "layer": self.layer, "info": dict(self.info), "archive": archive,
        }  # fmt: skip

    def to_bytes(self, key: PrivateKey | None) -> bytes:
        """Return the document, signed where there is a key."""
        document = self.document()
        if key is not None:
            signature = base64.b64encode(_sign(key, canonical_json(document))).decode()
            document["signature"] = {"key": key_id(key.public_key()), "value": signature}
        return canonical_json(document)


def parse_statement(data: bytes, layer_id: str, trusted: Sequence[PublicKey] | None) -> Statement:
    """Return a statement that may be believed.

    Args:
        data: the document.
        layer_id: the layer that was asked for.
        trusted: the keys that may sign; None: anyone may say anything.

    Raises:
        UntrustedError: it is no statement, of another layer, or not signed with one of these keys.
    """
    if len(data) > MAX_STATEMENT:
        raise UntrustedError(f"its statement is larger than {MAX_STATEMENT >> 20} MiB")
    try:
        document = json.loads(data)
        signature = document.pop("signature", None)
        archive, info = document["archive"], document["info"]
        found = Statement(
            layer=document["layer"], info=info, sha256=archive["sha256"], size=archive["size"],
            unpacked=archive["unpacked"],
        )  # fmt: skip
        # A signature of another kind of document, or a key that we do not know, does not get past this.
        if document != found.document():
            raise ValueError("it has other keys")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UntrustedError("what is said of the layer is no statement") from error
    if trusted is not None:
        _check_signature(canonical_json(document), signature, trusted)
    _check(found, layer_id)
    return found


def _check(found: Statement, layer_id: str) -> None:
    info, seal = found.info, found.info.get(SEAL)
    digests = [found.sha256, *(seal.values() if isinstance(seal, dict) else [""])]
    bounds = ((found.size, MAX_ARCHIVE), (found.unpacked, MAX_UNPACKED))
    if found.layer != layer_id or info.get("id") != layer_id or not isinstance(info.get("name"), str):
        raise UntrustedError("its statement is of another layer")
    if any(not isinstance(digest, str) or len(digest) != 64 or digest.strip("0123456789abcdef") for digest in digests):
        raise UntrustedError("its statement has no checksum")
    if any(not isinstance(value, int) or not 0 < value <= limit for value, limit in bounds):
        raise UntrustedError("its archive is too large")


def _check_signature(data: bytes, signature: Any, trusted: Sequence[PublicKey]) -> None:
    if not isinstance(signature, dict):
        raise UntrustedError("it is not signed")
    keys = [key for key in trusted if key_id(key) == signature.get("key")]
    if not keys:
        raise UntrustedError("it is signed with a key that is not trusted here")
    try:
        value = base64.b64decode(str(signature.get("value")), validate=True)
        if isinstance(keys[0], ed25519.Ed25519PublicKey):
            keys[0].verify(value, data)
        else:
            keys[0].verify(value, data, ec.ECDSA(hashes.SHA256()))
    except (binascii.Error, InvalidSignature, ValueError) as error:
        raise UntrustedError("its signature is wrong") from error


def _sign(key: PrivateKey, data: bytes) -> bytes:
    return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, ec.ECDSA(hashes.SHA256()))


def key_id(key: PublicKey) -> str:
    """Return what names a key: the sha256 of its SubjectPublicKeyInfo in DER, 64 hex digits."""
    layout = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, layout)).hexdigest()


def load_trusted(path: Path) -> PublicKey:
    """Return a key that may sign layers, from a PEM file (SubjectPublicKeyInfo).

    Raises:
        HostError: the file cannot be read.
        DataError: it is no public key of Ed25519 or P-256.
    """
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} is not a public key in PEM", hint=KEYS_HINT) from error
    if isinstance(key, ed25519.Ed25519PublicKey) or _is_p256(key):
        return key  # type: ignore[return-value]  # _is_p256 says so
    raise DataError(f"{path} is not a key of Ed25519 or of the curve P-256", hint=KEYS_HINT)


def load_signer(path: Path) -> PrivateKey:
    """Return the key that signs layers, from a PEM file that nobody else may read.

    Raises:
        HostError: the file cannot be read, or others may read it.
        DataError: it is no unencrypted private key of Ed25519 or P-256.
    """
    data = _read(path)
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise HostError(f"{path} may be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} is not an unencrypted private key in PEM", hint=KEYS_HINT) from error
    if isinstance(key, ed25519.Ed25519PrivateKey) or _is_p256(key):
        return key  # type: ignore[return-value]  # _is_p256 says so
    raise DataError(f"{path} is not a key of Ed25519 or of the curve P-256", hint=KEYS_HINT)


def _is_p256(key: object) -> bool:
    kinds = (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)
    return isinstance(key, kinds) and isinstance(key.curve, ec.SECP256R1)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_FILE)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint=KEYS_HINT) from error
