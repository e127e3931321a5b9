"""What is checked of a package after it was read: signature, time, and what the image can do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from imagebuilder.compat import parse_version
from imagebuilder.datapackage.format import Package
from imagebuilder.datapackage.manifest import Manifest, Requires, format_time, parse_time
from imagebuilder.datapackage.signing import PublicKey, parse_pointer, verify, verify_pointer
from imagebuilder.errors import ArtifactError, PackageError, UsageError

MAX_IMAGE_MANIFEST = 16 << 20  # bytes: one with 400 packages has 0.1 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What an image can do. Empty where it does not say.

    Attributes:
        kubelet: its exact version.
        runtimes: container runtimes that are in it.
    """

    name: str
    kubelet: str
    runtimes: Sequence[str]
    arch: str
    init: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check and how it ended: without a code, it passed."""

    name: str
    code: str
    text: str


def check_signature(package: Package, key: PublicKey) -> None:
    """Refuse a package that was not signed with this key.

    Raises:
        PackageError: E_KEY or E_SIGNATURE.
    """
    verify(key, package.manifest_bytes, package.signature, package.manifest.key_id)


def check_time(manifest: Manifest, now: datetime) -> None:
    """Refuse a package outside its time; both ends belong to it.

    Raises:
        PackageError: E_EARLY or E_EXPIRED.
    """
    if now < parse_time(manifest.not_before):
        raise PackageError("E_EARLY", f"valid from {manifest.not_before}; it is {format_time(now)}")
    if now > parse_time(manifest.not_after):
        raise PackageError("E_EXPIRED", f"valid until {manifest.not_after}; it is {format_time(now)}")


def check_image(requires: Requires, image: ImageFacts) -> None:
    """Refuse an image that lacks what a package needs.

    Raises:
        PackageError: E_CAPABILITY.
    """
    problems = list(_lacks(requires, image))
    if problems:
        raise PackageError("E_CAPABILITY", f"{image.name}: {'; '.join(problems)}")


def run_checks(package: Package, key: PublicKey, now: datetime, image: ImageFacts | None) -> list[Check]:
    """Return how each check of a package that could be read ended."""
    read = Check(name="format", code="", text=f"{len(package.files)} files, as the manifest says")
    checks: list[tuple[str, str, Callable[[], None]]] = [
        ("signature", f"by the key {package.manifest.key_id}", lambda: check_signature(package, key)),
        ("validity", f"until {package.manifest.not_after}", lambda: check_time(package.manifest, now)),
    ]
    if image is not None:
        checks.append(("image", image.name, lambda: check_image(package.manifest.requires, image)))
    return [read, *(_run(*check) for check in checks)]


def pointer_checks(data: bytes, key: PublicKey) -> list[Check]:
    """Return how the one check of a pointer ended.

    Raises:
        PackageError: E_SIZE or E_FORMAT, it is none.
    """
    pointer = parse_pointer(data)
    return [_run("signature", f"by the key {pointer.key_id}", lambda: verify_pointer(data, key))]


def image_facts(path: Path) -> ImageFacts:
    """Return what an image can do: from a bake's folder, its ``manifest.json``, or the image's own ``image.json``.

    Raises:
        ArtifactError: it cannot be read, or does not say.
    """
    file = path / "manifest.json" if path.is_dir() else path
    hint = "name the folder out/<build identifier> that a bake wrote, or its manifest.json"
    try:
        with file.open("rb") as stream:
            data = json.loads(stream.read(MAX_IMAGE_MANIFEST))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read", context=str(error), hint=hint) from error
    match data:
        case {"kind": "Image", "id": str(name), "capabilities": dict(facts)}:
            return _facts(name, facts)
        case {"kind": "ImageFacts", "id": str(name)}:
            return _facts(name, data)
    raise ArtifactError(f"{file} does not say what the image can do", hint=hint)


def _run(name: str, passed: str, check: Callable[[], object]) -> Check:
    try:
        check()
    except PackageError as error:
        return Check(name=name, code=error.code, text=error.message.removeprefix(f"{error.code}: "))
    return Check(name=name, code="", text=passed)


def _facts(name: str, facts: Mapping[str, Any]) -> ImageFacts:
    listed = facts.get("runtimes")
    return ImageFacts(
        name=name, kubelet=str(facts.get("kubelet", "")), arch=str(facts.get("arch", "")),
        init=str(facts.get("init", "")), runtimes=[str(item) for item in listed] if isinstance(listed, list) else [],
    )  # fmt: skip


def _lacks(requires: Requires, image: ImageFacts) -> Iterator[str]:
    if requires.kubelet is not None and not _within(image.kubelet, requires.kubelet.min, requires.kubelet.below):
        wanted = f">= {requires.kubelet.min}, < {requires.kubelet.below}"
        yield f"has kubelet {image.kubelet or 'of no version'}, needed is {wanted}"
    if requires.runtime is not None and requires.runtime not in image.runtimes:
        yield f"has {', '.join(image.runtimes) or 'no runtime'}, needed is {requires.runtime}"
    for what, needed, found in (("arch", requires.arch, image.arch), ("init", requires.init, image.init)):
        if needed is not None and needed != found:
            yield f"has {what} {found or 'unknown'}, needed is {needed}"


def _within(version: str, minimum: str, below: str) -> bool:
    try:
        return parse_version(minimum) <= parse_version(version) < parse_version(below)
    except UsageError:
        return False
