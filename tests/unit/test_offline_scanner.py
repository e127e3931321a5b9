"""The secret scanner: what it finds, what it leaves alone, and that it never tells a secret."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.verify.model import Outcome
from imagebuilder.verify.offline import secrets
from imagebuilder.verify.offline.run import run_offline
from imagebuilder.verify.offline.scanner import STRONG, WEAK, entropy, looks_random, scan
from imagebuilder.verify.offline.secrets import CHECKS, MAX_SIZE
from imagebuilder.verify.tree import Changed, file
from tests.offline_image import good_image
from tests.offline_mutants import MUTANTS, PEM, RANDOM, apply

NO_SECRETS = (
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMFkwEwYHKoZIzj0CAQYI\n-----END PUBLIC KEY-----\n",
    "PEM_START = '-----BEGIN PRIVATE" + " KEY-----'\n",  # a program that knows the form
    "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
    "password = changeme123\n",
    "password = ${PASSWORD_1}\n",
    "password = <your-password-1>\n",
    "password: /run/secrets/password1\n",
    "password        requisite                       pam_deny.so\n",
    "passwd:         files systemd\n",
    "PasswordAuthentication no\nPASS_MAX_DAYS 99999\n",
    "token: abcdef.0123456789abcdef\n",  # the example of kubeadm's documentation
    "--bootstrap-token-ttl=24h0m0s\n",
    "https://example.org/a:b@c\nhttp://user@example.org\nhttp://$USER:$PASSWORD@proxy\n",
    "sha256:" + "0123456789abcdef" * 4 + "\n",
    "secret_key_base: aaaaaaaaaaaaaaaa1\n",
    "ghp_short eyJhbGciOiJub25lIn0.x.y AKIA1234\n",
)


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert list(scan(text.encode(), settings=True)) == []


@pytest.mark.parametrize("text", ["password = %s", "token: %s", "db_secret_key=%s", '"apiKey": "%s"'])
def test_names_with_values_count_in_settings_only(text: str) -> None:
    data = (text % RANDOM).encode()
    assert [line for line, _ in scan(data, settings=True)] == [1]
    assert list(scan(data, settings=False)) == []


def test_the_line_is_told() -> None:
    assert list(scan(b"\n" * 41 + PEM.format("", "").encode(), settings=False)) == [(42, "private key")]


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.check == "no-secrets"], ids=lambda one: one.id)
def test_a_result_never_has_the_secret(mutant: object) -> None:
    (result,) = run_offline(apply(mutant, good_image()), CHECKS)  # type: ignore[arg-type]
    text = repr(result)
    assert result.found
    assert not any(part in text for part in (RANDOM[:8], "hunter", "q7xk2mpz", "wJalr", "MHcCAQ", "eyJ"))


def test_a_path_with_a_reason_is_allowed_and_others_are_not() -> None:
    image = good_image()
    broken = replace(image, root=Changed(image.root, {"/etc/a.pem": file(PEM), "/etc/b.pem": file(PEM.format("", ""))}))
    expected = replace(image.subject.expected, secrets={"/etc/b.*": "a key of nothing, for a test"})
    broken = replace(broken, root=Changed(image.root, {f"/etc/{name}.pem": file(PEM.format("", "")) for name in "ab"}))
    (result,) = run_offline(replace(broken, subject=replace(image.subject, expected=expected)), CHECKS)
    assert result.found == ("/etc/a.pem:1: private key",)


@pytest.mark.parametrize("content", [b"\0" + PEM.encode(), PEM.encode().ljust(MAX_SIZE + 1)], ids=["binary", "large"])
def test_binaries_and_large_files_are_not_looked_at(content: bytes) -> None:
    image = good_image()
    (result,) = run_offline(replace(image, root=Changed(image.root, {"/etc/x": file(content)})), CHECKS)
    assert result.holds


def test_text_without_end_is_not_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "MAX_TEXT", 1000)
    (result,) = run_offline(good_image(), CHECKS)
    assert (result.outcome, result.reason) == (Outcome.NOT_RUN, "the image has more than 0 MiB of text")


@pytest.mark.parametrize(
    ("value", "random"),
    [(b"aaaaaaaaaaaaaaaa", False), (b"correcthorsebattery", False), (b"12345678", False), (RANDOM.encode(), True),
     (b"0123456789abcdef", True), (b"Tr0ub4dor&3x", True)],
)  # fmt: skip
def test_random_values_are_told_from_words(value: bytes, random: bool) -> None:
    assert looks_random(value) is random


def test_entropy_is_in_bits_per_character() -> None:
    assert entropy(b"aaaa") == 0
    assert entropy(b"abab") == 1
    assert entropy(bytes(range(256))) == 8


@given(st.binary(max_size=300), st.sampled_from([*STRONG, *WEAK]), st.binary(max_size=300), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_scanned(before: bytes, pattern: object, after: bytes, weak: bool) -> None:
    data = before + pattern.needles[0] + after  # type: ignore[attr-defined]
    assert all(1 <= line <= data.count(b"\n") + 1 for line, _ in scan(data, settings=weak))


@pytest.mark.parametrize(
    "piece",
    [
        b"-----BEGIN PRIVATE" + b" KEY-----\n", b"a: b\n" + b"PRIVATE" + b" KEY", b"\n", b"a: b\n", b"password",
        b"password=", b"token" * 9, b"eyJ" + b"a" * 40 + b".", b"eyJ-", b"eyJaaaaaaaaaaaaa.", b"a://", b"a://a:",
        b"AKIAAAAAAAAAAAAAAAAA ", b"x-amz://u:p", b"$6$", b"token 9f3k2p.", b'"auth":', b"secret-secret.", b"x" * 40,
        b"client-key-data:", b"gh" + b"p_",
    ],
    ids=lambda piece: repr(piece[:24]),
)  # fmt: skip
def test_a_file_made_to_be_slow_is_scanned_in_time(piece: bytes) -> None:
    data = (piece * (MAX_SIZE // len(piece)))[:MAX_SIZE]
    start = time.monotonic()
    list(scan(data, settings=True))
    list(scan(b"-----BEGIN PRIVATE" + b" KEY-----" + data, settings=True))
    list(scan(b"token PRIVATE KEY passw :// eyJ AKIA" + data, settings=True))
    assert time.monotonic() - start < 15  # some tenths of a second, where nobody else runs
