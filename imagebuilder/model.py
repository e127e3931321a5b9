"""Frozen types that the rooms hand to each other. No behaviour beyond derived names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LAYERS = ("base", "runtime", "kubernetes", "initramfs", "guest", "site")
BARE_LAYERS = ("base", "initramfs", "guest", "site")  # of an image without docker and Kubernetes
INITRAMFS = ("small", "stock")  # one of our own, for disks of the direct engine; and the distribution's
ROOT_BUILDERS = ("fast", "mmdebstrap")  # how the direct engine makes the base layer; the first is the default
FORMAT_VERSION = 2  # of layers and artifacts; part of every id: raise it when the engine's output changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One OS, release, architecture and target."""

    os: str
    release: str
    arch: str
    target: str

    def __str__(self) -> str:
        return f"{self.os}-{self.release}-{self.arch}-{self.target}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """What a user asks for. Empty values mean: the default of the profile.

    Attributes:
        kubernetes: a minor (``1.35``) or an exact version (``1.35.8``).
        sources: component to source kind, as ``--source``.
        mirrors: mirror name to address, as ``--mirror``.
        keys: mirror name to the fingerprint of the key that signs it, where it is not upstream's own.
        overlays, scripts: absolute paths, in the order they are applied.
        trust: public keys, in PEM, of those who may sign a node's data packages.
        images: registry references, or paths of OCI archives or image TOML files.
        root_builder: one of ``ROOT_BUILDERS``.
        initramfs: one of ``INITRAMFS``.
        bare: only the operating system, ssh and cloud-init: what Packer starts from elsewhere.
    """

    os: str
    target: str
    release: str = ""
    arch: str = "amd64"
    kubernetes: str = ""
    engine: str = "auto"
    packages: tuple[str, ...] = ()
    overlays: tuple[Path, ...] = ()
    scripts: tuple[Path, ...] = ()
    images: tuple[str, ...] = ()
    trust: tuple[Path, ...] = ()
    bare: bool = False
    root_builder: str = ROOT_BUILDERS[0]
    initramfs: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    mirrors: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleBuild:
    """Programs built from one wrapper Go module.

    Attributes:
        name: folder under ``components/`` that holds ``go.mod`` and ``go.sum``.
        version: upstream's version, without ``v``.
        programs: Go package paths; each gives one program named like its last element.
        stamp: ``-X`` values as (variable, value).
        digest: content id of everything above, ``go.mod`` and ``go.sum``.
    """

    name: str
    version: str
    programs: tuple[str, ...]
    stamp: tuple[tuple[str, str], ...]
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedFile:
    """A file with a known hash. ``path`` is where a source keeps it (an address or a path)."""

    name: str
    path: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedPackage:
    """An exact package of a distribution: version, hash and size as the signed index states them."""

    name: str
    version: str
    arch: str
    filename: str
    uri: str
    sha256: str
    size: int

    @property
    def exact(self) -> list[str]:
        """Return what decides its bytes, for content ids: not where it lies."""
        return [self.name, self.version, self.arch, self.sha256]


def plain(value: Any) -> Any:
    """Return a frozen type as plain data, fit for canonical JSON."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
