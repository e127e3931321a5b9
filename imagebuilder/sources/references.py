"""Image references, spelled out as containerd and the CRI spell them.

Grammar: https://github.com/distribution/reference/blob/v0.6.0/reference.go (first lines).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from imagebuilder.errors import UsageError

DOCKER_HUB = "docker.io"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_LENGTH = 4096  # of a reference: far above the 255 of a repository and the 128 of a tag
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A reference in full; ``tag`` or ``digest`` may be empty, not both."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}{'@' if self.digest else ''}{self.digest}"

    @property
    def name(self) -> str:
        """The name an image gets in a store: with the tag when there is one, else with the digest."""
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else f"@{self.digest}")


def parse(text: str) -> Reference:
    """Return a reference in full: ``busybox`` is ``docker.io/library/busybox:latest``.

    Raises:
        UsageError: it is not of the grammar.
    """
    rest, at, digest = text.partition("@")
    head, slash, path = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, rest = head, path
    else:
        registry = DOCKER_HUB
    repository, colon, tag = rest.partition(":")
    if registry == "index.docker.io":
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    fits = (
        len(text) <= MAX_LENGTH
        and re.fullmatch(_HOST, registry)
        and len(repository) <= 255
        and _REPOSITORY.fullmatch(repository)
        and (not colon or _TAG.fullmatch(tag))
        and (not at or DIGEST.fullmatch(digest))
    )
    if not fits:
        raise UsageError(
            f"{text[:200]!r} is no image reference",
            hint="registry.k8s.io/pause:3.10.1, or name@sha256:<64 hex digits>",
        )
    return Reference(registry=registry, repository=repository, tag=tag or ("" if digest else "latest"), digest=digest)
