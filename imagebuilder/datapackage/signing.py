"""Signatures of data packages, and pointer documents: ECDSA over P-256 and SHA-256 (FIPS 186-5, RFC 6979).

Every node can check them with ``openssl dgst -sha256 -verify key.pem -signature manifest.sig manifest.json``.
"""

from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from imagebuilder.datapackage.format import MAX_PACKED
from imagebuilder.datapackage.manifest import API_VERSION, Sha256, canonical, parse_canonical
from imagebuilder.errors import DataError, HostError, PackageError
from imagebuilder.strict import Strict

KEY_FILE = "package-signing.key"
PUBLIC_FILE = "package-signing.pub"
POINTER_SUFFIX = ".pointer.json"  # behind the node's name
MAX_KEY_FILE = 16 << 10  # bytes; a P-256 key in PEM has 241
MAX_POINTER = 8 << 10  # bytes
KEY_ID_DIGITS = 32

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def load_private_key(path: Path) -> PrivateKey:
    """Return the key that signs packages, from a PEM file that nobody else may read.

    Raises:
        HostError: the file cannot be read, or others may read it.
        DataError: it is not an unencrypted P-256 key.
    """
    hint = "imagebuilder pki init"
    data = _read(path, hint)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise HostError(f"{path} may be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} is not an unencrypted private key in PEM", hint=hint) from error
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DataError(f"{path} is not a key of the curve P-256", hint=hint)
    return key


def load_public_key(path: Path) -> PublicKey:
    """Return a public key from a PEM file (SubjectPublicKeyInfo).

    Raises:
        HostError: the file cannot be read.
        DataError: it is not a public P-256 key.
    """
    hint = f"the public key that pki init wrote is {PUBLIC_FILE}"
    try:
        key = serialization.load_pem_public_key(_read(path, hint))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path} is not a public key in PEM", hint=hint) from error
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DataError(f"{path} is not a key of the curve P-256", hint=hint)
    return key


def key_id(key: PublicKey) -> str:
    """Return what names a key: the first 32 hex digits of the sha256 of its SubjectPublicKeyInfo in DER."""
    encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding, layout)).hexdigest()[:KEY_ID_DIGITS]


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Return the signature of ``data`` in DER; the same one every time, where the OpenSSL below can do that."""
    try:
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:  # before OpenSSL 3.2
        algorithm = ec.ECDSA(hashes.SHA256())
    return key.sign(data, algorithm)


def verify(key: PublicKey, data: bytes, signature: bytes, named: str) -> None:
    """Refuse what was not signed with this key.

    Args:
        key: the key that is trusted.
        data: what is signed.
        signature: DER.
        named: the ``keyId`` that the document states.

    Raises:
        PackageError: E_KEY, another key is named; E_SIGNATURE, the signature is wrong.
    """
    known = key_id(key)
    if named != known:
        raise PackageError("E_KEY", f"signed with the key {named}, trusted is {known}")
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise PackageError("E_SIGNATURE", "the signature is wrong") from None


class Pointer(Strict):
    """What is delivered in the place of a package that a transport has no room for."""

    url: Annotated[str, Field(pattern=r"\Ahttps?://[!-~]{1,2000}\z")]
    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=MAX_PACKED)]
    key_id: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z", alias="keyId")]
    api_version: Literal["imagebuilder/v1"] = Field(alias="apiVersion")
    kind: Literal["DataPackagePointer"]
    signature: Annotated[str, Field(pattern=r"\A[A-Za-z0-9+/]{1,96}={0,2}\z")]


def make_pointer(key: PrivateKey, package: bytes, url: str) -> bytes:
    """Return the signed document that says where a package is.

    Raises:
        PackageError: E_FORMAT, the address is not of http or https, or too long.
    """
    document: dict[str, Any] = {
        "apiVersion": API_VERSION, "kind": "DataPackagePointer", "url": url,
        "sha256": hashlib.sha256(package).hexdigest(), "size": len(package), "keyId": key_id(key.public_key()),
    }  # fmt: skip
    document["signature"] = base64.b64encode(sign(key, canonical(document))).decode()
    data = canonical(document)
    parse_pointer(data)
    return data


def parse_pointer(data: bytes) -> Pointer:
    """Return the pointer in these bytes; its signature is not checked.

    Raises:
        PackageError: E_SIZE or E_FORMAT.
    """
    if len(data) > MAX_POINTER:
        raise PackageError("E_SIZE", f"the pointer is larger than {MAX_POINTER >> 10} KiB")
    try:
        return Pointer.model_validate(parse_canonical(data, "the pointer"))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        raise PackageError("E_FORMAT", "the pointer is not one", context="\n".join(problems)) from error


def verify_pointer(data: bytes, key: PublicKey) -> Pointer:
    """Return the pointer in these bytes, signed with ``key``.

    Raises:
        PackageError: E_SIZE, E_FORMAT, E_KEY or E_SIGNATURE.
    """
    pointer = parse_pointer(data)
    unsigned = {name: value for name, value in pointer.model_dump(by_alias=True).items() if name != "signature"}
    try:
        signature = base64.b64decode(pointer.signature, validate=True)
    except ValueError as error:
        raise PackageError("E_FORMAT", "the pointer's signature is not base64") from error
    verify(key, canonical(unsigned), signature, pointer.key_id)
    return pointer


def _read(path: Path, hint: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_FILE)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint=hint) from error
