"""What is said of a layer's archive is believed only when somebody who is trusted has signed it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from layer_stores import ID, OTHER

from imagebuilder.content import canonical_json
from imagebuilder.direct.remote.statement import (
    MAX_ARCHIVE,
    MAX_STATEMENT,
    PrivateKey,
    Statement,
    load_signer,
    load_trusted,
    parse_statement,
)
from imagebuilder.errors import DataError, HostError, UntrustedError

OTHER_ED = ed25519.Ed25519PrivateKey.generate()
KEYS: dict[str, PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(), "p256": ec.generate_private_key(ec.SECP256R1()),
}  # fmt: skip
SEAL = {"stamp": "a" * 64, "content": "b" * 64}
SAID = Statement(layer=ID, info={"id": ID, "name": "base", "seal": SEAL}, sha256="c" * 64, size=10, unpacked=2048)
SIGNED = SAID.to_bytes(KEYS["ed25519"])


@pytest.mark.parametrize("name", KEYS)
def test_what_a_trusted_key_has_signed_is_believed(name: str) -> None:
    key = KEYS[name]
    assert parse_statement(SAID.to_bytes(key), ID, [OTHER_ED.public_key(), key.public_key()]) == SAID


@pytest.mark.parametrize("name", KEYS)
def test_another_key_is_not_believed(name: str) -> None:
    with pytest.raises(UntrustedError, match="a key that is not trusted here"):
        parse_statement(SAID.to_bytes(KEYS[name]), ID, [OTHER_ED.public_key()])


def test_what_is_not_signed_is_believed_only_from_anyone() -> None:
    with pytest.raises(UntrustedError, match="not signed"):
        parse_statement(SAID.to_bytes(None), ID, [OTHER_ED.public_key()])
    with pytest.raises(UntrustedError, match="not signed"):
        parse_statement(SAID.to_bytes(None), ID, [])
    assert parse_statement(SAID.to_bytes(None), ID, None) == SAID
    assert parse_statement(SIGNED, ID, None) == SAID


def test_a_signature_is_for_one_layer() -> None:
    with pytest.raises(UntrustedError, match="of another layer"):
        parse_statement(SIGNED, OTHER, [KEYS["ed25519"].public_key()])


def changed(**changes: Any) -> bytes:
    document = json.loads(SIGNED)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    return canonical_json(document)


@pytest.mark.parametrize(
    "changes",
    [
        {"archive__sha256": "d" * 64}, {"archive__size": 11}, {"archive__unpacked": 1024}, {"info__name": "runtime"},
        {"info__seal__stamp": "d" * 64}, {"signature__value": "AAAA"}, {"signature__value": "?"},
        {"signature__value": ""}, {"signature__value": None},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_a_signature_covers_all_that_is_said(changes: dict[str, Any]) -> None:
    with pytest.raises(UntrustedError, match="signature is wrong"):
        parse_statement(changed(**changes), ID, [KEYS["ed25519"].public_key()])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"apiVersion": "imagebuilder/v2"}, "no statement"),
        ({"kind": "DataPackage"}, "no statement"),
        ({"more": 1}, "no statement"),
        ({"archive__more": 1}, "no statement"),
        ({"archive": []}, "no statement"),
        ({"info": []}, "no statement"),
        ({"info": "x"}, "no statement"),
        ({"info__id": OTHER}, "another layer"),
        ({"info__name": 1}, "another layer"),
        ({"info__seal": None}, "no checksum"),
        ({"info__seal": {"stamp": "A" * 64}}, "no checksum"),
        ({"archive__sha256": "../" * 21 + "a"}, "no checksum"),
        ({"archive__sha256": 1}, "no checksum"),
        ({"archive__size": MAX_ARCHIVE + 1}, "too large"),
        ({"archive__size": 0}, "too large"),
        ({"archive__unpacked": 1 << 40}, "too large"),
        ({"archive__unpacked": "1"}, "too large"),
    ],
)
def test_a_statement_that_makes_no_sense_is_refused_from_anyone(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UntrustedError, match=words):
        parse_statement(changed(**changes), ID, None)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"signature": 1}'])
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        parse_statement(data, ID, None)


def test_a_long_statement_is_not_looked_at() -> None:
    with pytest.raises(UntrustedError, match="larger than 1 MiB"):
        parse_statement(b" " * MAX_STATEMENT + SIGNED, ID, None)


@given(place=st.integers(0, len(SIGNED) - 1), value=st.integers(1, 255))
def test_no_changed_byte_gets_past_the_signature(place: int, value: int) -> None:
    data = bytearray(SIGNED)
    data[place] ^= value
    try:
        assert parse_statement(bytes(data), ID, [KEYS["ed25519"].public_key()]) == SAID
    except UntrustedError:
        return
    assert json.loads(data)["signature"]["value"] != json.loads(SIGNED)["signature"]["value"]  # base64's unused bits


def pem(key: Any, *, private: bool) -> bytes:
    if private:
        layout, no = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return bytes(key.private_bytes(serialization.Encoding.PEM, layout, no))
    layout = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, layout))


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_read_from_files(name: str, tmp_path: Path) -> None:
    key = KEYS[name]
    public, private = tmp_path / "layers.pub", tmp_path / "layers.key"
    public.write_bytes(pem(key, private=False))
    private.write_bytes(pem(key, private=True))
    private.chmod(0o600)
    data = SAID.to_bytes(load_signer(private))
    assert parse_statement(data, ID, [load_trusted(public)]) == SAID
    private.chmod(0o640)
    with pytest.raises(HostError, match="may be read by others"):
        load_signer(private)


@pytest.mark.parametrize("load", [load_signer, load_trusted])
@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1()), None],
    ids=["rsa", "p384", "none"],
)  # fmt: skip
def test_other_keys_are_refused(load: Callable[[Path], Any], key: Any, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(pem(key, private=load is load_signer) if key else b"-----BEGIN nothing-----")
    path.chmod(0o600)
    with pytest.raises(DataError) as caught:
        load(path)
    assert "openssl genpkey -algorithm ed25519" in caught.value.hint
    with pytest.raises(HostError, match="No such file"):
        load(tmp_path / "none")
