"""Finds secrets in the bytes of a file: what kind, and on which line; never the secret itself.

No pattern has two repeats without bound that fit the same bytes: a file made to be slow is scanned all the same.

Two sets of patterns. The strong ones have a form of their own (a PEM header, ``AKIA``), and are looked for everywhere.
The weak ones are a name and a value: they count in files of settings only, and when the value looks random.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

RANDOM_BITS = 3.0  # of entropy per character: words have 2 to 2.9 at these lengths, random hexadecimal 3 to 4
_PLACEHOLDER = re.compile(
    rb"(?i)example|abcdef\.0123|changeme|change[-_]me|placeholder|redacted|your[-_]|xxxx|\*\*\*|^[<${%\[(/]|^(true|false|none|null|prompt)$"
)


def _any(_: re.Match[bytes]) -> bool:
    return True


def _random(match: re.Match[bytes]) -> bool:
    return looks_random(match[match.lastindex or 0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A form of secret.

    Attributes:
        kind: what it is called.
        needles: one of these is in every file that has it; lower case for weak patterns. They are looked for first.
        regex: the form; its last group, if it has any, is the value.
        accept: tells whether a match is one.
    """

    kind: str
    needles: tuple[bytes, ...]
    regex: re.Pattern[bytes]
    accept: Callable[[re.Match[bytes]], bool] = _any


STRONG = (
    Pattern(  # RFC 7468, RFC 1421 (the headers of encrypted keys), OpenSSH's PROTOCOL.key; in JSON a line end is \n
        kind="private key", needles=(b"PRIVATE KEY",),
        regex=re.compile(
            rb"-----BEGIN (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----(?:\s|\\r|\\n){1,8}"
            rb"(?:[\w-]{1,40}: ?[^\n]{0,120}\n|\n){0,8}\s{0,40}[A-Za-z0-9+/=]{40}"
        ),
    ),
    Pattern(kind="age key", needles=(b"AGE-SECRET-KEY-1",), regex=re.compile(rb"\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b")),
    Pattern(  # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html; the id alone is no secret
        kind="AWS secret key", needles=(b"AKIA", b"ASIA"),
        regex=re.compile(rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b[\s\S]{1,200}?(?<![A-Za-z0-9/+=])([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"),
        accept=_random,
    ),
    Pattern(  # docs.github.com, "About authentication to GitHub"
        kind="GitHub token", needles=(b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        regex=re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})"),
    ),
    Pattern(kind="GitLab token", needles=(b"glpat-",), regex=re.compile(rb"\bglpat-[\w-]{20,}"), accept=_random),
    Pattern(
        kind="Slack token", needles=(b"xoxb-", b"xoxp-", b"xoxa-", b"xoxr-", b"xoxs-", b"xapp-"),
        regex=re.compile(rb"\b(?:xox[abprs]|xapp)-(\d[\w-]{20,})"), accept=_random,
    ),
    Pattern(  # RFC 7519: the header and the claims are JSON objects, in base64 they start with eyJ
        kind="JWT", needles=(b"eyJ",),
        regex=re.compile(rb"(?<![\w-])eyJ[\w-]{10,1000}\.eyJ[\w-]{10,4000}\.[\w-]{16,}"),
    ),
    Pattern(
        kind="key of a kubeconfig", needles=(b"client-key-data",),
        regex=re.compile(rb"client-key-data[\"']?\s*:\s*[\"']?([A-Za-z0-9+/=]{40,})"),
    ),
)  # fmt: skip
WEAK = (
    Pattern(
        kind="password", needles=(b"passw", b"secret", b"passphrase", b"api_key", b"apikey", b"api-key"),
        regex=re.compile(
            rb"(?i)(?:passw(?:or)?d|passphrase|secret|api[_-]?key)[\w-]{0,20}[\"']?\s?[:=]\s?[\"']?([^\s\"',;]{8,200})"
        ), accept=_random,
    ),
    Pattern(
        kind="token", needles=(b"token",),
        regex=re.compile(rb"(?i)token[\"']?\s?[:=]\s?[\"']?([\w.~+/=-]{16,2000})"), accept=_random,
    ),
    Pattern(  # kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens
        kind="bootstrap token", needles=(b"token",),
        regex=re.compile(rb"(?<![\w.])([a-z0-9]{6}\.[a-z0-9]{16})(?![\w.])"), accept=_random,
    ),
    Pattern(
        kind="login of a registry", needles=(b'"auth"',),
        regex=re.compile(rb"\"auth\"\s*:\s*\"([A-Za-z0-9+/=]{12,})\""),
    ),
    Pattern(
        kind="password in an address", needles=(b"://",),
        regex=re.compile(rb"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>$]{1,64}:([^\s/@\"'<>${}]{3,200})@[\w\[]"),
        accept=lambda match: not _PLACEHOLDER.search(match[1]),
    ),
    Pattern(  # crypt(5)
        kind="hash of a password", needles=(b"$1$", b"$5$", b"$6$", b"$y$", b"$2b$", b"$2a$", b"$2y$", b"$7$"),
        regex=re.compile(rb"\$(?:1|5|6|y|7|2[aby])\$[\w./$=,]{22,}"),
    ),
)  # fmt: skip


def entropy(value: bytes) -> float:
    """Return Shannon's entropy of a value, in bits per character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def looks_random(value: bytes) -> bool:
    """Tell whether a value may be a secret: no placeholder, of more than one kind of character, and not a word."""
    if _PLACEHOLDER.search(value) or entropy(value) < RANDOM_BITS:
        return False
    kinds = (rb"[a-z]", rb"[A-Z]", rb"[0-9]", rb"[^A-Za-z0-9]")
    return re.search(rb"[0-9]", value) is not None and sum(bool(re.search(kind, value)) for kind in kinds) > 1


def scan(data: bytes, *, settings: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the kind of the first secret of each kind.

    Args:
        data: of a file.
        settings: it is one of settings: weak patterns count too.
    """
    lower = data.lower() if settings else b""
    for patterns, where in ((STRONG, data), (WEAK, lower)):
        for pattern in patterns:
            if not any(needle in where for needle in pattern.needles):
                continue
            found = next((match for match in pattern.regex.finditer(data) if pattern.accept(match)), None)
            if found is not None:
                yield data.count(b"\n", 0, found.start()) + 1, pattern.kind
