"""Signatures and pointers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from imagebuilder.datapackage.signing import (
    key_id,
    load_private_key,
    load_public_key,
    make_pointer,
    parse_pointer,
    sign,
    verify,
    verify_pointer,
)
from imagebuilder.errors import DataError, HostError, PackageError
from tests.vectors.make import key, public
from tests.vectors.make import key_id as vector_key_id

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def pem(made: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return made.private_bytes(PEM, PKCS8, secret)


def key_file(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_key_is_read_from_a_file_of_its_own(tmp_path: Path) -> None:
    made = load_private_key(key_file(tmp_path / "a.key", pem(key("signing"))))
    assert key_id(made.public_key()) == vector_key_id("signing")
    assert sign(made, b"x") == sign(made, b"x")
    verify(made.public_key(), b"x", sign(made, b"x"), key_id(made.public_key()))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610], ids=oct)
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path / "a.key", pem(key("signing")), mode)
    with pytest.raises(HostError) as caught:
        load_private_key(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="damaged"),
        pytest.param(pem(key("signing"), b"password"), id="encrypted"),
        pytest.param(pem(ec.generate_private_key(ec.SECP384R1())), id="other-curve"),
        pytest.param(pem(ed25519.Ed25519PrivateKey.generate()), id="other-kind"),
        pytest.param(public("signing"), id="public"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError):
        load_private_key(key_file(tmp_path / "a.key", data))


def test_public_key(tmp_path: Path) -> None:
    path = tmp_path / "a.pub"
    path.write_bytes(public("signing"))
    assert key_id(load_public_key(path)) == vector_key_id("signing")
    path.write_bytes(pem(key("signing")))
    with pytest.raises(DataError):
        load_public_key(path)
    os.unlink(path)
    with pytest.raises(HostError):
        load_public_key(path)


def test_pointer_is_signed_and_says_where_the_package_is() -> None:
    document = make_pointer(key("signing"), b"package", "https://files.example/a.ibdata")
    found = verify_pointer(document, key("signing").public_key())
    assert (found.url, found.size) == ("https://files.example/a.ibdata", 7)
    assert document.endswith(b"\n") and make_pointer(key("signing"), b"package", found.url) == document
    with pytest.raises(PackageError, match="E_KEY"):
        verify_pointer(document, key("other").public_key())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"url": "https://evil.example/a.ibdata"}, "E_SIGNATURE", id="url"),
        pytest.param({"sha256": "0" * 64}, "E_SIGNATURE", id="sha256"),
        pytest.param({"size": 8}, "E_SIGNATURE", id="size"),
        pytest.param({"size": 0}, "E_FORMAT", id="no-size"),
        pytest.param({"url": "ftp://files.example/a"}, "E_FORMAT", id="ftp"),
        pytest.param({"url": "https://files.example/a b"}, "E_FORMAT", id="space"),
        pytest.param({"signature": "A"}, "E_FORMAT", id="not-base64"),
        pytest.param({"signature": "!"}, "E_FORMAT", id="not-letters"),
        pytest.param({"signature": "AAAA"}, "E_SIGNATURE", id="not-der"),
        pytest.param({"more": 1}, "E_FORMAT", id="unknown-key"),
    ],
)
def test_changed_pointer_is_refused(change: dict[str, object], code: str) -> None:
    said = json.loads(make_pointer(key("signing"), b"package", "https://files.example/a.ibdata")) | change
    data = json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(PackageError) as caught:
        verify_pointer(data, key("signing").public_key())
    assert caught.value.code == code


def test_pointer_that_is_too_large_or_no_json() -> None:
    with pytest.raises(PackageError, match="E_SIZE"):
        parse_pointer(b"{" + b" " * 10_000)
    with pytest.raises(PackageError, match="E_FORMAT"):
        parse_pointer(b"{}")


def test_address_that_is_none_makes_no_pointer() -> None:
    with pytest.raises(PackageError, match="E_FORMAT"):
        make_pointer(key("signing"), b"package", "file:///a")
