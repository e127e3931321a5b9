"""Pulls images from registries, by digest.

Specifications: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md (pulling manifests and
blobs) and https://distribution.github.io/distribution/spec/auth/token/ (anonymous bearer tokens).

Order of trust: a tag is resolved once, to the digest of the manifest for one architecture; from there on
every byte is checked against a digest and a size that were checked before it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

from imagebuilder.content import aside, sha256_bytes
from imagebuilder.errors import UnresolvableError, UntrustedError, UsageError
from imagebuilder.sources.addresses import host_of, safe_url, split
from imagebuilder.sources.download import Downloader, OnProgress, Response
from imagebuilder.sources.manifests import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT,
    Descriptor,
    MalformedError,
    Manifest,
    choose,
    is_index,
    parse_index,
    parse_manifest,
    parse_platform,
)  # fmt: skip
from imagebuilder.sources.oci import Blob, Image, write_archive
from imagebuilder.sources.references import DOCKER_HUB, Reference, parse

ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
DOCKER_HUB_API = "registry-1.docker.io"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_IMAGE = 8 << 30  # bytes of one image; the largest seen on nodes (GPU drivers) have 5 GiB
MAX_TOKEN = 64 << 10  # bytes of a token service's answer
T = TypeVar("T")
PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """An image as a registry has it now.

    Attributes:
        reference: name with the digest of the manifest for ``arch``: fit for a lock file and for ``pull``.
        digest: that digest.
        size: bytes of its manifest, configuration and layers.
    """

    reference: str
    digest: str
    arch: str
    size: int


class Registry:
    """A client for pulling.

    Args:
        downloader: fetches.
        mirrors: registry host to the address that replaces it, such as ``docker.io`` to
            ``http://127.0.0.1:5000``. A path of the address is put before the repository.
    """

    def __init__(self, downloader: Downloader, *, mirrors: Mapping[str, str] | None = None) -> None:
        self._downloader, self._mirrors = downloader, dict(mirrors or {})
        self._challenges: dict[str, tuple[str, str]] = {}  # repository to the address asked and its answer
        self._tokens: dict[str, tuple[str, float]] = {}  # repository to token and when it ends

    def resolve_reference(self, reference: str, arch: str) -> Resolved:
        """Return what a tag (or a digest) is now, for one architecture.

        Raises:
            UsageError: it is no reference.
            UnreachableError: the registry does not answer.
            UnresolvableError: it has no such image, or none for ``arch``, or wants credentials.
            UntrustedError: it answers with bytes that are not what it says.
        """
        ref = parse(reference)
        data, media_type = self._manifest(ref, ref.digest or ref.tag)
        digest = f"sha256:{sha256_bytes(data)}"
        if _checked(ref, lambda: is_index(data, media_type)):
            chosen = choose(_checked(ref, lambda: parse_index(data)), arch)
            if chosen is None:
                raise UnresolvableError(f"{ref} has no image for linux on {arch}")
            digest = chosen.digest
            data, _ = self._manifest(ref, digest, size=chosen.size)
        manifest = _checked(ref, lambda: parse_manifest(data))
        self._configuration(ref, manifest, arch)
        name = Reference(registry=ref.registry, repository=ref.repository, tag=ref.tag, digest=digest)
        return Resolved(reference=str(name), digest=digest, arch=arch, size=manifest.size + len(data))

    def pull(
        self,
        reference: str,
        arch: str,
        out: Path,
        *,
        max_size: int = MAX_IMAGE,
        on_progress: OnProgress | None = None,
    ) -> Image:
        """Write an image as an OCI archive.

        Args:
            reference: name with the digest of one architecture's manifest, as resolved.
            arch: what its configuration must say.
            out: the archive.
            max_size: bytes above which the image is refused.
            on_progress: called with the bytes of layers so far and in all.

        Raises:
            UsageError, UnreachableError, UnresolvableError, UntrustedError: as for resolving.
            HostError: it cannot be written.
        """
        ref = parse(reference)
        data, media_type = self._locked_manifest(ref)
        manifest = _checked(ref, lambda: parse_manifest(data))
        if manifest.size > max_size:
            raise UntrustedError(f"{ref} has {manifest.size} bytes, more than the {max_size} it may have")
        config = self._configuration(ref, manifest, arch)
        with aside(out) as scratch:
            layers = self._layers(ref, manifest, scratch, on_progress)
            image = Image(
                reference=ref, layers=layers, arch=arch,
                manifest=Blob(digest=ref.digest, size=len(data), source=data),
                config=Blob(digest=manifest.config.digest, size=len(config), source=config),
                media_type=media_type if media_type in MANIFESTS else MANIFESTS[0],
            )  # fmt: skip
            write_archive([image], out, epoch=0)
        return image

    def _locked_manifest(self, ref: Reference) -> tuple[bytes, str]:
        if not ref.digest:
            raise UsageError(f"{ref} has no digest", hint="resolve it first: imagebuilder lock")
        data, media_type = self._manifest(ref, ref.digest)
        if _checked(ref, lambda: is_index(data, media_type)):
            raise UsageError(f"{ref} is an index of several architectures", hint="imagebuilder lock")
        return data, media_type

    def _layers(
        self, ref: Reference, manifest: Manifest, scratch: Path, on_progress: OnProgress | None
    ) -> tuple[Blob, ...]:
        unique = {layer.digest: layer for layer in manifest.layers}
        total, before = sum(layer.size for layer in unique.values()), 0
        for layer in unique.values():
            show: OnProgress | None = None
            if on_progress is not None:
                show = _shifted(on_progress, before, total)
            self._blob(ref, layer, scratch / layer.digest.removeprefix("sha256:"), show)
            before += layer.size
        return tuple(
            Blob(digest=layer.digest, size=layer.size, source=scratch / layer.digest.removeprefix("sha256:"))
            for layer in manifest.layers
        )

    def _configuration(self, ref: Reference, manifest: Manifest, arch: str) -> bytes:
        """Return the configuration; it is small, and it alone says for sure what an image is for."""
        item = manifest.config
        if item.size > MAX_DOCUMENT:
            raise UntrustedError(f"{ref} has a configuration of {item.size} bytes")
        data = self._get(ref, f"blobs/{item.digest}", item.size).body
        _check_digest(ref, item.digest, data)
        platform = _checked(ref, lambda: parse_platform(data))
        if platform != ("linux", arch):
            raise UnresolvableError(f"{ref} is for {'/'.join(platform)}, not for linux/{arch}")
        return data

    def _manifest(self, ref: Reference, which: str, *, size: int | None = None) -> tuple[bytes, str]:
        """Return a manifest's bytes and media type; bytes are checked against the digest."""
        answer = self._get(ref, f"manifests/{which}", MAX_DOCUMENT if size is None else size, accept=ACCEPT)
        stated = which if ":" in which else answer.headers.get("docker-content-digest", "")
        if stated.startswith("sha256:"):
            _check_digest(ref, stated, answer.body)
        return answer.body, answer.headers.get("content-type", "").partition(";")[0].strip()

    def _blob(self, ref: Reference, item: Descriptor, path: Path, on_progress: OnProgress | None) -> None:
        sha256 = item.digest.removeprefix("sha256:")
        url = f"{self._repository(ref)}/blobs/{item.digest}"
        locked = self._downloader.fetch(
            url, path, sha256=sha256, max_size=item.size, headers=self._headers(ref), on_progress=on_progress
        )
        if locked.size != item.size:
            raise UntrustedError(f"{ref}: a layer has another size than its manifest says")

    def _get(self, ref: Reference, what: str, max_size: int, *, accept: str = "*/*") -> Response:
        """Get something small; when the registry asks for a token, fetch one and ask again."""
        url = f"{self._repository(ref)}/{what}"
        for attempt in (1, 2):
            headers = {"Accept": accept, **self._headers(ref)}
            allowed = (401,) if attempt == 1 else ()
            cap = max(max_size, MAX_TOKEN)  # a 401 says why; what is small is checked by its digest
            answer = self._downloader.get_bytes(url, max_size=cap, headers=headers, allowed=allowed)
            if answer.status != 401:
                return answer
            self._challenges[self._repository(ref)] = (url, answer.headers.get("www-authenticate", ""))
            self._tokens.pop(self._repository(ref), None)
        raise AssertionError("unreachable")

    def _token(self, url: str, challenge: str) -> tuple[str, float]:
        """Ask the service that a registry names for an anonymous token; return it and when it ends."""
        kind, _, rest = challenge.partition(" ")
        values = {key.lower(): value for key, value in PARAMETER.findall(rest)}
        realm = values.get("realm", "")
        if kind.lower() != "bearer" or not realm:
            raise UnresolvableError(
                f"{host_of(url)} wants credentials", hint="--mirror HOST=https://user:password@host"
            )
        split(realm)
        if urlsplit(url).scheme == "https" and urlsplit(realm).scheme != "https":
            raise UntrustedError(f"{host_of(url)} sends us to {safe_url(realm)}, which is not https")
        query = urlencode({key: values[key] for key in ("service", "scope") if key in values})
        answer = self._downloader.get_bytes(f"{realm}{'&' if '?' in realm else '?'}{query}", max_size=MAX_TOKEN)
        try:
            data = json.loads(answer.body)
            token = data.get("token") or data.get("access_token")
            seconds = max(60, int(data.get("expires_in", 60)))  # 60: the specification's default
        except (ValueError, AttributeError, TypeError):
            token, seconds = None, 0
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise UnresolvableError(f"{host_of(realm)} gave no token for {host_of(url)}")
        return token, time.monotonic() + seconds / 2

    def _headers(self, ref: Reference) -> dict[str, str]:
        """Return the authorization for a repository; a token is renewed at half its life."""
        repository = self._repository(ref)
        if repository not in self._challenges:
            return {}
        if self._tokens.get(repository, ("", 0.0))[1] <= time.monotonic():
            self._tokens[repository] = self._token(*self._challenges[repository])
        return {"Authorization": f"Bearer {self._tokens[repository][0]}"}

    def _repository(self, ref: Reference) -> str:
        """Return the address of a repository's API."""
        if mirror := self._mirrors.get(ref.registry):
            parts = split(mirror)
            path = "".join(f"/{part}" for part in parts.path.split("/") if part)
            return f"{parts.scheme}://{parts.netloc}/v2{path}/{ref.repository}"
        host = DOCKER_HUB_API if ref.registry == DOCKER_HUB else ref.registry
        local = host.rpartition(":")[0] in LOCAL_HOSTS or host in LOCAL_HOSTS
        return f"{'http' if local else 'https'}://{host}/v2/{ref.repository}"


def _shifted(on_progress: OnProgress, before: int, total: int) -> OnProgress:
    return lambda done, _: on_progress(before + done, total)


def _check_digest(ref: Reference, digest: str, data: bytes) -> None:
    actual = f"sha256:{sha256_bytes(data)}"
    if actual != digest:
        raise UntrustedError(
            f"{ref.registry} answered with other bytes than {digest[:19]}... for {ref.repository}",
            context=f"expected {digest}\nreceived {actual}",
        )


def _checked(ref: Reference, parser: Callable[[], T]) -> T:
    """Run a parser; what it refuses came from the registry."""
    try:
        return parser()
    except MalformedError as error:
        raise UntrustedError(f"{ref.registry} has no usable manifest for {ref.repository}: {error}") from error
