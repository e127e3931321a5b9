"""The search for secrets in the whole tree."""

from __future__ import annotations

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import matches
from imagebuilder.verify.offline.scanner import scan
from imagebuilder.verify.tree import walk

MAX_SIZE = 1 << 20  # bytes: files of settings, keys and scripts are smaller; what is larger is a program or data
MAX_TEXT = 1 << 30  # bytes in all; a node has 30 MiB, container images with it some hundred
HEAD = 1024  # bytes by which a file is known as binary
# Compiled or compressed: their bytes are no text. Most files of a node are of these kinds.
_BINARY = (
    ".ko",
    ".xz",
    ".gz",
    ".zst",
    ".bz2",
    ".so",
    ".pyc",
    ".mo",
    ".a",
    ".o",
    ".bin",
    ".gpg",
    ".pgp",
    ".db",
    ".fw",
    ".pf2",
)
# Files that packages bring, and unpacked container images: a name and a value there is code, or an example. Lists of
# packages are full of checksums. What is in them has a form of its own, or is not found.
_NO_SETTINGS = ("/usr/*", "/boot/*", "/var/lib/dpkg/*", "/var/lib/containerd/*", "/var/lib/docker/*", "/var/lib/apt/*",
                "/var/cache/*", "/var/lib/ucf/*", "/var/lib/systemd/*")  # fmt: skip
_SHADOW = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-")  # another check's


def secrets(image: Image) -> Found:
    """Look for secrets in every file of text.

    Raises:
        ArtifactError: there is more text than any node has.
    """
    allowed, left = image.subject.expected.secrets, MAX_TEXT
    for path, entry in walk(image.root):
        if not entry.is_file or not 0 < entry.size <= MAX_SIZE or path.endswith(_BINARY) or path in _SHADOW:
            continue
        data = image.root.content(path, HEAD)
        if b"\0" in data:
            continue
        left -= entry.size
        if left < 0:
            raise ArtifactError(f"the image has more than {MAX_TEXT >> 20} MiB of text")
        if entry.size > HEAD:
            data = image.root.content(path, MAX_SIZE)
        settings = path.startswith("/usr/local/") or not matches(path, _NO_SETTINGS)
        found = list(scan(data, settings=settings))
        if found and not matches(path, allowed):
            yield from (f"{path}:{line}: {kind}" for line, kind in found)


CHECKS = (
    OfflineCheck(
        id="no-secrets",
        proves="No file of text has a private key, a token, or a password that looks like one.",
        why="Who has the image has them, and an image is copied to many places.",
        link="https://cwe.mitre.org/data/definitions/798.html",
        fix="Remove it, and change it: it was built in. What is none goes to `secrets` of verification/.",
        run=secrets,
    ),
)
