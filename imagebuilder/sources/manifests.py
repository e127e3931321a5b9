"""Parsers of image indexes, manifests and configurations: bytes in, frozen types out, nothing fetched.

Specification: https://github.com/opencontainers/image-spec/tree/v1.1.1 (image-index.md, manifest.md,
descriptor.md, config.md); Docker's older media types have the same fields:
https://distribution.github.io/distribution/spec/manifest-v2-2/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagebuilder.sources.references import DIGEST

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
MAX_DOCUMENT = 4 << 20  # bytes: what registries accept as a manifest
MAX_DESCRIPTORS = 1000  # in one document; the largest images have about 100 layers
MAX_BLOB = (8 << 30) - 1  # bytes: what the size field of a USTAR header can say
VARIANTS = {"arm64": ("", "v8"), "amd64": ("", "v1")}


class MalformedError(ValueError):
    """The bytes are not of the format; the message says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """A pointer to bytes; ``os``, ``arch`` and ``variant`` are empty where no platform is stated."""

    media_type: str
    digest: str
    size: int
    os: str
    arch: str
    variant: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The parts of one image, the layers from the bottom up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of configuration and layers."""
        return self.config.size + sum(layer.size for layer in self.layers)


def parse_index(data: bytes) -> tuple[Descriptor, ...]:
    """Return the manifests that an image index lists.

    Raises:
        MalformedError: it is none.
    """
    return _descriptors(_document(data), "manifests")


def parse_manifest(data: bytes) -> Manifest:
    """Return the parts of an image manifest.

    Raises:
        MalformedError: it is none.
    """
    document = _document(data)
    config = _descriptor(document.get("config"), "config")
    return Manifest(config=config, layers=_descriptors(document, "layers"))


def parse_platform(data: bytes) -> tuple[str, str]:
    """Return operating system and architecture of an image configuration.

    Raises:
        MalformedError: it is none.
    """
    # Labels may differ in case only, so keys are not compared here.
    document = _object(_load(data, strict=False), "configuration")
    return _text(document, "os", "configuration"), _text(document, "architecture", "configuration")


def is_index(data: bytes, media_type: str) -> bool:
    """Tell an index from a manifest: by the media type where one is stated, else by its fields."""
    if media_type in INDEXES or media_type in MANIFESTS:
        return media_type in INDEXES
    return "manifests" in _document(data)


def choose(descriptors: Sequence[Descriptor], arch: str) -> Descriptor | None:
    """Return the manifest for linux on ``arch``, the plain variant first; None when there is none."""
    fitting = [item for item in descriptors if item.os == "linux" and item.arch == arch]
    variants = VARIANTS.get(arch, ("",))
    fitting.sort(key=lambda item: variants.index(item.variant) if item.variant in variants else len(variants))
    return next((item for item in fitting if item.variant in variants), None)


def _load(data: bytes, *, strict: bool) -> Any:
    if len(data) > MAX_DOCUMENT:
        raise MalformedError(f"larger than {MAX_DOCUMENT} bytes")
    try:
        return json.loads(data, object_pairs_hook=_unique if strict else None)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse keys that are there twice or differ in case only: Go would read another one than we do."""
    if len({key.casefold() for key, _ in pairs}) != len(pairs):
        raise MalformedError("a key is there twice")
    return dict(pairs)


def _document(data: bytes) -> Mapping[str, Any]:
    document = _object(_load(data, strict=True), "document")
    if document.get("schemaVersion") != 2:
        raise MalformedError("schemaVersion is not 2")
    return document


def _descriptors(document: Mapping[str, Any], key: str) -> tuple[Descriptor, ...]:
    items = document.get(key)
    if not isinstance(items, list) or len(items) > MAX_DESCRIPTORS:
        raise MalformedError(f"{key} is no list of at most {MAX_DESCRIPTORS}")
    return tuple(_descriptor(item, f"{key}[{number}]") for number, item in enumerate(items))


def _descriptor(value: Any, where: str) -> Descriptor:
    item = _object(value, where)
    digest, size = _text(item, "digest", where), item.get("size")
    if not DIGEST.fullmatch(digest):
        raise MalformedError(f"{where}.digest is no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB:
        raise MalformedError(f"{where}.size is no size up to {MAX_BLOB}")
    platform = _object(item.get("platform", {}), f"{where}.platform")
    annotations = _object(item.get("annotations") or {}, f"{where}.annotations")
    return Descriptor(
        media_type=_text(item, "mediaType", where), digest=digest, size=size,
        os=_text(platform, "os", where, ""), arch=_text(platform, "architecture", where, ""),
        variant=_text(platform, "variant", where, ""),
        annotations={key: _text(annotations, key, where) for key in annotations},
    )  # fmt: skip


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError(f"{where} is no object")
    return value


def _text(item: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = item.get(key, default)
    if not isinstance(value, str):
        raise MalformedError(f"{where}.{key} is no text")
    return value
